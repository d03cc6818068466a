"""Train a timm classifier with accelerate: one loop over numbered images, the same on any machine.

timm makes the network, the augmentation, the optimizer, the schedule and the average of the weights; accelerate handles
devices, processes, precision and checkpoints.

**What does not change the result** (on a CPU, in fp32, to the last bit): loader workers, where checkpoints are written,
being killed and started again. **What changes it by rounding only**: the number of processes and of accumulated parts,
as a batch size is always that of a whole step. **What changes it more**, because the mathematics is another: batch
normalisation sees its own part of a step (statistics of batch / processes / parts images; the running ones kept are
rank 0's), dropout and stochastic depth draw for each part, and a part of odd size mixes other pairs. On GPUs the
libraries' kernels are not deterministic.
"""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from builders.stores.copies import on_disk
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import (
    Classifier,
    check_division,
    check_model_name,
    default_workers,
    open_classifier,
    save_classifier,
    start_accelerator,
    total,
    union,
)
from hfsyn.judging.measures.evaluate import check_counts, measure
from hfsyn.judging.measures.metrics import dump_result
from hfsyn.judging.sets.batches import Slice, derive
from hfsyn.judging.sets.image_set import ImageSet, facts_of, open_images, tell_left_out, tell_unread
from hfsyn.judging.sets.shared import tell_overlap, tell_part, testable
from hfsyn.judging.starting import new_classifier, tell_start
from hfsyn.judging.train import checkpoints, timm_parts
from hfsyn.judging.train.checkpoints import CHECKPOINTS, CONFIG, LOGS, RECORDED, RESULTS, Place
from hfsyn.judging.train.feeds import Feed, open_feed
from hfsyn.judging.train.head import fit_head, last_layer, try_head
from hfsyn.judging.train.recording import Recorder, open_recorder
from hfsyn.progress import Progress
from hfsyn.recipes.loading import dump_part
from hfsyn.recipes.training_recipe import TrainConfig
from hfsyn.workers import software


@dataclass(frozen=True)
class RunOptions:
    """What affects only how fast a training is and where it goes, and the weights by rounding at most."""

    device: str | None = None  # cpu or cuda; None is this process's GPU, or the CPU
    num_workers: int | None = None
    """Decoding processes beside each process. None divides the cores among the GPUs, and is 0 on a CPU or with streams,
    whose order depends on it.
    """
    accumulation: int = 1  # parts in which each step's images go through the network
    checkpoint_steps: int | None = None
    """Steps between checkpoints; None is at the ends of epochs, about 20 in all; 0 is never."""
    keep_checkpoints: int = 2
    log_with: str | None = None  # a tracker of accelerate's: tensorboard, trackio, wandb
    record: bool = False  # whether to record what the training shows of each image, see `recording`
    overwrite: bool = False
    quiet: bool = False


