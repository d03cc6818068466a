"""The one loader of what people write in YAML: recipes, training recipes, matrices, captioners and generators.

A name is one that is shipped (see `Shelf`), or a file; it holds a mapping of fields, which ``--set KEY=VALUE`` changes.
A `Part` checks the fields, and says what is wrong with a value, what is allowed and what was probably meant. The same
text means the same everywhere: 1e3 is the integer 1000 where one is expected, `no` is a text, and no number is
infinite.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from builders.errors import DataError, did_you_mean
from builders.yaml import NOT_TEXT, dump, is_yaml_name, load, load_mapping, read_text
from hfsyn.errors import HfsynError

_SHIPPED = Path(__file__).parent
_DEEPEST = 6  # names in a dotted key: the deepest field is ``source.definition.hub.splits.train``
_MOST_EXTENDED = 5
_SHOWN = 80  # characters of a value that a message repeats
FragmentKind = Literal["captioner", "generator"]
FRAGMENT_PART: dict[FragmentKind, str] = {"captioner": "caption", "generator": "generate"}
"""The part of a recipe that each kind of fragment replaces."""


def _whole(value: Any) -> Any:
    """1e3 and 10.0 as integers; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _printable(value: str) -> str:
    if found := NOT_TEXT.search(value):
        raise ValueError(f"it must not contain the character {ord(found[0]):#04x}")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty")
    return value


Words = Annotated[str, AfterValidator(_printable), Field(max_length=10_000)]  # a text, which may be empty
Text = Annotated[Words, AfterValidator(_not_empty)]  # a text that is not empty
Int = Annotated[int, BeforeValidator(_whole)]  # an integer; give it both bounds
Count = Annotated[Int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e6)]  # a factor or a number of epochs; a larger one is a slip
Seed = Annotated[Int, Field(ge=0, lt=2**31)]


class Part(BaseModel):
    """A frozen part of what people write: it refuses unknown keys, values of another type, and non-finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


P = TypeVar("P", bound=Part)


_TELLING = {
    "recipe": (("extends", "source", "prompt", "generate"), "hfsyn build {}"),
    "training recipe": (("model", "augment", "optimise"), "hfsyn train --config {}"),
    "matrix": (("arms",), "hfsyn bench {}"),
    "factor file": (("factors", "never"), "hfsyn audit MODEL --factors {}"),
    "loop file": (("policy", "steer", "factors"), "hfsyn loop {}"),
    "class map": (("classes",), "hfsyn build imagenette-cip --set source.variant={}"),
}
"""What people write -> keys that no other kind has, and the command that takes its file."""


def refuse_other_kind(fields: Mapping[str, Any], where: str, what: str) -> None:
    """Refuse the fields of a file that was taken for a `what`, if only the keys of another kind are among them."""
    found = {kind: command for kind, (keys, command) in _TELLING.items() if any(key in fields for key in keys)}
    if found and what in _TELLING and what not in found:
        kind, command = next(iter(found.items()))
        raise HfsynError(f"{where} is a {kind}, not a {what}.", f"What takes it: {command.format(where)}")


@dataclass(frozen=True, slots=True)
class Shelf:
    """The YAML files of one kind that are shipped under a name, and users' files of the same kind."""

    what: str  # ``recipe``, ``training recipe``, ...: the kind's name in messages
    folder: str = ""  # below this package
    otherwise: str = "A file is named with its .yaml."  # what a user can do who wants something else

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(path.stem for path in (_SHIPPED / self.folder).glob("*.yaml"))

    def read(self, name: str) -> tuple[str, str]:
        """The YAML text of a name or a file, comments included, and how to call it in a message."""
        known = self.names()
        if is_yaml_name(name) or "/" in name:
            return read_text(name, self.what, f"Shipped: {', '.join(known)}. {self.otherwise}"), name
        if name not in known:
            said = f"Unknown {self.what} {name[:_SHOWN]!r}.{did_you_mean(name, known)}"
            raise HfsynError(said, f"There are: {', '.join(known)}. {self.otherwise}")
        return (_SHIPPED / self.folder / f"{name}.yaml").read_text(encoding="utf-8"), f"{self.what} {name!r}"

    def fields(self, name: str) -> tuple[dict[str, Any], str]:
        """The fields of a name or a file, and how to call it in a message."""
        text, where = self.read(name)
        fields = load_mapping(text, where, self.what)
        refuse_other_kind(fields, where, self.what)
        return fields, where


