"""Recipes: everything that decides the bytes of a synthetic dataset, and nothing else.

What changes only the speed (device, processes, output folder) is a flag of the command and never stands here. A recipe
is a YAML file; `load_recipe` checks every key, `fingerprint` names its content, `difference` says how two differ.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from builders.errors import DataError
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.prompts import get_strategy

Dtype = Literal["float32", "float16", "bfloat16"]
Scheduler = Literal["default", "ddim", "pndm", "euler", "euler-ancestral", "dpm++", "dpm++-karras", "unipc", "lcm"]
BUILTIN = "builtin"
"""The model name of the small trained models that come with hfsyn."""


class Part(BaseModel):
    """A frozen part of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)


class SourcePart(Part):
    """Which real images are captioned, or counted where the strategy needs no caption."""

    variant: str
    """A name of `hfsyn variants ls`."""
    split: str = "train"
    """The source's split, which is also the split of the result."""
    path: str | None = None
    """A local folder or Parquet file that holds the variant; null streams it from the Hub."""
    revision: str | None = None
    """Hub revision; null takes the newest and writes its commit sha into the run folder."""
    limit_per_class: Annotated[int, Field(ge=1)] | None = None
    """At most so many images a class (`--limit`), >= 1; null takes all."""


class CaptionPart(Part):
    """How a real image is described."""

    model: str
    """A Hub id, a local folder, or `builtin`."""
    revision: str | None = None
    """Hub revision; null is resolved to a commit sha when the run starts."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 30
    """Length limit in tokens, 1 to 1024."""
    num_beams: Annotated[int, Field(ge=1, le=32)] = 1
    """1 is greedy decoding, as in the paper; at most 32."""
    prompt: str | None = None
    """Text that the captioner continues, or the instruction of a chat model."""
    dtype: Dtype = "float32"
    """Arithmetic of the captioner."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images a batch, 1 to 4096. Part of the recipe, because rounding depends on it."""


class PromptPart(Part):
    """How a prompt is written."""

    strategy: str
    """A name of `hfsyn strategies ls`."""
    negative: str | None = None
    """Negative prompt; null is the empty one."""
    images_per_caption: Annotated[int, Field(ge=1, le=1000)] = 1
    """Synthetic images for each real one, 1 to 1000."""


class GeneratePart(Part):
    """How an image is made from a prompt."""

    model: str
    """A Hub id, a local folder, or `builtin`."""
    revision: str | None = None
    """Hub revision; null is resolved to a commit sha when the run starts."""
    scheduler: Scheduler = "default"
    """Sampler; `default` is the checkpoint's own."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Denoising steps, 1 to 1000."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Classifier-free guidance, 0 to 50; values up to 1 turn it off. 2.0 is the evidence-backed value for training
    data.
    """
    width: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    height: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] | None = None
    """Pixels, a multiple of 8; null is the model's own size."""
    dtype: Dtype = "bfloat16"
    """Arithmetic of the generator."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Images a batch, 1 to 1024. Part of the recipe, because rounding depends on it."""
    safety_checker: bool = True
    """Run the checkpoint's safety checker where it has one; a hit is retried, then set aside."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a flagged, NaN or flat image is made again with a new seed before it is set aside, 0 to 100."""


class StorePart(Part):
    """How pixels become stored bytes."""

    format: Literal["jpeg", "png", "webp"] = "jpeg"
    """`jpeg`; `png` and `webp` are lossless."""
    quality: Annotated[int, Field(ge=1, le=100)] = 96
    """JPEG quality, 1 to 100; ImageNet's own files are mostly 96."""
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    """JPEG chroma subsampling."""
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Short side in pixels to which images are resized before they are stored; null keeps them as generated."""
    shard_rows: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Rows a shard, 1 to 100,000."""


PARTS: dict[str, type[Part]] = {
    "source": SourcePart, "caption": CaptionPart, "prompt": PromptPart, "generate": GeneratePart, "store": StorePart,
}  # fmt: skip


