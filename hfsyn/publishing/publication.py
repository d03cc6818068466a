"""Publishing a run as a version: the bytes, then one change of main, then a reading back, then the tag.

What makes it hold:

- Before a byte is sent everything that can be wrong is looked at (`hfsyn.publishing.preflight`), and so is the
  repository as it will be: what the card gives to `load_dataset` there is what the manifests say, and what people put
  there stays in reach (`hfsyn.publishing.reachable`).
- Contents are named by their hashes. A publication is the difference between what the run has and what the repository
  has, so that running the same command again continues, and sends nothing that is there.
- Contents are sent ahead. Then main changes at one moment, files, manifest and card together
  (`hfsyn.publishing.committing`): nobody who reads main sees half of a version, whenever a publication stops.
- The change names the commit that it was made for. Where somebody else was faster it is refused by the Hub, the
  repository is looked at again, and the difference is made again.
- The tag is set on the very commit that was read back and compared. Until it stands nobody who loads by version sees
  anything; afterwards it never moves.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from builders.hub.answers import HeadMovedError
from builders.runs import layout
from builders.runs.layout import Manifest, load_manifest
from hfsyn.cards.card import CardFacts, ChangelogEntry, changelog_of, example_rows, facts, render_card
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub import limits
from hfsyn.hub.repo import HubRepo, LocalFile, taken
from hfsyn.hub.versions import Version, parse_version
from hfsyn.outlook.check import Check
from hfsyn.progress import Progress, teller
from hfsyn.publishing.changes import change_since
from hfsyn.publishing.committing import Change, change_main
from hfsyn.publishing.contents import What, contents
from hfsyn.publishing.outcomes import Publication
from hfsyn.publishing.preflight import (
    RepoState,
    account_checks,
    check_names,
    default_checks,
    full_repo_id,
    limit_checks,
    look_at,
    pull_checks,
    repo_checks,
    terms_checks,
    version_checks,
)
from hfsyn.publishing.pulls import Pulls
from hfsyn.publishing.reachable import OTHERS, View, no_longer_reached, unlike_manifests, with_others
from hfsyn.publishing.working import drop_work
from hfsyn.runs.finish import manifest_of, software_of
from hfsyn.runs.run import Run, load_run

ROUNDS = 10
"""How often a publication is planned again because somebody else committed meanwhile."""


@dataclass(frozen=True)
class _Job:
    """One publication: what goes where."""

    run: Run
    repo: HubRepo
    version: Version
    config_name: str
    what: What
    files: Mapping[str, LocalFile]
    make_default: bool
    licence: str | None
    today: str
    say: Callable[[str], None]
    quiet: bool
    sentences: dict[tuple[str, ...], str]
    """The changelog's sentence by the versions that there are: it costs a reading of the one before."""
    is_late: bool = False
    """Whether others committed since the preflight: what its flags could have said is settled without them."""

    @cached_property
    def manifest(self) -> Manifest:
        """What is published states of itself."""
        path = f"{layout.config_prefix(self.config_name)}{layout.MANIFEST}"
        content = self.files[path].content
        raw = content if isinstance(content, bytes) else content.read_bytes()
        return load_manifest(raw.decode(), path)


