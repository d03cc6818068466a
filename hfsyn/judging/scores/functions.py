"""A Python function of the user's as a judge: ``path/to/file.py:function``, pinned by the content of its file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.errors import brief
from builders.images.decoding import ImageRejected
from hfsyn.errors import HfsynError
from hfsyn.judging.scores.pictures import Row, picture_of
from hfsyn.recipes.strategies import check_place, content_of, loaded_function
from hfsyn.runs.scores import Judge

FORM = (
    "A judge is a function (image, row) -> score: an RGB PIL image and the row's other columns; a number, a truth "
    "value, a text or None, or several of them by name in a dict."
)


def function_judge(name: str, where: str, first: Row) -> Judge:
    """A judge from a function of the user's, tried on the first row of the set.

    Raises HfsynError if there is no such file or function, it came with a dataset, it fails, it returns something else
    than scores, or something else the second time.
    """
    path, _, function = where.rpartition(":")
    file = Path(path).expanduser().resolve()
    check_place(file, f"The judge {where!r}", "--judge path/to/file.py:function")
    sha256 = content_of(f"{file}:{function}")
    call = loaded_function(file, function, sha256, 2, FORM)
    label = f"{file.name}:{function}"
    once, again = (_said(call, label, function, first) for _ in range(2))
    if once != again:
        said = f"{label} is not pure: for {first['sample_id']} it said {once!r}, then {again!r}."
        raise HfsynError(said, "It may use nothing but its arguments.")
    columns = {column: _kind(value) for column, value in once.items()}

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        for row in rows:
            try:
                said = _said(call, label, function, row)
            except ImageRejected as problem:
                yield problem.reason
                continue
            wrong = {c: v for c, v in said.items() if v is not None and _kind(v) != columns.get(c)}
            if wrong or said.keys() != columns.keys():
                told = f"{label} said {said!r} for {row['sample_id']}, and for the first image {once!r}."
                raise HfsynError(brief(told, 400), "It must return the same columns for all images.")
            yield said

    return Judge(name, columns, {"kind": "function", "function": label, "sha256": sha256}, of)


def _said(call: Any, label: str, function: str, row: Row) -> dict[str, Any]:
    picture = picture_of(row)
    given = {key: value for key, value in row.items() if key != "image"}
    try:
        said = call(picture, given)
    except (Exception, SystemExit) as error:  # whatever a user's function raises, but not Ctrl-C
        said = f"{label} fails for {row['sample_id']}: {type(error).__name__}: {brief(error)}"
        raise HfsynError(said, "Fix it first.") from None
    found = dict(said) if isinstance(said, Mapping) else {function: said}
    plain = {str(key): value.item() if hasattr(value, "item") else value for key, value in found.items()}
    if not plain or not all(value is None or isinstance(value, bool | int | float | str) for value in plain.values()):
        raise HfsynError(f"{label} returned {brief(repr(said), 120)} for {row['sample_id']}.", FORM)
    numbers = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in plain.items()}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in numbers.items()}


def _kind(value: Any) -> str:
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
