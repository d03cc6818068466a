"""The commands that make a dataset: build, and its stages caption, generate, finish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builders.errors import plural
from hfsyn.commands.options import (
    answer_options,
    captions_option,
    echo,
    echo_json,
    number,
    pickle_option,
    processes_option,
    recipe_options,
    stage_options,
)

if TYPE_CHECKING:
    from hfsyn.recipes.recipe import Recipe


@click.command(short_help="Make the dataset of RECIPE: caption, generate, finish.")
@click.argument("recipe")
@click.option(
    "--out",
    required=True,
    metavar="RUN",
    help="The run folder, on the disk or in object storage; created, or continued.",
)
@recipe_options
@click.option("--overwrite", is_flag=True, help="Delete the run that RUN holds first.")
@captions_option
@click.option("--push-to-hub", metavar="REPO_ID", help="Send finished shards to this dataset on the Hub meanwhile.")
@click.option("--version", metavar="X.Y.Z", help="With --push-to-hub: the version of the finished dataset.")
@stage_options
@answer_options
def build(recipe: str, out: str, as_json: bool, **words: Any) -> None:
    """Carry out RECIPE in a run folder: caption, generate, finish. Running it again continues.

    RECIPE is a shipped recipe's name, a YAML file, or hf://datasets/REPO_ID@REVISION. Prints the run folder.

    \b
    hfsyn build shapes-cip --limit 20 --out runs/shapes
    hfsyn build imagenette-cip --out runs/cip --num-processes 8
    hfsyn build imagenette-cip --out hf://buckets/alice/runs/cip
    accelerate launch --num_processes 8 -m hfsyn build imagenette-cip --out runs/cip
    """
    from builders.stores.copies import check_address
    from hfsyn.api.words import chosen, take
    from hfsyn.workers import current_worker

    check_address(out)  # before it is printed: it may hold a password
    wanted = chosen(recipe, **take(words, chosen))
    talks = current_worker().is_main
    if talks and not words["quiet"]:
        click.echo(_intended(wanted, out), err=True)  # before anything heavy is loaded
    from hfsyn import build as run_build

    run = run_build(wanted, out, **words)
    if talks:
        _finished(run, as_json, words["quiet"])


def _intended(recipe: Recipe, out: str) -> str:
    """What a run of a recipe is about to do, as far as the recipe alone says it."""
    from builders.variants import get_variant

    source, prompt, draw = recipe.source, recipe.prompt, recipe.generate
    variant, limit = get_variant(source.variant), source.limit_per_class
    counts = [count for split, count in variant.splits.items() if split == source.split and count]
    counts += [limit * len(variant.classes)] if limit is not None else []
    most = f"at most {plural(min(counts) * prompt.images_per_caption, 'image')}, " if counts else ""
    texts = f"captions by {recipe.caption.model}, " if recipe.caption is not None else ""
    return (
        f"{recipe.name} -> {out}: {most}{plural(len(variant.classes), 'class')} of {variant.name} ({source.split}); "
        f"{texts}prompts by {prompt.strategy}, images by {draw.model} in {plural(draw.steps, 'step')}"
    )


def _finished(run: Any, as_json: bool, quiet: bool) -> None:
    """Print a finished run: what came out, its pictures, and how to load it; last the folder."""
    from builders.published import RunFolder
    from builders.runs import layout
    from builders.stores.copies import store_of
    from hfsyn.cards.card import FLAGS

    manifest = RunFolder(run.folder).manifest().raw
    pictures = run.folder / layout.PREVIEW / layout.SAMPLES
    if as_json:
        keys = ("rows", "fingerprint", "rejected", "left_out", "unreadable_classes", "flags")
        kept = {key: manifest[key] for key in keys}
        places = {"run": f"{run.folder}", "classes": len(manifest["classes"]), "pictures": f"{pictures}"}
        echo_json({**places, **kept})
        return
    if not quiet:
        count = f"{plural(manifest['rows'], 'image')} of {plural(len(manifest['classes']), 'class')}"
        lines = [f"{count}, fingerprint {manifest['fingerprint'][:12]}"]
        aside = manifest["rejected"].items()
        lines += [f"set aside: {count} ({reason}); see {run.folder / layout.REJECTED}" for reason, count in aside]
        lines += left_out(manifest["left_out"], manifest["unreadable_classes"])
        flags = manifest["flags"].items()
        lines += [f"flagged {flag}: {plural(count, 'row')} ({FLAGS.get(flag, '')})" for flag, count in flags]
        lines += [f"pictures: {pictures}"] if pictures.is_file() else []
        stored = store_of(run.folder) is not None
        place = f'"parquet", data_files="{run.folder}/data/*.parquet"' if stored else f'"{run.folder.as_posix()}"'
        lines += [f'in Python: datasets.load_dataset({place}, split="{run.split}")']
        click.echo("\n".join(lines), err=True)
    click.echo(f"{run.folder}")


def left_out(counts: Mapping[str, int], classes: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each reason why real images, and for each class that, were left out of a run."""
    lines = [f"left out: {count} ({reason})" for reason, count in counts.items()]
    for entry in classes:
        could = "used" if entry.get("refused") else "read"
        lines.append(f"left out: the class {entry['name']} (none of its {entry['images']} images could be {could})")
    return lines


