"""Reading over the network with patience: a stream that breaks off is taken up where it broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from builders.hub.answers import Patience

T = TypeVar("T")

ATTEMPTS = 8
"""In a row: some three minutes of pauses, and the Hub's client tries for half a minute by itself in each of them."""


def resumed(begin: Callable[[int], Iterator[T]], repo_id: str, revision: str | None) -> Iterator[T]:
    """The items of a stream, begun again where it broke off; what comes in between counts as success.

    Args:
        begin: the stream without its first so many items.
        repo_id, revision: of the repository that is read, for messages.

    Raises:
        DataError: the Hub refuses, or cannot be reached in all of the attempts (exit code 4: try again later).
    """
    patience, given = Patience(repo_id, revision=revision, attempts=ATTEMPTS), 0
    while True:
        try:
            for item in begin(given):
                given += 1
                patience.failed = 0
                yield item
            return
        except Exception as error:
            patience.after(error)


def read_whole(read: Callable[[], T], repo_id: str, revision: str | None) -> T:
    """What `read` gives, tried again as in `resumed`."""
    return next(resumed(lambda given: iter([read()]), repo_id, revision))
