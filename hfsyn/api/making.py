"""Making a dataset: plan, build, caption, generate; and doctor, which looks whether a recipe could run here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.files import atomic_text
from builders.runs import layout
from builders.stores.copies import on_disk
from hfsyn.api.words import chosen, take, takes
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.options import WorkOptions

if TYPE_CHECKING:
    from hfsyn.captions.captioner import Captioner
    from hfsyn.images.generator import ImageGenerator
    from hfsyn.looping.outlook import LoopForecast
    from hfsyn.outlook.doctor import Check
    from hfsyn.outlook.forecast import Forecast
    from hfsyn.outlook.informativeness import Informativeness
    from hfsyn.runs.run import Run

_NO_WORDS = ("started",)


@takes(chosen, WorkOptions, but=(*_NO_WORDS, "num_processes", "shards", "captions", "budget_hours", "quiet"))
def plan(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    price: float | None = None,
    probe: int | None = None,
    num_processes: int | None = None,
    say: Callable[[str], None] | None = None,
    **words: Any,
) -> Forecast | LoopForecast:
    """What a recipe would make: counts, first prompts, truncations, shards, disk, upload, time, cost. Loads no model.

    With `probe` the models are loaded and tried; nothing of that is kept. It is also measured on as many real images
    whether the prompts tell the generator anything beyond the class name; see `informativeness`.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION``, or a Recipe; or a loop
            file, which takes no other words: then it is told what each round would come to.
        out: use the captions of this run folder, if it has them.
        price: what a device costs per hour, in USD: adds what the run costs.
        probe: make this many images here, in whole batches with one more before and after, and measure them; the
            options for devices, processes and speed are for this.
        num_processes: project the measured times for that many processes, each with a device like this; None is 1.
        say: called with a line about each step of the probe; None says nothing.

    Raises:
        HfsynError: as `forecast` and `probe`; or options of the probe without a probe.
    """
    from hfsyn.looping.loop_file import is_loop_file
    from hfsyn.outlook.forecast import forecast
    from hfsyn.outlook.informativeness import told_beforehand
    from hfsyn.outlook.probe import probe as measure
    from hfsyn.workers import check_device

    if isinstance(recipe, str | Path) and is_loop_file(str(recipe)):
        if any(value is not None for value in (out, price, probe, num_processes)) or any(words.values()):
            raise HfsynError(
                f"{recipe} is a loop file, of which --json and -q are the only options.", "Leave others out."
            )
        from hfsyn.looping.outlook import forecast_loop

        return forecast_loop(str(recipe))
    wanted = chosen(recipe, **take(words, chosen))
    options = WorkOptions(**words)
    if probe is None and (options != WorkOptions() or num_processes):
        raise HfsynError("Devices, processes and speed are for --probe N.", "Add it, or leave them out.")
    found = forecast(wanted, out, price=price)
    if probe is None:
        return found
    check_device(options.device)
    say = say or (lambda line: None)
    measured = measure(wanted, probe, options=options, say=say)
    projection = measured.projected(found.real_images, found.images, num_processes or 1, price)
    say("probing: how much the prompts tell the generator")
    told = told_beforehand(wanted, max(2, probe), replace(options, quiet=True))
    return replace(found, measured=measured, projection=projection, informativeness=told)


_SPEED = ("batch_size", "budget_hours", "channels_last", "compile", "attention", "num_processes", "shards")


@takes(chosen, WorkOptions, but=(*_NO_WORDS, *_SPEED))
def informativeness(
    recipe: str | Path | Recipe,
    *,
    images: int = 200,
    draws: int = 4,
    out: str | Path | None = None,
    num_processes: int | None = None,
    **words: Any,
) -> Informativeness:
    """How much a recipe's captions tell its generator about real images beyond the class name.

    It is measured by the generator's denoising loss, before anything is generated. Of a run folder its recipe and its
    captions are measured, and the result is kept in it, for `report`; nothing else is kept.

    Args:
        recipe: as for `build`, or a run folder.
        images: real images to measure on.
        draws: noises for each image and kind of prompt.
        out: write the result as JSON to this file.
        num_processes: processes on this machine; None is this one.

    Raises:
        HfsynError: as `hfsyn.outlook.informativeness.measure`; or the recipe of a run is to be changed.
    """
    from hfsyn.outlook.informativeness import keep, measure
    from hfsyn.workers import check_device, current_worker, is_launched

    given, options = take(words, chosen), WorkOptions(**words)
    check_device(options.device)
    run = _run_of(recipe, given)
    wanted = chosen(recipe, **given) if run is None else run.recipe
    if run is not None and run.recipe.caption is not None and options.captions is None:
        options = replace(options, captions=str(run.folder))
    if num_processes in (None, 1) or is_launched():
        found = measure(wanted, images, draws=draws, options=options)
    else:
        found = _measured_in_several(wanted, num_processes, images, draws, options)
    if current_worker().is_main:
        if out is not None:
            keep(found, Path(out))
        if run is not None:
            keep(found, run.folder / layout.INFORMATIVENESS)
    return found


@takes(chosen, WorkOptions, but=(*_NO_WORDS, *_SPEED))
def tune(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    dataset: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    gradient_accumulation_steps: int = 1,
    gradient_checkpointing: bool = False,
    checkpoint_steps: int | None = None,
    samples: int = 4,
    push_to_hub: str | None = None,
    private: bool = False,
    num_processes: int | None = None,
    **words: Any,
) -> dict[str, Any]:
    """Tune a recipe's generator to captioned real images, as its part `tune` says. Running it again continues.

    What comes out is LoRA weights for diffusers and ``generate.lora``, or with ``tune.full`` a checkpoint.

    Args:
        recipe: as for `build`, or a run folder, whose captions are taken; of a run only fields of `tune` can be set.
        out: the folder in which everything is kept.
        dataset: images and texts in place of the recipe's: what `datasets.load_dataset` reads, or ``NAME@REVISION``.
        image_column, text_column: its images, and its texts or lists of texts; None finds them.
        gradient_accumulation_steps: parts in which each process computes its images of a step.
        gradient_checkpointing: compute activations again instead of keeping them: less memory, more time.
        checkpoint_steps: steps between checkpoints, at which samples are drawn; None is a tenth of all.
        samples: images that are drawn at each checkpoint.
        push_to_hub: publish the weights as this model, with their card.
        private: only you can see it there.
        num_processes: processes on this machine; None is one per GPU, or one.

    Returns:
        What ``tuning.json`` holds: ``weights``, ``loss``, ``images``, ``steps`` and what else is known; with
        `push_to_hub` also ``published``, the address of the commit.

    Raises:
        HfsynError: as `hfsyn.tuning.tune.tune`; or `push_to_hub` cannot be published to.
    """
    from hfsyn.hub.repo import HubRepo, check_repo_id
    from hfsyn.tuning import tune as tuning
    from hfsyn.tuning.kept import push_tuned
    from hfsyn.workers import check_device, current_worker, is_launched, visible_gpus

    given, options, out = take(words, chosen), WorkOptions(**words), on_disk(out)
    given["overrides"] = _overrides_with(given, dataset=dataset, image_column=image_column, text_column=text_column)
    if push_to_hub is not None:
        HubRepo(check_repo_id(push_to_hub), repo_type="model").need_token()
    check_device(options.device)
    run = _run_to_tune(recipe, given)
    wanted = chosen(run.recipe if run is not None else recipe, **given)
    how = tuning.TuneOptions(options, gradient_accumulation_steps, gradient_checkpointing, checkpoint_steps, samples)
    processes = num_processes or visible_gpus() or 1
    alone = processes == 1 or is_launched()
    found = tuning.tune(wanted, out, run, how) if alone else _tuned_in_several(wanted, out, run, how, processes)
    if push_to_hub is None or not current_worker().is_main:
        return found
    address = push_tuned(out, push_to_hub, private=private, quiet=options.quiet)
    return {**found, "published": address}


def _overrides_with(given: dict[str, Any], **data: str | None) -> list[str]:
    """The overrides that were given, and a dataset as fields of `tune`."""
    said = given.get("overrides") or ()
    asked = [f"tune.{key}={json.dumps(value)}" for key, value in data.items() if value is not None]
    return [*([said] if isinstance(said, str) else said), *asked]


def _run_to_tune(recipe: str | Path | Recipe, changes: dict[str, Any]) -> Run | None:
    """The run, where a run folder takes the place of a recipe; of its recipe only how it is tuned may be changed."""
    said = changes.get("overrides") or ()
    others = [word for word in ([said] if isinstance(said, str) else said) if not word.startswith("tune.")]
    return _run_of(recipe, {**changes, "overrides": others})


def _tuned_in_several(wanted: Recipe, out: Path, run: Run | None, how: Any, processes: int) -> dict[str, Any]:
    """Tune in several processes through accelerate; the recipe travels as it was resolved."""
    from hfsyn.launching import launch, stopped
    from hfsyn.recipes.recipe import dump_recipe
    from hfsyn.tuning.kept import RESULT

    with tempfile.TemporaryDirectory(prefix="hfsyn-tune-") as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(dump_recipe(wanted), encoding="utf-8")
        tuned = [word for key, value in (wanted.tune or {}) for word in ("--set", f"tune.{key}={json.dumps(value)}")]
        what = [str(recipe)] if run is None else [str(run.folder), *tuned]
        numbers = {
            "--gradient-accumulation-steps": how.accumulation,
            "--checkpoint-steps": how.checkpoint_steps,
            "--samples": how.samples,
        }
        flags = [word for flag, value in numbers.items() if value is not None for word in (flag, str(value))]
        flags += ["--gradient-checkpointing"] if how.checkpointing else []
        code = launch(
            ["tune", *what, "--out", str(out), *flags, *how.work.arguments()], processes, device=how.work.device
        )
    if code or not (out / RESULT).is_file():
        said = "The tuning processes stopped before the end; the same command continues from the last checkpoint."
        raise stopped(said, "See the error above.", code)
    found: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
    return found


def _run_of(recipe: str | Path | Recipe, changes: dict[str, Any]) -> Run | None:
    """The run, where a run folder takes the place of a recipe; raises HfsynError if it is to be changed."""
    from hfsyn.recipes.recipe import RECIPES
    from hfsyn.runs.run import load_run

    if isinstance(recipe, Recipe) or recipe in RECIPES.names() or not layout.is_run_folder(Path(recipe).expanduser()):
        return None
    run = load_run(recipe)
    if changed := [name for name, value in changes.items() if value not in (None, (), [])]:
        said = f"{recipe} is a run, whose recipe stays as it is, and {changed[0]} would change it."
        raise HfsynError(said, f"Measure a changed recipe from its file: {run.folder / layout.RECIPE}")
    return run


def _measured_in_several(
    recipe: Recipe, processes: int | None, images: int, draws: int, options: WorkOptions
) -> Informativeness:
    """Measure in several processes, through accelerate, and read the result that they write."""
    from hfsyn.launching import written_by
    from hfsyn.outlook.informativeness import Informativeness
    from hfsyn.recipes.recipe import dump_recipe

    with tempfile.TemporaryDirectory(prefix="hfsyn-") as folder:
        stored = Path(folder) / layout.RECIPE
        atomic_text(stored, dump_recipe(recipe))
        words = ["informativeness", str(stored), "--images", str(images), "--draws", str(draws), *options.arguments()]
        return Informativeness.from_dict(json.loads(written_by(words, processes or 1, device=options.device)))


@takes(chosen, WorkOptions, but=_NO_WORDS)
def build(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    version: str | None = None,
    **words: Any,
) -> Run:
    """Carry out a recipe in a run folder: caption, generate, finish. Running it again continues.

    A finished run is left as it is.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION``, or a Recipe.
        out: the run folder; created, or continued. An address of fsspec is a place in object storage.
        overwrite: delete the run that `out` holds first.
        push_to_hub: send finished shards to this dataset on the Hub while the others are made.
        version: of the finished dataset there.

    Raises:
        HfsynError: see `prepare`; with `push_to_hub` see `publish`; with exit code 4 some shards are still missing.
    """
    from hfsyn import building

    wanted = chosen(recipe, **take(words, chosen))
    options = WorkOptions(**words)
    return building.build(wanted, out, overwrite=overwrite, push_to_hub=push_to_hub, version=version, options=options)


@takes(WorkOptions, but=_NO_WORDS)
def caption(run: str | Path | Run, *, captioner: Captioner | None = None, **words: Any) -> Run:
    """Read and caption the real images of a prepared run folder.

    Args:
        run: the run folder.
        captioner: a captioner of your own, for this process alone.

    Raises:
        HfsynError: with exit code 4, processes ended before the work was done, or the budget of hours did.
    """
    from hfsyn.captions import caption_stage

    return _stage("caption", run, words, {"captioner": captioner}, caption_stage.caption)


@takes(WorkOptions, but=_NO_WORDS)
def generate(run: str | Path | Run, *, generator: ImageGenerator | None = None, **words: Any) -> Run:
    """Make the images of a run folder whose captions are finished.

    Args:
        run: the run folder.
        generator: a generator of your own, for this process alone.

    Raises:
        HfsynError: captions are missing (exit code 4); or, with the same code, processes ended before the work was
            done, or the budget of hours did.
    """
    from hfsyn.images import generate_stage

    return _stage("generate", run, words, {"generator": generator}, generate_stage.generate)


def _stage(
    stage: str, run: str | Path | Run, words: dict[str, Any], own: dict[str, Any], here: Callable[..., None]
) -> Run:
    from hfsyn.building import work
    from hfsyn.runs.run import Run, load_run

    opened, options = run if isinstance(run, Run) else load_run(run), WorkOptions(**words)
    if any(own.values()):
        here(opened, options=options, **own)
    else:
        work(opened, (stage,), options)
    return opened


@takes(chosen)
def doctor(
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    token: str | bool | None = None,
    **words: Any,
) -> list[Check]:
    """Look at what may stop a run: token and its rights, Hub, disk, devices, library versions.

    With a recipe also at its models and images, whether they are here or open to this account, and at the room and the
    memory that they take. Nothing is changed or sent.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION``, or a Recipe.
        out: where the recipe's run is or will be; None is the current folder.
        token: as everywhere in huggingface_hub; None takes HF_TOKEN or the stored one.

    Raises:
        HfsynError: there is no such recipe; or options of a recipe without one.
    """
    from hfsyn.outlook.doctor import doctor as looked

    if recipe is None and (out is not None or any(value not in (None, ()) for value in words.values())):
        raise HfsynError("These options are about a RECIPE.", "Name one.")
    return looked(None if recipe is None else chosen(recipe, **words), out, token=token)
