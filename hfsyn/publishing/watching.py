"""Publishing while a run is at work: finished shards go up in batches, to a branch whose card shows how far it is.

The branch is that of `hfsyn.publishing.working`. Main and its versions stay as they are until the version is whole.
"""

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

from builders.hub.answers import HeadMovedError
from builders.runs import layout
from hfsyn.cards.card import Progress, example_rows, facts_in_progress, render_card
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub import limits
from hfsyn.hub.repo import HubRepo, LocalFile
from hfsyn.hub.versions import parse_version
from hfsyn.launching import die_with_parent
from hfsyn.progress import teller
from hfsyn.publishing.committing import Change
from hfsyn.publishing.contents import finished_contents
from hfsyn.publishing.outcomes import Publication
from hfsyn.publishing.preflight import (
    account_checks,
    check_names,
    default_checks,
    full_repo_id,
    look_at,
    repo_checks,
    terms_checks,
    version_checks,
    work_checks,
)
from hfsyn.publishing.publication import publish
from hfsyn.publishing.working import begin_work, branch_of
from hfsyn.recipes.recipe import published_recipe
from hfsyn.runs.finish import software_of
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.status import status
from hfsyn.workers import LAUNCHER_VARIABLES, current_worker

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
    make_default: bool = False,
    token: str | bool | None = None,
    quiet: bool = False,
    interval: float = INTERVAL,
    sleep: Callable[[float], None] = time.sleep,
    **options: Any,
) -> Publication:
    """Publish the shards of a run as they are finished, and the version when all are.

    They go to a branch, ``hfsyn-work/CONFIG``, which goes when the version stands: nobody who loads the set sees any of
    it before. A batch that fails is sent with the next one. Interrupt it at any time; the same command, or `publish`,
    continues.

    Args:
        run: a prepared run folder, at work or not.
        interval: seconds between two batches.
        sleep: the clock.
        repo_id, version, config_name, what, private, into, make_default, token, quiet, options: as for `publish`.

    Raises:
        HfsynError: as `publish`; before anything is sent for what can be known before the end.
    """
    if what != "data":
        raise HfsynError("Captions are finished before images are made.", "Publish them without --watch.")
    run = run if isinstance(run, Run) else load_run(run)
    say = teller(quiet)
    repo = HubRepo(repo_id, token=token, say=say)
    if not (run.folder / layout.MANIFEST).exists():
        repo = _opened(run, repo, version, config_name, private=private, into=into, make_default=make_default)
        say(f"{repo.repo_id}: finished shards go to the branch {branch_of(config_name)} until the version is whole")
    last = -interval
    while not (run.folder / layout.MANIFEST).exists():
        if time.monotonic() - last >= interval:
            try:
                send_finished(run, repo, config_name, say)
            except HfsynError as error:
                if error.code != ExitCode.PARTIAL:
                    raise
                say(f"{error.message} The next batch brings it.")
            last = time.monotonic()
        sleep(min(GLANCE, interval))
    return publish(
        run,
        repo.repo_id,
        version,
        config_name=config_name,
        private=private,
        into=into,
        make_default=make_default,
        token=token,
        quiet=quiet,
        **options,
    )


def _opened(
    run: Run,
    repo: HubRepo,
    version: str,
    config_name: str,
    *,
    private: bool | None = None,
    into: bool = False,
    make_default: bool = False,
) -> HubRepo:
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
        *default_checks(state, repo.repo_id, config_name, make_default=make_default),
        *work_checks(repo, state, config_name, finished_contents(run, config_name)),
        *terms_checks(run, repo),
    ]
    for check in checks:
        if check.state == "failed":
            raise HfsynError(check.text, check.hint, code=check.code)
    if state.head is None:
        repo.create(private=private)
    return repo


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
        _opened(run, HubRepo(repo_id), version, layout.DEFAULT_CONFIG)
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
    """Commit the finished shards that the branch of unfinished work lacks, with a card that says how far the run is.

    Returns:
        How many files were sent, the card not counted.
    """
    files = finished_contents(run, config_name)
    main = repo.head()
    if main is None:
        return 0
    try:
        work = begin_work(repo, config_name, main)
        missing = {path: file for path, file in files.items() if not file.is_at(work.tree.get(path))}
        if not missing or work.head is None:
            return 0
        head = work.head
        card = LocalFile.made(progress_card(run, repo.repo_id, config_name))
        for step in Change({**missing, layout.CARD: card}).steps(limits.FILES_A_COMMIT):
            message = f"Finished shards of {config_name}"
            head = repo.commit(step.add, [], parent=head, message=message, revision=work.branch)
    except HeadMovedError:
        say(f"{repo.repo_id}: somebody else committed to {branch_of(config_name)}; the next batch brings the rest")
        return 0
    say(f"{repo.repo_id}: {len(missing)} files of finished shards")
    return len(missing)


def progress_card(run: Run, repo_id: str, config_name: str) -> str:
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
    progress = Progress(stage.rows, total, stage.shards_done, stage.shards or 0, now, branch_of(config_name))
    return render_card(facts, repo_id=repo_id, progress=progress)
