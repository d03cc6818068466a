"""Publishing survives what the Hub and the network do: faults, kills, rivals, many files, a run still at work."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_folder
from fakes import FakeCaptioner, FakeGenerator
from hub_client import Ended, Forks
from hub_server import Hub
from hub_store import Store

from builders.runs import layout
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.publishing.contents import contents
from hfsyn.runs.finish import finish
from hfsyn.runs.run import load_run

REPO = "alice/shapes"
SMALL = ("source.limit_per_class=2", "store.shard_rows=10", "generate.batch_size=4")
WHOLE = bool(os.environ.get("HFSYN_TEST_ALL"))
"""Every kind of fault at every request, and kills of processes that import everything first: minutes."""


def faked(folder: Path, name: str, *overrides: str) -> Path:
    """A finished run, made by fakes."""
    run = run_folder(folder, *SMALL, *overrides, name=name)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    return finish(run).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs of two caption shards each: two data shards, two with other contents, and one."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": faked(folder, "a"),
        "b": faked(folder, "b", "seed=1"),
        "short": faked(folder, "short", "source.limit_per_class=1"),
    }


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub") / "0") as found:
        yield found


@pytest.fixture(scope="module")
def forks(shared_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    found = Forks(shared_hub, tmp_path_factory.mktemp("client"))
    yield found
    found.close()


def emptied(hub: Hub) -> Hub:
    """The same Hub with nothing on it, in it, or against it."""
    root = hub.store.root
    hub.store = Store(root.with_name(str(int(root.name) + 1)))
    hub.faults.clear()
    hub.reset()
    return hub


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    return emptied(shared_hub)


def _is_of(path: str, config: str) -> bool:
    """Whether a path is of a configuration: in its folder, or for the default one at the root, the card left out."""
    if config != layout.DEFAULT_CONFIG:
        return path.startswith(f"{config}/")
    return path.partition("/")[0] in layout.KNOWN - {layout.CARD}


def parts(hub: Hub, revision: str, config: str = layout.DEFAULT_CONFIG) -> dict[str, bytes]:
    """Every file of a configuration at a revision."""
    return {path: data for path, data in hub.files("dataset", REPO, revision).items() if _is_of(path, config)}


def wanted(run: Path, config: str = layout.DEFAULT_CONFIG) -> dict[str, bytes]:
    """Every file that a run publishes, the card not counted."""
    files = contents(load_run(run), config).items()
    return {
        path: file.content if isinstance(file.content, bytes) else file.content.read_bytes() for path, file in files
    }


def publish(run: Path, version: str, *options: str) -> list[str]:
    return ["publish", str(run), REPO, "--version", version, "--quiet", *options]


# ------------------------------------------------------------------------------------------------------------- faults


def driven(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "drive_publish.py"), str(folder), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    "over",
    [pytest.param(False, id="first", marks=pytest.mark.slow), pytest.param(True, id="second", marks=pytest.mark.slow)],
)
def test_each_request_of_a_publish_may_fail_once(over: bool, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = [runs["short"], "--over", runs["a"]] if over else [runs["a"]]
    found = driven(tmp_path, *arguments, *(["--whole"] if WHOLE else []))
    print(found["seconds"], "s,", len(found["requests"]), "requests,", found["outcome"], "stopped by", found["stopped"])
    assert [case for case in found["cases"] if case["problems"]] == []
    tried = {case["position"] for case in found["cases"]}
    assert len(tried) > 15 if over else tried == set(range(len(found["requests"])))
    assert len({case["kind"] for case in found["cases"]}) == 8


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_what_does_not_pass_ends_a_publish_at_once_and_what_does_within_a_bound(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    found = driven(tmp_path, runs["a"], "--for-ever", *(["--whole"] if WHOLE else []))
    print(found["seconds"], "s,", found["outcome"], "longest wait", found["longest"], "s")
    assert [case for case in found["cases"] if case["problems"]] == []
    assert found["longest"] < 600


# -------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_and_send_nothing_twice(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    chance, slow = random.Random(20), 0.01
    hub.faults.add("delay", times=None, seconds=slow)
    assert forks.hfsyn(*publish(runs["a"], "1.0.0")).code == 0
    whole, requests = hub.files("dataset", REPO, "v1.0.0"), len(hub.log)
    size, reached, resent = hub.counters.lfs_bytes, [], []
    kills = 20 if WHOLE else 8  # those of scripts/sweep_kills.py are at every request
    for number in range(kills):
        emptied(hub).faults.add("delay", times=None, seconds=slow)
        # Moments are counted in requests, so that a busy machine has them too; the first falls among the imports.
        after, moment = chance.randrange(requests) if number else -1, chance.uniform(0, 2 * slow)
        victim = None
        if WHOLE or number < 1:
            victim = subprocess.Popen(
                [sys.executable, "-m", "hfsyn", *publish(runs["a"], "1.0.0")],
                env=forks.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        pid = victim.pid if victim else forks.start(*publish(runs["a"], "1.0.0"))
        deadline = time.monotonic() + 60
        while len(hub.log) <= after and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moment if number else 0.5)
        os.kill(pid, signal.SIGKILL)
        assert (victim.wait() if victim else forks.wait(pid).code) in (-signal.SIGKILL, 0)
        reached.append(len(hub.log))
        tagged = ("dataset", REPO) in hub.store.repos and "refs/tags/v1.0.0" in hub.refs("dataset", REPO)
        puts = [entry for entry in list(hub.log) if entry.method == "PUT"]
        flying = sum(int(entry.path.partition("size=")[2]) for entry in puts if not entry.status)
        done = forks.hfsyn(*publish(runs["a"], "1.0.0"))
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1].endswith(f"/datasets/{REPO}/tree/v1.0.0")
        assert hub.refs("dataset", REPO)["refs/tags/v1.0.0"] == hub.head("dataset", REPO)
        assert hub.files("dataset", REPO, "v1.0.0") == whole
        sent = sum(entry.received for entry in hub.log if entry.method == "PUT")
        assert size <= hub.counters.lfs_bytes <= sent <= size + flying
        assert not tagged or len(puts) == sum(1 for entry in hub.log if entry.method == "PUT")
        resent.append(sent - size)
    print(
        "killed after",
        sorted(reached),
        "of",
        requests,
        "requests; sent again",
        sum(resent),
        "of",
        kills * size,
        "bytes",
    )
    assert sum(1 for count in reached if count) >= kills // 2
    assert len(set(reached)) > kills // 3


# ------------------------------------------------------------------------------------------------------------- rivals


def together(hub: Hub, forks: Forks, *commands: list[str]) -> list[Ended]:
    """Run commands at once; each commit waits until all were computed on the same parent."""
    hub.faults.add("delay", method="POST", path="/commit/", times=len(commands), seconds=0.4)
    started = [forks.start(*command) for command in commands]
    return [forks.wait(pid) for pid in started]


def problems(forks: Forks, version: str, config: str = layout.DEFAULT_CONFIG) -> str:
    """What `verify` finds in a tag; empty where all is well."""
    done = forks.hfsyn("verify", f"{REPO}@v{version}", "--config-name", config, "--quiet")
    return "" if done.code == 0 else done.out + done.err


def conflicts(hub: Hub) -> int:
    return sum(1 for entry in hub.log if entry.status == 412)


def test_two_publishers_of_two_configurations_both_succeed(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    collided = 0
    for _ in range(2):
        emptied(hub)
        commands = [publish(runs[run], f"1.{minor}.0", "--config-name", run) for minor, run in enumerate("ab")]
        ended = together(hub, forks, *commands)
        assert [one.code for one in ended] == [0, 0], ended
        for tag, run in (("v1.0.0", "a"), ("v1.1.0", "b"), ("main", "a"), ("main", "b")):
            assert parts(hub, tag, run) == wanted(runs[run], run)
        assert (problems(forks, "1.0.0", "a"), problems(forks, "1.1.0", "b")) == ("", "")
        collided += conflicts(hub)
    assert collided


def test_two_publishers_of_two_versions_leave_one_run_in_each(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    collided = 0
    for _ in range(2):
        emptied(hub)
        ended = together(hub, forks, publish(runs["a"], "1.0.0"), publish(runs["short"], "1.1.0"))
        assert [one.code for one in ended] == [0, 0], ended
        assert parts(hub, "v1.0.0") == wanted(runs["a"])
        assert parts(hub, "v1.1.0") == wanted(runs["short"])
        assert (problems(forks, "1.0.0"), problems(forks, "1.1.0")) == ("", "")
        collided += conflicts(hub)
    assert collided


def test_of_two_publishers_of_one_version_one_is_refused(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    for _ in range(2):
        emptied(hub)
        ended = together(hub, forks, publish(runs["a"], "1.0.0"), publish(runs["short"], "1.0.0"))
        assert sorted(one.code for one in ended) == [0, 2], ended
        winner = runs["a"] if ended[0].code == 0 else runs["short"]
        refused = ended[1] if ended[0].code == 0 else ended[0]
        assert refused.err.count("\n") == 1
        assert "v1.0.0 of alice/shapes has since been taken" in refused.err or "has a version 1.0.0" in refused.err
        assert parts(hub, "v1.0.0") == wanted(winner)
        assert problems(forks, "1.0.0") == ""


def test_two_publishers_of_the_same_both_succeed(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    ended = together(hub, forks, publish(runs["a"], "1.0.0"), publish(runs["a"], "1.0.0"))
    assert [one.code for one in ended] == [0, 0], ended
    assert parts(hub, "v1.0.0") == wanted(runs["a"])
    assert hub.counters.lfs_bytes <= 2 * sum(len(data) for data in wanted(runs["a"]).values())


def in_small_commits(command: list[str], files: int = 5) -> str:
    """Code that runs a command with commits of a few files, so that it needs many of them, and waits for nothing."""
    return (
        "import builders.hub as access\n"
        "import hfsyn.hub.repo as hub, hfsyn.publishing.publication as publication\n"
        f"access.FIRST_PAUSE, hub.FILES_A_COMMIT, publication.FILES_A_COMMIT = 0.01, {files}, {files}\n"
        f"from hfsyn.cli import main\nmain({command!r})"
    )


def main_was_whole(hub: Hub, *runs: Path, config: str = layout.DEFAULT_CONFIG) -> bool:
    """Whether a configuration was, in every commit that main ever had, one of these runs whole or not there at all."""
    possible = [{path: sha256(data) for path, data in wanted(run, config).items()} for run in runs]
    for made in hub.history("dataset", REPO):
        found = {path: file.sha256 for path, file in made.files.items() if _is_of(path, config)}
        if found not in [*possible, {}]:
            return False
    return True


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pulls(hub: Hub) -> dict[str, str]:
    """The pull requests by number, and how each is."""
    return {number: pull.status for number, pull in hub.store.repos["dataset", REPO].requests.items()}


def test_in_no_version_is_half_of_a_run_of_any_configuration(hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    """Two configurations go from one version to the next at once, each by a pull request of many commits."""
    hub.faults.add("delay", times=None, seconds=0.01)
    one, other = ("--config-name", "one"), ("--config-name", "other")
    for first, second, files in [
        (publish(runs["a"], "1.0.0", *one), publish(runs["b"], "2.0.0", *other), 5),
        (publish(runs["short"], "1.1.0", *one), publish(runs["a"], "2.1.0", *other), 4),
    ]:
        pids = [forks.start_python(in_small_commits(command, files)) for command in (first, second)]
        ended = [forks.wait(pid) for pid in pids]
        assert [one.code for one in ended] == [0, 0], ended
    assert hub.counters.commits >= 12
    assert set(pulls(hub).values()) == {"merged", "closed"} or set(pulls(hub).values()) == {"merged"}
    whole = {config: [wanted(run, config) for run in runs.values()] for config in ("one", "other")}
    for tag in ("v1.0.0", "v2.0.0", "v1.1.0", "v2.1.0"):
        for config, possible in whole.items():
            assert parts(hub, tag, config) in [*possible, {}], (tag, config)
    assert all(main_was_whole(hub, *runs.values(), config=config) for config in ("one", "other"))
    assert parts(hub, "v1.1.0", "one") == wanted(runs["short"], "one")
    assert parts(hub, "v2.1.0", "other") == wanted(runs["a"], "other")


def test_what_a_stopped_publication_left_is_taken_up_or_closed_and_main_never_saw_it(
    hub: Hub, forks: Forks, runs: dict[str, Path]
) -> None:
    assert forks.wait(forks.start_python(in_small_commits(publish(runs["short"], "1.0.0")))).code == 0
    whole = hub.files("dataset", REPO)
    for number in (2, 3):
        hub.faults.add(403, method="POST", path="/commit/", after=1)
        stopped = forks.wait(forks.start_python(in_small_commits(publish(runs["a"], "1.1.0"))))
        assert (stopped.code, stopped.err.count("\n")) == (3, 1), stopped
        assert hub.files("dataset", REPO) == whole
        assert pulls(hub)[str(number)] == "draft"
        hub.faults.clear()
        if number == 2:  # main has changed since: what was begun onto the old one is not merged
            hub.add_commit("dataset", REPO, {"notes.txt": b"mine"})
            whole["notes.txt"] = b"mine"
    done = forks.wait(forks.start_python(in_small_commits(publish(runs["a"], "1.1.0"))))
    assert done.code == 0, done.err
    assert pulls(hub) == {"1": "merged", "2": "closed", "3": "merged"}
    assert parts(hub, "v1.1.0") == wanted(runs["a"])
    assert main_was_whole(hub, runs["short"], runs["a"])
    assert hub.files("dataset", REPO)["notes.txt"] == b"mine"


@pytest.mark.parametrize("path", ["/discussions$", "/status$", "/merge$"])
def test_an_answer_about_a_pull_request_that_is_lost_changes_nothing(
    path: str, hub: Hub, forks: Forks, runs: dict[str, Path]
) -> None:
    for kind in ("cut-after", 503):
        emptied(hub).faults.add(kind, method="POST", path=path)
        done = forks.wait(forks.start_python(in_small_commits(publish(runs["short"], "1.0.0"))))
        assert done.code == 0, done.err
        assert hub.refs("dataset", REPO)["refs/tags/v1.0.0"] == hub.head("dataset", REPO)
        assert set(pulls(hub).values()) - {"closed"} == {"merged"}
        assert parts(hub, "v1.0.0") == wanted(runs["short"])


def test_somebody_elses_pull_request_of_the_same_title_is_not_merged(
    hub: Hub, forks: Forks, runs: dict[str, Path]
) -> None:
    assert forks.hfsyn(*publish(runs["short"], "1.0.0")).code == 0
    repo = hub.store.repos["dataset", REPO]
    number = hub.store.open_pull(repo, f"hfsyn: default 1.1.0 onto {hub.head('dataset', REPO)[:12]}", "bob")
    assert forks.wait(forks.start_python(in_small_commits(publish(runs["a"], "1.1.0")))).code == 0
    assert pulls(hub)[number] == "draft"
    assert parts(hub, "v1.1.0") == wanted(runs["a"])


@pytest.mark.parametrize("files", [3, 7])
def test_commits_of_any_size_bring_the_same(files: int, hub: Hub, forks: Forks, runs: dict[str, Path]) -> None:
    for run, version in (("a", "1.0.0"), ("short", "1.1.0")):
        done = forks.wait(forks.start_python(in_small_commits(publish(runs[run], version), files)))
        assert done.code == 0, done.err
        assert parts(hub, f"v{version}") == wanted(runs[run])
    assert hub.counters.largest_commit <= files
    assert main_was_whole(hub, runs["a"], runs["short"])


# --------------------------------------------------------------------------------------------------------- many files


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of one row a shard, by the number of their shards, which are captions by one half."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # these runs need not outlive the machine
        found = {}
        for count in (60, 600):
            limit = f"source.limit_per_class={count // 20}"
            found[count] = faked(folder, str(count), limit, "store.shard_rows=1", "generate.batch_size=64")
        return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_six_hundred_shards_publish_within_the_limits_and_in_constant_memory(
    hub: Hub, forks: Forks, many: dict[int, Path]
) -> None:
    peaks = {}
    for count, run in many.items():
        emptied(hub)
        done = forks.hfsyn(*publish(run, "1.0.0"))
        assert done.code == 0, done.err
        peaks[count] = done.kilobytes
        assert parts(hub, "v1.0.0") == wanted(run)
    print("peak memory by shards, kB:", peaks, "ratio", round(peaks[600] / peaks[60], 3), hub.counters)
    assert peaks[600] / peaks[60] <= 1.15
    assert 100 < hub.counters.largest_commit <= 1000
    files = hub.files("dataset", REPO, "v1.0.0")
    folders = [path.rpartition("/")[0] for path in files]
    assert max(map(folders.count, folders)) < 10_000
    assert [len(made.files) for made in hub.history("dataset", REPO)] == [len(files), 1]
    requests = [f"{entry.method} {entry.path}" for entry in hub.log]
    after_tag = requests[next(number for number, request in enumerate(requests) if "/tag/" in request) + 1 :]
    assert all(request.startswith("GET") for request in after_tag)

    hub.reset()
    again = forks.hfsyn(*publish(many[600], "1.0.0"))
    assert again.code == 0, again.err
    assert (hub.counters.commits, hub.counters.lfs_bytes) == (0, 0)


# --------------------------------------------------------------------------------------------------------- still made


def test_a_watched_run_goes_up_in_batches_and_nothing_twice(hub: Hub, forks: Forks, tmp_path: Path) -> None:
    run = run_folder(tmp_path, *SMALL, "store.shard_rows=4")
    caption(run, captioner=FakeCaptioner(), quiet=True)
    pid = forks.start_python(
        f"from hfsyn.publishing.watching import watch\nwatch({str(run)!r}, {REPO!r}, '1.0.0', quiet=True, interval=0.1)"
    )
    cards = []
    for number in range(5):
        generate(run, generator=FakeGenerator(), shards=f"{number}:{number + 1}", quiet=True)
        deadline = time.monotonic() + 60
        while not any(f"{number:05}-of-00005.parquet" in path for path in there(hub) if path.startswith("data/")):
            assert time.monotonic() < deadline, "this shard was never sent"
            time.sleep(0.01)
        cards.append(there(hub)[layout.CARD].decode())
        assert hub.files("dataset", REPO).keys() == {".gitattributes"}
        assert set(hub.refs("dataset", REPO)) == {"refs/heads/main", f"refs/heads/{WORK}"}
    assert all("not complete yet" in card and f'revision="{WORK}"' in card for card in cards)
    assert len(set(cards)) == 5
    finish(run)
    done = forks.wait(pid)
    assert done.code == 0, done.err
    assert set(hub.refs("dataset", REPO)) == {"refs/heads/main", "refs/tags/v1.0.0"}
    published = hub.files("dataset", REPO)
    assert "not complete yet" not in published[layout.CARD].decode()
    assert parts(hub, "v1.0.0") == wanted(run)
    assert main_was_whole(hub, run)
    assert problems(forks, "1.0.0") == ""
    large = [path for path, file in hub.history("dataset", REPO)[0].files.items() if file.large]
    assert hub.counters.lfs_bytes == sum(len(published[path]) for path in large)


WORK = "hfsyn-work/default"


def there(hub: Hub) -> dict[str, bytes]:
    """Every file of the branch of unfinished work; nothing as long as there is none."""
    repo = hub.store.repos.get(("dataset", REPO))
    return hub.files("dataset", REPO, WORK) if repo is not None and WORK in repo.branches else {}
