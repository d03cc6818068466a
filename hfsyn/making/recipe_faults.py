"""What is wrong with the fields of a recipe, said in one line; and fields that decide nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from hfsyn.errors import HfsynError
from hfsyn.making.recipe_parts import PARTS, GeneratePart, Part, StorePart


def model_at(loc: Sequence[Any], top: type[Part]) -> type[Part]:
    """The model class that holds the last name of `loc`; `top` is that of the whole recipe."""
    return PARTS.get(str(loc[0]), top) if len(loc) > 1 else top


def allowed(loc: Sequence[Any], top: type[Part]) -> str:
    """A hint with the names that may stand there."""
    return f"Allowed here: {', '.join(model_at(loc, top).model_fields)}."


def explained(error: ValidationError, where: str, top: type[Part], inside: Sequence[str] = ()) -> HfsynError:
    """Turn pydantic's report into one message and one hint, for the first fault.

    Args:
        error: the report.
        where: how to call the recipe.
        top: the model class of the whole recipe.
        inside: where in the recipe the checked fields stand.
    """
    fault = error.errors()[0]
    loc = [*inside, *(str(name) for name in fault["loc"])]
    key = ".".join(loc)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    fields = model_at(loc, top).model_fields
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], fields, n=1)
        guess = f" Did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else ""
        return HfsynError(f"Unknown key {key!r} in {where}.{guess}{more}", allowed(loc, top))
    if fault["type"] == "missing":
        return HfsynError(f"Key {key!r} is missing in {where}.{more}", allowed(loc, top))
    problem = fault["msg"][0].lower() + fault["msg"][1:]
    field = fields.get(loc[-1])
    meaning = f"{key}: {field.description}" if field and field.description else "See `hfsyn recipes show shapes-cip`."
    if fault["type"] == "string_type" and isinstance(fault["input"], bool):
        meaning = f"YAML takes no, off, yes and on for false and true: put quotes around the text. {meaning}"
    return HfsynError(f"{key} is {fault['input']!r}: {problem}.{more}", " ".join(meaning.split()))


def refuse_idle(generate: GeneratePart, store: StorePart, written: Callable[[str], bool]) -> None:
    """Refuse fields that decide nothing and would give the same dataset another fingerprint.

    Recipes that are stored or published already may have them: only what the user writes now is looked at.

    Args:
        generate, store: of the checked recipe.
        written: whether the user wrote the field of this dotted name.

    Raises:
        HfsynError: naming the first.
    """
    lossless = f"store.format is {store.format!r}, which is lossless" if store.format != "jpeg" else ""
    idle = {
        "generate.strength": "generate.init is 'none'" if generate.init == "none" else "",
        "generate.lora_scale": "there is no generate.lora" if generate.lora is None else "",
        "store.quality": lossless,
        "store.subsampling": lossless,
    }
    for key, why in idle.items():
        part, _, name = key.partition(".")
        value = getattr({"generate": generate, "store": store}[part], name)
        default = PARTS[part].model_fields[name].default
        if why and value != default and written(key):
            raise HfsynError(
                f"{key} is {value!r} and decides nothing, because {why}.", f"Leave it out, or --set {key}={default}"
            )
    start, stop = generate.guidance_start, generate.guidance_stop
    if start >= stop and (written("generate.guidance_start") or written("generate.guidance_stop")):
        raise HfsynError(
            f"generate.guidance_start is {start:g} and generate.guidance_stop {stop:g}, which leaves no step with "
            "guidance.",
            "Start before the stop; without guidance at all: --set generate.guidance_scale=1",
        )
