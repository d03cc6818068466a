"""The commands that train and test classifiers; thin like all commands: options in, one function, one line out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from hfsyn.commands.values import Finite, strict

F = TypeVar("F", bound=Callable[..., Any])

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
        click.option("--budget", type=click.IntRange(min=1), metavar="N", help="Images that an epoch shows."),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N different images a class."),
        click.option("--streaming/--no-streaming", default=None, help="Read the training sets as streams."),
    ),
    "Recipe": (
        click.option("--config", metavar="NAME|FILE", help="A shipped training recipe or a YAML file; flags win."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any field of it: augment.mixup=0.2."
        ),
        click.option("--model", metavar="NAME", help="A network of timm.  [default: resnet50]"),
        click.option("--pretrained/--from-scratch", default=None, help="Start from timm's weights, or not."),
        click.option(
            "--image-size",
            type=click.IntRange(8, 4096),
            metavar="PIXELS",
            help="Input of the network.  [default: its own]",
        ),
        click.option(
            "--epochs",
            type=click.IntRange(1, 10**6),
            metavar="N",
            help="Times that --budget images are shown.  [default: 100]",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1, 10**6),
            metavar="N",
            help="Images a step, over all processes.  [default: 256]",
        ),
        click.option("--opt", metavar="NAME", help="An optimizer of timm.  [default: sgd]"),
        click.option(
            "--lr", type=Finite(0, 1e4, min_open=True), metavar="RATE", help="Peak learning rate.  [default: 0.1]"
        ),
        click.option("--weight-decay", type=Finite(0, 1e6), metavar="X", help="[default: 0.0005]"),
        click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), help="[default: no]"),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), metavar="N", help="[default: 0]"),
    ),
    "Running": (
        click.option("--out", required=True, metavar="DIR", help="Where it all goes; run again, it continues."),
        click.option("--overwrite", is_flag=True, help="Delete the training that DIR holds first."),
        click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: the GPU, or else the CPU]"),
        click.option(
            "--num-workers",
            type=click.IntRange(0, 1024),
            metavar="N",
            help="Decoders a process.  [default: cores / GPUs, or 0]",
        ),
        click.option(
            "--gradient-accumulation-steps",
            "accumulation",
            type=click.IntRange(min=1),
            default=1,
            metavar="N",
            help="Parts in which a step is computed.",
        ),
        click.option(
            "--checkpoint-steps",
            type=click.IntRange(min=0),
            metavar="N",
            help="Steps between checkpoints, 0 for none.  [default: an epoch]",
        ),
        click.option("--log-with", metavar="TRACKER", help="tensorboard, trackio or wandb."),
        click.option("-q", "--quiet", is_flag=True, help="No progress; only the last line."),
    ),
    "Publishing": (
        click.option("--push-to-hub", metavar="USER/NAME", help="Publish the classifier with a card."),
        click.option("--private", is_flag=True, help="Publish it for yourself only."),
    ),
}
"""The options of a training by group: those of `hfsyn train` and of scripts/train_classifier.py."""

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
    """A command whose help shows its options under the names of `GROUPS`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        strict(self)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its own heading; what is in none comes last."""
        left = {id(option): option for option in self.get_params(context)}
        by_name = {option.name: option for option in left.values()}
        for group, options in GROUPS.items():
            names = [name for option in options if (name := _name_of(option)) in by_name]
            with formatter.section(group):
                formatter.write_dl([r for n in names if (r := by_name[n].get_help_record(context)) is not None])
            for name in names:
                left.pop(id(by_name[name]))
        records = [record for option in left.values() if (record := option.get_help_record(context)) is not None]
        with formatter.section("Other"):
            formatter.write_dl(records)


def _name_of(decorator: Any) -> str | None:
    """The name of the parameter that an option's decorator makes."""

    def nothing() -> None: ...

    decorator(nothing)
    made: list[click.Parameter] = nothing.__click_params__  # type: ignore[attr-defined]
    return made[0].name


def training_options(function: F) -> F:
    """All options of a training, as one decorator."""
    for options in reversed(GROUPS.values()):
        for option in reversed(options):
            function = option(function)
    return function


