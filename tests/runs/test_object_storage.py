"""A run in an object store: no locks, no renames, late listings, requests that fail; the same bytes as on a disk."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import object_store
import pytest
from conftest import ROOT, TEST_FOLDERS, finished_run
from drive_fakes import SlowCaptioner, SlowGenerator
from drive_store import as_published, hasten, made_again, on_disk
from fakes import FakeCaptioner, FakeGenerator
from object_store import Exact, Plain, Settings

from builders.errors import DataError
from builders.runs import layout
from builders.stores import copies, store
from builders.stores.copies import is_away, local, present, readable
from hfsyn.captions.caption_stage import caption
from hfsyn.cli import main
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs import leases
from hfsyn.runs.finish import finish
from hfsyn.runs.leases import Leases
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run
from hfsyn.runs.status import status

SMALL = ("source.limit_per_class=2", "store.shard_rows=4", "generate.batch_size=4")
KINDS = ("exact", "plain")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name in HASTENED]
    hasten()
    monkeypatch.setenv(copies.SCRATCH, str(tmp_path / "scratch"))
    monkeypatch.setattr(store, "ATTEMPTS", 6)
    monkeypatch.setattr(copies, "_stores", {})
    yield
    for module, name, value in before:
        setattr(module, name, value)


HASTENED = [(leases, name) for name in ("LEASE", "RENEW", "PAUSE")] + [(store, n) for n in ("FIRST_PAUSE", "SETTLE")]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(str(tmp_path / "store")).bucket().use()


def prepared(address: str, *overrides: str) -> Run:
    return prepare(load_recipe("shapes-cip", [*SMALL, *overrides]), address)


def made(address: str) -> Run:
    run = prepared(address)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    return finish(run)


def on_another_machine(address: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(copies.SCRATCH, str(scratch))
    return prepared(address)


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and message of a command, which is one line."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("Error: ")] == said[-1:], said
    return int(ended.value.code or 0), said[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_a_store_has_the_bytes_of_one_on_the_disk(kind: str, settings: Settings, tmp_path: Path) -> None:
    replace(settings, fails=0.02, late=0.3).use()
    run = made(f"{kind}://bucket/run")
    assert as_published(settings.files()) == on_disk(finished_run(tmp_path, *SMALL))
    assert f"{run.folder / layout.DATA}" == f"{kind}://bucket/run/data"
    # Of the images nothing is left here, and all else is.
    shards = sorted((run.folder / layout.DATA).iterdir())
    assert len(shards) == 5
    assert all(is_away(shard) and shard.stat().st_blocks == 0 for shard in shards)
    found = status(f"{kind}://bucket/run")
    assert (found.finished, found.made_again, found.folder) == (True, 0, f"{kind}://bucket/run")


@pytest.mark.parametrize("kind", KINDS)
def test_two_jobs_on_two_machines_share_the_work(
    kind: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file whose answer got lost is sent again: only without such answers can the markers be counted.
    replace(settings, fails=0.02 if kind == "plain" else 0.0, late=0.3).use()
    runs = [on_another_machine(f"{kind}://bucket/run", tmp_path / name, monkeypatch) for name in ("a", "b")]
    errors: list[Exception] = []

    def job(run: Run) -> None:
        try:
            caption(run, captioner=SlowCaptioner(), quiet=True)
            generate(run, generator=SlowGenerator(), quiet=True)
            finish(run)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=job, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert as_published(settings.files()) == on_disk(finished_run(tmp_path, *SMALL))
    marks = [name for name, _ in settings.made() if "/sidecars/" in name]
    if kind == "exact":  # nobody was killed and no answer got lost: no shard was made twice
        assert len(marks) == len(set(marks)) == 10
    for run in runs:
        assert status(run).finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_jobs_that_are_killed_twenty_times_leave_the_bytes_of_a_run_on_the_disk(kind: str) -> None:
    words = [sys.executable, str(ROOT / "tests" / "drive_store.py"), "--rounds", "1", "--kills", "20", "--kind", kind]
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *TEST_FOLDERS))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=around, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the same bytes" in done.stdout
    assert int(done.stdout.partition(" processes, ")[2].split()[0]) >= 20


def test_only_a_store_that_refuses_to_overwrite_has_exact_claims(settings: Settings) -> None:
    class Deaf(Exact):
        """As servers that do not know the condition: they ignore it."""

        protocol = "deaf"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
            self.store(path, bytes(value))

    found = [store.Store("x://bucket", kind(), "bucket", Path("copy")).exact for kind in (Exact, Plain, Deaf)]
    assert found == [True, False, False]
    assert settings.files("bucket/") == {}


def test_what_was_created_is_ours_although_the_answer_got_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = Exact.pipe_file

    def cut_off(self: Exact, *asked: Any, **how: Any) -> None:
        monkeypatch.setattr(Exact, "pipe_file", created)
        created(self, *asked, **how)
        raise ConnectionResetError("the answer got lost")

    found = store.Store("exact://bucket", Exact(), "bucket", Path("copy"))
    assert found.exact
    monkeypatch.setattr(Exact, "pipe_file", cut_off)
    assert found.create("claim", b"mine")
    assert not found.create("claim", b"another's")


def other_machine(kind: str, folder: Path) -> Leases:
    return Leases(store.Store(f"{kind}://bucket/run", {"exact": Exact, "plain": Plain}[kind](), "bucket/run", folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_is_left_to_its_holder_until_that_is_silent_or_lets_go(
    kind: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW", 1000)
    monkeypatch.setattr(leases, "LEASE", 1000.0)
    one, two, three = (other_machine(kind, tmp_path / name) for name in "abc")
    first = one.take("shard", alone=True)
    assert first is not None
    assert two.take("shard", alone=True) is None
    assert two.holder("shard") == f"process {os.getpid()} on {os.uname().nodename}"
    first.release()
    second = two.take("shard", alone=True)
    assert second is not None
    assert one.take("shard", alone=True) is None
    # It dies: nothing is renewed, and after the lease one of the others has it, and only one.
    assert (one.take("shard", alone=True), three.take("shard", alone=True)) == (None, None)
    monkeypatch.setattr(leases, "LEASE", 0.0)
    takes = [one.take("shard", alone=True), three.take("shard", alone=True)]
    assert [taken is None for taken in takes] == [False, True]


def test_a_claim_of_a_process_that_was_killed_on_this_machine_is_free_at_once(
    settings: Settings, tmp_path: Path
) -> None:
    dead, alive = (other_machine("exact", tmp_path / "copy") for _ in range(2))
    held = dead.take("shard", alone=True)
    assert held is not None
    assert alive.take("shard", alone=False) is None  # where there are no file locks, it may be alive
    assert alive.take("shard", alone=True) is not None
    held.release()


def test_a_claim_whose_holder_is_at_work_is_renewed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW", 0.05)
    monkeypatch.setattr(leases, "LEASE", 0.4)
    busy, other = (other_machine("exact", tmp_path / name) for name in "ab")
    held = busy.take("shard", alone=True)
    assert held is not None
    for _ in range(8):
        assert other.take("shard", alone=True) is None
        threading.Event().wait(0.1)
    # What nobody holds any more, as after an error, is not renewed.
    del held
    gc.collect()
    threading.Event().wait(0.6)
    assert (other.take("shard", alone=True), threading.Event().wait(0.6)) == (None, False)
    assert other.take("shard", alone=True) is not None


def test_a_shard_that_another_job_finished_meanwhile_is_not_sent_and_is_counted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where claims are advisory: both believe that they have it."""
    late = on_another_machine("exact://bucket/run", tmp_path / "late", monkeypatch)
    fast = on_another_machine("exact://bucket/run", tmp_path / "fast", monkeypatch)
    shard = fast.caption_shards()[2]

    class Overtaken(FakeCaptioner):
        def caption(self, images: object) -> list[str]:
            monkeypatch.setattr(leases, "LEASE", -1.0)  # what the others hold counts as abandoned
            caption(fast, captioner=FakeCaptioner(), quiet=True, shards="2:3")
            return super().caption(images)  # type: ignore[arg-type]

    caption(late, captioner=Overtaken(), quiet=True, shards="2:3")
    name = shard.relative_to(fast.folder).as_posix()
    assert [written for written, _ in settings.made()].count(f"run/{name}") == 1
    assert made_again(settings) == (0, 0)
    assert status("exact://bucket/run").made_again == 1
    mine = late.folder / name
    assert layout.sidecar_of(mine).read_bytes() == layout.sidecar_of(shard).read_bytes()


