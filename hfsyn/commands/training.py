"""The commands that train and test classifiers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

import click

from hfsyn.commands.options import Finite, number, processes_option, quiet_option, strict, together

_device = click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: the GPU, or else the CPU]")
_workers = number("--num-workers", least=0, most=1024, help="Decoders per process.  [default: cores / GPUs, or 0]")

GROUPS: dict[str, tuple[Any, ...]] = {
    "Images": (
        click.option(
            "--train-dataset",
            "train_datasets",
            multiple=True,
            metavar="DATASET[:WEIGHT]",
            help="What to train on; several are mixed by weight.",
        ),
        click.option("--train-split", metavar="SPLIT", help="Split to train on.  [default: train, or the only one]"),
        click.option("--eval-dataset", metavar="DATASET", help="What to test on."),
        click.option(
            "--eval-split", metavar="SPLIT", help="Split to test on.  [default: validation, test, or the only one]"
        ),
        number("--budget", help="Images that an epoch shows."),
        number("--limit", help="At most N different images per class."),
        click.option("--streaming/--no-streaming", default=None, help="Read the training sets as streams."),
    ),
    "Recipe": (
        click.option("--config", metavar="NAME|FILE", help="A shipped training recipe or a YAML file; flags win."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any field of it: augment.mixup=0.2."
        ),
        click.option("--model", metavar="NAME", help="A network of timm.  [default: resnet50]"),
        click.option("--pretrained/--from-scratch", default=None, help="Start from timm's weights, or not."),
        number("--image-size", least=8, most=4096, metavar="PIXELS", help="Input of the network.  [default: its own]"),
        number("--epochs", most=10**6, help="Times that --budget images are shown.  [default: 100]"),
        number("--batch-size", most=10**6, help="Images a step, over all processes.  [default: 256]"),
        click.option("--opt", metavar="NAME", help="An optimizer of timm.  [default: sgd]"),
        click.option(
            "--lr", type=Finite(0, 1e4, min_open=True), metavar="RATE", help="Peak learning rate.  [default: 0.1]"
        ),
        click.option("--weight-decay", type=Finite(0, 1e6), metavar="X", help="[default: 0.0005]"),
        click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), help="[default: no]"),
        number("--seed", least=0, most=2**31 - 1, help="[default: 0]"),
    ),
    "Running": (
        click.option("--out", required=True, metavar="DIR", help="Where it all goes; run again, it continues."),
        click.option("--overwrite", is_flag=True, help="Delete the training that DIR holds first."),
        _device,
        _workers,
        number("--gradient-accumulation-steps", "accumulation", default=1, help="Parts in which a step is computed."),
        number("--checkpoint-steps", least=0, help="Steps between checkpoints, 0 for none.  [default: an epoch]"),
        click.option("--log-with", metavar="TRACKER", help="tensorboard, trackio or wandb."),
        quiet_option,
    ),
    "Publishing": (
        click.option("--push-to-hub", metavar="USER/NAME", help="Publish the classifier with a card."),
        click.option("--private", is_flag=True, help="Publish it for yourself only."),
    ),
}
"""The options of a training by group: those of `hfsyn train` and of scripts/train_classifier.py."""
_RUNNING = ("device", "num_workers", "accumulation", "checkpoint_steps", "log_with", "overwrite", "quiet")
"""The options that are fields of RunOptions."""

FIELDS = {
    "train_datasets": "data.train",
    "train_split": "data.train_split",
    "eval_dataset": "test.dataset",
    "eval_split": "test.split",
    "budget": "data.budget",
    "limit": "data.limit_per_class",
    "streaming": "data.streaming",
    "model": "model.name",
    "pretrained": "model.pretrained",
    "image_size": "model.image_size",
    "epochs": "optimise.epochs",
    "batch_size": "optimise.batch_size",
    "opt": "optimise.optimizer",
    "lr": "optimise.lr",
    "weight_decay": "optimise.weight_decay",
    "mixed_precision": "optimise.mixed_precision",
    "seed": "seed",
}
"""Option -> field of the training recipe."""


class GroupedCommand(click.Command):
    """A command whose options begin with those of `GROUPS`, and whose help shows them under these names."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        strict(self, "train")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its own heading; the other options come last."""
        params = iter(self.get_params(context))
        groups = {group: list(islice(params, len(options))) for group, options in GROUPS.items()}
        for group, members in {**groups, "Other": list(params)}.items():
            with formatter.section(group):
                formatter.write_dl([r for one in members if (r := one.get_help_record(context)) is not None])