def recipe_of(options: dict[str, Any]) -> Any:
    """The TrainConfig that the options say: the recipe file, then ``--set``, then the flags.

    The precision that ``accelerate launch`` was told counts where none of these says one.
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
    """The RunOptions that the options say; refuses a repository that cannot be published to."""
    from hfsyn.judging.train.loop import RunOptions
    from hfsyn.judging.train.model_card import check_push

    if options["push_to_hub"] is not None:
        check_push(options["push_to_hub"])
    names = ("device", "num_workers", "accumulation", "checkpoint_steps", "log_with", "overwrite", "quiet")
    return RunOptions(**{name: options[name] for name in names})


@click.command("train", cls=GroupedCommand)
@training_options
@click.option(
    "--num-processes",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Processes on this machine, started by accelerate.  [default: one a GPU, or one]",
)
@click.pass_context
def train_command(context: click.Context, /, num_processes: int | None, **options: Any) -> None:
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
        _launch_training(config, context.params, processes)
        click.echo(options["out"])
        return
    result = train(config, options["out"], running_of(options))
    if current_worker().is_main:
        report(result, options)
        if not is_child():
            click.echo(options["out"])
    leave_group()


def report(result: dict[str, Any], options: dict[str, Any]) -> None:
    """Say what came out, and publish it if that was asked for."""
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

    from hfsyn.judging.classifier.accelerator import check_tracker
    from hfsyn.judging.train.checkpoints import RESULTS, check_folder
    from hfsyn.judging.train.loop import open_training
    from hfsyn.recipes.loading import dump_part
    from hfsyn.workers import check_device, launch, stopped

    # What is wrong is said here, once, and not by every process.
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
        for name in ("device", "num_workers", "accumulation", "checkpoint_steps", "log_with", "push_to_hub"):
            flag = "gradient-accumulation-steps" if name == "accumulation" else name.replace("_", "-")
            arguments += _flag(f"--{flag}", options[name])
        arguments += [f"--{name}" for name in ("overwrite", "quiet", "private") if options[name]]
        code = launch(arguments, processes, device=options["device"])
    if code or not results.is_file() or (options["overwrite"] and results.stat().st_mtime_ns == before):
        raise stopped(
            "The training processes stopped before the end.",
            "The cause stands above; the same command goes on from the last checkpoint.",
            code,
        )


@click.command("evaluate")
@click.argument("model")
@click.argument("dataset")
@click.option("--split", metavar="SPLIT", help="[default: validation, test, or the only one]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N images a class.")
@click.option("--out", metavar="FILE", help="Write the result as JSON.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: the GPU, or else the CPU]")
@click.option("--num-processes", type=click.IntRange(1, 1024), metavar="N", help="Processes on this machine.")
@click.option(
    "--num-workers",
    type=click.IntRange(0, 1024),
    metavar="N",
    help="Decoders a process.  [default: cores / GPUs, or 0]",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; only the last line.")
def evaluate_command(
    model: str,
    dataset: str,
    split: str | None,
    limit: int | None,
    out: str | None,
    device: str | None,
    num_processes: int | None,
    num_workers: int | None,
    batch_size: int,
    mixed_precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Test MODEL on DATASET. Prints top-1, top-5 and calibration, each with its 95 % interval.

    MODEL is the folder of a training, a name of timm's pretrained networks, or hf_hub:USER/NAME.

    \b
    hfsyn evaluate out/cip imagenette
    hfsyn evaluate resnet50.a1_in1k runs/cip --split train --out fidelity.json
    """
    from hfsyn.judging.measures.evaluate import check_test, evaluate, summary
    from hfsyn.workers import check_device, current_worker, is_child, is_launched, leave_group

    check_device(device)
    if (num_processes or 1) > 1 and not is_launched():
        check_test(model, dataset, split=split, limit_per_class=limit, out=out)  # said once, not by every process
        result = _launch_evaluation(
            num_processes or 1,
            device,
            out,
            [
                model,
                dataset,
                *_flag("--split", split),
                *_flag("--limit", limit),
                *_flag("--device", device),
                *_flag("--num-workers", num_workers),
                *_flag("--batch-size", batch_size),
                *_flag("--mixed-precision", mixed_precision),
                *(["--quiet"] if quiet else []),
            ],
        )
    else:
        result = evaluate(
            model,
            dataset,
            split=split,
            limit_per_class=limit,
            out=out,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            mixed_precision=mixed_precision,
            quiet=quiet,
        )
    from hfsyn.judging.measures.metrics import dump_result

    if current_worker().is_main and not is_child():
        click.echo(dump_result(result).rstrip() if as_json else summary(result))
    leave_group()


def _flag(name: str, value: Any) -> list[str]:
    return [] if value is None else [name, str(value)]


def _launch_evaluation(processes: int, device: str | None, out: str | None, arguments: Sequence[str]) -> Any:
    """Test in several processes, through accelerate, and read the result that they write."""
    import tempfile
    from pathlib import Path

    from builders.files import atomic_text
    from hfsyn.workers import launch, stopped

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        code = launch(["evaluate", *arguments, "--out", str(result)], processes, device=device)
        if code or not result.is_file():
            raise stopped("The processes stopped before the end.", "The cause stands above.", code)
        text = result.read_text(encoding="utf-8")
    if out is not None:
        atomic_text(Path(out), text)
    return json.loads(text)
