"""What a tuning leaves behind: weights that plain diffusers loads, a card, the curve of its loss, sheets of samples."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders.files import atomic_text, atomic_write, sha256_of
from builders.variants import get_variant
from hfsyn.cards.facts import source_facts
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.models.loras import FILE
from hfsyn.models.pipelines import call_options, size_of
from hfsyn.recipes.recipe import BUILTIN, Recipe, dump_recipe, published_recipe
from hfsyn.rules import seed_of
from hfsyn.runs.run import Run
from hfsyn.runs.sheets import Row, Tile, contact_sheet, save_png
from hfsyn.runs.specs import SampleSpec
from hfsyn.workers import software

PIPELINE, CARD, SAMPLES, SHEET, CURVE = "pipeline", "README.md", "samples", "samples.png", "loss.png"
FILES = (FILE, PIPELINE, CARD, SAMPLES, SHEET, CURVE)


class Album:
    """The same few prompts and seeds, drawn while a tuning goes on."""

    def __init__(
        self, folder: Path, loss: DenoisingLoss, recipe: Recipe, specs: Sequence[SampleSpec], count: int
    ) -> None:
        self._folder, self._loss, self._recipe = folder, loss, recipe
        by_class = list({spec.wnid: spec for spec in specs}.values())
        self._specs = by_class[:count] if count <= len(by_class) else list(specs[:count])

    def draw(self, step: int) -> None:
        """Draw the samples of a step, and the sheet of all steps so far."""
        import torch

        if not self._specs:
            return
        loss, draw = self._loss, self._recipe.generate
        prompts = [spec.prompt for spec in self._specs]
        seeds = [seed_of(self._recipe.seed, spec.sample_id) for spec in self._specs]
        loss.rest_to(loss.device)
        was_training = loss.network.training
        loss.network.eval()
        with torch.no_grad():
            images = loss.pipe(
                prompts,
                num_inference_steps=draw.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                **size_of(loss.pipe, draw),
                **call_options(loss.pipe, draw, self._recipe.prompt.negative, len(prompts)),
            ).images
        loss.network.train(was_training)
        loss.rest_to("cpu")
        for number, image in enumerate(images):
            save_png(image, self._folder / SAMPLES / f"step-{step:08d}-{number}.png")
        self._sheet()

    def _sheet(self) -> None:
        from PIL import Image

        there = sorted({path.name.split("-")[1] for path in (self._folder / SAMPLES).glob("step-*.png")})
        rows = []
        for number, spec in enumerate(self._specs):
            paths = [self._folder / SAMPLES / f"step-{step}-{number}.png" for step in there]
            tiles = [[Tile(Image.open(path).convert("RGB"))] if path.is_file() else [] for path in paths]
            rows.append(Row(spec.class_name, tiles))
        title = f"{self._recipe.name}: the same prompts and seeds while the generator is tuned"
        sheet = contact_sheet(title, [f"step {int(step):,}" for step in there], rows)
        save_png(sheet, self._folder / SHEET)


def keep(
    folder: Path, run: Run, recipe: Recipe, loss: DenoisingLoss, tuner: Any, specs: Sequence[SampleSpec]
) -> dict[str, Any]:
    """Write weights, curve and card of a tuning that is done; return what ``tuning.json`` holds."""
    weights = _save_weights(folder, loss, full=recipe.tune is not None and recipe.tune.full)
    _curve(folder, tuner.losses)
    tenth = max(1, len(tuner.losses) // 10)
    result = {
        "weights": weights.name,
        "sha256": sha256_of(weights) if weights.is_file() else None,
        "steps": tuner.done,
        "images": len(specs),
        "classes": len(Counter(spec.wnid for spec in specs)),
        "trained": sum(weight.numel() for weight in tuner.weights.values()),
        "loss": {"first": _mean(tuner.losses[:tenth]), "last": _mean(tuner.losses[-tenth:])},
        "finished": time.strftime("%Y-%m-%d"),
        "software": software(),
    }
    atomic_text(folder / CARD, card_text(run, recipe, result))
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _save_weights(folder: Path, loss: DenoisingLoss, *, full: bool) -> Path:
    """The LoRA as the pipeline's own class writes it; or the whole checkpoint."""
    loss.rest_to("cpu")
    if full:
        loss.network.eval()
        loss.pipe.save_pretrained(folder / PIPELINE, safe_serialization=True)
        return folder / PIPELINE
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(loss.network)
    if loss.schedule is not None:
        layers = convert_state_dict_to_diffusers(layers)
    layers = {name: tensor.detach().float().cpu().contiguous() for name, tensor in layers.items()}
    which = "unet" if loss.schedule is not None else "transformer"

    def write(path: Path) -> None:
        loss.pipe.save_lora_weights(path.parent, **{f"{which}_lora_layers": layers}, weight_name=path.name)

    atomic_write(folder / FILE, write)
    return folder / FILE


def _curve(folder: Path, losses: Sequence[float]) -> None:
    """Draw the loss by step, as means of a fiftieth of all steps: single steps say little."""
    from matplotlib.figure import Figure

    width = max(1, len(losses) // 50)
    means = [_mean(losses[first : first + width]) for first in range(0, len(losses), width)]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([min(len(losses), (n + 1) * width) for n in range(len(means))], means, color="#2458a6")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    atomic_write(folder / CURVE, lambda path: figure.savefig(path, format="png", dpi=120))


def card_text(run: Run, recipe: Recipe, result: dict[str, Any]) -> str:
    """The card of the weights: what they were tuned on, from what, and how to use them."""
    public = published_recipe(recipe)
    part, base = public.tune, public.generate
    assert part is not None
    variant = get_variant(recipe.source.variant)
    facts = source_facts(variant)
    name = f"base_model: {base.model}\n" if base.model != BUILTIN and not base.model.startswith("./") else ""
    tags = ["text-to-image", "diffusers", "hfsyn", *([] if part.full else ["lora"])]
    what = "A whole checkpoint" if part.full else f"LoRA weights of rank {part.rank}"
    where = PIPELINE if part.full else "PATH/TO/HFSYN'S/MODEL" if base.model == BUILTIN else base.model
    use = f'pipe = DiffusionPipeline.from_pretrained("{where}")'
    use += "" if part.full else '\npipe.load_lora_weights("PATH/TO/THIS/FOLDER")'
    set_it = f"generate.model=PATH/TO/THIS/FOLDER/{PIPELINE}" if part.full else "generate.lora=PATH/TO/THIS/FOLDER"
    source = f"[{facts['title']}]({facts['page']})" if facts["page"] else facts["title"]
    at = f" at `{base.revision}`" if base.revision else ""
    captions = f"captioned by `{recipe.caption.model}`" if recipe.caption else "without captions"
    return f"""---
{name}library_name: diffusers
pipeline_tag: text-to-image
tags: [{", ".join(tags)}]
---

# {recipe.name}, tuned

{what} for `{base.model}`{at}, tuned with hfsyn on {result["images"]:,} real images of
{result["classes"]:,} classes of {facts["title"]}, {captions}: {result["steps"]:,} steps of {part.batch_size} images.
Images that are drawn with them may resemble those images more than images of the model itself do.

```python
from diffusers import DiffusionPipeline

{use}
```

With hfsyn: `hfsyn build RECIPE --set {set_it}`.

![The same prompts and seeds while the generator was tuned]({SHEET})

![The loss by step]({CURVE})

## Licences

| | |
|---|---|
| real images | {source}: {facts["licence"]} |
| model | that of `{base.model}`, which holds for what is derived from it |

## Recipe

```yaml
{dump_recipe(public).strip()}
```
"""
