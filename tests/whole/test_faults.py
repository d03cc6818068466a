"""What long runs meet: nothing is lost, nothing is made twice, and the bytes are those of a clean run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, parquet_bytes, run_folder
from drawn_tables import rows_of, write_table
from hub_client import Client, Done
from hub_server import Hub

from builders.runs import layout
from builders.runs.layout import finished_shards, load_sidecar, sidecar_of
from hfsyn.runs.finish import finish

DRIVER = ROOT / "tests" / "drive_faults.py"
SMALL = ("source.limit_per_class=4", "store.shard_rows=4", "caption.batch_size=4", "generate.batch_size=4")


class Driver:
    """Starts processes that have imported everything already; see drive_faults.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        )

    def order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(
        self, *arguments: str | Path, rank: int = 0, world: int = 1, log: Path | None = None, **faults: Any
    ) -> Worker:
        """A command of hfsyn, alone or as one of several."""
        self._count += 1
        said = self.folder / str(self._count)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # where fakes never go
        place = {"RANK": str(rank), "WORLD_SIZE": str(world), **meeting} if world > 1 else {}
        words = [*map(str, arguments), *(() if world > 1 else ("--num-processes", "1"))]
        answer = self.order(
            arguments=words, environment=place, faults=faults, log=str(log or os.devnull), said=str(said)
        )
        return Worker(answer["pid"], said, self)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Worker:
    """A process that the driver has started."""

    def __init__(self, pid: int, said: Path, driver: Driver) -> None:
        self.pid, self._said, self._driver = pid, said, driver

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text() if self._said.exists() else ""

    def end(self, code: int = 0, timeout: float = 60) -> str:
        """Wait for it; returns what it said."""
        deadline = time.monotonic() + timeout
        while (found := self._driver.order(poll=self.pid)["code"]) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        said = self.said()
        assert found == code, said
        assert "Traceback" not in said
        return said


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    found = Driver(tmp_path_factory.mktemp("said"))
    yield found
    found.close()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def shards_done(run: Path) -> int:
    return len(list(finished_shards(run / "data")))


