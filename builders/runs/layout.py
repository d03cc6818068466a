"""The run folder: the names of its files, and the contents of its small JSON files.

A run folder has the same layout on disk and on the Hub::

    runs/imagenette-cip/
    ├── recipe.yaml                           the resolved recipe: everything that decides the bytes
    ├── strategy.txt                          a custom function that writes the prompts; never published
    ├── source.parquet                        the index of the source: id and class of every real image that is used
    ├── source.json                           its marker, which also says what of the source is left out, and why
    ├── captions/
    │   └── train-00000-of-00010.parquet      facts about each real image, and its caption
    ├── plan.parquet                          one line for each image to make: id, class, prompt, seed
    ├── plan.json                             its marker
    ├── data/
    │   └── train-00000-of-00010.parquet      the synthetic rows, published unchanged
    ├── sidecars/
    │   ├── captions/
    │   │   └── train-00000-of-00010.json     facts about the shard of the same name in captions/
    │   ├── data/
    │   │   └── train-00000-of-00010.json     and about that in data/
    │   └── scores/
    │       └── JUDGE/
    │           └── train-00000-of-00010.json and about that in scores/JUDGE/
    ├── scores/
    │   └── JUDGE/
    │       └── train-00000-of-00010.parquet  what a judge says of the rows of the data shard of the same name
    ├── scores.parquet                        what all judges say, by sample id; published as a configuration of its own
    ├── scores.json                           its marker, which names the judges
    ├── selection.parquet                     of a selection: every row of its parent, with what the rule looks at
    ├── selection.json                        its marker: the parent, the rule, the hashes of the scores
    ├── rejected.jsonl                        every image that was set aside, with its reason
    ├── manifest.json                         the table of contents; its existence means that the run is finished
    ├── README.md                             the card
    ├── preview/                              contact sheets
    ├── informativeness.json                  what `hfsyn informativeness RUN` measured; never published
    └── .locks/                               advisory locks of the running processes; never published

A sidecar is written after its shard, so that its existence means that the shard is done; likewise the markers of the
two tables, and the manifest of the whole. If a sidecar or marker is deleted, its file is made again, with the same
bytes. Sidecars have a folder of their own because pandas, polars and pyarrow read ``data/`` as a whole, and fail if
anything but Parquet lies in it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import DataError, near_path
from builders.files import is_litter, is_owned_name
from builders.stores.copies import is_address
from builders.yaml import load_mapping

RECIPE = "recipe.yaml"
STRATEGY = "strategy.txt"
SOURCE = "source.parquet"
CAPTIONS = "captions"
PLAN = "plan.parquet"
DATA = "data"
SCORES = "scores"
SCORES_TABLE = "scores.parquet"
SELECTION = "selection.parquet"
SIDECARS = "sidecars"
REJECTED = "rejected.jsonl"
MANIFEST = "manifest.json"
CARD = "README.md"
PREVIEW = "preview"
SAMPLES = "samples.png"  # the contact sheet in `PREVIEW`
INFORMATIVENESS = "informativeness.json"
LOCKS = ".locks"

DEFAULT_CONFIG = "default"  # the configuration at the root of a repository; others are in a folder of their name

KNOWN = frozenset({RECIPE, STRATEGY, SOURCE, "source.json", CAPTIONS, PLAN, "plan.json"})
KNOWN |= {DATA, SIDECARS, REJECTED, MANIFEST, CARD, PREVIEW, INFORMATIVENESS, LOCKS}
KNOWN |= {SCORES, SCORES_TABLE, "scores.json", SELECTION, "selection.json"}
"""All names at the top of a run folder."""

FORMAT = 3
"""The version of run folders and of what is published from them. It is raised when the same recipe would make other
bytes or another folder; other versions are refused.
"""

ROW_GROUP_BYTES = 100 * 2**20  # the largest row group that the Dataset Viewer reads

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_.]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Facts about one finished shard."""

    stage: str  # ``caption``, ``generate`` or ``score``
    shard: int
    of: int
    start: int  # first line of the source index (caption) or of the plan (generate), first row of the set (score)
    stop: int  # one past the last line
    rows: int  # rows in the file: ``stop - start`` minus the rejected ones
    sha256: str
    bytes: int
    fingerprint: str  # of the recipe; of scores that of the judge
    rejected: tuple[Mapping[str, str], ...] = ()  # one ``{"id", "reason"}`` for each line without a row
    counts: Mapping[str, int] = field(default_factory=dict)  # rows of each wnid
    flags: Mapping[str, int] = field(default_factory=dict)
    """Flag -> number of rows that have it: truncated, safety, retried, and the caption checks."""
    seconds: float = 0.0  # wall time of this shard alone, without loading the model
    device: str = ""
    worker: str = ""  # the process that made it, as ``RANK of WORLD``; it does not affect the shard
    software: Mapping[str, str] = field(default_factory=dict)
    grid: tuple[tuple[int, int, int], ...] = ()
    """The batches, which affect the last bits of an image: ``[attempt, first, size]`` means that from the first-th line
    of that attempt on (counted in the shard; of a retry, among the retried ones) batches had that size. If empty, they
    all had the size in the recipe.
    """
    options: Mapping[str, str] = field(default_factory=dict)
    """Everything else that may affect the last bits: memory format, compilation, attention kernel. Of scores what is
    known of the judge, and the SHA-256 of the data shard that it has seen.
    """
    unused_weights: Mapping[str, int] = field(default_factory=dict)
    """Kind of weights that the model has and does not use -> number."""

    def dump(self) -> str:
        """The sidecar as JSON text with a final newline."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def load_sidecar(path: Path) -> Sidecar:
    """Read a sidecar. Raises DataError as `parse_sidecar`."""
    return parse_sidecar(path.read_bytes(), str(path))


def parse_sidecar(text: str | bytes, where: str) -> Sidecar:
    """Read the text of the sidecar `where`. Raises DataError if it is not the JSON of one."""
    try:
        fields: dict[str, Any] = json.loads(text)
        grid = tuple((int(a), int(first), int(size)) for a, first, size in fields.get("grid", ()))
        found = Sidecar(**{**fields, "rejected": tuple(fields.get("rejected", ())), "grid": grid})
        check_kinds(found, int, "shard", "of", "start", "stop", "rows", "bytes")
        check_kinds(found, str, "stage", "sha256", "fingerprint", "device")
        check_kinds(found, dict, "counts", "flags", "software", "options", "unused_weights")
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is not a sidecar ({error}).", "Delete it, and its shard is created again.") from error


def check_kinds(found: object, kind: type, *names: str) -> None:
    """Raise TypeError if one of these attributes is not of exactly this type, as may happen in JSON of strangers."""
    for name in names:
        if type(getattr(found, name)) is not kind:
            raise TypeError(f"{name} is of the wrong kind")


def check_format(found: object, where: str) -> None:
    """Raise DataError for a recipe or manifest with another format than `FORMAT`; None means format 1."""
    if type(found) is int and found == FORMAT:
        return
    found = 1 if found is None else found
    newer = type(found) is int and found > FORMAT
    again = "Build it again, into a new folder or with --overwrite; nothing of it is converted."
    said = f"{where} is of format {found!r}, and this hfsyn reads format {FORMAT}."
    raise DataError(said, "A newer hfsyn reads it." if newer else again)


def recipe_fields(text: str, where: str) -> dict[str, Any]:
    """The fields of the recipe of a run or published set, without its format. Raises DataError as `check_format`."""
    fields = load_mapping(text, where, "recipe")
    check_format(fields.pop("format", None), where)
    return fields


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard in a manifest."""

    file: str  # ``data/NAME.parquet`` or ``captions/NAME.parquet``
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The table of contents of a finished run; `raw` is all of it."""

    name: str
    split: str
    fingerprint: str
    rows: int
    shards: tuple[ShardEntry, ...]
    """The published ones: of ``data/``, or of ``captions/`` if only captions are published."""
    captions: tuple[ShardEntry, ...]
    raw: Mapping[str, Any]


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest, with the SHA-256 of all others as the last one, ``sha256``."""
    others = {key: value for key, value in fields.items() if key != "sha256"}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def load_manifest(
    text: str, where: str, hint: str = "Check the repository and the revision; a newer hfsyn may be needed."
) -> Manifest:
    """Read and check the text of the manifest `where`, which is untrusted input.

    Raises DataError, with `hint`, if it is not a manifest, was altered, or names a file outside the run folder.
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
        classes = raw.get("classes", ())
        counts = [*raw.get("rejected", {}).values(), *(entry["rows"] for entry in classes)]
        wnids = [entry["wnid"] for entry in classes]
        if not all(type(count) is int for count in counts) or not all(isinstance(wnid, str) for wnid in wnids):
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
        raise ValueError(f"{found.file!r} is not a shard")
    numbers = type(found.rows) is int and type(found.bytes) is int and 0 <= found.rows <= found.bytes
    if not numbers or not _SHA256.fullmatch(found.sha256):
        raise ValueError(f"the entry of {found.file} is damaged")
    return found


def config_prefix(config_name: str) -> str:
    """The prefix of a configuration's paths in a repository: its folder, or nothing for the default one."""
    return "" if config_name == DEFAULT_CONFIG else f"{config_name}/"