@dataclass(frozen=True, slots=True)
class Fragment:
    """One part of a recipe, ready-made for one model.

    ``hfsyn build imagenette-cip --captioner blip-large`` is the recipe with its caption part replaced by that of
    ``hfsyn/recipes/captioners/blip-large.yaml``; ``--generator`` replaces the generate part. A fragment is::

        title: BLIP large
        about: one sentence for lists
        facts: {source: where its settings are from}    # anything else that a reader should know
        caption: {model: ..., max_new_tokens: 30}       # or generate: fields left out have their defaults

    The result is a plain recipe: it holds the fragment's fields, and not its name.
    """

    name: str
    title: str
    about: str
    facts: Mapping[str, str]
    part: Mapping[str, Any]  # fields of the caption or generate part, without those left at their defaults


def fragments(kind: FragmentKind) -> list[str]:
    """Names of the shipped fragments of a kind, sorted."""
    return _fragment_shelf(kind).names()


def load_fragment(kind: FragmentKind, name: str) -> Fragment:
    """A fragment by its name, or from a YAML file."""
    key = FRAGMENT_PART[kind]
    fields, where = _fragment_shelf(kind).fields(name)
    part: Any = fields.get(key)
    facts: Any = fields.get("facts") or {}
    problem = ""
    if not isinstance(part, dict):
        problem = f"it needs the key {key!r}, with a mapping of fields"
    elif unknown := sorted(set(fields) - {"title", "about", "facts", key}):
        problem = f"its key {unknown[0][:_SHOWN]!r} is unknown"
    elif not isinstance(facts, dict):
        problem = "its facts are not a mapping"
    if problem:
        raise HfsynError(f"{where} is not a {kind}: {problem}.", f"Its keys are title, about, facts and {key}.")
    told = {name: str(value) for name, value in facts.items()}
    return Fragment(name, str(fields.get("title", name)), str(fields.get("about", "")), told, part)


def _fragment_shelf(kind: FragmentKind) -> Shelf:
    return Shelf(kind, f"{kind}s", f"Any other model: --set {FRAGMENT_PART[kind]}.model=ORG/NAME")


def extended(
    fields: Mapping[str, Any], where: str, read: Callable[[str], tuple[dict[str, Any], str]]
) -> dict[str, Any]:
    """The fields with those of the recipe that they extend, where they do: ``extends: imagenette-cip``.

    The extending recipe wins. Its parts are merged field by field, so that a part only names its changes; ``null``
    takes a part away. A file is named relative to the extending file. `read` gives the fields of a recipe's name, and
    how to call it in a message.
    """
    found, place, seen = dict(fields), where, [where]
    while (base := found.pop("extends", None)) is not None:
        if not isinstance(base, str) or place.startswith("hf://"):
            raise HfsynError(f"{place} extends {base!r}.", "A recipe extends a shipped one, or a YAML file.")
        if is_yaml_name(base) and is_yaml_name(place):
            base = str(Path(place).expanduser().parent / Path(base).expanduser())
        try:
            below, place = read(base)
        except HfsynError as error:
            raise HfsynError(f"{place} extends {base[:80]!r}: {error.message}", error.hint, error.code) from None
        if place in seen or len(seen) > _MOST_EXTENDED:
            raise HfsynError(f"{where} extends itself: {' -> '.join([*seen, place])}.", "Leave one `extends` out.")
        seen.append(place)
        for key, value in found.items():
            merged = isinstance(below.get(key), Mapping) and isinstance(value, Mapping)
            below[key] = {**below[key], **value} if merged else value
        found = below
    return found


