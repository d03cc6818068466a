"""The one loader of what people write in YAML: recipes, training recipes, matrices, captioners and generators.

A name is one of a `Shelf`, or a file; its fields are a mapping; ``--set KEY=VALUE`` changes them; a `Part` checks them,
and says what is wrong with its value, what is allowed and what was probably meant. The same text means the same
everywhere: 1e3 is the whole number 1000 where one is asked for, `no` is a text, and no number is infinite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from builders.errors import DataError, did_you_mean
from builders.yaml import NOT_TEXT, dump, is_yaml_name, load, load_mapping, read_text
from hfsyn.errors import HfsynError

_DEEPEST = 6
"""Names in a dotted key: the deepest field is ``source.definition.hub.splits.train``."""
_SHOWN = 80
"""Letters of a value that a message repeats."""


def _whole(value: Any) -> Any:
    """A whole number that is written as 1e3 or 10.0, as one; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _written(value: str) -> str:
    """A text that a file and a tokenizer take."""
    if found := NOT_TEXT.search(value):
        raise ValueError(f"it must not hold the character {ord(found[0]):#04x}")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty")
    return value


Words = Annotated[str, AfterValidator(_written), Field(max_length=10_000)]
"""A text, which may be empty."""
Text = Annotated[Words, AfterValidator(_not_empty)]
"""A text that says something."""
Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number; give it both bounds."""
Count = Annotated[Int, Field(ge=1, le=10**9)]
"""How many of something, 1 to a thousand million."""
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e6)]
"""A factor or a number of epochs; what is larger is a slip."""
Seed = Annotated[Int, Field(ge=0, lt=2**31)]


class Part(BaseModel):
    """A frozen part of what people write: it refuses unknown keys, other kinds of values, and what is not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Shelf:
    """What comes with hfsyn under a name, and what a file of the same kind is called."""

    what: str
    """``recipe``, ``training recipe``, ...: its name in messages."""
    package: str
    """The package whose YAML files lie on it."""
    folder: str = ""
    """Below that package."""
    otherwise: str = "A file is named with its .yaml."
    """What a user can do who wants something else."""

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(p.name.removesuffix(".yaml") for p in self._place().iterdir() if p.name.endswith(".yaml"))

    def text(self, name: str) -> str:
        """The YAML text of a name, comments included.

        Raises:
            HfsynError: there is none; the nearest is named.
        """
        known = self.names()
        if name not in known:
            guess = did_you_mean(name, known)
            raise HfsynError(
                f"Unknown {self.what} {name[:_SHOWN]!r}.{guess}", f"There are: {', '.join(known)}. {self.otherwise}"
            )
        return (self._place() / f"{name}.yaml").read_text(encoding="utf-8")

    def read(self, name: str) -> tuple[str, str]:
        """The text of a name or of a file, and how to call it in a message.

        Raises:
            HfsynError: there is none, or the file cannot be read.
        """
        if is_yaml_name(name) or "/" in name:
            return read_text(name, self.what, f"Shipped: {', '.join(self.names())}. {self.otherwise}"), name
        return self.text(name), f"{self.what} {name!r}"

    def fields(self, name: str) -> tuple[dict[str, Any], str]:
        """The fields of a name or of a file, and how to call it in a message.

        Raises:
            HfsynError: as `read`; or it does not hold a mapping.
        """
        text, where = self.read(name)
        return load_mapping(text, where, self.what), where

    def _place(self) -> Any:
        return resources.files(self.package) / self.folder if self.folder else resources.files(self.package)


