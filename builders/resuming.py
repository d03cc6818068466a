"""Reading over the network with patience: a stream that breaks off is taken up where it broke."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from builders.access import UnreachableError, is_offline, said_plainly
from builders.errors import DataError

__all__ = ["read_whole", "resumed"]

T = TypeVar("T")

PAUSES = (5.0, 20.0, 60.0, 120.0)
"""Seconds before each new attempt. The Hub's client has tried for half a minute by itself before each of them."""

_log = logging.getLogger(__name__)


def resumed(begin: Callable[[int], Iterator[T]], repo_id: str, revision: str | None) -> Iterator[T]:
    """The items of a stream, begun again where it broke off; what comes in between counts as success.

    Args:
        begin: the stream without its first so many items.
        repo_id, revision: of the repository that is read, for messages.

    Raises:
        DataError: the Hub refuses, or cannot be reached in all of the attempts (exit code 4: try again later).
    """
    given = failed = 0
    while True:
        try:
            with said_plainly(repo_id, revision):
                for item in begin(given):
                    given += 1
                    failed = 0
                    yield item
            return
        except UnreachableError as error:
            if is_offline():
                raise
            if failed == len(PAUSES):
                raise DataError(
                    f"{error.message} ({1 + len(PAUSES)} attempts.)",
                    "What is finished is kept. Run the same command again to continue.",
                    code=4,
                ) from error
            _log.warning("%s broke off: %s Again in %g s.", repo_id, error.message, PAUSES[failed])
            time.sleep(PAUSES[failed])
            failed += 1


def read_whole(read: Callable[[], T], repo_id: str, revision: str | None) -> T:
    """What `read` gives, tried again as in `resumed`."""
    return next(resumed(lambda given: iter([read()]), repo_id, revision))
