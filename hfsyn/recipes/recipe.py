"""Recipes: everything that decides the bytes of a synthetic dataset, and nothing else.

What changes only the speed (device, processes, output folder) is a flag of the command and never part of a recipe. A
recipe is a YAML file; `load_recipe` checks every key, `fingerprint` names its content, `difference` tells how two
differ. One that is stored with a run or published also has its `format`, and one of another format is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from builders.files import atomic_text
from builders.runs import layout
from builders.variants import get_variant
from builders.variants.class_maps import read_variant
from builders.yaml import dump_flow, is_yaml_name, load_mapping, read_text
from hfsyn.errors import HfsynError
from hfsyn.recipes import loading
from hfsyn.recipes.parts import (
    BUILTIN,
    HUB,
    CaptionPart,
    GeneratePart,
    PromptPart,
    SourcePart,
    StorePart,
    check_prompt,
    refuse_idle,
)
from hfsyn.recipes.strategies import check_words, get_strategy, is_user_strategy
from hfsyn.recipes.tune_part import TunePart

# Besides what is defined here:
__all__ = ["BUILTIN", "CaptionPart", "GeneratePart", "SourcePart", "StorePart", "TunePart"]

RECIPES = loading.Shelf("recipe", otherwise="A file is named with its .yaml; `hfsyn recipes new NAME` writes one.")
"""The shipped recipes."""
_Seed = Annotated[loading.Int, Field(ge=0, lt=2**63)]


class Recipe(loading.Part):
    """Everything that decides the bytes of a synthetic dataset; see the parts for each field's unit and range."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    """Title of the run and of its card: letters, digits, dot, dash and underscore. Not part of the fingerprint."""
    seed: _Seed = 0
    """From which each sample's seed is derived, 0 to 2^63 - 1."""
    class_seeds: dict[str, _Seed] = Field(default_factory=dict)
    """Another seed for some classes, by wnid: their images are made again, all others stay as they are."""
    source: SourcePart
    caption: CaptionPart | None = None
    prompt: PromptPart
    generate: GeneratePart
    store: StorePart = StorePart()
    tune: TunePart | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        check_prompt(self.prompt, self.caption)
        variant = get_variant(self.source.variant)
        variant.split(self.source.split)
        known = variant.by_wnid
        if unknown := sorted(set(self.class_seeds) - known.keys()):
            said = f"class_seeds names {', '.join(unknown)}, and the variant {self.source.variant} has no such class."
            raise HfsynError(said, f"A class is named by its wnid: hfsyn variants info {self.source.variant} --classes")
        if self.prompt.pairing != "own" and len(known) < 2:
            said = f"prompt.pairing is {self.prompt.pairing!r}, and the variant {self.source.variant} has one class."
            raise HfsynError(said, "Captions are exchanged between classes: --set prompt.pairing=own")
        check_words(known.values(), get_strategy(self.prompt.strategy))
        return self

    def seed_for(self, wnid: str) -> int:
        """The seed from which the seeds of a class's samples are derived."""
        return self.class_seeds.get(wnid, self.seed)

    @property
    def of_prompts(self) -> bool:
        """Whether its source is a table of prompts, which has blank pictures in place of real images."""
        return self.source.path is not None and self.source.path == self.prompt.captions_file

    def with_fields(self, part: str, **fields: Any) -> Recipe:
        """A copy with some fields of a part changed, unchecked."""
        return self.model_copy(update={part: getattr(self, part).model_copy(update=fields)})


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    captioner: str | None = None,
    generator: str | None = None,
) -> Recipe:
    """Load and check a recipe.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION`` (the recipe of a published
            dataset), a mapping, or a Recipe.
        overrides: ``key=value`` strings with dotted keys, e.g. ``generate.steps=20``; values are read as YAML. Another
            model drops what belonged to the old one, its revision, image size and LoRA, unless these are set too; the
            models that come with hfsyn (``builtin``) bring the settings of their fragments. A name such as
            ``imagenette-cip``, of a variant and a strategy, follows them if they are overridden and it is not.
        captioner: name or YAML file of a `hfsyn.recipes.loading.Fragment` whose caption part replaces the recipe's,
            before the overrides.
        generator: the same for the generate part.

    Raises:
        HfsynError: an unknown name or key (with the nearest one), a value outside its range, or a field that decides
            nothing.
    """
    overridden = {override.partition("=")[0] for override in overrides}
    if isinstance(recipe, Recipe):
        fields, where = recipe.model_dump(), f"recipe {recipe.name!r}"
    elif isinstance(recipe, Mapping):
        fields, where = loading.fields_of(recipe, "recipe"), "recipe"
    else:
        fields, where = _read(str(recipe))
        inherits = "name" not in fields
        fields = loading.extended(fields, where, _read)
        if inherits and not str(fields.get("name", "")).startswith(name := _data_name(fields)):
            fields["name"] = name
        if where.startswith("hf://"):
            _refuse_local(fields, where, overridden)
        _fill_in_class_map(fields, Path(where).expanduser().parent)
    before = _data_name(fields)
    _fill_in_fragments(fields, overrides, {"captioner": captioner, "generator": generator})
    for override in overrides:
        loading.set_field(fields, override, Recipe)
    _drop_stale(fields, overridden)
    _fill_in_class_map(fields, Path(), renamed="source.variant" in overridden)
    if "name" not in overridden and (title := str(fields.get("name"))).startswith(before):
        fields["name"] = _data_name(fields) + title.removeprefix(before)
    if (written := fields.pop("format", None)) is not None:
        layout.check_format(written, where)
    found = loading.checked(Recipe, fields, where)
    # A stored or published recipe stays as it is; of a shipped one and a Recipe only what is set here is looked at.
    own = isinstance(recipe, Mapping) or (is_yaml_name(where) and Path(where).name != layout.RECIPE)
    own_generator = generator is not None and is_yaml_name(generator)
    refuse_idle(found, lambda key: own or key in overridden or (own_generator and key.startswith("generate.")))
    return found


