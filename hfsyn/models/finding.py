"""Where a model is: shipped with hfsyn, in a local folder, in the cache, or on the Hub at a commit; and its weights.

A run writes down which weights it used. `pin` turns "the newest" into a commit sha, or into the hash of what a local
folder holds, before anything is spent; `loading` gives what `from_pretrained` takes and refuses changed weights.

No code of a repository is ever run, and only safetensors are read unless a user allows pickles: a pickle runs code too.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from builders.errors import first_line
from builders.files import sha256_of
from builders.hub import ATTEMPTS, Patience, UnreachableError, page_of, patiently
from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import check_content
from hfsyn.recipes.recipe import BUILTIN, is_content_hash
from hfsyn.recipes.strategies import check_place, content_of, is_user_strategy, split_name

Kind = Literal["captioner", "generator", "language model", "zero-shot classifier", "safety classifier"]
FIELD: Mapping[str, str] = {
    "captioner": "caption",
    "generator": "generate",
    "language model": "caption",
    "zero-shot classifier": "model",
    "safety classifier": "model",
}
"""The part of a recipe that names a model of that kind."""
_SHIPPED = ("captioner", "generator")  # hfsyn comes with one of its own
_MARKER = dict.fromkeys(FIELD, "config.json") | {"generator": "model_index.json"}
"""The file without which a folder is not a model of that kind."""
_KINDS = {
    "captioner": "a captioning model of transformers (BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2 or an instruction VLM)",
    "generator": "a text-to-image pipeline of diffusers (Stable Diffusion, SDXL, ...)",
    "language model": "a causal language model of transformers, or an encoder-decoder such as T5",
    "zero-shot classifier": "a model of images and texts of transformers (CLIP, SigLIP)",
    "safety classifier": "a model of transformers for image classification",
}
_EXAMPLE = {
    "captioner": "Salesforce/blip-image-captioning-base",
    "generator": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "language model": "Qwen/Qwen2.5-1.5B-Instruct",
    "zero-shot classifier": "openai/clip-vit-large-patch14",
    "safety classifier": "Falconsai/nsfw_image_detection",
}
_SHA = re.compile(r"[0-9a-f]{40}")
# As diffusers and transformers write them: the variant comes before the number of the shard or, in old ones, after it.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors)[A-Za-z]\w*))?"
    r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?:\.(?P<late>[A-Za-z]\w*))?\.(?P<kind>safetensors|bin)"
)


def locate(model: str, kind: Kind) -> str:
    """A folder or Hub id for ``from_pretrained``; nothing is loaded or fetched. Raises HfsynError for anything else."""
    if kind == "captioner" and is_user_strategy(model):
        path, _ = split_name(model, kind)
        if not path.is_file():
            raise HfsynError(f"There is no file {path}, and caption.model is {model!r}.", "Name a file of yours.")
        return str(path.resolve())
    otherwise = f"a Hub id such as {_EXAMPLE[kind]}" + (", or builtin" if kind in _SHIPPED else "")
    if model == BUILTIN:
        if kind not in _SHIPPED:
            raise HfsynError(f"hfsyn comes with no {kind}.", f"Name a folder, {otherwise}.")
        return str(Path(__file__).parent / kind)
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if not (folder / _MARKER[kind]).is_file():
            other = "captioner" if kind == "generator" else "generator"
            found = f"it holds a {other}" if (folder / _MARKER[other]).is_file() else f"it has no {_MARKER[kind]}"
            raise HfsynError(f"{model} is not a {kind}: {found}.", f"Name a folder of save_pretrained, {otherwise}.")
        return str(folder.resolve())
    if model and folder.is_file():
        hint = f"Name a folder of save_pretrained, {otherwise}."
        if kind == "generator":
            hint = "Make it one: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)."
        raise HfsynError(f"{model} is a file, and a {kind} is a folder.", hint)
    if model.startswith(("/", ".", "~")) or not _is_hub_id(model):
        at = " A revision goes into its own field." if "@" in model else ""
        said = f"There is no {kind} at {model!r}, and it is not a Hub id either.{at}"
        raise HfsynError(said, f"Name a folder that exists, {otherwise}.")
    return model


def _is_hub_id(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def pin(model: str, revision: str | None, kind: Kind) -> str:
    """The commit sha that `revision` (None: the newest) of a Hub model means; the content hash of a local model.

    Raises HfsynError if there is no such model or revision, it is gated (exit code 3), or it is neither reachable nor
    cached.
    """
    field = FIELD[kind]
    if kind == "captioner" and is_user_strategy(model):
        path = Path(locate(model, kind))
        check_place(path, f"The captioner {model!r}", "--set caption.model=path/to/file.py:Class")
        content = f"sha256:{content_of(model)}"
        check_content(content, revision, f"{path} is not the file", "caption.revision")
        return content
    if model == BUILTIN or (model and Path(model).expanduser().is_dir()):
        content = content_hash(Path(locate(model, kind)))
        if revision is not None and not is_content_hash(revision):
            said = f"{field}.revision is {revision!r}, but {model} is a local model and has none."
            raise HfsynError(said, f"Leave it out: --set {field}.revision=null")
        check_content(content, revision, f"The {kind} {model} is not the one", f"{field}.revision")
        return content
    locate(model, kind)
    if is_content_hash(revision):
        said = f"{field}.model is {model!r}, and its revision {str(revision)[:19]}... is the content of a local folder."
        raise HfsynError(said, f"Name that folder: --set {field}.model=FOLDER")
    from huggingface_hub import HfApi

    hint = f", or --set {field}.model=builtin." if kind in _SHIPPED else "."
    return commit_of(
        model,
        revision,
        _MARKER[kind],
        lambda: HfApi().model_info(model, revision=revision, timeout=20).sha,
        what=kind,
        hint=f"Fetch it with a network (`hf download {model}`), name a local folder{hint}",
    )


def commit_of(
    repo_id: str, revision: str | None, file: str, ask: Callable[[], str | None], *, what: str, hint: str
) -> str:
    """The commit that a revision of a model on the Hub means.

    A sha whose `file` is cached is taken as it is, without a network. Otherwise `ask` asks the Hub; if it does not
    answer, the commit is taken that the cache knows under that name, if its file is there. Raises HfsynError if the
    repository or revision does not exist, is gated (exit code 3), or is neither reachable nor cached, which `hint`
    helps with.
    """
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, file, revision=revision)
    # .../models--USER--NAME/snapshots/<sha>/model_index.json
    sha = Path(cached).parents[len(Path(file).parts) - 1].name if isinstance(cached, str) else ""
    known = sha if _SHA.fullmatch(sha) else None
    if known and revision == known:
        return known
    try:
        commit = patiently(ask, _patience(repo_id, revision, known, at_the_door=True))
    except (UnreachableError, OSError) as error:
        if known:
            return known
        at = f" at {revision}" if revision else ""
        why, code = (error.clause, error.code) if isinstance(error, UnreachableError) else (first_line(error), 2)
        raise HfsynError(f"The {what} {repo_id}{at} is not in the local cache, and {why}.", hint, code=code) from None
    if not commit:
        raise HfsynError(f"The Hub does not say the commit of {repo_id}.", "Set its revision to a commit.")
    return commit


def _patience(repo_id: str, revision: str | None, known: object, **options: Any) -> Patience:
    """Where the cache knows a model, a Hub that does not answer is asked once."""
    page = page_of(repo_id, "model")
    return Patience(repo_id, revision=revision, page=page, attempts=1 if known else ATTEMPTS, **options)


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

    Raises HfsynError as `locate`, or if the content of a local model is not the one that `revision` names.
    """
    where = locate(model, kind)
    options: dict[str, Any] = {"trust_remote_code": False} | ({} if allow_pickle else {"use_safetensors": True})
    if is_content_hash(revision):
        pin(model, revision, kind)
    elif revision:
        options["revision"] = revision
    if kind != "generator" and (files := files_of(model, revision, kind)):
        variant = checked_variant(model, kind, files, allow_pickle=allow_pickle)
        options |= {} if variant is None else {"variant": variant}
    return where, options