def scores_config(config_name: str) -> str:
    """The configuration that has the scores of another one."""
    return SCORES if config_name == DEFAULT_CONFIG else f"{config_name}-{SCORES}"


def shard_name(split: str, number: int, count: int) -> str:
    """``train-00003-of-00010.parquet``, as the Hub's own tools name a shard."""
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def shard_number(path: Path) -> tuple[str, int, int] | None:
    """``(split, number, count)`` from a shard's file name; None if it is not one."""
    found = _SHARD.fullmatch(path.name)
    return (found["split"], int(found["number"]), int(found["count"])) if found else None


def sidecar_of(path: Path) -> Path:
    """The path of a shard's sidecar, or of a table's marker beside the table."""
    run = run_of(path)
    return run / sidecar_name(path.relative_to(run).as_posix())


def run_of(path: Path) -> Path:
    """The run folder of a shard, or of a table at its top."""
    if not _SHARD.fullmatch(path.name):
        return path.parent
    above = path.parent.parent
    return above.parent if above.name == SCORES and path.parent.name not in (DATA, CAPTIONS) else above


def sidecar_name(name: str) -> str:
    """As `sidecar_of`, for names within the run: ``sidecars/data/train-00003-of-00010.json``, ``plan.json``."""
    mark = f"{name.removesuffix('.parquet')}.json"
    return f"{SIDECARS}/{mark}" if "/" in name else mark


