"""A version is what was verified, and what people put into the repository stays in reach, while others write too."""

from __future__ import annotations

import io
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import finished_run
from hub_client import Client
from hub_server import Entry, Hub

from builders.runs import layout

LARGE, SMALL, OTHER = "30 rows in 4 shards", "10 rows in 2 shards", "30 other rows in 4 shards"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        LARGE: finished_run(folder, name="large"),
        SMALL: finished_run(folder, "source.limit_per_class=1", name="small"),
        OTHER: finished_run(folder, "seed=1", name="other"),
        "basic": finished_run(folder, "source.limit_per_class=1", recipe="shapes-basic", name="basic"),
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as found:
        yield found


@pytest.fixture(scope="module")
def other(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Another publisher of the same account."""
    with Client(hub, tmp_path_factory.mktemp("other")) as found:
        yield found


class Set:
    """One dataset on the Hub, as publishers and people use it."""

    def __init__(self, hub: Hub, client: Client, name: str) -> None:
        self.hub, self.client, self.name = hub, client, f"alice/{name}"

    def publish(self, run: Path, version: str, *options: str) -> Any:
        self.hub.reset()
        return self.client.hfsyn("publish", run, self.name, "--version", version, "--quiet", *options)

    def published(self, run: Path, version: str, *options: str) -> None:
        done = self.publish(run, version, *options)
        assert done.code == 0, done.err

    def refused(self, run: Path, version: str, *options: str) -> str:
        """The one line of a publication that is refused before anything is sent."""
        head = self.head
        done = self.publish(run, version, *options)
        assert done.code == 3, (done.out, done.err)
        assert done.err.count("\n") == 1
        assert not [entry for entry in self.hub.log if entry.method not in ("GET", "HEAD")]
        assert (self.head, f"refs/tags/v{version}" in self.hub.refs("dataset", self.name)) == (head, False)
        assert "FAILED" in self.publish(run, version, *options, "--dry-run").err
        return done.err

    @property
    def head(self) -> str:
        return self.hub.head("dataset", self.name)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.hub.files("dataset", self.name, revision)

    def put(self, **files: bytes | None) -> None:
        """A person's commit."""
        self.hub.add_commit("dataset", self.name, files)

    def edit(self, change: Any) -> None:
        """A person's change of the card's front matter."""
        _, front, body = self.files()["README.md"].decode().split("---\n", 2)
        card = yaml.safe_load(front)
        change(card)
        self.put(**{"README.md": f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n{body}".encode()})

    def loaded(self, revision: str, *config: str, split: str = "train") -> list[str]:
        """The sample ids that `load_dataset` gives, streamed and whole alike."""
        return self.client.python(
            f"""
import shutil, tempfile
from datasets import load_dataset
streamed, whole = (
    load_dataset({self.name!r}, *{config!r}, split={split!r}, revision={revision!r}, streaming=True),
    load_dataset({self.name!r}, *{config!r}, revision={revision!r}, cache_dir=(cache := tempfile.mkdtemp()))[{split!r}],
)
result = [row for row in streamed.select_columns("sample_id")["sample_id"]]
assert result == list(whole["sample_id"])
shutil.rmtree(cache)
"""
        )


@pytest.fixture
def dataset(hub: Hub, client: Client, request: pytest.FixtureRequest) -> Set:
    return Set(hub, client, f"set-{zlib.crc32(request.node.name.encode())}")


def ids(run: Path) -> list[str]:
    return [
        value
        for shard in layout.finished_shards(run / layout.DATA)
        for value in pq.read_table(shard, columns=["sample_id"]).column(0).to_pylist()
    ]


def shard(run: Path, number: int = 0) -> bytes:
    return list(layout.finished_shards(run / layout.DATA))[number].read_bytes()


def table(*sample_ids: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"sample_id": list(sample_ids)}), sink)
    return sink.getvalue()


# -------------------------------------------------------------------------------------------------- what the card gives


def test_a_file_that_a_person_puts_beside_the_shards_is_in_no_version(dataset: Set, runs: dict[str, Path]) -> None:
    dataset.published(runs[LARGE], "1.0.0")
    mine = shard(runs[SMALL])
    dataset.put(**{"data/train-mine.parquet": mine, "data/train-00000-of-00009.parquet": mine})
    dataset.published(runs[OTHER], "1.1.0")
    assert dataset.loaded("v1.1.0") == ids(runs[OTHER])
    assert dataset.files("v1.1.0")["data/train-mine.parquet"] == mine


def test_a_file_that_the_card_would_give_to_the_set_is_named_before_anything_is_sent(
    dataset: Set, runs: dict[str, Path]
) -> None:
    dataset.published(runs[SMALL], "1.0.0")
    dataset.put(**{"data/train-mine-of-00004.parquet": shard(runs[SMALL])})
    line = dataset.refused(runs[LARGE], "1.1.0")
    assert "data/train-mine-of-00004.parquet" in line
    assert "delete-files" in line
    dataset.put(**{"data/train-mine-of-00004.parquet": None})
    dataset.published(runs[LARGE], "1.1.0")
    assert dataset.loaded("v1.1.0") == ids(runs[LARGE])


def test_a_file_that_comes_between_the_look_and_the_commit_stops_the_version(
    dataset: Set, hub: Hub, runs: dict[str, Path]
) -> None:
    dataset.published(runs[SMALL], "1.0.0")
    before = dataset.files()

    def person(entry: Entry) -> None:
        if "/commit/" in entry.path:
            hub.before = None
            dataset.put(**{"data/train-mine-of-00004.parquet": shard(runs[SMALL])})

    hub.before = person
    done = dataset.publish(runs[LARGE], "1.1.0")
    assert done.code == 3, done.err
    assert "data/train-mine-of-00004.parquet" in done.err
    after = dataset.files()
    assert {path: after[path] for path in before} == before
    assert "refs/tags/v1.1.0" not in hub.refs("dataset", dataset.name)


@pytest.mark.parametrize("damage", ["removed", "replaced", "doubled"])
def test_no_version_is_made_beside_another_configuration_that_is_not_its_manifest(
    damage: str, dataset: Set, runs: dict[str, Path]
) -> None:
    dataset.published(runs["basic"], "1.0.0", "--config-name", "basic")
    path = next(path for path in dataset.files() if path.startswith("basic/data/") and path.endswith(".parquet"))
    if damage == "doubled":
        dataset.edit(lambda card: card["configs"][0]["data_files"][0].update(path=["basic/data/*.parquet", path]))
    else:
        dataset.put(**{path: None if damage == "removed" else shard(runs[SMALL])})
    line = dataset.refused(runs[LARGE], "1.1.0", "--config-name", "cip")
    assert path in line
    dataset.published(runs["basic"], "1.1.0", "--config-name", "basic")  # which fixes it
    dataset.published(runs[LARGE], "1.2.0", "--config-name", "cip")
    assert dataset.loaded("v1.2.0", "cip") == ids(runs[LARGE])


def test_a_first_configuration_of_another_format_is_refused_since_load_dataset_would_read_all_like_it(
    dataset: Set, hub: Hub, runs: dict[str, Path]
) -> None:
    card = b"---\nconfigs:\n- config_name: notes\n  data_files: notes.csv\n---\n"
    hub.add_repo("dataset", dataset.name, {"notes.csv": b"a\n1\n", "README.md": card})
    line = dataset.refused(runs[SMALL], "1.0.0", "--into", "--config-name", "cip")
    assert "notes.csv" in line
    assert ".csv" in line


# ------------------------------------------------------------------------------------------------ what people put there


@pytest.mark.parametrize("stated", [True, False])
def test_a_split_that_a_person_added_is_there_after_the_next_version(
    stated: bool, dataset: Set, runs: dict[str, Path]
) -> None:
    dataset.published(runs[LARGE], "1.0.0")
    # Of the same columns, as `load_dataset` wants the splits of one configuration.
    dataset.put(**{"data/test-00000-of-00001.parquet": shard(runs[SMALL])})
    rows = ids(runs[SMALL])[: pq.read_metadata(io.BytesIO(shard(runs[SMALL]))).num_rows]

    def change(card: dict[str, Any]) -> None:
        card["configs"][0]["data_files"].append({"split": "test", "path": "data/test-*.parquet"})
        if stated:
            card["dataset_info"]["splits"].append({"name": "test", "num_bytes": 9, "num_examples": len(rows)})

    dataset.edit(change)
    dataset.published(runs[SMALL], "1.1.0")
    assert dataset.loaded("v1.1.0", split="test") == rows
    assert dataset.loaded("v1.1.0") == ids(runs[SMALL])


def test_a_path_that_a_person_added_to_our_split_is_refused_and_not_dropped(
    dataset: Set, runs: dict[str, Path]
) -> None:
    dataset.published(runs[LARGE], "1.0.0")
    dataset.put(**{"more/extra.parquet": shard(runs[SMALL])})
    dataset.edit(
        lambda card: card["configs"][0]["data_files"][0].update(path=["data/train-*.parquet", "more/*.parquet"])
    )
    assert "more/extra.parquet" in dataset.refused(runs[OTHER], "1.1.0")


def test_a_configuration_of_a_persons_stays_or_the_version_is_refused(dataset: Set, runs: dict[str, Path]) -> None:
    dataset.published(runs[LARGE], "1.0.0", "--config-name", "cip")
    dataset.put(**{"mine/rows.parquet": table("mine-0")})
    dataset.edit(lambda card: card["configs"].append({"config_name": "mine", "data_files": "mine/*.parquet"}))
    dataset.published(runs[SMALL], "1.1.0", "--config-name", "cip")
    assert dataset.loaded("v1.1.0", "mine") == ["mine-0"]
    last = "cip/data/train-00001-of-00002.parquet"
    dataset.edit(lambda card: card["configs"].append({"config_name": "last", "data_files": last}))
    assert last in dataset.refused(runs[LARGE], "1.2.0", "--config-name", "cip")


def test_what_load_dataset_found_without_configurations_gets_one_of_its_own(
    dataset: Set, hub: Hub, runs: dict[str, Path]
) -> None:
    theirs = {"data/train-00000-of-00001.parquet": table("a"), "data/test-00000-of-00001.parquet": table("b")}
    hub.add_repo("dataset", dataset.name, theirs)
    dataset.published(runs[SMALL], "1.0.0", "--into")
    assert dataset.loaded("v1.0.0") == ids(runs[SMALL])
    assert dataset.loaded("v1.0.0", "others") == ["a"]
    assert dataset.loaded("v1.0.0", "others", split="test") == ["b"]


# -------------------------------------------------------------------------------------------- the default configuration


def test_a_named_configuration_first_and_the_default_then_asks_for_the_flag(
    dataset: Set, runs: dict[str, Path]
) -> None:
    dataset.published(runs["basic"], "1.0.0", "--config-name", "basic")
    line = dataset.refused(runs[LARGE], "1.1.0")
    assert "--set-default" in line
    assert "--config-name" in line
    dataset.published(runs[LARGE], "1.1.0", "--set-default")
    assert dataset.loaded("v1.1.0") == ids(runs[LARGE])
    assert dataset.loaded("v1.1.0", "basic") == ids(runs["basic"])
    # From then on it is the default, and no flag is asked for.
    dataset.published(runs[SMALL], "1.2.0")
    dataset.published(runs["basic"], "1.3.0", "--config-name", "basic")


@pytest.mark.parametrize(("first", "then"), [("default", "basic"), ("basic", "default")])
def test_a_configuration_that_comes_while_another_is_published_takes_no_dead_end(
    first: str, then: str, dataset: Set, hub: Hub, other: Client, runs: dict[str, Path]
) -> None:
    """The later publisher finds out after it has sent: it goes on, and ends right."""

    def rival(entry: Entry) -> None:
        if "/commit/" in entry.path:
            hub.before = None
            name = ["--config-name", first]
            done = other.hfsyn("publish", runs["basic"], dataset.name, "--version", "1.0.0", *name, "--quiet")
            assert done.code == 0, done.err

    hub.before = rival
    dataset.published(runs[LARGE], "1.1.0", "--config-name", then, *(["--set-default"] if then == "basic" else []))
    assert dataset.loaded("v1.1.0", then) == ids(runs[LARGE])
    assert dataset.loaded("v1.1.0", first) == ids(runs["basic"])
    assert dataset.loaded("v1.1.0") == ids(runs[LARGE if then == "default" else "basic"])


# ------------------------------------------------------------------------------------------------------ unfinished work


def test_unfinished_work_of_another_recipe_is_not_mixed_with_and_not_removed(
    dataset: Set, hub: Hub, client: Client, runs: dict[str, Path], tmp_path: Path
) -> None:
    for name, run in (("first", LARGE), ("second", OTHER)):
        shutil.copytree(runs[run], tmp_path / name)
        (tmp_path / name / layout.MANIFEST).unlink()
    code = """
from hfsyn.publishing.watching import watch
class Enough(Exception): pass
def sleep(seconds): raise Enough
try:
    watch({run!r}, {name!r}, "1.0.0", quiet=True, sleep=sleep)
except Enough:
    result = "sent"
except Exception as error:
    result = [error.code, str(error)]
"""
    assert client.python(code.format(run=str(tmp_path / "first"), name=dataset.name)) == "sent"
    branch = "hfsyn-work/default"
    assert set(hub.refs("dataset", dataset.name)) == {"refs/heads/main", f"refs/heads/{branch}"}
    there = hub.files("dataset", dataset.name, branch)
    assert "data/train-00000-of-00004.parquet" in there
    assert set(dataset.files()) == {".gitattributes"}
    code, line = client.python(code.format(run=str(tmp_path / "second"), name=dataset.name))
    assert code == 3
    assert f"hf repos branch delete {dataset.name} {branch} --repo-type dataset" in line
    dataset.published(runs[OTHER], "1.0.0")
    assert hub.files("dataset", dataset.name, branch) == there
    dataset.published(runs[LARGE], "1.1.0")
    assert f"refs/heads/{branch}" not in hub.refs("dataset", dataset.name)
