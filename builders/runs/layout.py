"""The run folder: who writes which file, under which name, and what the small JSON files hold.

A run folder has one shape, on disk and on the Hub::

    runs/imagenette-cip/
    ├── recipe.yaml                           the resolved recipe: everything that decides the bytes
    ├── strategy.txt                          a function of the user's that writes the prompts; never published
    ├── source.parquet                        the index of the source: id and class of every real image that is used
    ├── source.json                           its marker, which says too what of the source is left out, and why
    ├── captions/
    │   └── train-00000-of-00010.parquet      what was read of each real image, and its caption
    ├── plan.parquet                          one line for each image to make: id, class, prompt, seed
    ├── plan.json                             its marker
    ├── data/
    │   └── train-00000-of-00010.parquet      the synthetic rows, published as they lie
    ├── sidecars/
    │   ├── captions/
    │   │   └── train-00000-of-00010.json     what is known of the shard of the same name in captions/
    │   └── data/
    │       └── train-00000-of-00010.json     and of that in data/
    ├── rejected.jsonl                        every image that was set aside, with its reason
    ├── manifest.json                         the table of contents; its existence means that the run was finished
    ├── README.md                             the card
    ├── preview/                              contact sheets
    └── .locks/                               advisory locks of the processes at work; never published

A sidecar is written after its shard and its existence means that the shard is done; so are the markers of the two
tables, and the manifest of the whole. Delete a sidecar or a marker, or with it what it marks, and that one file is made
again, to the same bytes. Sidecars have a folder of their own because readers take ``data/`` as a whole: pandas, polars
and pyarrow refuse a folder in which anything but Parquet lies. Nobody else in this project writes one of these names.
See `builders.runs.run_files` for who looks at them.

A sidecar, shortened::

    {"stage": "generate", "shard": 3, "of": 10, "start": 3000, "stop": 4000, "rows": 999, "sha256": "9f...",
     "bytes": 104857600, "fingerprint": "51...", "rejected": [{"id": "...", "reason": "safety checker, 4 attempts"}],
     "counts": {"n01440764": 96}, "seconds": 812.4, "device": "cuda (NVIDIA H200)", "software": {"torch": "2.11.0"}}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.file_names import is_litter
from builders.files import is_owned_name
from builders.yaml import load_mapping

RECIPE = "recipe.yaml"
STRATEGY = "strategy.txt"
SOURCE = "source.parquet"
CAPTIONS = "captions"
PLAN = "plan.parquet"
DATA = "data"
SIDECARS = "sidecars"
REJECTED = "rejected.jsonl"
MANIFEST = "manifest.json"
CARD = "README.md"
PREVIEW = "preview"
SAMPLES = "samples.png"
"""The contact sheet in `PREVIEW`."""
LOCKS = ".locks"

DEFAULT_CONFIG = "default"
"""The configuration of a repository that lies at its root; any other lies in a folder of its own name."""

KNOWN = frozenset(
    {
        RECIPE,
        STRATEGY,
        SOURCE,
        "source.json",
        CAPTIONS,
        PLAN,
        "plan.json",
        DATA,
        SIDECARS,
        REJECTED,
        MANIFEST,
        CARD,
        PREVIEW,
        LOCKS,
    }
)
"""Every name that may stand at the top of a run folder."""

FORMAT = 3
"""Of run folders and of what is published from them: recipe, fingerprint, manifest. It rises when the same recipe would
make other bytes or another folder; a reader refuses what it does not know.
"""

ROW_GROUP_BYTES = 100 * 2**20
"""Of a row group in a shard: the Dataset Viewer reads row groups of at most 100 MB."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_.]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of one finished shard; see the module's docstring for an example."""

    stage: str
    """``caption`` or ``generate``."""
    shard: int
    of: int
    start: int
    """First line of the source index (caption) or of the plan (generate) that the shard covers."""
    stop: int
    """One past its last line."""
    rows: int
    """Rows in the file: ``stop - start`` less the rejected ones."""
    sha256: str
    bytes: int
    fingerprint: str
    rejected: tuple[Mapping[str, str], ...] = ()
    """One ``{"id", "reason"}`` for each line that gave no row."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows of each wnid."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """How many rows raised which flag: truncated, safety, retried, and the caption checks."""
    seconds: float = 0.0
    """Wall time of this shard alone, without loading the model."""
    device: str = ""
    worker: str = ""
    """``RANK of WORLD``: which process made it; nothing in the shard depends on it."""
    software: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[tuple[int, int, int], ...] = ()
    """How the lines were cut into batches, on which the last bits of an image depend: ``[attempt, first, size]`` says
    that from the first-th line of that attempt on (counted in the shard; of a retry, among what was retried) batches
    had that size. Empty: the recipe's all along.
    """
    options: Mapping[str, str] = field(default_factory=dict)
    """What else may change the last bits: memory format, compilation, attention kernel."""
    unused_weights: Mapping[str, int] = field(default_factory=dict)
    """Weights of the model that are not used: how many of each kind."""

    def dump(self) -> str:
        """The sidecar as JSON text with a final newline."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def load_sidecar(path: Path) -> Sidecar:
    """Read a sidecar.

    Raises:
        DataError: the file is not the JSON of a sidecar.
    """
    return parse_sidecar(path.read_bytes(), str(path))