@pytest.fixture(scope="module")
def clean(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to which nothing happened."""
    run = run_folder(tmp_path_factory.mktemp("clean"), *SMALL)
    driver.start("work-on", run, "--stages", "caption,generate").end()
    return finish(run).folder


@pytest.fixture
def captioned(clean: Path, tmp_path: Path) -> Path:
    """The same run, whose captions are finished and whose images are not."""
    run = tmp_path / "run"
    shutil.copytree(clean, run, ignore=shutil.ignore_patterns("data", "preview", "rejected.jsonl", "README.md"))
    (run / layout.MANIFEST).unlink()
    return run


def equal(run: Path, clean: Path) -> None:
    """The run is finished and has the bytes of the clean one, and nothing else."""
    finish(run)
    assert parquet_bytes(run) == parquet_bytes(clean)
    for name in (layout.MANIFEST, layout.REJECTED):
        assert (run / name).read_bytes() == (clean / name).read_bytes()
    assert not list(run.rglob(".*.tmp"))


def test_the_clean_run_has_what_goes_wrong_by_itself(clean: Path) -> None:
    """Images that are NaN once are made again, those that always are are set aside; so all faults below meet them."""
    flags = json.loads((clean / layout.MANIFEST).read_text())["flags"]
    assert flags["retried"] > 2
    reasons = Counter(json.loads(line)["reason"] for line in (clean / layout.REJECTED).read_text().splitlines())
    assert list(reasons) == ["the model produced NaN values, 4 attempts"]
    assert 0 < reasons.total() < 10


def test_a_killed_process_loses_its_shard_to_the_other_which_goes_on(
    driver: Driver, clean: Path, captioned: Path
) -> None:
    workers = [driver.start("generate", captioned, rank=rank, world=2, pause=0.05) for rank in range(2)]
    wait_for(lambda: shards_done(captioned) >= 1)
    workers[0].send(signal.SIGKILL)
    workers[0].end(-signal.SIGKILL)
    workers[1].end()
    equal(captioned, clean)


@pytest.mark.parametrize("doing", ["python", "a long call", "a stuck disk"])
def test_sigterm_ends_a_process_within_ten_seconds_with_whole_shards_kept(
    driver: Driver, clean: Path, captioned: Path, doing: str
) -> None:
    faults: dict[str, Any] = {
        "python": {"pause": 0.05},
        "a long call": {"stuck_after": 2, "stuck_in": "generate", "grace": 1.0},
        "a stuck disk": {"stuck_after": 2, "stuck_in": "write", "grace": 1.0},
    }[doing]
    process = driver.start("generate", captioned, "--quiet", **faults)
    wait_for(lambda: shards_done(captioned) >= 2)
    time.sleep(0.2)
    before = time.monotonic()
    process.send(signal.SIGTERM)
    said = process.end(143)
    assert time.monotonic() - before < 10
    assert said == "Terminated. The work so far is kept; the same command continues it.\n"
    assert shards_done(captioned) < 10
    driver.start("generate", captioned).end()
    equal(captioned, clean)


def descendants(pid: int) -> set[int]:
    """A process and all that it has started, as far as they are alive."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found = {pid} & parents.keys()
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found


@pytest.mark.slow
def test_a_launch_starts_a_killed_process_again_and_answers_sigterm_with_one_line_and_nobody_left(
    tmp_path: Path,
) -> None:
    """SIGTERM to all, as a scheduler sends it. With the real small models: processes of a launcher know no fakes."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hfsyn",
            "build",
            "shapes-cip",
            "--limit",
            "8",
            "--set",
            "store.shard_rows=8",
            "--num-processes",
            "2",
            "--device",
            "cpu",
            "--quiet",
            "--out",
            str(run),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def workers() -> set[int]:
        """The two that work; the others are this command and accelerate."""
        found = set()
        for pid in descendants(process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                found |= {pid} if b"work-on" in words and b"accelerate" not in words else set()
        return found

    wait_for(lambda: list(finished_shards(run / "captions")), 120)
    first = workers()
    assert len(first) == 2
    os.kill(min(first), signal.SIGKILL)
    wait_for(lambda: len(workers() - first) == 2, 120)
    done = len(list(run.glob("sidecars/*/*.json")))
    wait_for(lambda: len(list(run.glob("sidecars/*/*.json"))) > done, 120)
    everybody = descendants(process.pid)
    assert len(everybody) == 4
    before = time.monotonic()
    for pid in everybody:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert said.endswith(
        "hfsyn: a process died (see above); all are started again\n"
        "Terminated. The work so far is kept; the same command continues it.\n"
    )
    wait_for(lambda: not any(descendants(pid) for pid in everybody), 10 - (time.monotonic() - before))


@contextlib.contextmanager
def mounted(*words: str | Path) -> Iterator[Callable[..., None]]:
    """Something mounted at the last word; yields what mounts it again with other options."""
    place = str(words[-1])

    def mount(*options: str | Path) -> None:
        done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    mount(*words)
    try:
        yield lambda *options: mount(*options, place)
    finally:
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


@pytest.mark.parametrize("free", [0, 8, 24, 60], ids="{} KB are left".format)
def test_a_full_disk_is_one_line_and_room_continues_the_run(
    driver: Driver, clean: Path, captioned: Path, tmp_path: Path, free: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk):
        run = disk / "run"
        shutil.copytree(captioned, run)
        filler = disk / "filler"
        left = shutil.disk_usage(disk).free - free * 1024
        filler.write_bytes(b"0" * left)
        said = driver.start("generate", run, "--quiet").end(3)
        assert said.count("\n") == 1
        assert "No space left on device" in said
        assert "What is finished is kept" in said
        assert shards_done(run) < 10
        for shard in finished_shards(run / "data"):
            assert load_sidecar(sidecar_of(shard)).bytes == shard.stat().st_size
        filler.unlink()
        driver.start("generate", run).end()
        equal(run, clean)


def test_a_run_folder_that_cannot_be_written_to_is_one_line(driver: Driver, clean: Path, captioned: Path) -> None:
    with mounted("--bind", captioned, captioned) as again:
        again("-o", "remount,bind,ro")
        for command in (["generate", captioned], ["build", captioned / "recipe.yaml", "--out", captioned]):
            said = driver.start(*command, "--quiet").end(3)
            assert said.count("\n") == 1
            assert "Read-only file system" in said
        assert (
            "unfinished"
            in subprocess.run(
                [sys.executable, "-m", "hfsyn", "status", str(captioned)], capture_output=True, text=True, check=True
            ).stdout
        )
    driver.start("generate", captioned).end()
    equal(captioned, clean)


@pytest.mark.parametrize("then", [signal.SIGCONT, signal.SIGKILL])
def test_a_process_that_stands_still_delays_its_own_shards_alone_and_is_named(
    driver: Driver, clean: Path, captioned: Path, then: signal.Signals
) -> None:
    still = driver.start("generate", captioned, rank=0, world=2, pause=0.1)
    wait_for(lambda: shards_done(captioned) >= 1)
    still.send(signal.SIGSTOP)
    name = f"process {still.pid} on {socket.gethostname()}"
    held = {
        path.stem for path in (captioned / layout.LOCKS).glob("generate-*.lock") if path.read_text().strip() == name
    }
    held -= {f"generate-{path.stem}" for path in finished_shards(captioned / "data")}
    assert 1 <= len(held) <= 3
    other = driver.start("generate", captioned, "--quiet", rank=1, world=2, silence=0.5)
    wait_for(lambda: "still waiting" in other.said())
    assert shards_done(captioned) == 10 - len(held)
    time.sleep(1.5)
    still.send(then)
    still.end(0 if then == signal.SIGCONT else -then)
    said = other.end()
    assert said.count(f"({name})") == len(held)
    assert said.count("\n") == 1  # once, and not again and again
    equal(captioned, clean)


def test_clocks_that_jump_and_files_of_the_future_change_nothing(driver: Driver, clean: Path, captioned: Path) -> None:
    workers = [driver.start("generate", captioned, rank=rank, world=2, pause=0.05, clock=86400) for rank in range(2)]
    wait_for(lambda: shards_done(captioned) >= 2)
    for worker in workers:
        worker.send(signal.SIGKILL)
        worker.end(-signal.SIGKILL)
    for path in captioned.rglob("*"):
        tomorrow = time.time() + 86400
        os.utime(path, (tomorrow, tomorrow))
    for process in [driver.start("generate", captioned, rank=rank, world=2, clock=-86400) for rank in range(2)]:
        process.end()
    equal(captioned, clean)


def test_two_builds_on_one_folder_share_the_work_and_write_no_file_twice(
    driver: Driver, clean: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = [word for override in SMALL for word in ("--set", override)]
    command = ["build", "shapes-cip", *overrides, "--out", run]
    builds = [driver.start(*command, log=log, pause=0.02) for _ in range(2)]
    for build in builds:
        build.end()
    writes = log.read_text().splitlines()
    assert sorted(writes) == sorted(set(writes))
    assert len(writes) == 20
    equal(run, clean)


def test_batches_shrink_when_memory_runs_out_and_the_images_stay_the_same(
    driver: Driver, clean: Path, captioned: Path
) -> None:
    workers = [driver.start("generate", captioned, rank=rank, world=2, memory=3 - rank) for rank in range(2)]
    said = [worker.end() for worker in workers]
    assert all("too little memory for batches of 4; going on with 2" in text for text in said)
    equal(captioned, clean)
    grids = [load_sidecar(sidecar_of(shard)).grid for shard in finished_shards(captioned / "data")]
    assert {size for grid in grids for _, _, size in grid} == {2}


def test_memory_for_not_even_one_image_is_one_line(driver: Driver, captioned: Path) -> None:
    said = driver.start("generate", captioned, "--quiet", memory=0).end(2)
    assert "There is too little memory for one image at a time" in said
    assert said.count("\n") == 3  # 4, 2, 1, none
    assert shards_done(captioned) == 0


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client, Path]]:
    """A set of 40 images on the Hub in four row groups, a client that waits for nothing, and a clean run of them."""
    folder = tmp_path_factory.mktemp("stream")
    table = pq.read_table(write_table(folder / "t.parquet", rows_of(40)))
    pq.write_table(table, folder / "groups.parquet", row_group_size=10)
    with Hub(folder / "hub") as hub, Client(hub, folder) as client:
        hub.add_repo("dataset", "bob/forms", {"data/train-0.parquet": (folder / "groups.parquet").read_bytes()})
        # The pauses of huggingface_hub are half a minute in all, ours some minutes.
        client.python("import time; time.sleep = lambda seconds: None; result = None")
        assert client.hfsyn("variants", "new", "forms", "--from", "bob/forms", cwd=folder).code == 0
        prepared(client, folder, "clean")
        assert read(client, folder, "clean").code == 0
        yield hub, client, folder


def prepared(client: Client, folder: Path, name: str) -> None:
    """A run of that set. Its prompts are class names, so that no captioner is needed."""
    code = f"""
import os
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.prepare import prepare
os.chdir({str(folder)!r})
settings = ["source.variant=forms.yaml", "store.shard_rows=10"]
prepare(load_recipe("shapes-basic", settings), {name!r})
result = None
"""
    client.python(code)


def read(client: Client, folder: Path, name: str) -> Done:
    """Read its real images."""
    return client.hfsyn("caption", name, "--num-processes", "1", cwd=folder)


CLIENTS_OWN = 6
"""Attempts that huggingface_hub makes by itself before it gives a request up."""


@pytest.mark.parametrize("kind", ["cut-after", "cut-before", 503])
def test_a_source_that_breaks_off_and_comes_back_is_read_on(stream: tuple[Hub, Client, Path], kind: str | int) -> None:
    hub, client, folder = stream
    name = f"run-{kind}"
    prepared(client, folder, name)
    # In the third of four shards, for longer than the client of the Hub is patient, and a second time.
    fault = hub.faults.add(kind, path="forms/resolve/", after=6, times=2 * CLIENTS_OWN + 1, keep=0.5)
    done = read(client, folder, name)
    hub.faults.clear()
    assert (done.code, fault.hits) == (0, 2 * CLIENTS_OWN + 1), done.err
    assert done.err.count("; again in ") == 2
    assert parquet_bytes(folder / name) == parquet_bytes(folder / "clean")


def test_a_source_that_stays_away_is_one_line_and_the_same_command_continues(stream: tuple[Hub, Client, Path]) -> None:
    hub, client, folder = stream
    prepared(client, folder, "run")
    hub.faults.add("cut-before", path="forms/resolve/", after=6, times=None)
    done = read(client, folder, "run")
    hub.faults.clear()
    assert done.code == 4
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("Error: The Hub cannot be reached")
    assert "(8 attempts)" in done.err
    kept = list(finished_shards(folder / "run" / layout.CAPTIONS))
    assert 0 < len(kept) < 4
    times = [path.stat().st_mtime_ns for path in kept]
    assert read(client, folder, "run").code == 0
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert parquet_bytes(folder / "run") == parquet_bytes(folder / "clean")


def test_an_index_that_breaks_off_is_taken_up_again(stream: tuple[Hub, Client, Path]) -> None:
    hub, client, folder = stream
    fault = hub.faults.add("cut-after", path="forms/resolve/", times=CLIENTS_OWN, keep=0.5)
    prepared(client, folder, "index")
    hub.faults.clear()
    assert fault.hits == CLIENTS_OWN
    assert (folder / "index" / layout.SOURCE).read_bytes() == (folder / "clean" / layout.SOURCE).read_bytes()
