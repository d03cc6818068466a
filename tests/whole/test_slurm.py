"""An array of Slurm jobs makes one dataset, whatever happens to its tasks."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, parquet_bytes
from slurm_cluster import Cluster, why_not
from test_docs import blocks

import hfsyn
from builders.runs.layout import finished_shards

needs_slurm = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it is here")


def wait_for(what: Callable[[], bool], cluster: Cluster, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, (cluster.states(), cluster.logs())
        time.sleep(0.05)


def restarts(cluster: Cluster, task: str) -> int:
    found = re.search(r"Restarts=(\d+)", cluster.command("scontrol", "show", "job", task))
    assert found
    return int(found[1])


def log_of(folder: Path, task: str) -> str:
    path = folder / "logs" / f"hfsyn-{task}.log"
    return path.read_text() if path.exists() else ""


@needs_slurm
def test_the_array_of_the_readme_ends_in_the_bytes_of_one_process_whatever_happens_to_its_tasks(tmp_path: Path) -> None:
    """The README's commands as written. Meanwhile a second task is cancelled and a third nears its time limit."""
    folder = tmp_path / "here"
    (folder / ".venv" / "bin").mkdir(parents=True)
    activate = folder / ".venv" / "bin" / "activate"
    activate.write_text(f"export PATH={Path(sys.executable).parent}:$PATH OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=\n")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (block,) = blocks("slurm")
    run = folder / "runs" / "array"
    with Cluster(tmp_path / "cluster") as cluster:
        shell = subprocess.Popen(
            ["bash", "-e"],
            cwd=folder,
            env=cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert shell.stdin is not None
        job = ""
        for line in block.splitlines():
            if line.startswith("scontrol requeue"):
                wait_for(lambda: bool(list(finished_shards(run / "data"))), cluster)
                (job,) = {name.partition("_")[0] for name in cluster.states()}
                cluster.command("scancel", f"{job}_2")
                cluster.command("scancel", "--batch", "--signal=USR1", f"{job}_3")
            if line.startswith("hfsyn status"):
                wait_for(lambda: (run / "manifest.json").exists(), cluster)
                line = f". .venv/bin/activate; {line}"
            shell.stdin.write(line + "\n")
            shell.stdin.flush()
        out, _ = shell.communicate(timeout=60)
        assert shell.returncode == 0
        assert out.splitlines()[-1] == "finished"
        tasks = [f"{job}_{number}" for number in range(4)]
        wait_for(lambda: set(cluster.states().values()) <= {"COMPLETED", "CANCELLED"}, cluster)
        assert [cluster.states()[task] for task in tasks] == ["COMPLETED", "COMPLETED", "CANCELLED", "COMPLETED"]
        assert [restarts(cluster, task) for task in tasks] == [0, 1, 0, 1]
    logs = [log_of(folder, task) for task in tasks]
    # One line at most: a task that was still starting ends without a word.
    assert all(log.count("Terminated. The work so far is kept") <= min(number, 1) for number, log in enumerate(logs))
    assert not any("Traceback" in log for log in logs), logs

    (submit,) = [line for line in block.splitlines() if "sbatch" in line]
    words = shlex.split(submit.partition("$(")[2].rpartition(")")[0])
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    limit = words[words.index("--limit") + 1]
    alone = tmp_path / "alone"
    hfsyn.build(
        "shapes-cip", alone, overrides=[*overrides, f"source.limit_per_class={limit}"], num_processes=1, quiet=True
    )
    assert parquet_bytes(run) == parquet_bytes(alone)
    assert (run / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()
    assert not list(run.rglob(".*.tmp"))


@needs_slurm
def test_the_script_that_installs_slurm_parses_and_wants_root() -> None:
    script = ROOT / "scripts" / "install_slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "bash", str(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("root")) == (2, 1)