def fields_of(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy of a mapping from Python in the types that YAML has, or HfsynError if it has others."""

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
        raise HfsynError(f"The {what} holds {_shown(value)}, whose type YAML does not have.", "Write a text.")

    return {str(key): plain(of, 0) for key, of in value.items()}


def set_field(fields: dict[str, Any], override: str, top: type[Part]) -> None:
    """Carry out one ``KEY=VALUE``, the key dotted and the value YAML, on the fields of a `top`.

    If only a text is allowed, the value needs no quotes: ``source.revision=1234567``. Raises HfsynError if it
    does not have that form, or the value cannot be read.
    """
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise HfsynError(f"--set {override[:_SHOWN]!r} is not KEY=VALUE.", "For instance: --set seed=1")
    where = f"--set {key[:_SHOWN]}"
    if not value.strip():
        raise HfsynError(f"{where} has no value.", "null takes one away; '' is the empty text.")
    _, field = field_at(key.split("."), top)
    only_text = field is not None and _takes_only_text(field.annotation)
    try:
        found = load(value, where, above=None)
    except DataError:
        if not only_text:
            raise
        found = value
    put(fields, key, value if only_text and not isinstance(found, str | None) else found, top)


def put(fields: dict[str, Any], key: str, value: Any, top: type[Part]) -> None:
    """Put a value at a dotted key; raises HfsynError if what stands above it is not a mapping."""
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


def _takes_only_text(annotation: Any) -> bool:
    if annotation in (str, type(None)):
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return all(isinstance(value, str) for value in inner)
    if origin is Annotated:
        return _takes_only_text(inner[0])
    return bool(inner) and origin not in (dict, tuple, list) and all(map(_takes_only_text, inner))


def field_at(loc: Sequence[str], top: type[Part]) -> tuple[type[Part], Any]:
    """The model that holds the field at a dotted key, and the field; None if the model has no such field."""
    model, field, entries = top, None, None
    for name in loc:
        if entries is not None:  # `name` is a key or a number among entries of one model
            model, field, entries = entries, None, None
            continue
        field = model.model_fields.get(name)
        if field is None or name == loc[-1] or (inner := _part_in(field.annotation)) is None:
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
    """A hint with the names that are allowed in place of the last of `loc`."""
    return f"Allowed here: {', '.join(field_at(loc, top)[0].model_fields)}."


def checked(model: type[P], fields: Mapping[str, Any], where: str) -> P:
    """The fields as a `model`, or HfsynError with the first fault; `where` is their file's name in messages."""
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise _explained(error, where, model) from None


def _explained(error: ValidationError, where: str, top: type[Part]) -> HfsynError:
    """Pydantic's report as one message and one hint, for the first fault."""
    fault = error.errors()[0]
    kind, value = fault["type"], fault["input"]
    loc = [str(name)[:_SHOWN] for name in fault["loc"] if name != "[key]"]
    key = ".".join(loc)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    model, field = field_at(loc, top)
    if kind == "missing":
        return HfsynError(f"Key {key!r} is missing in {where}.{more}", allowed(loc, top))
    if kind == "extra_forbidden":
        known = {name: [*loc[:-1], name] for name in model.model_fields}
        if len(loc) == 1:  # the part may have been left out
            parts = {part: field_at([part, ""], top)[0].model_fields for part in model.model_fields}
            # Of parts that share a name, one that every recipe has is meant.
            order = sorted(parts, key=lambda part: model.model_fields[part].default is not None)
            known = {name: [part, name] for part in order for name in parts[part]} | known
        guess = did_you_mean(loc[-1], known, whole={name: ".".join(way) for name, way in known.items()})
        return HfsynError(f"Unknown key {key!r} in {where}.{guess}{more}", allowed(loc, top))
    problem = _KINDS.get(kind) or fault["msg"].removeprefix("Value error, ")
    meaning = f"{key}: {field.description}" if field and field.description else allowed(loc, top)
    hint = " ".join(f"{_habit(kind, value)}{meaning}".split())
    return HfsynError(f"{key} is {_shown(value)}: {problem[0].lower()}{problem[1:]}.{more}", hint)


_KINDS = {
    "model_type": "it should be a mapping of fields",
    "dict_type": "it should be a mapping",
    "tuple_type": "it should be a list",
}
"""Faults for which pydantic's message uses words of Python."""


def _habit(kind: str, value: Any) -> str:
    """What to write instead of a value that is a common mistake."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if kind.startswith("bool") and text in ("yes", "no", "on", "off", "y", "n", "1", "0", "true", "false"):
        return f"Write {'true' if text in ('yes', 'on', 'y', '1', 'true') else 'false'}: {value!r} is a text. "
    if kind.startswith(("int", "float")) and re.fullmatch(r"[-+]?[\d_.,]+([eE][-+]?\d+)?", text):
        return "Write the number without quotes, and with a point as the only separator. "
    if kind.startswith(("string", "literal")) and isinstance(value, int | float):
        return "Put quotes around the text. "
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def differing(a: Part, b: Part, exclude: Any) -> list[tuple[str, Any, Any]]:
    """``(dotted field, value in a, value in b)`` for each field that differs, in the model's order."""

    def dotted(part: Part) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in part.model_dump(mode="json", exclude=exclude).items():
            found |= {f"{key}.{name}": of for name, of in value.items()} if isinstance(value, dict) else {key: value}
        return found

    left, right = dotted(a), dotted(b)
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def check_content(found: str, pinned: str | None, what: str, field: str) -> None:
    """Refuse a file or model whose content is not what the recipe pins in `field`; `what` begins the message."""
    if pinned not in (None, found):
        raise HfsynError(
            f"{what} that the recipe means: its content is {found[:19]}..., and {field} is {str(pinned)[:19]}...",
            f"Bring that one back, or --set {field}=null to take this one (for a run: with another --out).",
        )


def dump_part(part: Part) -> str:
    """A part as YAML with every field written out."""
    return dump(part.model_dump(mode="json"))
