"""Tables of strangers on the Hub: the card decides what is train and what is test, and nothing is put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from drawn_tables import rows_of
from hub_client import Client
from hub_server import Hub

TENCH, SPRINGER = "n01440764", "n02102040"
PICTURE = rows_of(1)[0][1]


def table(labels: list[Any], **others: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": pa.array([PICTURE] * len(labels), pa.binary()), "label": labels, **others}), sink)
    return sink.getvalue().to_pybytes()


def card(*configs: dict[str, Any], **fields: Any) -> bytes:
    front = {**({"configs": list(configs)} if configs else {}), **fields}
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# A set\n".encode()


def opened(alice: Client, reference: str, split: str | None = None, *, streaming: bool = False) -> Any:
    """The classes as `train` reads them, or what it says instead."""
    read = "open_stream(parse_dataset(name), split)" if streaming else "open_images(name, split, default=TRAIN)"
    return alice.python(
        f"""
from builders.errors import DataError
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.judging.train.streams import open_stream
name, split = {reference!r}, {split!r}
try:
    found = {read}
    result = [[row for row in found.rows] and None or list(found.classes)][0] if {streaming} else list(found.wnids)
except (DataError, HfsynError) as error:
    result = str(error)
"""
    )


def class_map(alice: Client, folder: Path, repo: str, *options: str) -> dict[str, Any] | str:
    """The class map that is written, or what is said instead."""
    done = alice.hfsyn("variants", "new", "mine", "--from", repo, *options, cwd=folder)
    if done.code:
        assert done.code == 2
        assert len(done.err.strip().splitlines()) == 1
        return done.err
    found: dict[str, Any] = yaml.safe_load((folder / "mine.yaml").read_text())
    return found


def planned(alice: Client, folder: Path, split: str) -> str:
    """What a plan of the class map says of the split."""
    settings = ("--set", "source.variant=mine.yaml", "--set", f"source.split={split}")
    done = alice.hfsyn("plan", "shapes-basic", *settings, cwd=folder)
    return " ".join((done.out + done.err).split())


def test_the_card_decides_which_files_are_for_training(hub: Hub, alice: Client, tmp_path: Path) -> None:
    parts = [{"split": "train", "path": "data/part-a-*"}, {"split": "test", "path": "data/part-b-*"}]
    files = {
        "README.md": card({"config_name": "default", "data_files": parts}),
        "data/part-a-0.parquet": table([TENCH] * 3),
        "data/part-a-1.parquet": table([TENCH] * 3),
        "data/part-b-0.parquet": table([SPRINGER] * 4),
    }
    hub.add_repo("dataset", "bob/parts", files)
    found = class_map(alice, tmp_path, "bob/parts")
    assert isinstance(found, dict)
    assert found["splits"] == {"train": 6, "test": 4}
    assert "6 real images of 1 class" in planned(alice, tmp_path, "train")
    assert "4 real images of 1 class" in planned(alice, tmp_path, "test")
    assert opened(alice, "bob/parts", "train") == [TENCH] * 6
    assert opened(alice, "bob/parts", "test") == [SPRINGER] * 4
    there = alice.python("import datasets; result = datasets.load_dataset('bob/parts').num_rows")
    assert there == {"train": 6, "test": 4}


def test_configurations_are_named_and_never_put_together(hub: Hub, alice: Client, tmp_path: Path) -> None:
    files = {
        "summer/train.parquet": table([TENCH] * 2),
        "summer/test.parquet": table([TENCH]),
        "winter/train.parquet": table([SPRINGER] * 3),
    }
    hub.add_repo("dataset", "bob/folders", files)
    configs = [{"config_name": "summer", "data_dir": "summer"}, {"config_name": "winter", "data_files": "winter/*"}]
    hub.add_repo("dataset", "bob/seasons", {**files, "README.md": card(*configs)})
    for repo in ("bob/folders", "bob/seasons"):
        for said in (class_map(alice, tmp_path, repo), opened(alice, repo)):
            assert "'summer', 'winter'" in said
            assert "--config-name" in said
        assert opened(alice, f"{repo}#summer") == [TENCH] * 2
        assert opened(alice, f"{repo}#summer", "test") == [TENCH]
        assert opened(alice, f"{repo}#winter") == [SPRINGER] * 3
        assert "no configuration 'spring'" in opened(alice, f"{repo}#spring")
        found = class_map(alice, tmp_path, repo, "--config-name", "winter")
        assert isinstance(found, dict)
        assert (found["splits"], found["hub"]["config"]) == ({"train": 3}, "winter")
        assert "3 real images of 1 class" in planned(alice, tmp_path, "train")
        (tmp_path / "mine.yaml").unlink()


def test_label_names_of_the_card_are_read_as_load_dataset_reads_them(hub: Hub, alice: Client, tmp_path: Path) -> None:
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": {"0": SPRINGER, "1": TENCH}}}},
    ]
    files = {
        "README.md": card(dataset_info={"features": features}),
        "data/train-00000-of-00001.parquet": table([1, 0, -1, None]),
    }
    hub.add_repo("dataset", "bob/named", files)
    found = class_map(alice, tmp_path, "bob/named")
    assert isinstance(found, dict)
    assert [row["id"] for row in found["classes"]] == [SPRINGER, TENCH]
    assert found["splits"] == {"train": 2}
    assert "2 real images of 2 classes" in planned(alice, tmp_path, "train")
    assert opened(alice, "bob/named") == [TENCH, SPRINGER]
    assert opened(alice, "bob/named", streaming=True) == [TENCH, SPRINGER]


def test_two_columns_that_disagree_are_named_and_one_can_be_chosen(hub: Hub, alice: Client, tmp_path: Path) -> None:
    others = {"target": [SPRINGER, TENCH]}
    hub.add_repo("dataset", "bob/two", {"data/train-00000-of-00001.parquet": table([TENCH, SPRINGER], **others)})
    for said in (class_map(alice, tmp_path, "bob/two"), opened(alice, "bob/two")):
        assert "'label' says" in said
        assert "'target' says" in said
    found = class_map(alice, tmp_path, "bob/two", "--label-column", "target")
    assert isinstance(found, dict)
    assert found["hub"]["label_column"] == "target"
    assert opened(alice, f"{tmp_path}/mine.yaml") == [SPRINGER, TENCH]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train/cat/0.jpg": PICTURE, "train/dog/0.jpg": PICTURE}, "2 image files"),
        ({"data/0000.tar": b"", "data/0001.tar": b""}, "2 tar archives (WebDataset)"),
        ({"data.zip": b"", "labels.csv": b""}, "1 archives"),
        ({"data-00000-of-00001.arrow": b"", "state.json": b"{}"}, "Arrow files (save_to_disk)"),
    ],
)
def test_sets_of_other_files_are_named_for_what_they_are(
    hub: Hub, alice: Client, tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    name = f"bob/other-{len(hub.store.repos)}"
    hub.add_repo("dataset", name, files)
    found = class_map(alice, tmp_path, name)
    assert said in found
    assert f"hf download {name} --repo-type dataset" in found


def test_a_path_in_a_strangers_table_is_no_file_of_ours(hub: Hub, alice: Client, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}], kind)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": images, "label": [TENCH]}), sink)
    hub.add_repo("dataset", "bob/paths", {"data/train-00000-of-00001.parquet": sink.getvalue().to_pybytes()})
    size = alice.python(
        "from hfsyn.judging.sets.image_set import TRAIN, open_images\n"
        "result = len(open_images('bob/paths', default=TRAIN).images[0])"
    )
    assert size == 0
