"""The errors that users see, and how names, lists, sizes and the errors of other libraries are worded in them."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

# Control characters, surrogates (bytes that are not UTF-8), line breaks, and marks that change the reading direction.
# A fixed list, so that a name is the same in every version of Python.
ODD = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_TEXT = re.compile(f"[{ODD}]")


class HfsynError(Exception):
    """A user's mistake or an outside fault, shown on one line without a traceback.

    Not a ValueError, which pydantic would catch inside a validator, losing the hint.

    Args:
        message: what was wrong, with the value.
        hint: what is allowed, and the command or the edit that fixes it; may be empty.
        code: the exit code of the command: 2 for a mistake, 3 for a missing prerequisite or permission, 4 for work
            that is partly done.
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message, hint, code)  # all as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return one_line(f"{self.message} {self.hint}".strip())


def one_line(text: str) -> str:
    """The text with line breaks and control characters escaped, and all white space as blanks."""
    if text.isprintable():
        return text
    signs = (" " if c.isspace() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(c if c.isprintable() else sign for c, sign in zip(text, signs, strict=True))


class DataError(HfsynError):
    """Data, or a request for data, that cannot be used as it is."""


def did_you_mean(word: str, known: Iterable[str], most: int = 1, *, whole: Mapping[str, str] | None = None) -> str:
    """`` Did you mean 'steps'?`` with the `most` best matches, to append to a message; empty if there are none.

    `whole` has what to show in place of some names, such as a field with the part of the recipe that it is in.
    """
    import difflib

    by_small = {name.lower(): (whole or {}).get(name, name) for name in known}
    near = difflib.get_close_matches(word[:100].lower(), by_small, n=most)
    return f" Did you mean {' or '.join(repr(by_small[name]) for name in near)}?" if near else ""


def near_path(name: str | os.PathLike[str]) -> str:
    """`` Did you mean 'my_photos'?`` for a path that does not exist, to append to a message; empty if none is near."""
    path = Path(name).expanduser()
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    if there is None or path.exists():
        return ""
    with suppress(OSError):
        beside = [entry.name for entry in there.iterdir() if entry.name[0] != "."]
        return did_you_mean(path.relative_to(there).parts[0], beside, whole={one: str(there / one) for one in beside})
    return ""


def shown(name: object) -> str:
    """A name or path for a message: as `builders.files.as_text`, but a % is never escaped."""
    return _NOT_TEXT.sub(percent_encoded, str(name))


def percent_encoded(found: re.Match[str]) -> str:
    """The bytes of a match, each as % and two hex digits."""
    try:
        data = os.fsencode(found[0])
    except UnicodeEncodeError:  # a surrogate that is not in file names, but may be in a message
        data = found[0].encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)


def quoted(values: Iterable[object], most: int = 10) -> str:
    """The first `most` values in quotes, and the number of the others."""
    items = list(values)
    return ", ".join(f"'{shown(item)}'" for item in items[:most]) + and_more(len(items), most)


def and_more(count: int, most: int) -> str:
    """`` and 7 more`` to append to the first `most` of `count` things; empty if there are no more."""
    return f" and {count - most} more" if count > most else ""


def plural(count: int, noun: str) -> str:
    """``1 commit``, ``2 commits``, ``2 classes``: a count with its noun, given in the singular."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, without its full stop; its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def brief(error: object, most: int = 200) -> str:
    """What another library says, on one line, cut after `most` characters."""
    return " ".join(str(error).split())[:most]


def hours_text(hours: float) -> str:
    """Hours or minutes, for people."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def size_text(size: float) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.1f} {unit}" if unit != "bytes" and size < 10 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