def publish(
    run: Run | str | Path,
    repo_id: str,
    version: str,
    *,
    config_name: str = layout.DEFAULT_CONFIG,
    what: What = "data",
    private: bool | None = None,
    into: bool = False,
    make_default: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    token: str | bool | None = None,
    quiet: bool = False,
) -> Publication:
    """Publish a finished run as one version of a dataset on the Hub. Running it again continues.

    Args:
        run: the run folder.
        repo_id: ``USER/NAME``, or a name under the token's own account.
        version: ``MAJOR.MINOR.PATCH``; the tag is ``vMAJOR.MINOR.PATCH``.
        config_name: several configurations may live in one repository, each published on its own.
        what: ``data``, or ``captions`` alone, keyed by source id.
        private: for a repository that is made now; None is the account's default.
        into: publish beside what a repository of somebody else's making holds.
        make_default: let ``load_dataset(repo_id)`` take this configuration; the first published one is the default
            until then.
        licence: the Hub's name of a licence, for the card; None says what is known of the source's.
        dry_run: look at everything and send nothing.
        token: as everywhere in huggingface_hub; None takes HF_TOKEN or the stored one.
        quiet: no lines on the error stream.

    Raises:
        HfsynError: exit code 2 for a version that is not one or is taken, 3 for what forbids it, 4 where the Hub did
            not answer in time (the same command continues).
    """
    asked = parse_version(version)
    check_names(repo_id, config_name)
    run = run if isinstance(run, Run) else load_run(run)
    say = teller(quiet)
    files = contents(run, config_name, what, quiet=quiet)
    repo = HubRepo(repo_id, token=token, say=say)
    repo.need_token()
    repo = repo.named(full_repo_id(repo_id, repo))
    job = _Job(run, repo, asked, config_name, what, files, make_default, licence, _today(), say, quiet, {})
    state = look_at(repo)
    if (standing := state.tags.get(asked.tag)) is not None and _stands(job, standing):
        _tidy(job)
        return _outcome(job, state, (Check("ok", f"Version {asked} is published."),), standing, "")
    checks = _checks(job, state, private=private, into=into)
    planned = _outcome(job, state, checks, None, _change(job, state))
    if dry_run:
        return planned
    _refuse(checks)
    for check in checks:
        if check.state == "warning":
            say(check.line())
    if state.head is None:
        repo.create(private=private)
    say(f"{repo.repo_id}: {planned.to_send} files to send ({planned.to_send_bytes / 1e6:.1f} MB)")
    with Progress("sending", planned.to_send_bytes, quiet=quiet, unit="bytes") as bar:
        repo.send(_missing(job, state), sent=bar.add)
    commit = bring(job, state)
    say(f"{repo.repo_id}: reading back {commit[:12]}")
    read_back(job, commit)
    repo.tag(asked.tag, commit, f"{run.recipe.name} {asked}")
    _tidy(job)
    return _outcome(job, state, checks, commit, planned.changelog)


def _refuse(checks: Iterable[Check]) -> None:
    for check in checks:
        if check.state == "failed":
            raise HfsynError(check.text, check.hint, code=check.code)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _checks(job: _Job, state: RepoState, *, private: bool | None, into: bool) -> tuple[Check, ...]:
    return (
        *account_checks(job.repo, state, private=private),
        *repo_checks(state, job.repo.repo_id, job.config_name, job.what, into=into, files=job.files),
        *version_checks(state, job.version, job.repo.repo_id),
        *limit_checks(state, job.files, job.config_name),
        *default_checks(state, job.repo.repo_id, job.config_name, make_default=job.make_default),
        *pull_checks(job.repo, limits.commits_for(len(_missing(job, state)) + len(_gone(job, state)))),
        *_outlook(job, state),
        *terms_checks(job.run, job.repo),
    )


def _outlook(job: _Job, state: RepoState) -> tuple[Check, ...]:
    """Whether the card can be written, and what `load_dataset` will find; what people did may stand against both."""
    repo_id = job.repo.repo_id
    try:
        card = _card(job, state)
        gone = _gone(job, state)
        kept = {path: file for path, file in state.tree.items() if path not in gone}
        before = state.view(repo_id)
        manifests = {**state.published, job.config_name: job.manifest}
        after = View(
            repo_id, {**kept, **job.files, layout.CARD: card}, {**before.texts, layout.CARD: _text(card)}, manifests
        )
        problems = [*unlike_manifests(after), *no_longer_reached(before, after, state.owned(job.config_name))]
    except HfsynError as error:
        if error.code == ExitCode.PARTIAL:
            raise
        return (Check("failed", error.message, error.hint, error.code),)
    found = [Check("failed", text, hint) for text, hint in problems]
    new = next((name for name in after.card.configs if name.startswith(OTHERS)), "")
    if new and not before.card.configs:
        found.append(Check("warning", f"What load_dataset found in {repo_id} so far becomes its configuration {new}."))
    return (*found, Check("ok", "The card can be written; what others wrote into it stays."))


