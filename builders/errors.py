"""The one base of the errors that a user is meant to read, and the kind that the builders raise."""

from __future__ import annotations

__all__ = ["DataError", "HfsynError"]


class HfsynError(Exception):
    """A user's mistake or an outside fault, said in one line and never shown with a traceback.

    Not a ValueError, which pydantic would catch inside a validator and rob of its hint.

    Args:
        message: what was wrong, with the value.
        hint: what is allowed, and the command or the edit that puts it right; may be empty.
        code: the exit code of a command that ends with this error: 2 for a mistake, 3 for what must be there or
            allowed first, 4 for work that is done in part.
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message, hint, code)  # all as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        """Message and hint in one line."""
        return f"{self.message} {self.hint}".strip()


class DataError(HfsynError):
    """Data, or a request for data, that cannot be used as it is."""
