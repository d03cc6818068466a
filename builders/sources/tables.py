"""The tables of a dataset: its Parquet files in a local folder, or on the Hub at one commit."""

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from builders.errors import DataError
from builders.hub import Patience, asked, is_offline, patiently
from builders.images.formats import IMAGE_SUFFIXES
from builders.runs import layout
from builders.sources import cards
from builders.sources.columns import holds_images
from builders.sources.folder_contents import leads_back
from builders.variants import Choice, HubSource, Variant, how_to_unpack

# --- in a folder -------------------------------------------------------------------------------------------------

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


# --- on the Hub --------------------------------------------------------------------------------------------------

_CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's own conversion to Parquet of repositories in other formats."""


@dataclass(frozen=True)
class Repository:
    """The tables of a dataset on the Hub at one commit."""

    repo_id: str
    commit: str
    tables: cards.Tables
    others: str  # what it consists of if it has no tables, in words
    filesystem: Any

    @property
    def root(self) -> str:
        """The commit's folder for the filesystem."""
        return f"datasets/{self.repo_id}@{self.commit}"

    def absent(self) -> DataError:
        """The error for a repository without tables."""
        but = f", but {self.others}" if self.others else ""
        return DataError(
            f"{self.repo_id} has no Parquet files at {self.commit}{but}, and only Parquet files are read from the Hub.",
            f"Download it (hf download {self.repo_id} --repo-type dataset --local-dir FOLDER), unpack what is packed, "
            "and name the folder.",
        )


def open_repository(
    repo_id: str,
    revision: str | None = None,
    config: str | None = None,
    *,
    converted: bool = True,
    token: str | bool | None = None,
) -> Repository:
    """The tables of a dataset on the Hub: two requests, and one for each file that describes it.

    With `converted`, the Hub's own conversion is used if this revision has no tables of the configuration. Raises
    DataError as `builders.sources.cards.find_tables`, and errors of huggingface_hub.
    """
    found = None
    try:
        found = _tables(repo_id, revision, config, token)
    except cards.NoConfigurationError:
        if not converted:
            raise
    if converted and not (found and found.tables.splits):
        with suppress(RevisionNotFoundError, cards.NoConfigurationError):
            other = _tables(repo_id, _CONVERTED, config, token)
            found = other if other.tables.splits else found
    return found or _tables(repo_id, revision, config, token)  # raises the first error


def _tables(repo_id: str, revision: str | None, config: str | None, token: str | bool | None) -> Repository:
    info = HfApi(token=token).dataset_info(repo_id, revision=revision)
    filesystem = HfFileSystem(token=token)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    root = f"datasets/{repo_id}@{info.sha}"
    described = [name for name in cards.CARD_FILES if name in names]
    texts = {name: filesystem.cat_file(f"{root}/{name}").decode("utf-8", "replace") for name in described}
    tables = cards.find_tables(names, cards.read_card(texts, repo_id), config, repo_id)
    return Repository(repo_id, str(info.sha), tables, cards.what_lies_there(names), filesystem)


def open_split(
    variant: Variant, split: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[Repository, str]:
    """The tables of a variant's repository, and their name of one of its splits. Raises DataError as `open_hub`."""
    hub, found = _hub(variant), snapshot(variant, revision, token=token)
    theirs = found.tables.split(hub.splits[split])
    if theirs is None:
        there = f" It has: {', '.join(found.tables.splits)}." if found.tables.splits else ""
        other = f"choose another revision (see {hub.url}/tree/main), or give a local copy as the path"
        said = f"{hub.repo_id} at {found.commit} has no Parquet files of the split '{split}'.{there}"
        raise DataError(said, f"To read it, {how_to_unpack(variant) or other}.")
    return found, theirs


def _hub(variant: Variant) -> HubSource:
    if variant.hub is not None:
        return variant.hub
    if variant.drawn:
        raise DataError(f"The variant '{variant.name}' is drawn and is not on the Hub.", "Leave source.revision empty.")
    said = f"The class map of '{variant.name}' names no repository."
    raise DataError(said, "Say where the images are: --set source.path=FOLDER.")


def snapshot(variant: Variant, revision: str | None, *, token: str | bool | None) -> Repository:
    """The tables of a variant's repository at the commit that `revision` names now. Raises DataError as `open_hub`."""
    hub = _hub(variant)
    if hub.archive is not None and revision is None:
        said = f"{hub.repo_id} holds '{variant.name}' as an archive ({hub.archive}), which cannot be streamed."
        raise DataError(said, f"To read it, {how_to_unpack(variant)}.")
    if is_offline():
        said = f"'{variant.name}' is read from the Hub ({hub.repo_id}), but HF_HUB_OFFLINE is set."
        raise DataError(said, "Unset HF_HUB_OFFLINE, or give a local copy: --set source.path=FOLDER.")

    def ask() -> Repository:
        if variant.gated:
            # Listing files needs no access, reading them does: check it now rather than at the first image.
            asked(lambda: HfApi(token=token).auth_check(hub.repo_id, repo_type="dataset"))
        wanted = revision or hub.revision
        return open_repository(hub.repo_id, wanted, hub.config, converted=revision is None, token=token)

    patience = Patience(hub.repo_id, revision=revision or hub.revision, page=hub.url, token=token, at_the_door=True)
    return patiently(ask, patience)
