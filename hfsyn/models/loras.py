"""LoRA weights: found, pinned like a model, and fused into a pipeline before its first image.

A recipe names them with ``generate.lora`` (a Hub id, a local folder or a file), ``lora_file``, ``lora_revision`` and
``lora_scale``. Only safetensors are read. A LoRA for each class is a folder with a list of them,
``{wnid: {"file": ..., "sha256": ...}}``: they stand beside the weights instead, one after another.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from builders.errors import brief, one_line
from builders.files import sha256_of
from hfsyn.errors import HfsynError
from hfsyn.models.finding import commit_of
from hfsyn.recipes.loading import check_content
from hfsyn.recipes.parts import BY_CLASS
from hfsyn.recipes.recipe import GeneratePart, is_content_hash

FILE = "pytorch_lora_weights.safetensors"  # what diffusers calls LoRA weights, where a recipe names no file
TUNING = "tuning.json"  # what `hfsyn tune` says about them
OF_SPLIT = ", split "  # between a dataset that weights were tuned on and its split, if that is not the usual one
_ADAPTER = "recipe"


def pin_lora(part: GeneratePart) -> GeneratePart:
    """The part with `lora_revision` filled in: a commit sha, or the content of a local file.

    Raises HfsynError if there are no such weights, they are gated (exit code 3) or out of reach, or a local file has
    another content than the recipe says.
    """
    if part.lora is None:
        return part
    revision = part.lora_revision
    if (local := _local(part)) is not None:
        content = f"sha256:{sha256_of(local)}"
        check_content(content, revision, f"{local} is not the LoRA", "generate.lora_revision")
        known = part.lora_tuned_on or told_on(local.parent)
        file = BY_CLASS if local.name == BY_CLASS else part.lora_file
        return part.model_copy(update={"lora_file": file, "lora_revision": content, "lora_tuned_on": known})
    if is_content_hash(revision):
        said = f"generate.lora is {part.lora!r}, and generate.lora_revision is the content of a local file."
        raise HfsynError(said, "Name that file: --set generate.lora=FILE")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, names = part.lora, [part.lora_file] if part.lora_file else [FILE, BY_CLASS]
    cached = [name for name in names if isinstance(try_to_load_from_cache(repo, name, revision=revision), str)]
    file = (cached or names)[0]

    def ask() -> str | None:
        nonlocal file
        for name in names:
            try:
                commit = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=20).commit_hash
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
                continue
            file = name
            return commit
        said = f"The LoRA repository {repo} has no file {' or '.join(names)}."
        raise HfsynError(said, "Name it: --set generate.lora_file=FILE.safetensors")

    hint = f"Fetch it with a network (`hf download {repo} {file}`), or name a local file."
    commit = commit_of(repo, revision, file, ask, what="LoRA", hint=hint)
    known = part.lora_tuned_on or told_on(repo, commit)
    named = BY_CLASS if file == BY_CLASS else part.lora_file
    return part.model_copy(update={"lora_file": named, "lora_revision": commit, "lora_tuned_on": known})


def told_on(place: str | Path, revision: str | None = None) -> str | None:
    """What the weights of a folder or a repository on the Hub, were tuned on; None if ``tuning.json`` is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(place).expanduser()
    with suppress(HfHubHTTPError, OSError, ValueError, KeyError, TypeError):  # most weights have no such file
        path = folder / TUNING if folder.is_dir() else Path(hf_hub_download(str(place), TUNING, revision=revision))
        named = json.loads(path.read_text(encoding="utf-8"))["tuned_on"]["reference"]
        return one_line(named) if isinstance(named, str) and 0 < len(named) < 200 else None
    return None


def _local(part: GeneratePart) -> Path | None:
    """The weights on this machine; None for a Hub id. Raises HfsynError for a folder without them."""
    path = Path(str(part.lora)).expanduser()
    if not path.exists():
        if str(part.lora).startswith(("/", ".", "~")):
            raise HfsynError(f"There is no LoRA at {part.lora}.", "Name a file, a folder, or a Hub id.")
        return None
    usual = BY_CLASS if (path / BY_CLASS).is_file() else FILE
    found = path / (part.lora_file or usual) if path.is_dir() else path
    if not found.is_file() or (found.suffix != ".safetensors" and found.name != BY_CLASS):
        files = sorted(file.name for file in path.glob("*.safetensors")) if path.is_dir() else []
        raise HfsynError(
            f"{found} is not a file of LoRA weights (safetensors).",
            f"Name one with generate.lora_file: {', '.join(files)}." if files else "Name a .safetensors file.",
        )
    return found


