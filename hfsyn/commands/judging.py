"""The commands that end in a table, a page or a few numbers: demo, bench, report, fidelity, membership, export-real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from builders.errors import plural
from hfsyn.commands.options import (
    answer_options,
    echo,
    echo_path,
    echo_table,
    number,
    preparation_options,
    processes_option,
    weights_options,
)

_device = click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: the GPU, or else the CPU]")
_limit = number("--limit", help="At most N images per class of each set.")
_out = click.option("--out", metavar="FILE", help="Write all of it there as JSON, with what is known of each image.")


@click.command("demo")
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR", help="Folder for everything it makes.")
@number("--limit", help="Images per class.  [default: 30]")
@click.option("--full", is_flag=True, help="Longer: ten more seeds, and a scaling curve.")
@click.option("--overwrite", is_flag=True, help="Delete the runs and trainings it holds first.")
@processes_option("Processes on this machine. Default: one per GPU, or one per CPU core.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, mps. Default: each process's own GPU, or the CPU.")
@answer_options
def demo_command(as_json: bool, **words: Any) -> None:
    """Run the whole path offline, and ask what the images are worth.

    Drawn images, captions, prompts, synthetic images; then classifiers trained on real drawings and on images from
    class names, from captions and from captions exchanged between classes, over five seeds. They are tested on new
    drawings, with the contexts of the training images and with contexts that say nothing about the class. Prints the
    path of a page with all of it; results.json is beside the page.
    """
    from hfsyn import demo

    echo_path("page", demo(**words), as_json)


def _print_example(context: click.Context, option: click.Parameter, name: str | None) -> None:
    if name is not None and not context.resilient_parsing:
        from hfsyn.judging.bench.matrix import EXAMPLES

        click.echo(EXAMPLES[name], nl=False)
        context.exit()


@click.command("bench", short_help="Train and test all combinations in MATRIX, and sum up.")
@click.argument("matrix")
@click.option("--out", required=True, metavar="DIR", help="Where it all goes; run again, it does what is missing.")
@processes_option("Trainings at once, each with one thread or one GPU. Default: one per GPU, or one per CPU core.")
@number("--num-workers", least=0, most=1024, default=0, help="Decoders per training.")
@number("--gradient-accumulation-steps", default=1, help="Parts in which a step is computed: less memory.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda. Default: each process's own GPU, or the CPU.")
@click.option("--dry-run", is_flag=True, help="Open all sets, look up all networks, tell hours and disk.")
@answer_options
@click.option(
    "--example",
    type=click.Choice(["small", "captions", "exchange", "paper", "generators"]),
    is_flag=False,
    flag_value="small",
    metavar="[NAME]",
    is_eager=True,
    expose_value=False,
    callback=_print_example,
    help="Print a MATRIX: small, captions (what they are worth) and exchange (what a real image is) run offline; paper "
    "(the method's own table) and generators (by year) need ImageNet sets and a GPU.",
)
def bench_command(matrix: str, out: str, dry_run: bool, as_json: bool, quiet: bool, **words: Any) -> None:
    """Train and test every combination in MATRIX, a YAML file, and sum up. Prints the path of results.csv.

    \b
    name: captions-or-names
    config: {optimise: {epochs: 100}}            a training recipe: its name, its file, or its fields
    arms:
      real:  {train: [imagenette]}
      basic: {train: ["runs/basic-{seed}"]}      {seed} is the classifier's seed
      cip:   {train: ["runs/cip-{seed}"]}
    models: [resnet50]
    seeds: [0, 1, 2]
    tests:
      real: {dataset: imagenette}

    \b
    More axes: variants, recipes, lrs, budgets (images per epoch), limits (different images per class) and
    mix: {dataset: imagenette, shares: [0, 0.5]}. More columns: membership, fidelity and copies, means of tests; and
    select_on, on which each arm's recipe is chosen. `hfsyn bench --example paper > paper.yaml` writes all of it.
    Without models, the network is the one that the training recipe names.
    What failed is kept in the table with its error; the exit code is then 4.

    \b
    hfsyn bench paper.yaml --out out/paper --dry-run     what it would cost, and the commands that make the sets
    """
    from hfsyn import bench
    from hfsyn.judging.bench.cells import failures
    from hfsyn.judging.bench.costs import costs_text
    from hfsyn.judging.bench.summaries import CSV

    found = bench(matrix, out, dry_run=dry_run, quiet=quiet or as_json, **words)
    if dry_run:
        states = [cell["state"] for cell in found["cells"]]
        if not (as_json or quiet):
            echo_table(found["cells"], as_json=False, quiet=False)
            click.echo("\n".join(["", *costs_text(found["costs"])]))
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        echo(found, f"{plural(len(states), 'cell')}: {counts}", as_json=as_json, quiet=quiet)
        return
    echo(found, str(Path(out) / CSV), as_json=as_json, quiet=quiet)
    if error := failures(found, out):
        raise error


@click.command("report", short_help="One HTML page of a bench, of several, or of a loop.")
@click.argument("out")
@click.option("--push-to-hub", metavar="USER/SPACE", help="Show the page as this static Space.")
@click.option("--private", is_flag=True, help="Make the Space for yourself only.")
@answer_options
def report_command(as_json: bool, **words: Any) -> None:
    """One self-contained HTML page of a bench's folder OUT (or of several beside each other), or of a loop's.

    Prints its path. Beside that of a bench are the table as CSV, with the names of timm's tables, and as LaTeX, and the
    plots. A Space shows neither photographs of the source nor paths of this machine; the command then prints its
    address.

    \b
    hfsyn report out/paper
    hfsyn report out/loop
    hfsyn report out/paper --push-to-hub alice/what-captions-are-worth
    """
    from hfsyn import report

    echo_path("page", report(**words), as_json)


def _measured(found: Any, as_json: bool, quiet: bool) -> None:
    """Print a measure's table; the first row is its headline."""
    headline = found.rows()[0]
    text = f"{headline['measure']} {headline['value']}" if quiet else found.text()
    echo(found.as_dict(), text, as_json=as_json, quiet=quiet)


