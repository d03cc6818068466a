"""A repository as it is or will be, and what `load_dataset` finds there: our rows, and what others put there.

Asked of a repository as it will be, before anything is sent, and of the very commit that is to become a version.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from builders.errors import DataError, and_more
from builders.published import MOST_BYTES, candidates, our_manifest
from builders.runs import layout
from builders.runs.layout import Manifest
from builders.sources.cards import CARD_FILES, Card, files_loaded, is_table, read_card
from builders.yaml import front_matter
from hfsyn.cards.front_matter import FrontMatter
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo, LocalFile, RemoteFile
from hfsyn.publishing.contents import files_of

OTHERS = "others"  # the configuration that keeps the other files reachable if a card had no `configs` before ours
_MOST_LISTED = 200  # files of others that a card lists one by one

Problem = tuple[str, str]  # what is wrong, and the way out


@dataclass(frozen=True)
class RepoState:
    """A repository at the moment of looking, or as a commit would leave it."""

    repo_id: str
    head: str | None  # commit of main; None if the repository does not exist yet
    tree: Mapping[str, RemoteFile]
    tags: Mapping[str, str]
    read: Callable[[str], str]  # reads one of its files as text

    def changed(self, add: Mapping[str, LocalFile], delete: Collection[str]) -> RepoState:
        """The same after a commit."""
        tree = {path: file for path, file in self.tree.items() if path not in delete}
        tree |= {path: RemoteFile(file.size, file.sha256, "") for path, file in add.items()}
        return replace(self, tree=tree, read=lambda path: add[path].read().decode() if path in add else self.read(path))

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of the card and of other files that `load_dataset` takes for one."""
        return {name: self.read(name) for name in CARD_FILES if name in self.tree}

    @cached_property
    def card(self) -> Card:
        """What the card says about configurations. Raises DataError if it cannot be read."""
        return read_card(self.texts, self.repo_id)

    @cached_property
    def published(self) -> dict[str, Manifest]:
        """The configurations that hfsyn published; see `builders.published`."""
        names = [
            name
            for name in candidates(self.tree)
            if self.tree[f"{layout.config_prefix(name)}{layout.MANIFEST}"].size <= MOST_BYTES
        ]
        found = {name: our_manifest(self.read, name) for name in names}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def owned(self, config_name: str) -> set[str]:
        """The files that hfsyn wrote for a configuration; other files may have such names too."""
        manifest = self.published.get(config_name)
        return set() if manifest is None else files_of(manifest, config_name) & self.tree.keys()

    def has(self, name: str) -> bool:
        """Whether there is such a file; files outside the repository are assumed to exist."""
        return name in self.tree or "://" in name

    def loaded(self, config: str | None) -> dict[str, list[str]]:
        """Split -> the files that ``load_dataset`` takes for a configuration; empty for one that the card lacks."""
        if config is not None and config not in self.card.configs:
            return {}
        return files_loaded(self.card, config, self.tree, self.repo_id)

    def sizes(self, config: str) -> dict[str, int] | None:
        """Split -> rows as the card states them, which `load_dataset` compares; None if it states none."""
        from datasets.info import DatasetInfosDict
        from huggingface_hub import DatasetCardData

        fields = front_matter(self.texts.get(layout.CARD, ""), layout.CARD)
        info = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**fields)).get(config)
        return {split.name: split.num_examples for split in info.splits.values()} if info and info.splits else None


def look_at(repo: HubRepo, commit: str | None = None) -> RepoState:
    """What the repository is now, or was at a commit; its files are read when they are needed."""
    head = commit or repo.head()
    if head is None:
        return RepoState(repo.repo_id, None, {}, {}, lambda path: "")
    tags = {} if commit else repo.tags()
    return RepoState(repo.repo_id, head, repo.tree(head), tags, lambda path: repo.text(path, head))


def unlike_manifests(state: RepoState) -> Iterator[Problem]:
    """Where ``load_dataset`` would give other rows than a manifest of ours says, or none at all."""
    try:
        configs = state.card.configs
        loaded = {name: state.loaded(name) for name in configs}
    except DataError as error:
        if error.code != ExitCode.USAGE:  # the Hub refuses or does not answer, which says nothing about the card
            raise
        yield error.message, error.hint
        return
    yield from _first_read(state, loaded)
    for name, manifest in state.published.items():
        if name in configs:  # one that was taken out of the card is not offered
            yield from _unlike(state, name, manifest, loaded[name])


def _first_read(state: RepoState, loaded: Mapping[str, Mapping[str, list[str]]]) -> Iterator[Problem]:
    """``load_dataset`` reads every configuration in the format that it finds in the first one of the card."""
    first = next(iter(loaded), None)
    if first is None:
        return
    out = f"Correct its entry in the README.md of {state.repo_id}, or publish into a repository of its own."
    for split, names in loaded[first].items():
        if not names or (absent := [name for name in names if not state.has(name)]):
            what = f"names {absent[0]}, which is not there" if names else f"has no files for its split {split}"
            yield f"The first configuration of the card, {first}, {what}: load_dataset could not load any other.", out
        elif not is_table(names[0]) or _ending(names) != ".parquet":
            yield (
                f"The first configuration of the card, {first}, is of {_ending(names)} files ({names[0]}), and "
                "load_dataset reads all others in the same format: it could not read Parquet.",
                out,
            )


