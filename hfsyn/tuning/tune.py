"""Tuning from recipe to weights: captions, the cache, the steps, and what is kept. Running it again continues."""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import plural
from builders.files import atomic_text
from builders.yaml import read_text
from hfsyn.building import work
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.recipes.loading import differing
from hfsyn.recipes.recipe import Recipe, TunePart, dump_recipe, parse_recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run, check_complete
from hfsyn.runs.specs import SampleSpec, plan
from hfsyn.runs.stage import read_captions
from hfsyn.tuning import kept
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.loop import CHECKPOINTS, Tuner
from hfsyn.workers import current_worker, pick_device

RECIPE, RUN, CACHE, INPUTS, RESULT = "tuning.yaml", "run", "cache", "inputs.json", "tuning.json"
_OURS = {RECIPE, RUN, CACHE, INPUTS, RESULT, CHECKPOINTS, *kept.FILES}
_ABOUT = 10  # checkpoints and sheets of a tuning, if nothing else is said


@dataclass(frozen=True)
class TuneOptions:
    """Where and how fast a tuning works; rounding is all that this changes."""

    work: WorkOptions = field(default_factory=WorkOptions)  # device, captions, progress, how weights are read
    accumulation: int = 1  # parts in which each process computes its images of a step
    checkpointing: bool = False  # whether activations are computed again instead of kept
    checkpoint_steps: int | None = None  # between checkpoints and samples; None is a tenth of all steps
    samples: int = 4  # images that are drawn at each checkpoint


def tune(recipe: Recipe, out: str | Path, run: Run | None = None, options: TuneOptions | None = None) -> dict[str, Any]:
    """Tune the generator of a recipe to captioned real images; called in every process of a launch.

    Args:
        recipe: with a part `tune`, or with its defaults.
        out: the folder in which everything is kept; run again, it continues.
        run: the run folder whose captions are taken; None makes the captions of the recipe, in ``OUT/run``.
        options: where and how fast.

    Returns:
        What ``tuning.json`` holds: ``weights``, ``loss``, ``images``, ``steps``, ``seconds``.

    Raises:
        HfsynError: as `prepare`, `DenoisingLoss` and `Tuner`; `out` holds another tuning; no image can be used; or the
            recipe's generator has a LoRA already.
    """
    options, folder = options or TuneOptions(), Path(out).expanduser()
    part = recipe.tune or TunePart()
    if recipe.generate.lora is not None:
        said = f"generate.lora is {recipe.generate.lora!r}, and what is tuned is the model itself."
        raise HfsynError(said, "--set generate.lora=null; the new LoRA takes its place.")
    _check_folder(folder)
    run = run or prepare(recipe.model_copy(update={"tune": None}), folder / RUN)
    recipe = run.recipe.model_copy(update={"tune": part})
    _refuse_other(folder, recipe)
    if (folder / RESULT).is_file():
        return _result(folder)
    work(run, ("caption",), options.work)
    specs = specs_of(run, part.shots)
    worker = current_worker()
    if worker.is_main:
        _begin(folder, recipe, specs)
    loss = DenoisingLoss(
        recipe.generate, pick_device(options.work.device), allow_pickle=options.work.allow_pickle_weights
    )
    cache = Cache(folder / CACHE, specs)
    cache.fill(run, loss, quiet=options.work.quiet)
    wait_for_everyone()
    loss.rest_to("cpu")  # the text encoders and the autoencoder, while the network is tuned
    tuner = Tuner(recipe, loss, specs, cache, folder, parts=options.accumulation)
    if options.checkpointing:
        loss.network.enable_gradient_checkpointing()
    if (begun := tuner.resume()) and worker.is_main and not options.work.quiet:
        print(f"continuing after step {begun} of {part.steps}", file=sys.stderr)
    album = kept.Album(folder, loss, recipe, specs, options.samples)
    every = options.checkpoint_steps or max(1, part.steps // _ABOUT)
    if worker.is_main and not begun:
        album.draw(0)
    tuner.run(every, album.draw, quiet=options.work.quiet)
    if worker.is_main:
        result = kept.keep(folder, run, recipe, loss, tuner, specs)
        atomic_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    wait_for_everyone()
    return _result(folder)


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return found


def specs_of(run: Run, shots: int | None = None) -> list[SampleSpec]:
    """What is shown: of each captioned image its id and its prompt, by the recipe's strategy and its own caption.

    Raises HfsynError if captions are missing, or no image can be used.
    """
    check_complete("caption", run.caption_shards(), run)
    # Captions are exchanged only when something is drawn: here a prompt must be true of its image.
    own = run.recipe.with_fields("prompt", pairing="own", images_per_caption=1)
    taken: dict[str, int] = {}
    found = []
    for spec in plan(own, read_captions(run.caption_shards())):
        taken[spec.wnid] = taken.get(spec.wnid, 0) + 1
        if shots is None or taken[spec.wnid] <= shots:
            found.append(spec)
    if not found:
        raise HfsynError(f"None of the images of {run.folder} can be used.", f"See: hfsyn status {run.folder}")
    return found


def wait_for_everyone() -> None:
    """Wait until all processes of a launch are here."""
    if current_worker().world > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise HfsynError(f"{folder} is a file.", "Name a folder for --out.")
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in _OURS and not p.name.startswith("."))
    if strangers:
        said = f"{folder} holds other things ({', '.join(strangers[:3])})."
        raise HfsynError(said, "Choose an empty or new folder: --out DIR.")


def _refuse_other(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds the tuning of another recipe, naming what differs."""
    path = folder / RECIPE
    if not path.is_file():
        return
    there = parse_recipe(read_text(path, "recipe", "It is what was tuned."), str(path))
    apart = {"name": True, "store": True, "source": {"definition", "path"}}  # which change nothing of what is tuned
    if found := differing(there, recipe, apart):
        key, old, new = found[0]
        said = f"{folder} holds another tuning: {key} was {old!r} there and is {new!r} now."
        raise HfsynError(said, "Choose another --out, or delete that folder.")


def _begin(folder: Path, recipe: Recipe, specs: list[SampleSpec]) -> None:
    """Write down what is tuned on; refuse to go on with other images or prompts."""
    lines = "\n".join(f"{spec.source_id}\t{spec.prompt}" for spec in specs)
    inputs = {"images": len(specs), "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    path = folder / INPUTS
    if path.is_file():
        if (there := json.loads(path.read_text(encoding="utf-8"))) != inputs:
            said = (
                f"{folder} was begun with {plural(there['images'], 'image')}, and these or their prompts have changed."
            )
            raise HfsynError(said, "Choose another --out, or delete that folder.")
        return
    atomic_text(folder / RECIPE, dump_recipe(recipe))
    atomic_text(path, json.dumps(inputs) + "\n")