def _text(card: LocalFile) -> str:
    return card.content.decode() if isinstance(card.content, bytes) else ""


def _stands(job: _Job, commit: str) -> bool:
    """Whether a commit has this very configuration: nothing else, nothing less."""
    state = look_at(job.repo, commit)
    return all(file.is_at(state.tree.get(path)) for path, file in job.files.items()) and not _gone(job, state)


def _gone(job: _Job, state: RepoState) -> list[str]:
    """Files that hfsyn wrote for this configuration and that the run does not have."""
    return sorted(state.owned(job.config_name) - job.files.keys())


def _missing(job: _Job, state: RepoState) -> dict[str, LocalFile]:
    """Files that the repository lacks, or has with other contents."""
    return {path: file for path, file in job.files.items() if not file.is_at(state.tree.get(path))}


def _outcome(job: _Job, state: RepoState, checks: Sequence[Check], commit: str | None, changelog: str) -> Publication:
    missing, gone = _missing(job, state), _gone(job, state)
    return Publication(
        repo_id=job.repo.repo_id,
        version=job.version,
        config_name=job.config_name,
        commit=commit,
        checks=tuple(checks),
        files=len(job.files),
        bytes=sum(file.size for file in job.files.values()),
        to_send=len(missing),
        to_send_bytes=sum(file.size for file in missing.values()),
        to_remove=tuple(gone),
        commits=limits.commits_for(len(missing) + len(gone)),
        changelog=changelog,
    )


def bring(job: _Job, state: RepoState) -> str:
    """Change main to what the run has; return the commit that has it all.

    Args:
        job: the publication.
        state: as the preflight saw it.

    Raises:
        HfsynError: the version is taken meanwhile (exit code 2), what others committed meanwhile stands against it
            (exit code 3), or others commit all the time (exit code 4). Then nothing of it is on main.
    """
    repo, compare = job.repo, partial(_compare, job)
    if state.head is None:
        state = look_at(repo)
    for _ in range(ROUNDS):
        if state.head is None:
            raise HfsynError(
                f"{repo.repo_id} was removed meanwhile.", "Run the same command again.", code=ExitCode.PARTIAL
            )
        if (standing := state.tags.get(job.version.tag)) is not None:
            if _stands(job, standing):
                return standing
            raise taken(repo.repo_id, job.version.tag, standing)
        change = Change(_missing(job, state), _gone(job, state))
        card = _card(job, state)
        if not change.add and not change.delete and card.is_at(state.tree.get(layout.CARD)):
            return state.head
        try:
            return change_main(
                repo,
                replace(change, add={**change.add, layout.CARD: card}),
                state.head,
                most=limits.FILES_A_COMMIT,
                name=f"{_name(job)} {job.version}",
                message=f"Publish {job.config_name} {job.version}",
                check=compare,
            )
        except HeadMovedError:
            job.say(f"{repo.repo_id}: somebody else committed; looking again")
        job, state = replace(job, is_late=True), look_at(repo)
        _refuse(repo_checks(state, repo.repo_id, job.config_name, job.what, into=True, files=job.files))
        _refuse(_outlook(job, state) if state.head is not None else ())
    raise HfsynError(
        f"Others committed to {repo.repo_id} all the time.",
        "Run the same command again when they are done.",
        code=ExitCode.PARTIAL,
    )


def _name(job: _Job) -> str:
    """How the titles of pull requests for a configuration begin."""
    return f"hfsyn: {job.config_name}"


