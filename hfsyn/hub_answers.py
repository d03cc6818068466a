"""What the Hub's answers mean: whether the same request may succeed in a moment, and plain words where it may not."""

from __future__ import annotations

from collections.abc import Iterator

from hfsyn.errors import ExitCode, HfsynError

_PASSES = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
_SHOWN = 200


class HeadMovedError(Exception):
    """Somebody else committed to the branch since it was looked at."""


def passes(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    from builders.access import is_transport_error

    if isinstance(error, HfsynError | HeadMovedError):  # said already, after as many tries as it was worth
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

    if isinstance(error, HfsynError | HeadMovedError):
        return error
    status, _ = status_of(error)
    if isinstance(error, DataError) and status not in (401, 403):
        return HfsynError(error.message, error.hint, code=ExitCode.PREFLIGHT)
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
            text = text.replace(secret, "hf_***")
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those from which it came: `datasets` and `builders.access` raise their own for the client's."""
    found: list[BaseException] = []
    after: BaseException | None = error
    while after is not None and after not in found:
        found.append(after)
        yield after
        after = after.__cause__ or after.__context__


def status_of(error: BaseException) -> tuple[int, float]:
    """The HTTP status of an error and the seconds that `Retry-After` asks for; zeros where there is none."""
    responses = (getattr(one, "response", None) for one in _chain(error))
    response = next((one for one in responses if one is not None), None)
    status = int(getattr(response, "status_code", 0) or 0)
    asked = str(getattr(response, "headers", {}).get("Retry-After", "")) if status else ""
    return status, float(asked) if asked.isdigit() else 0.0


def reason(error: BaseException, token: str | bool | None) -> str:
    """An error in a few words of one line."""
    status, _ = status_of(error)
    said = (getattr(one, "server_message", None) for one in _chain(error))
    words = " ".join(str(next(filter(None, said), None) or error).split()) or type(error).__name__
    words = without_token(words, token)
    short = words if len(words) <= _SHOWN else words[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    return f"the Hub answers {status}: {short}" if status else f"{type(error).__name__}: {short}"
