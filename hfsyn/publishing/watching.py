"""Publishing while a run is at work: finished shards go up in batches, the card shows how far it is."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builders import layout
from builders.access import HeadMovedError
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.making.manifest import software_of
from hfsyn.making.recipe import published_recipe
from hfsyn.making.run_status import status
from hfsyn.making.runs import Run, load_run
from hfsyn.progress import teller
from hfsyn.publishing.cards import Progress, example_rows, facts_in_progress, render_card
from hfsyn.publishing.contents import finished_contents
from hfsyn.publishing.hub import HubRepo, LocalFile, parts_of
from hfsyn.publishing.outcomes import Publication
from hfsyn.publishing.preflight import (
    account_checks,
    check_names,
    full_repo_id,
    look_at,
    repo_checks,
    terms_checks,
    version_checks,
)
from hfsyn.publishing.publication import FILES_A_COMMIT, publish
from hfsyn.publishing.versions import parse_version
from hfsyn.workers import LAUNCHER_VARIABLES, current_worker, die_with_parent

INTERVAL = 120.0
"""Seconds between two batches; the Hub limits commits to a repository by the hour."""
GLANCE = 1.0
"""Seconds between two looks at the run folder."""


def watch(
    run: Run | str | Path,
    repo_id: str,
    version: str,
    *,
    config_name: str = layout.DEFAULT_CONFIG,
    what: str = "data",
    private: bool | None = None,
    into: bool = False,
    token: str | bool | None = None,
    quiet: bool = False,
    interval: float = INTERVAL,
    sleep: Callable[[float], None] = time.sleep,
    **options: Any,
) -> Publication:
    """Publish the shards of a run as they are finished, and the version when all are.

    Nothing is tagged before the end, so that nobody who loads by version sees an unfinished set. A batch that fails is
    sent with the next one. Interrupt it at any time; the same command, or `publish`, continues.

    Args:
        run: a prepared run folder, at work or not.
        interval: seconds between two batches.
        sleep: the clock.
        repo_id, version, config_name, what, private, into, token, quiet, options: as for `publish`.

    Raises:
        HfsynError: as `publish`; before anything is sent for what can be known before the end.
    """
    if what != "data":
        raise HfsynError("Captions are finished before images are made.", "Publish them without --watch.")
    run = run if isinstance(run, Run) else load_run(run)
    say = teller(quiet)
    repo = HubRepo(repo_id, token=token, say=say)
    if not (run.folder / layout.MANIFEST).exists():
        repo = _opened(run, repo, version, config_name, private=private, into=into)
    if waits := _stands_whole(repo, config_name, run):
        say(
            f"{repo.repo_id} has a whole {config_name}: the new one is sent when it is finished, so that they never mix"
        )
    last = -interval
    while not (run.folder / layout.MANIFEST).exists():
        if not waits and time.monotonic() - last >= interval:
            try:
                send_finished(run, repo, config_name, say)
            except HfsynError as error:
                if error.code != ExitCode.PARTIAL:
                    raise
                say(f"{error.message} The next batch brings it.")
            last = time.monotonic()
        sleep(min(GLANCE, interval))
    return publish(
        run, repo.repo_id, version, config_name=config_name, private=private, into=into, token=token, quiet=quiet,
        **options,
    )  # fmt: skip


def _opened(run: Run, repo: HubRepo, version: str, config_name: str, *, private: bool | None, into: bool) -> HubRepo:
    """The repository, made if need be, after all that can be looked at before the end."""
    asked = parse_version(version)
    check_names(repo.repo_id, config_name)
    repo.need_token()
    repo = repo.named(full_repo_id(repo.repo_id, repo))
    state = look_at(repo)
    checks = [
        *account_checks(repo, state, private=private),
        *repo_checks(state, repo.repo_id, config_name, "data", into=into, files={}),
        *version_checks(state, asked, repo.repo_id),
        *terms_checks(run, repo),
    ]
    for check in checks:
        if check.state == "failed":
            raise HfsynError(check.text, check.hint, code=check.code)
    if state.head is None:
        repo.create(private=private)
    return repo


def _stands_whole(repo: HubRepo, config_name: str, run: Run) -> bool:
    """Whether main has a finished configuration of that name: unfinished shards beside it would be loaded with it."""
    return not (run.folder / layout.MANIFEST).exists() and config_name in look_at(repo).published


def check_target(repo_id: str | None, version: str | None) -> None:
    """Refuse a target of `publishing` that cannot be one, before anything is written.

    Raises:
        HfsynError: there is one of the two without the other, or one of them is none.
    """
    if (repo_id is None) != (version is None):
        raise HfsynError(
            "--publish-to and --version go together.", "For instance: --publish-to USER/NAME --version 1.0.0"
        )
    if repo_id is not None and version is not None:
        parse_version(version)
        check_names(repo_id, layout.DEFAULT_CONFIG)


@contextlib.contextmanager
def publishing(run: Run, repo_id: str | None, version: str | None, *, quiet: bool) -> Iterator[None]:
    """Publish a run in a process of its own while it is at work here, and wait for the version at the end.

    What can be wrong is found before the work begins. The process takes its token from the environment or the stored
    login: it is not on its command line. It ends with this one.

    Raises:
        HfsynError: as `watch`; or the publication did not succeed, although the run did (exit code 4).
    """
    if repo_id is None or not current_worker().is_main:
        yield
        return
    assert version is not None  # `check_target` has looked
    if not (run.folder / layout.MANIFEST).exists():
        _opened(run, HubRepo(repo_id), version, layout.DEFAULT_CONFIG, private=None, into=False)
    command = [sys.executable, "-m", "hfsyn", "publish", str(run.folder), repo_id, "--version", version, "--watch"]
    # The launcher's variables would make it believe that it is one of several workers.
    alone = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    child = subprocess.Popen(
        [*command, *(["--quiet"] if quiet else [])], env=alone, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    try:
        yield
        code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code:
        raise HfsynError(
            f"{run.folder} is finished, and was not published (exit code {code}; the cause stands above).",
            f"Publish it: hfsyn publish {run.folder} {repo_id} --version {version}",
            code=ExitCode.PARTIAL,
        )


def send_finished(run: Run, repo: HubRepo, config_name: str, say: Callable[[str], None]) -> int:
    """Commit the finished shards that the repository lacks, with a card that says how far the run is.

    Returns:
        How many files were sent, the card not counted.
    """
    state = look_at(repo)
    files = finished_contents(run, config_name)
    missing = {path: file for path, file in files.items() if not file.is_at(state.tree.get(path))}
    if not missing or state.head is None:
        return 0
    card = LocalFile.made(progress_card(run, state.card, repo.repo_id, config_name))
    head = state.head
    try:
        for names in parts_of(list(missing), FILES_A_COMMIT - 1):
            part = {name: missing[name] for name in names} | {layout.CARD: card}
            head = repo.commit(part, [], parent=head, message=f"Finished shards of {config_name}")
    except HeadMovedError:
        say(f"{repo.repo_id}: somebody else committed; the next batch brings the rest")
        return 0
    say(f"{repo.repo_id}: {len(missing)} files of finished shards")
    return len(missing)


def progress_card(run: Run, existing: str | None, repo_id: str, config_name: str) -> str:
    """The card of a run that is at work."""
    stage = status(run.folder).stages[1]
    total = run.planned_rows or run.source_rows * run.recipe.prompt.images_per_caption
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = facts_in_progress(
        published_recipe(run.recipe),
        run.split,
        stage.rows,
        total,
        config_name=config_name,
        rows=example_rows(run.folder),
        software=software_of(run),
    )
    progress = Progress(stage.rows, total, stage.shards_done, stage.shards or 0, now)
    return render_card(facts, existing=existing, repo_id=repo_id, progress=progress)
