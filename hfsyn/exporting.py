"""The real images of a run, stored as its synthetic ones are: for comparisons in which only the pictures differ."""

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
from builders.runs.rows import synthetic_features
from builders.sources.rows import SourceRow
from builders.stores.copies import on_disk
from hfsyn.captions.prefetch import in_order
from hfsyn.errors import HfsynError
from hfsyn.images.encoding import encode, fitted, stored_name
from hfsyn.images.generate_stage import check_captioned
from hfsyn.progress import Progress
from hfsyn.runs.run import Run, check_complete, index_entries, load_run
from hfsyn.runs.shards import StoredRows, image_of, write_parquet

NOTE = "export.json"  # what an exported folder is; it is written last


def export_real(run: Run | str | Path, out: str | Path, *, quiet: bool = False) -> Path:
    """Write the real images behind a run as Parquet files in ``OUT/data``, one row for each image that could be read;
    return the folder, which `load_dataset` and ``hfsyn train --train-dataset`` read.

    Each has the size of the run's synthetic images (the middle of the photograph, resampled), goes through the same
    encoder with the same settings into the same columns, and is named by the same rule: prompt, seed and token count
    are null, and the sample id is the source id. Rows are in the order of the source. A command that was stopped
    continues when it is given again.

    What a photograph has lost in an earlier JPEG file cannot be restored. A source of ImageNet's quality (96) leaves no
    trace that a classifier of file features finds (`tests/images/test_file_traces.py`); one of quality 75 with halved
    chroma does, unless its images become less than half as large.

    Args:
        run: the run folder; it has all captions (or source images read) and a finished shard of images.
        out: a folder that is new, empty, or holds this export.
        quiet: no progress.

    Raises:
        HfsynError: the run is not that far, or the folder holds something else.
    """
    run = run if isinstance(run, Run) else load_run(run)
    run.check()
    run_files.finished(run.folder)  # if it was finished, nothing of it may be lost
    stored = StoredRows(run.folder)
    if not len(stored):
        said = f"{run.folder} has no finished shard of images, and the real ones take their size from these."
        raise HfsynError(said, f"Run: hfsyn generate {run.folder}")
    size = image_of(stored.read([0], ["image"])[0]).size
    shards = run.caption_shards()
    check_complete("caption", shards, run)
    folder, note = on_disk(out), _note(run, *size)
    _claim(folder, note)
    schema = synthetic_features(run.class_names).arrow_schema
    with (
        Progress("exporting", run.source_rows, quiet=quiet) as progress,
        ThreadPoolExecutor(os.cpu_count() or 1, "export") as pool,
    ):
        for shard in shards:
            path = folder / layout.DATA / shard.name
            start, stop = run.span(shard)
            if not path.exists():  # it gets its name when it is whole
                rows = list(_rows(run, shard, run.lines(shard), size, pool))
                write_parquet(path, {field.name: [row[field.name] for row in rows] for field in schema}, schema)
            progress.add(stop - start)
    atomic_text(folder / NOTE, note)
    (folder / f".{NOTE}").unlink()
    return folder


def _note(run: Run, width: int, height: int) -> str:
    fields = {
        "what": "real images, stored as the synthetic images of a run are",
        "run": run.fingerprint,
        "name": run.recipe.name,
        "variant": run.recipe.source.variant,
        "split": run.split,
        "width": width,
        "height": height,
        "store": run.recipe.store.model_dump(exclude={"mark"}),  # real images carry none
    }
    return json.dumps(fields, indent=1) + "\n"


def _claim(folder: Path, note: str) -> None:
    """Make the folder this export's, or raise HfsynError.

    The note of an export that was stopped is beside its files under another name.
    """
    done, begun = folder / NOTE, folder / f".{NOTE}"
    remove_abandoned([*folder.glob(f".*{NOTE}.*.tmp"), *(folder / layout.DATA).glob(".*.parquet.*.tmp")])
    there = next((path.read_text(encoding="utf-8") for path in (done, begun) if path.is_file()), None)
    if there is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        said = f"{folder} holds files that do not belong to an export."
        raise HfsynError(said, "Name an empty or new folder for --out.")
    if there is not None and there != note:
        raise HfsynError(f"{folder} holds the export of another run, or of other settings.", "Name another --out.")
    atomic_text(begun, note)


def _rows(
    run: Run, shard: Path, lines: list[dict[str, Any]], size: tuple[int, int], pool: ThreadPoolExecutor
) -> Iterator[dict[str, Any]]:
    """The rows of the readable images of a caption shard, in the order of the source."""
    captions = {row["source_id"]: row for row in pq.read_table(shard).to_pylist()}
    store = run.recipe.store

    def make(row: SourceRow) -> bytes:
        check_captioned(row, captions[row.source_id]["source_sha256"])
        with decoded(row.image) as image:
            return encode(fitted(image, *size), store)

    source_rows = run.open_source().read(index_entries([line for line in lines if line["source_id"] in captions]))
    for source_id, wnid, made in in_order(source_rows, lambda row: pool.submit(make, row)):
        info, caption = run.classes[wnid], captions[source_id]
        yield {
            # Named as a synthetic image that is made from it.
            "image": {"bytes": made.result(), "path": stored_name(f"{source_id}#0", store)},
            "label": info.index,
            "wnid": info.wnid,
            "class_name": info.name,
            **dict.fromkeys(("prompt", "seed", "prompt_tokens")),
            "truncated": False,
            "safety": False,
            "retries": 0,
            **dict.fromkeys(("sample_id", "source_id"), source_id),
            **{key: caption[key] for key in ("caption", "caption_flags")},
        }
