"""What lies in a repository after a publication, for its readers: other libraries, other releases, the curious."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, finished_run
from hub_client import Client
from hub_server import Hub
from PIL import Image

from builders.runs import layout

SHARDS = ("source.limit_per_class=1", "store.shard_rows=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"), *SHARDS)


def publish(alice: Client, run: Path, repo: str, version: str, *more: str, **environment: str) -> None:
    done = alice.hfsyn("publish", run, repo, "--version", version, "--quiet", *more, **environment)
    assert done.code == 0, done.err


def numbers(card: bytes) -> dict[str, str | None]:
    """The version that each configuration's entry in a card says."""
    fields = yaml.safe_load(card.decode().split("---\n", 2)[1])
    return {entry["config_name"]: entry.get("version") for entry in fields["configs"]}


# --- versions ---------------------------------------------------------------------------------------------------------


def test_each_entry_of_the_card_says_the_version_in_which_its_rows_came(
    hub: Hub, alice: Client, run: Path, tmp_path: Path
) -> None:
    """`datasets` before 2.16 caches a configuration under its name and this version, and under nothing else."""
    other = finished_run(tmp_path, *SHARDS, "seed=1")
    publish(alice, run, "alice/numbers", "1.0.0")
    publish(alice, other, "alice/numbers", "1.1.0")
    publish(alice, run, "alice/numbers", "1.2.0", "--config-name", "second")
    publish(alice, run, "alice/numbers", "1.3.0", "--config-name", "words", "--what", "captions")

    def said(tag: str) -> dict[str, str | None]:
        return numbers(hub.files("dataset", "alice/numbers", tag)["README.md"])

    assert said("v1.0.0") == {"default": "1.0.0"}
    assert said("v1.1.0") == {"default": "1.1.0"}
    assert said("v1.3.0") == {"default": "1.1.0", "second": "1.2.0", "words": "1.3.0"}


def test_an_entry_that_somebody_removed_comes_back_with_its_version(hub: Hub, alice: Client, run: Path) -> None:
    publish(alice, run, "alice/lost", "1.0.0")
    card = hub.files("dataset", "alice/lost")["README.md"].decode()
    _, front, body = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    del fields["configs"]
    hub.add_commit("dataset", "alice/lost", {"README.md": f"---\n{yaml.safe_dump(fields)}---\n{body}".encode()})
    publish(alice, run, "alice/lost", "1.1.0", "--config-name", "second")
    card = hub.files("dataset", "alice/lost", "v1.1.0")["README.md"]
    assert numbers(card) == {"default": "1.0.0", "second": "1.1.0"}


def test_card_and_readme_name_the_releases_that_were_tried(hub: Hub, alice: Client, run: Path) -> None:
    from hfsyn.cards.facts import TRIED_DATASETS

    publish(alice, run, "alice/tried", "1.0.0")
    tried = ", ".join(TRIED_DATASETS)
    for text in (
        hub.files("dataset", "alice/tried")["README.md"].decode(),
        (ROOT / "builders" / "README.md").read_text(),
    ):
        assert f"(tried: {tried})" in text
        assert TRIED_DATASETS[0] in text.replace(tried, "")


# --- folders ----------------------------------------------------------------------------------------------------------

READ = """
import pandas, pyarrow.parquet
from huggingface_hub import HfFileSystem, snapshot_download
local, remote = snapshot_download({repo!r}, repo_type="dataset"), "datasets/{repo}@v1.0.0/"
result = {{}}
for top in ("data", "captions"):
    key = "sample_id" if top == "data" else "source_id"
    for name, read in {{
        "pandas": lambda: pandas.read_parquet(local + "/" + top),
        "pandas by hf://": lambda: pandas.read_parquet("hf://" + remote + top),
        "pyarrow": lambda: pyarrow.parquet.read_table(local + "/" + top).to_pandas(),
        "pyarrow by hf://": lambda: pyarrow.parquet.read_table(remote + top, filesystem=HfFileSystem()).to_pandas(),
    }}.items():
        try:
            result[top + " " + name] = len(set(read()[key]))
        except Exception as error:
            result[top + " " + name] = type(error).__name__
"""


