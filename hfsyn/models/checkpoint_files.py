"""The files of a checkpoint: which of its weights are loaded, and whether they are all there; by their names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hfsyn.errors import HfsynError

Kind = Literal["captioner", "generator", "language model"]
MARKER: Mapping[str, str] = {
    "captioner": "config.json",
    "generator": "model_index.json",
    "language model": "config.json",
}
"""The file without which a folder is not a model of that kind."""
FIELD: Mapping[str, str] = {"captioner": "caption", "generator": "generate", "language model": "caption"}
"""The part of a recipe that names a model of that kind."""
# As diffusers and transformers write them: the variant stands before the number of the shard, or, in old ones, behind.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors)[A-Za-z]\w*))?"
    r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?:\.(?P<late>[A-Za-z]\w*))?\.(?P<kind>safetensors|bin)"
)
_KINDS = (".safetensors", ".bin")


def checked_variant(
    model: str,
    kind: Kind,
    files: Sequence[str],
    parts: Sequence[str] = ("",),
    variant: str | None = None,
    *,
    allow_pickle: bool = False,
) -> str | None:
    """The variant whose weights are loaded: the one that is asked for; or none; or, where the plain weights are not
    there, the only one that is.

    Args:
        model, kind: for messages.
        files: paths of all files of the model.
        parts: folders of a pipeline that are loaded; the empty name is the model's own.
        variant: ``fp16``, ...; None finds it.
        allow_pickle: pickles count as weights where there are no others.

    Raises:
        HfsynError: a part, a file or the variant is missing, or the weights are pickles that are not allowed.
    """
    weights: dict[str, dict[str | None, list[re.Match[str]]]] = {}
    for part in parts:
        names = [name.rpartition("/")[2] for name in files if name.rpartition("/")[0] == part]
        if not names:
            raise _without_part(model, part)
        found = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
        # What is called otherwise is left to the libraries, which may know its index.
        if "config.json" not in names or (not found and any(name.endswith(_KINDS) for name in names)):
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
    if variant is not None:
        if variant in every:
            return variant
        there = f"it has {', '.join(every)}" if every else "it has none"
        raise HfsynError(
            f"{FIELD[kind]}.variant is {variant!r}, and {model} has no such weights: {there}.",
            f"Name one: --set {FIELD[kind]}.variant={every[0]}"
            if lacking and every
            else f"Take the plain ones: --set {FIELD[kind]}.variant=null",
        )
    if not lacking:
        return None
    if len(every) == 1:
        return every[0]
    if every and kind == "generator":
        raise HfsynError(
            f"{model} has no plain weights, but several variants: {', '.join(every)}.",
            f"Say which: --set generate.variant={every[0]}",
        )
    raise HfsynError(
        f"{model} has no weights of its {lacking[0] or kind} that can be loaded.", f"Fetch all of it: {_again(model)}"
    )


def _check_shards(model: str, part: str, files: Sequence[re.Match[str]]) -> None:
    """Refuse weights in several files of which some are missing."""
    there = {int(match["number"]): match for match in files if match["number"]}
    if not there or len(there) < len(files):  # it is in one file, too
        return
    one = next(iter(there.values()))
    count = int(one["count"])
    if gone := [number for number in range(1, count + 1) if number not in there]:
        name = one[0].replace(f"-{one['number']}-of-", f"-{gone[0]:05d}-of-")
        raise HfsynError(
            f"{model} lacks {len(gone)} of the {count} files with the weights of its {part}, such as {name}.",
            f"Fetch all of it: {_again(model)}",
        )


def _without_part(model: str, part: str) -> HfsynError:
    off = part in ("safety_checker", "feature_extractor")
    return HfsynError(
        f"{model} has no folder {part}, which its model_index.json names.",
        ("Go without the safety checker: --set generate.safety_checker=false. Or fetch" if off else "Fetch")
        + f" all of it: {_again(model)}",
    )


def _again(model: str) -> str:
    if Path(model).expanduser().exists():
        return f"copy {model} again from where it was made."
    return f"`hf download {model}`"
