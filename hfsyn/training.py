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

import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfsyn.accelerating import check_division, log, start_accelerator, stop_accelerator, total
from hfsyn.augmenting import Augmentation
from hfsyn.checkpoints import check_same_config, found_checkpoints, load_checkpoint, save_checkpoint
from hfsyn.classifiers import (
    FACTS,
    WEIGHTS,
    Classifier,
    check_model_name,
    new_classifier,
    open_classifier,
    save_classifier,
)
from hfsyn.errors import HfsynError
from hfsyn.evaluation import check_classes, check_counts, measure
from hfsyn.feeds import Feed, Slice, open_feed
from hfsyn.imagesets import ImageSet, open_images
from hfsyn.model_cards import check_repo_id
from hfsyn.optimising import (
    at_epoch_end,
    check_optimizer,
    checkpoint_every,
    make_loss,
    make_optimizer,
    make_schedule,
    seed_part,
    total_steps,
)
from hfsyn.progress import Progress
from hfsyn.shards import atomic_text
from hfsyn.software import software
from hfsyn.train_config import TrainConfig, dump_train_config, load_train_config

CONFIG, RESULTS, CHECKPOINTS, LOGS = "config.yaml", "results.json", "checkpoints", "logs"
_OURS = (CONFIG, RESULTS, CHECKPOINTS, LOGS, WEIGHTS, FACTS)


@dataclass(frozen=True)
class RunOptions:
    """What decides only how fast a training is and where it goes: it changes the weights by rounding at most."""

    device: str | None = None
    """cpu or cuda; None is this process's GPU, or the CPU."""
    num_workers: int = 0
    """Processes that decode and augment, beside each process that trains."""
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
    it is.

    Raises:
        HfsynError, DataError: see `open_sets`, `new_classifier`; or `out` holds another training.
    """
    options = options or RunOptions()
    folder = Path(out)
    check_folder(folder, config, options.overwrite)
    if options.push_to_hub is not None:
        check_repo_id(options.push_to_hub)
    accelerator = start_accelerator(
        options.device, config.optimise.mixed_precision, options.accumulation, options.log_with, folder / LOGS
    )
    check_division(config.optimise.batch_size, options.accumulation, accelerator.num_processes)
    if not options.overwrite and (done := _finished(folder, config)) is not None:
        return done
    # One process fills the caches; when it is through, all others have looked at the folder, and it may be changed.
    with accelerator.main_process_first():
        feed, test = open_sets(config)
    classifier = new_classifier(config, feed.classes, feed.names)
    if accelerator.is_main_process:
        _prepare(folder, config, options.overwrite)
    accelerator.wait_for_everyone()
    started = time.monotonic(), time.process_time()
    classifier, history = _fit(config, options, accelerator, feed, classifier, test, folder)
    return _conclude(config, accelerator, feed, classifier, test, folder, history, started, options)


def open_sets(config: TrainConfig) -> tuple[Feed, ImageSet | None]:
    """Open what a recipe trains on and is tested on, and look for everything that can be wrong with it.

    Raises:
        HfsynError, DataError: an unknown network or optimizer; see `open_feed`, `open_images`; or the set to test on
            has classes that the training sets have not.
    """
    check_model_name(config.model.name)
    check_optimizer(config.optimise.optimizer)
    feed = open_feed(config)
    total_steps(config, feed.budget)
    if config.test.dataset is None:
        return feed, None
    test = open_images(config.test.dataset, config.test.split)
    check_classes(feed.classes, test, "the training set")
    check_counts(test)
    return feed, test


def _fit(
    config: TrainConfig,
    options: RunOptions,
    accelerator: Any,
    feed: Feed,
    classifier: Classifier,
    test: ImageSet | None,
    folder: Path,
) -> tuple[Classifier, list[dict[str, Any]]]:
    """The loop. Returns the classifier whose weights are kept, and the tests on the way."""
    import torch
    from timm.utils import ModelEmaV3

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
    first, place = load_checkpoint(accelerator, folder / CHECKPOINTS, facts)
    if place:
        feed.load_state(place)
    if first and accelerator.is_main_process and not options.quiet:
        print(f"continuing after step {first} of {steps}", file=sys.stderr)
    every = checkpoint_every(options.checkpoint_steps, steps, each_epoch)
    history: list[dict[str, Any]] = [{"step": first, "resumed": True}] if first else []
    wanted = Slice(
        first, steps, options.accumulation, accelerator.process_index, accelerator.num_processes, options.num_workers
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
                tested = measure(kept, test, accelerator)
                history.append({"step": done, "top1": tested["metrics"]["top1"]["value"]})
                if accelerator.is_main_process and not options.quiet:
                    top1 = tested["metrics"]["top1"]["value"]
                    print(f"after step {done}: top-1 {top1:.4f}", file=sys.stderr)
            if every and done % every == 0 and done < steps:
                save_checkpoint(accelerator, folder / CHECKPOINTS, done, facts, feed.state(), options.keep_checkpoints)
    return kept, history


def _conclude(
    config: TrainConfig,
    accelerator: Any,
    feed: Feed,
    classifier: Classifier,
    test: ImageSet | None,
    folder: Path,
    history: list[dict[str, Any]],
    started: tuple[float, float],
    options: RunOptions,
) -> dict[str, Any]:
    """Keep the classifier, test it as it was kept, and write the result."""
    if accelerator.is_main_process:
        save_classifier(classifier, folder)
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - started[0]
    unread, cpu_seconds = total(accelerator, feed.unread), total(accelerator, time.process_time() - started[1])
    result: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "training": {
            "sets": feed.facts(), "budget": feed.budget, "epochs": config.optimise.epochs,
            "images_seen": total_steps(config, feed.budget) * config.optimise.batch_size,
            "undecodable_seen": int(unread),
            "processes": accelerator.num_processes, "accumulation": options.accumulation, "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1), "history": history,
        },
        "software": software(),
    }  # fmt: skip
    kept = open_classifier(folder, device=str(accelerator.device))
    if test is not None:
        result["test"] = measure(kept, test, accelerator, quiet=options.quiet)
    else:
        result["test"] = None
    if accelerator.is_main_process:
        atomic_text(folder / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    stop_accelerator(accelerator, options.log_with)
    return result


def _finished(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The result that is there, if it is this training's and was tested as asked for."""
    if not (folder / RESULTS).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return found if found.get("config") == config.model_dump(mode="json") else None


def check_folder(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    """Refuse a folder that holds another training with something to lose, or anything that is not a training's.

    Raises:
        HfsynError: naming the first field that differs, or the files.
    """
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in _OURS and not p.name.startswith("."))
    if strangers:
        raise HfsynError(
            f"{folder} holds other things ({', '.join(strangers[:3])}).", "Choose an empty or new folder: --out DIR."
        )
    begun = (folder / RESULTS).is_file() or found_checkpoints(folder / CHECKPOINTS)
    if begun and (folder / CONFIG).is_file() and not overwrite:
        check_same_config(load_train_config(folder / CONFIG), config, folder)


def _prepare(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    for name in _OURS if overwrite else (RESULTS,):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    atomic_text(folder / CONFIG, dump_train_config(config))
