"""How a difference becomes one change of main: a commit or, if that would be too large, a merged pull request.

The title of a pull request says what it brings and onto which commit of main. One that an interrupted try left is
continued as long as main is still that commit, and closed otherwise; the contents sent for it are on the Hub already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builders.hub import HeadMovedError, status_of
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo, LocalFile, portions

MOST_PAYLOAD = 100 * 2**20  # bytes of small files in a commit: they are part of its request, which may have 1 GB
_STORED_APART = (".parquet", ".png")  # endings of files of which a commit holds only the hash


@dataclass(frozen=True)
class Change:
    """The files that a commit adds and deletes."""

    add: Mapping[str, LocalFile]
    delete: Sequence[str] = ()

    def steps(self, most: int) -> Iterator[Change]:
        """The same in commits of at most `most` files, and of at most `MOST_PAYLOAD`."""
        *full, last = [*portions(self.add, most, MOST_PAYLOAD, _STORED_APART)] or [{}]
        yield from map(Change, full)
        delete = list(self.delete)
        yield Change(last, delete[: most - len(last)])
        for start in range(most - len(last), len(delete), most):
            yield Change({}, delete[start : start + most])


@dataclass(frozen=True, slots=True)
class Pull:
    """An open pull request of this account."""

    number: int
    title: str

    @property
    def ref(self) -> str:
        """The revision that its commits are on."""
        return f"refs/pr/{self.number}"


def change_main(
    repo: HubRepo, change: Change, head: str, *, most: int, name: str, message: str, check: Callable[[str], None]
) -> str:
    """Carry out a change against `head`, the last known head of main, at one moment; return the resulting commit.

    A commit has at most `most` files; `name` is how the title of a pull request begins; `check` is called with the last
    commit of a pull request, and raises if it must not be merged. Raises HeadMovedError if main has moved on from
    `head`.
    """
    steps = list(change.steps(most))
    if len(steps) == 1:
        return repo.commit(change.add, change.delete, parent=head, message=message)
    pull = _continued(repo, name, head) or _opened(repo, f"{name} onto {head[:12]}", message)
    try:
        at = repo.head(pull.ref)
        there = repo.tree(at) if at is not None else {}
        left = Change(
            {path: file for path, file in change.add.items() if not file.is_at(there.get(path))},
            [path for path in change.delete if path in there],
        )
        if at is not None and (left.add or left.delete):
            for number, step in enumerate(left.steps(most), 1):
                part = f"{message} (part {number})"
                at = repo.commit(step.add, step.delete, parent=at, message=part, revision=pull.ref)
        if at is None or repo.head() != head:
            raise HeadMovedError(head)
        check(at)
        return _merge(repo, pull)
    except HeadMovedError:
        close_pull(repo, pull)
        raise
    except HfsynError:
        if pull not in pulls_of(repo, name):  # another publisher of this account saw a newer main, and closed it
            raise HeadMovedError(head) from None
        raise


def _continued(repo: HubRepo, name: str, head: str) -> Pull | None:
    """The pull request of an earlier try onto `head`; those onto other commits of main are closed."""
    found = None
    for pull in pulls_of(repo, f"{name} onto "):
        if found is None and pull.title == f"{name} onto {head[:12]}":
            found = pull
        else:
            close_pull(repo, pull)
    return found


def _opened(repo: HubRepo, title: str, message: str) -> Pull:
    text = f"{message}. It is merged by hfsyn as soon as it is complete."
    made = repo.ask(f"open a pull request of {repo.repo_id}", "create_pull_request", title, description=text)
    return Pull(int(made.num), title)


def pulls_of(repo: HubRepo, title: str) -> list[Pull]:
    """This account's open pull requests whose titles begin like this, oldest first.

    Those of others are ignored: everyone who can read the repository can open one with any title.
    """
    from huggingface_hub.errors import HfHubHTTPError

    me = str(repo.account["name"])
    options: dict[str, Any] = {"author": me, "discussion_type": "pull_request", "repo_type": repo.repo_type}

    def ask() -> list[Any]:
        try:
            return list(repo.api.get_repo_discussions(repo.repo_id, **options))
        except HfHubHTTPError as error:
            if status_of(error)[0] in (403, 404, 410):  # the owner of the repository has switched them off
                return []
            raise

    found = repo.call(f"list the pull requests of {repo.repo_id}", ask)
    mine = [one for one in found if one.is_pull_request and one.status in ("open", "draft") and one.author == me]
    pulls = [Pull(one.num, one.title) for one in mine if one.title.startswith(title)]
    return sorted(pulls, key=lambda pull: pull.number)


def _merge(repo: HubRepo, pull: Pull) -> str:
    """Merge a pull request, and return the resulting commit of main. Commits of others to main meanwhile stay.

    Raises HeadMovedError if it cannot be merged, since main has changed in the same files.
    """
    from huggingface_hub.errors import HfHubHTTPError

    where = _where(repo, pull)

    def send() -> str | None:
        about = repo.api.get_discussion_details(**where)
        if about.status != "merged":  # by an earlier try whose answer was lost
            if about.conflicting_files or about.status == "closed":
                raise HeadMovedError(pull.ref)
            if about.status == "draft":
                repo.api.change_discussion_status(**where, new_status="open")
            try:
                repo.api.merge_pull_request(**where)
            except HfHubHTTPError as error:
                about = repo.api.get_discussion_details(**where)
                if about.status != "merged":
                    raise (HeadMovedError(pull.ref) if about.conflicting_files else error) from None
        return repo.api.get_discussion_details(**where).merge_commit_oid

    return str(repo.call(f"merge the pull request {pull.number} of {repo.repo_id}", send) or repo.head())


def close_pull(repo: HubRepo, pull: Pull) -> None:
    """Close a pull request, if it is open."""
    where = _where(repo, pull)
    repo.do(
        f"close the pull request {pull.number} of {repo.repo_id}",
        lambda: repo.api.change_discussion_status(**where, new_status="closed"),
        lambda status: repo.api.get_discussion_details(**where).status in ("closed", "merged"),
    )


def _where(repo: HubRepo, pull: Pull) -> dict[str, Any]:
    return {"repo_id": repo.repo_id, "discussion_num": pull.number, "repo_type": repo.repo_type}