@click.command()
@click.argument("run")
@captions_option
@stage_options
@answer_options
def caption(run: str, as_json: bool, **words: Any) -> None:
    """Read and caption the real images of a prepared RUN folder. Prints the folder."""
    from hfsyn import caption as run_caption

    run_caption(run, **words)
    _stage_done(run, as_json)


@click.command(short_help="Make the images of a RUN whose captions are there.")
@click.argument("run")
@captions_option
@stage_options
@answer_options
def generate(run: str, as_json: bool, **words: Any) -> None:
    """Make the images of a RUN folder whose captions are finished. Prints the folder.

    \b
    hfsyn generate runs/cip --shards 0:50        one half here ...
    hfsyn generate runs/cip --shards 50:100      ... and the other on another machine with the same folder
    """
    from hfsyn import generate as run_generate

    run_generate(run, **words)
    _stage_done(run, as_json)


def _stage_done(run: str, as_json: bool) -> None:
    from hfsyn import status
    from hfsyn.workers import leave_group

    leave_group()
    echo(asdict(status(run)) if as_json else None, run, as_json=as_json, quiet=False)


@click.command("work-on", hidden=True)
@click.argument("run")
@click.option("--stages", required=True)
@captions_option
@stage_options
@click.option("--quiet", is_flag=True)
def work_on(run: str, stages: str, **words: Any) -> None:
    """What `--num-processes` starts in each process; prints nothing."""
    from hfsyn.building import work
    from hfsyn.runs.options import WorkOptions
    from hfsyn.runs.run import load_run
    from hfsyn.workers import leave_group

    work(load_run(run), stages.split(","), WorkOptions(**(words | {"num_processes": 1})))
    leave_group()


@click.command(short_help="Check the shards of a RUN, write card and manifest.")
@click.argument("run")
@answer_options
def finish(run: str, as_json: bool, quiet: bool) -> None:
    """Check all shards of a RUN folder, then write rejected.jsonl, the card and the manifest. Prints the folder."""
    from hfsyn import finish as run_finish

    _finished(run_finish(run), as_json, quiet)


@click.command(short_help="Tune the generator of RECIPE to captioned real images.")
@click.argument("recipe", metavar="RECIPE|RUN")
@click.option("--out", required=True, metavar="DIR", help="Where it all goes; run again, it continues.")
@recipe_options
@captions_option
@processes_option("Processes on this machine, started by accelerate.  [default: one per GPU, or one]")
@click.option("--dataset", metavar="DATASET", help="Images and texts in place of the recipe's: a folder, or USER/NAME.")
@click.option("--image-column", metavar="COLUMN", help="Its images.  [default: finds them]")
@click.option("--text-column", metavar="COLUMN", help="Its texts, or lists of texts.  [default: finds them]")
@number("--gradient-accumulation-steps", default=1, help="Parts in which each process computes a step.")
@click.option("--gradient-checkpointing", is_flag=True, help="Compute activations again: less memory, more time.")
@number("--checkpoint-steps", help="Steps between checkpoints.  [default: a tenth of all]")
@number("--samples", least=0, most=64, default=4, show_default=True, help="Images to draw at each checkpoint.")
@click.option("--push-to-hub", metavar="USER/NAME", help="Publish the weights with their card.")
@click.option("--private", is_flag=True, help="Publish them for yourself only.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda.  [default: each process's own GPU, or the CPU]")
@pickle_option
@answer_options
def tune(recipe: str, out: str, as_json: bool, quiet: bool, **words: Any) -> None:
    """Tune the generator of RECIPE, or of a RUN's recipe, to captioned real images. Prints the folder of the weights.

    How is a part of the recipe: rank, steps, learning rate, ... (`hfsyn recipes fields`), for instance --set
    tune.steps=500. What comes out is LoRA weights for any program that reads those of diffusers.

    \b
    hfsyn tune runs/cip --set tune.steps=2000 --out tuned/cip
    hfsyn build imagenette-cip --set generate.lora=tuned/cip --out runs/tuned
    hfsyn tune imagenette-cip --dataset photographs/ --text-column caption --out tuned/photographs
    """
    from hfsyn import tune as run_tune
    from hfsyn.workers import current_worker, is_child, leave_group

    found = run_tune(recipe, out, quiet=quiet, **words)
    if current_worker().is_main and not is_child():
        if not (as_json or quiet):
            first, last = found["loss"]["first"], found["loss"]["last"]
            said = f"{found['steps']} steps on {plural(found['images'], 'image')}: loss {first:.4f} -> {last:.4f}"
            sheet = Path(out) / "samples.png"
            click.echo(f"{said}\nsamples: {sheet}" if sheet.is_file() else said, err=True)
            if "published" in found:
                click.echo(f"published: {found['published']}", err=True)
        echo(found, out, as_json=as_json, quiet=quiet)
    leave_group()


MAKING = (build, caption, generate, work_on, finish, tune)
