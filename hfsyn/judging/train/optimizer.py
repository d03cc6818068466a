"""The parts of a training that timm makes: optimizer, schedule, mixing of images, the loss; and the count of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from builders.errors import did_you_mean
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import derive, seeded
from hfsyn.recipes.training_recipe import TrainConfig

Mix = Callable[[Any, Any, int, int], tuple[Any, Any]]


def total_steps(config: TrainConfig, budget: int) -> int:
    """Steps of a training: all whole batches in `epochs` times `budget` images. A step may span two epochs.

    Raises:
        HfsynError: there is not one.
    """
    images = config.optimise.epochs * budget
    steps = images // config.optimise.batch_size
    if steps == 0:
        raise HfsynError(
            f"{config.optimise.epochs} epochs of {budget} images are fewer than one batch of "
            f"{config.optimise.batch_size}.",
            "Lower --batch-size, or raise --epochs or --budget.",
        )
    return steps


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that timm does not know, with the nearest name.

    Raises:
        HfsynError: there is none of that name.
    """
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
        raise HfsynError(f"The optimizer {part.optimizer} cannot be made: {error}", "Try sgd or adamw.") from None


def make_schedule(optimizer: Any, config: TrainConfig, steps: int, each_epoch: float) -> Any:
    """timm's schedule in steps; a pure function of the step, so that a checkpoint needs none of it."""
    from timm.scheduler import create_scheduler_v2

    part = config.optimise
    warmup = min(round(part.warmup_epochs * each_epoch), steps - 1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=part.schedule,
        num_epochs=steps - warmup,
        min_lr=part.min_lr,
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
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    part = config.augment
    if not part.mixup and not part.cutmix:
        return lambda pixels, labels, step, number: (pixels, labels), LabelSmoothingCrossEntropy(part.label_smoothing)
    mixup = Mixup(
        mixup_alpha=part.mixup,
        cutmix_alpha=part.cutmix,
        prob=part.mix_prob,
        label_smoothing=part.label_smoothing,
        num_classes=classes,
    )

    def mix(pixels: Any, labels: Any, step: int, number: int) -> tuple[Any, Any]:
        if len(pixels) % 2:
            raise HfsynError(
                f"Mixup pairs images, and a part of a step has {len(pixels)} of them.", "Make --batch-size even for it."
            )
        with seeded(derive(config.seed, "mix", step, number)):  # the same in all processes: they share the pairs
            return mixup(pixels, labels)

    return mix, SoftTargetCrossEntropy()


def seed_part(seed: int, step: int, part: int, rank: int) -> None:
    """Start torch's generators anew, so that dropout after a restart is as it would have been."""
    import torch

    torch.manual_seed(derive(seed, "part", step, part, rank))


def checkpoint_every(asked: int | None, steps: int, each_epoch: float) -> int:
    """Steps between checkpoints: as asked for, or an epoch, or so many that they are 20 in all; 0 is never."""
    return asked if asked is not None else max(math.ceil(each_epoch), math.ceil(steps / 20))


def at_epoch_end(done: int, each_epoch: float, every: int) -> bool:
    """Whether one more multiple of `every` epochs is complete after `done` steps than before the last; 0 is never."""
    return bool(every) and int(done / each_epoch / every) > int((done - 1) / each_epoch / every)
