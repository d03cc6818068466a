"""Training recipes: everything that decides the weights of a classifier, but for the images themselves.

A recipe is a YAML file, a shipped one by name, or nothing (the defaults); flags and ``--set KEY=VALUE`` win over it.
How many processes, which device, where checkpoints go: these are flags of the command and never stand here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfsyn.errors import HfsynError

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Aspect = Annotated[float, Field(ge=0.01, le=100)]
NotNegative = Annotated[float, Field(ge=0)]
Size = Annotated[int, Field(ge=8, le=4096)]


class Part(BaseModel):
    """A frozen part of a training recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataPart(Part):
    """Which images, and how many of them."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    """What to train on: one or more datasets, `[VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]`."""
    train_split: str | None = None
    """Split to train on; null is `train`, or the only one."""
    limit_per_class: Annotated[int, Field(ge=1)] | None = None
    """At most so many different images a class of each set, >= 1; null takes all."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Images that an epoch shows, drawn from the sets in proportion to their weights; null is the size of the one set.
    Budget times epochs is what training costs, whatever the sets' sizes, so that arms can be compared.
    """
    streaming: bool = False
    """Read the sets as streams, shuffled in a buffer, instead of having them on the disk."""
    shuffle_buffer: Annotated[int, Field(ge=1)] = 1000
    """Images in the buffer of a shuffled stream, >= 1."""


class ModelPart(Part):
    """Which network."""

    name: str = "resnet50"
    """A name of `timm.list_models()`."""
    pretrained: bool = False
    """Start from timm's weights instead of from scratch."""
    image_size: Size | None = None
    """Height and width of the input in pixels, 8 to 4096; null is the model's own."""
    drop_path: Unit = 0.0
    """Stochastic depth, 0 to 1."""
    dropout: Unit = 0.0
    """Before the classifier, 0 to 1."""
    options: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, e.g. {stem_type: ""}."""
    ema_decay: Unit = 0.0
    """Moving average of the weights, which is then what is kept; 0 keeps the last weights."""
    channels_last: bool = True
    """Memory format of the convolutions; faster on most devices."""


class AugmentPart(Part):
    """What happens to a training image."""

    scale: tuple[Unit, Unit] = (0.08, 1.0)
    """Area of the random crop, as a share of the image."""
    ratio: tuple[Aspect, Aspect] = (0.75, 4 / 3)
    """Aspect ratio of the random crop, 0.01 to 100."""
    flip: Unit = 0.5
    """Chance of a horizontal flip."""
    auto_augment: str | None = None
    """timm's RandAugment, AugMix or AutoAugment string, e.g. rand-m7-n2-inc1; null leaves colours to color_jitter."""
    color_jitter: NotNegative = 0.4
    """Brightness, contrast and saturation, where auto_augment is null; 0 is none."""
    random_erasing: Unit = 0.0
    """Chance that a rectangle is erased."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """Of the training crop; `random` picks bilinear or bicubic for each image."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; 0 is none."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix; 0 is none. With both, each batch takes one of them."""
    mix_prob: Unit = 1.0
    """Chance that a batch is mixed."""
    label_smoothing: Unit = 0.1
    """Share of a target that goes to the other classes."""


class OptimisePart(Part):
    """How the weights are found."""

    epochs: Annotated[int, Field(ge=1)] = 100
    """Epochs of `budget` images, >= 1."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images of one step, over all processes and accumulated parts: the result does not depend on how it is divided."""
    optimizer: str = "sgd"
    """A name of `timm.optim.list_optimizers()`; sgd has Nesterov momentum."""
    lr: Positive = 0.1
    """Peak learning rate."""
    weight_decay: NotNegative = 5e-4
    """Not applied to biases and norms."""
    momentum: Unit = 0.9
    """Of SGD."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_epochs: NotNegative = 5
    """Epochs of linear warm-up from zero."""
    min_lr: NotNegative = 0.0
    """Where the cosine ends."""
    clip_grad: NotNegative = 0.0
    """Largest norm of the gradient; 0 is no limit."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic, as accelerate names it."""


class TestingPart(Part):
    """What the classifier is tested on."""

    dataset: str | None = None
    """One dataset, written as for training; null tests nothing."""
    split: str | None = None
    """Split to test on; null is `validation`, else `test`, else the only one."""
    crop: Unit = 0.875
    """Side of the central crop, as a share of the resized image."""
    every_epochs: Annotated[int, Field(ge=0)] = 0
    """Also test after so many epochs; 0 tests the final weights only."""


class TrainConfig(Part):
    """A whole training recipe. The weights that are kept are always the last ones, never those that tested best."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides the initial weights, the order of the images and every augmentation."""
    data: DataPart
    model: ModelPart = ModelPart()
    augment: AugmentPart = AugmentPart()
    optimise: OptimisePart = OptimisePart()
    test: TestingPart = TestingPart()