def _tidy(job: _Job) -> None:
    """Remove what made the version on the way: the branch of its unfinished work, pull requests of earlier tries."""
    try:
        drop_work(job.repo, job.config_name, job.files)
        for pull in Pulls(job.repo).of(f"{_name(job)} "):
            Pulls(job.repo).close(pull)
    except HfsynError as error:  # the version stands
        job.say(f"{error.message} The same command tidies up.")


def card_facts(run: Run, config_name: str, what: What) -> CardFacts:
    """What the card states of a configuration."""
    manifest = manifest_of(run, what)
    size = manifest["bytes"]
    rows = example_rows(run.folder)
    return facts(manifest, software_of(run), config_name=config_name, what=what, rows=rows, download_bytes=size)


def _card(job: _Job, state: RepoState) -> LocalFile:
    text = _change(job, state)
    text = text if job.config_name == layout.DEFAULT_CONFIG else f"{job.config_name}: {text}"
    entry = ChangelogEntry(job.version.tag, job.today, text)
    # The entry that an earlier try wrote keeps its day, so that trying again changes nothing.
    old = [known for known in changelog_of(state.card or "") if known.version == entry.version]
    if old and old[0].text == entry.text:
        entry = old[0]
    view = state.view(job.repo.repo_id)
    ours = {path for name in state.published for path in state.owned(name)}
    existing = with_others(state.card, view, job.config_name, ours)
    card = render_card(
        card_facts(job.run, job.config_name, job.what),
        existing=existing,
        repo_id=job.repo.repo_id,
        version=job.version.tag,
        default_config=_default(job, view, named=existing == state.card),
        changelog=[entry],
        licence=job.licence,
    )
    return LocalFile.made(card)


def _default(job: _Job, view: View, *, named: bool) -> str | None:
    """The configuration that becomes the default; None leaves it as it is, which the preflight may refuse.

    Where others published a configuration since the preflight it is too late for a flag: the one named ``default`` is
    it then, as `load_dataset` wants it. So it is where what is there was not `named` as a configuration before.
    """
    if (job.is_late or not named) and job.config_name == layout.DEFAULT_CONFIG:
        return job.config_name
    if job.is_late and layout.DEFAULT_CONFIG in view.card.configs:
        return None
    return job.config_name if job.make_default else None


def _change(job: _Job, state: RepoState) -> str:
    """The changelog's sentence: against the newest version that has this configuration."""
    known = tuple(sorted(state.tags))
    if known not in job.sentences:
        job.sentences[known] = change_since(job.repo, state.tags, job.version, job.run, job.config_name, job.what)
    return job.sentences[known]


def read_back(job: _Job, commit: str) -> None:
    """Compare what the Hub has at a commit with the run: every file, every footer, and one row as a user reads it.

    Raises:
        HfsynError: it is not the same (exit code 4): nothing is tagged.
    """
    from hfsyn.publishing.reading_back import compare_footers, compare_row

    _compare(job, commit)
    compare_footers(job.repo, commit, job.config_name, job.manifest)
    compare_row(job.repo, commit, job.config_name, job.manifest, job.run.folder)


def _compare(job: _Job, commit: str) -> None:
    """Compare the files of a commit with the run, and what its card gives to `load_dataset` with the manifests.

    Raises:
        HfsynError: they differ (exit code 4).
    """
    repo_id = job.repo.repo_id
    state = look_at(job.repo, commit)
    wrong = [*_missing(job, state), *_gone(job, state)]
    if wrong:
        raise HfsynError(
            f"{repo_id} does not hold what was sent: {wrong[0]}"
            + (f" and {len(wrong) - 1} more." if wrong[1:] else "."),
            "Nothing is tagged. Run the same command again.",
            code=ExitCode.PARTIAL,
        )
    for text, hint in unlike_manifests(state.view(repo_id)):
        raise HfsynError(text, f"Nothing is tagged. {hint} Then run the same command again.", code=ExitCode.PARTIAL)
