"""Recipes: everything that decides the bytes of a synthetic dataset, and nothing else.

What changes only the speed (device, processes, output folder) is a flag of the command and never stands here. A recipe
is a YAML file; `load_recipe` checks every key, `fingerprint` names its content, `difference` says how two differ. One
that is stored with a run or published says its `format`, too, and one of another format is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from builders.files import atomic_text
from builders.runs import layout
from builders.variants import get_variant
from builders.yaml import dump_flow, is_yaml_name, load_mapping, read_text
from hfsyn.errors import HfsynError
from hfsyn.recipes.extending import check_words, extended, with_class_map
from hfsyn.recipes.finding import read_recipe
from hfsyn.recipes.fragments import FRAGMENT_PART, FragmentKind, load_fragment
from hfsyn.recipes.idle_fields import refuse_idle
from hfsyn.recipes.loading import Int, Part, checked, fields_of, set_field
from hfsyn.recipes.overrides import drop_model_fields
from hfsyn.recipes.parts import (
    BUILTIN,
    PARTS,
    CaptionPart,
    Dtype,
    GeneratePart,
    PromptPart,
    Scheduler,
    SourcePart,
    StorePart,
)
from hfsyn.recipes.prompt_part import check_prompt, leave_out_places, published_prompt, refuse_own_files
from hfsyn.recipes.strategies import get_strategy

__all__ = [
    "BUILTIN",
    "PARTS",
    "CaptionPart",
    "Dtype",
    "GeneratePart",
    "Part",
    "PromptPart",
    "Recipe",
    "Scheduler",
    "SourcePart",
    "StorePart",
    "check_part",
    "difference",
    "dump_recipe",
    "fingerprint",
    "is_content_hash",
    "load_recipe",
    "new_recipe",
    "parse_recipe",
    "published_recipe",
    "stored_recipe",
]

_Seed = Annotated[Int, Field(ge=0, lt=2**63)]


class Recipe(Part):
    """Everything that decides the bytes of a synthetic dataset; see the parts for each field's unit and range."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """Letters, digits, dot, dash and underscore. Not part of the fingerprint."""
    seed: _Seed = 0
    """From which each sample's seed is derived, 0 to 2^63 - 1."""
    class_seeds: dict[str, _Seed] = Field(default_factory=dict)
    """Another seed for some classes, by wnid: their images are made again, all others stay as they are."""
    source: SourcePart
    caption: CaptionPart | None = None
    prompt: PromptPart
    generate: GeneratePart
    store: StorePart = StorePart()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        check_prompt(self.prompt, self.caption)
        variant = get_variant(self.source.variant)
        variant.split(self.source.split)
        known = variant.by_wnid
        if unknown := sorted(set(self.class_seeds) - known.keys()):
            raise HfsynError(
                f"class_seeds names {', '.join(unknown)}, and the variant {self.source.variant} has no such class.",
                f"A class is named by its wnid: hfsyn variants info {self.source.variant} --classes",
            )
        strategy = get_strategy(self.prompt.strategy)
        check_words(list(known.values()), strategy.name, strategy.template)
        return self

    def seed_for(self, wnid: str) -> int:
        """The seed from which the seeds of a class's samples are derived."""
        return self.class_seeds.get(wnid, self.seed)


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    captioner: str | None = None,
    generator: str | None = None,
) -> Recipe:
    """Load and check a recipe.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION`` (the recipe that
            a published dataset carries), a mapping, or a Recipe.
        overrides: ``key=value`` strings with dotted keys, e.g. ``generate.steps=20``; values are read as YAML. Another
            model drops what belonged to the old one, its revision, image size and LoRA, unless these are set too; the
            models that come with hfsyn (``builtin``) bring the settings of their fragments.
        captioner: name or YAML file of a fragment whose caption part replaces the recipe's; see
            `hfsyn.recipes.fragments`. The overrides come after it.
        generator: the same for the generate part.

    Raises:
        HfsynError: unknown name or key (with the nearest one), or a value outside its range; or a field is written that
            decides nothing.
    """
    if isinstance(recipe, Recipe):
        fields: dict[str, Any] = recipe.model_dump()
        where = f"recipe {recipe.name!r}"
    elif isinstance(recipe, Mapping):
        fields, where = fields_of(recipe, "recipe"), "recipe"
    else:
        fields, where = _read(str(recipe))
        fields = extended(fields, where, _read)
        if where.startswith("hf://"):
            _refuse_places(fields, where)
        with_class_map(fields, Path(where).expanduser().parent)
    kinds: tuple[tuple[FragmentKind, str | None], ...] = (("captioner", captioner), ("generator", generator))
    for kind, fragment in kinds:
        part = FRAGMENT_PART[kind]
        if fragment is not None:
            fields[part] = dict(load_fragment(kind, fragment).part)
        elif f"{part}.model={BUILTIN}" in overrides and isinstance(now := fields.get(part), dict):
            # What a large model needs, such as 50 steps in bfloat16, takes a small one hours on a CPU.
            fields[part] = now if now.get("model") == BUILTIN else {**now, **load_fragment(kind, BUILTIN).part}
    if where.startswith("hf://"):
        refuse_own_files(fields, where, {override.partition("=")[0] for override in overrides})
    for override in overrides:
        set_field(fields, override, Recipe)
    overridden = {override.partition("=")[0] for override in overrides}
    drop_model_fields(fields, overridden)
    with_class_map(fields, Path(), renamed="source.variant" in overridden)
    if (written := fields.pop("format", None)) is not None:
        layout.check_format(written, where)
    found = checked(Recipe, fields, where)
    # A stored or a published recipe stays as it is; of a shipped one and a Recipe only what is set here is looked at.
    own = isinstance(recipe, Mapping) or (is_yaml_name(where) and Path(where).name != layout.RECIPE)
    own_generator = generator is not None and is_yaml_name(generator)
    refuse_idle(
        found.prompt,
        found.generate,
        found.store,
        lambda key: own or key in overridden or (own_generator and key.startswith("generate.")),
    )
    return found