class Recipe(Part):
    """Everything that decides the bytes of a synthetic dataset; see the parts for each field's unit and range."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """Letters, digits, dot, dash and underscore. Not part of the fingerprint."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """From which each sample's seed is derived, 0 to 2^63 - 1."""
    source: SourcePart
    caption: CaptionPart | None = None
    prompt: PromptPart
    generate: GeneratePart
    store: StorePart = StorePart()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        strategy = get_strategy(self.prompt.strategy)
        try:
            get_variant(self.source.variant).split(self.source.split)
        except DataError as error:
            # A ValueError would be caught by pydantic and lose its hint.
            raise HfsynError(error.message, error.hint) from None
        if strategy.needs_caption and self.caption is None:
            raise HfsynError(
                f"Strategy {strategy.name!r} needs captions, and the recipe has no caption part.",
                "Give it one, e.g. `caption: {model: Salesforce/blip-image-captioning-base}`.",
            )
        return self


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION`` (the recipe that a
        published
            dataset carries), a mapping, or a Recipe.
        overrides: ``key=value`` strings with dotted keys, e.g. ``generate.steps=20``; values are read as YAML. Another
            model drops what belonged to the old one, its revision and its image size, unless these are set too.

    Raises:
        HfsynError: unknown name or key (with the nearest one), or a value outside its range.
    """
    if isinstance(recipe, Recipe):
        fields: dict[str, Any] = recipe.model_dump()
        where = f"recipe {recipe.name!r}"
    elif isinstance(recipe, Mapping):
        fields, where = json.loads(json.dumps(dict(recipe))), "recipe"
    else:
        text, where = _read(str(recipe))
        fields = _parse(text, where)
    for override in overrides:
        _override(fields, override)
    _drop_model_fields(fields, {override.partition("=")[0] for override in overrides})
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise HfsynError(*_explain(error, where)) from None


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with hfsyn, sorted."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("hfsyn.recipes").iterdir() if p.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The YAML text of a shipped recipe, comments included.

    Raises:
        HfsynError: no shipped recipe of that name.
    """
    return _read(name, files=False)[0]


