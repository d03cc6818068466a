"""Publishing while a run is at work: finished shards go in batches to a branch whose card shows the progress.

The branch is described in `hfsyn.publishing.working`. Main and its versions do not change until the end.
"""

import contextlib
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builders.errors import plural
from builders.hub import HeadMovedError
from builders.runs import layout
from builders.stores.copies import store_of
from hfsyn.cards.card import render_card
from hfsyn.cards.facts import Progress, example_rows, facts_in_progress
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import FILES_A_COMMIT, HubRepo, LocalFile
from hfsyn.hub.versions import parse_version
from hfsyn.launching import die_with_parent
from hfsyn.progress import teller
from hfsyn.publishing.committing import Change
from hfsyn.publishing.contents import finished_contents
from hfsyn.publishing.job import Job, Publication
from hfsyn.publishing.preflight import check_names, refuse, target_checks, terms_checks, work_checks
from hfsyn.publishing.publication import publish
from hfsyn.publishing.repository import look_at
from hfsyn.publishing.working import begin_work, branch_of
from hfsyn.recipes.recipe import published_recipe
from hfsyn.runs.finish import software_of
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.status import status
from hfsyn.workers import LAUNCHER_VARIABLES, current_worker

INTERVAL = 120.0  # seconds between two batches; the Hub limits the commits to a repository by the hour
GLANCE = 1.0  # seconds between two looks at the run folder


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

    They go to a branch, ``hfsyn-work/CONFIG``, which is removed when the version is published. A batch that fails is
    sent with the next one. It may be interrupted at any time; the same command, or `publish`, continues.

    Args:
        run: a prepared run folder, at work or not.
        interval: seconds between two batches.
        sleep: waits between two looks.
        repo_id, version, config_name, what, private, into, make_default, token, quiet, options: as for `publish`.

    Raises:
        HfsynError: as `publish`; before anything is sent for what can be known before the end.
    """
    if what != "data":
        raise HfsynError("Captions are finished before images are made.", "Publish them without --watch.")
    run = run if isinstance(run, Run) else load_run(run)
    if store_of(run.folder) is not None:
        said = f"--watch follows a run on a disk, and {run.folder} is in object storage."
        raise HfsynError(said, "Publish it without --watch when it is finished.")
    repo = HubRepo(repo_id, token=token, say=teller(quiet))
    place: dict[str, Any] = {"private": private, "into": into, "make_default": make_default}
    if not (run.folder / layout.MANIFEST).exists():
        _open(run, repo, version, config_name, **place)
        repo.say(
            f"{repo.repo_id}: finished shards go to the branch {branch_of(config_name)} until the version is whole"
        )
    last = -interval
    while not (run.folder / layout.MANIFEST).exists():
        if time.monotonic() - last >= interval:
            try:
                send_finished(run, repo, config_name)
            except HfsynError as error:
                if error.code != ExitCode.PARTIAL:
                    raise
                repo.say(f"{error.message} The next batch brings it.")
            last = time.monotonic()
        sleep(min(GLANCE, interval))
    return publish(run, repo.repo_id, version, config_name=config_name, token=token, quiet=quiet, **place, **options)


def _open(run: Run, repo: HubRepo, version: str, config_name: str = layout.DEFAULT_CONFIG, **place: Any) -> None:
    """Check all that can be known before the end, and create the repository if it does not exist."""
    asked = parse_version(version)
    check_names(repo.repo_id, config_name)
    repo.need_token()
    repo.complete_id()
    job, state = Job(run, repo, asked, config_name, "data", {}, **place), look_at(repo)
    refuse(target_checks(job, state))
    refuse(work_checks(repo, state, config_name, finished_contents(run, config_name)))
    refuse(terms_checks(run, repo))
    if state.head is None:
        repo.create(private=job.private)


def check_target(repo_id: str | None, version: str | None) -> None:
    """Refuse a target that `publishing` could not use, before anything is written.

    Raises HfsynError if one of the two is missing, or not valid.
    """
    if (repo_id is None) != (version is None):
        example = "For instance: --push-to-hub USER/NAME --version 1.0.0"
        raise HfsynError("--push-to-hub and --version go together.", example)
    if repo_id is not None and version is not None:
        parse_version(version)
        check_names(repo_id, layout.DEFAULT_CONFIG)


@contextlib.contextmanager
def publishing(run: Run, repo_id: str | None, version: str | None, *, quiet: bool) -> Iterator[None]:
    """Publish a run from another process while it is at work here, and wait for the version at the end.

    Problems are found before the work begins. The process takes its token from the environment or the stored login, so
    that it is not on a command line. It ends with this one. Raises HfsynError as `watch`, or if the publication failed
    although the run is finished (exit code 4).
    """
    if repo_id is None or not current_worker().is_main:
        yield
        return
    assert version is not None  # by `check_target`
    if not (run.folder / layout.MANIFEST).exists():
        _open(run, HubRepo(repo_id), version)
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
            f"{run.folder} is finished, but was not published (exit code {code}; see the error above).",
            f"Publish it: hfsyn publish {run.folder} {repo_id} --version {version}",
            code=ExitCode.PARTIAL,
        )


def send_finished(run: Run, repo: HubRepo, config_name: str) -> int:
    """Commit the finished shards that the branch of unfinished work lacks, with a card that shows the progress.

    Returns the number of files that were sent, without the card.
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
        for step in Change({**missing, layout.CARD: card}).steps(FILES_A_COMMIT):
            message = f"Finished shards of {config_name}"
            head = repo.commit(step.add, [], parent=head, message=message, revision=work.branch)
    except HeadMovedError:
        repo.say(
            f"{repo.repo_id}: another process committed to {branch_of(config_name)}; the next batch brings the rest"
        )
        return 0
    repo.say(f"{repo.repo_id}: {plural(len(missing), 'file')} of finished shards")
    return len(missing)


def progress_card(run: Run, repo_id: str, config_name: str) -> str:
    """The card of a run at work."""
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
