"""Publishing and reading back, against a real server of the Hub's protocol with the unpatched clients."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import finished_run, run_folder
from fakes import FakeCaptioner, FakeGenerator
from hub_client import Client
from hub_server import Hub
from hub_store import Token
from PIL import Image

from builders.runs import layout
from builders.variants import get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.runs.finish import finish

SHAPES = get_variant("shapes").classes
SMALL = ("store.shard_rows=5", "generate.batch_size=4", "caption.batch_size=4", "generate.steps=4")
REPO = "alice/shapes"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as found:
        yield found


def built(folder: Path, name: str, *overrides: str, recipe: str = "shapes-cip") -> Path:
    """A finished run, made by the small real models."""
    from hfsyn.building import build

    run = folder / name
    build(recipe, run, overrides=["source.limit_per_class=3", *SMALL, *overrides], num_processes=1, quiet=True)
    return run


class Versions(dict[str, Path]):
    """The run of each tag."""

    sent = 0
    """Bytes of large files that the second one sent."""


@pytest.fixture(scope="module")
def versions(client: Client, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Version 1.0.0, and 1.1.0 with another seed for two classes, published one after the other."""
    folder = tmp_path_factory.mktemp("versions")
    runs = Versions({"v1.0.0": built(folder, "a")})
    others = [f"class_seeds.{info.wnid}=1" for info in SHAPES[:2]]
    runs["v1.1.0"] = built(folder, "b", *others)
    for tag, run in runs.items():
        hub.reset()
        done = client.hfsyn("publish", run, REPO, "--version", tag.removeprefix("v"))
        assert (done.code, done.last) == (0, f"{hub.url}/datasets/{REPO}/tree/{tag}"), done.err
        runs.sent = hub.counters.lfs_bytes
    return runs


LOAD = """
from datasets import load_dataset
import hashlib
def digest(rows):
    return [{k: hashlib.sha256(v.tobytes()).hexdigest() if k == "image" else v for k, v in row.items()} for row in rows]
"""


def rows_of(run: Path) -> list[dict[str, object]]:
    """Rows of a run folder with the hashes of their pixels, read without `datasets`."""
    import hashlib

    found = []
    for shard in layout.finished_shards(run / layout.DATA):
        for row in pq.read_table(shard).to_pylist():
            pixels = Image.open(io.BytesIO(row["image"]["bytes"])).tobytes()
            found.append({**row, "image": hashlib.sha256(pixels).hexdigest()})
    return found


def test_each_version_loads_whole_and_streamed_in_a_fresh_process(versions: Versions, hub: Hub) -> None:
    code = f"""{LOAD}
import json, sys
found = {{}}
for tag in ("v1.0.0", "v1.1.0"):
    whole = digest(load_dataset({REPO!r}, split="train", revision=tag))
    streamed = digest(load_dataset({REPO!r}, split="train", revision=tag, streaming=True))
    assert whole == streamed
    found[tag] = whole
print(json.dumps(found))
"""
    env = hub.env(token=None, home=versions["v1.0.0"].parent / "stranger")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {tag: rows_of(run) for tag, run in versions.items()}
    assert found["v1.0.0"] != found["v1.1.0"]


def test_only_shards_that_changed_went_up_for_the_second_version(versions: Versions, hub: Hub) -> None:
    old, new = ({p.name: p.read_bytes() for p in (run / "data").glob("*.parquet")} for run in versions.values())
    changed = {name for name in new if new[name] != old[name]}
    assert 0 < len(changed) < len(new)
    hub_old, hub_new = hub.files("dataset", REPO, "v1.0.0"), hub.files("dataset", REPO, "v1.1.0")
    assert {name: hub_old[f"data/{name}"] for name in old} == old
    assert {name: hub_new[f"data/{name}"] for name in new} == new
    others = sum(len(hub_new[name]) for name in ("plan.parquet", "preview/samples.png"))
    assert versions.sent == sum(len(new[name]) for name in changed) + others


