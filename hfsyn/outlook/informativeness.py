"""How informative a recipe's prompts are, told before anything is generated: by the generator's own denoising loss.

On real images of the source, each with a known noise, the generator predicts that noise under several prompts: none,
the class name, the image's own caption, the caption of another image of its class, and that of an image of another
class with its class word replaced. Where the own caption lowers the loss below that of the class name, captions tell
this generator something that the class name does not. That is not yet what a classifier gains from the images:
`scripts/check_informativeness.py` compares the two.

Several processes share the images in batches on a fixed grid, caption and measure each its own, and put the captions
and the losses together: the numbers do not depend on how many there are, but for the last digits.
"""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from builders.errors import brief
from builders.files import atomic_text
from builders.runs import layout
from builders.variants import ClassInfo
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.captioner import Captioner
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss, OtherFamilyError
from hfsyn.images.generate_stage import SourcePictures
from hfsyn.outlook.probe import first_images, run_of
from hfsyn.progress import Progress
from hfsyn.recipes.parts import strategy_of
from hfsyn.recipes.recipe import Recipe
from hfsyn.recipes.strategies import get_strategy
from hfsyn.rules import order_of, sample_id_of, seed_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.pairing import Told
from hfsyn.runs.run import Run
from hfsyn.runs.specs import Caption, plan
from hfsyn.runs.stage import read_captions
from hfsyn.workers import current_worker, pick_device

