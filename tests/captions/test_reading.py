"""Reading ahead of the captioner: in order, bounded, across shards, and with nothing left behind when it is cut off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import parquet_bytes, run_folder
from fakes import FakeCaptioner
from PIL import Image

from builders.runs.layout import load_sidecar, sidecar_of
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.prefetch import ahead
from hfsyn.errors import HfsynError
from hfsyn.runs.run import REFUSES, load_run

SMALL = ("source.limit_per_class=7", "store.shard_rows=10", "caption.batch_size=4")


def test_items_come_in_order_and_only_so_many_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    coming = ahead(items(), 3)
    assert next(coming) == 0
    time.sleep(0.2)
    # One in the consumer's hands, three that are ready, one that finds no room.
    assert taken == list(range(5))
    assert list(coming) == list(range(1, 20))


def test_an_error_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the stream broke off")

    coming = ahead(items(), 3)
    assert next(coming) == 1
    with pytest.raises(OSError, match="broke off"):
        next(coming)


def test_a_consumer_that_leaves_stops_the_reader() -> None:
    def items() -> Iterator[int]:
        yield from range(10**9)

    coming = ahead(items(), 2)
    next(coming)
    coming.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "read" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "read"]


class Full(FakeCaptioner):
    """Runs out of memory for more than `most` images, after `first` batches."""

    def __init__(self, most: int, first: int = 0) -> None:
        super().__init__()
        self.most, self.first = most, first

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        if len(images) > self.most and len(self.batches) >= self.first:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().caption(images)


def test_memory_that_runs_out_halves_the_batch_and_loses_no_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, full = run_folder(tmp_path, *SMALL, name="plain"), run_folder(tmp_path, *SMALL, name="full")
    caption(plain, captioner=FakeCaptioner(), quiet=True)
    captioner = Full(most=2, first=4)
    caption(full, captioner=captioner, quiet=True)
    assert parquet_bytes(full) == parquet_bytes(plain)
    assert captioner.batches[:4] == [4] * 4
    assert set(captioner.batches[4:]) == {2}
    grids = [load_sidecar(sidecar_of(shard)).grid for shard in load_run(full).caption_shards()]
    assert grids[:3] == [((0, 0, 4),), ((0, 0, 4), (0, 4, 2)), ((0, 0, 2),)]
    assert "batches of 4; going on with 2" in capsys.readouterr().err


def test_a_captioner_that_fails_leaves_no_shard_claimed(tmp_path: Path) -> None:
    run = run_folder(tmp_path, *SMALL)
    with pytest.raises(HfsynError, match="one image at a time"):
        caption(run, captioner=Full(most=0, first=3), quiet=True)
    done = [sidecar_of(shard).exists() for shard in load_run(run).caption_shards()]
    assert done == [True, *[False] * 6]
    caption(run, captioner=FakeCaptioner(), quiet=True)
    plain = run_folder(tmp_path, *SMALL, name="plain")
    caption(plain, captioner=FakeCaptioner(), quiet=True)
    assert parquet_bytes(run) == parquet_bytes(plain)


def test_a_captioner_that_prepares_does_so_ahead_and_sources_are_hashed_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done on the main thread is time in which the device waits."""
    preparing: set[str] = set()
    hashing: set[str] = set()
    asked: list[str] = []

    class Prepares(FakeCaptioner):
        def look(self, image: Any, info: Any) -> str:
            preparing.add(threading.current_thread().name.partition("_")[0])
            return self.describe(image)

        def ask(self, given: Any, seeds: Any) -> Any:
            preparing.add(threading.current_thread().name.partition("_")[0])
            assert len(given) == len(seeds) == 4

            def answer() -> list[str]:
                asked.append(threading.current_thread().name)
                return given

            return answer

    def noting(data: bytes = b"") -> Any:
        if data.startswith(b"\x89PNG"):
            hashing.add(threading.current_thread().name.partition("_")[0])
        return sha256(data)

    run, plain = run_folder(tmp_path, *SMALL), run_folder(tmp_path, *SMALL, name="plain")
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.sha256", noting)
        caption(run, captioner=Prepares(), quiet=True)
    main = threading.current_thread().name
    assert preparing == {"prepare"}
    assert set(asked) == {main}
    assert hashing & {"prepare", main} == {"prepare"}
    caption(plain, captioner=FakeCaptioner(), quiet=True)
    assert parquet_bytes(run) == parquet_bytes(plain)


def test_the_next_batch_is_prepared_while_the_captioner_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    at_work: list[int] = []

    def counting(data: bytes) -> Any:
        decoded.append(1)
        return decode(data)

    from builders.images.decoding import decoded as decode

    monkeypatch.setattr("hfsyn.captions.prefetch.decoded", counting)

    class Slow(FakeCaptioner):
        def caption(self, images: Sequence[Image.Image]) -> list[str]:
            before = len(decoded)
            time.sleep(0.1)
            at_work.append(len(decoded) - before)
            return super().caption(images)

    caption(run_folder(tmp_path, *SMALL), captioner=Slow(), quiet=True)
    assert len(decoded) == 70
    assert sum(at_work) > 20, "images are decoded while others are captioned"


def test_images_that_cannot_be_read_are_not_held_against_the_model(tmp_path: Path) -> None:
    """However many come first: a model that refuses 32 images before it has taken any counts as broken."""
    folder = tmp_path / "mine" / "cat"
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "99.png")
    (tmp_path / "mine.yaml").write_text("name: mine\nsplits: {train: null}\nclasses: [{id: cat, name: cat}]\n")
    run = run_folder(
        tmp_path,
        f"source.variant={tmp_path / 'mine.yaml'}",
        f"source.path={tmp_path / 'mine'}",
        "source.limit_per_class=null",
        "store.shard_rows=100",
    )
    caption(run, captioner=FakeCaptioner(), quiet=True)
    sidecar = load_sidecar(sidecar_of(load_run(run).caption_shards()[0]))
    assert (sidecar.rows, len(sidecar.rejected)) == (1, 40)
    assert not [line for line in sidecar.rejected if line["reason"].startswith(REFUSES)]


@pytest.mark.timeout(60)
def test_a_shard_that_is_claimed_while_the_captioner_gives_up_is_left_to_others(tmp_path: Path) -> None:
    """The reading thread is a shard ahead of the captioner that fails."""

    class Broken(FakeCaptioner):
        def caption(self, images: Sequence[Image.Image]) -> list[str]:
            time.sleep(0.05)
            raise HfsynError("the model is gone")

    kept = []  # so that no claim is let go because nobody refers to it any more
    for number in range(3):
        run = run_folder(tmp_path, *SMALL, "store.shard_rows=1", name=f"run-{number}")
        with pytest.raises(HfsynError, match="the model is gone") as gone:
            caption(run, captioner=Broken(), quiet=True)
        kept.append(gone)
        caption(run, captioner=FakeCaptioner(), quiet=True)  # would wait for claims that nobody releases
        assert not [shard for shard in load_run(run).caption_shards() if not shard.exists()]
