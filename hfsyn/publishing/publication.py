"""Publishing a run as a version: data, then the card, then a reading back, then the tag.

What makes it hold:

- Before a byte is sent everything that can be wrong is looked at (`hfsyn.publishing.preflight`).
- Contents are named by their hashes. A publication is the difference between what the run has and what the repository
  has, so that running the same command again continues, and sends nothing that is there.
- Each commit names the commit that it was made for. Where somebody else was faster it is refused by the Hub, the
  repository is looked at again, and the difference is made again.
- The tag is set on the very commit that was read back and compared, and in which every configuration is whole. Until
  it stands nobody who loads by version sees anything; afterwards it never moves.

Files go in commits of at most `FILES_A_COMMIT`. Where one is not enough, the card says so as long as it takes, and the
last commit brings manifest and card and removes what is no longer there.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders import layout
from builders.access import HeadMovedError
from builders.errors import DataError
from builders.layout import load_manifest
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.making.manifest import manifest_of, software_of
from hfsyn.making.runs import Run, load_run
from hfsyn.progress import Progress, teller
from hfsyn.publishing import cards
from hfsyn.publishing.cards import CardFacts, ChangelogEntry, changelog_of, example_rows, facts, render_card
from hfsyn.publishing.contents import What, contents
from hfsyn.publishing.hub import HubRepo, LocalFile, parts_of, taken
from hfsyn.publishing.outcomes import Publication
from hfsyn.publishing.preflight import (
    Check,
    RepoState,
    account_checks,
    check_names,
    full_repo_id,
    half_published,
    limit_checks,
    look_at,
    neighbour_checks,
    repo_checks,
    terms_checks,
    version_checks,
    way_out,
)
from hfsyn.publishing.versions import Version, parse_version, versions_among

FILES_A_COMMIT = 100
"""The Hub recommends 50 to 100 files a commit."""
ROUNDS = 10
"""How often a publication is planned again, in vain, because somebody else committed meanwhile."""
WAIT = 10.0
"""Seconds between two looks at a repository in which another configuration is being published."""


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
        HfsynError: exit code 2 for a version that is none or taken, 3 for what forbids it, 4 where the Hub did not
            answer in time (the same command continues).
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
        return _outcome(job, state, (Check("ok", f"Version {asked} is published."),), standing, "")
    checks = _checks(job, state, private=private, into=into)
    planned = _outcome(job, state, checks, None, _change(job, state))
    if dry_run:
        return planned
    for check in planned.failed:
        raise HfsynError(check.text, check.hint, code=check.code)
    for check in checks:
        if check.state == "warning":
            say(check.line())
    if state.head is None:
        repo.create(private=private)
    say(f"{repo.repo_id}: {planned.to_send} files to send ({planned.to_send_bytes / 1e6:.1f} MB)")
    commit = bring(job)
    say(f"{repo.repo_id}: reading back {commit[:12]}")
    read_back(job, commit)
    repo.tag(asked.tag, commit, f"{run.recipe.name} {asked}")
    return _outcome(job, state, checks, commit, planned.changelog)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _checks(job: _Job, state: RepoState, *, private: bool | None, into: bool) -> tuple[Check, ...]:
    return (
        *account_checks(job.repo, state, private=private),
        *repo_checks(state, job.repo.repo_id, job.config_name, job.what, into=into, files=job.files),
        *version_checks(state, job.version, job.repo.repo_id),
        *limit_checks(state, job.files, job.config_name),
        *neighbour_checks(job.repo, state, job.config_name),
        *_card_checks(job, state),
        *terms_checks(job.run, job.repo),
    )


def _card_checks(job: _Job, state: RepoState) -> Iterator[Check]:
    """Whether the card can be written: what a person made of it, or the default, may stand against it."""
    try:
        _card(job, state)
    except HfsynError as error:
        yield Check("failed", error.message, error.hint, error.code)
        return
    yield Check("ok", "The card can be written; what others wrote into it stays.")


def _stands(job: _Job, commit: str) -> bool:
    """Whether a commit has this very configuration: nothing else, nothing less."""
    state = look_at(job.repo, commit)
    return all(file.is_at(state.tree.get(path)) for path, file in job.files.items()) and not _gone(job, state)


def _gone(job: _Job, state: RepoState) -> list[str]:
    """Files that hfsyn wrote for this configuration and that the run does not have."""
    return sorted(state.owned(job.config_name) - job.files.keys())


def _outcome(job: _Job, state: RepoState, checks: Sequence[Check], commit: str | None, changelog: str) -> Publication:
    missing = {path: file for path, file in job.files.items() if not file.is_at(state.tree.get(path))}
    gone = _gone(job, state)
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
        commits=commits_for(len(missing) + len(gone)),
        changelog=changelog,
    )


def commits_for(files: int) -> int:
    """How many commits so many files take, the card not counted."""
    return max(1, -(-(files - 1) // (FILES_A_COMMIT - 2)))


def bring(job: _Job) -> str:
    """Commit what the repository lacks; return the commit that has it all.

    Raises:
        HfsynError: the version is taken meanwhile (exit code 2), or others commit all the time (exit code 4).
    """
    rounds, fewest = 0, len(job.files) + 1
    hint = "Run the same command again when the other publisher is done."
    reason = f"Others committed to {job.repo.repo_id} all the time"
    while rounds < ROUNDS:
        state = look_at(job.repo)
        if state.head is None:
            raise HfsynError(
                f"{job.repo.repo_id} was removed meanwhile.", "Run the same command again.", code=ExitCode.PARTIAL
            )
        if (standing := state.tags.get(job.version.tag)) is not None:
            if _stands(job, standing):
                return standing
            raise taken(job.repo.repo_id, job.version.tag, standing)
        # Two publishers of many commits each go on in turn: a round that brought something does not count.
        left = sum(not file.is_at(state.tree.get(path)) for path, file in job.files.items())
        rounds, fewest = (0 if left < fewest else rounds + 1), min(left, fewest)
        try:
            commit = _commit_difference(job, state, state.head)
        except HeadMovedError:
            job.say(f"{job.repo.repo_id}: somebody else committed; looking again")
            continue
        if not (half := half_published(state, job.config_name)):
            return commit
        # A version is of the whole repository: one that is taken now would hold a half of these for ever.
        reason = f"The configuration {half[0]} of {job.repo.repo_id} is not published whole yet"
        hint = f"{way_out(job.repo.repo_id, half[0])}. Then run the same command again."
        job.say(f"{reason}; waiting")
        job.repo.pause(WAIT)
    raise HfsynError(f"{reason}.", hint, code=ExitCode.PARTIAL)


def _commit_difference(job: _Job, state: RepoState, head: str) -> str:
    card = LocalFile.made(_card(job, state))
    add = {path: file for path, file in job.files.items() if not file.is_at(state.tree.get(path))}
    gone = _gone(job, state)
    if not add and not gone and card.is_at(state.tree.get(layout.CARD)):
        return head
    # Manifest and card come last, with what is removed: as long as they are old, the new files are not announced.
    last = {path: add.pop(path) for path in list(add) if path.endswith(layout.MANIFEST)}
    last[layout.CARD] = card
    steps = list(parts_of([*add, *gone], FILES_A_COMMIT - len(last))) or [[]]
    parts = [({path: add[path] for path in step if path in add}, [p for p in step if p not in add]) for step in steps]
    if parts[1:]:
        done = sum(len(part) for part, _ in parts[:-1])
        note = _card(job, state, cards.Progress(0, done, 0, len(parts), job.today))
        parts[0][0][layout.CARD] = LocalFile.made(note)
    parts[-1][0].update(last)
    name = f"{job.config_name} {job.version}"
    size = sum(file.size for part, _ in parts for file in part.values())
    with Progress("sending", size, quiet=job.quiet, unit="bytes") as bar:
        for number, (part, delete) in enumerate(parts, 1):
            which = f" ({number}/{len(parts)})" if len(parts) > 1 else ""
            message = f"Publish {name}{which}"
            head = job.repo.commit(part, delete, parent=head, message=message, sent=bar.add)
    job.say(f"{job.repo.repo_id}: {sum(len(part) for part, _ in parts)} files in {len(parts)} commits")
    return head


def card_facts(run: Run, config_name: str, what: What) -> CardFacts:
    """What the card states of a configuration."""
    manifest = manifest_of(run, what)
    size = manifest["bytes"]
    rows = example_rows(run.folder)
    return facts(manifest, software_of(run), config_name=config_name, what=what, rows=rows, download_bytes=size)


def _card(job: _Job, state: RepoState, progress: cards.Progress | None = None) -> str:
    text = _change(job, state)
    entry = ChangelogEntry(job.version.tag, job.today, f"{job.config_name}: {text}" if _prefixed(job) else text)
    # The entry that an earlier try wrote keeps its day, so that trying again changes nothing.
    old = [known for known in changelog_of(state.card or "") if known.version == entry.version]
    if old and old[0].text == entry.text:
        entry = old[0]
    return render_card(
        card_facts(job.run, job.config_name, job.what),
        existing=state.card,
        repo_id=job.repo.repo_id,
        version=job.version.tag,
        default_config=job.config_name if job.make_default else None,
        changelog=[entry],
        licence=job.licence,
        progress=progress,
    )


def _prefixed(job: _Job) -> bool:
    return job.config_name != layout.DEFAULT_CONFIG


def _change(job: _Job, state: RepoState) -> str:
    """The changelog's sentence: against the newest version that has this configuration."""
    known = tuple(sorted(state.tags))
    if known not in job.sentences:
        job.sentences[known] = _compared(job, state)
    return job.sentences[known]


