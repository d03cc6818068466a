"""The parts of a training that timm makes: augmentation, optimizer, schedule, mixing of images, and the loss."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from builders.errors import did_you_mean, first_line
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import Classifier
from hfsyn.judging.preprocessing import Preprocessing
from hfsyn.judging.sets.batches import derive, seeded
from hfsyn.recipes.training_recipe import AugmentPart, TrainConfig

Mix = Callable[[Any, Any, int, int], tuple[Any, Any]]
_LEVELS = np.arange(256)


class Augmentation:
    """timm's training transform in two halves: images are augmented one by one, and normalised a batch at a time.

    A call turns a PIL image into a tensor, using the global generators; `finish` makes a batch of them floats. Between
    the two an image is uint8 (height, width, 3): a quarter of the bytes to copy from a worker to a GPU, which then does
    the arithmetic. With random erasing it is float32 (3, height, width) and finished, since timm erases in floats. The
    values are those of timm's own transform but for rounding.
    """

    def __init__(self, preprocessing: Preprocessing, part: AugmentPart) -> None:
        from timm.data import create_transform

        first, second, last = create_transform(
            preprocessing.image_size,
            is_training=True,
            scale=part.scale,
            ratio=part.ratio,
            hflip=part.flip,
            auto_augment=part.auto_augment,
            color_jitter=part.color_jitter or None,
            re_prob=part.random_erasing,
            interpolation=part.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            separate=True,
        )
        self._floats = part.random_erasing > 0
        steps = [*first.transforms, *second.transforms, *(last.transforms if self._floats else [])]
        self._steps = [_Jitter(step) if type(step).__name__ == "ColorJitter" else step for step in steps]
        self._mean, self._std = preprocessing.mean, preprocessing.std

    def __call__(self, picture: Any) -> Any:
        """A PIL image to a tensor; see the class."""
        import torch

        for step in self._steps:
            picture = step(picture)
        return picture if self._floats else torch.from_numpy(np.array(picture))

    def finish(self, batch: Any) -> Any:
        """A batch of such tensors, on any device, to float32 (n, 3, height, width), normalised."""
        import torch

        if self._floats:
            return batch

        # (v / 255 - mean) / std in two passes instead of three, over rows of interleaved colours as they are stored:
        # the permuted bytes are channels-last already.
        count, height, width, _ = batch.shape
        scale = torch.tensor([1 / (255 * std) for std in self._std] * width, device=batch.device)
        shift = torch.tensor([m / s for m, s in zip(self._mean, self._std, strict=True)] * width, device=batch.device)
        rows = batch.reshape(count, height, 3 * width)
        result = torch.empty(rows.shape, device=batch.device)
        # On a CPU image by image: both passes over one are in its cache, those over a batch are not.
        for some in range(count) if batch.device.type == "cpu" else [slice(None)]:
            torch.mul(rows[some], scale, out=result[some]).sub_(shift)
        return result.view(batch.shape).permute(0, 3, 1, 2)


class _Jitter:
    """torchvision's ColorJitter without hue, for RGB images: its draws and its pixels, in less time.

    `ImageEnhance` makes what it blends with by converting grey pictures; here it is made directly.
    """

    def __init__(self, jitter: Any) -> None:
        assert jitter.hue is None  # timm sets it only if it is given four numbers
        self._draw = partial(jitter.get_params, jitter.brightness, jitter.contrast, jitter.saturation, None)

    def __call__(self, picture: Any) -> Any:
        from PIL import Image

        order, brightness, contrast, saturation, _ = self._draw()
        for step in order.tolist():
            if step == 0:
                picture = Image.blend(Image.new("RGB", picture.size), picture, brightness)
            elif step == 1:
                counts = np.array(picture.convert("L").histogram())
                mean = int(int(counts @ _LEVELS) / int(counts.sum()) + 0.5)
                picture = Image.blend(Image.new("RGB", picture.size, (mean, mean, mean)), picture, contrast)
            elif step == 2:
                picture = Image.blend(picture.convert("L").convert("RGB"), picture, saturation)
        return picture


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that timm does not know, with the nearest name."""
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name not in known:
        guess = did_you_mean(name, known)
        raise HfsynError(f"timm has no optimizer {name!r}.{guess}", "Common ones: sgd, adamw, lamb.")


