"""The one error that the builders raise for something a user can mend."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Data, or a request for data, that cannot be used as it is.

    `message` says what was wrong, with its value; `hint` says what is allowed or what to do about it.
    `str()` gives both in one line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
