"""The Parquet files of a local folder: of a dataset's copy with its card, or any others."""

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError
from builders.images.formats import IMAGE_SUFFIXES
from builders.runs import layout
from builders.sources import cards
from builders.sources.columns import holds_images
from builders.sources.folder_contents import leads_back
from builders.variants import Choice, Variant

_DEEPEST = 6  # levels of folders that are searched, as links could form a loop
_log = logging.getLogger(__name__)


def tables_of(variant: Variant, root: Path, config: str | None = None) -> tuple[Path, cards.Tables] | None:
    """The tables of a variant in a folder, as `local_tables`: of `config`, else of the class map's configuration, else
    of the one in the variant's repository if it exists here.
    """
    stated = config or variant.tables.config
    theirs = variant.hub.config if variant.hub else None
    if stated is None and theirs is not None:
        try:
            return local_tables(root, theirs)
        except cards.NoConfigurationError:
            pass
    return local_tables(root, stated)


def split_there(variant: Variant, tables: cards.Tables, split: str) -> str | None:
    """The tables' name of a split of a variant, None if they do not have it."""
    theirs = variant.hub.splits.get(split, split) if variant.hub else split
    found = tables.split(split) or tables.split(theirs)
    if found is None and variant.tests_only:  # a set for testing may lie in val/
        found = tables.split("validation")
    return found


def local_tables(root: Path, config: str | None = None) -> tuple[Path, cards.Tables] | None:
    """The Parquet files of a folder (or the one that `root` is), and the folder that they are relative to.

    None if no table has images: the folder then has image files. Raises DataError as `cards.find_tables`.
    """
    if root.is_file():
        names = _card_of(root.parent).names if (root.parent / cards.CARD_FILES[0]).is_file() else {}
        said = next(iter(names.values()), {}) if len(names) == 1 else {}
        split = cards.split_in(root.name)
        return root.parent, cards.Tables({split or "train": (root.name,)}, None, said, named=split is not None)
    files, pictures = _listed(root)
    if not any(map(cards.is_table, files)):
        return None
    card = _card_of(root)
    if pictures and not card.configs and config is None:  # tables deep among images are something else
        deep = {name for name in files if cards.folder_parts(posixpath.dirname(name))}
        files = [name for name in files if not cards.is_table(name) or name not in deep]
    found = cards.find_tables(files, card, config, str(root))
    first = next((root / part[0] for part in found.splits.values()), None)
    if first is None:
        return None
    if pictures and not _has_images(first):
        _log.warning("%s has no images and is not read.", first)
        return None
    if pictures:
        _log.warning("The image files beside the tables in %s are not read: %d.", root, sum(pictures.values()))
    beside = {f"ending {ending}": count for ending, count in sorted(pictures.items())}
    return root, replace(found, left_out={**found.left_out, **beside})


def local_choice(variant: Variant, names: Sequence[str], root: Path) -> Choice:
    """The columns of a local copy: those of the class map, else those of its repository if they exist."""
    if variant.tables.image_column or variant.tables.label_column or not variant.label_ids or variant.hub is None:
        return variant.tables
    there = pq.read_schema(root / names[0]).names
    image, label = (c if c in there else None for c in (variant.hub.image_column, variant.hub.label_column))
    return Choice(None, image, label)


def _listed(root: Path) -> tuple[list[str], Counter[str]]:
    """The files below a folder, and the number of images by ending; images are listed only if there is a card, as there
    may be a million. Run folders are skipped; of a run folder itself, only its images are listed.
    """
    found, pictures = [], Counter[str]()
    has_card = any((root / name).is_file() for name in cards.CARD_FILES)
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        depth = len(here.relative_to(root).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < _DEEPEST
            and not name.startswith((".", "__"))
            and not leads_back(here / name)
            and not layout.is_run_folder(here / name)
        )
        if here == root and layout.is_run_folder(root):
            files, folders[:] = [], [name for name in folders if name == layout.DATA]
        prefix = f"{here.relative_to(root).as_posix()}/" if depth else ""
        for name in files:
            ending = name[name.rfind(".") :].lower()  # a Path for each of a million is slow
            if is_picture := ending in IMAGE_SUFFIXES:
                pictures[ending] += 1
            if has_card or not is_picture:
                found.append(prefix + name)
    return found, pictures


def _card_of(folder: Path) -> cards.Card:
    texts = {}
    for name in cards.CARD_FILES:
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise DataError(f"{folder / name} cannot be read: {said}.", "Fix it, or move it away.") from None
    return cards.read_card(texts, str(folder))


def _has_images(file: Path) -> bool:
    try:
        return any(holds_images(column.type) for column in pq.read_schema(file))
    except (OSError, pa.ArrowException):
        return True  # reading it reports the error