@click.command("fidelity", short_help="How close SYNTHETIC images are to REAL ones.")
@click.argument("synthetic")
@click.argument("real")
@click.option("--eval-dataset", metavar="DATASET", help="What classifiers are tested on: copies of it?")
@click.option(
    "--features",
    default="resnet18.a1_in1k",
    show_default=True,
    metavar="MODEL",
    help="A training's folder, or a network of timm.",
)
@_limit
@preparation_options
@click.option("--copies/--no-copies", default=True, help="Look for copies too: a minute of a core for 3,000 images.")
@click.option("--sheet", metavar="FILE", help="Draw the pairs that are most alike side by side, as a PNG file.")
@_device
@_out
@answer_options
def fidelity_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """How near SYNTHETIC comes to REAL: Fréchet distance, precision, recall, density, coverage, copies.

    \b
    hfsyn fidelity runs/cip imagenette --eval-dataset imagenette --features out/real
    hfsyn fidelity runs/cip imagenette --sheet copies.png     the copies that it found, beside what they are copies of
    """
    from hfsyn import fidelity

    _measured(fidelity(**words, quiet=quiet or as_json), as_json, quiet)


@click.command("membership", short_help="Whether MODEL gives away what it was trained on.")
@click.argument("model")
@click.argument("members")
@click.argument("others")
@click.option("--members-split", metavar="SPLIT", help="Of MEMBERS.  [default: train, or the only one]")
@click.option("--others-split", metavar="SPLIT", help="Of OTHERS.  [default: validation, test, or the only one]")
@_limit
@weights_options
@preparation_options
@_device
@_out
@answer_options
def membership_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """Whether MODEL tells MEMBERS (which stand behind its training) from OTHERS (which it never saw).

    The threshold is chosen on one half of the images; balanced accuracy, AUC and TPR at 1 % FPR are of the other half.
    """
    from hfsyn import membership

    _measured(membership(**words), as_json, quiet)


@click.command("export-real", short_help="Store the real images of RUN as the synthetic ones are.")
@click.argument("run")
@click.option("--out", required=True, metavar="DIR", help="Folder for the Parquet files.")
@answer_options
def export_real_command(run: str, out: str, as_json: bool, quiet: bool) -> None:
    """Write the real images of RUN as its synthetic ones are stored: same size, same encoder, same columns.

    Trained on files as they came, a classifier may tell the two by how they are stored. Prints the folder.
    """
    from hfsyn import export_real

    echo_path("folder", export_real(run, out, quiet=quiet), as_json)


EXHIBITS = (demo_command, bench_command, report_command, fidelity_command, membership_command, export_real_command)
