"""What the Hub says: which answers are retried after a wait (such as 429), others in plain words, revisions as commits.

Every request of `builders` and `hfsyn` goes through `said_plainly`, `patiently` or `resumed`. Temporary failures (a
conflict, a rate limit, a server error, a broken or silent connection) are retried a limited number of times with
growing, jittered pauses; others (no token, no permission, no such repository) end at once and say what to do.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, errors, get_token
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from builders.errors import DataError, HfsynError, near_path

T = TypeVar("T")

ATTEMPTS = 6  # attempts of one call: with the pauses below they bridge an outage of about a minute
STREAM_ATTEMPTS = 8
"""In a row, of a stream: some three minutes of pauses; the Hub's client itself retries for half a minute in each."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds; each pause doubles the one before, times a random number from 0.5 to 1."""
LONGEST_ASKED = 300.0
"""Seconds; the Hub's rate limits have windows of five minutes, so a longer `Retry-After` is not expected."""

_PASSES = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
_TRANSPORT = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp"})
_FINAL = frozenset({"LocalProtocolError", "UnsupportedProtocol", "XetAuthenticationError"})
"""Errors of the transport and of hf_xet that retrying does not fix: an invalid request or token."""
_UNCONNECTED = frozenset({"ConnectError", "ConnectTimeout", "ConnectionRefusedError"})
_XET_STATUS = re.compile(r"\b(401|403|404)\b")  # hf_xet states the status only in the message of a ConnectionError
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_REQUEST = re.compile(r" ?\(Request ID: [^)]*\)")
_SHOWN = 200

_log = logging.getLogger(__name__)
_SHA = re.compile(r"[0-9a-f]{40}")


class UnreachableError(DataError):
    """The Hub did not answer, or the user is offline: use the cache, or try later."""

    waited = False  # whether retries are exhausted

    @property
    def clause(self) -> str:
        """The message as part of another sentence."""
        text = self.message.rstrip(".")
        return text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"


class HeadMovedError(Exception):
    """Another commit was made to the branch since it was read."""


def page_of(repo_id: str, repo_type: str = "dataset") -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, now or when huggingface_hub was imported."""
    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return bool(constants.HF_HUB_OFFLINE) or now


@dataclass
class Patience:
    """How often and how long to retry one call, several calls, or a stream."""

    repo_id: str
    doing: str = ""  # the action, for a message: "commit to user/name". Empty for reading
    revision: str | None = None
    page: str = ""  # the repository's page; empty is the dataset's on the Hub that HF_ENDPOINT names
    token: str | bool | None = None
    attempts: int = ATTEMPTS
    at_the_door: bool = False
    """Whether to try only twice if no connection can be made, as there may be no network at all."""
    say: Callable[[str], None] = _log.warning  # gets a line about every pause
    sleep: Callable[[float], None] | None = None
    chance: Callable[[], float] = random.random
    failed: int = 0  # failed attempts in a row; reset it to 0 after progress

    def after(self, error: Exception) -> None:
        """Wait after a failed attempt.

        Raises DataError for a permanent failure or after the last attempt (exit code 4), and `error` itself if it is
        not the Hub's or means a missing file.
        """
        plain = _plain(error, self)
        if not passes(error):
            raise plain from (error if plain is not error else error.__cause__)
        self.failed += 1
        unconnected = self.at_the_door and any(type(one).__name__ in _UNCONNECTED for one in _chain(error))
        if self.failed >= (min(2, self.attempts) if unconnected else self.attempts):
            lost = UnreachableError(
                f"{str(getattr(plain, 'message', plain)).rstrip('.')} ({self.failed} attempts).",
                "Finished work is kept. Run the same command again to continue.",
                code=4,
            )
            lost.waited = True
            raise lost from error
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failed - 1)) * (0.5 + self.chance() / 2)
        pause = max(pause, min(status_of(error)[1], LONGEST_ASKED))
        self.say(f"{self.doing or f'read {self.repo_id}'}: {reason(error, self.token)}; again in {pause:.0f} s")
        (self.sleep or time.sleep)(pause)


def patiently(call: Callable[[], T], patience: Patience) -> T:
    """The result of `call`, retried after temporary failures. Raises as `Patience.after`."""
    while True:
        try:
            return call()
        except Exception as error:
            patience.after(error)


def resumed(begin: Callable[[int], Iterator[T]], repo_id: str, revision: str | None) -> Iterator[T]:
    """The items of a stream, resumed where it broke off: `begin(n)` is the stream without its first n items.

    Raises DataError if the Hub refuses, or cannot be reached in all of the attempts in a row (exit code 4).
    """
    patience, given = Patience(repo_id, revision=revision, attempts=STREAM_ATTEMPTS), 0
    while True:
        try:
            for item in begin(given):
                given += 1
                patience.failed = 0
                yield item
            return
        except Exception as error:
            patience.after(error)


def asked(ask: Callable[[], object]) -> bool:
    """Ask the Hub for permission; whether it has that endpoint, which a mirror or an older server may lack.

    Raises the Hub's error if it refuses.
    """
    known = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    try:
        ask()
    except errors.HfHubHTTPError as error:
        if status_of(error)[0] not in (404, 405, 501) or isinstance(error, known):
            raise
        return False
    return True


@contextmanager
def said_plainly(repo_id: str, revision: str | None, page: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub into DataErrors, without retrying."""
    try:
        yield
    except Exception as error:
        plain = _plain(error, Patience(repo_id, revision=revision, page=page))
        if plain is error:
            raise
        raise plain from error


