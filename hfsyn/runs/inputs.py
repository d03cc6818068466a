"""The inputs of a run besides its recipe: the real images of its source, and texts that are given in place of captions.

Counting real images reads none of them, and without a network a Hub repository is not asked for: the variant's table
says how many it has.

Given texts come by source id from a file or a dataset of the Hub. A file is JSON lines, CSV with a header, or Parquet;
it has a column ``source_id`` and a column ``caption`` or ``prompt`` (this one if it has both), and may have others.
A dataset is ``hf://datasets/USER/NAME[@REVISION][/PATH]``: its files of these kinds, all of them or those under PATH;
they are downloaded whole.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError, brief
from builders.files import sha256_of
from builders.sources import open_source
from builders.variants import get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.recipes.loading import check_content
from hfsyn.recipes.parts import HUB, PromptPart
from hfsyn.recipes.recipe import Recipe, SourcePart
from hfsyn.recipes.strategies import get_strategy, is_user_strategy, source_of
from hfsyn.runs.specs import Caption

_ENDINGS = (".jsonl", ".ndjson", ".csv", ".parquet")  # in small letters; files may have them in capitals
_TEXTS = ("prompt", "caption")
_SHOWN = 3  # ids that a message names


def check_order(recipe: Recipe) -> None:
    """Refuse to draw over real images that are streamed: they are needed in the order of the plan."""
    source = recipe.source
    variant = get_variant(source.variant)
    hub = variant.hub
    if recipe.generate.init != "source" or source.path is not None or hub is None:
        return
    part = f" --include '{hub.config}/*'" if hub.config and not variant.label_ids else ""
    at = f" --revision {source.revision or hub.revision}" if source.revision or hub.revision else ""
    command = f"hf download {hub.repo_id} --repo-type dataset{at}{part} --local-dir FOLDER"
    said = f"generate.init is source, and the images of {source.variant} are streamed from the Hub in another order."
    raise HfsynError(said, f"Download them ({command}) and --set source.path=FOLDER.")


def indexed(recipe: Recipe, text: str | None, left_out: dict[str, int] | None = None) -> Iterator[Caption]:
    """A caption of that text for every image of the source; `left_out` then counts what is not read, by reason."""
    source = recipe.source.open()
    for entry in source.index():
        yield Caption(entry.source_id, entry.wnid, text)
    if left_out is not None:
        left_out.update(source.left_out)


def index_of_run(index: Path, text: str | None) -> Iterator[Caption]:
    """A caption of that text for every line of a run's source index."""
    with pq.ParquetFile(index) as file:
        for batch in file.iter_batches(columns=["source_id", "wnid"]):
            for source_id, wnid in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Caption(source_id, wnid, text)


@dataclass(frozen=True, slots=True)
class TableCounts:
    """What the variant's table says, and why the source itself was not asked."""

    images: int
    classes: int
    why: str


def counted(source: SourcePart) -> TableCounts | None:
    """The counts of the variant's table if the source is out of reach; None if it can be indexed."""
    from builders.hub import UnreachableError, is_offline

    variant = get_variant(source.variant)
    if source.path is not None or variant.hub is None:
        return None
    try:
        if is_offline():
            raise UnreachableError("HF_HUB_OFFLINE is set.")
        open_source(source.variant, source.split, revision=source.revision)
    except DataError as error:
        refused = error.code == ExitCode.PREFLIGHT or variant.hub.archive is not None
        images = in_table(source)
        if not images or not (refused or isinstance(error, UnreachableError)):
            raise
        return TableCounts(images, len(variant.classes), error.message)
    return None


def in_table(source: SourcePart) -> int:
    """How many images the source has by the variant's table; 0 if the table does not say."""
    variant = get_variant(source.variant)
    images = variant.splits.get(variant.split(source.split), 0)
    if source.limit_per_class is not None:
        images = min(images, source.limit_per_class * len(variant.classes))
    return images


# --- given texts ------------------------------------------------------------------------------------------------------


def content_of_file(file: str, revision: str | None) -> str:
    """``sha256:`` and the hash of a file, or the commit of a dataset that `revision` or the reference names."""
    if file.startswith(HUB):
        return _snapshot(file, revision)[1]
    try:
        return f"sha256:{sha256_of(_local(file))}"
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None


