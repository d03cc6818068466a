"""Versions of a published dataset: semantic, as tags."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hfsyn.errors import HfsynError

_FORM = re.compile(r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


class Version(NamedTuple):
    """MAJOR.MINOR.PATCH; compares as versions do."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def tag(self) -> str:
        """The name of its tag: ``v1.0.0``."""
        return f"v{self}"


def parse_version(text: str) -> Version:
    """Read ``1.0.0`` or ``v1.0.0``. Raises HfsynError if it is not MAJOR.MINOR.PATCH."""
    found = _FORM.fullmatch(text)
    if not found:
        raise HfsynError(
            f"The version {text!r} is not MAJOR.MINOR.PATCH.",
            "For instance --version 1.0.0: another MAJOR breaks its users, another MINOR adds, another PATCH fixes.",
        )
    return Version(*map(int, found.groups()))


def versions_among(tags: Iterable[str]) -> list[Version]:
    """The versions among tags, oldest first; other tags are not ours."""
    return sorted(parse_version(tag) for tag in tags if tag.startswith("v") and _FORM.fullmatch(tag))
