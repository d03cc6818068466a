"""How lists, sizes, hours and other libraries' errors are worded in messages, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable

from builders.file_names import shown


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
