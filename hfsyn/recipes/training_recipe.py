"""Training recipes: everything that decides the weights of a classifier, but for the images themselves.

A recipe is a YAML file, a shipped one by name, or nothing (the defaults); flags and ``--set KEY=VALUE`` override it.
The number of processes, the device, where checkpoints go: these are flags of the command and never part of a recipe.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import (
    Amount,
    Count,
    Int,
    Part,
    Seed,
    Share,
    Shelf,
    Text,
    checked,
    differing,
    extended,
    fields_of,
    put,
    set_field,
)

TRAINING_RECIPES = Shelf("training recipe", "training")


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the smaller number comes first: [{pair[1]:g}, {pair[0]:g}]")
    return pair


Below = Annotated[float, Field(ge=0, lt=1)]
Area = Annotated[float, Field(ge=0.001, le=1)]
Aspect = Annotated[float, Field(ge=0.01, le=100)]


class DataPart(Part):
    """Which images, and how many of them."""

    train: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000, strict=False)]
    """What to train on: one or more datasets, `[VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]`."""
    train_split: Text | None = None
    """Split to train on; null is `train`, or the only one."""
    limit_per_class: Count | None = None
    """At most that many different images per class of each set, >= 1; null takes all."""
    limits: Annotated[tuple[Count | None, ...], Field(strict=False)] | None = None
    """The same for each of the sets of `train`, in place of limit_per_class."""
    budget: Count | None = None
    """Images that an epoch shows, drawn from the sets in proportion to their weights; null is the size of the one set.
    Budget times epochs is what training costs, whatever the sets' sizes, so that arms can be compared.
    """
    fold: Annotated[str, Field(pattern=r"^[0-9]{1,3}/[0-9]{1,3}$")] | None = None
    """`K/N` leaves out the images of the K-th of N parts, 0 to N-1, by their ids: N such trainings are the judge
    `crossfit:` of `hfsyn score`, in which no network judges an image that it has seen.
    """
    keep: Annotated[str, Field(pattern=r"^-?[A-Za-z_]\w{0,100}:(0?\.\d{1,6}|1(\.0)?)$")] | None = None
    """`COLUMN:SHARE` trains on the share of each class with the largest scores in a column, `-COLUMN:SHARE` with the
    smallest, and `random:SHARE` on as many images at random; above 0 to 1.
    """
    streaming: bool = False
    """Read the sets as streams, shuffled in a buffer, instead of having them on the disk."""
    shuffle_buffer: Count = 1000
    """Images in the buffer of a shuffled stream, >= 1."""

    @model_validator(mode="after")
    def _a_limit_for_each(self) -> "DataPart":
        if self.limits is not None and (len(self.limits) != len(self.train) or self.limit_per_class is not None):
            raise HfsynError(
                f"data.limits has {len(self.limits)} numbers for {len(self.train)} sets, and limit_per_class is "
                f"{self.limit_per_class}.",
                "Give one number for each set of data.train and no limit_per_class, or limit_per_class alone.",
            )
        return self

    @model_validator(mode="after")
    def _a_fold_of_several(self) -> "DataPart":
        if (found := self.fold_of) is not None and not (found[0] < found[1] and found[1] > 1):
            raise HfsynError(f"data.fold is {self.fold!r}.", "K/N is one of N > 1 parts, with K from 0 to N-1: 0/5.")
        if (self.fold is not None or self.keep is not None) and self.streaming:
            raise HfsynError("A stream cannot leave images out.", "Leave data.fold, data.keep or streaming out.")
        if self.keep is not None and not float(self.keep.rpartition(":")[2]):
            raise HfsynError(f"data.keep is {self.keep!r}, which keeps nothing.", "The share is above 0: margin:0.7.")
        return self

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """K and N of `fold`."""
        return None if self.fold is None else (int(self.fold.partition("/")[0]), int(self.fold.partition("/")[2]))

    @property
    def limit_of_each(self) -> tuple[int | None, ...]:
        """Images per class of each set of `train`."""
        return self.limits or (self.limit_per_class,) * len(self.train)


class ModelPart(Part):
    """Which network."""

    name: Text = "resnet50"
    """A name of `timm.list_models()`."""
    pretrained: bool = False
    """Start from timm's weights instead of from scratch."""
    image_size: Annotated[Int, Field(ge=8, le=4096)] | None = None
    """Height and width of the input in pixels, 8 to 4096; null is the model's own."""
    drop_path: Below = 0.0
    """Stochastic depth, 0 up to but not 1."""
    dropout: Below = 0.0
    """Before the classifier, 0 up to but not 1."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, e.g. {stem_type: ""}."""
    ema_decay: Below = 0.0
    """Decay of a moving average of the weights, which is then kept, 0 up to but not 1; 0 keeps the last weights."""
    channels_last: bool = True
    """Memory format of the convolutions; faster on most devices."""