def _data_name(fields: Mapping[str, Any]) -> str:
    """What a recipe is named after: its variant and its strategy, such as ``pets-cip``; unchecked fields may be odd."""
    source, prompt = (part if isinstance(part := fields.get(key), Mapping) else {} for key in ("source", "prompt"))
    variant, strategy = Path(str(source.get("variant")).partition("@")[0]).stem, str(prompt.get("strategy"))
    return re.sub(r"[^A-Za-z0-9._]+", "-", f"{variant}-{strategy.rpartition(':')[2]}").strip("-._")[:96]


def read_recipe(name: str) -> tuple[str, str]:
    """The text of a recipe, by any name that `load_recipe` takes, and how to call it in a message."""
    if not name.startswith("hf://"):
        return RECIPES.read(name)
    from builders.published import open_published, parse_reference

    if not name.startswith(HUB):
        raise HfsynError(f"{name!r} is not a dataset.", f"It looks like {HUB}USER/NAME@v1.0.0")
    return open_published(*parse_reference(name)).text(layout.RECIPE), name


def _read(name: str) -> tuple[dict[str, Any], str]:
    text, where = read_recipe(name)
    fields = load_mapping(text, where, "recipe")
    loading.refuse_other_kind(fields, where, "recipe")
    if where.startswith("hf://"):
        layout.check_format(fields.get("format"), where)
    source, prompt = (part if isinstance(part := fields.get(key), dict) else {} for key in ("source", "prompt"))
    file, folder = source.get("path"), Path(where).expanduser().parent
    if isinstance(file, str) and file == prompt.get("captions_file") and (folder / file).is_file():
        source["path"] = prompt["captions_file"] = str(folder / file)  # a table of prompts goes with its recipe
    return fields, where


def _refuse_local(fields: Mapping[str, Any], where: str, overridden: set[str]) -> None:
    """Refuse another person's recipe that would read a file of this machine, or run one, unless the user names it."""

    def value(part: str, key: str) -> Any:
        return fields[part].get(key) if isinstance(fields.get(part), Mapping) else None

    models = ("caption.model", "generate.model", "generate.lora", "generate.entropy_classifier")
    for field in ("source.path", "source.variant", *models):
        part, _, key = field.partition(".")
        place = str(value(part, key) or "")
        local = is_yaml_name(place) if key == "variant" else place.startswith(("/", "~", ".."))
        if local or (place and key == "path"):
            raise HfsynError(
                f"{where} names a place on your machine: {field} is {place!r}.",
                "hfsyn publishes no such recipe. Save it as a file, and set the field yourself if you trust it.",
            )
    strategy, file = str(value("prompt", "strategy")), value("prompt", "captions_file")
    captioner = str(value("caption", "model"))
    if is_user_strategy(captioner) and "caption.model" not in overridden:
        said = f"{where} has its captions from its author's class {captioner!r}, and hfsyn runs no code of others."
        raise HfsynError(said, "If you have it and trust it: --set caption.model=path/to/file.py:Class; or --captions.")
    if is_user_strategy(strategy) and "prompt.strategy" not in overridden:
        said = f"{where} has its prompts from its author's function {strategy!r}, and hfsyn runs no code of others."
        raise HfsynError(said, "If you have the file and trust it: --strategy path/to/file.py:function")
    if file is not None and not str(file).startswith(HUB) and "prompt.captions_file" not in overridden:
        raise HfsynError(
            f"The captions of {where} come from a file of its author's, {file!r}.",
            "If you have it: --set prompt.captions_file=FILE; or take the published captions: --captions",
        )