def shard_count(rows: int, shard_rows: int) -> int:
    """The number of shards of `rows` lines; the last one may be short."""
    return -(-rows // shard_rows)


def shard_range(number: int, rows: int, shard_rows: int) -> tuple[int, int]:
    """First and one-past-last line of a shard."""
    return number * shard_rows, min(rows, (number + 1) * shard_rows)


def finished_shards(folder: Path) -> Iterator[Path]:
    """The shards in `folder` that have a sidecar, in order; none in a missing folder."""
    for sidecar in sorted(sidecar_of(folder / shard_name("train", 0, 1)).parent.glob("*.json")):
        shard = folder / f"{sidecar.stem}.parquet"
        if shard_number(shard) and shard.exists():
            yield shard


def is_run_folder(folder: Path) -> bool:
    """Whether `folder` has a recipe, and so is a run, finished or not."""
    return (folder / RECIPE).is_file()


def run_folder(path: str | Path, hint: str = "`hfsyn build RECIPE --out RUN` creates one.") -> Path:
    """The run folder of that path; ``~`` is the home folder. Raises DataError, with `hint`, if it is not one."""
    if is_address(path):
        said = f"{path} is in object storage, and this command reads a run folder on a disk."
        raise DataError(said, "Copy it first: hf buckets sync, aws s3 sync, ... Or publish it, and name the dataset.")
    folder = (path if isinstance(path, Path) else Path(path)).expanduser()
    if not is_run_folder(folder):
        raise DataError(f"{folder} is not a run folder: there is no {RECIPE} in it.{near_path(folder)}", hint)
    return folder


_SHEETS = frozenset({SAMPLES, "contact_sheet.png", "look.png", "look.html"})
"""In `PREVIEW`: of a run, of the demo, and of `hfsyn look`, whose real images are never published."""


def strangers(folder: Path) -> list[str]:
    """Paths in `folder` that are not part of a run folder, sorted; empty for a missing folder.

    These are all files but shards, sidecars and our previews in the folders of these. Hidden files and files of the
    system (``.DS_Store``, Thumbs.db) do not count; hidden folders such as ``.git`` do, except for well-known caches.
    """
    if not folder.exists():
        return []
    found = [p for p in _visible(folder) if p.name not in KNOWN]
    found += [p for p in _visible(folder / SIDECARS) if p.name not in (DATA, CAPTIONS, SCORES) or not p.is_dir()]
    found += [p for top in (SCORES, f"{SIDECARS}/{SCORES}") for p in _visible(folder / top) if not p.is_dir()]
    judges = [f"{SCORES}/{path.name}" for path in _visible(folder / SCORES) if path.is_dir()]
    for name in (DATA, CAPTIONS, *judges):
        # Up to format 2 sidecars lay beside the shards, and --overwrite must work on older runs.
        found += [p for p in _visible(folder / name) if p.is_dir() or not _is_of_shard(p.name, ".parquet", ".json")]
        sidecars = _visible(folder / SIDECARS / name)
        found += [p for p in sidecars if p.is_dir() or not _is_of_shard(p.name, ".json")]
    found += [p for p in _visible(folder / PREVIEW) if p.is_dir() or p.name not in _SHEETS]
    return sorted(p.relative_to(folder).as_posix() for p in found)


_HIDDEN_FOLDERS = frozenset({LOCKS, ".cache", ".ipynb_checkpoints", ".Trashes", ".Spotlight-V100", ".fseventsd"})


def _visible(folder: Path) -> list[Path]:
    """What `folder` holds that may be the user's; nothing if it is not a folder."""

    def counts(path: Path) -> bool:
        if path.name.startswith(".") and path.is_dir():
            return path.name not in _HIDDEN_FOLDERS and not is_owned_name(path.name)
        return not is_litter(path.name)

    return [path for path in folder.iterdir() if counts(path)] if folder.is_dir() else []


def _is_of_shard(name: str, *endings: str) -> bool:
    """Whether a file name is that of a shard, except that it has one of these endings."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending in endings and _SHARD.fullmatch(f"{stem}.parquet") is not None
