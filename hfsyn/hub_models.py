"""Where a model is: shipped with hfsyn, in a local folder, in the cache, or on the Hub at a commit.

A run writes down which weights it used. `pin` turns "the newest" into a commit sha before anything is spent, and
`locate` gives what `from_pretrained` takes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from hfsyn.errors import ExitCode, HfsynError
from hfsyn.recipe import BUILTIN

Kind = Literal["captioner", "generator"]
_SHA = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MARKER = {"captioner": "config.json", "generator": "model_index.json"}


def locate(model: str, kind: Kind) -> str:
    """A folder or Hub id for ``from_pretrained``.

    Raises:
        HfsynError: a local folder that holds no such model.
    """
    if model == BUILTIN:
        from hfsyn import models

        return str(models.path(kind))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / _MARKER[kind]).is_file():
            raise HfsynError(
                f"{model} holds no {kind}: there is no {_MARKER[kind]} in it.",
                "Name a folder that save_pretrained wrote, a Hub id, or builtin.",
            )
        return str(folder.resolve())
    if model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        raise HfsynError(
            f"There is no {kind} at {model}.", "Name a folder that exists, a Hub id (USER/NAME), or builtin."
        )
    return model


def pin(model: str, revision: str | None, kind: Kind) -> str | None:
    """The commit sha that `revision` (None: the newest) of a Hub model stands for; None for a local model.

    Offline, the newest cached commit is taken, and only one whose files are there.

    Raises:
        HfsynError: there is no such model or revision, it is gated (exit code 3), or it cannot be reached and is not
        cached.
    """
    if model == BUILTIN or Path(model).expanduser().is_dir():
        if revision is not None:
            raise HfsynError(
                f"{kind}.revision is {revision!r}, but {model} is a local model.", "Leave the revision out."
            )
        locate(model, kind)
        return None
    locate(model, kind)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(model, revision=revision, timeout=20)
    except GatedRepoError:
        raise HfsynError(
            f"The {kind} {model} is gated and this account has no access.",
            f"Accept its terms on its page, then `hf auth login`: {model}",
            code=ExitCode.PREFLIGHT,
        ) from None
    except RepositoryNotFoundError:
        raise HfsynError(
            f"There is no {kind} {model!r} on the Hub, or it is private.",
            "Check the spelling, or `hf auth login`; a local folder or builtin is taken too.",
        ) from None
    except RevisionNotFoundError:
        raise HfsynError(
            f"The {kind} {model} has no revision {revision!r}.", "Name a branch, a tag or a commit."
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        return _cached(model, revision, kind, error)
    except Exception as error:
        # The client's transport errors come from its HTTP library and have no common base here.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        return _cached(model, revision, kind, error)
    return info.sha


def _cached(model: str, revision: str | None, kind: Kind, error: Exception) -> str:
    """The sha of a revision that the local cache holds."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, _MARKER[kind], revision=revision)
    if isinstance(found, str):
        # .../models--USER--NAME/snapshots/<sha>/model_index.json
        sha = Path(found).parent.name
        if _SHA.fullmatch(sha):
            return sha
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    why = "HF_HUB_OFFLINE is set" if offline else f"the Hub cannot be reached ({type(error).__name__})"
    raise HfsynError(
        f"The {kind} {model}" + (f" at {revision}" if revision else "") + f" is not in the local cache and {why}.",
        f"Fetch it with a network (`hf download {model}`), name a local folder, or --set {_field(kind)}=builtin.",
    ) from None


def _field(kind: Kind) -> str:
    return {"captioner": "caption.model", "generator": "generate.model"}[kind]