def parse_sidecar(text: str | bytes, where: str) -> Sidecar:
    """Read a sidecar's text; `where` says whose it is.

    Raises:
        DataError: it is not the JSON of a sidecar.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        grid = tuple((int(a), int(first), int(size)) for a, first, size in fields.get("grid", ()))
        found = Sidecar(**{**fields, "rejected": tuple(fields.get("rejected", ())), "grid": grid})
        kinds = {
            int: ("shard", "of", "start", "stop", "rows", "bytes"),
            str: ("stage", "sha256", "fingerprint", "device"),
        }
        wrong = [name for kind, names in kinds.items() for name in names if type(getattr(found, name)) is not kind]
        wrong += [
            name
            for name in ("counts", "flags", "software", "options", "unused_weights")
            if not isinstance(getattr(found, name), dict)
        ]
        if wrong:
            raise TypeError(f"{wrong[0]} is of the wrong kind")
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is not a sidecar ({error}).", "Delete it, and its shard is made again.") from error


def check_format(found: object, where: str) -> None:
    """Refuse a recipe or a manifest of another format than `FORMAT`.

    Args:
        found: what it says of its format; None where it says nothing, which is format 1.
        where: how to call it in a message.

    Raises:
        DataError: it is of another format; the message names both.
    """
    if type(found) is int and found == FORMAT:
        return
    found = 1 if found is None else found
    raise DataError(
        f"{where} is of format {found!r}, and this hfsyn reads format {FORMAT}.",
        "A newer hfsyn reads it."
        if type(found) is int and found > FORMAT
        else "Build it again, into a new folder or with --overwrite; nothing of it is converted.",
    )


def recipe_fields(text: str, where: str) -> dict[str, Any]:
    """The fields of a recipe that is stored with a run or was published, without its format.

    Raises:
        DataError: it cannot be read, or is of another format; `where` names it.
    """
    fields = load_mapping(text, where, "recipe")
    check_format(fields.pop("format", None), where)
    return fields


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard in a manifest."""

    file: str
    """``data/NAME.parquet`` or ``captions/NAME.parquet``, below the run folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The table of contents of a finished run, as a reader needs it; `raw` is all that it says."""

    name: str
    split: str
    fingerprint: str
    rows: int
    shards: tuple[ShardEntry, ...]
    """Of what is published: of ``data/``, or of ``captions/`` where captions stand on their own."""
    captions: tuple[ShardEntry, ...]
    raw: Mapping[str, Any]


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the SHA-256 of all the others in the last one, ``sha256``."""
    others = {key: value for key, value in fields.items() if key != "sha256"}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def load_manifest(
    text: str, where: str, hint: str = "Check the repository and the revision; a newer hfsyn may be needed."
) -> Manifest:
    """Read a manifest, which may come from a stranger: every name and number is checked before it is used.

    Raises:
        DataError: it is not a manifest, is not as it was written, or names a file outside the run folder. `where` says
            which file it is, `hint` what to do.
    """
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise TypeError("it is not an object")
        check_format(raw["format"], where)
        if raw != sealed(raw):
            raise ValueError("it is not as it was written")
        shards, captions = ([_shard_entry(entry) for entry in raw.get(key, ())] for key in ("shards", "captions"))
        texts = {key: raw[key] for key in ("name", "split", "fingerprint")}
        rows = raw["rows"]
        if not all(isinstance(value, str) for value in texts.values()) or type(rows) is not int:
            raise TypeError("a name, split, fingerprint or number of rows is of the wrong kind")
        if not isinstance(raw.get("recipe"), dict) or raw.get("what", "data") not in ("data", "captions"):
            raise TypeError("its recipe or what it is of is of the wrong kind")
        if not all(isinstance(value, str) for value in raw["files"].values()):
            raise TypeError("the hash of a file is of the wrong kind")
        counts = [*raw.get("rejected", {}).values(), *(entry["rows"] for entry in raw.get("classes", ()))]
        if not all(type(count) is int for count in counts) or not all(
            isinstance(entry["wnid"], str) for entry in raw.get("classes", ())
        ):
            raise TypeError("a count of a class or a reason is of the wrong kind")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is not a manifest that this version reads ({error!r}).", hint) from None
    return Manifest(**texts, rows=rows, shards=tuple(shards), captions=tuple(captions), raw=raw)


def _shard_entry(entry: Mapping[str, Any]) -> ShardEntry:
    found = ShardEntry(**{key: entry[key] for key in ("file", "rows", "bytes", "sha256")})
    if not isinstance(found.file, str) or not isinstance(found.sha256, str):
        raise TypeError("the name or hash of a shard is of the wrong kind")
    folder, _, name = found.file.partition("/")
    if folder not in (DATA, CAPTIONS) or not _SHARD.fullmatch(name):
        raise ValueError(f"{found.file!r} is no shard")
    numbers = type(found.rows) is int and type(found.bytes) is int and 0 <= found.rows <= found.bytes
    if not numbers or not _SHA256.fullmatch(found.sha256):
        raise ValueError(f"the entry of {found.file} is damaged")
    return found


def config_prefix(config_name: str) -> str:
    """What stands before a configuration's paths in a repository: nothing for the default one, else its folder."""
    return "" if config_name == DEFAULT_CONFIG else f"{config_name}/"


