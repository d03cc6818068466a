"""Train a timm classifier with accelerate: one loop over numbered images, the same whatever runs it.

timm makes the network, the augmentation, the optimizer, the schedule and the average of the weights; accelerate the
devices, the processes, the precision and the checkpoints. What is here is the order of things.

**What does not change the result** (on a CPU, in fp32, to the last bit): loader workers, where checkpoints are written,
being killed and started again. **What changes it by rounding only**: the number of processes and of accumulated parts,
as a batch size is always that of a whole step. **What changes it more**, because the mathematics is another: batch
normalisation sees its own part of a step (statistics of batch / processes / parts images; the running ones kept are
rank 0's), dropout and stochastic depth draw for each part, and a part of odd size mixes other pairs. On GPUs the
libraries' kernels are not deterministic.

    OUT/config.yaml  model.safetensors  model.json  results.json  checkpoints/  logs/
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from hfsyn.judging.classifier.accelerator import (
    check_division,
    default_workers,
    log,
    start_accelerator,
    start_trackers,
    stop_accelerator,
)
from hfsyn.judging.classifier.network import (
    Classifier,
    check_model_name,
    new_classifier,
    open_classifier,
    save_classifier,
)
from hfsyn.judging.measures.evaluate import check_counts, measure
from hfsyn.judging.measures.metrics import dump_result
from hfsyn.judging.sets.image_set import ImageSet, open_images
from hfsyn.judging.sets.overlaps import tell_overlap
from hfsyn.judging.sets.shared_classes import check_classes
from hfsyn.judging.sets.unreadable import facts_of, tell_left_out, tell_unread
from hfsyn.judging.train.augmentation import Augmentation
from hfsyn.judging.train.checkpoints import Place, Tally, load_checkpoint, remove_old, save_checkpoint
from hfsyn.judging.train.feed import Feed, Slice
from hfsyn.judging.train.first_step import try_training
from hfsyn.judging.train.folders import (
    CHECKPOINTS,
    CONFIG,
    LOGS,
    RESULTS,
    check_folder,
    clear_leftovers,
    finished,
    prepare_folder,
)
from hfsyn.judging.train.model_card import check_push
from hfsyn.judging.train.optimizer import (
    at_epoch_end,
    check_optimizer,
    checkpoint_every,
    make_loss,
    make_optimizer,
    make_schedule,
    seed_part,
    total_steps,
)
from hfsyn.judging.train.training_sets import open_feed
from hfsyn.progress import Progress
from hfsyn.recipes.training_recipe import TrainConfig, dump_train_config
from hfsyn.workers import software


@dataclass(frozen=True)
class RunOptions:
    """What decides only how fast a training is and where it goes: it changes the weights by rounding at most."""

    device: str | None = None
    """cpu or cuda; None is this process's GPU, or the CPU."""
    num_workers: int | None = None
    """Processes that decode and augment, beside each process that trains. None is as many as there are cores for each
    GPU, and none on a CPU or with streams, whose order depends on them.
    """
    accumulation: int = 1
    """Parts in which each step's images go through the network."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints; None is at the ends of epochs, about 20 in all; 0 is never."""
    keep_checkpoints: int = 2
    log_with: str | None = None
    """A tracker of accelerate's: tensorboard, trackio, wandb."""
    overwrite: bool = False
    quiet: bool = False
    push_to_hub: str | None = None
    """Checked before the training; published by the caller after it."""


