"""How a difference becomes one change of main: a commit, or where it would be too large the merge of a pull request.

A pull request says in its title what it brings and onto which commit of main. One that an interrupted try left is taken
up as long as main is that commit, and closed otherwise: what was sent for it is there, only its commits are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from builders.hub.answers import HeadMovedError
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo, LocalFile
from hfsyn.publishing.pulls import Pull, Pulls

MOST_PAYLOAD = 100 * 2**20
"""Bytes of small files in a commit: they are part of its request, in which the Hub takes 1 GB."""
_STORED_APART = (".parquet", ".png")
"""Endings of files that a commit only names, by their hashes."""


@dataclass(frozen=True)
class Change:
    """What a commit brings and takes away."""

    add: Mapping[str, LocalFile]
    delete: Sequence[str] = ()

    def steps(self, most: int) -> Iterator[Change]:
        """The same in commits of at most `most` files, and of at most `MOST_PAYLOAD`."""
        add: dict[str, LocalFile] = {}
        payload = 0
        for path, file in self.add.items():
            size = 0 if path.endswith(_STORED_APART) else file.size
            if add and (len(add) == most or payload + size > MOST_PAYLOAD):
                yield Change(add)
                add, payload = {}, 0
            add[path] = file
            payload += size
        delete = list(self.delete)
        yield Change(add, delete[: most - len(add)])
        for start in range(most - len(add), len(delete), most):
            yield Change({}, delete[start : start + most])


def change_main(
    repo: HubRepo, change: Change, head: str, *, most: int, name: str, message: str, check: Callable[[str], None]
) -> str:
    """Carry out a change of main at one moment; return the commit that came of it.

    Args:
        repo: the repository.
        change: against `head`.
        head: of main, as far as is known.
        most: files in a commit.
        name: what is changed, as the title of a pull request begins.
        message: of the commit.
        check: called with the last commit of a pull request; raises where it must not be merged.

    Raises:
        HeadMovedError: main has moved on from `head`.
    """
    steps = list(change.steps(most))
    if len(steps) == 1:
        return repo.commit(change.add, change.delete, parent=head, message=message)
    pulls = Pulls(repo)
    pull = _taken_up(pulls, name, head, message)
    try:
        at = repo.head(pull.ref)
        there = repo.tree(at) if at is not None else {}
        left = Change(
            {path: file for path, file in change.add.items() if not file.is_at(there.get(path))},
            [path for path in change.delete if path in there],
        )
        if at is not None and (left.add or left.delete):
            for number, step in enumerate(left.steps(most), 1):
                at = repo.commit(
                    step.add, step.delete, parent=at, message=f"{message} (part {number})", revision=pull.ref
                )
        if at is None or repo.head() != head:
            raise HeadMovedError(head)
        check(at)
        return pulls.merge(pull)
    except HeadMovedError:
        pulls.close(pull)
        raise
    except HfsynError:
        if pull not in pulls.of(name):  # another publisher of this account saw a newer main, and closed it
            raise HeadMovedError(head) from None
        raise


def _taken_up(pulls: Pulls, name: str, head: str, message: str) -> Pull:
    """The pull request for this change onto `head`; those for other heads of main are closed."""
    title = f"{name} onto {head[:12]}"
    found = None
    for pull in pulls.of(f"{name} onto "):
        if found is None and pull.title == title:
            found = pull
        else:
            pulls.close(pull)
    return found or pulls.open(title, f"{message}. It is merged by hfsyn as soon as all is there.")
