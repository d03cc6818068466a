"""Checks that the files of a run folder are intact, by the markers of its tables and by its manifest.

``source.json`` is the marker of source.parquet and ``plan.json`` that of plan.parquet: written last, so that its
existence means that the table is done. It states the recipe's fingerprint and the table's hash, which are checked
whenever the table is read. The manifest covers all other files.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path

from builders.errors import DataError, and_more
from builders.files import atomic_text, digest_of
from builders.runs import layout
from builders.runs.layout import Manifest, load_manifest, sidecar_name, sidecar_of
from builders.stores.copies import is_away

_WHAT = {layout.SOURCE: "the index of the real images", layout.PLAN: "the plan"}


@dataclass(frozen=True, slots=True)
class Marker:
    """Facts about a finished source.parquet or plan.parquet."""

    stage: str  # ``source`` or ``plan``
    rows: int
    sha256: str
    bytes: int
    fingerprint: str  # of the recipe that it was made for
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of things in the source that are not in its index."""


def write_marker(path: Path, rows: int, fingerprint: str, left_out: Mapping[str, int] | None = None) -> Marker:
    """Mark the table at `path` as finished."""
    made = Marker(path.stem, rows, digest_of(path), path.stat().st_size, fingerprint, dict(left_out or {}))
    atomic_text(sidecar_of(path), json.dumps(asdict(made), indent=1, ensure_ascii=False) + "\n")
    return made


def has_table(path: Path) -> bool:
    """Whether a table is finished: it and its marker exist."""
    return sidecar_of(path).exists() and path.exists()


def marker_of(path: Path, fingerprint: str | None = None) -> Marker:
    """The marker of a table, without reading the table; `fingerprint` is that of the run's recipe, or None for any.

    Raises DataError if it is not a marker, or belongs to another recipe.
    """
    mark = sidecar_of(path)
    way_out = f"Delete it and run the same `hfsyn build` again: {path.name} is created again."
    try:
        fields = json.loads(mark.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or set(fields) != {each.name for each in dataclass_fields(Marker)}:
            raise TypeError("it has other fields")
        found = Marker(**fields)
        layout.check_kinds(found, str, "stage", "sha256", "fingerprint")
        layout.check_kinds(found, int, "rows", "bytes")
        if not all(type(n) is int for n in found.left_out.values()):
            raise TypeError("left_out is of the wrong kind")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{mark} is not the marker of {path.name} ({error}).", way_out) from None
    if fingerprint is not None and found.fingerprint != fingerprint:
        raise DataError(
            f"{path} is of another recipe than {layout.RECIPE} beside it ({found.fingerprint[:12]}, not "
            f"{fingerprint[:12]}).",
            f"Restore the {layout.RECIPE} that the run began with; or build into another folder, or with --overwrite.",
        )
    return found


def table(path: Path, fingerprint: str | None = None) -> Marker:
    """As `marker_of`, and checks the table's bytes, which are read once per process.

    Raises DataError if the table is missing, cut short, altered, or of another recipe.
    """
    what = f"{path.name} ({_WHAT.get(path.name, 'a table')})"
    if not path.exists() or not sidecar_of(path).exists():
        lost_it = f"has no {what}" if not path.exists() else f"has no {sidecar_of(path).name}, the marker of {what}"
        raise DataError(f"{path.parent} {lost_it}.", "Run the same `hfsyn build` again: it is created again.")
    found = marker_of(path, fingerprint)
    size = path.stat().st_size
    # The bytes of a table that only a store has are compared once they are here.
    if size != found.bytes or (not is_away(path) and digest_of(path) != found.sha256):
        how = f"is cut short ({size} of {found.bytes} bytes)" if size < found.bytes else "has other bytes than written"
        said = f"{what} of {path.parent} {how}."
        raise DataError(said, f"Delete {path} and run the same `hfsyn build` again: it is created again.")
    return found


def manifest_in(folder: Path) -> Manifest | None:
    """The manifest of a run, None if there is none. Raises DataError if it is damaged."""
    path = folder / layout.MANIFEST
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""
    return load_manifest(
        text, str(path), "Delete it and run the same `hfsyn build` (or `hfsyn finish`) again: it is written again."
    )


def lost(folder: Path, manifest: Manifest) -> list[str]:
    """The missing or changed files of a finished run, in words; shards are compared by size."""
    sizes = {name: size for top in _TOPS for name, size in _sizes(folder, top)}
    of_captions = manifest.raw.get("what") == "captions"  # published without images
    found = [f"{name} is missing" for name in ((layout.RECIPE,) if of_captions else _EVERY) if name not in sizes]
    for top in (layout.CAPTIONS, layout.DATA):
        entries = [entry for entry in (*manifest.captions, *manifest.shards) if entry.file.startswith(f"{top}/")]
        files = [entry.file for entry in entries]
        gone = [file for file in files if file not in sizes]
        bare = [sidecar_name(file) for file in files if file in sizes and sidecar_name(file) not in sizes]
        short = [entry.file for entry in entries if sizes.get(entry.file, entry.bytes) != entry.bytes]
        of = {layout.CAPTIONS: "caption", layout.DATA: "data"}[top]
        for names, what in ((gone, "missing"), (bare, "without its sidecar"), (short, "not as long as it was")):
            if names:
                verb, some = ("is", "shard") if len(files) == 1 else ("is" if len(names) == 1 else "are", "shards")
                found.append(f"{len(names)} of {len(files)} {of} {some} {verb} {what} ({Path(names[0]).name})")
    rejected = folder / layout.REJECTED
    if rejected.exists() and digest_of(rejected) != manifest.raw["files"].get(layout.REJECTED):
        found.append(f"{layout.REJECTED} is not as it was written")
    return found


_OF_SHARDS = (layout.CAPTIONS, layout.DATA)
_TOPS = ("", layout.PREVIEW, *_OF_SHARDS, *(f"{layout.SIDECARS}/{top}" for top in _OF_SHARDS))
_TABLES = (layout.SOURCE, sidecar_name(layout.SOURCE), layout.PLAN, sidecar_name(layout.PLAN))
_EVERY = (layout.RECIPE, *_TABLES, layout.REJECTED, layout.CARD, f"{layout.PREVIEW}/{layout.SAMPLES}")


def _sizes(folder: Path, top: str) -> Iterator[tuple[str, int]]:
    """Path within the run and size of each file in one of its folders."""
    try:
        with os.scandir(folder / top) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # a broken link
                    yield f"{top}/{entry.name}" if top else entry.name, entry.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return


def finished(folder: Path) -> Manifest | None:
    """The manifest of a finished and complete run; None if the run is not finished.

    Raises DataError if the manifest is damaged, or if something that it names is missing or cut short.
    """
    manifest = manifest_in(folder)
    if manifest is not None and (gone := lost(folder, manifest)):
        again = f"hfsyn build {folder / layout.RECIPE} --out {folder}"
        said = f"{folder} was finished, and is no longer whole: {', '.join(gone[:3])}{and_more(len(gone), 3)}."
        raise DataError(said, f"Run the same `hfsyn build` again ({again}): it creates the missing files.", code=3)
    return manifest


def shards(folder: Path, top: str) -> list[Path]:
    """The finished shards in ``data`` or ``captions`` of a run, in order. Raises DataError as `finished`."""
    manifest = finished(folder)
    if manifest is None:
        return list(layout.finished_shards(folder / top))
    entries = (*manifest.captions, *manifest.shards)
    return [folder / entry.file for entry in entries if entry.file.startswith(f"{top}/")]
