"""A budget of hours ends work at a shard's end, and the same command continues it; flags reach every process."""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from pathlib import Path

import click
import pytest
from conftest import Hfsyn, parquet_bytes, run_folder
from fakes import FakeCaptioner, FakeGenerator

from hfsyn.building import work
from hfsyn.captions.caption_stage import caption
from hfsyn.cli import cli
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.runs.claims import lock
from hfsyn.runs.options import Budget, WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.runs.shards import is_done

HOUR = 3600.0


class Clock:
    """`time.monotonic` that stands still unless it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("hfsyn.runs.options.time.monotonic", lambda: self.now)


def begun(budget: Budget, clock: Clock, *shards: float) -> int:
    """How many shards of these lengths (seconds) are begun."""
    for number, seconds in enumerate(shards):
        if not budget.allows_another():
            return number
        clock.now += seconds
    return len(shards)


def test_no_shard_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    budget = Budget(WorkOptions(budget_hours=1, started=clock.now))
    # The first also warms up; from the second on each takes 500 s: 1000 + 5 * 500 is the last that fits into 3600.
    assert begun(budget, clock, 1000, *[500] * 10) == 6
    assert clock.now - 1000 <= HOUR


def test_loading_counts_and_a_budget_that_is_over_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    options = WorkOptions(budget_hours=1, started=clock.now)
    clock.now += 1800
    assert begun(Budget(options), clock, 1000, 1000) == 1  # a second one would end at 3800
    clock.now += HOUR
    assert not Budget(options).allows_another()


def test_without_a_budget_there_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert begun(Budget(WorkOptions()), clock, *[1e9] * 20) == 20
    assert WorkOptions().seconds_left() == float("inf")


def test_the_processes_of_a_command_share_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    options = WorkOptions(budget_hours=2, started=clock.now)
    clock.now += HOUR / 2
    assert options.arguments() == ["--budget-hours", "1.5"]
    clock.now += 5 * HOUR
    assert 0 < float(options.arguments()[1]) < 1e-5  # a flag must be above 0


def test_every_option_is_a_flag_of_every_command_that_works() -> None:
    """What is a field of `WorkOptions` reaches the processes that `--num-processes` starts."""
    flags = {option.name: f"--{option.name.replace('_', '-')}" for option in fields(WorkOptions)}
    del flags["started"]
    for name in ("build", "caption", "generate", "work-on"):
        known = {p.name: p.opts[-1] for p in cli.commands[name].params if isinstance(p, click.Option)}
        assert flags.items() <= (known | ({"captions": "--captions"} if name == "generate" else {})).items(), name
    chosen = WorkOptions("cpu", None, "1:2", True, "RUN", True, None, "8", "on", True, "math")
    assert all(getattr(chosen, name) is not None for name in flags.keys() - {"num_processes", "budget_hours"})
    command = cli.commands["work-on"]
    given = command.make_context("work-on", ["RUN", "--stages", "generate", *chosen.arguments()]).params
    assert (given.pop("run"), given.pop("stages")) == ("RUN", "generate")
    assert WorkOptions(**given) == chosen
    assert WorkOptions().arguments() == []


class SlowGenerator(FakeGenerator):
    """Takes its time."""

    def generate(self, prompts, seeds):  # type: ignore[no-untyped-def]
        time.sleep(0.1)
        return super().generate(prompts, seeds)


def test_a_stage_that_ends_early_leaves_whole_shards_and_is_continued(tmp_path: Path) -> None:
    run, other = (run_folder(tmp_path, name=name) for name in ("run", "other"))
    for folder in (run, other):
        caption(folder, captioner=FakeCaptioner(), quiet=True)
    generate(other, generator=FakeGenerator(), quiet=True)
    # Two batches a shard, so about 0.2 s each: two or three of the four fit into 0.55 s.
    generate(run, generator=SlowGenerator(), quiet=True, options=WorkOptions(budget_hours=0.55 / 3600))
    shards = load_run(run).data_shards()
    done = [shard for shard in shards if is_done(shard)]
    assert 0 < len(done) < len(shards) == 4
    assert not list(run.rglob("*.tmp"))
    generate(run, generator=FakeGenerator(), quiet=True)
    assert parquet_bytes(run) == parquet_bytes(other)


def test_the_captions_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    caption(run, captioner=FakeCaptioner(), quiet=True, options=WorkOptions(budget_hours=1e-9))
    assert not any(map(is_done, load_run(run).caption_shards()))
    # Nothing is left locked, and no budget means all of it.
    caption(run, captioner=FakeCaptioner(), quiet=True)
    assert all(map(is_done, load_run(run).caption_shards()))


def test_the_main_process_of_a_launcher_speaks_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher ends all its processes when one of them ends with an error, and others may still be at a shard."""
    run = run_folder(tmp_path)
    monkeypatch.setattr("hfsyn.building.STAGES", {"caption": lambda run, **more: None})
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    options = WorkOptions(device="cpu", budget_hours=1e-9)
    monkeypatch.setenv("RANK", "1")
    work(load_run(run), ["caption"], options)
    monkeypatch.setenv("RANK", "0")
    held, freed = threading.Event(), threading.Event()

    def other() -> None:
        with lock(run, f"caption-{load_run(run).caption_shards()[1].stem}"):
            held.set()
            time.sleep(0.3)
            freed.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with pytest.raises(HfsynError, match="0 of 4 caption shards are done") as stop:
        work(load_run(run), ["caption"], options)
    assert freed.is_set()
    assert stop.value.code == 4
    thread.join()


@pytest.mark.slow
def test_the_command_says_how_to_go_on(tmp_path: Path, hfsyn: Hfsyn) -> None:
    options = ("--limit", "1", "--set", "generate.steps=1", "--out", "run")
    done = hfsyn("build", "shapes-cip", *options, "--budget-hours", "1e-7", "--num-processes", "2")
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "Error: The budget of 1e-07 hours has no room for another shard: 0 of 1 caption shards are done and kept. "
        "Run the same command again to continue."
    )
    done = hfsyn("build", "shapes-cip", *options, "--budget-hours", "0")
    assert done.returncode == 2
    assert "--budget-hours" in done.stderr