training_options = together(*(option for options in GROUPS.values() for option in options))
"""All options of a training, as one decorator."""


def recipe_of(options: dict[str, Any]) -> Any:
    """The TrainConfig of the options: the recipe file, then ``--set``, then the flags.

    The precision given to ``accelerate launch`` counts where none of these has one.
    """
    from hfsyn.recipes.training_recipe import load_train_config
    from hfsyn.workers import current_worker, is_child

    values = {field: options[name] for name, field in FIELDS.items() if options[name] not in (None, ())}
    config = load_train_config(options["config"], options["overrides"], values)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if is_child() or launched in ("no", config.optimise.mixed_precision):
        return config
    if "mixed_precision" not in config.optimise.model_fields_set and launched in ("fp16", "bf16"):
        values["optimise.mixed_precision"] = launched
        return load_train_config(options["config"], options["overrides"], values)
    if current_worker().is_main:
        said = config.optimise.mixed_precision
        click.echo(f"Trained in {said!r}, as the recipe says, and not in {launched!r}, as the launcher does.", err=True)
    return config


def running_of(options: dict[str, Any]) -> Any:
    """The RunOptions of the options; refuses a repository that cannot be published to."""
    from hfsyn.judging.train.loop import RunOptions
    from hfsyn.judging.train.model_card import check_push

    if options["push_to_hub"] is not None:
        check_push(options["push_to_hub"])
    return RunOptions(**{name: options[name] for name in _RUNNING})


@click.command("train", cls=GroupedCommand, short_help="Train a timm classifier on real or synthetic images.")
@training_options
@processes_option("Processes on this machine, started by accelerate.  [default: one per GPU, or one]")
def train_command(num_processes: int | None, **options: Any) -> None:
    """Train a timm classifier on real or synthetic images, and test it on real ones. Prints DIR.

    A DATASET is a variant (`hfsyn variants ls`), a run folder, VARIANT=FOLDER, a Parquet file, or USER/NAME@v1.0.0.

    \b
    hfsyn train --train-dataset runs/cip --eval-dataset imagenette --model resnet50 --out out/cip
    hfsyn train --train-dataset imagenette --train-dataset runs/cip:0.5 --budget 9469 --out out/mixed
    """
    from hfsyn.judging.train.loop import train
    from hfsyn.workers import current_worker, is_child, is_launched, leave_group, visible_gpus

    config = recipe_of(options)
    processes = num_processes or visible_gpus() or 1
    if processes > 1 and not is_launched():
        _launch_training(config, options, processes)
        click.echo(options["out"])
        return
    result = train(config, options["out"], running_of(options))
    if current_worker().is_main:
        report(result, options)
        if not is_child():
            click.echo(options["out"])
    leave_group()


def report(result: dict[str, Any], options: dict[str, Any]) -> None:
    """Print the result, and publish the classifier if that was asked for."""
    from hfsyn.judging.measures.evaluate import summary

    if result["test"] is not None and not options["quiet"]:
        click.echo(f"{result['test']['dataset']['reference']}: {summary(result['test'])}", err=True)
    if options["push_to_hub"]:
        from hfsyn.judging.train.model_card import push_classifier

        private, quiet = options["private"], options["quiet"]
        click.echo(push_classifier(options["out"], options["push_to_hub"], private=private, quiet=quiet), err=True)


