"""What is looked at before a byte is sent: account, repository, version, the Hub's limits, licences and gates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from builders.errors import DataError
from builders.published import ours
from builders.runs import layout
from builders.runs.layout import Manifest
from builders.sources.cards import CARD_FILES
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub import limits
from hfsyn.hub.repo import HubRepo, LocalFile, RemoteFile
from hfsyn.hub.rights import rights_of
from hfsyn.hub.versions import Version, versions_among
from hfsyn.outlook.check import Check
from hfsyn.publishing.contents import What, files_of, folder_sizes
from hfsyn.publishing.reachable import View
from hfsyn.publishing.working import work_on
from hfsyn.recipes.recipe import BUILTIN, is_content_hash
from hfsyn.runs.run import Run

_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMON = frozenset({".gitattributes", ".gitignore", layout.CARD})


@dataclass(frozen=True)
class RepoState:
    """What a repository is at the moment of looking."""

    head: str | None
    """Commit of main; None where there is no repository yet."""
    tree: Mapping[str, RemoteFile]
    card: str | None
    tags: Mapping[str, str]
    branches: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], str] = field(default=lambda path: "", repr=False, compare=False)
    """The text of one of its files."""

    @property
    def is_new(self) -> bool:
        """Whether nothing but what the Hub itself puts there is in it."""
        return set(self.tree) <= {".gitattributes"}

    @cached_property
    def published(self) -> dict[str, Manifest]:
        """The configurations that hfsyn published, as `builders.published.ours` tells them."""
        names = [
            name
            for name in ours.candidates(self.tree)
            if self.tree[f"{layout.config_prefix(name)}{layout.MANIFEST}"].size <= ours.MOST_BYTES
        ]
        found = {name: ours.published(self.read, name) for name in names}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def owned(self, config_name: str) -> set[str]:
        """The files that hfsyn wrote for a configuration; what has only such a name is somebody else's."""
        manifest = self.published.get(config_name)
        return set() if manifest is None else files_of(manifest, config_name) & self.tree.keys()

    def view(self, repo_id: str) -> View:
        """The same as `load_dataset` sees it."""
        texts = {name: self.read(name) for name in CARD_FILES if name in self.tree}
        return View(repo_id, self.tree, texts, self.published)

    def captions_alone(self) -> set[str]:
        """Configurations that are captions without images."""
        return {name for name, manifest in self.published.items() if manifest.raw.get("what") == "captions"}

    def is_of_hfsyn(self) -> bool:
        """Whether hfsyn has published to it."""
        return bool(self.published)


def look_at(repo: HubRepo, commit: str | None = None) -> RepoState:
    """Read what the repository is now (three or four requests, and one for each manifest), or was at a commit.

    Args:
        repo: the repository.
        commit: None is the head of main.
    """
    head = commit or repo.head()
    if head is None:
        return RepoState(None, {}, None, {})
    tree = repo.tree(head)
    card = repo.text(layout.CARD, head) if layout.CARD in tree else None
    tags, branches = ({}, {}) if commit else repo.refs()
    return RepoState(head, tree, card, tags, branches, lambda path: repo.text(path, head))


def full_repo_id(repo_id: str, repo: HubRepo) -> str:
    """``USER/NAME``: with the token's own account where only a name was given."""
    return repo_id if "/" in repo_id else f"{repo.whoami()['name']}/{repo_id}"


