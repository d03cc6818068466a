"""Streams of sets that are sorted by class: mixed by reading at many places and a buffer by bytes, or warned of."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.variants import get_variant
from hfsyn.judging.sets.batches import Slice
from hfsyn.judging.train.feeds import open_feed
from hfsyn.recipes.training_recipe import load_train_config

CLASSES, EACH = 20, 150
WNIDS = [info.wnid for info in get_variant("imagenet-1k").classes[:CLASSES]]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits that many seconds at the end of every pass over Parquet files."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def sorted_table(folder: Path, *, size: int = 8, group: int = 100, files: int = 1) -> str:
    """All images of the first class, then all of the second, and so on; an image's first grey levels are its number."""
    import io

    from datasets import ClassLabel, Features, Image
    from PIL import Image as Pictures

    noise = np.random.default_rng(0)
    rows = []
    for number in range(CLASSES * EACH):
        pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
        pixels[0, 0] = (number >> 16, number >> 8 & 255, number & 255)
        data = io.BytesIO()
        Pictures.fromarray(pixels).save(data, "PNG", compress_level=0)
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "label": number // EACH})
    schema = Features({"image": Image(), "label": ClassLabel(names=WNIDS)}).arrow_schema
    folder.mkdir()
    for file in range(files):
        part = rows[file * len(rows) // files : (file + 1) * len(rows) // files]
        name = folder / f"train-{file:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=schema), name, row_group_size=group)
    return str(folder)


def number_of(picture: Any) -> Any:
    import torch

    red, green, blue = picture.getpixel((0, 0))
    return torch.tensor((red << 16) + (green << 8) + blue)


def shown(
    data: str, batches: int, *overrides: str, seed: int = 0, world: int = 1, state: Any = None
) -> list[list[int]]:
    """The numbers of the images in each of the first batches of 64 of each process."""
    found = []
    for rank in range(world):
        config = load_train_config(
            None, ["data.streaming=true", "data.budget=3000", f"seed={seed}", *overrides], {"data.train": [data]}
        )
        feed = open_feed(config)
        if state is not None:
            feed.load_state(state)
        stream = feed.batches(number_of, Slice(0, 10**6, 64 * world, 1, rank, world))
        for _ in range(batches):
            numbers, labels = next(stream)
            assert [number // EACH for number in numbers.tolist()] == labels.tolist()
            found.append(numbers.tolist())
    return found


def classes_in(batches: list[list[int]]) -> float:
    return float(np.mean([len({number // EACH for number in batch}) for batch in batches]))


def test_batches_of_a_set_that_is_sorted_by_class_hold_all_kinds(tmp_path: Path) -> None:
    batches = shown(sorted_table(tmp_path / "data"), 12)
    # Of shuffled rows a batch of 64 would hold 19.2 of the 20 classes.
    assert classes_in(batches) > 17


@pytest.mark.parametrize(("group", "files"), [(25, 1), (1000, 100)])
def test_reading_at_many_places_mixes_classes_where_the_buffer_holds_few_images(
    tmp_path: Path, group: int, files: int
) -> None:
    # 300 KB a class, and room for three classes of them.
    data = sorted_table(tmp_path / "data", size=26, group=group, files=files)
    assert classes_in(shown(data, 12, "data.shuffle_mb=1")) > 14


def test_a_pass_shows_every_image_once_and_the_next_one_in_another_order(tmp_path: Path) -> None:
    batches = shown(sorted_table(tmp_path / "data"), 92)  # 46 batches of 64 are a pass, without its last 56 images
    first, second = (sorted(chain.from_iterable(half)) for half in (batches[:46], batches[46:]))
    assert len(set(first)) == len(first) == len(set(second)) == 46 * 64
    assert batches[:46] != batches[46:]
    assert batches[0] != batches[46]


def test_the_order_is_decided_by_the_seed_and_continues_where_it_was(tmp_path: Path) -> None:
    data = sorted_table(tmp_path / "data")
    once = shown(data, 8)
    assert once == shown(data, 8)
    assert once != shown(data, 8, seed=1)
    assert shown(data, 4, state={"pass": 0, "taken": 4}) == once[4:]


def test_processes_show_different_images(tmp_path: Path) -> None:
    batches = shown(sorted_table(tmp_path / "data", group=30), 20, world=2)
    numbers = list(chain.from_iterable(batches))
    assert len(set(numbers)) == len(numbers)
    assert classes_in(batches) > 16


def test_a_stream_that_stays_sorted_is_warned_of_with_numbers(tmp_path: Path, caplog: Any) -> None:
    # One row group holds everything, and the buffer a ninth of it.
    data = sorted_table(tmp_path / "data", size=32, group=10**6)
    with caplog.at_level(logging.WARNING):
        batches = shown(data, 10, "data.shuffle_mb=1")
    (warning,) = [record.getMessage() for record in caplog.records]
    held = round(classes_in(batches))
    assert held < 9
    assert f"Batches of 64 images hold {held} of 20 classes, of which shuffled ones hold 19" in warning
    assert "Raise data.shuffle_mb (1)" in warning


def test_a_stream_that_is_mixed_is_not_warned_of(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        shown(sorted_table(tmp_path / "data"), 10)
    assert not caplog.records


def test_the_buffer_holds_no_more_bytes_than_it_may() -> None:
    from hfsyn.judging.train.shuffling import Shuffled

    taken = 0

    def rows() -> Any:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield {"image": {"bytes": bytes(1000 if number % 2 else 3000)}, "label": number}

    ahead = []
    for done, _ in enumerate(Shuffled(rows(), 20_000, (0,)), start=1):
        ahead.append(taken - done)
    assert len(ahead) == 100
    assert 6 <= max(ahead) <= 17  # 20 KB are 6 to 17 images
