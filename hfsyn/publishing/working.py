"""Unfinished work on the Hub: the branch ``hfsyn-work/CONFIG``, which holds what of a run is finished.

It begins at the head of main, since a branch begins somewhere, and its first commit removes all that is there. Its
files lie where they will lie on main. When the version stands the branch goes; main has never known it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builders.runs import layout
from hfsyn.hub.repo import HubRepo, LocalFile, RemoteFile

_KEPT = frozenset({".gitattributes", ".gitignore"})


@dataclass(frozen=True)
class Work:
    """The branch of a configuration as it is."""

    branch: str
    head: str | None
    """Its commit; None where there is no such branch."""
    tree: Mapping[str, RemoteFile]
    recipe: str
    """Where its recipe lies."""

    @property
    def is_begun(self) -> bool:
        """Whether it holds unfinished work; a branch that was made and not yet emptied is a copy of main."""
        manifest = f"{self.recipe.removesuffix(layout.RECIPE)}{layout.MANIFEST}"
        return self.recipe in self.tree and manifest not in self.tree

    def is_of(self, files: Mapping[str, LocalFile]) -> bool:
        """Whether it is work on the recipe of a run with these files, or on nothing yet."""
        return not self.is_begun or files[self.recipe].is_at(self.tree[self.recipe])


def branch_of(config_name: str) -> str:
    """The name of the branch."""
    return f"hfsyn-work/{config_name}"


def work_on(repo: HubRepo, config_name: str) -> Work:
    """Look at the branch of a configuration: one request, and another where there is one."""
    branch = branch_of(config_name)
    head = repo.head(branch)
    recipe = f"{layout.config_prefix(config_name)}{layout.RECIPE}"
    return Work(branch, head, {} if head is None else repo.tree(head), recipe)


def begin_work(repo: HubRepo, config_name: str, main: str) -> Work:
    """The branch of a configuration, made and emptied if need be.

    Raises:
        HeadMovedError: somebody else is at it.
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
    """Remove the branch of a configuration whose version stands; that of another recipe stays, and is told of."""
    work = work_on(repo, config_name)
    if work.head is None:
        return
    if work.is_of(files):
        repo.drop_branch(work.branch)
        return
    repo.say(f"{repo.repo_id}: the branch {work.branch} holds unfinished work of another recipe, and stays")