class FileTexts:
    """The texts of a prompt part's captions file, by source id.

    Raises HfsynError if the file is not there, has another content than the pinned one, or does not have the form
    above.
    """

    def __init__(self, part: PromptPart) -> None:
        assert part.captions_file is not None
        self._file = part.captions_file
        self._missing = part.captions_missing
        if self._file.startswith(HUB):
            paths = _snapshot(self._file, part.captions_revision)[0]
        else:
            paths = [_local(self._file)]
            found = content_of_file(self._file, None)
            what = f"{self._file} is not the file"
            check_content(found, part.captions_revision, what, "prompt.captions_revision")
        self._texts: dict[str, str] = {}
        self._twice: list[str] = []
        for path in paths:
            for source_id, text in _rows(path):
                if source_id in self._texts:
                    self._twice.append(source_id)
                self._texts[source_id] = text

    def check(self, source_ids: Collection[str]) -> None:
        """Compare the file's ids with those of a run's images. Other ids are allowed: a file may serve several runs.

        Raises HfsynError if an id occurs twice, if no image has a text, or if an image has no text or an empty one and
        the recipe does not say that the class name replaces it.
        """
        if self._twice:
            raise HfsynError(f"{self._file} has {_some('id', self._twice)} more than once.", "Leave one line for each.")
        missing = [source_id for source_id in source_ids if source_id not in self._texts]
        empty = [source_id for source_id in source_ids if not self._texts.get(source_id, "-")]
        if len(missing) == len(source_ids):
            some = next(iter(self._texts), None)
            raise HfsynError(
                f"{self._file} has no text for any of the {len(source_ids)} images: they have ids such as "
                f"{next(iter(source_ids))}, and " + (f"its ids are such as {some}." if some else "it has no lines."),
                "The ids of a run's images are in its source.parquet.",
            )
        if (missing or empty) and self._missing == "refuse":
            what = [f"no text for {_some('image', missing)}"] if missing else []
            what += [f"an empty text for {_some('image', empty)}"] if empty else []
            said = f"{self._file} has {' and '.join(what)}, of {len(source_ids)}."
            raise HfsynError(said, "Add them, or use the class name instead: --set prompt.captions_missing=class-name")

    def of(self, source_id: str) -> str:
        """The text of an image; empty if there is none."""
        return self._texts.get(source_id, "")


def check_texts(recipe: Recipe, source_ids: Collection[str]) -> None:
    """Refuse a captions file that lacks texts for some of the images; see `FileTexts.check`."""
    if recipe.prompt.captions_file is not None:
        FileTexts(recipe.prompt).check(source_ids)


def takes_text(recipe: Recipe) -> bool:
    """Whether the recipe's prompts depend on texts; a user's function is given whatever there is."""
    if is_user_strategy(recipe.prompt.strategy):
        return recipe.caption is not None or recipe.prompt.captions_file is not None
    return get_strategy(recipe.prompt.strategy).needs_caption


def with_texts(recipe: Recipe, captions: Iterable[Caption]) -> list[Caption]:
    """The captions with the texts of the recipe's captions file; see `FileTexts.check`."""
    found, texts = list(captions), FileTexts(recipe.prompt)
    texts.check([caption.source_id for caption in found])
    return [replace(caption, text=texts.of(caption.source_id)) for caption in found]


def strategy_source(recipe: Recipe) -> str | None:
    """The text of the file with the user's own function, to be kept with the run; None if there is none."""
    return source_of(recipe.prompt.strategy) if is_user_strategy(recipe.prompt.strategy) else None


def _some(what: str, ids: list[str]) -> str:
    shown = ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
    return f"{len(ids)} {what}{'' if len(ids) == 1 else 's'} ({shown})"