T = TypeVar("T")
NONE, CLASS, OWN = "no prompt", "class name", "own caption"
SAME, OTHER = "caption of the same class", "caption of another class"
PROMPT = "own prompt"
"""Of a recipe without texts whose prompt is not the class name's."""
_ERRORS = 2.0  # standard errors by which a difference must exceed zero to be called one


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much a kind of prompt lowers the denoising loss below that of the class name; above 0 is better."""

    mean: float
    error: float | None  # standard error of the mean over images; None for a single image
    images: int

    def text(self) -> str:
        """For people."""
        return f"{self.mean:+.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")

    @property
    def sign(self) -> int:
        """1 or -1 if it differs from zero by more than two standard errors, else 0."""
        if self.error is None or abs(self.mean) <= _ERRORS * self.error:
            return 0
        return 1 if self.mean > 0 else -1


@dataclass(frozen=True, slots=True)
class Informativeness:
    """What was measured."""

    recipe: str
    captioner: str | None  # None if the recipe has no texts
    generator: str
    images: int
    draws: int
    loss: float  # of the class name: mean squared error per value of the latents
    gains: dict[str, Gain]  # by kind of prompt
    by_class: dict[str, Gain]  # of the own captions or prompts, by class name, the least informative first
    examples: dict[str, str]  # by kind of prompt, for the first image
    pairing: str = "own"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `from_dict`."""
        return {**asdict(self), "gain": asdict(self.gain), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Informativeness":
        """What `as_dict` gave; raises KeyError or TypeError if it is something else."""
        fields = {name: stored[name] for name in cls.__slots__}
        gains = {name: {kind: Gain(**gain) for kind, gain in fields[name].items()} for name in ("gains", "by_class")}
        return cls(**fields | gains)

    @property
    def gain(self) -> Gain:
        """Of the prompts from which the recipe's images are made, whosever captions they have; 0 for class names."""
        kinds = (OTHER, OWN, PROMPT) if self.pairing != "own" else (OWN, PROMPT)
        return next((self.gains[kind] for kind in kinds if kind in self.gains), Gain(0.0, 0.0, self.images))

    @property
    def verdict(self) -> str:
        """What follows, in words."""
        own, same = self.gains.get(OWN) or self.gains.get(PROMPT), self.gains.get(SAME)
        if own is None:
            return "The prompts of this recipe hold nothing about an image but its class: there is nothing to compare."
        these = "these captions" if OWN in self.gains else "these prompts"
        if own.sign < 0:
            return (
                f"Uninformative: {these} mislead the generator. They raise its loss by {-own.mean:.4f} ± "
                f"{own.error or 0:.4f} over that of the class name."
            )
        if own.sign == 0:
            return (
                f"Uninformative, as far as {self.images} images show: {these} tell the generator nothing beyond "
                f"the class name ({own.text()}, which does not differ from 0 by two standard errors)."
            )
        said = (
            f"Informative: {these} tell the generator more than the class name. They lower its loss by "
            f"{own.mean:.4f} ± {own.error:.4f}, {100 * own.mean / self.loss:.1f} %."
        )
        if same is not None and same.mean >= own.mean:
            said += (
                " Yet the caption of another image of the class does as well: they describe the class, not the image."
            )
        if self.pairing != "own":
            said += " The recipe gives each image the caption of another class, so that its images are not like these."
        return said

    def text(self) -> str:
        """For people: a table, the classes whose captions tell least, and the verdict."""
        lines = [
            f"recipe      {self.recipe}: captions of {self.captioner or 'nobody'}, drawn by {self.generator}",
            f"measured    {self.images} real images, {self.draws} noises each; "
            f"the loss with the class name is {self.loss:.4f}",
            "gain        over the class name, mean ± standard error",
        ]
        wide = max(map(len, self.gains))
        lines += [
            f"  {kind:{wide}}  {gain.text()}  ({brief(self.examples[kind])})" for kind, gain in self.gains.items()
        ]
        if len(self.by_class) > 1:
            worst = list(self.by_class.items())[:3]
            lines.append(f"least told  {', '.join(f'{name} {gain.text()}' for name, gain in worst)}")
        return "\n".join([*lines, self.verdict])


def measure(
    recipe: Recipe,
    images: int = 200,
    *,
    draws: int = 4,
    options: WorkOptions | None = None,
    captioner: Captioner | None = None,
) -> Informativeness:
    """Measure how much each kind of prompt tells a recipe's generator about real images of its source.

    Called in every process of a launch, which all return the same. Images are the first ones of the plan's order,
    spread over the classes; the noise of an image depends on the recipe's seed and its id alone, and the timesteps lie
    evenly between image and noise, so that neither the batch size, nor the device, nor the number of processes changes
    more than the last digits.

    Args:
        recipe: its source, captioner, strategy and generator are used; its pairing is not.
        images: real images to measure on, >= 2; a source with fewer gives what it has.
        draws: noises for each image and prompt, each at a timestep of its own, >= 1.
        options: device, captions, progress, and how weights are read.
        captioner: in place of the recipe's (for tests).

    Raises:
        HfsynError: as a run of the recipe would; no image can be read; or the loss of this generator cannot be
            measured.
    """
    options = options or WorkOptions()
    own = recipe.with_fields("prompt", pairing="own", images_per_caption=1)
    # Before the captions, which may take long. Here the processes of a launch meet.
    loss = DenoisingLoss(recipe.generate, pick_device(options.device), allow_pickle=options.allow_pickle_weights)
    batch = recipe.caption.batch_size if recipe.caption is not None else recipe.generate.batch_size
    with tempfile.TemporaryDirectory(prefix="hfsyn-probe-") as temporary:
        folder = Path(temporary)
        whole, chosen = first_images(own, images, folder)
        run = run_of(folder / "captions", whole, batch, _mine(chosen, batch))
        caption(run, options=options, captioner=captioner)
        mine = sorted(read_captions(run.caption_shards()), key=_order)
        captions = sorted(_of_all(mine), key=_order)
        if not captions:
            raise HfsynError(f"None of the {len(chosen)} images that were tried can be read.", "Check source.path.")
        told = prompts_of(run.recipe, captions, run.classes)
        quiet = options.quiet or not current_worker().is_main
        with Progress("measuring", len(mine), quiet=quiet) as progress:
            places = {of.source_id: place for place, of in enumerate(captions)}
            asked = {kind: [prompts[places[of.source_id]] for of in mine] for kind, prompts in told.items()}
            found = _measured(loss, run, mine, asked, draws, progress)
    losses = dict(_of_all([*found.items()]))
    by_kind = {kind: [losses[of.source_id][kind] for of in captions] for kind in told}
    return _summed_up(recipe, captions, run.classes, told, by_kind, draws)


def told_beforehand(recipe: Recipe, images: int, options: WorkOptions) -> Informativeness | str:
    """As `measure`, with a sentence in place of the error where the generator is of another family."""
    try:
        return measure(recipe, images, options=options)
    except OtherFamilyError as error:
        return f"Not measured: {error.message}"


def keep(found: Informativeness, file: Path) -> None:
    """Write what was measured as JSON: of a run to the file of that name in its folder, where a report finds it."""
    atomic_text(file, json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n")


def kept_in(run: Path) -> Informativeness | None:
    """What was measured of a run and kept in its folder; None if there is nothing, or what there is cannot be read."""
    try:
        stored = json.loads((run / layout.INFORMATIVENESS).read_text(encoding="utf-8"))
        return Informativeness.from_dict(stored)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mine(lines: Sequence[T], batch: int) -> list[T]:
    """This process's share of the images, in whole batches."""
    worker = current_worker()
    return [line for place, line in enumerate(lines) if place // batch % worker.world == worker.rank]


def _of_all(items: list[T]) -> list[T]:
    """The items of all processes of a launch."""
    if current_worker().world == 1:
        return items
    from accelerate.utils import gather_object

    return list(gather_object(items))


def _order(of: Caption) -> bytes:
    return order_of(sample_id_of(of.source_id, 0))


def prompts_of(
    recipe: Recipe, captions: Sequence[Caption], classes: Mapping[str, ClassInfo]
) -> dict[str, list[str | None]]:
    """The prompt of each kind for each image, side by side; None if there is none, and a kind that no image has is left
    out: without texts there are only the empty prompt and the class name.
    """
    strategy, infos = strategy_of(recipe.prompt), [classes[of.wnid] for of in captions]
    texts = [of.text for of in captions]

    def prompt(number: int, text: str | None) -> str:
        sample, wnid = sample_id_of(captions[number].source_id, 0), captions[number].wnid
        seed = seed_of(recipe.seed_for(wnid), sample, purpose="prompt")
        return strategy.write(infos[number], text, random.Random(seed))

    def written(texts: Sequence[str | None]) -> list[str | None]:
        return [prompt(number, text) if text else None for number, text in enumerate(texts)]

    found: dict[str, list[str | None]] = {
        NONE: [""] * len(captions),
        CLASS: [get_strategy("basic").write(info, None, random.Random(0)) for info in infos],
    }
    exchanged = Told([of.source_id for of in captions], infos, texts, {}, recipe.seed)
    others = [exchanged.of(number) for number in range(len(captions))]
    wnid_of = {of.source_id: of.wnid for of in captions}
    kinds = {
        OWN: texts,
        SAME: [texts[number] if number is not None else None for number in _next_of_class(captions)],
        OTHER: [
            text if whose is not None and wnid_of[whose] != of.wnid else None
            for of, (text, _, whose) in zip(captions, others, strict=True)
        ],
    }
    found |= {kind: prompts for kind, texts in kinds.items() if any(prompts := written(texts))}
    if not any(texts):
        own: list[str | None] = [prompt(number, None) for number in range(len(captions))]
        found |= {PROMPT: own} if own != found[CLASS] else {}
    return found


def _next_of_class(captions: Sequence[Caption]) -> list[int | None]:
    """For each image the number of the next one of its class, after the last the first; None if it is the only one."""
    members: dict[str, list[int]] = {}
    for number, one in enumerate(captions):
        members.setdefault(one.wnid, []).append(number)
    following: list[int | None] = [None] * len(captions)
    for numbers in members.values():
        for number, after in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            following[number] = after if after != number else None
    return following


def _measured(
    loss: DenoisingLoss,
    run: Run,
    captions: Sequence[Caption],
    told: Mapping[str, Sequence[str | None]],
    draws: int,
    progress: Progress,
) -> dict[str, dict[str, float | None]]:
    """The mean loss over the draws under each kind of prompt, by the image's id; `told` are its prompts."""
    import torch

    if not captions:  # more processes than batches
        return {}
    pictures = SourcePictures(run, loss.fit)
    specs = {spec.source_id: spec for spec in plan(run.recipe, captions)}
    found: dict[str, dict[str, float | None]] = {}
    batch = run.recipe.generate.batch_size
    for start in range(0, len(captions), batch):
        some = captions[start : start + batch]
        latents = loss.latents(pictures([specs[of.source_id] for of in some]))
        sums = {kind: [0.0] * len(some) for kind in told}
        for draw in range(draws):
            seeds = [seed_of(run.recipe.seed, c.source_id, draw, purpose="informativeness") for c in some]
            noise = torch.stack(
                [torch.randn(latents.shape[1:], generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
            )
            for kind, prompts in told.items():
                asked = [prompt or "" for prompt in prompts[start : start + batch]]
                for place, value in enumerate(loss.losses(latents, noise, (draw + 0.5) / draws, asked)):
                    sums[kind][place] += value / draws
        for place, of in enumerate(some):
            found[of.source_id] = {
                kind: None if prompts[start + place] is None else sums[kind][place] for kind, prompts in told.items()
            }
        progress.add(len(some))
    return found


def _summed_up(
    recipe: Recipe,
    captions: Sequence[Caption],
    classes: Mapping[str, ClassInfo],
    told: Mapping[str, Sequence[str | None]],
    found: Mapping[str, Sequence[float | None]],
    draws: int,
) -> Informativeness:
    base = [value for value in found[CLASS] if value is not None]
    gains = {
        kind: _gain([a - b for a, b in zip(base, values, strict=True) if b is not None])
        for kind, values in found.items()
        if kind != CLASS
    }
    by_class: dict[str, list[float]] = {}
    own = found.get(OWN) or found.get(PROMPT) or [None] * len(base)
    for one, a, b in zip(captions, base, own, strict=True):
        if b is not None:
            by_class.setdefault(classes[one.wnid].name, []).append(a - b)
    sorted_gains = sorted(((name, _gain(values)) for name, values in by_class.items()), key=lambda item: item[1].mean)
    texts = recipe.caption.model if recipe.caption is not None else recipe.prompt.captions_file
    return Informativeness(
        recipe=recipe.name,
        captioner=texts if OWN in gains else None,
        generator=recipe.generate.model,
        images=len(captions),
        draws=draws,
        loss=sum(base) / len(base),
        gains=gains,
        by_class=dict(sorted_gains),
        examples={kind: next((prompt for prompt in told[kind] if prompt is not None), "") for kind in gains},
        pairing=recipe.prompt.pairing,
    )


def _gain(differences: Sequence[float]) -> Gain:
    count = len(differences)
    mean = sum(differences) / count
    if count == 1:
        return Gain(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1)
    return Gain(mean, (variance / count) ** 0.5, count)
