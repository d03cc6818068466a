"""How lists, sizes, hours and other libraries' errors are worded in messages, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable

from builders.file_names import shown


def quoted(values: Iterable[object], most: int = 10) -> str:
    """The values in quotes, `most` of them at most, with how many more there are."""
    items = list(values)
    return ", ".join(f"'{shown(item)}'" for item in items[:most]) + and_more(len(items), most)


def and_more(count: int, most: int) -> str:
    """`` and 7 more`` where `count` things are too many to be named, to be put behind the first `most`; else empty."""
    return f" and {count - most} more" if count > most else ""


def first_line(error: BaseException) -> str:
    """What another library's error says, without its full stop; the error's kind where it says nothing."""
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
