"""What judges have in common: pictures that are decoded a batch at a time, always at the same places of a shard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from builders.images.decoding import ImageRejected, decode_rgb

BATCH = 64
"""Images of a batch. Batches start at fixed places of a shard, so that a score does not depend on the processes."""
Row = Mapping[str, Any]


def picture_of(row: Row) -> Image.Image:
    """The decoded RGB image of a row; raises ImageRejected with the reason if that fails."""
    return decode_rgb((row.get("image") or {}).get("bytes") or b"")


def in_batches(
    rows: Sequence[Row],
    prepare: Callable[[Image.Image, Row], Any],
    answer: Callable[[Sequence[Any], Sequence[Row]], Sequence[Row]],
    size: int = BATCH,
) -> Iterator[Row | str]:
    """What `answer` says of what `prepare` makes of each picture, or why a picture cannot be decoded.

    The place of one that cannot be decoded is taken by another of its batch, so that the others' scores do not move.
    """
    for start in range(0, len(rows), size):
        prepared: list[tuple[Row, Any]] = []
        reasons: dict[int, str] = {}
        for number, row in enumerate(rows[start : start + size]):
            try:
                prepared.append((row, prepare(picture_of(row), row)))
            except ImageRejected as problem:
                reasons[number] = problem.reason
        if not prepared:
            yield from reasons.values()
            continue
        filled = prepared + [prepared[-1]] * len(reasons)
        said = iter(answer([one for _, one in filled], [row for row, _ in filled]))
        for number in range(len(filled)):
            yield reasons[number] if number in reasons else next(said)