def test_data_and_captions_hold_nothing_but_parquet_and_open_as_folders(hub: Hub, alice: Client, run: Path) -> None:
    publish(alice, run, "alice/folders", "1.0.0")
    files = [Path(name) for name in hub.files("dataset", "alice/folders", "v1.0.0")]
    shards = [name for name in files if name.parts[0] in (layout.DATA, layout.CAPTIONS)]
    assert {name.suffix for name in shards} == {".parquet"}
    assert {Path("sidecars", *name.with_suffix(".json").parts) for name in shards} <= set(files)
    assert alice.python(READ.format(repo="alice/folders")) == {
        f"{top} {how}": 10
        for top in ("data", "captions")
        for how in ("pandas", "pandas by hf://", "pyarrow", "pyarrow by hf://")
    }


# --- what is nobody's business ----------------------------------------------------------------------------------------

SECRET = "zz-secret"
STRATEGY = "def say(class_info, caption, rng):\n    return f'a photo of {class_info.name}, {caption}'\n"
WNIDS = ("n01440764", "n02102040")


def private_folder(home: Path) -> Path:
    """Everything that a recipe can name on a machine: photographs, a class map, models, LoRA weights, files."""
    home.mkdir(parents=True)
    images = home / "photos" / "train" / "images"
    images.mkdir(parents=True)
    lines = [f"{home}/gone.png\t{WNIDS[0]}\n"]
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 90, 30)).save(images / f"{number}.png")
        lines.append(f"{number}.png\t{WNIDS[number % 2]}\n")
    (images / "4.png").write_bytes(b"no image")
    lines.append(f"4.png\t{WNIDS[0]}\n")
    (images.parent / "val_annotations.txt").write_text("".join(lines))
    classes = [{"id": wnid, "name": f"fish {number}"} for number, wnid in enumerate(WNIDS)]
    (home / "map.yaml").write_text(
        json.dumps(
            {"name": "mine", "title": "mine", "splits": {"train": 5}, "path": str(home / "photos"), "classes": classes}
        )
    )
    for name, marker in (("captioner", "config.json"), ("generator", "model_index.json")):
        (home / name).mkdir()
        (home / name / marker).write_text("{}")
    (home / "lora.safetensors").write_bytes(b"weights")
    (home / "mine.py").write_text(STRATEGY)
    table = [
        {"image": {"bytes": (images / f"{n}.png").read_bytes() if n else None, "path": f"{home}/{n}.png"}, "wnid": w}
        for n, w in enumerate([*WNIDS, *WNIDS])
    ]
    pq.write_table(pa.Table.from_pylist(table), home / "photos.parquet")
    return home


def everything(hub: Hub, alice: Client, repo: str) -> Iterator[tuple[str, str]]:
    """All that is published, as text: each file of each commit by where it is, also what is packed within it."""
    told: dict[str, Any] = alice.python(
        f"from huggingface_hub import HfApi\napi = HfApi()\n"
        f"commits = api.list_repo_commits({repo!r}, repo_type='dataset')\n"
        f"result = {{c.commit_id: c.title + c.message for c in commits}}"
    )
    for commit, message in told.items():
        yield f"message of {commit[:6]}", message
        for name, data in hub.files("dataset", repo, commit).items():
            text = data.decode("latin-1")
            if name.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(data))
                if "image" in table.column_names:  # of which the file names only, beside bytes that no text is in
                    table = table.set_column(0, "image", pa.array(pc.struct_field(table["image"], "path")))
                text += f"{table.schema.metadata}{table.to_pylist()}"
            elif name.endswith(".png"):
                text += str(Image.open(io.BytesIO(data)).info)
            yield f"{name} at {commit[:6]}", text


def test_the_changelog_compares_recipes_as_others_may_see_them(hub: Hub, alice: Client, tmp_path: Path) -> None:
    """Where the images lie on this machine is not part of the version before: that it has changed would be untrue."""
    for number, wnid in enumerate(WNIDS):
        for name in range(2):
            path = tmp_path / SECRET / "train" / wnid / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * name, 90 * number, 30)).save(path)
    for number in range(2):
        own = (f"source.path={tmp_path / SECRET}", "generate.model=builtin", f"seed={number}", "store.shard_rows=4")
        run = finished_run(tmp_path, *own, recipe="imagenette-basic", name=f"run-{number}")
        publish(alice, run, "alice/changes", f"1.{number}.0")
    log = hub.files("dataset", "alice/changes")["README.md"].decode().split("## Changelog")[1]
    assert SECRET not in log
    assert "source.path" not in log
    assert "seed from 0 to 1" in log


