"""Prepare a run: index the source, pin what the recipe leaves open, create the folder; or open what is there."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import and_more
from builders.files import atomic_text
from builders.runs import layout, run_files
from builders.stores.copies import local, present, readable, store_of
from builders.stores.store import BEGUN
from hfsyn.errors import HfsynError, make_out
from hfsyn.recipes.recipe import Recipe, difference, dump_recipe
from hfsyn.runs.claims import clear_remains, lock, put_away, removable, replaced
from hfsyn.runs.inputs import check_order, check_texts, strategy_source
from hfsyn.runs.pins import pinned
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import write_groups
from hfsyn.workers import current_worker

SOURCE_SCHEMA = pa.schema(
    [("source_id", pa.string()), ("wnid", pa.string()), ("location", pa.string()), ("row", pa.int64())]
)


def prepare(recipe: Recipe, out: str | Path, *, overwrite: bool = False) -> Run:
    """Make a run folder ready, or open the one that is there if it belongs to this recipe.

    Everything is checked before anything is written or, with `overwrite`, deleted: the source is indexed, models are
    found and their revisions pinned. Then the source index and the recipe are written. Several processes may call this
    at once. Raises HfsynError if the folder holds another recipe's run (the differing fields are named) or files that
    are not ours; the source is missing or empty; a model is not there; with `overwrite`, another process works in the
    folder, or has put another run there meanwhile.
    """
    folder = local(out)
    if overwrite and store_of(folder) is not None:
        said = f"--overwrite deletes runs on a disk, and {folder} is in object storage."
        raise HfsynError(said, "Delete it with that store's own tool, or name another --out.")
    clear_remains(folder)
    old = removable(folder) if overwrite else None
    if old is None and (found := run_in(recipe, folder)) is not None:
        if found.recipe.name != recipe.name and current_worker().is_main:
            print(f"{folder} keeps the name that it began with, {found.recipe.name}.", file=sys.stderr)
        if not run_files.has_table(folder / layout.SOURCE):
            index, left_out = _indexed(found.recipe)
            with lock_new(folder):
                _write_index(found, index, left_out)
        return found
    check_order(recipe)
    recipe = pinned(recipe)
    index, left_out = _indexed(recipe)
    check_texts(recipe, index["source_id"])
    if old is not None:
        put_away(folder, old)
    with lock_new(folder):
        if layout.is_run_folder(folder):  # another process was faster
            if overwrite:
                raise replaced(folder)
            _refuse_other(load_run(folder), recipe)
        else:
            new = Run(folder, recipe)
            _refuse_remains(folder, new.fingerprint)
            _write_index(new, index, left_out)
            if (source := strategy_source(recipe)) is not None:
                atomic_text(folder / layout.STRATEGY, source)
            # Last: the recipe is what makes the folder a run.
            atomic_text(folder / layout.RECIPE, dump_recipe(recipe))
    return load_run(folder)


def run_in(recipe: Recipe, folder: Path) -> Run | None:
    """The run of a recipe that a folder holds; None where there is room for one. HfsynError where the folder holds
    another recipe's run, or files that are not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise HfsynError(f"{folder} is a file.", "Name a folder for --out.")
    if layout.is_run_folder(folder):
        found = load_run(folder)
        _refuse_other(found, pinned(recipe, found.recipe))
        return found
    if alien := layout.strangers(folder):
        shown = ", ".join(alien[:5]) + and_more(len(alien), 5)
        said = f"{folder} holds files that are not of a run of hfsyn: {shown}."
        raise HfsynError(said, "Name an empty or new folder for --out.")
    if not run_files.has_table(folder / layout.SOURCE):
        _refuse_remains(folder, None)
    return None


def _refuse_remains(folder: Path, fingerprint: str | None) -> None:
    """Refuse a folder that holds parts of a run without its recipe, unless its index was made for this recipe."""
    index = folder / layout.SOURCE
    parts = [name for name in sorted(layout.KNOWN) if name not in BEGUN and not name.startswith(".")]
    found = [name for name in parts if (folder / name).exists()]
    if index.exists():
        try:
            names = pq.read_schema(readable(index)).names
        except pa.ArrowException:
            names = []
        found += [layout.SOURCE] if names != SOURCE_SCHEMA.names else []
    if not found or (run_files.has_table(index) and run_files.marker_of(index).fingerprint == fingerprint):
        return
    said = f"{folder} holds parts of a run ({', '.join(found)}) without the {layout.RECIPE} that they were made with."
    raise HfsynError(said, f"Put that {layout.RECIPE} back, remove the folder yourself, or name another --out.")


def lock_new(folder: Path) -> Any:
    """The lock under which a run folder is created, with its parents."""
    make_out(folder)
    return lock(folder, "prepare")


def _refuse_other(found: Run, recipe: Recipe) -> None:
    if fields := difference(found.recipe, recipe):
        shown = "; ".join(f"{key} is {old!r} there, {new!r} here" for key, old, new in fields[:6])
        said = f"{found.folder} holds another recipe's run: {shown}{and_more(len(fields), 6)}."
        raise HfsynError(said, "Name another --out, or --overwrite to delete that run.")


def _indexed(recipe: Recipe) -> tuple[dict[str, list[Any]], Mapping[str, int]]:
    """The index of a recipe's source, as the columns of source.parquet (less memory), and what it leaves out."""
    index: dict[str, list[Any]] = {name: [] for name in SOURCE_SCHEMA.names}
    source = recipe.source.open()
    for entry in source.index():
        for name, column in index.items():
            column.append(getattr(entry, name))
    if not index["source_id"]:
        said = f"The source {recipe.source.variant} ({recipe.source.split}) holds no image."
        raise HfsynError(said, "Check source.path and source.split.")
    return index, source.left_out


def _write_index(run: Run, index: dict[str, list[Any]], left_out: Mapping[str, int]) -> None:
    """Write source.parquet and its marker; captions that are there already must be of the same images."""
    for shard in layout.finished_shards(run.folder / layout.CAPTIONS):
        sidecar = layout.load_sidecar(layout.sidecar_of(shard))
        if sidecar.fingerprint != run.fingerprint:
            said = f"{run.folder} holds captions of another recipe, or of an hfsyn with another format."
            raise HfsynError(said, "Name another --out, or --overwrite to delete that run.")
        known = pq.read_table(present(shard), columns=["source_id"])["source_id"].to_pylist()
        aside = {entry["id"] for entry in sidecar.rejected}
        if [i for i in index["source_id"][sidecar.start : sidecar.stop] if i not in aside] != known:
            raise HfsynError(
                f"The source of {run.folder} is not what it was when this run began: {shard.name} is of other images.",
                "Put the source back as it was, or build into another folder.",
            )
    path, size = run.folder / layout.SOURCE, run.recipe.store.shard_rows
    groups = (
        {name: column[start : start + size] for name, column in index.items()}
        for start in range(0, len(index["source_id"]), size)
    )
    rows = write_groups(path, groups, SOURCE_SCHEMA)
    run_files.write_marker(path, rows, run.fingerprint, left_out)