def make_optimizer(network: Any, config: TrainConfig) -> Any:
    """timm's optimizer of the recipe; weight decay leaves out biases and norms."""
    from timm.optim import create_optimizer_v2

    part = config.optimise
    try:
        return create_optimizer_v2(
            network, opt=part.optimizer, lr=part.lr, weight_decay=part.weight_decay, momentum=part.momentum
        )
    except (TypeError, ImportError, RuntimeError) as error:
        raise HfsynError(f"The optimizer {part.optimizer} cannot be created: {error}", "Try sgd or adamw.") from None


def tell_warmup(config: TrainConfig) -> None:
    """Warn on stderr if the learning rate rises for half of the training or longer: too long to learn much."""
    part = config.optimise
    if 2 * part.warmup_epochs >= part.epochs and part.warmup_epochs:
        print(
            f"Warning: the learning rate rises for {part.warmup_epochs:g} of {part.epochs} epochs; little is learnt. "
            f"Lower it: --set optimise.warmup_epochs={part.epochs // 5}, or train for longer: --epochs.",
            file=sys.stderr,
        )


def make_schedule(optimizer: Any, config: TrainConfig, steps: int, each_epoch: float) -> Any:
    """timm's schedule in steps; a pure function of the step, so that it needs no checkpoint."""
    from timm.scheduler import create_scheduler_v2

    part = config.optimise
    warmup = min(round(part.warmup_epochs * each_epoch), steps - 1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=part.schedule,
        num_epochs=steps - warmup,
        min_lr=part.min_lr,
        decay_epochs=max(1, round(part.decay_epochs * each_epoch)),
        decay_rate=part.decay_rate,
        warmup_epochs=warmup,
        warmup_lr=part.lr / (warmup + 1),
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


def make_loss(config: TrainConfig, classes: int) -> tuple[Mix, Callable[[Any, Any], Any]]:
    """``(mix, loss)``: mix makes mixed pixels and targets of a part's pixels and labels, the same on every restart."""
    from timm.data import Mixup
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    part = config.augment
    binary = None
    if config.optimise.loss == "bce":
        binary = BinaryCrossEntropy(part.label_smoothing, target_threshold=config.optimise.bce_threshold or None)
    if not part.mixes:
        plain = binary or LabelSmoothingCrossEntropy(part.label_smoothing)
        return lambda pixels, labels, step, number: (pixels, labels), plain
    mixup = Mixup(
        mixup_alpha=part.mixup,
        cutmix_alpha=part.cutmix,
        prob=part.mix_prob,
        label_smoothing=part.label_smoothing,
        num_classes=classes,
    )

    def mix(pixels: Any, labels: Any, step: int, number: int) -> tuple[Any, Any]:
        with seeded(derive(config.seed, "mix", step, number)):  # the same in all processes: they share the pairs
            return mixup(pixels, labels)

    return mix, binary or SoftTargetCrossEntropy()


def try_training(classifier: Classifier, config: TrainConfig, images: int) -> None:
    """Augment one blank image, and run a copy of the network on the `images` images that are a part of a step.

    timm and torch raise anything, deep inside a network, for a size or an option that does not fit: it is better found
    before the training. Neither the network nor any random generator is changed. Raises HfsynError if timm cannot make
    the augmentation, or the network cannot be trained on such a part.
    """
    import torch
    from PIL import Image

    size, (height, width) = classifier.preprocessing.image_size, classifier.preprocessing.extent
    with seeded(config.seed):
        try:
            Augmentation(classifier.preprocessing, config.augment)(Image.new("RGB", (width, height), "grey"))
        except Exception as error:
            raise HfsynError(
                f"timm cannot make the augmentation: {first_line(error)}.",
                f"Look at augment.*: auto_augment is {config.augment.auto_augment!r}, such as rand-m7-n2-inc1.",
            ) from None
    network = copy.deepcopy(classifier.network).train()
    count = min(images, 2)  # two at most are enough; batch normalisation refuses one if its map is a single pixel
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            shape = tuple(network(torch.zeros(count, 3, height, width)).shape)
            if (side := config.test.image_size) is not None:
                size = side
                network.eval()(torch.zeros(1, 3, side, side))
        except Exception as error:
            raise HfsynError(
                f"{classifier.name} cannot be trained on {images} colour image{'s' * (images > 1)} of {size} pixels "
                f"at a time: {first_line(error)}.",
                "Look at --image-size, --batch-size and model.options.",
            ) from None
    if shape != (count, len(classifier.wnids)):
        said = f"{classifier.name} answers {count} images with {shape} instead of {len(classifier.wnids)} numbers each."
        raise HfsynError(said, f"model.options is {dict(classifier.options)}.")