PARTS: dict[str, type[Part]] = {
    "data": DataPart, "model": ModelPart, "augment": AugmentPart, "optimise": OptimisePart, "test": TestingPart,
}  # fmt: skip


def load_train_config(
    config: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Load and check a training recipe.

    Args:
        config: a shipped recipe's name, a YAML file, a mapping, a TrainConfig, or None for the defaults.
        overrides: ``key=value`` strings with dotted keys, e.g. ``augment.mixup=0.2``; values are read as YAML.
        values: the same as Python values by dotted key; None values are left out.

    Raises:
        HfsynError: unknown name or key (with the nearest one), a value outside its range, or no training dataset.
    """
    if isinstance(config, TrainConfig):
        fields, where = config.model_dump(), "the training recipe"
    elif isinstance(config, Mapping):
        try:
            fields, where = json.loads(json.dumps(config)), "the training recipe"
        except (TypeError, ValueError) as error:
            raise HfsynError(f"The training recipe holds a value that is none: {error}.", "Quote dates.") from None
    elif config is None:
        fields, where = {}, "the options"
    else:
        fields, where = _read(str(config))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise HfsynError(f"--set {override!r} is not KEY=VALUE.", "For instance: --set augment.mixup=0.2")
        _set(fields, key, _yaml_value(value))
    for key, value in (values or {}).items():
        if value is not None:
            _set(fields, key, value)
    if isinstance(fields.get("data", {}), dict) and not fields.get("data", {}).get("train"):
        raise HfsynError("There is nothing to train on.", "Name a dataset: --train-dataset shapes")
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        raise HfsynError(*_explain(error, where)) from None


def shipped_training_recipes() -> list[str]:
    """Names of the training recipes that come with hfsyn, sorted."""
    folder = resources.files("hfsyn.judging.training_recipes")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def dump_train_config(config: TrainConfig) -> str:
    """The recipe as YAML with every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_fingerprint(config: TrainConfig) -> str:
    """SHA-256 of everything that decides the weights; what the classifier is tested on does not."""
    text = json.dumps(config.model_dump(mode="json", exclude={"test"}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_difference(a: TrainConfig, b: TrainConfig) -> list[tuple[str, Any, Any]]:
    """``(field, value in a, value in b)`` for each field that differs and decides the weights, dotted."""
    left, right = (c.model_dump(mode="json", exclude={"test"}) for c in (a, b))
    found = [("seed", left.pop("seed"), right.pop("seed"))]
    found += [(f"{part}.{key}", left[part][key], right[part][key]) for part in left for key in left[part]]
    return [entry for entry in found if entry[1] != entry[2]]


def read_text(path: Path) -> str:
    """The text of a file that a person wrote.

    Raises:
        HfsynError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HfsynError(f"{path} is not UTF-8: byte {error.start} cannot be read.", "Save it as UTF-8.") from None
    except OSError as error:
        raise HfsynError(f"{path} cannot be read: {error.strerror}.", "Look at its rights.") from None


def _read(name: str) -> tuple[dict[str, Any], str]:
    path = Path(name).expanduser()
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not path.is_file():
            raise HfsynError(
                f"There is no training recipe {name}.", f"Shipped: {', '.join(shipped_training_recipes())}"
            )
        text = read_text(path)
    elif name in shipped_training_recipes():
        text = (resources.files("hfsyn.judging.training_recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(name, shipped_training_recipes(), n=1)
        raise HfsynError(
            f"Unknown training recipe {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"Shipped: {', '.join(shipped_training_recipes())}. A file is named with its .yaml.",
        )
    try:
        fields = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise HfsynError(f"{name} is not YAML: {' '.join(str(error).split())}", "Mend the line it names.") from None
    if not isinstance(fields, dict):
        raise HfsynError(f"{name} holds no training recipe.", f"Its parts are {', '.join(PARTS)}.")
    return fields, name


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    part: Any = fields
    *parents, last = key.split(".")
    for parent in parents:
        part = part.setdefault(parent, {})
        if not isinstance(part, dict):
            raise HfsynError(f"{key}: {parent!r} is a value and holds no keys.", f"The parts are {', '.join(PARTS)}.")
    part[last] = value


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _explain(error: ValidationError, where: str) -> tuple[str, str]:
    """Turn pydantic's report into one message and one hint, for the first fault."""
    fault = error.errors()[0]
    loc = [str(name) for name in fault["loc"]]
    owner = PARTS.get(loc[0], TrainConfig) if len(loc) > 1 else TrainConfig
    allowed = f"Allowed here: {', '.join(owner.model_fields)}."
    name = loc[min(1, len(loc) - 1)]
    key = ".".join(loc)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, owner.model_fields, n=1)
        guess = f" Did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else ""
        return f"Unknown key {key!r} in {where}.{guess}", allowed
    field = owner.model_fields.get(name)
    meaning = f"{key}: {field.description}" if field and field.description else allowed
    return f"{key} is {fault['input']!r}: {fault['msg'][0].lower() + fault['msg'][1:]}.", " ".join(meaning.split())