def train(config: TrainConfig, out: str | Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Train a classifier, keep it in `out`, test it, and return what ``results.json`` holds.

    Called in every process of a launch. Run again, it continues from the newest checkpoint; a finished training is left
    as it is, and only tested if another test is asked for. Raises HfsynError as `open_training`, or if `out` holds
    another training.
    """
    options = options or RunOptions()
    folder = on_disk(out)
    checkpoints.check_folder(folder, config, options.overwrite)
    accelerator = start_accelerator(
        options.device, config.optimise.mixed_precision, options.accumulation, options.log_with, folder / LOGS
    )
    with accelerator.main_process_first():  # one process fills the caches
        opened = open_training(config, folder, options, accelerator.num_processes)
    accelerator.wait_for_everyone()  # all have looked at the folder, and it may be changed
    training = _Training(config, options, accelerator, opened, folder)
    if accelerator.is_main_process:
        checkpoints.clear_leftovers(folder)
    if training.talks:
        for facts in (*opened.feed.facts(), *([opened.test.facts()] if opened.test else [])):
            tell_left_out(facts)
        training.tell_classes()
        tell_start(opened.classifier)
        if opened.test is not None:
            tell_overlap(opened.overlap, opened.test)
            tell_part(opened.test)
    if opened.done is not None:
        same_test = opened.done["config"] == config.model_dump(mode="json")
        return opened.done if same_test else training.test_again(opened.done)
    if accelerator.is_main_process:
        checkpoints.prepare_folder(folder, config, options.overwrite)
        if training.talks:
            timm_parts.tell_warmup(config)
    accelerator.wait_for_everyone()
    if options.log_with:
        accelerator.init_trackers("hfsyn")
    return training.conclude(*(training.fit_head() if config.model.head_only else (training.fit(), {})))


@dataclass(frozen=True)
class Opened:
    """Everything that a training needs, checked."""

    feed: Feed
    test: ImageSet | None
    overlap: int | None  # how many images of the test are trained on
    done: dict[str, Any] | None  # the result in the folder if this training is finished, perhaps with another test
    classifier: Classifier | None  # as it is before the training; None if that is finished
    recorder: Recorder | None = None  # if the training is to be recorded


def open_training(config: TrainConfig, folder: Path, options: RunOptions, processes: int) -> Opened:
    """Open everything that a training in `processes` processes needs, so that every mistake is found before it.

    Raises HfsynError for an unknown network or optimizer; as `open_feed`, `open_images`, `new_classifier` and
    `try_training`; if the test set has classes that the training sets do not have; if the batch cannot be divided; or
    if the finished training in `folder` was on other images.
    """
    batch = config.optimise.batch_size
    check_model_name(config.model.name)
    feed = open_feed(config)
    if not config.model.head_only:
        halves, pairs = config.model.split_bn, config.augment.mixes
        why = "Each set has half of a part" if halves else "Mixup pairs images"
        check_division(batch, options.accumulation, processes, of=(1 + halves) * (1 + pairs), why=why)
        timm_parts.check_optimizer(config.optimise.optimizer)
    steps = total_steps(config, feed.budget)
    test, overlap = None, None
    if config.test.dataset is not None:
        whole = open_images(config.test.dataset, config.test.split, limit=config.test.limit_per_class)
        test = testable({wnid: feed.names[wnid] for wnid in feed.classes}, whole, "the training set")
        check_counts(whole)
    done = None if options.overwrite else checkpoints.finished(folder, config, feed.fingerprints)
    if test is not None:
        overlap = feed.overlap(test)
    classifier = None
    if done is None:
        classifier = new_classifier(config, feed.classes, feed.names)
        if config.model.head_only:
            try_head(classifier)
        else:
            timm_parts.try_training(classifier, config, batch // options.accumulation // processes)
    if options.record and config.model.head_only:
        raise HfsynError("Fitting the last layer alone shows no image step by step.", "Leave --record out.")
    recorder = open_recorder(config, folder, options.num_workers, feed, test, steps) if options.record else None
    if recorder is not None and classifier is not None:
        last_layer(classifier.network)
    elif recorder is not None and not (folder / RECORDED).is_file():
        said = f"{folder} was trained without --record."
        raise HfsynError(said, "Train in another --out, or from the start with --overwrite.")
    return Opened(feed, test, overlap, done, classifier, recorder)


def _for_tests(classifier: Classifier, config: TrainConfig) -> Classifier:
    """A classifier whose images are prepared as its tests say."""
    size = config.test.image_size or config.model.image_size or classifier.preprocessing.image_size
    return replace(classifier, preprocessing=replace(classifier.preprocessing, image_size=size, crop=config.test.crop))


def total_steps(config: TrainConfig, budget: int) -> int:
    """Steps of a training, at least one: the whole batches in `epochs` times `budget` images, across epochs.

    They are 0 if only the last layer is fitted, which takes as many as it needs.
    """
    part = config.optimise
    if config.model.head_only:
        return 0
    steps = part.epochs * budget // part.batch_size
    if steps == 0:
        said = f"{part.epochs} epochs of {budget} images are fewer than one batch of {part.batch_size}."
        raise HfsynError(said, "Lower --batch-size, or raise --epochs or --budget.")
    return steps


@dataclass
class _Training:
    config: TrainConfig
    options: RunOptions
    accelerator: Any
    opened: Opened
    folder: Path
    earlier: Mapping[str, Any] = field(default_factory=dict)  # the tally of the checkpoint from which it was resumed
    history: list[dict[str, Any]] = field(default_factory=list)
    """The tests during the training, and where it was resumed."""

    def __post_init__(self) -> None:
        self.started = time.monotonic(), time.process_time()
        self.steps = total_steps(self.config, self.opened.feed.budget)
        self.talks = self.accelerator.is_main_process and not self.options.quiet

    def tell_classes(self) -> None:
        """Report on stderr which sets have not all of the classes."""
        for facts in self.opened.feed.facts():
            if facts["classes"] < (count := len(self.opened.feed.classes)):
                print(f"{facts['reference']} has {facts['classes']} of the {count} classes.", file=sys.stderr)

    def fit_head(self) -> tuple[Classifier, dict[str, Any]]:
        """Fit the last layer to features. Returns the classifier, and what a result says of the fit."""
        classifier = self.opened.classifier
        assert classifier is not None
        classifier.network.to(self.accelerator.device)
        sets, l2, quiet = self.opened.feed.counted(), self.config.model.head_l2, not self.talks
        how: dict[str, Any] = {"num_workers": self.options.num_workers, "quiet": quiet}
        fitted, facts, unread = fit_head(classifier, sets, l2, self.accelerator, **how)
        self.opened.feed.unread.update(unread)
        shown = sum(len(images) for images, _ in sets)  # by each step of the fit
        return fitted, {"head": facts, "epochs": facts["steps"], "images_seen": facts["steps"] * shown}

    def fit(self) -> Classifier:
        """The training loop. Returns the classifier with the weights that are kept."""
        import torch
        from timm.utils import ModelEmaV3

        config, options, accelerator, feed = self.config, self.options, self.accelerator, self.opened.feed
        device, rank, classifier = accelerator.device, accelerator.process_index, self.opened.classifier
        assert classifier is not None
        batch, clip_grad, steps = config.optimise.batch_size, config.optimise.clip_grad, self.steps

        # The network, the average of its weights if asked for, and what updates them.
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        network = timm_parts.prepared(classifier.network, config).to(device).to(memory_format=layout)
        average = ModelEmaV3(network, config.model.ema_decay, use_warmup=True) if config.model.ema_decay else None
        optimizer = timm_parts.make_optimizer(network, config)
        schedule = timm_parts.make_schedule(optimizer, config, steps, feed.budget / batch)
        mix, loss_of = timm_parts.make_loss(config, len(classifier.wnids))
        model, optimizer = accelerator.prepare(network, optimizer)
        if average is not None:
            accelerator.register_for_checkpointing(average)
        kept = _for_tests(replace(classifier, network=average.module if average is not None else network), config)

        # Continue after the newest checkpoint, with the batches that come next.
        first = self._resume()
        augmentation = timm_parts.Augmentation(classifier.preprocessing, config.augment)
        if (workers := options.num_workers) is None:
            workers = 0 if config.data.streaming else default_workers(accelerator)
        processes, on_gpu = accelerator.num_processes, device.type == "cuda"
        wanted = Slice(first, steps, batch, options.accumulation, rank, processes, workers, on_gpu)
        batches = feed.batches(augmentation, wanted)

        with Progress("train", steps * batch, first * batch, quiet=not self.talks) as progress:
            for step in range(first, steps):
                schedule.step_update(step)
                model.train()
                timm_parts.keep_frozen(network)
                for part in range(options.accumulation):
                    # Images and targets of this part, on the device. Seeded, so that dropout survives a restart.
                    tensors, labels = next(batches)
                    pixels = augmentation.finish(tensors.to(device, non_blocking=True)).to(memory_format=layout)
                    labels = labels.to(device, non_blocking=True)
                    torch.manual_seed(derive(config.seed, "part", step, part, rank))
                    pixels, targets = mix(pixels, labels, step, part)

                    # Gradients; accelerate lets the optimizer step at the last part only.
                    with accelerator.accumulate(model):
                        loss = loss_of(model(pixels), targets)
                        accelerator.backward(loss)
                        if clip_grad and accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(model.parameters(), clip_grad)
                        optimizer.step()
                        optimizer.zero_grad()

                # After the step: average the weights, log, record, test, save.
                if average is not None:
                    average.update(network, step=step + 1)
                progress.add(batch)
                self._after_step(step + 1, kept, loss, optimizer)
        return kept

    def _resume(self) -> int:
        """Load the newest checkpoint if there is one; return the number of steps that are done."""
        folder = self.folder / CHECKPOINTS
        place = checkpoints.load_checkpoint(self.accelerator, folder, self._facts())
        if self.accelerator.is_main_process:  # a kill may have come between writing the newest and deleting the oldest
            checkpoints.remove_old(folder, self.options.keep_checkpoints)
        self.earlier, self.history = place.tally, list(place.history)
        if self.opened.recorder is not None and (missing := self.opened.recorder.missing(place.step)):
            said = f"{self.folder} is at step {place.step}, and nothing was recorded after step {missing[0]}."
            raise HfsynError(said, "Leave --record out, or begin from the start with --overwrite.")
        if place.feed:
            self.opened.feed.load_state(place.feed)
        if place.step:
            self.history.append({"step": place.step, "resumed": True})
            if self.talks:
                print(f"continuing after step {place.step} of {self.steps}", file=sys.stderr)
        return place.step

    def _facts(self) -> dict[str, Any]:
        feed = self.opened.feed
        config = self.config.model_dump(mode="json")
        return {"config": config, "images": feed.fingerprints, "classes": list(feed.classes)}

    def _after_step(self, done: int, kept: Classifier, loss: Any, optimizer: Any) -> None:
        """Log every 20 steps, record; test and save as often as asked for, but not after the last step."""
        options, accelerator, feed, test = self.options, self.accelerator, self.opened.feed, self.opened.test
        steps = self.steps
        each_epoch = feed.budget / self.config.optimise.batch_size
        if done % 20 == 0 or done == steps:
            values = {"loss": float(loss.detach()), "lr": max(group["lr"] for group in optimizer.param_groups)}
            if math.isnan(values["loss"]):
                said = f"The loss is NaN at step {done}."
                raise HfsynError(said, "Lower the learning rate, or --mixed-precision no.")
            if options.log_with:
                accelerator.log(values, step=done)
        recorder, trained = self.opened.recorder, self.opened.classifier
        if recorder is not None and trained is not None and done in recorder.places:
            recorder.take(done, replace(kept, network=trained.network), accelerator)
        if done == steps:
            return
        every = self.config.test.every_epochs
        if test is not None and every and int(done / each_epoch / every) > int((done - 1) / each_epoch / every):
            top1 = measure(kept, test, accelerator, num_workers=options.num_workers)["metrics"]["top1"]["value"]
            self.history.append({"step": done, "top1": top1})
            if self.talks:
                print(f"after step {done}: top-1 {top1:.4f}", file=sys.stderr)
        apart = options.checkpoint_steps
        if apart is None:  # at the ends of epochs, and about 20 in all
            apart = max(math.ceil(each_epoch), math.ceil(steps / 20))
        if apart and done % apart == 0:
            place = Place(done, feed.state(), self._tally(), tuple(self.history))
            checkpoints.save_checkpoint(
                accelerator, self.folder / CHECKPOINTS, place, self._facts(), options.keep_checkpoints
            )

    def _tally(self) -> dict[str, Any]:
        """See `Place`; called by every process."""
        wall, cpu = self.started
        now = {"seconds": time.monotonic() - wall, "cpu_seconds": total(self.accelerator, time.process_time() - cpu)}
        met = {**self.earlier.get("undecodable", {}), **union(self.accelerator, self.opened.feed.unread)}
        return {"undecodable": met, **{key: value + self.earlier.get(key, 0) for key, value in now.items()}}

    def conclude(self, classifier: Classifier, more: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the classifier, test it as it was kept, and write the result, with `more` facts of the training."""
        config, accelerator, feed = self.config, self.accelerator, self.opened.feed
        if accelerator.is_main_process:
            save_classifier(classifier, self.folder)
        if self.opened.recorder is not None and accelerator.is_main_process:
            self.opened.recorder.sum_up()
        accelerator.wait_for_everyone()
        met = self._tally()
        result: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "training": {
                "sets": feed.facts(),
                "images": feed.fingerprints,
                "budget": feed.budget,
                "epochs": config.optimise.epochs,
                "images_seen": self.steps * config.optimise.batch_size,
                "undecodable_seen": len(met["undecodable"]),
                "undecodable": facts_of(met["undecodable"]),
                "processes": accelerator.num_processes,
                "accumulation": self.options.accumulation,
                "seconds": round(met["seconds"], 1),
                "cpu_seconds": round(met["cpu_seconds"], 1),
                "history": self.history,
                **more,
                **({"record": self.opened.recorder.facts()} if self.opened.recorder is not None else {}),
            },
            "software": software(),
        }
        if self.talks:
            tell_unread(met["undecodable"], " and ".join(config.data.train))
        result["test"] = self._test(open_classifier(self.folder, device=str(accelerator.device)))
        if accelerator.is_main_process:
            atomic_text(self.folder / RESULTS, dump_result(result))
        if self.options.log_with:
            accelerator.end_training()
        return result

    def test_again(self, done: dict[str, Any]) -> dict[str, Any]:
        """Test a finished training on something else, then replace its result."""
        kept = open_classifier(self.folder, device=str(self.accelerator.device))
        if not self.config.model.head_only:  # which is prepared as its features were
            kept = _for_tests(kept, self.config)
        result = {**done, "config": self.config.model_dump(mode="json"), "test": self._test(kept)}
        if self.accelerator.is_main_process:
            save_classifier(kept, self.folder)  # the crop is a part of it
            atomic_text(self.folder / CONFIG, dump_part(self.config))
            atomic_text(self.folder / RESULTS, dump_result(result))
        self.accelerator.wait_for_everyone()
        return result

    def _test(self, kept: Classifier) -> dict[str, Any] | None:
        if self.opened.test is None:
            return None
        num_workers, quiet = self.options.num_workers, self.options.quiet
        found = measure(kept, self.opened.test, self.accelerator, num_workers=num_workers, quiet=quiet)
        return {**found, "overlap": self.opened.overlap}
