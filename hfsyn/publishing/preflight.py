"""What is checked before a byte is sent: account, repository, version, the Hub's limits, licences and gates."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from builders.errors import DataError, and_more, plural
from builders.hub import page_of
from builders.runs import layout
from builders.variants import get_variant
from hfsyn.cards.card import MODEL_LICENCES
from hfsyn.cards.facts import CONFIG_NAME, What
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import LARGEST_FILE, LARGEST_SHARD, MOST_ENTRIES, MOST_FILES, HubRepo, LocalFile
from hfsyn.hub.rights import rights_of
from hfsyn.hub.versions import Version, versions_among
from hfsyn.outlook.doctor import Check
from hfsyn.publishing.benchmark import EVAL
from hfsyn.publishing.job import Job
from hfsyn.publishing.repository import RepoState
from hfsyn.publishing.working import work_on
from hfsyn.recipes.recipe import BUILTIN, is_content_hash
from hfsyn.runs.run import Run

_COMMON = frozenset({".gitattributes", ".gitignore", EVAL, layout.CARD})
_UNASKED = "this server does not know /auth-check"


def check_names(repo_id: str, config_name: str) -> None:
    """Refuse what cannot be the name of a repository or a configuration (exit code 2)."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        hint = "It looks like USER/NAME, of letters, digits, dot, dash and underscore."
        raise HfsynError(f"{repo_id!r} is not the name of a repository.", hint) from None
    if not CONFIG_NAME.fullmatch(config_name) or config_name in layout.KNOWN:
        raise HfsynError(
            f"--config-name {config_name!r} cannot be the name of a configuration.",
            f"Letters, digits, dot, dash and underscore can; taken are {', '.join(sorted(layout.KNOWN))}.",
        )


def refuse(checks: Iterable[Check]) -> None:
    """Raise the first check that failed, if any."""
    for check in checks:
        if check.state == "failed":
            raise HfsynError(check.text, check.hint, code=check.code)


def target_checks(job: Job, state: RepoState) -> Iterator[Check]:
    """Whether account, repository, version and configuration are free for what is published; see `publish`."""
    yield _account(job.repo, state, private=job.private)
    yield from repo_checks(state, job.config_name, job.what, into=job.into, files=job.files)
    yield _version(state, job.version)
    yield from _default(state, job.config_name, make_default=job.make_default)


def _account(repo: HubRepo, state: RepoState, *, private: bool | None) -> Check:
    who = repo.account
    user, repo_id = str(who.get("name")), repo.repo_id
    owner = repo_id.partition("/")[0]
    rights = rights_of(who, owner)
    login = "Log in with a token that can write: hf auth login."
    if state.head is not None:
        known = repo.may(f"write to {repo_id}", repo_id, "dataset", write=True)
        if known is False or (known is None and not rights.write):
            return Check("failed", f"The token of {user} cannot write to {repo_id}.", login)
        if known is None:
            return Check("warning", f"Whether {user} can write to {repo_id} could not be asked: {_UNASKED}.")
        return Check("ok", f"{user} can write to {repo_id}.")
    owners = {user, *(str(org.get("name")) for org in who.get("orgs") or ())}
    if owner not in owners:
        text = f"{user} cannot create {repo_id}: {owner} is neither this account nor one of its organisations."
        return Check("failed", text, f"It can be under: {', '.join(sorted(owners))}.")
    if not rights.write:
        return Check("failed", f"The token of {user} can only read ({rights.role}).", login)
    return Check("ok", f"{user} can write; {repo_id} will be created{' (private)' if private else ''}.")


def repo_checks(
    state: RepoState, config_name: str, what: What, *, into: bool, files: Mapping[str, LocalFile]
) -> Iterator[Check]:
    """Whether the repository is absent, empty or ours, and can be loaded from afterwards."""
    repo_id, tree = state.repo_id, state.tree
    if set(tree) <= {".gitattributes"}:  # which the Hub itself puts there
        yield Check("ok", f"{repo_id} is new.")
    elif state.published or into:
        mine = state.owned(config_name)
        in_the_way = [p for p, file in files.items() if p in tree and p not in mine and not file.is_at(tree[p])]
        if in_the_way:
            text = f"{repo_id} has files of others in the way: {in_the_way[0]}."
            yield Check("failed", text, "Name another configuration.")
        yield Check("ok", f"{repo_id} holds {plural(len(tree), 'file')}{'' if state.published else ' (--into)'}.")
    else:
        others = sorted(set(tree) - _COMMON)
        text = f"{repo_id} holds something else: {', '.join(others[:3] or [layout.CARD])}{and_more(len(others), 3)}."
        yield Check("failed", text, "Name another repository, or add --into to publish beside what is there.")
    script = f"{repo_id.rpartition('/')[2]}.py"
    if script in tree:
        text = f"{repo_id} holds {script}: load_dataset would take it for a loading script and fail."
        yield Check("failed", text, f"Remove it: hf repos delete-files {repo_id} {script} --repo-type dataset")
    there = state.published.get(config_name)
    prefix = layout.config_prefix(config_name)
    if what == "data" and there is not None and there.raw.get("what") == "captions":
        text = f"The configuration {config_name} of {repo_id} holds captions alone."
        yield Check("failed", text, "Publish the images under another: --config-name NAME")
    if what == "captions" and any(path.startswith(f"{prefix}{layout.DATA}/") for path in tree):
        text = f"The configuration {config_name} of {repo_id} holds images."
        yield Check("failed", text, "Name another: --config-name blip-captions")


