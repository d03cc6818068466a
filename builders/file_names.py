"""File names as text that can be stored and printed, and converted back, whatever bytes they consist of."""

from __future__ import annotations

import os
import re

# Control characters, surrogates (bytes that are not UTF-8), line breaks, and marks that change the reading direction.
# A fixed list, so that a name is the same in every version of Python.
_ODD = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ESCAPE = "(?:25|7F|[01][0-9A-F]|[89A-F][0-9A-F])"
_NOT_TEXT = re.compile(f"[{_ODD}]")
_TO_ESCAPE = re.compile(f"[{_ODD}]|%(?={_ESCAPE})")
_ESCAPED = re.compile(f"%({_ESCAPE[3:-1]})".encode())

_LITTER = frozenset({"@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
_LITTER |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def as_text(name: str) -> str:
    """A name or relative path as UTF-8 text on one line, for ids and tables; `as_path` is its inverse.

    Each byte of a control character, or that is not UTF-8, becomes % and two hex digits; so does a % that would be
    ambiguous.
    """
    return _TO_ESCAPE.sub(_percent, name)


def shown(name: object) -> str:
    """A name or path for a message: as `as_text`, but a % is never escaped."""
    return _NOT_TEXT.sub(_percent, str(name))


def is_plain(name: str) -> bool:
    """Whether a name is UTF-8 without control characters."""
    return _NOT_TEXT.search(name) is None


def _percent(found: re.Match[str]) -> str:
    try:
        data = os.fsencode(found[0])
    except UnicodeEncodeError:  # a surrogate that is not in file names, but may be in a message
        data = found[0].encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)


def as_path(text: str) -> str:
    """The name or path for which `as_text` gave this text."""
    if "%" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text)))


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or created by a system, as .DS_Store, Thumbs.db and Synology's @eaDir."""
    return name.startswith(".") or name.casefold() in _LITTER


_ROOTED = re.compile(r"^(~|[A-Za-z]:)?[\\/].*[\\/]")


def below(path: str, folder: os.PathLike[str] | None = None) -> str:
    """A path as it may be published: relative to the folder if it lies there; of other absolute paths the last name."""
    if folder is not None and path.startswith(f"{os.fspath(folder)}/"):
        return path[len(os.fspath(folder)) + 1 :]
    return _ROOTED.sub("", path)
