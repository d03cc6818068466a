"""The real images of a run, stored as its synthetic ones are: for comparisons in which only the pictures differ."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builders.files import atomic_text, remove_abandoned
from builders.images.decoding import decoded
from builders.runs import layout, run_files
from builders.runs.layout import shard_range
from builders.runs.schema import synthetic_features
from builders.sources.rows import SourceRow
from hfsyn.captions.prefetch import in_order
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.encoding import SUFFIX, encode, fitted
from hfsyn.progress import Progress
from hfsyn.runs.run import Run, index_entries, load_run
from hfsyn.runs.shards import is_done, write_parquet
from hfsyn.runs.sheets import image_of
from hfsyn.runs.tables import StoredRows

NOTE = "export.json"
"""What an exported folder is; it is written last."""


def export_real(run: Run | str | Path, out: str | Path, *, quiet: bool = False) -> Path:
    """Write the real images behind a run as Parquet files in ``OUT/data``, one row for each image that could be read.

    Each has the size of the run's synthetic images (the middle of the photograph, resampled), goes through the same
    encoder with the same settings into the same columns, and is named by the same rule: prompt, seed and token count
    are null, and the sample id is the source id. Rows are in the order of the source. The command that was stopped
    continues when it is given again.

    What a photograph has lost in an earlier JPEG file nobody can give back. A source of ImageNet's quality (96) leaves
    no trace that a classifier of file features finds (`tests/images/test_file_traces.py`); one of quality 75 with
    halved chroma does, unless its images become less than half as large.

    Args:
        run: with all captions (or source images read) and at least one finished shard of images.
        out: a folder that is new, empty, or holds this export.
        quiet: no progress.

    Returns:
        The folder, which `load_dataset` and ``hfsyn train --train-dataset`` read.

    Raises:
        HfsynError: the run is not that far, or the folder holds something else.
    """
    run = run if isinstance(run, Run) else load_run(run)
    run.check()
    run_files.finished(run.folder)  # if it was finished, nothing of it may be lost
    width, height = _size(run)
    shards = run.caption_shards()
    if left := [shard for shard in shards if not is_done(shard)]:
        raise HfsynError(
            f"{run.folder} has {len(shards) - len(left)} of {len(shards)} caption shards.",
            f"Run: hfsyn caption {run.folder}",
            code=ExitCode.PARTIAL,
        )
    folder = Path(out).expanduser()
    _claim(folder, run, width, height)
    schema = synthetic_features(run.class_names).arrow_schema
    with (
        Progress("exporting", run.source_rows, quiet=quiet) as progress,
        ThreadPoolExecutor(os.cpu_count() or 1, "export") as pool,
    ):
        for number, shard in enumerate(shards):
            path = folder / layout.DATA / shard.name
            start, stop = shard_range(number, run.source_rows, run.recipe.store.shard_rows)
            if not path.exists():  # it gets its name when it is whole
                rows = [_row(run, *found) for found in _stored(run, shard, start, stop, (width, height), pool)]
                write_parquet(path, {field.name: [row[field.name] for row in rows] for field in schema}, schema)
            progress.add(stop - start)
    atomic_text(folder / NOTE, _note(run, width, height))
    (folder / f".{NOTE}").unlink()
    return folder


def _size(run: Run) -> tuple[int, int]:
    """Width and height of the run's stored synthetic images."""
    if len(stored := StoredRows(run.folder)):
        return image_of(stored.read([0], ["image"])[0]).size
    raise HfsynError(
        f"{run.folder} has no finished shard of images, whose size the real ones are to have.",
        f"Run: hfsyn generate {run.folder}",
    )


def _note(run: Run, width: int, height: int) -> str:
    fields = {
        "what": "real images, stored as the synthetic images of a run are",
        "run": run.fingerprint,
        "name": run.recipe.name,
        "variant": run.recipe.source.variant,
        "split": run.split,
        "width": width,
        "height": height,
        "store": run.recipe.store.model_dump(),
    }
    return json.dumps(fields, indent=1) + "\n"


def _claim(folder: Path, run: Run, width: int, height: int) -> None:
    """Make the folder this export's, or raise HfsynError.

    The note of an export that was stopped is beside its files under another name.
    """
    note, begun = folder / NOTE, folder / f".{NOTE}"
    remove_abandoned([*folder.glob(f".*{NOTE}.*.tmp"), *(folder / layout.DATA).glob(".*.parquet.*.tmp")])
    there = next((path.read_text(encoding="utf-8") for path in (note, begun) if path.is_file()), None)
    if there is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HfsynError(f"{folder} holds files that are no export.", "Name an empty or new folder for --out.")
    if there is not None and there != _note(run, width, height):
        raise HfsynError(f"{folder} holds the export of another run, or of other settings.", "Name another --out.")
    atomic_text(begun, _note(run, width, height))


def _stored(
    run: Run, shard: Path, start: int, stop: int, size: tuple[int, int], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, str, dict[str, Any], bytes]]:
    """Id, wnid and caption row of the readable source rows of a caption shard, and the bytes to store, in order."""
    captions = {row["source_id"]: row for row in pq.read_table(shard).to_pylist()}
    lines = run.read_lines(layout.SOURCE, start, stop)
    entries = index_entries([line for line in lines if line["source_id"] in captions])

    def make(row: SourceRow) -> bytes:
        if hashlib.sha256(row.image).hexdigest() != captions[row.source_id]["source_sha256"]:
            raise HfsynError(
                f"{row.source_id} is not the image that was captioned: the source has changed.",
                "Put it back as it was.",
            )
        with decoded(row.image) as image:
            return encode(fitted(image, *size), run.recipe.store)

    rows = run.open_source().read(entries)
    for source_id, wnid, made in in_order(rows, lambda row: pool.submit(make, row)):
        yield source_id, wnid, captions[source_id], made.result()


def _row(run: Run, source_id: str, wnid: str, caption: dict[str, Any], image: bytes) -> dict[str, Any]:
    info = run.classes[wnid]
    # As a synthetic image made from it would be called.
    name = f"{source_id}#0".replace("/", "_").replace("#", "_") + SUFFIX[run.recipe.store.format]
    return {
        "image": {"bytes": image, "path": name},
        "label": info.index,
        "wnid": info.wnid,
        "class_name": info.name,
        "prompt": None,
        "caption": caption["caption"],
        "seed": None,
        "sample_id": source_id,
        "source_id": source_id,
        "prompt_tokens": None,
        "truncated": False,
        "safety": False,
        "retries": 0,
        "caption_flags": caption["caption_flags"],
    }