def test_nothing_that_is_published_says_on_which_machine_it_was_made(
    hub: Hub, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: f"{SECRET}-host")
    monkeypatch.setenv("USER", f"{SECRET}-user")
    monkeypatch.setenv("HOSTNAME", f"{SECRET}-host")
    homes = [private_folder(tmp_path / f"{SECRET}-{number}" / "home") for number in range(2)]
    repo, small = "alice/private", ("store.shard_rows=2", "generate.batch_size=2")
    for number, home in enumerate(homes):
        models = (f"caption.model={home}/captioner", f"generate.model={home}/generator")
        own = (f"source.variant={home}/map.yaml", f"generate.lora={home}/lora.safetensors", f"seed={number}")
        run = finished_run(home, *small, *models, *own, recipe="imagenette-cip")
        publish(alice, run, repo, f"1.{number}.0", USER=f"{SECRET}-user")
    texts = [f"{wnid}/{n}.png" for n, wnid in enumerate([*WNIDS, *WNIDS]) if n]
    (homes[0] / "texts.jsonl").write_text("".join(json.dumps({"source_id": t, "caption": t}) + "\n" for t in texts))
    prompts = (f"prompt.strategy={homes[0]}/mine.py:say", f"prompt.captions_file={homes[0]}/texts.jsonl")
    table = (
        f"source.path={homes[0]}/photos.parquet",
        "caption=null",
        "prompt.captions_missing=class-name",
        "generate.model=builtin",
    )
    run = finished_run(homes[0], *small, *prompts, *table, recipe="imagenette-cip", name="other")
    publish(alice, run, repo, "2.0.0", "--config-name", "table")
    publish(alice, homes[0] / "run", repo, "2.1.0", "--config-name", "words", "--what", "captions")

    found = dict(everything(hub, alice, repo))
    assert {where for where, text in found.items() if SECRET in text or str(tmp_path) in text} == set()
    log = hub.files("dataset", repo, "v1.1.0")["README.md"].decode().split("## Changelog")[1]
    assert "source.path" not in log
    assert "seed from 0 to 1" in log
    set_aside = hub.files("dataset", repo)["table/rejected.jsonl"].decode()
    assert "a file that is not here" in set_aside


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/zz/My Photos/cats", "cats"),
        ("shapes=/home/zz/photos:0.5", "shapes=photos:0.5"),
        ("local-dir:/home/zz/my runs/r50", "local-dir:r50"),
        ("weights=~/zz/r50.pth", "weights=r50.pth"),
        ("cannot read /home/zz/x.png (bad)", "cannot read x.png (bad)"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("https://huggingface.co/alice/set", "https://huggingface.co/alice/set"),
        ("alice/set@v1.0.0#basic", "alice/set@v1.0.0#basic"),
        ("cuda:0 (NVIDIA H100)", "cuda:0 (NVIDIA H100)"),
    ],
)
def test_results_of_a_classifier_that_is_published_keep_the_last_name_of_a_place(text: str, shown: str) -> None:
    from hfsyn.judging.train.model_card import without_paths

    assert without_paths({"sets": [{text: text}]}) == {"sets": [{shown: shown}]}


# --- questions that a server does not know ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_that_does_not_know_the_question_for_rights_is_published_to(
    hub: Hub, alice: Client, run: Path, status: int
) -> None:
    repo = f"alice/unasked-{status}"
    hub.add_repo("dataset", repo)
    hub.faults.add(status, path="/auth-check", times=None)
    try:
        done = alice.hfsyn("publish", run, repo, "--version", "1.0.0")
    finally:
        hub.faults.clear()
    assert done.code == 0, done.err
    assert "could not be asked" in done.err
    assert "refs/tags/v1.0.0" in hub.refs("dataset", repo)


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_is_not_published_to(hub: Hub, alice: Client, run: Path, status: int) -> None:
    repo = f"alice/refused-{status}"
    hub.add_repo("dataset", repo)
    hub.faults.add(status, path="/auth-check", times=None)
    try:
        done = alice.hfsyn("publish", run, repo, "--version", "1.0.0")
    finally:
        hub.faults.clear()
    assert (done.code, "cannot write" in done.err) == (3, True), done.err


def test_a_token_that_only_reads_is_refused_where_the_server_cannot_be_asked(
    hub: Hub, alice: Client, run: Path
) -> None:
    hub.add_repo("dataset", "alice/reader")
    hub.faults.add(404, path="/auth-check", times=None)
    try:
        done = alice.hfsyn("publish", run, "alice/reader", "--version", "1.0.0", HF_TOKEN="hf_alice_read")
    finally:
        hub.faults.clear()
    assert (done.code, "cannot write" in done.err) == (3, True), done.err