class AugmentPart(Part):
    """What happens to a training image."""

    scale: Annotated[tuple[Area, Area], Field(strict=False), AfterValidator(_rising)] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image, 0.001 to 1."""
    ratio: Annotated[tuple[Aspect, Aspect], Field(strict=False), AfterValidator(_rising)] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio of the random crop, 0.01 to 100."""
    flip: Share = 0.5
    """Chance of a horizontal flip."""
    auto_augment: Text | None = None
    """timm's RandAugment, AugMix or AutoAugment string, e.g. rand-m7-n2-inc1; null leaves colours to color_jitter."""
    color_jitter: Amount = 0.4
    """Brightness, contrast and saturation, where auto_augment is null; 0 is none."""
    random_erasing: Share = 0.0
    """Chance that a rectangle is erased."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """Of the training crop; `random` picks bilinear or bicubic for each image."""
    mixup: Amount = 0.0
    """Alpha of mixup; 0 is none."""
    cutmix: Amount = 0.0
    """Alpha of CutMix; 0 is none. With both, each batch takes one of them."""
    mix_prob: Share = 1.0
    """Chance that a batch is mixed."""
    label_smoothing: Share = 0.1
    """Share of a target that goes to the other classes."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return bool(self.mixup or self.cutmix)


class OptimisePart(Part):
    """How the weights are found."""

    epochs: Annotated[Int, Field(ge=1, le=10**6)] = 100
    """Epochs of `budget` images, 1 to a million."""
    batch_size: Annotated[Int, Field(ge=1, le=10**6)] = 256
    """Images of one step, over all processes and accumulated parts: the result does not depend on how it is divided."""
    optimizer: Text = "sgd"
    """A name of `timm.optim.list_optimizers()`; sgd has Nesterov momentum."""
    lr: Annotated[float, Field(gt=0, le=1e4)] = 0.1
    """Peak learning rate, above 0 to 10,000."""
    weight_decay: Amount = 5e-4
    """Not applied to biases and norms."""
    momentum: Below = 0.9
    """Of SGD, 0 up to but not 1."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    decay_epochs: Count = 30
    """With schedule step: epochs after which the learning rate falls, again and again, >= 1."""
    decay_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """With schedule step: what it is multiplied by then, between 0 and 1."""
    loss: Literal["cross-entropy", "bce"] = "cross-entropy"
    """Of the classes together, or of each class by itself: binary cross-entropy."""
    bce_threshold: Below = 0.0
    """With loss bce: a share of a target above which it counts as whole, 0 up to but not 1; 0 keeps the shares."""
    warmup_epochs: Amount = 5
    """Epochs of linear warm-up from zero."""
    min_lr: Amount = 0.0
    """Where the cosine ends."""
    clip_grad: Amount = 0.0
    """Largest norm of the gradient; 0 is no limit."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic, as accelerate names it."""


class TestingPart(Part):
    """What the classifier is tested on."""

    dataset: Text | None = None
    """One dataset, written as for training; null tests nothing."""
    split: Text | None = None
    """Split to test on; null is `validation`, else `test`, else the only one."""
    limit_per_class: Count | None = None
    """At most that many images of each class of it, the first ones; null is all."""
    image_size: Annotated[Int, Field(ge=8, le=4096)] | None = None
    """Height and width of the test's input in pixels, 8 to 4096; null is that of the training."""
    crop: Annotated[float, Field(ge=0.1, le=1)] = 0.875
    """Side of the central crop, as a share of the resized image, 0.1 to 1."""
    every_epochs: Annotated[Int, Field(ge=0, le=10**6)] = 0
    """Also test whenever that many epochs are done; 0 tests the final weights only."""
    record_points: Annotated[Int, Field(ge=2, le=1000)] = 10
    """With --record: how many times all training images are looked at, evenly spread over the steps, 2 to 1000."""
    record_against: Text | None = None
    """With --record: the real images that tell which training images help, written as for training; null is `dataset`,
    on which scores that come from it cannot be reported any more."""


class TrainConfig(Part):
    """A whole training recipe. The weights that are kept are always the last ones, never those that tested best."""

    seed: Seed = 0
    """Decides the initial weights, the order of the images and every augmentation."""
    data: DataPart
    model: ModelPart = ModelPart()
    augment: AugmentPart = AugmentPart()
    optimise: OptimisePart = OptimisePart()
    test: TestingPart = TestingPart()


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
    if config is None:
        fields, where = {}, "the options"
    elif isinstance(config, TrainConfig | Mapping):
        given = config.model_dump() if isinstance(config, TrainConfig) else config
        fields, where = fields_of(given, "training recipe"), "the training recipe"
    else:
        fields, where = training_fields(str(config))
    for override in overrides:
        set_field(fields, override, TrainConfig)
    for key, value in (values or {}).items():
        if value is not None:
            put(fields, key, value, TrainConfig)
    data = fields.get("data", {})
    if isinstance(data, dict) and not data.get("train"):
        raise HfsynError("There is nothing to train on.", "Name a dataset: --train-dataset shapes")
    return checked(TrainConfig, fields, where)


def training_fields(name: str) -> tuple[dict[str, Any], str]:
    """The fields of a training recipe by name or file, with those of the one that it extends; and what to call it."""
    fields, where = TRAINING_RECIPES.fields(name)
    return extended(fields, where, TRAINING_RECIPES.fields), where


def config_difference(a: TrainConfig, b: TrainConfig) -> list[tuple[str, Any, Any]]:
    """``(field, value in a, value in b)`` for each field that differs and decides the weights, dotted."""
    return differing(a, b, {"test"})
