"""Names of files as text that can be stored and printed, and that leads back to the file, whatever bytes it is of."""

from __future__ import annotations

import os
import re

# What is not text at all (surrogates stand for bytes that are not UTF-8), what breaks a line, and what turns the
# reading direction of the words after it. A fixed list, so that a name is the same in every version of Python.
_ODD = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ESCAPE = "(?:25|7F|[01][0-9A-F]|[89A-F][0-9A-F])"
_NOT_TEXT = re.compile(f"[{_ODD}]")
_TO_ESCAPE = re.compile(f"[{_ODD}]|%(?={_ESCAPE})")
_ESCAPED = re.compile(f"%({_ESCAPE[3:-1]})".encode())

_LITTER = frozenset({"@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
_LITTER |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def as_text(name: str) -> str:
    """A name or relative path as text for ids and tables: on one line, and UTF-8; `as_path` leads back.

    Each byte that is not UTF-8, and each byte of a control character, becomes % and two hex digits; so does a % that
    would else be taken for one of these. Any other name is left as it is.
    """
    return _TO_ESCAPE.sub(_percent, name)


def shown(name: object) -> str:
    """A name or path for a message: as `as_text`, but every % is left as it is."""
    return _NOT_TEXT.sub(_percent, str(name))


def is_plain(name: str) -> bool:
    """Whether a name is UTF-8 and without control characters."""
    return _NOT_TEXT.search(name) is None


def _percent(found: re.Match[str]) -> str:
    try:
        data = os.fsencode(found[0])
    except UnicodeEncodeError:  # a surrogate that stands for no byte: in no file name, but perhaps in a message
        data = found[0].encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)


def as_path(text: str) -> str:
    """The name or path that `as_text` was given: what the file is opened by."""
    if "%" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text)))


def is_litter(name: str) -> bool:
    """Whether a file or folder is what systems leave behind, such as .DS_Store, Thumbs.db and Synology's @eaDir."""
    return name.startswith(".") or name.casefold() in _LITTER


_ROOTED = re.compile(r"^(~|[A-Za-z]:)?[\\/].*[\\/]")


def below(path: str, folder: os.PathLike[str] | None = None) -> str:
    """A path as it may be published: below the folder, where it lies there; of another that begins at a root, the last
    name.
    """
    inside = folder is not None and path.startswith(f"{os.fspath(folder)}/")
    return path[len(os.fspath(folder)) + 1 :] if folder is not None and inside else _ROOTED.sub("", path)
