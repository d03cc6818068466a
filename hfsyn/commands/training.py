"""The commands that train and test classifiers."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from hfsyn.commands.options import (
    Finite,
    answer_options,
    echo,
    number,
    preparation_options,
    processes_option,
    strict,
    together,
    weights_options,
)

_device = click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: the GPU, or else the CPU]")
_workers = number("--num-workers", least=0, most=1024, help="Decoders per process.  [default: cores / GPUs, or 0]")

GROUPS: dict[str, tuple[Any, ...]] = {
    "Images": (
        click.option(
            "--train-dataset",
            multiple=True,
            metavar="DATASET[:WEIGHT]",
            help="What to train on; several are mixed by weight.",
        ),
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
        number("--batch-size", most=10**6, help="Images per step, over all processes.  [default: 256]"),
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
        number("--gradient-accumulation-steps", default=1, help="Parts in which a step is computed."),
        number("--checkpoint-steps", least=0, help="Steps between checkpoints, 0 for none.  [default: an epoch]"),
        click.option("--record", is_flag=True, help="Keep what it shows of each image, for `hfsyn score --from`."),
        click.option("--log-with", metavar="TRACKER", help="tensorboard, trackio or wandb."),
    ),
    "Publishing": (
        click.option("--push-to-hub", metavar="USER/NAME", help="Publish the classifier with a card."),
        click.option("--private", is_flag=True, help="Publish it for yourself only."),
    ),
}
"""The options of a training by group: those of `hfsyn train` and of scripts/train_classifier.py."""


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


@click.command("train", cls=GroupedCommand, short_help="Train a timm classifier on real or synthetic images.")
@training_options
@processes_option("Processes on this machine, started by accelerate.  [default: one per GPU, or one]")
@answer_options
def train_command(as_json: bool, **words: Any) -> None:
    """Train a timm classifier on real or synthetic images, and test it on real ones. Prints DIR.

    A DATASET is a variant (`hfsyn variants ls`), a run folder, VARIANT=FOLDER, a Parquet file, or USER/NAME@v1.0.0.

    \b
    hfsyn train --train-dataset runs/cip --eval-dataset imagenette --model resnet50 --out out/cip
    hfsyn train --train-dataset imagenette --train-dataset runs/cip:0.5 --budget 9469 --out out/mixed
    """
    from hfsyn import train
    from hfsyn.workers import current_worker, is_child, leave_group

    result = train(**words)
    if current_worker().is_main and not is_child():
        report(result, words["out"], as_json=as_json, quiet=words["quiet"])
    leave_group()


def report(result: dict[str, Any], out: str, *, as_json: bool, quiet: bool) -> None:
    """Print what a training came to; the last line is its folder."""
    from hfsyn.judging.measures.evaluate import summary

    remarks = [f"{result['test']['dataset']['reference']}: {summary(result['test'])}"] if result["test"] else []
    remarks += [result["published"]] if "published" in result else []
    if remarks and not (as_json or quiet):
        click.echo("\n".join(remarks), err=True)
    echo(result, out, as_json=as_json, quiet=quiet)


@click.command("evaluate", short_help="Test MODEL on DATASET: top-1, top-5, calibration.")
@click.argument("model")
@click.argument("dataset")
@click.option("--split", metavar="SPLIT", help="[default: validation, test, or the only one]")
@number("--limit", help="At most N images per class.")
@weights_options
@preparation_options
@click.option("--out", metavar="FILE", help="Write the result as JSON.")
@_device
@processes_option("Processes on this machine.")
@_workers
@number("--batch-size", default=64, show_default=True)
@click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True)
@answer_options
def evaluate_command(as_json: bool, **words: Any) -> None:
    """Test MODEL on DATASET. Prints top-1, top-5 and calibration, each with its 95 % interval.

    MODEL is the folder of a training, a name of timm's pretrained networks, or hf_hub:USER/NAME; with --checkpoint a
    network of timm; or clip:ORG/NAME, a model of images and texts that is told DATASET's classes by their names. Images
    are prepared as timm's validate.py does it for the weights, or as the model's own image processor. Of a set with
    more classes than MODEL has, those that both have are tested.

    \b
    hfsyn evaluate out/cip imagenette
    hfsyn evaluate resnet50.a1_in1k runs/cip --split train --out fidelity.json
    hfsyn evaluate resnet50 imagenette --checkpoint mine.pth --classes imagenette --image-size 128
    hfsyn evaluate clip:openai/clip-vit-large-patch14 imagenette
    """
    from hfsyn import evaluate
    from hfsyn.judging.measures.evaluate import summary
    from hfsyn.judging.measures.metrics import dump_result
    from hfsyn.workers import current_worker, is_child, leave_group

    result = evaluate(**words)
    if current_worker().is_main and not is_child():
        click.echo(dump_result(result).rstrip() if as_json else summary(result))
    leave_group()
