"""Where a model is: shipped with hfsyn, in a local folder, in the cache, or on the Hub at a commit.

A run writes down which weights it used. `pin` turns "the newest" into a commit sha, or into the hash of what a local
folder holds, before anything is spent; `loading` gives what `from_pretrained` takes and refuses changed weights.

No code of a repository is ever run, and only safetensors are read unless a user allows pickles: a pickle runs code too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from builders.files import sha256_of
from builders.hub.answers import ATTEMPTS, Patience, UnreachableError, page_of, patiently
from builders.wording import first_line
from hfsyn.errors import HfsynError
from hfsyn.models.checkpoint_files import FIELD, MARKER, Kind, checked_variant
from hfsyn.recipes.recipe import BUILTIN, is_content_hash

_SHA = re.compile(r"[0-9a-f]{40}")
_KINDS = {
    "captioner": "a captioning model of transformers (BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2 or an instruction VLM)",
    "generator": "a text-to-image pipeline of diffusers (Stable Diffusion, SDXL, ...)",
    "language model": "a causal language model of transformers, or an encoder-decoder such as T5",
}
_EXAMPLE = {
    "captioner": "Salesforce/blip-image-captioning-base",
    "generator": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "language model": "Qwen/Qwen2.5-1.5B-Instruct",
}


def locate(model: str, kind: Kind) -> str:
    """A folder or Hub id for ``from_pretrained``; nothing is loaded or fetched.

    Raises:
        HfsynError: a local folder that holds no such model, a path where nothing is, or what is no Hub id.
    """
    if model == BUILTIN:
        if kind == "language model":
            raise HfsynError("hfsyn comes with no language model.", f"Name a folder, {_otherwise(kind)}.")
        from hfsyn import models

        return str(models.path(kind))
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if not (folder / MARKER[kind]).is_file():
            other: Kind = "captioner" if kind == "generator" else "generator"
            found = f"it holds a {other}" if (folder / MARKER[other]).is_file() else f"it has no {MARKER[kind]}"
            raise HfsynError(
                f"{model} is no {kind}: {found}.", f"Name a folder that save_pretrained wrote, {_otherwise(kind)}."
            )
        return str(folder.resolve())
    if model and folder.is_file():
        raise HfsynError(
            f"{model} is a file, and a {kind} is a folder.",
            "A single-file checkpoint becomes one with StableDiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER)."
            if kind == "generator"
            else f"Name the folder that save_pretrained wrote, {_otherwise(kind)}.",
        )
    if model.startswith(("/", ".", "~")) or not _is_hub_id(model):
        at = " A revision goes into its own field." if "@" in model else ""
        raise HfsynError(
            f"There is no {kind} at {model!r}, and that is no Hub id either.{at}",
            f"Name a folder that exists, {_otherwise(kind)}.",
        )
    return model


def pin(model: str, revision: str | None, kind: Kind) -> str | None:
    """The commit sha that `revision` (None: the newest) of a Hub model stands for; the content hash of a local model.

    A sha whose files are cached is taken as it is, without a network. Otherwise the Hub is asked; where it cannot be,
    the commit is taken that the cache knows under that name, if its files are there.

    Raises:
        HfsynError: there is no such model or revision, it is gated (exit code 3), or it cannot be reached and is not
        cached.
    """
    if model == BUILTIN or (model and Path(model).expanduser().is_dir()):
        content = content_hash(Path(locate(model, kind)))
        if revision is not None and not is_content_hash(revision):
            raise HfsynError(
                f"{FIELD[kind]}.revision is {revision!r}, but {model} is a local model and has none.",
                f"Leave it out: --set {FIELD[kind]}.revision=null",
            )
        if revision not in (None, content):
            raise HfsynError(
                f"The {kind} {model} is not the one that the recipe means: its content is {content[:19]}..., and "
                f"{FIELD[kind]}.revision is {str(revision)[:19]}...",
                f"Name the folder with the right weights, or --set {FIELD[kind]}.revision=null to take these.",
            )
        return content
    locate(model, kind)
    if is_content_hash(revision):
        raise HfsynError(
            f"{FIELD[kind]}.model is {model!r}, and its revision {str(revision)[:19]}... is the content of a local "
            "folder.",
            f"Name that folder: --set {FIELD[kind]}.model=FOLDER",
        )
    if revision is not None and _SHA.fullmatch(revision) and _cached(model, revision, kind):
        return revision
    from huggingface_hub import HfApi

    # Where the cache knows it, a Hub that does not answer is not waited for.
    known = _cached(model, revision, kind)
    patience = Patience(
        model, revision=revision, page=page_of(model, "model"), attempts=1 if known else ATTEMPTS, at_the_door=True
    )
    try:
        return patiently(lambda: HfApi().model_info(model, revision=revision, timeout=20), patience).sha
    except (UnreachableError, OSError) as error:
        if known:
            return known
        at = f" at {revision}" if revision else ""
        why, code = (error.clause, error.code) if isinstance(error, UnreachableError) else (first_line(error), 2)
        raise HfsynError(
            f"The {kind} {model}{at} is not in the local cache, and {why}.",
            f"Fetch it with a network (`hf download {model}`), name a local folder"
            + ("." if kind == "language model" else f", or --set {FIELD[kind]}.model=builtin."),
            code=code,
        ) from None


def content_hash(folder: Path) -> str:
    """``sha256:`` and the hash of a model folder: of the names and contents of all files but cards and hidden ones."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in name.parts):
            whole.update(f"{name.as_posix()}\n{sha256_of(path)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def loading(model: str, revision: str | None, kind: Kind, *, allow_pickle: bool = False) -> tuple[str, dict[str, Any]]:
    """The first argument and the options of ``from_pretrained``.

    Raises:
        HfsynError: as `locate`; or the content of a local model is not the one that `revision` names.
    """
    where = locate(model, kind)
    options: dict[str, Any] = {"trust_remote_code": False}
    if not allow_pickle:
        options["use_safetensors"] = True
    if is_content_hash(revision):
        pin(model, revision, kind)
    elif revision:
        options["revision"] = revision
    if kind != "generator" and (files := files_of(model, revision, kind)):
        variant = checked_variant(model, kind, files, allow_pickle=allow_pickle)
        options |= {} if variant is None else {"variant": variant}
    return where, options


def files_of(model: str, revision: str | None, kind: Kind, *, cached: bool = False) -> list[str]:
    """Paths of a model's files, in its folder or at its commit on the Hub; empty where the Hub cannot be asked.

    Args:
        model, revision, kind: see `loading`.
        cached: then name those in the cache, which may be a part of them only.

    Raises:
        HfsynError: as `locate`.
    """
    place = locate(model, kind)
    if Path(place).is_dir():
        return _below(Path(place))
    from huggingface_hub import HfApi, try_to_load_from_cache

    revision = None if is_content_hash(revision) else revision
    marker = try_to_load_from_cache(model, MARKER[kind], revision=revision)
    known = _below(Path(marker).parent) if isinstance(marker, str) else []
    patience = Patience(model, revision=revision, page=page_of(model, "model"), attempts=1 if known else ATTEMPTS)
    try:
        return sorted(patiently(lambda: HfApi().list_repo_files(model, revision=revision), patience))
    except (HfsynError, OSError):
        return known if cached else []


def _below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def found_variant(model: str, revision: str | None) -> str | None:
    """The only variant of a generator's weights that is there, where the plain ones are not."""
    files = files_of(model, revision, "generator", cached=True)
    parts = [folder for name in files if name.endswith("/config.json") and "/" not in (folder := name[:-12])]
    with contextlib.suppress(HfsynError):  # what is missing is told when it is loaded
        return checked_variant(model, "generator", files, parts, allow_pickle=True)
    return None


def unloadable(model: str, kind: Kind, error: Exception) -> HfsynError:
    """What to tell a user whose model `from_pretrained` refused, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason or "remote code" in reason:
        return HfsynError(
            f"{model} cannot be loaded as a {kind}: it brings code of its own, and hfsyn runs no code from the Hub.",
            f"Name a model whose architecture is part of transformers or diffusers, such as {_EXAMPLE[kind]}.",
        )
    if "safetensors" in reason and "file" in reason:
        return HfsynError(
            f"{model} cannot be loaded as a {kind}: some of its safetensors weights are missing, or it has none.",
            f"Fetch all of it with a network: `hf download {model}`. If it has pickles alone, which run code as they "
            "are read, and you trust them: --allow-pickle-weights.",
        )
    if found := re.search(r"AutoPipeline can't find a pipeline linked to (\w+)", reason):
        return HfsynError(
            f"{model} is a {found[1]}, which does not draw from text alone.", f"Name another, such as {_EXAMPLE[kind]}."
        )
    if len(reason) > 200:
        reason = reason[:200].rsplit(" ", 1)[0] + " ..."
    return HfsynError(
        f"{model} cannot be loaded as a {kind}: {type(error).__name__}: {reason}",
        f"It takes {_KINDS[kind]} with all its files, such as {_EXAMPLE[kind]}.",
    )


def _is_hub_id(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def _cached(model: str, revision: str | None, kind: Kind) -> str | None:
    """The sha of a revision whose files the local cache holds."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, MARKER[kind], revision=revision)
    if isinstance(found, str):
        # .../models--USER--NAME/snapshots/<sha>/model_index.json
        sha = Path(found).parent.name
        if _SHA.fullmatch(sha):
            return sha
    return None


def _otherwise(kind: Kind) -> str:
    return f"a Hub id such as {_EXAMPLE[kind]}" + ("" if kind == "language model" else ", or builtin")