def check_names(repo_id: str, config_name: str) -> None:
    """Refuse what cannot be a repository or a configuration.

    Raises:
        HfsynError: with exit code 2.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HfsynError(
            f"{repo_id!r} is no repository's name.",
            "It looks like USER/NAME, of letters, digits, dot, dash and underscore.",
        ) from None
    if not _CONFIG.fullmatch(config_name) or config_name in layout.KNOWN:
        raise HfsynError(
            f"--config-name {config_name!r} cannot be the name of a configuration.",
            f"Letters, digits, dot, dash and underscore can; taken are {', '.join(sorted(layout.KNOWN))}.",
        )


def account_checks(repo: HubRepo, state: RepoState, *, private: bool | None) -> Iterator[Check]:
    """Whether this token may write there."""
    who = repo.whoami()
    user = str(who.get("name"))
    owner = repo.repo_id.partition("/")[0]
    rights = rights_of(who, owner)
    login = "Log in with a token that may write: hf auth login"
    if state.head is not None:
        known = _leave(repo, f"write to {repo.repo_id}", repo.repo_id, "dataset", write=True)
        if known is False or (known is None and not rights.write):
            yield Check("failed", f"The token of {user} may not write to {repo.repo_id}.", f"{login}.")
        elif known is None:
            yield Check("warning", f"Whether {user} may write to {repo.repo_id} could not be asked: {_UNASKED}.")
        else:
            yield Check("ok", f"{user} may write to {repo.repo_id}.")
        return
    owners = {user, *(str(org.get("name")) for org in who.get("orgs") or ())}
    if owner not in owners:
        yield Check(
            "failed",
            f"{user} cannot make {repo.repo_id}: {owner} is neither this account nor one of its organisations.",
            f"It can be under: {', '.join(sorted(owners))}.",
        )
    elif not rights.write:
        yield Check("failed", f"The token of {user} may only read ({rights.role}).", f"{login}.")
    else:
        yield Check("ok", f"{user} may write; {repo.repo_id} will be made{' (private)' if private else ''}.")


def repo_checks(
    state: RepoState, repo_id: str, config_name: str, what: What, *, into: bool, files: Mapping[str, LocalFile]
) -> Iterator[Check]:
    """Whether the repository is absent, empty or ours, and can be loaded from afterwards."""
    if state.head is None or state.is_new:
        yield Check("ok", f"{repo_id} is new.")
    elif state.is_of_hfsyn() or into:
        mine = state.owned(config_name)
        strange = [
            p for p, file in files.items() if p in state.tree and p not in mine and not file.is_at(state.tree[p])
        ]
        if strange:
            yield Check(
                "failed", f"{repo_id} has files of others in the way: {strange[0]}.", "Name another configuration."
            )
        yield Check(
            "ok", f"{repo_id} holds {len(state.tree)} files" + ("" if state.is_of_hfsyn() else " (--into)") + "."
        )
    else:
        others = sorted(set(state.tree) - _COMMON)
        shown = ", ".join(others[:3] or [layout.CARD])
        yield Check(
            "failed",
            f"{repo_id} holds something else: {shown}" + (f" and {len(others) - 3} more." if others[3:] else "."),
            "Name another repository, or add --into to publish beside what is there.",
        )
    script = f"{repo_id.rpartition('/')[2]}.py"
    if script in state.tree:
        yield Check(
            "failed",
            f"{repo_id} holds {script}: load_dataset would take it for a loading script and fail.",
            f"Remove it: hf repos delete-files {repo_id} {script} --repo-type dataset",
        )
    prefix = layout.config_prefix(config_name)
    if what == "data" and config_name in state.captions_alone():
        yield Check(
            "failed",
            f"The configuration {config_name} of {repo_id} holds captions alone.",
            "Publish the images under another: --config-name NAME",
        )
    if what == "captions" and any(path.startswith(f"{prefix}{layout.DATA}/") for path in state.tree):
        yield Check(
            "failed",
            f"The configuration {config_name} of {repo_id} holds images.",
            "Name another: --config-name blip-captions",
        )


def default_checks(state: RepoState, repo_id: str, config_name: str, *, make_default: bool) -> Iterator[Check]:
    """Whether the configuration can have the place among the others that it would take.

    `load_dataset` takes one named ``default`` where none is asked for, and refuses a card that says another.
    """
    try:
        card = state.view(repo_id).card
    except DataError as error:
        if error.code == ExitCode.PARTIAL:
            raise
        yield Check("failed", error.message, error.hint)
        return
    others = [name for name in card.configs if name != config_name]
    if config_name == layout.DEFAULT_CONFIG and card.default in others and not make_default:
        yield Check(
            "failed",
            f"load_dataset('{repo_id}') gives the configuration {card.default}; one named 'default' takes its place.",
            "Let it: --set-default. Or publish under another name: --config-name NAME.",
        )
    if make_default and config_name != layout.DEFAULT_CONFIG and layout.DEFAULT_CONFIG in others:
        yield Check(
            "failed",
            f"{config_name!r} cannot be the default of {repo_id} beside a configuration named 'default', which "
            "load_dataset takes.",
            "Leave --set-default out.",
        )


def work_checks(repo: HubRepo, state: RepoState, config_name: str, files: Mapping[str, LocalFile]) -> Iterator[Check]:
    """Whether the branch of unfinished work is free, or of the same recipe."""
    if state.head is None or (work := work_on(repo, config_name)).is_of(files):
        return
    yield Check(
        "failed",
        f"The branch {work.branch} of {repo.repo_id} holds unfinished work of another recipe.",
        f"Finish that, or remove it: hf repos branch delete {repo.repo_id} {work.branch} --repo-type dataset",
    )


def pull_checks(repo: HubRepo, commits: int) -> Iterator[Check]:
    """Whether the token may open the pull request that so many commits need."""
    if commits > 1 and not rights_of(repo.whoami(), repo.repo_id.partition("/")[0]).pulls:
        yield Check(
            "warning",
            f"So many files take {commits} commits and a pull request, for which this token has no right.",
            "Give it the right to discussions and pull requests of the repository.",
        )


def version_checks(state: RepoState, version: Version, repo_id: str) -> Iterator[Check]:
    """Whether the version is free, and whether it is the next one."""
    known = versions_among(state.tags)
    if version in known:
        yield Check(
            "failed",
            f"{repo_id} has a version {version} with other contents.",
            f"A version never changes. Publish the next one, for instance --version "
            f"{version.major}.{version.minor + 1}.0",
            ExitCode.USAGE,
        )
    elif known and version < known[-1]:
        yield Check("warning", f"Version {version} comes after {known[-1]}, which is newer by its number.")
    else:
        yield Check("ok", f"Version {version} is free" + (f"; the newest is {known[-1]}." if known else "."))


def limit_checks(state: RepoState, files: Mapping[str, LocalFile], config_name: str) -> Iterator[Check]:
    """Whether the repository stays inside the Hub's limits."""
    kept = set(state.tree) - state.owned(config_name)
    after = {*files, *kept, layout.CARD}
    fullest, entries = folder_sizes(dict.fromkeys(after)).most_common(1)[0]
    largest = max(files, key=lambda path: files[path].size)
    size = files[largest].size
    bigger = "Build with larger shards: --set store.shard_rows=N"
    if entries > limits.MOST_ENTRIES:
        yield Check(
            "failed",
            f"The folder {fullest or '/'} would have {entries} entries; the Hub takes {limits.MOST_ENTRIES}.",
            bigger,
        )
    if len(after) > limits.MOST_FILES:
        yield Check("failed", f"There would be {len(after)} files; the Hub takes {limits.MOST_FILES}.", bigger)
    if size > limits.LARGEST_FILE:
        yield Check(
            "failed",
            f"{largest} has {size / 1e9:.0f} GB; the Hub takes {limits.LARGEST_FILE / 1e9:.0f}.",
            "Build with fewer store.shard_rows.",
        )
    elif size > limits.LARGEST_SHARD:
        yield Check("warning", f"{largest} has {size / 2**20:.0f} MB; the Dataset Viewer likes 500 at most.")
    yield Check("ok", f"{len(after)} files, at most {entries} in a folder, the largest {size / 1e6:.1f} MB.")


