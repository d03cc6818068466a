"""Workers: shares are complete and disjoint, launchers are counted right, nobody outlives a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import run_folder
from fakes import FakeCaptioner

from hfsyn import building, workers
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.workers import Worker, current_worker, default_processes, visible_gpus


@pytest.mark.parametrize("world", [1, 2, 3, 7, 12])
def test_each_process_starts_with_its_own_share_and_sees_all_items(world: int) -> None:
    """10 classes on 100 processes gave nothing at all in the method's first implementation."""
    items = list(range(10))
    shares = [Worker(rank, world).share(items) for rank in range(world)]
    assert all(sorted(share) == items for share in shares)
    own = [share[: len(items[rank::world])] for rank, share in enumerate(shares)]
    assert sorted(item for share in own for item in share) == items


def test_the_worker_is_read_from_the_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_worker() == Worker(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert current_worker() == Worker(2, 3)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(HfsynError, match="WORLD_SIZE=3"):
        current_worker()


def test_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, count in (("", 0), ("-1", 0), ("0", 1), ("0,2", 2), ("GPU-aa,GPU-bb", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == count
        assert default_processes() == (count or len(os.sched_getaffinity(0)))


def test_by_default_no_more_processes_start_than_there_are_shards_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes seconds and a gigabyte to start."""
    started: list[int] = []

    def launched(arguments: object, processes: int, **_: object) -> int:
        started.append(processes)
        return 1

    monkeypatch.setattr(building, "default_processes", lambda: 8)
    monkeypatch.setattr(building, "launch", launched)
    run = run_folder(tmp_path, "prompt.images_per_caption=2")  # 30 real images, 60 of ours, 8 rows a shard
    for stages, shards in ((("caption", "generate"), None), (("caption",), None), (("caption",), "0:3")):
        with pytest.raises(HfsynError, match="stopped before"):
            building.work(load_run(run), stages, WorkOptions(shards=shards))
    assert started == [8, 4, 3]
    with pytest.raises(HfsynError, match="stopped before"):
        building.work(load_run(run), ("caption",), WorkOptions(shards="0:3", num_processes=5))
    assert started.pop() == 5
    caption(load_run(run), captioner=FakeCaptioner(), shards="0:3", quiet=True)
    monkeypatch.setitem(
        building.STAGES, "caption", lambda run, **_: caption(run, captioner=FakeCaptioner(), quiet=True)
    )
    building.work(load_run(run), ("caption",), WorkOptions(quiet=True))
    assert started == [8, 4, 3]  # the one that was left was made here


def test_a_device_with_a_number_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "default_processes", lambda: 8)
    monkeypatch.setattr(building, "check_device", lambda device: None)
    run, here = load_run(run_folder(tmp_path)), []
    monkeypatch.setitem(building.STAGES, "caption", lambda run, *, options, **_: here.append(options.device))
    building.work(run, ("caption",), WorkOptions(device="cuda:1"))
    assert here == ["cuda:1"]
    with pytest.raises(HfsynError, match="--device cuda:1 names one GPU, for 8 processes"):
        building.work(run, ("caption",), WorkOptions(device="cuda:1", num_processes=8))


def test_gpus_that_torch_cannot_use_are_told_instead_of_days_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(workers, "_CONTROL", tmp_path / "nvidiactl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(HfsynError, match="NVIDIA GPUs, and torch"):
        workers.pick_device(None)
    assert workers.pick_device("cpu") == "cpu"
    (tmp_path / "nvidiactl").unlink()
    assert workers.pick_device(None) == "cpu"


@pytest.mark.parametrize(
    "arguments", [["--num_processes", "2"], pytest.param(["--num-processes=2"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_launch_that_silently_starts_one_process_for_two_is_refused(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *arguments, "-m", "hfsyn", "variants", "ls"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "asked for 2 processes and started one" in done.stderr
    assert done.stdout == ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = """
        import subprocess, sys, time
        from hfsyn.launching import die_with_parent
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=die_with_parent)
        print(child.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_process_that_is_told_to_end_does_so_while_its_threads_compute(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Python would unwind these threads through C++, and abort with code 134."""
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal, threading, time
            import click, torch
            from hfsyn.cli import run_command

            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

            def compute(matrix=torch.randn(600, 600)):
                while True:
                    torch.linalg.svd(matrix)

            @click.command()
            def work():
                for _ in range(3):
                    threading.Thread(target=compute, daemon=True).start()
                time.sleep(0.3)
                os.kill(os.getpid(), {int(number)})
                time.sleep(60)

            run_command(work, "work", [])
            """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().endswith("The work so far is kept; the same command continues it.")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_command_ends_with_its_code_after_what_libraries_do_at_the_end(tmp_path: Path) -> None:
    """Threads are waited for and what was registered is done; only then is the process gone, without taking modules
    apart.
    """
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent("""
            import atexit, gc, os, sys, threading, time, types
            import click
            from hfsyn.cli import run_command
            from hfsyn.progress import Progress

            class Left:
                def __del__(self, write=os.write):
                    write(1, b"taken apart\\n")

            sys.modules["left"] = types.ModuleType("left")
            sys.modules["left"].left = Left()
            before = gc.get_threshold()

            def slow():
                time.sleep(0.3)
                print("thread")

            @click.command()
            @click.argument("code", type=int)
            def work(code):
                print(gc.get_threshold()[0] > before[0])
                with Progress("work", 1, quiet=True):
                    print(gc.get_threshold() == before, gc.get_freeze_count() > 0)
                atexit.register(print, "registered")
                threading.Thread(target=slow).start()
                raise click.exceptions.Exit(code)

            run_command(work, "work")
            """)
    )
    for code in (0, 1):
        done = subprocess.run([sys.executable, script, str(code)], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.splitlines() == ["True", "True True", "thread", "registered"]
