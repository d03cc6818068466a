"""What the Hub's answers mean: whether the same request may succeed in a moment, and plain words where it may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hfsyn.errors import ExitCode, HfsynError

_PASSES = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
_SHOWN = 200
_FINAL = frozenset({"LocalProtocolError", "UnsupportedProtocol", "XetAuthenticationError"})
"""Of the transport's and hf_xet's errors: a request that cannot be sent, and a token that is refused."""
_XET_STATUS = re.compile(r"\b(401|403|404)\b")
"""hf_xet says a status only in the words of a ConnectionError."""
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


class HeadMovedError(Exception):
    """Somebody else committed to the branch since it was looked at."""


def passes(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    from builders.access import is_transport_error

    if isinstance(error, HfsynError | HeadMovedError):  # said already, after as many tries as it was worth
        return False
    if any(isinstance(one, OfflineModeIsEnabled) or type(one).__name__ in _FINAL for one in _chain(error)):
        return False
    status, _ = status_of(error)
    if status:
        return status in _PASSES
    return any(is_transport_error(one) or isinstance(one, TimeoutError) for one in _chain(error))


def refusal(what: str, repo_id: str, error: BaseException, token: str | bool | None = None) -> BaseException:
    """The one line for an error of the client that does not pass, with the way out; an unknown one as it is."""
    from huggingface_hub import errors

    from builders.access import page_of
    from builders.errors import DataError

    status, _ = status_of(error)
    if isinstance(error, DataError):
        if status not in (401, 403):
            return HfsynError(error.message, error.hint, code=ExitCode.PREFLIGHT)
    elif isinstance(error, HfsynError | HeadMovedError):
        return error
    # What the Hub said, under what the client made of it: RuntimeError of an upload, ValueError of a card.
    said = error
    error = next((one for one in _chain(error) if isinstance(one, errors.HfHubHTTPError)), error)
    login = "Log in with a token that may write: hf auth login"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HfsynError(
            f"Could not {what}: there is no token.", f"{login}, or set HF_TOKEN.", code=ExitCode.PREFLIGHT
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HfsynError(
            f"Could not {what}: HF_HUB_OFFLINE is set.", "Unset it: publishing needs the Hub.", code=ExitCode.PREFLIGHT
        )
    if isinstance(error, errors.GatedRepoError):
        return HfsynError(
            f"Could not {what}: access to it must be asked for, and this account has none.",
            f"Accept the terms on its page, then run the same command again: {page_of(repo_id)}",
            code=ExitCode.PREFLIGHT,
        )
    if status == 401:
        return HfsynError(f"Could not {what}: the Hub does not know this token.", f"{login}.", code=ExitCode.PREFLIGHT)
    if status == 403:
        return HfsynError(
            f"Could not {what}: this token may not ({reason(error, token)}).", f"{login}.", code=ExitCode.PREFLIGHT
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return HfsynError(
            f"Could not {what}: it is not there, or not for this account.",
            "Check the name, and the account: hf auth whoami",
            code=ExitCode.PREFLIGHT,
        )
    if isinstance(error, errors.HfHubHTTPError):
        return HfsynError(
            f"Could not {what}: the Hub refuses ({reason(said if isinstance(said, ValueError) else error, token)}).",
            "What was sent is kept. Mend what it says and run the same command again.",
            code=ExitCode.PREFLIGHT,
        )
    return error


def without_token(text: str, token: str | bool | None = None) -> str:
    """The text without the token, should a message ever quote it."""
    from huggingface_hub import get_token

    for secret in {token if isinstance(token, str) else None, get_token()}:
        if secret:
            # An error may quote it as Python writes it, or without what a line end added to it.
            for form in (secret, repr(secret)[1:-1], secret.strip()):
                text = text.replace(form, "hf_***") if form else text
    return _TOKEN.sub("hf_***", text)


def check_token(token: str | bool | None) -> str | bool | None:
    """A token without the line end that a file may have added; the same for none.

    Raises:
        HfsynError: it has a character that no token has. It is not quoted.
    """
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HfsynError(
            "The token has a blank, a line end or a character that is not ASCII in it, and is no token.",
            "Copy it again, or log in: hf auth login",
        )
    return token


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those from which it came: `datasets` and `builders.access` raise their own for the client's."""
    found: list[BaseException] = []
    after: BaseException | None = error
    while after is not None and after not in found:
        found.append(after)
        yield after
        after = after.__cause__ or after.__context__


def status_of(error: BaseException) -> tuple[int, float]:
    """The HTTP status of an error and the seconds that the Hub asks to wait; zeros where there is none."""
    responses = (getattr(one, "response", None) for one in _chain(error))
    response = next((one for one in responses if one is not None), None)
    status = int(getattr(response, "status_code", 0) or 0)
    if not status:
        return _status_in_words(error), 0.0
    headers = getattr(response, "headers", {})
    asked = str(headers.get("Retry-After", ""))
    return status, max(float(asked) if asked.isdecimal() else 0.0, _rate_limited(headers) if status == 429 else 0.0)


def _status_in_words(error: BaseException) -> int:
    for one in _chain(error):
        if type(one).__name__ == "XetAuthenticationError":
            return 401
        if isinstance(one, ConnectionError) and (found := _XET_STATUS.search(str(one))) and "client error" in str(one):
            return int(found[1])
    return 0


def _rate_limited(headers: Any) -> float:
    """Seconds until the Hub's window of calls begins anew, as its own header says (``RateLimit: "api";r=0;t=255``)."""
    try:
        from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
    except ImportError:
        return 0.0
    found = parse_ratelimit_headers(headers)
    return float(getattr(found, "reset_in_seconds", 0) or 0) + 1 if found else 0.0


def reason(error: BaseException, token: str | bool | None) -> str:
    """An error in a few words of one line."""
    status, _ = status_of(error)
    said = (getattr(one, "server_message", None) for one in _chain(error))
    words = " ".join(str(next(filter(None, said), None) or error).split()) or type(error).__name__
    words = without_token(words, token)
    short = words if len(words) <= _SHOWN else words[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    return f"the Hub answers {status}: {short}" if status else f"{type(error).__name__}: {short}"