def _version(state: RepoState, version: Version) -> Check:
    known = versions_among(state.tags)
    if version in known:
        following = f"{version.major}.{version.minor + 1}.0"
        hint = f"A version never changes. Publish the next one, for instance --version {following}"
        return Check("failed", f"{state.repo_id} has a version {version} with other contents.", hint, ExitCode.USAGE)
    if known and version < known[-1]:
        return Check("warning", f"Version {version} comes after {known[-1]}, which is newer by its number.")
    return Check("ok", f"Version {version} is free" + (f"; the newest is {known[-1]}." if known else "."))


def _default(state: RepoState, config_name: str, *, make_default: bool) -> Iterator[Check]:
    """Whether the configuration can be the default one, or leave it to another, as it would.

    `load_dataset` takes one named ``default`` if none is asked for, and refuses a card that says another.
    """
    try:
        card = state.card
    except DataError as error:
        if error.code == ExitCode.PARTIAL:
            raise
        yield Check("failed", error.message, error.hint)
        return
    default, repo_id = layout.DEFAULT_CONFIG, state.repo_id
    others = [name for name in card.configs if name != config_name]
    if config_name == default and card.default in others and not make_default:
        text = f"load_dataset('{repo_id}') gives the configuration {card.default}; one named 'default' takes its place."
        yield Check("failed", text, "Let it: --set-default. Or publish under another name: --config-name NAME.")
    if make_default and config_name != default and default in others:
        text = f"{config_name!r} cannot be the default of {repo_id}: load_dataset takes the one named 'default'."
        yield Check("failed", text, "Leave --set-default out.")


def work_checks(repo: HubRepo, state: RepoState, config_name: str, files: Mapping[str, LocalFile]) -> Iterator[Check]:
    """Whether the branch of unfinished work is free, or of the same recipe."""
    if state.head is not None and not (work := work_on(repo, config_name)).is_of(files):
        text = f"The branch {work.branch} of {repo.repo_id} holds unfinished work of another recipe."
        way_out = f"hf repos branch delete {repo.repo_id} {work.branch} --repo-type dataset"
        yield Check("failed", text, f"Finish that, or remove it: {way_out}")


def pull_checks(repo: HubRepo, commits: int) -> Iterator[Check]:
    """Whether the token may open the pull request that several commits need."""
    if commits > 1 and not rights_of(repo.account, repo.repo_id.partition("/")[0]).pulls:
        text = f"That many files take {commits} commits and a pull request, for which this token has no right."
        yield Check("warning", text, "Give it the right to discussions and pull requests of the repository.")


def limit_checks(state: RepoState, files: Mapping[str, LocalFile], config_name: str) -> Iterator[Check]:
    """Whether the repository stays inside the Hub's limits."""
    after = {*files, *(set(state.tree) - state.owned(config_name)), layout.CARD}
    fullest, entries = Counter(path.rpartition("/")[0] for path in after).most_common(1)[0]
    largest = max(files, key=lambda path: files[path].size)
    size = files[largest].size
    bigger = "Build with larger shards: --set store.shard_rows=N"
    if entries > MOST_ENTRIES:
        text = f"The folder {fullest or '/'} would have {entries} entries; the Hub takes {MOST_ENTRIES}."
        yield Check("failed", text, bigger)
    if len(after) > MOST_FILES:
        yield Check("failed", f"There would be {len(after)} files; the Hub takes {MOST_FILES}.", bigger)
    if size > LARGEST_FILE:
        text = f"{largest} has {size / 1e9:.0f} GB; the Hub takes {LARGEST_FILE / 1e9:.0f}."
        yield Check("failed", text, "Build with fewer store.shard_rows.")
    elif size > LARGEST_SHARD:
        yield Check("warning", f"{largest} has {size / 2**20:.0f} MB; the Dataset Viewer likes 500 at most.")
    yield Check("ok", f"{plural(len(after), 'file')}, at most {entries} in a folder, the largest {size / 1e6:.1f} MB.")


def terms_checks(run: Run, repo: HubRepo) -> Iterator[Check]:
    """Whether licences and gates of the real images and of the models are known, and open to this account."""
    recipe, draw = run.recipe, run.recipe.generate
    variant = get_variant(recipe.source.variant)
    if variant.gated and variant.hub is not None and recipe.source.path is None:
        yield _gate(repo, variant.hub.repo_id, "dataset", f"the source {variant.hub.repo_id}")
    yield Check("ok", f"Source {variant.name}: {variant.licence}.")
    models = [("model", "folder", part.model, part.revision) for part in (recipe.caption, draw) if part is not None]
    if draw.lora is not None:
        models.append(("LoRA", "file", draw.lora, draw.lora_revision))
    if Path(steers := draw.entropy_classifier or "").is_absolute():
        models.append(("classifier", "folder", steers, draw.entropy_revision))
    for kind, place, name, revision in models:
        if not is_content_hash(revision):
            yield _model_terms(repo, name)
        elif name != BUILTIN:
            text = f"The {kind} {name} is a local {place}: others cannot make these images again."
            yield Check("warning", text, "Publish it (hf upload) and name it by its id.")


def _gate(repo: HubRepo, repo_id: str, repo_type: str, what: str) -> Check:
    known = repo.may(f"read {repo_id}", repo_id, repo_type)
    if known is None:
        return Check("warning", f"Whether this account has access to {what} could not be asked: {_UNASKED}.")
    if not known:
        text = f"This account has no access to {what}, whose terms bind what is made from it."
        return Check("failed", text, f"Accept them at {page_of(repo_id, repo_type)}, then run the same command again.")
    return Check("ok", f"This account has access to {what}.")


def _model_terms(repo: HubRepo, model: str) -> Check:
    if model in MODEL_LICENCES:
        return Check("ok", f"Model {model}: {MODEL_LICENCES[model]}.")
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