def fuse_lora(pipe: Any, part: GeneratePart) -> dict[str, int]:
    """Add the LoRA to the weights of a pipeline, in the pipeline's dtype, and count its weights that fit nothing."""
    if part.lora is None or part.lora_by_class:
        return {}
    if not hasattr(pipe, "load_lora_weights"):
        raise HfsynError(f"{part.model} is a {type(pipe).__name__}, which takes no LoRA.", "Set generate.lora to null.")
    where, options = part.lora, {"weight_name": part.lora_file or FILE}
    if (local := _local(part)) is not None:
        pin_lora(part)
        where, options = str(local.parent), {"weight_name": local.name}
    elif part.lora_revision is not None:
        options["revision"] = part.lora_revision
    try:
        pipe.load_lora_weights(where, adapter_name=_ADAPTER, use_safetensors=True, **options)
        adapted = [name for name, adapters in pipe.get_list_adapters().items() if _ADAPTER in adapters]
        used, whole = _used(pipe, adapted, where, options)
        if adapted:
            pipe.fuse_lora(components=adapted, lora_scale=part.lora_scale, adapter_names=[_ADAPTER])
            pipe.unload_lora_weights()
    except Exception as error:  # diffusers, peft and the Hub's client each have their own exceptions
        said = f"The LoRA {part.lora} cannot be put into {part.model}: {type(error).__name__}: {brief(error)}"
        raise HfsynError(said, "It must be made for this model, and stored as safetensors.") from error
    fitting = sum(used.values())
    if not fitting:
        raise HfsynError(f"{part.lora} holds no LoRA weights for {part.model}.", "Name one that is made for it.")
    if fitting < whole and all(name.startswith("text_encoder") for name in used):
        raise HfsynError(
            f"Of the {whole} weights of the LoRA {part.lora} {fitting} fit {part.model}: some of its text encoders', "
            "and none of the network that draws.",
            "Name one that is made for this model, or set generate.lora to null.",
        )
    left = whole - fitting
    return {f"weight of the LoRA that fits nothing in the model, of {whole}": left} if left else {}


class ClassLoras:
    """The LoRA of each class, of which a pipeline has one at a time.

    They are not fused, so that a change leaves nothing behind. Raises HfsynError if the list cannot be read.
    """

    def __init__(self, pipe: Any, part: GeneratePart) -> None:
        from huggingface_hub import hf_hub_download

        self._pipe, self._part, self._now = pipe, part, ""
        if (local := _local(part)) is not None:
            pin_lora(part)
            self._fetch: Callable[[str], Path] = lambda name: local.parent / name
        else:
            self._fetch = lambda name: Path(hf_hub_download(str(part.lora), name, revision=part.lora_revision))
        try:
            files = json.loads(self._fetch(BY_CLASS).read_text(encoding="utf-8"))
            self._files = {wnid: (str(one["file"]), str(one["sha256"])) for wnid, one in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            said = f"The list of LoRAs of {part.lora} cannot be read: {type(error).__name__}: {brief(error)}"
            raise HfsynError(said, "Tune again with tune.per_class.") from None

    def take(self, wnid: str) -> None:
        """Draw with the LoRA of a class from now on. Raises HfsynError if it has none, or another than is listed."""
        if wnid == self._now:
            return
        if wnid not in self._files:
            said = f"{self._part.lora} has no LoRA for the class {wnid}."
            raise HfsynError(said, "Tune for that class too, or name one LoRA for all.")
        name, content = self._files[wnid]
        path = self._fetch(name)
        if not path.is_file() or sha256_of(path) != content:
            said = f"{name} of {self._part.lora} is not the file that its list names."
            raise HfsynError(said, "Put it back as it was, or tune again.")
        if self._now:
            self._pipe.unload_lora_weights()
        try:
            self._pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=_ADAPTER)
            self._pipe.set_adapters([_ADAPTER], [self._part.lora_scale])
        except Exception as error:  # diffusers, peft and the Hub's client each have their own exceptions
            said = f"The LoRA {name} cannot be put into {self._part.model}: {type(error).__name__}: {brief(error)}"
            raise HfsynError(said, "It must be made for this model, and stored as safetensors.") from error
        self._now = wnid


def _used(pipe: Any, adapted: Sequence[str], where: str, options: Mapping[str, Any]) -> tuple[Counter[str], int]:
    """How many tensors of a loaded LoRA each part of a pipeline has taken up, and how many there are.

    They are matched by content: each format is renamed in several places, and what fits nothing is dropped silently.
    """

    def digest(tensor: Any) -> bytes:
        flat = tensor.detach().to("cpu", pipe.dtype).float().contiguous()
        return hashlib.sha256(repr(tuple(flat.shape)).encode() + flat.numpy().tobytes()).digest()

    unet = {"unet_config": pipe.unet.config} if getattr(pipe, "unet", None) is not None else {}
    found = pipe.lora_state_dict(where, use_safetensors=True, **unet, **options)
    state = found[0] if isinstance(found, tuple) else found
    left = Counter(digest(value) for key, value in state.items() if value.dim() > 1 and not key.endswith("alpha"))
    whole, used = left.total(), Counter[str]()
    for name in adapted:
        for key, value in getattr(pipe, name).named_parameters():
            if _ADAPTER in key.split(".") and left[one := digest(value)] > 0:
                left[one] -= 1
                used[name] += 1
    return used, whole
