#!/usr/bin/env bash
# The commands themselves on a GPU, in about two minutes: the built-in models make a set that is verified, and its first image is made
# again; a ResNet-50 trains from scratch on photographs and is tested.
#   ./scripts/check_gpu.sh --data DIR [--out DIR]        DIR is an ImageNette: train/<wnid>/*, val/<wnid>/*
# Settings, fixed before the first run: ImageNette's training photographs at 64 px, 60 epochs of 9,469 images, batches of 256, SGD
# with a peak learning rate of 0.2, bfloat16, channels last, seed 0. PYTHON names the interpreter [python3].
set -euo pipefail
cd "$(dirname "$0")/.."
data='' out=$(mktemp -d)
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "usage: ./scripts/check_gpu.sh --data DIR [--out DIR]" >&2; exit 2 ;;
  esac
done
[ -d "$data/train" ] || { echo "check_gpu.sh: --data '$data' is not an ImageNette: there is no folder train in it" >&2; exit 2; }
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "check_gpu.sh: torch sees no NVIDIA GPU here" >&2
  exit 3
fi
mkdir -p "$out"
export HF_HUB_OFFLINE=1
"$python" -m hfsyn build shapes-cip --limit 20 --num-processes 1 --quiet --out "$out/run"
"$python" -m hfsyn verify "$out/run"
sample=$("$python" -c 'import glob, sys, pyarrow.parquet as pq; print(pq.read_table(sorted(glob.glob(sys.argv[1] + "/data/*.parquet"))[0])["sample_id"][0])' "$out/run")
"$python" -m hfsyn reproduce "$out/run" --sample-id "$sample" --out "$out"
"$python" -m hfsyn reproduce "$out/run" --sample-id "$sample" --device cpu --out "$out" || echo "the CPU's image differs from the GPU's by more than rounding"
"$python" -m hfsyn train --train-dataset "imagenette=$data" --eval-dataset "imagenette=$data" --model resnet50 --image-size 64 \
  --epochs 60 --batch-size 256 --lr 0.2 --mixed-precision bf16 --seed 0 --out "$out/train"