def _read(name: str) -> tuple[dict[str, Any], str]:
    text, where = read_recipe(name)
    fields = load_mapping(text, where, "recipe")
    if where.startswith("hf://"):
        layout.check_format(fields.get("format"), where)
    return fields, where


_PLACES = (("source", "path"), ("caption", "model"), ("generate", "model"), ("generate", "lora"))


def _refuse_places(fields: Mapping[str, Any], where: str) -> None:
    """Refuse a stranger's recipe that names a place on this machine."""
    for part, key in _PLACES:
        value = fields[part].get(key) if isinstance(fields.get(part), Mapping) else None
        if value is not None and (key == "path" or str(value).startswith(("/", "~", ".."))):
            raise HfsynError(
                f"{where} names a place on your machine: {part}.{key} is {value!r}.",
                "hfsyn publishes no such recipe. Save it as a file, and set the field yourself if you trust it.",
            )
    if isinstance(fields.get("source"), Mapping) and is_yaml_name(str(fields["source"].get("variant"))):
        raise HfsynError(
            f"{where} names a class map on your machine: {fields['source']['variant']!r}.",
            "A published recipe has its class map in source.definition.",
        )


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe that is stored with a run or was published, perhaps by a stranger: checked as any other.

    Args:
        text: YAML.
        where: how to call it in a message.

    Raises:
        HfsynError: as `load_recipe`; or it is of another format.
    """
    return checked(Recipe, layout.recipe_fields(text, where), where)


def stored_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        HfsynError: it cannot be read, is damaged, or is of another format.
    """
    path = folder / layout.RECIPE
    return parse_recipe(read_text(path, "recipe", "It is what makes a folder a run."), str(path))


def check_part(name: str, fields: Mapping[str, Any], where: str) -> Part:
    """The checked part of that name; `where` names the text that it is from.

    Raises:
        HfsynError: as `load_recipe`.
    """
    return checked(PARTS[name], fields, where, (name,), Recipe)


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
            if key == "definition" and value.definition is None:
                continue  # nobody writes it by hand
            lines.append(f"  # {' '.join((field.description or '').split())}")
            lines.append(f"  {key}: {json.dumps(getattr(value, key), ensure_ascii=False)}")
    atomic_text(path, "\n".join(lines) + "\n")
    return path


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as it is stored and published: its format, and a line a part with every field written out."""
    lines = [f"format: {layout.FORMAT}"]
    for key, value in recipe.model_dump().items():
        if key == "class_seeds" and not value:
            continue
        if key == "source" and value["definition"] is None:  # nobody writes it by hand
            del value["definition"]
        lines.append(f"{key}: {dump_flow(value)}")
    return "\n".join(lines) + "\n"


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of the format and of all fields that decide the bytes.

    Two recipes with one fingerprint make the same dataset from the same real images; a run folder accepts only its own.
    Left out are the name, where the real images lie on this machine, where a model lies whose weights are named by
    their content, and a class map, whose content is in the variant's name.
    """
    fields = recipe.model_dump(exclude={"name": True, "source": {"path", "definition"}})
    for part in ("caption", "generate"):
        if fields[part] is not None and is_content_hash(fields[part]["revision"]):
            del fields[part]["model"]
    if is_content_hash(recipe.generate.lora_revision):
        del fields["generate"]["lora"], fields["generate"]["lora_file"]
    leave_out_places(fields["prompt"])
    canonical = json.dumps({"format": layout.FORMAT, **fields}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_content_hash(revision: str | None) -> bool:
    """Whether a revision is the content of a local model, ``sha256:`` and 64 hex digits, and not one of the Hub."""
    return revision is not None and re.fullmatch(r"sha256:[0-9a-f]{64}", revision) is not None


def published_recipe(recipe: Recipe) -> Recipe:
    """The recipe as others may see it: without the places of this machine. Its fingerprint stays the same."""
    public: dict[str, Any] = {
        "source": recipe.source.model_copy(update={"path": None}),
        "prompt": published_prompt(recipe.prompt),
    }
    for name in ("caption", "generate"):
        part = getattr(recipe, name)
        if part is not None and is_content_hash(part.revision) and part.model != BUILTIN:
            public[name] = part.model_copy(update={"model": f"./{Path(part.model).name}"})
    if is_content_hash(recipe.generate.lora_revision):
        shown = {"lora": f"./{Path(str(recipe.generate.lora)).name}"}
        public["generate"] = public.get("generate", recipe.generate).model_copy(update=shown)
    return recipe.model_copy(update=public)


def difference(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """``(field, value in a, value in b)`` for each field that differs, dotted, in the recipe's order; the name is left
    out, and so is a class map, whose content is in the variant's name.
    """
    left, right = (
        dict(_leaves(recipe.model_dump(exclude={"name": True, "source": {"definition"}}))) for recipe in (a, b)
    )
    keys = list(dict.fromkeys([*left, *right]))
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