def _ending(names: list[str]) -> str:
    return Counter(posixpath.splitext(name)[1].lower() for name in names).most_common(1)[0][0]


def _unlike(state: RepoState, name: str, manifest: Manifest, loaded: Mapping[str, list[str]]) -> Iterator[Problem]:
    prefix = layout.config_prefix(name)
    wanted = {f"{prefix}{entry.file}": entry for entry in manifest.shards}
    found = Counter(loaded.get(manifest.split, []))
    at = f"the split {manifest.split} of the configuration {name}"
    again = f"Publish {name} again, or take it out of the repository and its card."
    if extra := [path for path, times in found.items() if path not in wanted or times > 1]:
        yield (
            f"The card gives {_first(extra)} to {at}, and hfsyn did not put it there.",
            f"Move it out of {prefix}{layout.DATA}/, or into a configuration of its own: "
            f"hf repos delete-files {state.repo_id} {extra[0]} --repo-type dataset",
        )
    if missing := [path for path in wanted if path not in found or path not in state.tree]:
        yield f"The card does not give {_first(missing)} to {at}.", again
    changed = [
        path
        for path, entry in wanted.items()
        if (file := state.tree.get(path)) and not (file.size == entry.bytes and file.sha256 in (None, entry.sha256))
    ]
    if changed:
        yield f"{_first(changed)} is not what the manifest of {name} says.", again
    for split, names in loaded.items():
        if split != manifest.split and (bad := [one for one in names if not is_table(one) or not state.has(one)]):
            yield (
                f"The split {split} of the configuration {name} is {bad[0]}, and load_dataset could not load {name}.",
                "Correct it in README.md, or give it a repository of its own.",
            )
    sizes = state.sizes(name)
    if sizes is not None and (sizes.keys() != loaded.keys() or sizes.get(manifest.split) != manifest.rows):
        yield (
            f"`dataset_info` in the card states splits or rows of {name} that do not exist: load_dataset refuses it.",
            f"Remove the entry of {name} under dataset_info in README.md.",
        )


def no_longer_reached(before: RepoState, after: RepoState, owned: set[str]) -> Iterator[Problem]:
    """What can be loaded now and could not be afterwards: splits, files and configurations of others.

    `owned` are the files that hfsyn wrote for the configuration that is published.
    """
    try:
        configs: list[str | None] = list(before.card.configs)
    except DataError:
        return  # `unlike_manifests` reports it
    scores = {layout.scores_config(name) for name in before.published}
    for config in configs:
        manifest = before.published.get(config or "")
        now = after.loaded(config)
        for split, names in before.loaded(config).items():
            there = now.get(split, [])
            lost = [name for name in names if name in before.tree and name not in owned and name not in there]
            # Not ours, though it may list our files; but for scores, which a later version need not have.
            if (manifest is None or split != manifest.split) and not (config in scores and owned >= set(names)):
                lost += [name for name in there or names if name in before.tree and name not in after.tree]
            if lost:
                yield (
                    f"The card gives {_first(lost)} to the split {split} of the configuration {config}, where it could "
                    "no longer be loaded.",
                    "Give it a split or a configuration of its own in README.md, or choose another --config-name.",
                )


def with_others(state: RepoState, config_name: str) -> str | None:
    """The card that is there; if it has no `configs`, with one for the files that `load_dataset` found without it.

    Raises HfsynError if these are too many to list.
    """
    from datasets.packaged_modules import _EXTENSION_TO_MODULE

    card = state.texts.get(layout.CARD)
    if state.card.configs:
        return card
    owned = {path for name in state.published for path in state.owned(name)}
    found = {split: [n for n in names if n not in owned] for split, names in state.loaded(None).items()}
    theirs = [name for names in found.values() for name in names]
    if not theirs or _EXTENSION_TO_MODULE[_ending(theirs)][0] == "text":  # notes and programs
        return card
    if len(theirs) > _MOST_LISTED:
        raise HfsynError(
            f"{state.repo_id} has {len(theirs)} data files and no `configs` in its card: with an entry for hfsyn's "
            "configuration alone they could no longer be loaded.",
            "Write `configs` for them into its README.md, or publish into a repository of its own.",
        )
    matter = FrontMatter(card or "")
    entry = {
        "config_name": OTHERS if config_name != OTHERS else f"{OTHERS}-before",
        "data_files": [{"split": split, "path": names} for split, names in found.items() if names],
    }
    return matter.updated({"configs": [entry]}) + matter.body


def _first(names: list[str]) -> str:
    return f"{names[0]}{and_more(len(names), 1)}"
