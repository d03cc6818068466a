"""Each row of the table of variants, built: from a Hub that has it as its own one does, or as its archive unpacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from drawn_tables import rows_of
from hub_client import Client
from hub_server import Hub

from builders.variants import VARIANTS, Variant, get_variant

EACH = 2
"""Images of a class."""


def some_classes(variant: Variant) -> list[str]:
    """The first, the last and two in between, by their label in the repository."""
    wnids = variant.hub_label_wnids
    return [wnids[number] for number in sorted({0, len(wnids) // 3, len(wnids) // 2, len(wnids) - 1})]


def label_names(variant: Variant) -> list[str]:
    """What the repository calls its labels; where its names were not all read, the words that ImageNet has."""
    if variant.hub_label_names:
        return list(variant.hub_label_names)
    words = [", ".join(variant.by_wnid[wnid].lemmas) for wnid in variant.hub_label_wnids]
    again: Counter[str] = Counter()
    for number, word in enumerate(words):  # "crane" is a bird and a machine; a ClassLabel has each name once
        again[word] += 1
        words[number] = word if again[word] == 1 else f"{word}{again[word]}"
    return words


def published(variant: Variant, folder: Path, wnids: Sequence[str], images: Sequence[bytes]) -> dict[str, bytes]:
    """The files of the variant's repository: by its name of the split, its configuration and its columns."""
    assert variant.hub is not None
    repository, split = variant.hub, next(iter(variant.splits))
    named = {"image": Image()}
    if repository.label_column == "wnid":
        features = Features({**named, "wnid": Value("string"), "class_name": Value("string")})
        labels = {"wnid": list(wnids), "class_name": ["-"] * len(wnids)}
    else:
        features = Features({**named, repository.label_column: ClassLabel(names=label_names(variant))})
        labels = {repository.label_column: [variant.hub_label_wnids.index(wnid) for wnid in wnids]}
    pictures = [{"bytes": data, "path": f"{number}.JPEG"} for number, data in enumerate(images)]
    path = folder / "table.parquet"
    Dataset.from_dict({repository.image_column: pictures, **labels}, features=features).to_parquet(path)
    name = f"{repository.splits[split]}-00000-of-00001.parquet"
    return {f"{repository.config or 'data'}/{name}": path.read_bytes(), "README.md": b"a card"}


def offered(hub: Hub, variant: Variant, files: dict[str, bytes]) -> None:
    """Put the files where the variant's are; a repository may have those of other variants already."""
    assert variant.hub is not None
    if ("dataset", variant.hub.repo_id) in hub.store.repos:
        hub.add_commit("dataset", variant.hub.repo_id, files)
    else:
        hub.add_repo("dataset", variant.hub.repo_id, files, gated="manual" if variant.gated else False)


def unpacked(variant: Variant, folder: Path, wnids: Sequence[str], images: Sequence[bytes]) -> Path:
    """The folder that the variant's archive unpacks to."""
    for number, (wnid, data) in enumerate(zip(wnids, images, strict=True)):
        called = str(variant.by_wnid[wnid].index) if variant.numbered_folders else wnid
        file = folder / variant.archive_folder / called / f"{number}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder / variant.archive_folder


@pytest.mark.parametrize("name", [name for name, one in VARIANTS.items() if one.drawn or one.hub_label_wnids])
def test_a_variant_is_built_from_where_it_is(name: str, hub: Hub, alice: Client, tmp_path: Path) -> None:
    variant = get_variant(name)
    split = next(iter(variant.splits))
    settings = [f"source.variant={name}", f"source.split={split}", "store.format=png"]
    settings += ["generate.model=builtin", "generate.steps=1"]
    wnids = [info.wnid for info in variant.classes] if variant.drawn else some_classes(variant) * EACH
    images = [image for _, image in rows_of(len(wnids))]
    if variant.hub is not None and variant.hub.archive is None:
        offered(hub, variant, published(variant, tmp_path, wnids, images))
        settings += ["source.revision=main"]  # the commits that the table names are of the true Hub
    elif variant.hub is not None:
        settings += [f"source.path={unpacked(variant, tmp_path, wnids, images)}"]
    limit = 1 if variant.drawn else EACH
    build = ["build", "shapes-basic", *(word for setting in settings for word in ("--set", setting))]
    build += ["--limit", str(limit), "--out", "run", "--device", "cpu", "--num-processes", "1"]
    if variant.gated:
        refused = alice.hfsyn(*build, cwd=tmp_path)
        assert refused.code == 3  # a right is missing
        assert f"{variant.hub.repo_id} is gated" in refused.err
        assert f"https://huggingface.co/datasets/{variant.hub.repo_id}" in refused.err
        assert not (tmp_path / "run").exists()
        hub.store.set(hub.store.repos["dataset", variant.hub.repo_id], grant="alice")
    done = alice.hfsyn(*build, cwd=tmp_path)
    assert done.code == 0, done.err

    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {entry["wnid"]: entry["rows"] for entry in manifest["classes"]} == Counter(wnids)
    rows = pa.concat_tables(pq.read_table(shard) for shard in (tmp_path / "run" / "data").glob("*.parquet")).to_pylist()
    assert {(row["wnid"], row["label"], row["class_name"]) for row in rows} == {
        (wnid, variant.by_wnid[wnid].index, variant.by_wnid[wnid].name) for wnid in wnids
    }
    assert all(variant.by_wnid[row["wnid"]].name in row["prompt"] for row in rows)