def train(config: TrainConfig, out: str | Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Train a classifier, keep it in `out`, test it, and return what ``results.json`` holds.

    Called in every process of a launch. Run again, it continues from the newest checkpoint; a finished one is left as
    it is, and only tested where another test is asked for.

    Raises:
        HfsynError: see `open_training`; or `out` holds another training.
    """
    options = options or RunOptions()
    folder = Path(out)
    check_folder(folder, config, options.overwrite)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    accelerator = start_accelerator(
        options.device, config.optimise.mixed_precision, options.accumulation, options.log_with, folder / LOGS
    )
    with accelerator.main_process_first():  # one process fills the caches
        opened = open_training(config, folder, options, accelerator.num_processes)
    accelerator.wait_for_everyone()  # all have looked at the folder, and it may be changed
    if accelerator.is_main_process:
        clear_leftovers(folder)
    if accelerator.is_main_process and not options.quiet:
        _tell(opened)
    if opened.done is not None:
        if opened.done["config"] == config.model_dump(mode="json"):
            return opened.done
        return _test_again(config, options, accelerator, opened, opened.done, folder)
    if accelerator.is_main_process:
        prepare_folder(folder, config, options.overwrite)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, options.log_with)
    classifier, history, tally = _fit(config, options, accelerator, opened, folder)
    return _conclude(config, options, accelerator, opened, classifier, folder, history, tally)


def _tell(opened: Opened) -> None:
    """Say what is not trained on or tested on, though it lies there, and what is both."""
    tests = [] if opened.test is None else [opened.test.facts()]
    for facts in (*opened.feed.facts(), *tests):
        tell_left_out(facts)
    if opened.test is not None:
        tell_overlap(opened.overlap, opened.test)


@dataclass(frozen=True)
class Opened:
    """All that a training needs, looked through for what can be wrong with it."""

    feed: Feed
    test: ImageSet | None
    overlap: int | None
    """How many images of the test are trained on."""
    done: dict[str, Any] | None
    """The result that is there of the same training, tested on whatever."""
    classifier: Classifier | None
    """As it is before the training; None where that is done."""


def open_training(config: TrainConfig, folder: Path, options: RunOptions, processes: int) -> Opened:
    """Open everything that a training in `processes` processes needs, so that every mistake is said before it.

    Raises:
        HfsynError: see `open_sets`, `new_classifier`, `try_training`; the batch cannot be divided; or the
            finished training in `folder` was on other images.
    """
    batch, mixes = config.optimise.batch_size, bool(config.augment.mixup or config.augment.cutmix)
    check_division(batch, options.accumulation, processes, pairs=mixes)
    feed, test = open_sets(config)
    done = None if options.overwrite else finished(folder, config, feed)
    overlap = None if test is None else feed.overlap(test)
    classifier = None
    if done is None:
        classifier = new_classifier(config, feed.classes, feed.names)
        try_training(classifier, config, batch // options.accumulation // processes)
    return Opened(feed, test, overlap, done, classifier)


def open_sets(config: TrainConfig) -> tuple[Feed, ImageSet | None]:
    """Open what a recipe trains on and is tested on, and look for everything that can be wrong with it.

    Raises:
        HfsynError: an unknown network or optimizer; see `open_feed`, `open_images`; or the set to test on
            has classes that the training sets have not.
    """
    check_model_name(config.model.name)
    check_optimizer(config.optimise.optimizer)
    feed = open_feed(config)
    total_steps(config, feed.budget)
    if config.test.dataset is None:
        return feed, None
    test = open_images(config.test.dataset, config.test.split)
    check_classes({wnid: feed.names[wnid] for wnid in feed.classes}, test, "the training set")
    check_counts(test)
    return feed, test


def _fit(
    config: TrainConfig, options: RunOptions, accelerator: Any, opened: Opened, folder: Path
) -> tuple[Classifier, list[dict[str, Any]], Tally]:
    """The loop. Returns the classifier whose weights are kept, the tests on the way, and what it has cost."""
    import torch
    from timm.utils import ModelEmaV3

    tally, feed, test, classifier = Tally(), opened.feed, opened.test, opened.classifier
    assert classifier is not None
    workers = options.num_workers
    if workers is None:
        workers = 0 if config.data.streaming else default_workers(accelerator)
    recipe, batch = config.optimise, config.optimise.batch_size
    steps, each_epoch = total_steps(config, feed.budget), feed.budget / batch
    network = classifier.network.to(accelerator.device)
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    average = ModelEmaV3(network, config.model.ema_decay, use_warmup=True) if config.model.ema_decay else None
    optimizer = make_optimizer(network, config)
    schedule = make_schedule(optimizer, config, steps, each_epoch)
    mix, loss_of = make_loss(config, len(classifier.wnids))
    model, optimizer = accelerator.prepare(network, optimizer)
    if average is not None:
        accelerator.register_for_checkpointing(average)
    kept = replace(classifier, network=average.module if average is not None else network)
    facts = {"config": config.model_dump(mode="json"), "images": feed.fingerprints, "classes": list(classifier.wnids)}
    place = load_checkpoint(accelerator, folder / CHECKPOINTS, facts)
    if accelerator.is_main_process:  # whoever was killed after the newest was written has not come to it
        remove_old(folder / CHECKPOINTS, options.keep_checkpoints)
    first, tally.earlier = place.step, place.tally
    if place.feed:
        feed.load_state(place.feed)
    if first and accelerator.is_main_process and not options.quiet:
        print(f"continuing after step {first} of {steps}", file=sys.stderr)
    every = checkpoint_every(options.checkpoint_steps, steps, each_epoch)
    history: list[dict[str, Any]] = [*place.history, *([{"step": first, "resumed": True}] if first else [])]
    wanted = Slice(
        first,
        steps,
        options.accumulation,
        accelerator.process_index,
        accelerator.num_processes,
        workers,
        accelerator.device.type == "cuda",
    )
    augmentation = Augmentation(classifier.preprocessing, config.augment)
    batches = feed.batches(augmentation, wanted)
    quiet = options.quiet or not accelerator.is_main_process
    with Progress("train", steps * batch, first * batch, quiet=quiet) as progress:
        for step in range(first, steps):
            schedule.step_update(step)
            model.train()
            for part in range(options.accumulation):
                tensors, labels = next(batches)
                pixels = augmentation.finish(tensors.to(accelerator.device, non_blocking=True))
                pixels = pixels.to(memory_format=layout)
                labels = labels.to(accelerator.device, non_blocking=True)
                seed_part(config.seed, step, part, accelerator.process_index)
                pixels, targets = mix(pixels, labels, step, part)
                with accelerator.accumulate(model):
                    loss = loss_of(model(pixels), targets)
                    accelerator.backward(loss)
                    if recipe.clip_grad and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                    optimizer.step()
                    optimizer.zero_grad()
            if average is not None:
                average.update(network, step=step + 1)
            done = step + 1
            progress.add(batch)
            if done % 20 == 0 or done == steps:
                log(
                    accelerator,
                    options.log_with,
                    {"loss": float(loss.detach()), "lr": optimizer.param_groups[0]["lr"]},
                    done,
                )
            if test is not None and done < steps and at_epoch_end(done, each_epoch, config.test.every_epochs):
                tested = measure(kept, test, accelerator, num_workers=options.num_workers)
                history.append({"step": done, "top1": tested["metrics"]["top1"]["value"]})
                if accelerator.is_main_process and not options.quiet:
                    top1 = tested["metrics"]["top1"]["value"]
                    print(f"after step {done}: top-1 {top1:.4f}", file=sys.stderr)
            if every and done % every == 0 and done < steps:
                there = Place(done, feed.state(), tally.reading(accelerator, feed.unread), tuple(history))
                save_checkpoint(accelerator, folder / CHECKPOINTS, there, facts, options.keep_checkpoints)
    return kept, history, tally


def _conclude(
    config: TrainConfig,
    options: RunOptions,
    accelerator: Any,
    opened: Opened,
    classifier: Classifier,
    folder: Path,
    history: list[dict[str, Any]],
    tally: Tally,
) -> dict[str, Any]:
    """Keep the classifier, test it as it was kept, and write the result."""
    if accelerator.is_main_process:
        save_classifier(classifier, folder)
    accelerator.wait_for_everyone()
    feed = opened.feed
    met = tally.reading(accelerator, feed.unread)
    result: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "training": {
            "sets": feed.facts(),
            "images": feed.fingerprints,
            "budget": feed.budget,
            "epochs": config.optimise.epochs,
            "images_seen": total_steps(config, feed.budget) * config.optimise.batch_size,
            "undecodable_seen": len(met["undecodable"]),
            "undecodable": facts_of(met["undecodable"]),
            "processes": accelerator.num_processes,
            "accumulation": options.accumulation,
            "seconds": round(met["seconds"], 1),
            "cpu_seconds": round(met["cpu_seconds"], 1),
            "history": history,
        },
        "software": software(),
    }
    if accelerator.is_main_process and not options.quiet:
        tell_unread(met["undecodable"], " and ".join(config.data.train))
    kept = open_classifier(folder, device=str(accelerator.device))
    result["test"] = _tested(kept, options, accelerator, opened)
    if accelerator.is_main_process:
        atomic_text(folder / RESULTS, dump_result(result))
    stop_accelerator(accelerator, options.log_with)
    return result


def _test_again(
    config: TrainConfig, options: RunOptions, accelerator: Any, opened: Opened, done: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Test a finished training on something else; what is there is replaced when that is done."""
    kept = open_classifier(folder, device=str(accelerator.device))
    prepared = replace(kept.preprocessing, crop=config.test.crop)
    kept = replace(kept, preprocessing=prepared)
    test = _tested(kept, options, accelerator, opened)
    result = {**done, "config": config.model_dump(mode="json"), "test": test}
    if accelerator.is_main_process:
        save_classifier(kept, folder)  # the crop is a part of it
        atomic_text(folder / CONFIG, dump_train_config(config))
        atomic_text(folder / RESULTS, dump_result(result))
    accelerator.wait_for_everyone()
    return result


def _tested(kept: Classifier, options: RunOptions, accelerator: Any, opened: Opened) -> dict[str, Any] | None:
    if opened.test is None:
        return None
    found = measure(kept, opened.test, accelerator, num_workers=options.num_workers, quiet=options.quiet)
    return {**found, "overlap": opened.overlap}
