"""Unfinished work on the Hub: the branch ``hfsyn-work/CONFIG``, which holds the finished shards of a run at work.

It begins at the head of main, and its first commit removes everything. Its files have the paths that they will have on
main. The branch is removed when the version is published; main never contains any of it. `continue_from` brings the
shards back to another machine, where they are not made again.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.errors import DataError
from builders.files import room_beside
from builders.runs import layout
from hfsyn.errors import ExitCode
from hfsyn.hub.repo import HubRepo, LocalFile, RemoteFile
from hfsyn.publishing.repository import look_at
from hfsyn.recipes.recipe import Recipe, parse_recipe
from hfsyn.runs.pins import pinned
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run
from hfsyn.runs.shards import faults, pending
from hfsyn.runs.stage import write_plan

_KEPT = frozenset({".gitattributes", ".gitignore"})


@dataclass(frozen=True)
class Work:
    """The branch of a configuration at the moment of looking."""

    branch: str
    head: str | None  # its commit; None if there is no such branch
    tree: Mapping[str, RemoteFile]
    recipe: str  # the path of its recipe

    @property
    def is_begun(self) -> bool:
        """Whether it holds unfinished work; a new branch that is not emptied yet is a copy of main."""
        manifest = f"{self.recipe.removesuffix(layout.RECIPE)}{layout.MANIFEST}"
        return self.recipe in self.tree and manifest not in self.tree

    def is_of(self, files: Mapping[str, LocalFile]) -> bool:
        """Whether it is work on the recipe of a run with these files, or empty."""
        return not self.is_begun or files[self.recipe].is_at(self.tree[self.recipe])


def branch_of(config_name: str) -> str:
    """The name of the branch."""
    return f"hfsyn-work/{config_name}"


def work_on(repo: HubRepo, config_name: str) -> Work:
    """Look at the branch of a configuration: one request, and another if there is one."""
    branch = branch_of(config_name)
    head = repo.head(branch)
    recipe = f"{layout.config_prefix(config_name)}{layout.RECIPE}"
    return Work(branch, head, {} if head is None else repo.tree(head), recipe)


def begin_work(repo: HubRepo, config_name: str, main: str) -> Work:
    """The branch of a configuration, created and emptied if needed.

    Raises HeadMovedError if another process committed to it.
    """
    work = work_on(repo, config_name)
    if work.head is None:
        repo.branch(work.branch, main)
        work = work_on(repo, config_name)
    if work.head is None or work.is_begun:
        return work
    tops = {path.partition("/")[0] + ("/" if "/" in path else "") for path in work.tree} - _KEPT
    if tops:
        repo.commit({}, sorted(tops), parent=work.head, message="Begin with nothing", revision=work.branch)
        work = work_on(repo, config_name)
    return work


def drop_work(repo: HubRepo, config_name: str, files: Mapping[str, LocalFile]) -> None:
    """Remove the branch of a configuration whose version is published; one with work on another recipe stays."""
    work = work_on(repo, config_name)
    if work.head is not None and work.is_of(files):
        repo.drop_branch(work.branch)
    elif work.head is not None:
        repo.say(f"{repo.repo_id}: the branch {work.branch} holds unfinished work of another recipe, and stays")


def continue_from(recipe: Recipe, out: str | Path, repo_id: str, *, say: Callable[[str], None]) -> Run:
    """Prepare a run folder as `prepare` does, and bring back the finished shards of the same recipe from the Hub.

    The branch of unfinished work is asked first, then what is published, both of the default configuration. Open
    revisions are those with which the run on the Hub began. The repository need not exist yet. Raises HfsynError as
    `prepare`, or if the Hub does not answer.
    """
    repo = HubRepo(repo_id, say=say)
    places = _places(repo)
    if places:
        text = repo.text(layout.RECIPE, places[0][0])
        recipe = pinned(recipe, parse_recipe(text, f"{layout.RECIPE} of {repo_id}"))
    run = prepare(recipe, out)
    brought = sum(_bring_back(run, run.caption_shards(), place, repo) for place in places)
    if not pending(run.caption_shards()):
        write_plan(run)
        brought += sum(_bring_back(run, run.data_shards(), place, repo) for place in places)
    if brought:
        say(f"{brought} finished shards were brought back from {repo_id}")
    return run


def _places(repo: HubRepo) -> list[tuple[str, Collection[str]]]:
    """Commits that may have shards of the run, each with the files that hfsyn wrote there."""
    found: list[tuple[str, Collection[str]]] = []
    work = work_on(repo, layout.DEFAULT_CONFIG)
    if work.head is not None and work.is_begun:
        found.append((work.head, work.tree.keys()))
    state = look_at(repo)
    if state.head is not None and (published := state.owned(layout.DEFAULT_CONFIG)):
        found.append((state.head, published))
    return found


def _bring_back(run: Run, shards: Sequence[Path], place: tuple[str, Collection[str]], repo: HubRepo) -> int:
    """Fetch those of `shards` that are missing here and finished there; return how many."""
    commit, there = place
    count = 0
    with room_beside(run.folder) as temporary:  # beside their place, so that they are moved and not copied
        for shard in pending(shards):
            mark = layout.sidecar_of(shard)
            shard_path, mark_path = (file.relative_to(run.folder).as_posix() for file in (shard, mark))
            if shard_path not in there or mark_path not in there:
                continue
            try:
                fetched_mark = repo.fetch(mark_path, commit, temporary)
                if layout.load_sidecar(fetched_mark).fingerprint != run.fingerprint:
                    repo.say(f"{repo.repo_id} holds shards of another recipe, which are not used here")
                    break
                fetched = repo.fetch(shard_path, commit, temporary)
                wrong = faults(fetched, run.fingerprint)
            except DataError as error:
                if error.code != ExitCode.USAGE:
                    raise  # the Hub does not answer
                wrong = [error.message]
            if wrong:
                repo.say(f"{repo.repo_id}: {wrong[0]}; it is created again")
                continue
            for folder in (shard.parent, mark.parent):
                folder.mkdir(parents=True, exist_ok=True)
            shutil.move(fetched, shard)
            shutil.move(fetched_mark, mark)  # last: it marks the shard as finished
            count += 1
    return count
