"""Publish a run as a version: send, change main once, read it back, and tag it only if it is what the run has.

How it stays safe:

- Before a byte is sent everything that can be wrong is checked (`hfsyn.publishing.preflight`), and so is the repository
  as it will be: `load_dataset` will give the rows that the manifests state, and still everything that others put there
  (`hfsyn.publishing.repository`).
- Contents are identified by their hashes. A publication is the difference between the run and the repository, so
  running the same command again continues, and sends nothing that is there.
- Contents are sent ahead. Then main changes at one moment, files, manifest and card together
  (`hfsyn.publishing.committing`): main never holds half a version, whenever a publication stops.
- The change names the commit that it was made for. If another publisher was faster the Hub refuses it, the repository
  is looked at again, and the difference is computed again.
- The tag is set on the very commit that was read back and compared, and never moves.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from builders.errors import DataError, and_more, plural
from builders.hub import HeadMovedError
from builders.runs import layout
from hfsyn.cards.card import changelog_of, render_card
from hfsyn.cards.facts import ChangelogEntry, What, example_rows, facts
from hfsyn.checks.diff import change_sentence
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import FILES_A_COMMIT, HubRepo, LocalFile, commits_for, taken
from hfsyn.hub.versions import parse_version, versions_among
from hfsyn.outlook.doctor import Check
from hfsyn.progress import Progress, teller
from hfsyn.publishing.committing import Change, change_main, close_pull, pulls_of
from hfsyn.publishing.contents import contents
from hfsyn.publishing.job import Job, Publication
from hfsyn.publishing.preflight import (
    check_names,
    limit_checks,
    pull_checks,
    refuse,
    repo_checks,
    target_checks,
    terms_checks,
)
from hfsyn.publishing.reading_back import compare_footers, compare_row, not_sent
from hfsyn.publishing.repository import OTHERS, RepoState, look_at, no_longer_reached, unlike_manifests, with_others
from hfsyn.publishing.working import drop_work
from hfsyn.runs.finish import manifest_of, software_of
from hfsyn.runs.run import Run, load_run

ROUNDS = 10  # how often a publication is planned again because others committed meanwhile


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
    benchmark: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
    quiet: bool = False,
) -> Publication:
    """Publish a finished run as one version of a dataset on the Hub. Running it again continues.

    The arguments, and the exit codes of the HfsynError that it raises, are those of `hfsyn.api.hub.publish`;
    `make_default` is its ``set_default``, and `licence` its ``license``.
    """
    asked = parse_version(version)
    check_names(repo_id, config_name)
    run = run if isinstance(run, Run) else load_run(run)
    files = contents(run, config_name, what, quiet=quiet)
    repo = HubRepo(repo_id, token=token, say=teller(quiet))
    repo.need_token()
    repo.complete_id()
    job = Job(run, repo, asked, config_name, what, files, make_default, licence, private, into, benchmark=benchmark)
    return _published(job, dry_run=dry_run, quiet=quiet)


def _published(job: Job, *, dry_run: bool, quiet: bool) -> Publication:
    repo, version = job.repo, job.version
    state = look_at(repo)
    if (standing := state.tags.get(version.tag)) is not None and job.is_published_at(standing):
        _tidy(job)
        return job.outcome(state, [Check("ok", f"Version {version} is published.")], standing, "")
    checks = _checks(job, state)
    planned = job.outcome(state, checks, None, _change(job, state))
    if dry_run:
        return planned
    refuse(checks)
    for check in checks:
        if check.state == "warning":
            repo.say(check.line())
    if state.head is None:
        repo.create(private=job.private)
    repo.say(f"{repo.repo_id}: {plural(planned.to_send, 'file')} to send ({planned.to_send_bytes / 1e6:.1f} MB)")
    with Progress("sending", planned.to_send_bytes, quiet=quiet, unit="bytes") as bar:
        repo.send(job.missing(state), sent=bar.add)
    commit = bring(job, state)
    repo.say(f"{repo.repo_id}: reading back {commit[:12]}")
    read_back(job, commit)
    repo.tag(version.tag, commit, f"{job.run.recipe.name} {version}")
    _tidy(job)
    return job.outcome(state, checks, commit, planned.changelog)


def _checks(job: Job, state: RepoState) -> list[Check]:
    commits = commits_for(len(job.missing(state)) + len(job.gone(state)))
    return [
        *target_checks(job, state),
        *limit_checks(state, job.files, job.config_name),
        *pull_checks(job.repo, commits),
        *_result_checks(job, state),
        *terms_checks(job.run, job.repo),
    ]


def _result_checks(job: Job, state: RepoState) -> list[Check]:
    """Whether the card can be written, and what `load_dataset` will find; changes by others may prevent both."""
    try:
        card = _card(job, state)
        after = state.changed({**job.files, layout.CARD: card}, job.gone(state))
        problems = [*unlike_manifests(after), *no_longer_reached(state, after, state.owned(job.config_name))]
    except HfsynError as error:
        if error.code == ExitCode.PARTIAL:
            raise
        return [Check("failed", error.message, error.hint, error.code)]
    found = [Check("failed", text, hint) for text, hint in problems]
    new = next((name for name in after.card.configs if name.startswith(OTHERS)), "")
    if new and not state.card.configs:
        text = f"What load_dataset found in {state.repo_id} so far becomes its configuration {new}."
        found.append(Check("warning", text))
    return [*found, Check("ok", "The card can be written; what others wrote into it stays.")]


def bring(job: Job, state: RepoState) -> str:
    """Change main to what the run has, and return the commit that has it all; `state` is what the preflight saw.

    Raises HfsynError if the version has been taken meanwhile (exit code 2), if what others committed meanwhile forbids
    it (exit code 3), or if others commit all the time (exit code 4). Then none of it is on main.
    """
    repo = job.repo
    if state.head is None:
        state = look_at(repo)
    for _ in range(ROUNDS):
        if state.head is None:
            problem = f"{repo.repo_id} was removed meanwhile."
            raise HfsynError(problem, "Run the same command again.", code=ExitCode.PARTIAL)
        if (standing := state.tags.get(job.version.tag)) is not None:
            if job.is_published_at(standing):
                return standing
            raise taken(repo.repo_id, job.version.tag, standing)
        missing, gone, card = job.missing(state), job.gone(state), _card(job, state)
        if not missing and not gone and card.is_at(state.tree.get(layout.CARD)):
            return state.head
        try:
            return change_main(
                repo,
                Change({**missing, layout.CARD: card}, gone),
                state.head,
                most=FILES_A_COMMIT,
                name=f"{job.title} {job.version}",
                message=f"Publish {job.config_name} {job.version}",
                check=partial(_compare, job),
            )
        except HeadMovedError:
            job.repo.say(f"{repo.repo_id}: another commit was made meanwhile; looking again")
        job, state = replace(job, is_late=True), look_at(repo)
        refuse(repo_checks(state, job.config_name, job.what, into=True, files=job.files))
        refuse(_result_checks(job, state) if state.head is not None else ())
    said = f"Others commit to {repo.repo_id} all the time."
    raise HfsynError(said, "Run the same command again when they are done.", code=ExitCode.PARTIAL)


def _tidy(job: Job) -> None:
    """Remove the branch of unfinished work of the version, and pull requests of earlier tries."""
    try:
        drop_work(job.repo, job.config_name, job.files)
        for pull in pulls_of(job.repo, f"{job.title} "):
            close_pull(job.repo, pull)
    except HfsynError as error:  # the version is published all the same
        job.repo.say(f"{error.message} The same command tidies up.")


def _card(job: Job, state: RepoState) -> LocalFile:
    text = _change(job, state)
    text = text if job.config_name == layout.DEFAULT_CONFIG else f"{job.config_name}: {text}"
    entry = ChangelogEntry(job.version.tag, job.today, text)
    # The entry that an earlier try wrote keeps its date, so that a retry changes nothing.
    old = [known for known in changelog_of(state.texts.get(layout.CARD, "")) if known.version == entry.version]
    if old and old[0].text == entry.text:
        entry = old[0]
    existing = with_others(state, job.config_name)
    manifest = manifest_of(job.run, job.what)
    card = render_card(
        facts(
            manifest,
            software_of(job.run),
            config_name=job.config_name,
            what=job.what,
            rows=example_rows(job.run.folder),
            download_bytes=manifest["bytes"],
        ),
        existing=existing,
        repo_id=job.repo.repo_id,
        version=job.version.tag,
        default_config=_default(job, state, named=existing == state.texts.get(layout.CARD)),
        changelog=[entry],
        licence=job.licence,
    )
    return LocalFile.made(card)


def _default(job: Job, state: RepoState, *, named: bool) -> str | None:
    """The configuration that becomes the default; None leaves it as it is, which the preflight may refuse.

    Where others published a configuration since the preflight it is too late for a flag: then the one named ``default``
    is it, as `load_dataset` expects. The same holds if the files that are there were not `named` as a configuration.
    """
    if (job.is_late or not named) and job.config_name == layout.DEFAULT_CONFIG:
        return job.config_name
    if job.is_late and layout.DEFAULT_CONFIG in state.card.configs:
        return None
    return job.config_name if job.make_default else None


def _change(job: Job, state: RepoState) -> str:
    known = tuple(sorted(state.tags))
    if known not in job.sentences:
        job.sentences[known] = _change_since(job, state.tags)
    return job.sentences[known]


def _change_since(job: Job, tags: Mapping[str, str]) -> str:
    for known in reversed(versions_among(tags)):
        commit = tags[known.tag]
        if known == job.version or job.config_name not in look_at(job.repo, commit).published:
            continue
        try:
            return change_sentence(job.repo, commit, known, job.run, job.config_name, job.what)
        except DataError as error:
            if error.code != ExitCode.USAGE:
                raise
            # This hfsyn cannot read that version: then the one before.
    rows = manifest_of(job.run, job.what)["rows"]
    return f"First version: {rows} {'captions' if job.what == 'captions' else 'images'}."


def read_back(job: Job, commit: str) -> None:
    """Compare what the Hub has at a commit with the run: every file, every footer, and one row as a user reads it.

    Raises HfsynError if it is not the same (exit code 4): nothing is tagged.
    """
    _compare(job, commit)
    compare_footers(job.repo, commit, job.config_name, job.manifest)
    compare_row(job.repo, commit, job.config_name, job.manifest, job.run.folder)


def _compare(job: Job, commit: str) -> None:
    """Compare the files of a commit with the run, and what its card gives to `load_dataset` with the manifests."""
    state = look_at(job.repo, commit)
    if wrong := [*job.missing(state), *job.gone(state)]:
        raise not_sent(job.repo, f"{wrong[0]}{and_more(len(wrong), 1)} differ.")
    for text, hint in unlike_manifests(state):
        raise not_sent(job.repo, text, hint)