def unloadable(model: str, kind: Kind, error: Exception) -> HfsynError:
    """What to tell a user whose model `from_pretrained` refused."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason or "remote code" in reason:
        return HfsynError(
            f"{model} cannot be loaded as a {kind}: it brings code of its own, and hfsyn runs no code from the Hub.",
            f"Name a model whose architecture is part of transformers or diffusers, such as {_EXAMPLE[kind]}.",
        )
    if "safetensors" in reason and "file" in reason:
        return HfsynError(
            f"{model} cannot be loaded as a {kind}: some of its safetensors weights are missing, or it has none.",
            f"Fetch all of it with a network: `hf download {model}`. If it has only pickles, which run code as they "
            "are read, and you trust them: --allow-pickle-weights.",
        )
    if found := re.search(r"AutoPipeline can't find a pipeline linked to (\w+)", reason):
        said = f"{model} is a {found[1]}, which does not draw from text alone."
        return HfsynError(said, f"Name another, such as {_EXAMPLE[kind]}.")
    if len(reason) > 200:
        reason = reason[:200].rsplit(" ", 1)[0] + " ..."
    said = f"{model} cannot be loaded as a {kind}: {type(error).__name__}: {reason}"
    return HfsynError(said, f"It takes {_KINDS[kind]} with all its files, such as {_EXAMPLE[kind]}.")


def local_file(model: str, revision: str | None, name: str, kind: Kind = "generator") -> Path | None:
    """Where a file of a model is on this machine, by its path in the model; None where it is not here."""
    from huggingface_hub import try_to_load_from_cache

    try:
        place = locate(model, kind)
    except HfsynError:
        return None
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    found = try_to_load_from_cache(place, name, revision=None if is_content_hash(revision) else revision)
    return Path(found) if isinstance(found, str) else None


def configuration(model: str, revision: str | None, name: str, kind: Kind = "generator") -> dict[str, Any]:
    """A JSON file of a model on this machine; empty if it is not here, or not a JSON object."""
    path = local_file(model, revision, name, kind)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def files_of(model: str, revision: str | None, kind: Kind, *, cached: bool = False) -> list[str]:
    """Paths of a model's files, in its folder or at its commit on the Hub, sorted.

    Where the Hub cannot be asked: with `cached` those in the cache, which may be only some of them; otherwise none.
    """
    place = locate(model, kind)
    if Path(place).is_dir():
        return _below(Path(place))
    from huggingface_hub import HfApi

    revision = None if is_content_hash(revision) else revision
    marker = local_file(model, revision, _MARKER[kind], kind)
    known = _below(marker.parent) if marker else []
    try:
        patience = _patience(model, revision, known)
        return sorted(patiently(lambda: HfApi().list_repo_files(model, revision=revision), patience))
    except (HfsynError, OSError):
        return known if cached else []


def _below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def found_variant(model: str, files: Sequence[str]) -> str | None:
    """The only variant of a generator's weights, of which these are the files, where there are no plain ones."""
    parts = [folder for name in files if name.endswith("/config.json") and "/" not in (folder := name[:-12])]
    with contextlib.suppress(HfsynError):  # missing files are reported when the model is loaded
        return checked_variant(model, "generator", files, parts, allow_pickle=True)
    return None