def test_diff_says_exactly_what_changed(versions: Versions, client: Client) -> None:
    done = client.hfsyn("diff", f"{REPO}@v1.0.0", f"{REPO}@v1.1.0", "--json")
    found = json.loads(done.out)
    names = [info.name for info in SHAPES[:2]]
    assert (found["added"], found["removed"]) == ({}, {})
    assert found["changed"] == dict.fromkeys(names, 3)
    assert found["columns"] == {"image": 6, "seed": 6}
    assert found["recipe"] == [[f"class_seeds.{info.wnid}", None, 1] for info in SHAPES[:2]]
    assert json.loads(client.hfsyn("diff", f"{REPO}@v1.0.0", versions["v1.0.0"], "--json").out)["is_equal"]
    text = client.hfsyn("diff", f"{REPO}@v1.0.0", f"{REPO}@v1.1.0").out
    assert "changed  6 rows" in text
    assert f"{names[0]}: 3" in text


def test_the_changelog_says_it_in_a_sentence_and_the_old_card_is_in_the_old_version(
    versions: Versions, hub: Hub
) -> None:
    old, new = (hub.files("dataset", REPO, tag)["README.md"].decode() for tag in versions)
    assert "v1.1.0" not in old
    assert "6 rows of circle, square changed in image, seed; recipe: class_seeds." in new
    assert "First version: 30 images." in new


def test_verify_passes_on_both_versions_and_on_the_run(versions: Versions, client: Client) -> None:
    for what in (f"{REPO}@v1.0.0", f"{REPO}@v1.1.0", REPO, versions["v1.0.0"]):
        done = client.hfsyn("verify", what)
        assert (done.code, done.last.split(":")[0]) == (0, "verified"), done.out
        assert done.last.endswith("15 files, 30 captions, 30 rows")


def test_rows_chosen_by_chance_are_made_again_byte_for_byte(versions: Versions, client: Client, tmp_path: Path) -> None:
    ids = random.Random(3).sample([row["sample_id"] for row in rows_of(versions["v1.1.0"])], 3)
    for sample_id in ids:
        done = client.hfsyn(
            "reproduce", f"{REPO}@v1.1.0", "--sample-id", sample_id, "--out", tmp_path, "--device", "cpu"
        )
        assert done.code == 0, done.err
        assert "result   byte-equal" in done.err
        with Image.open(done.last) as picture:
            assert picture.size[0] > 200


def test_publishing_what_is_published_sends_nothing(versions: Versions, client: Client, hub: Hub) -> None:
    head = hub.head("dataset", REPO)
    hub.reset()
    done = client.hfsyn("publish", versions["v1.1.0"], REPO, "--version", "1.1.0")
    assert (done.code, done.last) == (0, f"{hub.url}/datasets/{REPO}/tree/v1.1.0")
    assert (hub.counters.commits, hub.counters.lfs_bytes, hub.head("dataset", REPO)) == (0, 0, head)
    assert not [entry for entry in hub.log if entry.method not in ("GET", "HEAD")]