def _fill_in_class_map(fields: dict[str, Any], folder: Path, *, renamed: bool = False) -> None:
    """Where `source.variant` is the file of a class map, put its content and its name by content into the fields.

    The file is relative to `folder`; `renamed` says that another variant was set, so that a definition is stale.
    """
    source = fields.get("source")
    if not isinstance(source, dict) or not isinstance(name := source.get("variant"), str):
        return
    if is_yaml_name(name):
        variant, path = read_variant(folder / Path(name).expanduser())
        source["variant"], source["definition"] = variant.name, dict(variant.definition)
        if source.get("path") is None and variant.hub is None:
            source["path"] = path
    elif renamed:
        source["definition"] = None


def _fill_in_fragments(fields: dict[str, Any], overrides: Sequence[str], given: Mapping[str, str | None]) -> None:
    """Replace parts by the given fragments, and give those whose model is set to `builtin` its settings."""
    for kind, part in loading.FRAGMENT_PART.items():
        now = fields.get(part)
        if (name := given[kind]) is not None:
            fields[part] = dict(loading.load_fragment(kind, name).part)
        elif f"{part}.model={BUILTIN}" in overrides and isinstance(now, dict) and now.get("model") != BUILTIN:
            # What a large model needs, such as 50 steps in bfloat16, takes a small one hours on a CPU.
            fields[part] = {**now, **loading.load_fragment(kind, BUILTIN).part}


_OF_LORA = ("lora_file", "lora_revision", "lora_tuned_on")
_STALE = {
    "caption.model": ("revision",),
    "prompt.strategy": ("strategy_sha256",),
    "prompt.captions_file": ("captions_revision",),
    "generate.model": ("revision", "variant", "tuned_on", "width", "height", "lora", *_OF_LORA),
    "generate.lora": _OF_LORA,
    "generate.entropy_classifier": ("entropy_revision",),
}
"""Field -> fields of the same part that belong to its value."""


def _drop_stale(fields: dict[str, Any], overridden: set[str]) -> None:
    """Drop what belonged to a model or a file that was overridden, unless it was set as well."""
    for key, stale in _STALE.items():
        part = key.partition(".")[0]
        values = fields.get(part)
        if key in overridden and isinstance(values, dict):
            values |= {name: None for name in stale if name in values and f"{part}.{name}" not in overridden}
            # Without a LoRA its scale decides nothing, and a recipe may not have such fields.
            if key == "generate.model" and not {"generate.lora", "generate.lora_scale"} & overridden:
                values.pop("lora_scale", None)


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe that is stored with a run or was published, checked like any other; `where` names it in messages.

    Raises HfsynError as `load_recipe`, or if it has another format.
    """
    return loading.checked(Recipe, layout.recipe_fields(text, where), where)


def stored_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder. Raises HfsynError if it cannot be read, is damaged, or has another format."""
    path = folder / layout.RECIPE
    return parse_recipe(read_text(path, "recipe", "It is what makes a folder a run."), str(path))


class _Fragment(loading.Part):
    caption: CaptionPart | None = None
    generate: GeneratePart | None = None


def check_part(name: str, fields: Mapping[str, Any], where: str) -> loading.Part:
    """The checked caption or generate part of a fragment; `where` is its name in messages."""
    found: loading.Part = getattr(loading.checked(_Fragment, {name: fields}, where), name)
    return found


