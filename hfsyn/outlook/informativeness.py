"""How informative a recipe's prompts are, told before anything is generated: by the generator's own denoising loss.

On real images of the source, each with a known noise, the generator predicts that noise under several prompts: none,
the class name, the image's own caption, the caption of another image of its class, and that of an image of another
class with its class word replaced. Where the own caption lowers the loss below that of the class name, captions tell
this generator something that the class name does not; where it does not, images made from them can hardly be better.
"""

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builders.errors import brief
from builders.variants import ClassInfo
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.captioner import Captioner
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
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
from hfsyn.runs.specs import Caption, SampleSpec, plan
from hfsyn.runs.stage import read_captions
from hfsyn.workers import pick_device

NONE, CLASS, OWN = "no prompt", "class name", "own caption"
SAME, OTHER = "caption of the same class", "caption of another class"
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
    by_class: dict[str, Gain]  # of the own captions, by class name, the least informative first
    examples: dict[str, str]  # by kind of prompt, for the first image
    pairing: str = "own"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """What follows, in words."""
        if OWN not in self.gains:
            return "The prompts of this recipe hold nothing about an image but its class: there is nothing to compare."
        own, same = self.gains[OWN], self.gains.get(SAME)
        if own.sign < 0:
            return (
                f"Uninformative: these captions mislead the generator. They raise its loss by {-own.mean:.4f} ± "
                f"{own.error or 0:.4f} over that of the class name."
            )
        if own.sign == 0:
            return (
                f"Uninformative, as far as {self.images} images show: these captions tell the generator nothing beyond "
                f"the class name ({own.text()}, which does not differ from 0 by two standard errors)."
            )
        said = (
            f"Informative: these captions tell the generator more than the class name. They lower its loss by "
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

    Images are the first ones of the plan's order, spread over the classes; the noise of an image depends on the
    recipe's seed and its id alone, and the timesteps lie evenly between image and noise, so that neither the batch size
    nor the device changes more than the last digits.

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
    # Before the captions, which may take long.
    loss = DenoisingLoss(recipe.generate, pick_device(options.device), allow_pickle=options.allow_pickle_weights)
    with tempfile.TemporaryDirectory(prefix="hfsyn-probe-") as temporary:
        folder = Path(temporary)
        whole, chosen = first_images(own, images, folder)
        run = run_of(folder / "captions", whole, max(1, len(chosen)), chosen)
        caption(run, options=options, captioner=captioner)
        captions = sorted(read_captions(run.caption_shards()), key=_order)
        if not captions:
            raise HfsynError(f"None of the {len(chosen)} images that were tried can be read.", "Check source.path.")
        told = prompts_of(run.recipe, captions, run.classes)
        with Progress("measuring", len(captions), quiet=options.quiet) as progress:
            found = _measured(loss, run, captions, told, draws, progress)
    return _summed_up(recipe, captions, run.classes, told, found, draws)


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

    def written(texts: Sequence[str | None]) -> list[str | None]:
        found: list[str | None] = []
        for one, info, text in zip(captions, infos, texts, strict=True):
            seed = seed_of(recipe.seed_for(info.wnid), sample_id_of(one.source_id, 0), purpose="prompt")
            found.append(strategy.write(info, text, random.Random(seed)) if text else None)
        return found

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
    return found | {kind: prompts for kind, texts in kinds.items() if any(prompts := written(texts))}


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
) -> dict[str, list[float | None]]:
    """The mean loss over the draws of each kind of prompt, for each image."""
    import torch

    pictures = SourcePictures(run, loss.fit)
    specs = {spec.source_id: spec for spec in plan(run.recipe, captions)}
    found: dict[str, list[float | None]] = {kind: [] for kind in told}
    batch = run.recipe.generate.batch_size
    for start in range(0, len(captions), batch):
        some = captions[start : start + batch]
        latents = loss.latents(pictures(_specs(specs, some)))
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
        for kind, prompts in told.items():
            there = prompts[start : start + batch]
            found[kind] += [None if p is None else s for p, s in zip(there, sums[kind], strict=True)]
        progress.add(len(some))
    return found


def _specs(specs: Mapping[str, SampleSpec], captions: Sequence[Caption]) -> list[SampleSpec]:
    return [specs[of.source_id] for of in captions]


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
    for one, a, b in zip(captions, base, found.get(OWN, [None] * len(base)), strict=True):
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