def shard_name(split: str, number: int, count: int) -> str:
    """``train-00003-of-00010.parquet``: the name that the Hub's own tools give a shard."""
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def shard_number(path: Path) -> tuple[str, int, int] | None:
    """``(split, number, count)`` of a shard's file name; None where it is not one."""
    found = _SHARD.fullmatch(path.name)
    return (found["split"], int(found["number"]), int(found["count"])) if found else None


def sidecar_of(path: Path) -> Path:
    """The path of a shard's sidecar, or of a table's marker, which lies beside the table."""
    run = path.parent.parent if _SHARD.fullmatch(path.name) else path.parent
    return run / sidecar_name(path.relative_to(run).as_posix())


def sidecar_name(name: str) -> str:
    """As `sidecar_of`, by names within the run: ``sidecars/data/train-00003-of-00010.json``, ``plan.json``."""
    mark = f"{name.removesuffix('.parquet')}.json"
    return f"{SIDECARS}/{mark}" if "/" in name else mark


def shard_count(rows: int, shard_rows: int) -> int:
    """How many shards `rows` lines make: the last one may be short; no line, no shard."""
    return -(-rows // shard_rows)


def shard_range(number: int, rows: int, shard_rows: int) -> tuple[int, int]:
    """First and one-past-last line of a shard."""
    return number * shard_rows, min(rows, (number + 1) * shard_rows)


def finished_shards(folder: Path) -> Iterator[Path]:
    """The shards in `folder` whose sidecar stands, in order. A missing folder has none."""
    for sidecar in sorted((folder.parent / SIDECARS / folder.name).glob("*.json")):
        shard = folder / f"{sidecar.stem}.parquet"
        if shard_number(shard) and shard.exists():
            yield shard


def is_run_folder(folder: Path) -> bool:
    """Whether `folder` holds a run (finished or not): a recipe stands in it."""
    return (folder / RECIPE).is_file()


_SHEETS = frozenset({SAMPLES, "contact_sheet.png"})
"""Pictures of `PREVIEW`: that of a run, and that of the demo."""


def strangers(folder: Path) -> list[str]:
    """What is in `folder` and is no part of a run folder, by its path below it, sorted; empty for a missing folder.

    In the folders of shards everything but shards is strange, in those of sidecars everything but these, and in that of
    previews everything but our pictures. What systems leave behind (``.DS_Store``, Thumbs.db) and other hidden files do
    not count; a hidden folder does, such as ``.git``, unless it is known to hold nothing of anybody's.
    """
    if not folder.exists():
        return []
    found = [p for p in _visible(folder) if p.name not in KNOWN]
    found += [p for p in _visible(folder / SIDECARS) if p.name not in (DATA, CAPTIONS) or not p.is_dir()]
    for name in (DATA, CAPTIONS):
        # Up to format 2 sidecars lay beside the shards, and --overwrite is the way out of an older run.
        found += [p for p in _visible(folder / name) if p.is_dir() or not _is_of_shard(p.name, ".parquet", ".json")]
        sidecars = _visible(folder / SIDECARS / name)
        found += [p for p in sidecars if p.is_dir() or not _is_of_shard(p.name, ".json")]
    found += [p for p in _visible(folder / PREVIEW) if p.is_dir() or p.name not in _SHEETS]
    return sorted(p.relative_to(folder).as_posix() for p in found)


_HIDDEN_FOLDERS = frozenset({LOCKS, ".cache", ".ipynb_checkpoints", ".Trashes", ".Spotlight-V100", ".fseventsd"})


def _visible(folder: Path) -> list[Path]:
    """What `folder` holds that may be somebody's; nothing where it is not a folder."""

    def counts(path: Path) -> bool:
        if path.name.startswith(".") and path.is_dir():
            return path.name not in _HIDDEN_FOLDERS and not is_owned_name(path.name)
        return not is_litter(path.name)

    return [path for path in folder.iterdir() if counts(path)] if folder.is_dir() else []


def _is_of_shard(name: str, *endings: str) -> bool:
    """Whether a file name is that of a shard, but for its ending, which is one of those given."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending in endings and _SHARD.fullmatch(f"{stem}.parquet") is not None
