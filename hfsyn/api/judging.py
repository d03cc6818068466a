"""Training and testing classifiers, comparing sets of images: in this process, or in several that accelerate starts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from builders.files import atomic_text
from hfsyn.api.words import take, takes
from hfsyn.errors import HfsynError
from hfsyn.judging.preprocessing import Overrides

if TYPE_CHECKING:
    from hfsyn.judging.measures.evaluate import Evaluation
    from hfsyn.judging.measures.fidelity import Fidelity
    from hfsyn.judging.measures.membership import Membership
    from hfsyn.judging.train.loop import RunOptions
    from hfsyn.recipes.training_recipe import TrainConfig

R = TypeVar("R", bound=dict[str, Any])
Precision = Literal["no", "fp16", "bf16"]
FIELDS = {
    "train_dataset": "data.train",
    "eval_dataset": "test.dataset",
    "eval_split": "test.split",
    "budget": "data.budget",
    "limit": "data.limit_per_class",
    "streaming": "data.streaming",
    "model": "model.name",
    "pretrained": "model.pretrained",
    "head_only": "model.head_only",
    "image_size": "model.image_size",
    "epochs": "optimise.epochs",
    "batch_size": "optimise.batch_size",
    "opt": "optimise.optimizer",
    "lr": "optimise.lr",
    "mixed_precision": "optimise.mixed_precision",
    "seed": "seed",
}
"""Words of `train` -> fields of the training recipe."""
_RUNNING = ("device", "num_workers", "checkpoint_steps", "log_with", "record", "overwrite", "quiet")


def training_recipe(
    *,
    train_dataset: str | Sequence[str] = (),
    eval_dataset: str | None = None,
    eval_split: str | None = None,
    budget: int | None = None,
    limit: int | None = None,
    streaming: bool | None = None,
    config: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    overrides: str | Sequence[str] = (),
    model: str | None = None,
    pretrained: bool | None = None,
    head_only: bool | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    opt: str | None = None,
    lr: float | None = None,
    mixed_precision: Precision | None = None,
    seed: int | None = None,
) -> TrainConfig:
    """The training recipe that words describe: the file, then `overrides`, then the single fields.

    Args:
        train_dataset: what to train on, one or several, mixed by weight; see `hfsyn.judging.sets.references`.
        eval_dataset: what to test on.
        eval_split: None is ``validation``, else ``test``, else the only one.
        budget: images that an epoch shows.
        limit: at most this many different images per class.
        streaming: read the training sets as streams.
        config: a shipped training recipe, a YAML file, its fields, or a TrainConfig.
        overrides: ``key=value`` for any other field of it, such as ``augment.mixup=0.2``: the command's ``--set``.
        model: a network of timm; with `head_only` also ``clip:ORG/NAME[@REVISION]``.
        pretrained: start from timm's weights.
        head_only: fit the last layer alone, to features that are computed once: a linear probe.
        image_size: the network's input, in pixels.
        epochs: how often `budget` images are shown.
        batch_size: images per step, over all processes.
        opt: an optimizer of timm.
        lr: the peak learning rate.
        mixed_precision: no, fp16 or bf16. None is the recipe's, or else that given to ``accelerate launch``.
        seed: of weights, order and augmentation.
    """
    words = locals()
    values = {field: words[name] for name, field in FIELDS.items() if words[name] not in (None, ())}
    if isinstance(train_dataset, str):
        values["data.train"] = [train_dataset]
    return _with_launcher(config, [overrides] if isinstance(overrides, str) else overrides, values)


def _with_launcher(config: Any, overrides: Sequence[str], values: dict[str, Any]) -> TrainConfig:
    """The training recipe, in the precision of the launcher if it states none itself."""
    from hfsyn.progress import teller
    from hfsyn.recipes.training_recipe import load_train_config
    from hfsyn.workers import current_worker, is_child

    found = load_train_config(config, overrides, values)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if is_child() or launched in ("no", found.optimise.mixed_precision):
        return found
    if "mixed_precision" not in found.optimise.model_fields_set and launched in ("fp16", "bf16"):
        return load_train_config(config, overrides, values | {"optimise.mixed_precision": launched})
    if current_worker().is_main:
        said = found.optimise.mixed_precision
        teller(False)(f"trained in {said!r}, as the recipe says, and not in {launched!r}, as the launcher does")
    return found


@takes(training_recipe)
def train(
    out: str | Path,
    *,
    overwrite: bool = False,
    device: str | None = None,
    num_workers: int | None = None,
    gradient_accumulation_steps: int = 1,
    checkpoint_steps: int | None = None,
    record: bool = False,
    log_with: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    num_processes: int | None = None,
    quiet: bool = False,
    **words: Any,
) -> dict[str, Any]:
    """Train a timm classifier on real or synthetic images, and test it on real ones. Running it again continues.

    A word of the training recipe that is None leaves its field as it is there.

    Args:
        out: the folder in which everything is kept.
        overwrite: delete the training that `out` holds first.
        device: cpu or cuda; None is each process's own GPU, or the CPU.
        num_workers: decoding processes beside each process; None divides the cores among the GPUs, and is 0 on a CPU.
        gradient_accumulation_steps: parts in which each step is computed.
        checkpoint_steps: steps between checkpoints; None is at the ends of epochs, about 20 in all; 0 is never.
        record: keep what the training shows of each image, see `hfsyn.judging.train.recording`.
        log_with: tensorboard, trackio or wandb.
        push_to_hub: publish the classifier as this model, with a card.
        private: only you can see it there.
        num_processes: processes on this machine; None is one per GPU, or one.
        quiet: no progress.

    Returns:
        What ``results.json`` holds; with `push_to_hub` also ``published``, the address of the commit.

    Raises:
        HfsynError: see `hfsyn.judging.train.loop.open_training`; `out` holds another training; or `push_to_hub` cannot
            be published to.
    """
    own = locals()
    from hfsyn.hub.repo import HubRepo, check_repo_id
    from hfsyn.judging.classifier import ZERO_SHOT
    from hfsyn.judging.train import loop, model_card
    from hfsyn.workers import current_worker, is_launched, visible_gpus

    config = training_recipe(**words)
    options = loop.RunOptions(accumulation=gradient_accumulation_steps, **{name: own[name] for name in _RUNNING})
    if push_to_hub is not None:
        HubRepo(check_repo_id(push_to_hub), repo_type="model").need_token()
        if config.model.name.startswith(ZERO_SHOT):
            said = f"{config.model.name} is not a network of timm, as which classifiers are published."
            raise HfsynError(said, "timm has the towers of CLIP too: --model vit_base_patch32_clip_224.openai")
    processes = num_processes or visible_gpus() or 1
    several = processes > 1 and not is_launched()
    result = _train_in_several(config, Path(out), options, processes) if several else loop.train(config, out, options)
    if push_to_hub is None or not current_worker().is_main:
        return result
    return {**result, "published": model_card.push_classifier(out, push_to_hub, private=private, quiet=quiet)}


def _train_in_several(config: TrainConfig, out: Path, options: RunOptions, processes: int) -> dict[str, Any]:
    """Train in several processes, through accelerate; the recipe travels as it was resolved."""
    from hfsyn.judging.classifier import check_tracker
    from hfsyn.judging.train.checkpoints import RESULTS, check_folder
    from hfsyn.judging.train.loop import open_training
    from hfsyn.launching import launch, stopped
    from hfsyn.recipes.loading import dump_part
    from hfsyn.workers import check_device

    # What is wrong is reported here, once, and not by every process.
    check_folder(out, config, options.overwrite)
    check_device(options.device)
    check_tracker(options.log_with)
    open_training(config, out, options, processes)
    results = out / RESULTS
    before = results.stat().st_mtime_ns if results.is_file() else None
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(dump_part(config), encoding="utf-8")
        words = {name: getattr(options, name) for name in _RUNNING}
        words["gradient_accumulation_steps"] = options.accumulation
        arguments = ["train", "--config", str(recipe), "--out", str(out), *_flags(words)]
        code = launch(arguments, processes, device=options.device)
    if code or not results.is_file() or (options.overwrite and results.stat().st_mtime_ns == before):
        raise stopped(
            "The training processes stopped before the end.",
            "See the error above; the same command continues from the last checkpoint.",
            code,
        )
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


def weights(
    *,
    checkpoint: str | Path | None = None,
    classes: str | None = None,
    templates: str | None = None,
    allow_pickle_weights: bool = False,
) -> dict[str, Any]:
    """What `open_classifier` is told by the words of a command.

    Args:
        checkpoint: a file of weights (safetensors, or of torch.save) for the network `model`, in place of timm's.
        classes: what its outputs mean: a variant, ``timm:SET``, or a file with a wnid a line. None is what the weights
            say, or ImageNet-1k's classes for 1,000 outputs; for a zero-shot classifier those of the dataset.
        templates: the texts of a zero-shot classifier: ``imagenet`` (the 80 of CLIP's authors, which is what None is),
            ``"a photo of a {c}"``, or a file with a text a line.
        allow_pickle_weights: read a zero-shot classifier that has no safetensors; a pickle can run code.
    """
    said = {"checkpoint": checkpoint, "classes": classes, "templates": templates, "allow_pickle": allow_pickle_weights}
    return {name: value for name, value in said.items() if value}


@takes(Overrides, weights)
def evaluate(
    model: str | Path,
    dataset: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    num_processes: int | None = None,
    num_workers: int | None = None,
    batch_size: int = 64,
    mixed_precision: Precision = "no",
    quiet: bool = False,
    **words: Any,
) -> Evaluation:
    """Test a classifier on a dataset: top-1, top-5 and calibration, each with its 95 % interval.

    Args:
        model: the folder of a training, a timm folder, a name of timm's pretrained networks, ``hf_hub:USER/NAME``, or a
            zero-shot classifier: ``clip:ORG/NAME[@REVISION]``, ``clip:FOLDER``.
        dataset: see `hfsyn.judging.sets.references`. Of a set with more classes than the classifier has, those that
            both have are tested.
        split: None is ``validation``, else ``test``, else the only one.
        limit: at most this many images per class.
        out: write the result as JSON to this file.
        device: cpu or cuda; None is each process's own GPU, or the CPU.
        num_processes: processes on this machine; None is this one.
        num_workers: decoding processes beside each process; None divides the cores among the GPUs, and is 0 on a CPU.
        batch_size: images per batch in each process; another size may change the last bits of a logit.
        mixed_precision: no, fp16 or bf16.
        quiet: no progress.

    Returns:
        As `hfsyn.judging.measures.evaluate.evaluate`.

    Raises:
        HfsynError: there is no such model, dataset or split; classes that the model does not have (they are
            listed); or a variant whose copy has another number of images than it should.
    """
    from hfsyn.judging.measures import evaluate as measures
    from hfsyn.workers import check_device, is_launched

    check_device(device)
    how: dict[str, Any] = {"split": split, "device": device, "num_workers": num_workers, "batch_size": batch_size}
    how |= {"mixed_precision": mixed_precision, "quiet": quiet}
    flags = _flags({"limit": limit, **how, **words})
    said = {"overrides": Overrides(**take(words, Overrides)), **weights(**words)}
    if num_processes is None or num_processes == 1 or is_launched():
        return measures.evaluate(model, dataset, limit_per_class=limit, out=out, **said, **how)
    # What is wrong is reported once, and not by every process.
    measures.check_test(model, dataset, split=split, limit_per_class=limit, out=out, **said)
    return _test_in_several(num_processes, device, out, [str(model), dataset, *flags])


def _test_in_several(processes: int, device: str | None, out: str | Path | None, words: Sequence[str]) -> Evaluation:
    """Test in several processes, through accelerate, and read the result that they write."""
    from hfsyn.judging.measures.evaluate import Evaluation
    from hfsyn.launching import written_by

    text = written_by(["evaluate", *words], processes, device=device)
    if out is not None:
        atomic_text(Path(out), text)
    return Evaluation(json.loads(text))


def _flags(words: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line, without those that are None or False."""
    flags: dict[str, list[str]] = {}
    for name, value in words.items():
        if value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            flags[f"--{name.replace('_', '-')}"] = [] if value is True else [text]
    return [word for flag, values in flags.items() for word in (flag, *values)]


@takes(Overrides)
def fidelity(
    synthetic: str,
    real: str,
    *,
    eval_dataset: str | None = None,
    features: str = "resnet18.a1_in1k",
    limit: int | None = None,
    copies: bool = True,
    sheet: str | Path | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **words: Any,
) -> Fidelity:
    """How near synthetic images come to real ones: Fréchet distance, precision, recall, density, coverage, copies.

    Args:
        synthetic: a dataset; see `hfsyn.judging.sets.references`.
        real: the dataset behind it.
        eval_dataset: what classifiers are tested on: are there copies of it?
        features: the network that computes them: the folder of a training, a timm name, or ``random:NAME``.
        limit: at most this many images per class of each set.
        copies: look for copies, too: a minute of a core for each 3,000 images.
        sheet: draw the pairs that are most alike side by side into this PNG file, with their ids and likeness. It holds
            photographs of the real set: mind their licence before you show it to others.
        device: cpu or cuda; None is the GPU, or else the CPU.
        out: write the result as JSON to this file.
        quiet: no progress.

    Returns:
        As `hfsyn.judging.measures.fidelity.measure_fidelity`.

    Raises:
        HfsynError: no such dataset, or no such network.
    """
    from hfsyn.judging.measures.fidelity import measure_fidelity
    from hfsyn.workers import pick_device

    how: dict[str, Any] = {"features": features, "evaluation": eval_dataset, "limit_per_class": limit, "sheet": sheet}
    how |= {"overrides": Overrides(**words), "copies": copies, "device": pick_device(device), "quiet": quiet}
    return _kept(measure_fidelity(synthetic, real, **how), out)


@takes(Overrides, weights)
def membership(
    model: str | Path,
    members: str,
    others: str,
    *,
    members_split: str | None = None,
    others_split: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    **words: Any,
) -> Membership:
    """Whether a classifier tells members (which stand behind its training) from others (which it never saw).

    Args:
        model: as of `hfsyn.evaluate`.
        members: the dataset that it was trained on, or the real dataset behind that.
        others: images of the same kind that it never saw.
        members_split: None is ``train``, or the only one.
        others_split: None is ``validation``, else ``test``, else the only one.
        limit: at most this many images per class of each set.
        device: cpu or cuda; None is the GPU, or else the CPU.
        out: write the result as JSON to this file.

    Returns:
        As `hfsyn.judging.measures.membership.measure_membership`.

    Raises:
        HfsynError: no such classifier or dataset, classes that it does not have, or one set twice.
    """
    from hfsyn.judging.measures.membership import measure_membership

    how: dict[str, Any] = {"members_split": members_split, "others_split": others_split}
    how |= {"overrides": Overrides(**take(words, Overrides)), **weights(**words)}
    found = measure_membership(model, members, others, limit_per_class=limit, device=device, **how)
    return _kept(found, out)


def _kept(result: R, out: str | Path | None) -> R:
    from hfsyn.judging.measures.metrics import dump_result

    if out is not None:
        atomic_text(Path(out), dump_result(result))
    return result
