"""Tuning from recipe to weights: captions, the cache, the steps, and what is kept. Running it again continues."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from builders.errors import plural
from builders.files import atomic_text, check_own_folder
from builders.stores.copies import on_disk
from builders.yaml import read_text
from hfsyn.building import work
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.models.pipelines import NETWORKS
from hfsyn.recipes.loading import differing
from hfsyn.recipes.parts import PromptPart
from hfsyn.recipes.recipe import Recipe, TunePart, dump_recipe, is_content_hash, parse_recipe
from hfsyn.rules import seed_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.pins import pin_generator
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run
from hfsyn.tuning import kept
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.examples import Examples, of_dataset, of_run, pinned_dataset, prior
from hfsyn.tuning.kept import RESULT
from hfsyn.tuning.loop import CHECKPOINTS, Deck, Tuner, arithmetic, check_division, together
from hfsyn.tuning.weights import check_targets, without_lora
from hfsyn.workers import current_worker, pick_device

RECIPE, RUN, CACHE, INPUTS = "tuning.yaml", "run", "cache", "inputs.json"
PRIOR = "prior"  # below the cache
CLASSES = "classes"
_OURS = {CLASSES, RECIPE, RUN, CACHE, INPUTS, RESULT, CHECKPOINTS, *kept.FILES}
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
    options, folder = options or TuneOptions(), on_disk(out)
    part = recipe.tune or TunePart()
    if recipe.generate.lora is not None:
        said = f"generate.lora is {recipe.generate.lora!r}, and what is tuned is the model itself."
        raise HfsynError(said, "--set generate.lora=null; the new LoRA takes its place.")
    check_division(part, options.accumulation)
    check_own_folder(folder, _OURS, "a tuning")
    if current_worker().world > 1:
        pick_device(options.work.device)  # they meet before one of them can stop: the others would wait for it
    if part.dataset is not None:
        part = pinned_dataset(part)
        recipe = recipe if run is not None else pin_generator(recipe)
    elif run is None:
        run = prepare(recipe.model_copy(update={"tune": None}), folder / RUN)
    recipe = (run.recipe if run is not None else recipe).model_copy(update={"tune": part})
    there = _begun(folder, recipe)
    if there is not None and there.dataset == part.dataset and _is_done(folder):
        return _result(folder)  # which may be published when its images are gone
    examples = _examples(run, part, options)
    _begin(folder, recipe, examples)
    if _is_done(folder):
        return _result(folder)
    loss = _loaded(recipe, options)
    check_targets(loss, part)
    decks, left_out = _decks(folder, recipe, examples, loss, options)
    if part.per_class:
        _tune_by_class(folder, recipe, loss, decks, examples, left_out, options)
    else:
        _tune_one(folder, recipe, loss, decks, replace(examples, left_out={**examples.left_out, **left_out}), options)
    return _result(folder)


def _tune_by_class(
    folder: Path,
    recipe: Recipe,
    loss: DenoisingLoss,
    decks: Sequence[Deck],
    examples: Examples,
    left_out: dict[str, int],
    options: TuneOptions,
) -> None:
    """A LoRA for each class, one after another, and the list of them."""
    assert recipe.tune is not None
    by_class: dict[str, list[int]] = {}
    for number in decks[0].numbers:
        by_class.setdefault(examples.rows[number].wnid, []).append(number)
    found = {}
    for wnid, numbers in sorted(by_class.items()):
        place = folder / CLASSES / wnid
        if not _is_done(place):
            own = replace(examples, rows=[examples.rows[number] for number in numbers], left_out={})
            few = [Deck(decks[0].cache, numbers, recipe.seed), *decks[1:]]
            _tune_one(place, recipe, loss, few, own, options)
            without_lora(loss, recipe.tune)
        found[wnid] = _result(place)
    if current_worker().is_main:
        kept.keep_by_class(folder, recipe, examples, found, left_out)
    wait_for_everyone()


def _tune_one(
    folder: Path, recipe: Recipe, loss: DenoisingLoss, decks: Sequence[Deck], examples: Examples, options: TuneOptions
) -> None:
    """All steps of one LoRA, or of the whole network, and what is kept of it."""
    assert recipe.tune is not None
    worker, steps = current_worker(), recipe.tune.steps
    tuner = Tuner(recipe, loss, decks, folder, parts=options.accumulation)
    loss.rest_to("cpu", tuner.working)  # what is only needed to draw, while the others are tuned
    if options.checkpointing:
        loss.network.enable_gradient_checkpointing()
    if (begun := tuner.resume()) and worker.is_main and not options.work.quiet:
        print(f"continuing after step {begun} of {steps}", file=sys.stderr)
    album = kept.Album(folder, recipe, tuner, loss, kept.sampled(examples.rows, options.samples))
    every = options.checkpoint_steps or max(1, steps // _ABOUT)
    if worker.is_main and not begun:
        album.draw(0)
    tuner.run(every, album.draw, quiet=options.work.quiet)
    if worker.is_main:
        result = kept.keep(folder, recipe, loss, tuner, examples)
        atomic_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        rmtree(folder / CHECKPOINTS, ignore_errors=True)  # several times the weights, and of no more use
    wait_for_everyone()


def _examples(run: Run | None, part: TunePart, options: TuneOptions) -> Examples:
    if part.dataset is not None:
        return of_dataset(part)
    assert run is not None
    work(run, ("caption",), options.work)
    return of_run(run, part)


def _loaded(recipe: Recipe, options: TuneOptions) -> DenoisingLoss:
    """The generator on its device, in the arithmetic of the steps; with random weights, if it is to begin so."""
    part, texts = recipe.tune or TunePart(), ("text_encoder", "text_encoder_2")
    names = (*NETWORKS, *(texts if part.text_encoder else ()))
    fresh = {name: seed_of(recipe.seed, name, purpose="tune-begin") for name in names if part.from_config}
    dtype = "float32" if part.full else arithmetic(recipe)
    return DenoisingLoss(
        recipe.generate.model_copy(update={"dtype": dtype}),
        pick_device(options.work.device),
        allow_pickle=options.work.allow_pickle_weights,
        fresh=fresh,
        negative=recipe.prompt.negative,
    )


def _decks(
    folder: Path, recipe: Recipe, examples: Examples, loss: DenoisingLoss, options: TuneOptions
) -> tuple[list[Deck], dict[str, int]]:
    """The real images and the prior ones, encoded; and how many of the real ones are left out, by reason."""
    part, decks, left_out = recipe.tune or TunePart(), list[Deck](), dict[str, int]()
    drawn = prior(recipe, examples)  # at the resolution, so that there is nothing to crop
    for one, name, weight, crops in ((examples, "", 1.0, part.crops), (drawn, PRIOR, part.prior_weight, 1)):
        if one is None:
            continue
        cache = Cache(folder / CACHE / name, one, flip=part.flip, texts=not part.text_encoder, crops=crops)
        cache.fill(loss, quiet=options.work.quiet)
        wait_for_everyone()
        shown, why = cache.usable()
        said = ", ".join(f"{count} ({reason})" for reason, count in why.items())
        if not shown:
            width, height = loss.size
            hint = f"The resolution is {width}x{height}: --set generate.width=... and height, or tune.enlarge=true"
            hint = "Name other tune.prior_prompts, or set generate.safety_checker to false." if name else hint
            raise HfsynError(f"None of the images of {one.title} is shown: {said}.", hint)
        if why and current_worker().is_main:
            print(f"hfsyn: left out: {said}", file=sys.stderr)
        left_out |= why
        decks.append(Deck(cache, shown, recipe.seed, weight=weight, name=name))
    return decks, left_out


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return found


def _is_done(folder: Path) -> bool:
    """Whether a tuning came to its end, and its weights are still there."""
    if not (folder / RESULT).is_file():
        return False
    weights = folder / str(_result(folder)["weights"])
    names = json.loads(weights.read_text(encoding="utf-8")) if weights.is_file() and weights.suffix == ".json" else {}
    return weights.exists() and all((folder / one["file"]).is_file() for one in names.values())


def wait_for_everyone() -> None:
    """Wait until all processes of a launch are here. Raises HfsynError if one has stopped."""
    if current_worker().world > 1:
        from accelerate import PartialState

        with together():
            PartialState().wait_for_everyone()


def _begun(folder: Path, recipe: Recipe) -> TunePart | None:
    """The tuning that a folder holds, None if there is none. Refuses that of another recipe, naming what differs."""
    path = folder / RECIPE
    if not path.is_file():
        return None
    there = parse_recipe(read_text(path, "recipe", "It is what was tuned."), str(path))
    # What changes nothing of what is tuned, and where things lie here whose content is known.
    apart: dict[str, Any] = {"name": True, "store": True, "source": {"definition", "path"}}
    if is_content_hash(recipe.generate.revision):
        apart["generate"] = {"model"}
    if recipe.tune is not None and recipe.tune.dataset is not None:
        apart |= {"source": True, "caption": True, "prompt": PromptPart.model_fields.keys() - {"negative"}}
        if recipe.tune.dataset_revision is None:
            apart["tune"] = {"dataset"}
    if found := differing(there, recipe, apart):
        key, old, new = found[0]
        said = f"{folder} holds another tuning: {key} was {old!r} there and is {new!r} now."
        raise HfsynError(said, "Choose another --out, or delete that folder.")
    return there.tune


def _begin(folder: Path, recipe: Recipe, examples: Examples) -> None:
    """Write down what is tuned on; in every process, refuse to go on with other images or prompts."""
    inputs = {"images": len(examples.rows), "sha256": examples.digest}
    path = folder / INPUTS
    if path.is_file():
        if (there := json.loads(path.read_text(encoding="utf-8"))) != inputs:
            said = (
                f"{folder} was begun with {plural(there['images'], 'image')}, and these or their prompts have changed."
            )
            raise HfsynError(said, "Choose another --out, or delete that folder.")
        return
    if not current_worker().is_main:
        return
    atomic_text(folder / RECIPE, dump_recipe(recipe))
    atomic_text(path, json.dumps(inputs) + "\n")