def _plain(error: Exception, of: Patience) -> Exception:
    """A DataError for an error of the Hub's client, with what to do; other errors and missing files are returned as is.

    Exit codes: 3 for missing permission, 4 for a Hub that does not answer, 2 for a repository or revision that does not
    exist; but 3 for these too when writing, since they existed before.
    """
    found = None if isinstance(error, HfsynError | HeadMovedError) else _answer(error, of)
    if found is None:
        return error
    text, hint, code = found
    if of.doing:
        text = f"Could not {of.doing}: {text}"
    elif not text.startswith((of.repo_id, "'")):
        text = f"{text[0].upper()}{text[1:]}"
    offline = any(isinstance(one, errors.OfflineModeIsEnabled) for one in _chain(error))
    return (UnreachableError if code == 4 or offline else DataError)(f"{text}.", hint, code=code)


def _answer(error: Exception, of: Patience) -> tuple[str, str, int] | None:
    """What the Hub answered, what to do and the exit code; None if the caller handles it."""
    repo_id, doing, page = of.repo_id, of.doing, of.page or page_of(of.repo_id)
    # The Hub's error may be wrapped by the client: a RuntimeError of an upload, a ValueError of a card.
    kinds = errors.HfHubHTTPError | errors.OfflineModeIsEnabled | errors.HFValidationError
    kinds |= errors.LocalTokenNotFoundError
    local = errors.LocalEntryNotFoundError  # the client raises it for any failure, if the file is not cached
    inner = next((one for one in _chain(error) if isinstance(one, kinds) and not isinstance(one, local)), error)
    status, _ = status_of(error)
    login = f"log in with{' a token that can write' if doing else ''}: hf auth login."
    gated = isinstance(inner, errors.GatedRepoError)
    absent = isinstance(inner, errors.RepositoryNotFoundError) and not gated
    if isinstance(inner, errors.LocalTokenNotFoundError):
        return "there is no token", f"To have one, {login.rstrip('.')}, or set HF_TOKEN.", 3
    if isinstance(inner, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "Unset it: the Hub is needed.", 3 if doing else 2
    if gated:
        return f"{repo_id} is gated, and you have no access", f"Accept its terms at {page}, then {login}", 3
    if isinstance(inner, errors.RevisionNotFoundError):
        tag = f"A version's tag begins with v: {repo_id}@v{of.revision}. " if re.match(r"\d", str(of.revision)) else ""
        return f"{repo_id} has no revision '{of.revision}'", f"{tag}See {page}/commits/main.", 3 if doing else 2
    if status == 401 and (doing or not absent):
        return f"the Hub does not know this token ({repo_id})", f"Copy it again, or {login}", 3
    if absent:
        # The Hub gives the same answer for a missing repository and for a private one.
        see, near = f"See {page}; if it is, {login}", "" if doing else near_path(repo_id)
        if near:
            return f"there is no folder {repo_id}, and no such repository on the Hub, or not for you", near[1:], 2
        return f"{repo_id} is not there, or not for you", see, 3 if doing else 2
    if isinstance(inner, errors.HFValidationError):
        return f"'{repo_id}' is not a repository's name", "One looks like USER/NAME.", 2
    absent_file = isinstance(inner, errors.EntryNotFoundError) and not isinstance(inner, local)
    if not doing and (absent_file or (isinstance(error, local) and not status and not passes(error))):
        return None
    if any(type(one).__name__ == "LocalProtocolError" for one in _chain(error)):  # its message quotes the token
        return "the token has an invalid character", "Copy it again.", 3
    short = reason(error if isinstance(error, ValueError) else inner, of.token)
    if status == 403:
        return f"this token is not allowed to do this ({short})", f"To be allowed, {login}", 3
    if passes(error) and status:
        return short, "Run the same command again later.", 4
    if isinstance(inner, errors.HfHubHTTPError):
        return f"the Hub refuses {repo_id} ({short})", "Fix what it says and run the same command again.", 3
    if passes(error) or _is_transport(error):
        return f"the Hub cannot be reached ({short})", "Check the network and HF_ENDPOINT, then try again.", 4
    return None


def passes(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    ours = isinstance(error, HfsynError | HeadMovedError)
    if ours and not (isinstance(error, UnreachableError) and not error.waited):
        return False
    if any(isinstance(one, errors.OfflineModeIsEnabled) or type(one).__name__ in _FINAL for one in _chain(error)):
        return False
    status, _ = status_of(error)
    return status in _PASSES if status else any(map(_is_transport, _chain(error)))


def _is_transport(error: BaseException) -> bool:
    """Whether a connection failed; by module, as huggingface_hub has changed its HTTP library before."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _TRANSPORT


def without_token(text: str, token: str | bool | None = None) -> str:
    """The text without the token, should a message quote it."""
    for secret in filter(None, {token if isinstance(token, str) else None, get_token()}):
        for form in filter(None, (secret, repr(secret)[1:-1], secret.strip())):
            text = text.replace(form, "hf_***")
    return _TOKEN.sub("hf_***", text)


def check_token(token: str | bool | None) -> str | bool | None:
    """A token without surrounding white space; raises DataError, which does not quote it, for an invalid character."""
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        said = "The token has a blank, a line end or a character that is not ASCII in it, and is not a token."
        raise DataError(said, "Copy it again, or log in: hf auth login")
    return token


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that caused it: `datasets` and this module wrap the client's."""
    found: list[BaseException] = []
    after: BaseException | None = error
    while after is not None and after not in found:
        found.append(after)
        yield after
        after = after.__cause__ or after.__context__


def status_of(error: BaseException) -> tuple[int, float]:
    """The HTTP status of an error and the seconds that the Hub asks to wait; 0 if there is none."""
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
    """Seconds until the Hub's next rate limit window, from its header (``RateLimit: "api";r=0;t=255``)."""
    found = parse_ratelimit_headers(headers)
    return float(getattr(found, "reset_in_seconds", 0) or 0) + 1 if found else 0.0


def reason(error: BaseException, token: str | bool | None) -> str:
    """An error in a few words, on one line."""
    status, _ = status_of(error)
    said = (getattr(one, "server_message", None) for one in _chain(error))
    words = " ".join(str(next(filter(None, said), None) or error).split()) or type(error).__name__
    words = _REQUEST.sub("", without_token(words, token))
    short = words if len(words) <= _SHOWN else words[:_SHOWN].rsplit(" ", 1)[0] + " ..."
    return f"the Hub answers {status}: {short}" if status else f"{type(error).__name__}: {short}"


@dataclass(frozen=True)
class Resolved:
    """A commit."""

    sha: str
    offline: bool  # whether it comes from the cache
    paths: tuple[str, ...]  # the files of the commit; offline, those in the cache


def resolve(repo_id: str, revision: str, token: str | bool | None = None) -> Resolved:
    """The current commit of a revision of a dataset; from the cache if the Hub cannot be asked.

    Raises DataError if there is no such repository or revision, without access (exit code 3), or if the Hub does not
    answer and the cache does not have it (exit code 4).
    """
    known = _known(repo_id, revision)
    if is_offline():
        if known is None:
            raise not_cached(f"{repo_id} at {revision}", repo_id, "HF_HUB_OFFLINE is set")
        return Resolved(known, True, _snapshot_files(repo_id, known))
    # If the cache has it, an unreachable Hub is tried only once.
    patience = Patience(repo_id, revision=revision, token=token, attempts=1 if known else ATTEMPTS, at_the_door=True)
    try:
        info = patiently(lambda: HfApi(token=token).dataset_info(repo_id, revision=revision, timeout=30), patience)
    except UnreachableError as error:
        if not known:
            raise not_cached(f"{repo_id} at {revision}", repo_id, error.clause, code=4) from error
        return Resolved(known, True, _snapshot_files(repo_id, known))
    sha = str(info.sha)
    _remember(repo_id, revision, sha)
    return Resolved(sha, False, tuple(sibling.rfilename for sibling in info.siblings or ()))


def _snapshot_files(repo_id: str, sha: str) -> tuple[str, ...]:
    snapshot = _storage(repo_id) / "snapshots" / sha
    return tuple(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _storage(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo_id.replace('/', '--')}"


def _remember(repo_id: str, revision: str, sha: str) -> None:
    """Note a revision's commit in the cache, as the client itself does when it downloads by that name."""
    if revision != sha:
        note = _storage(repo_id) / "refs" / revision
        with suppress(OSError):  # only offline use needs it
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(sha, encoding="utf-8")


def _known(repo_id: str, revision: str) -> str | None:
    """The commit that the cache has under exactly this name."""
    note = _storage(repo_id) / "refs" / revision
    sha = revision if _SHA.fullmatch(revision) else note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return sha if _SHA.fullmatch(sha) and (_storage(repo_id) / "snapshots" / sha).is_dir() else None


def not_cached(what: str, repo_id: str, why: str = "the Hub cannot be asked", *, code: int = 2) -> DataError:
    """The error for something that is not in the cache when the Hub cannot be asked."""
    if near := near_path(repo_id):
        also = f"On the Hub it could not be looked for: {why}."
        return DataError(f"There is no folder {repo_id}.{near}", also, code=code)
    return DataError(
        f"{what} is not in the local cache, and {why}. No other version is used instead.",
        f"Load it once while online, or: hf download --repo-type dataset {repo_id} --revision VERSION",
        code=code,
    )