def new_recipe(name: str, base: str) -> Path:
    """Write NAME.yaml into the current folder: the base recipe with every field and its meaning, ready to edit.

    Raises:
        HfsynError: the file exists, or there is no such base.
    """
    path = Path(f"{name}.yaml" if not name.endswith(".yaml") else name)
    if path.exists():
        raise HfsynError(f"{path} exists.", "Name another, or delete it first.")
    recipe = load_recipe(base, [f"name={path.stem}"])
    lines = [f"name: {recipe.name}", f"seed: {recipe.seed}"]
    for part in PARTS:
        value = getattr(recipe, part)
        if value is None:
            lines.append(f"{part}: null")
            continue
        lines.append(f"{part}:")
        for key, field in type(value).model_fields.items():
            lines.append(f"  # {' '.join((field.description or '').split())}")
            lines.append(f"  {key}: {json.dumps(getattr(value, key), ensure_ascii=False)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, one flow mapping a part, every field written out."""
    lines = [f"name: {recipe.name}", f"seed: {recipe.seed}"]
    for part in PARTS:
        value = getattr(recipe, part)
        text = yaml.safe_dump(
            value.model_dump() if value is not None else None,
            sort_keys=False, default_flow_style=True, width=10_000, allow_unicode=True,
        )  # fmt: skip
        lines.append(f"{part}: {text.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of all fields but the name.

    Two recipes with one fingerprint make the same dataset; a run folder accepts only its own.
    """
    canonical = json.dumps(recipe.model_dump(exclude={"name"}), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def difference(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """``(field, value in a, value in b)`` for each field that differs, dotted, in the recipe's order; the name is left
    out.
    """
    left, right = dict(_leaves(a.model_dump(exclude={"name"}))), dict(_leaves(b.model_dump(exclude={"name"})))
    keys = list(dict.fromkeys([*left, *right]))
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(name: str, *, files: bool = True) -> tuple[str, str]:
    """Text of a recipe and how to call it in a message."""
    if files and name.startswith("hf://"):
        return _read_from_hub(name), name
    path = Path(name).expanduser()
    if files and (name.endswith((".yaml", ".yml")) or "/" in name):
        if not path.is_file():
            raise HfsynError(f"There is no recipe file {name}.", "`hfsyn recipes new NAME` writes one to start from.")
        return path.read_text(encoding="utf-8"), name
    if name not in shipped_recipes():
        near = difflib.get_close_matches(name, shipped_recipes(), n=1)
        raise HfsynError(
            f"Unknown recipe {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"Shipped recipes: {', '.join(shipped_recipes())}. A file is named with its .yaml.",
        )
    return (resources.files("hfsyn.recipes") / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name!r}"


def _read_from_hub(uri: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = uri.removeprefix("hf://datasets/").partition("@")
    if not uri.startswith("hf://datasets/") or repo.count("/") != 1:
        raise HfsynError(f"{uri!r} is not a recipe's address.", "It looks like hf://datasets/USER/NAME@v1.0.0")
    try:
        found = hf_hub_download(repo, "recipe.yaml", repo_type="dataset", revision=revision or None)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(f"No recipe could be read from {uri}: {reason}", "Check the name and the revision.") from None
    return Path(found).read_text(encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HfsynError(
            f"{where} is not YAML: {' '.join(str(error).split())}", "Mend the line that it names."
        ) from None
    if not isinstance(fields, dict):
        raise HfsynError(f"{where} holds no recipe.", "`hfsyn recipes show shapes-cip` prints one.")
    return fields


def _override(fields: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise HfsynError(f"--set {override!r} is not KEY=VALUE.", "For instance: --set generate.steps=20")
    part: Any = fields
    *parents, last = key.split(".")
    for parent in parents:
        if parent in part and part[parent] is None:
            part[parent] = {}
        part = part.setdefault(parent, {})
        if not isinstance(part, dict):
            raise HfsynError(f"--set {key}: {parent!r} is a value and holds no keys.", _allowed(key.split(".")))
    try:
        part[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        part[last] = value


def _drop_model_fields(fields: dict[str, Any], overridden: set[str]) -> None:
    """Where a model was overridden, forget the revision and the size that were the other model's."""
    for part in ("caption", "generate"):
        if f"{part}.model" in overridden and isinstance(fields.get(part), dict):
            for key in {"revision", "width", "height"} & set(fields[part]):
                if f"{part}.{key}" not in overridden:
                    fields[part][key] = None


def _model_at(loc: Sequence[Any]) -> type[Part]:
    """The model class that holds the last name of `loc`."""
    return PARTS.get(str(loc[0]), Recipe) if len(loc) > 1 else Recipe


def _allowed(loc: Sequence[Any]) -> str:
    return f"Allowed here: {', '.join(_model_at(loc).model_fields)}."


def _explain(error: ValidationError, where: str) -> tuple[str, str]:
    """Turn pydantic's report into one message and one hint, for the first fault."""
    fault = error.errors()[0]
    loc = [str(name) for name in fault["loc"]]
    key = ".".join(loc)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], _model_at(loc).model_fields, n=1)
        guess = f" Did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else ""
        return f"Unknown key {key!r} in {where}.{guess}{more}", _allowed(loc)
    if fault["type"] == "missing":
        return f"Key {key!r} is missing in {where}.{more}", _allowed(loc)
    field = _model_at(loc).model_fields.get(loc[-1])
    meaning = f"{key}: {field.description}" if field and field.description else "See `hfsyn recipes show shapes-cip`."
    problem = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key} is {fault['input']!r}: {problem}.{more}", " ".join(meaning.split())