def checked_variant(
    model: str,
    kind: Kind,
    files: Sequence[str],
    parts: Sequence[str] = ("",),
    variant: str | None = None,
    *,
    allow_pickle: bool = False,
) -> str | None:
    """The variant whose weights are loaded: `variant`, the plain ones (None), or the only one that is there.

    `files` are the paths of all files of the model, whose names alone are looked at; `parts` the folders of a pipeline
    that are loaded, the empty name being the model's own. With `allow_pickle` pickles count as weights if there are no
    others.

    Raises HfsynError if a part, a file or the variant is missing, or if the weights are pickles that are not allowed.
    """
    weights: dict[str, dict[str | None, list[re.Match[str]]]] = {}
    for part in parts:
        names = [name.rpartition("/")[2] for name in files if name.rpartition("/")[0] == part]
        if not names:
            optional = part in ("safety_checker", "feature_extractor")
            without = "Go without the safety checker: --set generate.safety_checker=false. Or fetch" if optional else ""
            said = f"{model} has no folder {part}, which its model_index.json names."
            raise HfsynError(said, f"{without or 'Fetch'} all of it: {_again(model)}")
        found = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
        # Files with other names are left to the libraries, which may know their index.
        if "config.json" not in names or (not found and any(name.endswith((".safetensors", ".bin")) for name in names)):
            continue
        kept = [match for match in found if match["kind"] == "safetensors"]
        if found and not kept and not allow_pickle:
            raise HfsynError(
                f"{model} has the weights of its {part or kind} as pickles alone, which run code as they are read.",
                "If you trust them: --allow-pickle-weights. Better: save the model again as safetensors.",
            )
        weights[part] = {}
        for match in kept or found:
            weights[part].setdefault(match["variant"] or match["late"], []).append(match)
    chosen = _chosen(model, kind, variant, weights)
    for part, of in weights.items():
        _check_shards(model, part or kind, of.get(chosen) or of.get(None) or [])
    return chosen


def _chosen(
    model: str, kind: Kind, variant: str | None, weights: Mapping[str, Mapping[str | None, Sequence[Any]]]
) -> str | None:
    known = sorted({name for of in weights.values() for name in of if name is not None})
    lacking = [part for part, of in weights.items() if None not in of]
    every = [name for name in known if all(name in weights[part] for part in lacking)]
    setting = f"--set {FIELD[kind]}.variant="
    if variant is not None:
        if variant in every:
            return variant
        there = f"it has {', '.join(every)}" if every else "it has none"
        hint = f"Name one: {setting}{every[0]}" if lacking and every else f"Take the plain ones: {setting}null"
        raise HfsynError(f"{FIELD[kind]}.variant is {variant!r}, and {model} has no such weights: {there}.", hint)
    if not lacking or len(every) == 1:
        return every[0] if lacking else None
    if every and kind == "generator":
        said = f"{model} has no plain weights, but several variants: {', '.join(every)}."
        raise HfsynError(said, f"Choose: {setting}{every[0]}")
    said = f"{model} has no loadable weights of its {lacking[0] or kind}."
    raise HfsynError(said, f"Fetch all of it: {_again(model)}")


def _check_shards(model: str, part: str, files: Sequence[re.Match[str]]) -> None:
    there = {int(match["number"]): match for match in files if match["number"]}
    if not there or len(there) < len(files):  # they are in a single file, too
        return
    one = next(iter(there.values()))
    count = int(one["count"])
    if gone := [number for number in range(1, count + 1) if number not in there]:
        name = one[0].replace(f"-{one['number']}-of-", f"-{gone[0]:05d}-of-")
        said = f"{model} lacks {len(gone)} of the {count} files with the weights of its {part}, such as {name}."
        raise HfsynError(said, f"Fetch all of it: {_again(model)}")


def _again(model: str) -> str:
    local = Path(model).expanduser().exists()
    return f"copy {model} again from where it was made." if local else f"`hf download {model}`"