def test_a_dry_run_says_everything_and_sends_nothing(client: Client, hub: Hub, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    hub.reset()
    done = client.hfsyn("publish", run, "alice/dry", "--version", "1.0.0", "--dry-run")
    assert done.code == 0, done.err
    for words in ("alice can write", "is new", "is free", "Apache-2.0", "to send", "First version: 30 images"):
        assert words in done.out
    assert not [entry for entry in hub.log if entry.method not in ("GET", "HEAD")]
    assert "dataset/alice/dry" not in str(hub.log)
    found = json.loads(client.hfsyn("publish", run, "dry", "--version", "1.0.0", "--dry-run", "--json").out)
    assert (found["repo_id"], found["commit"], found["commits"]) == ("alice/dry", None, 1)


def test_configurations_live_side_by_side_and_the_default_stays(client: Client, hub: Hub, tmp_path: Path) -> None:
    repo = "alice/both"
    cip = finished_run(tmp_path, name="cip")
    basic = finished_run(tmp_path, name="basic", recipe="shapes-basic")
    for run, config, version in ((cip, "cip", "1.0.0"), (basic, "basic", "1.1.0")):
        done = client.hfsyn("publish", run, repo, "--version", version, "--config-name", config)
        assert done.code == 0, done.err
    done = client.hfsyn("publish", cip, repo, "--version", "1.2.0", "--what", "captions", "--config-name", "blip")
    assert done.code == 0, done.err
    found = client.python(
        f"""{LOAD}
from datasets import get_dataset_config_names
load = lambda *name: digest(load_dataset({repo!r}, *name, split="train", streaming=True))
result = [load() == load("cip"), load("cip") != load("basic"), load("blip")[0], get_dataset_config_names({repo!r})]
"""
    )
    assert found[:2] == [True, True]
    assert set(found[2]) > {"source_id", "caption", "source_sha256"}
    assert sorted(found[3]) == ["basic", "blip", "cip"]
    for config in ("cip", "basic", "blip"):
        assert client.hfsyn("verify", f"{repo}@v1.2.0", "--config-name", config).code == 0
    # Another version of one configuration leaves the others alone.
    before = hub.files("dataset", repo)
    again = finished_run(tmp_path, "seed=5", recipe="shapes-basic", name="again")
    assert client.hfsyn("publish", again, repo, "--version", "2.0.0", "--config-name", "basic").code == 0
    after = hub.files("dataset", repo)
    same = {path for path in before if not path.startswith("basic/") and path != "README.md"}
    assert {path: before[path] for path in same} == {path: after[path] for path in same}
    assert before["basic/manifest.json"] != after["basic/manifest.json"]


def test_a_smaller_version_removes_its_shards_and_keeps_them_in_the_old_one(
    client: Client, hub: Hub, tmp_path: Path
) -> None:
    large, small = (
        finished_run(tmp_path, name="large"),
        finished_run(tmp_path, "source.limit_per_class=1", name="small"),
    )
    for run, version in ((large, "1.0.0"), (small, "2.0.0")):
        assert client.hfsyn("publish", run, "alice/shrinks", "--version", version).code == 0
    shards = [
        sorted(path for path in hub.files("dataset", "alice/shrinks", tag) if path.startswith("data/"))
        for tag in ("v1.0.0", "v2.0.0")
    ]
    assert [len(names) for names in shards] == [4, 2]
    assert client.python(f"{LOAD}result = len(digest(load_dataset('alice/shrinks', split='train')))") == 10
    found = json.loads(client.hfsyn("diff", "alice/shrinks@v1.0.0", "alice/shrinks@v2.0.0", "--json").out)
    assert sum(found["removed"].values()) == 20


def test_what_a_person_wrote_into_the_card_survives(client: Client, hub: Hub, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert client.hfsyn("publish", run, "alice/card", "--version", "1.0.0").code == 0
    card = hub.files("dataset", "alice/card")["README.md"].decode()
    mine = card.replace("# card\n", "# card\n\nA word of my own: see **our paper**.\n", 1) + "\n## Thanks\n\nTo all.\n"
    assert mine != card
    hub.add_commit("dataset", "alice/card", {"README.md": mine.encode()})
    other = finished_run(tmp_path, "seed=2", name="other")
    assert client.hfsyn("publish", other, "alice/card", "--version", "1.1.0").code == 0
    found = hub.files("dataset", "alice/card")["README.md"].decode()
    assert "A word of my own: see **our paper**." in found
    assert found.endswith("## Thanks\n\nTo all.\n")
    assert "v1.1.0" in found


def damage(run: Path) -> None:
    shard = next(layout.finished_shards(run / layout.DATA))
    shard.write_bytes(shard.read_bytes() + b"x")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["alice/x", "--version", "1.0"], {}, 2, ["'1.0' is not MAJOR.MINOR.PATCH", "--version 1.0.0"]),
        (["alice/x", "--version", "latest"], {}, 2, ["'latest' is not MAJOR.MINOR.PATCH"]),
        (["alice/x y", "--version", "1.0.0"], {}, 2, ["is not the name of a repository", "USER/NAME"]),
        (["alice/x", "--version", "1.0.0", "--config-name", "data"], {}, 2, ["'data' cannot be the name"]),
        (["alice/x", "--version", "1.0.0"], {"HF_TOKEN": "hf_wrong"}, 3, ["does not know this token", "hf auth login"]),
        (["alice/x", "--version", "1.0.0"], {"HF_TOKEN": ""}, 3, ["There is no token", "hf auth login", "HF_TOKEN"]),
        (["alice/x", "--version", "1.0.0"], {"HF_TOKEN": "hf_alice_read"}, 3, ["can only read", "hf auth login"]),
        (["bob/x", "--version", "1.0.0"], {}, 3, ["cannot create bob/x", "alice, lab"]),
        (["bob/theirs", "--version", "1.0.0"], {}, 3, ["cannot write to bob/theirs"]),
        (["alice/foreign", "--version", "1.0.0"], {}, 3, ["holds something else: data.csv", "--into"]),
        (["alice/script", "--version", "1.0.0", "--into"], {}, 3, ["script.py", "loading script", "delete-files"]),
        (["alice/taken", "--version", "1.0.0"], {}, 2, ["has a version 1.0.0 with other", "--version 1.1.0"]),
    ],
)
def test_what_forbids_publishing_is_said_in_one_line_and_nothing_is_sent(
    arguments: list[str],
    environment: dict[str, str],
    code: int,
    words: list[str],
    client: Client,
    hub: Hub,
    plain: Path,
    tmp_path: Path,
) -> None:
    if "alice/taken" in arguments:
        other = finished_run(tmp_path, "seed=9", name="other")
        assert client.hfsyn("publish", other, "alice/taken", "--version", "1.0.0").code == 0
    there = {"bob/theirs": "a.txt", "alice/foreign": "data.csv", "alice/script": "script.py"}
    if arguments[0] in there:
        hub.add_repo("dataset", arguments[0], {there[arguments[0]]: b"a"})
    hub.reset()
    done = client.hfsyn("publish", plain, *arguments, **environment)
    assert done.code == code, done.err
    assert all(word in done.err for word in words), done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not [entry for entry in hub.log if entry.method not in ("GET", "HEAD")]


