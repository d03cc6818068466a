"""The one error that the builders raise for something a user can mend."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Data, or a request for data, that cannot be used as it is.

    `message` says what was wrong, with its value; `hint` says what is allowed or what to do about it; `code` is the
    exit code of a command that ends with it (2 for a mistake, 3 for a missing right, 4 for what passes).
    `str()` gives both in one line.
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message, hint, code)  # all as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