def test_status_reads_small_files_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made("plain://bucket/run")
    monkeypatch.setenv(copies.SCRATCH, str(tmp_path / "new"))
    object_store.READ.clear()
    assert status("plain://bucket/run").finished
    assert object_store.READ
    assert [name for name, _ in object_store.READ if name.endswith(".parquet")] == []
    # What has not changed is not read again.
    object_store.READ.clear()
    assert status("plain://bucket/run").finished
    assert object_store.READ == []


def test_the_copy_follows_what_is_deleted_and_made_again_in_the_store(settings: Settings) -> None:
    run = made("exact://bucket/run")
    whole = settings.files()
    mark, other = layout.sidecar_of(run.data_shards()[1]), run.data_shards()[3]
    for path in (mark, other, run.folder / layout.MANIFEST):
        (Path(settings.root) / "bucket" / f"run/{path.relative_to(run.folder)}".replace("/", "|")).unlink()
    assert status("exact://bucket/run").stages[1].shards_done == 3
    assert not mark.exists()
    made("exact://bucket/run")
    assert status("exact://bucket/run").finished
    assert as_published(settings.files()) == as_published(whole)


def test_a_few_rows_of_a_shard_are_read_without_fetching_it(settings: Settings, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    replace(settings, fails=0.1).use()
    run = made("exact://bucket/run")
    shard = run.data_shards()[0]
    alone = finished_run(tmp_path, *SMALL) / layout.DATA / shard.name
    assert pq.read_table(readable(shard)).equals(pq.read_table(alone))
    assert is_away(shard)
    assert present(shard).read_bytes() == alone.read_bytes()
    assert [row["seed"] for row in run.samples(3)] == pq.read_table(alone)["seed"].to_pylist()[:3]


def test_damage_in_the_store_is_found_by_finish(settings: Settings) -> None:
    run = prepared("exact://bucket/run")
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    place = Path(settings.root) / "bucket" / "run|data|train-00001-of-00005.parquet"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    with pytest.raises(HfsynError, match=r"train-00001-of-00005.parquet has other bytes") as raised:
        finish(run)
    assert "exact://bucket/run/sidecars" in str(raised.value)


def test_the_line_that_loads_a_run_from_a_store_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    address = f"file://{tmp_path}/bucket/run"
    made(address)
    with pytest.raises(SystemExit):
        main(["finish", address])
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("in Python: ")]
    rows = eval(line.removeprefix("in Python: "), {"datasets": datasets})
    assert (said.out, rows.num_rows) == (f"{address}\n", 20)


