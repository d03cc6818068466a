"""Images of a set that cannot be read: each file is counted once, with its reason, however often it was met."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from PIL import Image

from builders.images.decoding import ImageRejected, decode_rgb
from builders.wording import quoted
from hfsyn.judging.sets.image_set import ImageSet

_NAMED = 20

Unread = Mapping[str, str]
"""What identifies an image in its set -> why it cannot be read."""


def picture(images: ImageSet, number: int) -> Image.Image:
    """An image of a set, decoded.

    Raises:
        ImageRejected: with the reason.
    """
    data = images.images[number]
    if not data:
        raise ImageRejected("empty, or cannot be opened")
    return decode_rgb(data)


def facts_of(unread: Unread) -> dict[str, Any]:
    """What a result says of them: ``count``, ``reasons`` (each with its number of files) and the ``first`` ids."""
    reasons = Counter(unread.values())
    return {"count": len(unread), "reasons": dict(sorted(reasons.items())), "first": sorted(unread)[:_NAMED]}


def tell_unread(unread: Unread, what: str) -> None:
    """Say on stderr how many files of what could not be read, and why."""
    if unread:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(unread.values()).most_common())
        files = "1 image" if len(unread) == 1 else f"{len(unread)} images"
        print(f"{files} of {what} could not be read ({reasons}): {quoted(sorted(unread), 3)}.", file=sys.stderr)


def tell_left_out(facts: Mapping[str, Any]) -> None:
    """Say on stderr what lies in a set's split and is not in the set; `facts` are those of the set."""
    left_out = facts.get("left_out") or {}
    if left_out:
        reasons = quoted((f"{count} ({reason})" for reason, count in left_out.items()), 5)
        print(f"Not read in {facts['reference']} ({facts['split']}): {reasons}.", file=sys.stderr)