def _compared(job: _Job, state: RepoState) -> str:
    from hfsyn.publishing.comparison import change_sentence

    for version in reversed(versions_among(state.tags)):
        if version == job.version:
            continue
        commit = state.tags[version.tag]
        if job.config_name not in look_at(job.repo, commit).published:
            continue
        try:
            return change_sentence(job.repo, commit, version, job.run, job.config_name, job.what)
        except DataError as error:
            if error.code != ExitCode.USAGE:
                raise  # the Hub does not answer
            continue  # of a kind that this hfsyn cannot read: then the one before
    rows = manifest_of(job.run, job.what)["rows"]
    return f"First version: {rows} {'captions' if job.what == 'captions' else 'images'}."


def read_back(job: _Job, commit: str) -> None:
    """Compare what the Hub has at a commit with the run: every file, every footer, and one row as a user reads it.

    Raises:
        HfsynError: it is not the same (exit code 4): nothing is tagged.
    """
    from hfsyn.publishing.reading_back import compare_footers, compare_row

    repo_id = job.repo.repo_id
    state = look_at(job.repo, commit)
    wrong = [path for path, file in job.files.items() if not file.is_at(state.tree.get(path))]
    wrong += _gone(job, state)
    if wrong:
        raise HfsynError(
            f"{repo_id} does not hold what was sent: {wrong[0]}"
            + (f" and {len(wrong) - 1} more." if wrong[1:] else "."),
            "Nothing is tagged. Run the same command again.",
            code=ExitCode.PARTIAL,
        )
    text = job.files[f"{layout.config_prefix(job.config_name)}{layout.MANIFEST}"]
    raw = text.content if isinstance(text.content, bytes) else text.content.read_bytes()
    manifest = load_manifest(raw.decode(), "the manifest")
    compare_footers(job.repo, commit, job.config_name, manifest)
    compare_row(job.repo, commit, job.config_name, manifest, job.run.folder)