BAD = [
    ("gss://bucket/run", "gss://bucket/run is not an address: Protocol not known: gss. Did you mean 'gs'?"),
    ("sftp://me:hush@host/run", "The address sftp://*** holds a password, which would end up in logs."),
    ("s3://KEY:hush@bucket/run", "The address s3://*** holds a password, which would end up in logs."),
    ("plain://bucket/run?token=hush", "plain://bucket/run is not the address of a folder."),
    ("simplecache::s3://bucket/run", "simplecache::s3://bucket/run is not the address of a folder."),
    ("exact://", "exact:// is not the address of a folder."),
    ("hf://datasets/alice/shapes", "hf://datasets/alice/shapes is not in a bucket of the Hub, and in a repository"),
    ("hf://buckets/alice", "hf://buckets/alice is not in a bucket of the Hub, and in a repository"),
]


@pytest.mark.parametrize(("address", "said"), BAD, ids=[address for address, _ in BAD])
def test_a_bad_address_is_refused_in_one_line_without_its_secret(
    address: str, said: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = failed(capsys, "build", "shapes-cip", "--out", address)
    assert code == 2
    assert line.startswith(f"Error: {said}")
    assert "hush" not in line
    assert failed(capsys, "status", address)[0] == 2


def test_what_needs_a_disk_refuses_an_address(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    address = "exact://bucket/run"
    for words in (
        ("build", "shapes-cip", "--out", address, "--overwrite"),
        ("build", "shapes-cip", "--out", address, "--push-to-hub", "alice/x", "--version", "1.0.0"),
        ("look", address),
        ("verify", address),
    ):
        code, line = failed(capsys, *words)
        assert (code, "is in object storage" in line) == (2, True), line
    assert settings.files() == {}


def test_what_is_written_on_a_disk_refuses_an_address_before_it_starts(
    settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, address = str(made(tmp_path / "run").folder), "exact://bucket/x"
    for words in (
        ("select", run, "--per-class", "1", "--out", address),
        ("tune", "shapes-cip", "--out", address),
        ("train", "--train-dataset", run, "--out", address),
        ("bench", "matrix.yaml", "--out", address),
        ("demo", "--out", address),
        ("export-real", run, "--out", address),
        ("reproduce", run, "--sample-id", "any", "--out", address),
        ("variants", "peek", "shapes", "--out", f"{address}.png"),
        ("fidelity", run, "shapes", "--sheet", f"{address}.png"),
        ("score", "alice/x", "--judge", "builtin", "--out", address),
        ("audit", run, "--factors", "shapes", "--out", address),
        ("loop", "loop.yaml", "--out", address),
    ):
        code, line = failed(capsys, *words)
        assert (code, "is in object storage" in line) == (2, True), (words, line)
    assert settings.files() == {}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("exact")] == []


def test_a_folder_on_the_disk_may_be_named_like_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.chdir(tmp_path)
    run = made("./exact://bucket")
    assert (tmp_path / "exact:" / "bucket" / layout.MANIFEST).is_file()
    assert status("./exact://bucket").finished
    assert (run.folder, settings.files("bucket/")) == (tmp_path / "exact:" / "bucket", {})


def test_two_recipes_cannot_share_an_address(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared("plain://bucket/run")
    monkeypatch.setenv(copies.SCRATCH, str(tmp_path / "other"))
    with pytest.raises(HfsynError, match=r"plain://bucket/run holds another recipe's run: seed is 0 there, 1 here"):
        prepared("plain://bucket/run", "seed=1")
    (Path(settings.root) / "bucket" / "photos|cat.txt").write_bytes(b"mine")
    with pytest.raises(HfsynError, match=r"plain://bucket/photos holds files that are not of a run of hfsyn: cat.txt"):
        prepared("plain://bucket/photos")


FAULTS = {
    "no such bucket": ({}, "is not there, or no longer (", 3),
    "may not write": ({"forbids": "data/"}, "does not let you in (write data/train-", 3),
    "full": ({"most": 60_000}, "is full (", 3),
    "does not answer": ({"fails": 1.0}, "does not answer (", 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_is_said_in_one_line_and_the_same_command_continues(
    fault: str, kind: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    how, said, code = FAULTS[fault]
    address = f"{kind}://bucket/run"
    run = prepared(address)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    begun = settings.files()
    bucket = Path(settings.root) / "bucket"
    if fault == "no such bucket":
        bucket.rename(bucket.with_name("gone"))
    replace(settings, **how).use()  # type: ignore[arg-type]
    with pytest.raises(DataError) as raised:
        generate(run, generator=FakeGenerator(), quiet=True)
    assert str(raised.value).startswith(f"{address} {said}")
    assert (raised.value.code, "\n" in str(raised.value)) == (code, False)
    del raised  # and with it the frames that hold claims, as a process that ends does
    gc.collect()
    settings.use()
    if fault == "no such bucket":
        bucket.with_name("gone").rename(bucket)
    assert begun.items() <= settings.files().items() or fault == "does not answer"
    made(address)
    assert status(address).finished


def test_a_full_disk_of_the_copy_is_said_as_such(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    run = made("exact://bucket/run")
    shard = run.data_shards()[0]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Exact, "get_file", full)
    with pytest.raises(OSError, match="No space left") as raised:
        present(shard)
    assert raised.value.filename == str(run.folder)
    assert is_away(shard)


def test_a_copy_that_was_deleted_is_brought_again(settings: Settings) -> None:
    import shutil

    run = made("exact://bucket/run")
    shutil.rmtree(run.folder)
    assert status("exact://bucket/run").finished
    assert local("exact://bucket/run") == run.folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_keeps_no_claims_in_the_store(kind: str, settings: Settings) -> None:
    run = prepared(f"{kind}://bucket/run")
    caption(run, captioner=FakeCaptioner(), quiet=True)
    assert any(name.startswith(".locks/") for name in settings.files())
    made(f"{kind}://bucket/run")
    assert [name for name in settings.files() if name.startswith(".locks/")] == []


LEFT = """
from builders.stores.copies import local
from hfsyn.runs.leases import leases_of

held = leases_of(local("file://BUCKET/run")).take("shard", alone=True)
del held
raise SystemExit(3)
"""


def test_what_an_error_leaves_claimed_is_free_when_the_process_ends(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    env = os.environ | {copies.SCRATCH: str(tmp_path / "theirs"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", LEFT.replace("BUCKET", str(bucket))], env=env, check=False)
    assert ended.returncode == 3
    monkeypatch.setattr(leases, "LEASE", 1000.0)
    here = leases.leases_of(local(f"file://{bucket}/run"))
    assert here is not None
    assert here.take("shard", alone=False) is not None


def test_the_files_that_a_run_begins_with_are_asked_for_by_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared("exact://bucket/run")
    caption(run, captioner=FakeCaptioner(), quiet=True)
    monkeypatch.setattr(Exact, "find", without(Exact.find, *store.BEGUN))
    assert on_another_machine("exact://bucket/run", tmp_path / "other", monkeypatch).fingerprint == run.fingerprint
    assert len([name for name, _ in settings.made() if name.endswith(store.BEGUN)]) == 3


def without(find: Callable[..., dict[str, Any]], *new: str) -> Callable[..., dict[str, Any]]:
    """A listing that does not have them yet."""
    return lambda *words, **more: {name: info for name, info in find(*words, **more).items() if not name.endswith(new)}