def terms_checks(run: Run, repo: HubRepo) -> Iterator[Check]:
    """Whether licences and gates of the real images and of the models are known, and open to this account."""
    from builders.variants import get_variant
    from hfsyn.cards.card import MODEL_LICENCES

    recipe = run.recipe
    variant = get_variant(recipe.source.variant)
    if variant.gated and variant.hub is not None and recipe.source.path is None:
        yield _gate(repo, variant.hub.repo_id, "dataset", f"the source {variant.hub.repo_id}")
    yield Check("ok", f"Source {variant.name}: {variant.licence}.")
    for part in (recipe.caption, recipe.generate):
        if part is None:
            continue
        if is_content_hash(part.revision):
            if part.model != BUILTIN:
                yield Check(
                    "warning",
                    f"The model {part.model} is a local folder: others cannot make these images again.",
                    "Publish it (hf upload) and name it by its id.",
                )
            continue
        if part.model in MODEL_LICENCES:
            yield Check("ok", f"Model {part.model}: {MODEL_LICENCES[part.model]}.")
            continue
        yield _model_terms(repo, part.model)
    lora = recipe.generate.lora
    if lora is not None and is_content_hash(recipe.generate.lora_revision):
        yield Check(
            "warning",
            f"The LoRA {lora} is a local file: others cannot make these images again.",
            "Publish it (hf upload) and name it by its id.",
        )
    elif lora is not None:
        yield _model_terms(repo, lora)


def _gate(repo: HubRepo, repo_id: str, repo_type: str, what: str) -> Check:
    """Whether this account has access to a gated repository."""
    from builders.hub.answers import page_of

    known = _leave(repo, f"read {repo_id}", repo_id, repo_type)
    if known is None:
        return Check("warning", f"Whether this account has access to {what} could not be asked: {_UNASKED}.")
    if not known:
        return Check(
            "failed",
            f"This account has no access to {what}, whose terms bind what is made from it.",
            f"Accept them at {page_of(repo_id, repo_type)}, then run the same command again.",
        )
    return Check("ok", f"This account has access to {what}.")


_UNASKED = "this server does not know /auth-check"


def _leave(repo: HubRepo, doing: str, repo_id: str, repo_type: str, **how: bool) -> bool | None:
    """Whether this account may; None where the server cannot be asked."""
    from builders.hub.answers import asked

    try:
        return repo.call(doing, asked, lambda: repo.api.auth_check(repo_id, repo_type=repo_type, **how)) or None
    except HfsynError as error:
        if error.code != ExitCode.PREFLIGHT:
            raise
        return False


def _model_terms(repo: HubRepo, model: str) -> Check:
    try:
        info = repo.call(f"read {model}", repo.api.model_info, model)
    except HfsynError as error:
        if error.code != ExitCode.PREFLIGHT:
            raise
        return Check("warning", f"The licence of the model {model} is not known: it cannot be read.")
    if info.gated:
        return _gate(repo, model, "model", f"the model {model}")
    licence = (info.card_data or {}).get("license")
    return Check("ok" if licence else "warning", f"Model {model}: {licence or 'it states no licence'}.")