def new_recipe(name: str, base: str) -> Path:
    """Write NAME.yaml into the current folder: the base recipe with every field and its meaning, ready to edit.

    Raises HfsynError if the file exists, or there is no such base.
    """
    path = Path(f"{name}.yaml" if not name.endswith(".yaml") else name)
    if path.exists():
        raise HfsynError(f"{path} exists.", "Name another, or delete it first.")
    recipe = load_recipe(base, [f"name={path.stem}"])
    lines = [f"name: {recipe.name}", f"seed: {recipe.seed}"]
    for part, value in recipe:
        if not isinstance(value, loading.Part):
            lines += ["caption: null"] if part == "caption" else []
            continue
        lines.append(f"{part}:")
        for key, field in type(value).model_fields.items():
            if key != "definition" or getattr(value, key) is not None:  # which is not written by hand
                lines.append(f"  # {' '.join((field.description or '').split())}")
                lines.append(f"  {key}: {json.dumps(getattr(value, key), ensure_ascii=False)}")
    atomic_text(path, "\n".join(lines) + "\n")
    return path


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as it is stored and published: its format, and a line per part with every field written out."""
    fields = _without_unused(recipe.model_dump(), recipe)
    if not recipe.class_seeds:
        del fields["class_seeds"]
    if recipe.source.definition is None:
        del fields["source"]["definition"]
    if recipe.tune is None:
        del fields["tune"]
    return "".join(f"{key}: {dump_flow(value)}\n" for key, value in {"format": layout.FORMAT, **fields}.items())


def _without_unused(fields: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe but for those of features that it does not use, which decide nothing."""
    if recipe.prompt.pairing == "own":
        del fields["prompt"]["pairing"]
    if not recipe.store.mark:
        del fields["store"]["mark"]
    idle = {key for key in ("tuned_on", "lora_tuned_on") if getattr(recipe.generate, key) is None}
    idle |= {key for key in fields["generate"] if key.startswith("entropy_") and not recipe.generate.entropy_weight}
    fields["generate"] = {key: value for key, value in fields["generate"].items() if key not in idle}
    return fields


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of the format and of all fields that decide the bytes.

    Two recipes with one fingerprint make the same dataset from the same real images; a run folder accepts only its own.
    Left out are the name; a class map, since its content is in the variant's name; how the generator is tuned, since
    the LoRA's content is in it; and where things lie here whose content is named: the real images, models, LoRA
    weights, classifiers, a user's function, a captions file.
    """
    told = {"tuned_on", "lora_tuned_on"}  # which the content of the weights decides
    whole = recipe.model_dump(exclude={"name": True, "tune": True, "source": {"path", "definition"}, "generate": told})
    fields = _without_unused(whole, recipe)
    for part in ("caption", "generate"):
        if fields[part] is not None and is_content_hash(fields[part]["revision"]):
            del fields[part]["model"]
    if is_content_hash(recipe.generate.lora_revision):
        del fields["generate"]["lora"], fields["generate"]["lora_file"]
    if fields["generate"].get("entropy_revision") is not None:
        del fields["generate"]["entropy_classifier"]
    prompt = fields["prompt"]
    if prompt["strategy_sha256"] is not None:
        prompt["strategy"] = prompt["strategy"].rpartition(":")[2]
    if prompt["captions_revision"] is not None:
        if prompt["captions_file"].startswith(HUB):
            prompt["captions_file"] = prompt["captions_file"].partition("@")[0]
        else:
            del prompt["captions_file"]
    canonical = json.dumps({"format": layout.FORMAT, **fields}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_content_hash(revision: str | None) -> bool:
    """Whether a revision is the content of a local file or model, ``sha256:`` and 64 hex digits."""
    return revision is not None and re.fullmatch(r"sha256:[0-9a-f]{64}", revision) is not None


def published_recipe(recipe: Recipe) -> Recipe:
    """The recipe as others may see it: without the folders of this machine. Its fingerprint stays the same."""
    prompt, generate = recipe.prompt, recipe.generate
    local = {
        ("caption", "model"): recipe.caption is not None and _is_local(recipe.caption),
        ("prompt", "strategy"): is_user_strategy(prompt.strategy),
        ("prompt", "captions_file"): prompt.captions_file is not None and not prompt.captions_file.startswith(HUB),
        ("generate", "model"): _is_local(generate),
        ("generate", "lora"): is_content_hash(generate.lora_revision),
        ("generate", "entropy_classifier"): Path(generate.entropy_classifier or "").is_absolute(),
    }
    public = recipe.with_fields("source", path=None)
    if (tune := recipe.tune) is not None and tune.dataset is not None and tune.dataset_revision is None:
        public = public.with_fields("tune", dataset=f"./{Path(tune.dataset).name}")
    for (part, key), hidden in local.items():
        if hidden:
            public = public.with_fields(part, **{key: f"./{Path(str(getattr(getattr(recipe, part), key))).name}"})
    return public


def _is_local(part: CaptionPart | GeneratePart) -> bool:
    return is_content_hash(part.revision) and part.model != BUILTIN


def difference(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """``(field, value in a, value in b)`` for each field that differs, dotted, in the recipe's order, except for the
    name, the tuning, and a class map, whose content is in the variant's name.
    """
    return loading.differing(a, b, {"name": True, "tune": True, "source": {"definition"}})