def _local(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise HfsynError(f"There is no captions file {file}.", "Name one: --set prompt.captions_file=texts.jsonl")
    if path.suffix.lower() not in _ENDINGS:
        raise HfsynError(f"The captions file {file} is of no known kind.", f"It ends in {', '.join(_ENDINGS)}.")
    return path


def _snapshot(reference: str, revision: str | None) -> tuple[list[Path], str]:
    """The downloaded files of a dataset, sorted by name, and their commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from builders.hub import Patience, patiently

    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.+-]+))?(?:/([\w./+ -]*))?", reference.removeprefix(HUB))
    if match is None or ".." in (match[3] or ""):
        said = f"prompt.captions_file is {reference!r}, which names no dataset."
        raise HfsynError(said, f"It looks like {HUB}USER/NAME@REVISION, or the same with /PATH after it.")
    repo_id, asked, inside = match[1], revision or match[2], (match[3] or "").strip("/")
    wanted = [inside]
    if not inside.lower().endswith(_ENDINGS):
        wanted = [f"{inside}*{ending}" for small in _ENDINGS for ending in (small, small.upper())]
    try:
        fetch = partial(snapshot_download, repo_id, repo_type="dataset", revision=asked, allow_patterns=wanted)
        root = Path(patiently(fetch, Patience(repo_id, revision=asked)))
    except LocalEntryNotFoundError:
        said = f"The dataset {repo_id} is not in the local cache, and the Hub cannot be reached."
        raise HfsynError(said, f"Fetch it with a network: hf download --repo-type dataset {repo_id}") from None
    found = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in _ENDINGS and p.is_file()]
    # The cache may hold more of this commit than was asked for.
    found = [p for p in found if p.relative_to(root).as_posix().startswith(inside)]
    if not found:
        raise HfsynError(f"{reference} holds no captions.", f"It needs a file that ends in {', '.join(_ENDINGS)}.")
    return found, root.name


# --- files ------------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """``(source id, text)`` of a file's lines; a missing text is empty."""
    readers = {".csv": _csv_lines, ".parquet": _parquet_rows}
    try:
        for where, row in readers.get(path.suffix.lower(), _json_lines)(path):
            yield _pair(path, row, where)
    except (UnicodeDecodeError, csv.Error, pa.ArrowException, OSError) as error:
        raise _unreadable(path.name, brief(error, 120)) from None


class _Pairs(list[Any]):
    """The keys and values of a JSON object, in order: a `dict` would keep the last of two equal keys."""


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pairs = json.loads(line, object_pairs_hook=_Pairs)
            except (ValueError, RecursionError):
                pairs = None
            if not isinstance(pairs, _Pairs):
                raise _unusable(path, f"line {number} is not a JSON object")
            _refuse_twice(path, [key for key, _ in pairs], f"line {number}")
            yield f"line {number}", dict(pairs)


def _csv_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        _refuse_twice(path, reader.fieldnames or (), "the heading")
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row:  # the key of surplus fields
                hint = "Put texts with commas in quotes."
                raise _unusable(path, f"{where} has more fields than the heading", hint)
            yield where, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _refuse_twice(path, names, "its schema")
        columns = [name for name in ("source_id", *_TEXTS) if name in names]
        if "source_id" not in columns or len(columns) < 2:
            raise _unusable(path, f"it has the columns {', '.join(names)}")
        rows = (row for batch in file.iter_batches(8192, columns=columns) for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _pair(path: Path, row: dict[str, Any], where: str) -> tuple[str, str]:
    column = next((name for name in _TEXTS if name in row), None)
    source_id, text = row.get("source_id"), row[column] if column else None
    for name, value in (("source_id", source_id), (column, text)):
        if value is not None and not isinstance(value, str):
            raise _unusable(path, f"{where} has the {name} {repr(value)[:60]}, which is not a text")
    if column is None or not source_id:
        what = "no source_id" if column else "no caption and no prompt"
        raise _unusable(path, f"{where} has {what}: it has {', '.join(map(str, row))}")
    if found := re.search("[\ud800-\udfff]", f"{source_id}{text or ''}"):  # JSON allows it
        raise _unusable(path, f"{where} has half of a character, {found[0]!a}")
    return source_id, text if text and text.strip() else ""


def _refuse_twice(path: Path, names: Iterable[str], where: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise _unusable(path, f"{where} has {str(twice[0])[:60]!r} more than once", "Leave one of them.")


def _unusable(
    path: Path, why: str, hint: str = "It has a column source_id, and a column caption or prompt."
) -> HfsynError:
    return HfsynError(f"The captions file {path.name} cannot be used: {why}.", hint)


def _unreadable(file: str, why: str) -> HfsynError:
    said = f"The captions file {file} cannot be read: {why}"
    return HfsynError(said, "JSON lines and CSV are UTF-8 text; Parquet is what datasets and pandas write.")