def test_runs_that_are_not_whole_are_not_published(client: Client, hub: Hub, tmp_path: Path) -> None:
    hub.reset()
    run = run_folder(tmp_path, name="unfinished")
    done = client.hfsyn("publish", run, "alice/x", "--version", "1.0.0")
    assert (done.code, "is not finished" in done.err) == (3, True)
    done = client.hfsyn("publish", run, "alice/x", "--version", "1.0.0", "--what", "captions")
    assert (done.code, "0 of 4 caption shards" in done.err) == (3, True)
    broken = finished_run(tmp_path, name="broken")
    damage(broken)
    done = client.hfsyn("publish", broken, "alice/x", "--version", "1.0.0")
    assert (done.code, "is no longer whole" in done.err) == (3, True)
    assert not hub.log


def test_a_gated_source_needs_access_to_publish_what_was_made_from_it(client: Client, hub: Hub, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    hub.add_repo("dataset", "ILSVRC/imagenet-1k", {"a": b""}, gated="manual")
    code = f"""
from hfsyn.hub.repo import HubRepo
from hfsyn.publishing.preflight import terms_checks
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.run import Run
from pathlib import Path
run = Run(Path({str(run)!r}), load_recipe("imagenet-1k-cip"))
result = [check.line() for check in terms_checks(run, HubRepo("alice/x")) if check.state == "failed"]
"""
    (line,) = client.python(code)
    assert "no access to the source ILSVRC/imagenet-1k" in line
    assert f"{hub.url}/datasets/ILSVRC/imagenet-1k" in line


def test_a_fine_grained_token_is_enough_where_it_may_write(client: Client, hub: Hub, plain: Path) -> None:
    hub.store.tokens["hf_one"] = Token("alice", "fineGrained", [("user", "alice", ["repo.write", "repo.content.read"])])
    assert client.hfsyn("publish", plain, "alice/fine", "--version", "1.0.0", HF_TOKEN="hf_one").code == 0
    done = client.hfsyn("doctor", HF_TOKEN="hf_one")
    assert "may do more than publishing needs" not in done.out
    done = client.hfsyn("doctor", HF_TOKEN="hf_alice_write")
    assert "may do more than publishing needs" in done.out
    assert "settings/tokens" in done.out
    assert client.hfsyn("doctor", HF_TOKEN="hf_wrong").code == 3


SECRET = "hf_alice_write"


def test_the_token_is_in_no_file_no_line_and_no_command_line(
    client: Client, hub: Hub, plain: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(plain, tmp_path / "run")
    hub.faults.add(500, path="/commit/", times=1)
    hub.faults.add(403, path="/tag/", times=1)
    said = [client.hfsyn("publish", run, "alice/secret", "--version", "1.0.0", "--token", SECRET) for _ in range(2)]
    hub.faults.clear()
    assert [done.code for done in said] == [3, 0]
    said += [client.hfsyn(*args, "--token", SECRET) for args in (["doctor"], ["verify", "alice/secret"])]
    assert not [done for done in said if SECRET in done.out + done.err]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [name for name, data in hub.files("dataset", "alice/secret").items() if SECRET.encode() in data]
    started = client.python(
        f"""
import subprocess
from pathlib import Path
from hfsyn.publishing import watching
from hfsyn.runs.run import load_run
seen = []
class Child:
    def __init__(self, command, **options): seen.append(command)
    def wait(self): return 0
    def poll(self): return 0
watching.subprocess.Popen = Child
with watching.publishing(load_run({str(run)!r}), "alice/secret", "1.0.0", quiet=True): pass
result = seen
"""
    )
    assert started
    assert SECRET not in str(started)


def test_places_of_this_machine_are_not_published(client: Client, hub: Hub, tmp_path: Path) -> None:
    images = tmp_path / "private-place" / "n01443537"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(images / f"{i}.png")
    run = finished_run(
        tmp_path,
        f"source.path={images.parent}",
        "caption.model=builtin",
        "generate.model=builtin",
        recipe="tiny-imagenet-cip",
    )
    done = client.hfsyn("publish", run, "alice/places", "--version", "1.0.0")
    assert done.code == 0, done.err
    assert client.hfsyn("verify", "alice/places@v1.0.0").code == 0
    for name, data in hub.files("dataset", "alice/places").items():
        assert b"private-place" not in data, name


HOSTILE = (
    "---\n| x | {{ 7*7 }} {% raw %} <script>alert(1)</script> `` <!-- hfsyn:end config=default --> \u202e 🦆 | a\n---\n"
)


def test_a_hostile_caption_changes_nothing_but_its_own_cell(client: Client, hub: Hub, tmp_path: Path) -> None:
    class Hostile(FakeCaptioner):
        def caption(self, images: list[Image.Image]) -> list[str]:  # type: ignore[override]
            return [HOSTILE] * len(images)

    run = run_folder(tmp_path, "source.limit_per_class=1")
    caption(run, captioner=Hostile(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)
    done = client.hfsyn("publish", run, "alice/hostile", "--version", "1.0.0")
    assert done.code == 0, done.err
    found = client.python(
        """
from huggingface_hub import DatasetCard
from datasets import load_dataset
card = DatasetCard.load("alice/hostile")
card.validate()
rows = load_dataset("alice/hostile", split="train")
result = [card.data.to_dict()["configs"], rows[0]["caption"], card.content]
"""
    )
    assert [entry["config_name"] for entry in found[0]] == ["default"]
    assert found[1] == HOSTILE
    assert "<script>" not in found[2]
    assert "49" not in found[2].split("## Columns")[0]
    assert found[2].count("\n<!-- hfsyn:end config=default -->") == 1


def test_the_builder_and_load_version_give_the_rows_of_load_dataset(
    versions: Versions, client: Client, hub: Hub
) -> None:
    found = client.python(
        f"""{LOAD}
from builders.published import load_version
from builders.synthetic import Synthetic
ways = [
    load_dataset({REPO!r}, split="train", revision="v1.0.0"),
    load_version({REPO!r}, "v1.0.0"),
    load_version({REPO!r}, "v1.0.0", "default", split="train", streaming=True),
    Synthetic(repo={REPO!r}, revision="v1.0.0").as_streaming_dataset("train"),
]
result = [digest(rows) for rows in ways]
"""
    )
    assert all(rows == rows_of(versions["v1.0.0"]) for rows in found)


def test_without_the_hub_a_version_is_the_one_asked_for_or_an_error(
    versions: Versions, hub: Hub, tmp_path: Path
) -> None:
    """`load_dataset` gives the newest version that it has, whatever is asked for; that is shown first."""
    code = """
import sys, warnings
from datasets import load_dataset
from builders.errors import DataError
from builders.published import load_version
want = {"v1.0.0": sys.argv[2], "v1.1.0": sys.argv[3]}
def image(rows): return [r["seed"] for r in rows if r["sample_id"] == sys.argv[1]][0]
if sys.argv[4] == "online":
    for tag in want:
        assert str(image(load_version("alice/shapes", tag))) == want[tag]
        load_dataset("alice/shapes", split="train", revision=tag)
    sys.exit()
for tag in want:
    assert str(image(load_version("alice/shapes", tag))) == want[tag], tag
for tag in ("v9.9.9", "v1.0", "main"):
    try:
        load_version("alice/shapes", tag)
    except DataError as error:
        assert "No other version is used instead" in str(error), error
    else:
        raise AssertionError(tag)
wrong = image(load_dataset("alice/shapes", split="train", revision="v9.9.9"))
print("load_dataset gives", wrong)
"""
    (row, *_) = [row for row in rows_of(versions["v1.1.0"]) if row["wnid"] == SHAPES[0].wnid]
    (old,) = [r for r in rows_of(versions["v1.0.0"]) if r["sample_id"] == row["sample_id"]]
    words = [str(row["sample_id"]), str(old["seed"]), str(row["seed"])]
    online = hub.env(token=None, home=tmp_path)
    for how, env in {
        "online": online,
        "offline": {**online, "HF_HUB_OFFLINE": "1"},
        "unreachable": {**online, "HF_ENDPOINT": "http://127.0.0.1:9"},
    }.items():
        if how == "unreachable":  # where load_dataset tries for half a minute before it gives the wrong one
            code = code[: code.index("wrong =")]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, how], env=env, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, (how, done.stderr)


def test_into_a_foreign_repository_removes_and_overwrites_nothing_of_others(
    client: Client, hub: Hub, plain: Path, tmp_path: Path
) -> None:
    """Others' files have the names that every tool writes; ours stand beside their sidecars."""
    theirs = {
        "data/test-00000-of-00001.parquet": b"theirs",
        "data/train-00000-of-00009.parquet": b"theirs",
        "preview/holiday.png": b"theirs",
        "notes.md": b"theirs",
    }
    hub.add_repo("dataset", "alice/beside", theirs)
    done = client.hfsyn("publish", plain, "alice/beside", "--version", "1.0.0", "--into", "--dry-run")
    assert "to remove 0" in done.out
    assert client.hfsyn("publish", plain, "alice/beside", "--version", "1.0.0", "--into").code == 0
    other = finished_run(tmp_path, "seed=3", "source.limit_per_class=1", name="other")
    done = client.hfsyn("publish", other, "alice/beside", "--version", "2.0.0", "--dry-run")
    assert "to remove 16" in done.out  # shards and sidecars of the larger version, each by name
    assert "data/train-00007-of-00008.parquet" not in done.out or "captions/train-" in done.out
    assert client.hfsyn("publish", other, "alice/beside", "--version", "2.0.0").code == 0
    there = hub.files("dataset", "alice/beside")
    assert {name: there[name] for name in theirs} == theirs


def test_a_foreign_file_in_the_way_is_refused_and_named(client: Client, hub: Hub, plain: Path) -> None:
    hub.add_repo("dataset", "alice/way", {"manifest.json": b"{}", "a.txt": b""})
    done = client.hfsyn("publish", plain, "alice/way", "--version", "1.0.0", "--into")
    assert done.code == 3
    assert "manifest.json" in done.err
    assert hub.files("dataset", "alice/way")["manifest.json"] == b"{}"


def test_the_changelog_counts_images_that_only_the_recipe_changes(client: Client, hub: Hub, tmp_path: Path) -> None:
    for version, steps in (("1.0.0", 4), ("1.1.0", 5)):
        run = finished_run(tmp_path, f"generate.steps={steps}", name=f"steps-{steps}")
        shard = next(layout.finished_shards(run / "data"))
        assert shard.exists()
        assert client.hfsyn("publish", run, "alice/steps", "--version", version).code == 0
    # The fakes draw alike whatever the steps are; the recipe says that real images would differ.
    card = hub.files("dataset", "alice/steps")["README.md"].decode()
    assert "recipe: generate.steps from 4 to 5" in card


@pytest.mark.parametrize("token", ["hf_alice_SECRET\r", "hf alice", "hf_älice", "\n"])
def test_a_token_that_is_none_is_refused_without_quoting_it(client: Client, plain: Path, token: str) -> None:
    for command in (["publish", plain, "alice/x", "--version", "1.0.0"], ["verify", "alice/shapes"], ["doctor"]):
        done = client.hfsyn(*command, "--token", token)
        assert done.code in (2, 3), (done.code, done.out, done.err)
        assert len(done.err.strip().splitlines()) <= 1
        assert not any(part in done.out + done.err for part in ("SECRET", "alice_SECRET", "älice"))


def test_offline_publishing_ends_at_once(client: Client, plain: Path) -> None:
    code = f"""
import contextlib, io
from huggingface_hub import constants
from hfsyn.cli import main
constants.HF_HUB_OFFLINE = True
found = io.StringIO()
try:
    with contextlib.redirect_stderr(found):
        main(["publish", {str(plain)!r}, "alice/x", "--version", "1.0.0"])
except SystemExit as stop:
    result = [stop.code, found.getvalue()]
finally:
    constants.HF_HUB_OFFLINE = False
"""
    code, line = client.python(code)
    assert code == 3
    assert "HF_HUB_OFFLINE is set" in line
    assert "again in" not in line


@pytest.mark.parametrize("revision", ["..", "../../x", "v1..0/../y", "", "x" * 300, "a b"])
def test_a_revision_that_is_none_is_refused_before_anything_is_asked(client: Client, hub: Hub, revision: str) -> None:
    hub.reset()
    done = client.hfsyn("verify", f"alice/shapes@{revision}")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert not hub.log


def test_a_recipe_of_a_stranger_cannot_name_a_place_on_this_machine(client: Client, hub: Hub, plain: Path) -> None:
    recipe = (plain / "recipe.yaml").read_text()
    card = b"---\nconfigs:\n- config_name: default\n  data_files: x\n---\n"
    steered = "max_retries: 3, entropy_weight: 1.0, entropy_classifier: /home/me/net"
    for number, (old, new) in enumerate(
        (("path: null", "path: /home/me/photos"), ("model: builtin", "model: ~/model"), ("max_retries: 3", steered))
    ):
        repo = f"bob/places-{number}"
        manifest = (plain / "manifest.json").read_bytes()
        files = {"recipe.yaml": recipe.replace(old, new).encode(), "README.md": card, "manifest.json": manifest}
        hub.add_repo("dataset", repo, files)
        done = client.hfsyn("plan", f"hf://datasets/{repo}@main")
        assert done.code == 2
        assert "names a place on your machine" in done.err


def test_a_default_that_cannot_be_is_found_before_anything_is_sent(client: Client, hub: Hub, plain: Path) -> None:
    assert client.hfsyn("publish", plain, "alice/defaults", "--version", "1.0.0").code == 0
    hub.reset()
    more = ["--config-name", "cip", "--set-default"]
    for dry in ([], ["--dry-run"]):
        done = client.hfsyn("publish", plain, "alice/defaults", "--version", "1.1.0", *more, *dry)
        assert done.code in (2, 3), done.out
    assert not [entry for entry in hub.log if entry.method not in ("GET", "HEAD")]


def test_a_run_at_work_does_not_mix_with_the_version_that_stands(client: Client, hub: Hub, tmp_path: Path) -> None:
    done = finished_run(tmp_path, "source.limit_per_class=2", name="done")
    assert client.hfsyn("publish", done, "alice/stands", "--version", "1.0.0").code == 0
    before = hub.files("dataset", "alice/stands")
    unfinished = run_folder(tmp_path, name="unfinished")
    caption(unfinished, captioner=FakeCaptioner(), quiet=True)
    generate(unfinished, generator=FakeGenerator(), shards=":2", quiet=True)
    found = client.python(
        f"""
from hfsyn.publishing.watching import watch
class Enough(Exception): pass
looks = []
def sleep(seconds):
    looks.append(seconds)
    if len(looks) == 3: raise Enough
try:
    watch({str(unfinished)!r}, "alice/stands", "1.1.0", quiet=True, interval=0, sleep=sleep)
except Enough:
    result = len(looks)
"""
    )
    assert found == 3
    assert hub.files("dataset", "alice/stands") == before
    work = hub.files("dataset", "alice/stands", "hfsyn-work/default")
    shards = [path for path in work if path.startswith("data/")]
    assert shards == ["data/train-00000-of-00004.parquet", "data/train-00001-of-00004.parquet"]
    assert layout.MANIFEST not in work


def test_the_hubs_own_words_of_a_limit_are_waited_for(client: Client) -> None:
    found = client.python(
        """
from types import SimpleNamespace
from builders.hub import passes, status_of
class Said(Exception): pass
def said(status, **headers):
    error = Said("no")
    error.response = SimpleNamespace(status_code=status, headers=headers)
    return error
limited = said(429, **{"RateLimit": '"api";r=0;t=255', "ratelimit": '"api";r=0;t=255'})
result = [
    status_of(limited), status_of(said(503, **{"Retry-After": "7"})), passes(said(409)),
    passes(ConnectionError("HTTP status client error (401 Unauthorized) for url")),
    passes(ConnectionError("connection reset")),
]
"""
    )
    assert found == [[429, 256.0], [503, 7.0], True, False, True]


def test_published_captions_are_taken_for_the_same_images_and_the_same_captioner(
    client: Client, hub: Hub, tmp_path: Path
) -> None:
    first = finished_run(tmp_path, name="first")
    done = client.hfsyn("publish", first, "alice/captions", "--version", "1.0.0", "--what", "captions")
    assert done.code == 0, done.err
    run = run_folder(tmp_path, "generate.steps=3", name="second")
    code = f"""
from hfsyn.captions.caption_stage import caption
class Unasked:
    def caption(self, images): raise AssertionError("asked")
caption({str(run)!r}, captions="alice/captions@v1.0.0", captioner=Unasked(), quiet=True)
result = True
"""
    assert client.python(code)
    for mine, theirs in zip(*(sorted((r / "captions").glob("*.parquet")) for r in (run, first)), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()
    other = run_folder(tmp_path, "caption.num_beams=2", name="other")
    done = client.hfsyn("caption", other, "--captions", "alice/captions@v1.0.0", "--num-processes", "1")
    assert done.code == 2
    assert "are not this recipe's: caption is" in done.err
    more = run_folder(tmp_path, "source.limit_per_class=4", name="more")
    done = client.hfsyn("caption", more, "--captions", "alice/captions@v1.0.0", "--num-processes", "1")
    assert done.code == 2
    assert "have none for" in done.err
