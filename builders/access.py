"""What the Hub refuses, and where it cannot be reached, said in one line that names the command that helps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from builders.errors import DataError

__all__ = ["UnreachableError", "is_offline", "is_transport_error", "page_of", "said_plainly"]

_LOGIN = "log in with: hf auth login"
_TRANSPORT = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp"})


class UnreachableError(DataError):
    """The Hub did not answer, or is switched off: the cache may be asked instead."""


def page_of(repo_id: str, repo_type: str = "dataset") -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"


def is_offline() -> bool:
    """Whether the user has switched the Hub off."""
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    return bool(constants.HF_HUB_OFFLINE) or asked


def is_transport_error(error: BaseException) -> bool:
    """Whether a connection failed: refused, cut, too slow.

    The HTTP library is huggingface_hub's business and has changed its name before, so its errors are told by module.
    """
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _TRANSPORT


@contextmanager
def said_plainly(repo_id: str, revision: str | None, page: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises about a dataset repository into a DataError.

    A missing file (EntryNotFoundError) passes through: what it means, the caller knows. `page` is for people; the
    default is the repository's on the Hub that HF_ENDPOINT names.
    """
    page = page or page_of(repo_id)
    try:
        yield
    except GatedRepoError as error:
        raise DataError(
            f"{repo_id} is gated, and you have no access.", f"Ask for it at {page}, then {_LOGIN}.", code=3
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{repo_id} has no revision '{revision}'.", f"See {page}/commits/main for what it has."
        ) from error
    except (RepositoryNotFoundError, LocalTokenNotFoundError) as error:
        # The Hub answers the same for a repository that is not there and for one that a stranger may not see.
        raise DataError(f"{repo_id} is not there, or not for you.", f"See {page}; if it is, {_LOGIN}.") from error
    except EntryNotFoundError:
        raise
    except OfflineModeIsEnabled as error:
        raise UnreachableError(f"The Hub is switched off: {error}", "Unset HF_HUB_OFFLINE.") from error
    except HFValidationError as error:
        raise DataError(f"'{repo_id}' is no dataset's name.", "One looks like USER/NAME.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 401:
            raise DataError(
                f"The Hub does not know this token ({repo_id}).", f"Copy it again, or {_LOGIN}.", code=3
            ) from error
        kind = UnreachableError if status >= 500 or status in (408, 429) else DataError
        reason = str(error).strip().splitlines()[0]
        raise kind(f"The Hub refused {repo_id}: {reason}", f"Try again; if access is asked for, {_LOGIN}.") from error
    except Exception as error:
        if not is_transport_error(error):
            raise
        if type(error).__name__ == "LocalProtocolError":  # a header that cannot be sent; its words quote the token
            raise DataError("The token has a character in it that no token has.", "Copy it again.", code=3) from None
        raise UnreachableError(
            f"The Hub cannot be reached: {type(error).__name__}: {str(error).rstrip('.')}.",
            "Check the network, or give a local copy: --set source.path=FOLDER.",
        ) from error
