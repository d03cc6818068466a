#!/bin/bash
# A Slurm array whose tasks make one dataset together: each is `hfsyn build` with the words that follow this script's
# name, and a run folder that all nodes see.
#
#   mkdir -p logs
#   sbatch --array=0-7 --gpus=1 --time=24:00:00 scripts/slurm_array.sh imagenet-1k-cip --out runs/in1k
#
# Resources are options of sbatch: --partition, --gpus or --cpus-per-task, --mem, --time, and --array=0-31%8 for at most
# eight at a time. A task with several GPUs starts a process on each.
#
# Tasks are not given shards by their number: each takes the next that is free (file locks in the run folder), so that
# any number of tasks, started or lost at any time, makes the same dataset, and a slow node delays nothing but its own
# shard. Where a shared file system has no locks (hfsyn says so), make the captions first, then let each of N tasks work
# on its own part: hfsyn generate RUN --shards A:B.
#
#SBATCH --job-name=hfsyn
#SBATCH --output=logs/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@90

# The environment: HFSYN_ACTIVATE names a script to be sourced; .venv of the folder of submission is the default.
activate=${HFSYN_ACTIVATE:-.venv/bin/activate}
if [ -n "${HFSYN_ACTIVATE:-}" ] || [ -f "$activate" ]; then
  source "$activate" || exit 2
fi

hfsyn build "$@" &
worker=$!

# TERM is a preemption or scancel: end; Slurm itself requeues what was preempted. USR1 comes 90 seconds before the time
# limit: end and queue this task again, until the dataset is finished. hfsyn ends within 10 seconds.
again=false
trap 'kill -TERM $worker 2>/dev/null' TERM
trap 'again=true; kill -TERM $worker 2>/dev/null' USR1
while [ -n "$(jobs -r)" ]; do
  wait $worker # returns at a signal, too
done
wait $worker
code=$?
if $again && [ $code = 143 ]; then
  # Not SLURM_JOB_ID: that of the last task is the whole array's.
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit $code