def _launch_training(config: Any, options: dict[str, Any], processes: int) -> None:
    """Train in several processes, through accelerate; the recipe travels as it was resolved."""
    import tempfile
    from pathlib import Path

    from hfsyn.judging.classifier import check_tracker
    from hfsyn.judging.train.checkpoints import RESULTS, check_folder
    from hfsyn.judging.train.loop import open_training
    from hfsyn.launching import launch, stopped
    from hfsyn.recipes.loading import dump_part
    from hfsyn.workers import check_device

    # What is wrong is reported here, once, and not by every process.
    check_folder(Path(options["out"]), config, options["overwrite"])
    check_device(options["device"])
    check_tracker(options["log_with"])
    open_training(config, Path(options["out"]), running_of(options), processes)
    results = Path(options["out"]) / RESULTS
    before = results.stat().st_mtime_ns if results.is_file() else None
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(dump_part(config), encoding="utf-8")
        arguments = ["train", "--config", str(recipe), "--out", options["out"]]
        for name in (*_RUNNING, "push_to_hub", "private"):
            arguments += _flag("gradient-accumulation-steps" if name == "accumulation" else name, options[name])
        code = launch(arguments, processes, device=options["device"])
    if code or not results.is_file() or (options["overwrite"] and results.stat().st_mtime_ns == before):
        raise stopped(
            "The training processes stopped before the end.",
            "See the error above; the same command continues from the last checkpoint.",
            code,
        )


@click.command("evaluate", short_help="Test MODEL on DATASET: top-1, top-5, calibration.")
@click.argument("model")
@click.argument("dataset")
@click.option("--split", metavar="SPLIT", help="[default: validation, test, or the only one]")
@number("--limit", help="At most N images per class.")
@click.option("--out", metavar="FILE", help="Write the result as JSON.")
@_device
@processes_option("Processes on this machine.")
@_workers
@number("--batch-size", default=64, show_default=True)
@click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@quiet_option
def evaluate_command(model: str, dataset: str, num_processes: int | None, as_json: bool, **options: Any) -> None:
    """Test MODEL on DATASET. Prints top-1, top-5 and calibration, each with its 95 % interval.

    MODEL is the folder of a training, a name of timm's pretrained networks, or hf_hub:USER/NAME.

    \b
    hfsyn evaluate out/cip imagenette
    hfsyn evaluate resnet50.a1_in1k runs/cip --split train --out fidelity.json
    """
    from hfsyn.judging.measures.evaluate import check_test, evaluate, summary
    from hfsyn.judging.measures.metrics import dump_result
    from hfsyn.workers import check_device, current_worker, is_child, is_launched, leave_group

    out, device, limit = options["out"], options["device"], options.pop("limit")
    check_device(device)
    if num_processes is not None and num_processes > 1 and not is_launched():
        # What is wrong is reported once, and not by every process.
        check_test(model, dataset, split=options["split"], limit_per_class=limit, out=out)
        words = [model, dataset, *_flag("limit", limit)]
        for name in ("split", "device", "num_workers", "batch_size", "mixed_precision", "quiet"):
            words += _flag(name, options[name])
        result = _launch_evaluation(num_processes, device, out, words)
    else:
        result = evaluate(model, dataset, limit_per_class=limit, **options)
    if current_worker().is_main and not is_child():
        click.echo(dump_result(result).rstrip() if as_json else summary(result))
    leave_group()


def _flag(name: str, value: Any) -> list[str]:
    """An option as words of a command line; none where it is not given."""
    flag = f"--{name.replace('_', '-')}"
    return [] if value is None or value is False else [flag] if value is True else [flag, str(value)]


def _launch_evaluation(processes: int, device: str | None, out: str | None, arguments: Sequence[str]) -> Any:
    """Test in several processes, through accelerate, and read the result that they write."""
    import tempfile
    from pathlib import Path

    from builders.files import atomic_text
    from hfsyn.launching import launch, stopped

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        code = launch(["evaluate", *arguments, "--out", str(result)], processes, device=device)
        if code or not result.is_file():
            raise stopped("The processes stopped before the end.", "See the error above.", code)
        text = result.read_text(encoding="utf-8")
    if out is not None:
        atomic_text(Path(out), text)
    return json.loads(text)