def fields_of(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A mapping from Python as a file could say it, in lists and mappings of its own.

    Raises:
        HfsynError: it holds what YAML cannot say.
    """

    def plain(value: Any, depth: int) -> Any:
        if depth > 32:
            raise HfsynError(f"The {what} is nested more than 32 levels deep.")
        if isinstance(value, Mapping):
            return {str(key): plain(of, depth + 1) for key, of in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise HfsynError(f"The {what} holds {value}, which is not a finite number.")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise HfsynError(f"The {what} holds {_shown(value)}, which is of no kind that YAML has.", "Write a text.")

    return {str(key): plain(of, 0) for key, of in value.items()}


def set_field(fields: dict[str, Any], override: str, top: type[Part]) -> None:
    """Carry out one ``KEY=VALUE``, the key dotted and the value YAML, on the fields of a `top`.

    Where only a text is asked for, it is taken as it is written: ``source.revision=1234567`` needs no quotes.

    Raises:
        HfsynError: it is none, or the value cannot be read.
    """
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise HfsynError(f"--set {override[:_SHOWN]!r} is not KEY=VALUE.", "For instance: --set seed=1")
    where = f"--set {key[:_SHOWN]}"
    if not value.strip():
        raise HfsynError(f"{where} has no value.", "null takes one away; '' is the empty text.")
    _, field = field_at(key.split("."), top)
    if field is not None and _takes_only_text(field.annotation):
        put(fields, key, _text_value(value, where), top)
    else:
        put(fields, key, load(value, where, above=None), top)


def put(fields: dict[str, Any], key: str, value: Any, top: type[Part]) -> None:
    """Put a value at a dotted key.

    Raises:
        HfsynError: there is no room for keys in what stands above it.
    """
    part: Any = fields
    *parents, last = loc = key.split(".")
    if len(loc) > _DEEPEST or not all(loc):
        raise HfsynError(f"There is no field {key[:_SHOWN]!r}.", allowed([*loc[:1], ""], top))
    for parent in parents:
        if part.get(parent) is None:
            part[parent] = {}
        part = part[parent]
        if not isinstance(part, dict):
            raise HfsynError(f"{key}: {parent!r} is a value and holds no keys.", allowed(loc, top))
    part[last] = value


def _text_value(value: str, where: str) -> str | None:
    """A text as it is written, its quotes taken off; or null."""
    try:
        found = load(value, where, above=None)
    except DataError:
        return value
    return found if found is None or isinstance(found, str) else value


def _takes_only_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    if annotation in (str, type(None)):
        return True
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _takes_only_text(inner[0])
    return bool(inner) and get_origin(annotation) not in (dict, tuple, list) and all(map(_takes_only_text, inner))


def field_at(loc: Sequence[str], top: type[Part]) -> tuple[type[Part], Any]:
    """The model that holds the field at a dotted key, and the field; None where it has none of that name."""
    model, field, entries = top, None, None
    for name in loc:
        if entries is not None:  # `name` is a key or a number among entries of one model
            model, field, entries = entries, None, None
            continue
        field = model.model_fields.get(name)
        if field is None or name == loc[-1]:
            break
        inner = _part_in(field.annotation)
        if inner is None:
            break
        if get_origin(field.annotation) is dict:
            entries = inner
        else:
            model = inner
    return model, field


def _part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _part_in(inner)) is not None), None)


def allowed(loc: Sequence[str], top: type[Part]) -> str:
    """A hint with the names that may stand where the last of `loc` stands."""
    return f"Allowed here: {', '.join(field_at(loc, top)[0].model_fields)}."


def checked(model: type[P], fields: Mapping[str, Any], where: str, inside: Sequence[str] = (), top: Any = None) -> P:
    """The fields as a `model`.

    Args:
        model: of which they are.
        fields: as a file says them.
        where: how to call it in a message.
        inside: where in a `top` the fields stand.
        top: the model of the whole; None is `model`.

    Raises:
        HfsynError: the first fault, in one line.
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise explained(error, where, top or model, inside) from None


def explained(error: ValidationError, where: str, top: type[Part], inside: Sequence[str] = ()) -> HfsynError:
    """Turn pydantic's report into one message and one hint, for the first fault."""
    fault = error.errors()[0]
    loc = [*inside, *(str(name)[:_SHOWN] for name in fault["loc"] if name != "[key]")]
    key = ".".join(loc)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    model, field = field_at(loc, top)
    if fault["type"] in ("extra_forbidden", "missing"):
        if fault["type"] == "missing":
            return HfsynError(f"Key {key!r} is missing in {where}.{more}", allowed(loc, top))
        guess = did_you_mean(loc[-1], model.model_fields, before="".join(f"{name}." for name in loc[:-1]))
        return HfsynError(f"Unknown key {key!r} in {where}.{guess}{more}", allowed(loc, top))
    problem = _KINDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    problem = problem[0].lower() + problem[1:]
    meaning = f"{key}: {field.description}" if field and field.description else allowed(loc, top)
    hint = f"{_habit(fault['type'], fault['input'])}{meaning}"
    return HfsynError(f"{key} is {_shown(fault['input'])}: {problem}.{more}", " ".join(hint.split()))


_KINDS = {
    "model_type": "it should be a mapping of fields",
    "dict_type": "it should be a mapping",
    "tuple_type": "it should be a list",
}
"""Faults whose name in Python says little to those who write YAML."""


def _habit(kind: str, value: Any) -> str:
    """What to write in place of a value that many take for what is asked for."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if kind.startswith("bool") and text in ("yes", "no", "on", "off", "y", "n", "1", "0", "true", "false"):
        return f"Write {'true' if text in ('yes', 'on', 'y', '1', 'true') else 'false'}: {value!r} is a text. "
    if kind.startswith(("int", "float")) and re.fullmatch(r"[-+]?[\d_.,]+([eE][-+]?\d+)?", text):
        return "Write the number without quotes and with no other signs than a point. "
    if kind.startswith(("string", "literal")) and isinstance(value, int | float):
        return "Put quotes around the text. "
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def dump_part(part: Part) -> str:
    """A part as YAML with every field written out."""
    return dump(part.model_dump(mode="json"))
