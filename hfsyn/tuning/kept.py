"""What a tuning leaves behind: weights that plain diffusers loads, a card, the curve of its loss, sheets of samples."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders.files import atomic_text, atomic_write, sha256_of
from builders.hub import page_of
from hfsyn.hub.repo import HubRepo, LocalFile, check_repo_id
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.models.loras import FILE, TUNING
from hfsyn.progress import teller
from hfsyn.recipes.parts import BY_CLASS
from hfsyn.recipes.recipe import BUILTIN, Recipe, TunePart, dump_recipe, published_recipe
from hfsyn.rules import seed_of
from hfsyn.runs.sheets import Row, Tile, contact_sheet, save_png
from hfsyn.tuning.examples import SMALL, UNREADABLE, Example, Examples, drawn
from hfsyn.tuning.weights import lora_layers
from hfsyn.workers import software

PIPELINE, CARD, SAMPLES, SHEET, CURVE = "pipeline", "README.md", "samples", "samples.png", "loss.png"
RESULT = TUNING
FILES = (FILE, BY_CLASS, PIPELINE, CARD, SAMPLES, SHEET, CURVE)
_HERE = "PATH/TO/THIS/FOLDER"  # in a card, until it is published
_TITLE = 40  # characters of a prompt that stand for its row in a sheet


class Album:
    """The same few prompts and seeds, drawn while a tuning goes on."""

    def __init__(self, folder: Path, recipe: Recipe, tuner: Any, loss: DenoisingLoss, rows: Sequence[Example]) -> None:
        self._folder, self._recipe, self._tuner, self._loss, self._rows = folder, recipe, tuner, loss, rows

    def draw(self, step: int) -> None:
        """Draw the samples of a step, and the sheet of all steps so far."""
        if not self._rows:
            return
        loss = self._loss
        seeds = [seed_of(self._recipe.seed, row.key, purpose="tune-sample") for row in self._rows]
        loss.rest_to(loss.device)
        with self._tuner.average.in_place(), _unchecked(loss.pipe):
            images = drawn(loss, self._recipe, [row.prompts[0] for row in self._rows], seeds)
        loss.rest_to("cpu", self._tuner.working)
        for number, image in enumerate(images):
            save_png(image, self._folder / SAMPLES / f"step-{step:08d}-{number}.png")
        self._sheet()

    def _sheet(self) -> None:
        from PIL import Image

        there = sorted({path.name.split("-")[1] for path in (self._folder / SAMPLES).glob("step-*.png")})
        rows = []
        for number, row in enumerate(self._rows):
            paths = [self._folder / SAMPLES / f"step-{step}-{number}.png" for step in there]
            tiles = [[Tile(Image.open(path).convert("RGB"))] if path.is_file() else [] for path in paths]
            rows.append(Row(row.group or row.prompts[0][:_TITLE], tiles))
        title = f"{self._recipe.name}: the same prompts and seeds while the generator is tuned"
        sheet = contact_sheet(title, [f"step {int(step):,}" for step in there], rows)
        save_png(sheet, self._folder / SHEET)


@contextmanager
def _unchecked(pipe: Any) -> Iterator[None]:
    """Without the safety checker, which paints black what a half-tuned model draws; it stays part of the pipeline."""
    checker = getattr(pipe, "safety_checker", None)
    object.__setattr__(pipe, "safety_checker", None)  # the pipeline itself would note that it has none
    try:
        yield
    finally:
        object.__setattr__(pipe, "safety_checker", checker)


def sampled(rows: Sequence[Example], count: int) -> list[Example]:
    """The examples whose prompts are drawn: one of each class, if there are as many classes."""
    by_class = list({row.group: row for row in rows}.values())
    return (by_class if count <= len(by_class) else list(rows))[:count]


def keep(folder: Path, recipe: Recipe, loss: DenoisingLoss, tuner: Any, examples: Examples) -> dict[str, Any]:
    """Write weights, curve and card of a tuning that is done; return what ``tuning.json`` holds."""
    assert recipe.tune is not None
    with tuner.average.in_place():
        weights = _save_weights(folder, loss, recipe.tune)
    if recipe.tune.full:  # beside the weights, without what differs when they are made again
        atomic_text(weights / TUNING, json.dumps({"tuned_on": _seen(examples)["tuned_on"]}, ensure_ascii=False) + "\n")
    _curve(folder, tuner.losses)
    tenth = max(1, len(tuner.losses) // 10)
    result = {
        "weights": weights.name,
        "sha256": sha256_of(weights) if weights.is_file() else None,
        "steps": tuner.done,
        **_seen(examples),
        "trained": sum(weight.numel() for weight in tuner.weights.values()),
        "loss": {"first": _mean(tuner.losses[:tenth]), "last": _mean(tuner.losses[-tenth:])},
        "seconds": dict(zip(("wall", "cpu"), (round(one, 1) for one in tuner.seconds), strict=True)),
        "finished": time.strftime("%Y-%m-%d"),
        "software": software(),
    }
    atomic_text(folder / CARD, _card(folder, examples, recipe, result))
    return result


def keep_by_class(
    folder: Path,
    recipe: Recipe,
    examples: Examples,
    by_class: Mapping[str, Mapping[str, Any]],
    left_out: dict[str, int],
) -> None:
    """Write the list of the LoRAs, a card and ``tuning.json`` of a tuning of one for each class."""
    files = {
        wnid: {"file": f"classes/{wnid}/{one['weights']}", "sha256": one["sha256"]} for wnid, one in by_class.items()
    }
    atomic_text(folder / BY_CLASS, json.dumps(files, indent=1) + "\n")
    results = list(by_class.values())
    result = {
        "weights": BY_CLASS,
        "sha256": sha256_of(folder / BY_CLASS),
        "steps": sum(one["steps"] for one in results),
        **_seen(replace(examples, left_out={**examples.left_out, **left_out})),
        "trained": sum(one["trained"] for one in results),
        "loss": {key: _mean([one["loss"][key] for one in results]) for key in ("first", "last")},
        "seconds": {key: sum(one["seconds"][key] for one in results) for key in ("wall", "cpu")},
        "finished": time.strftime("%Y-%m-%d"),
        "software": software(),
    }
    atomic_text(folder / CARD, _card(folder, examples, recipe, result))
    atomic_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _seen(examples: Examples) -> dict[str, Any]:
    """What was shown, for ``tuning.json``."""
    unseen = sum(count for why, count in examples.left_out.items() if why in (UNREADABLE, SMALL))
    return {
        "images": len(examples.rows) - unseen,
        "classes": len({row.group for row in examples.rows if row.group}),
        "tuned_on": {key: getattr(examples, key) for key in ("reference", "title", "page", "licence")},
        "left_out": dict(examples.left_out),
    }


def push_tuned(folder: Path, repo_id: str, *, private: bool = False, quiet: bool = False) -> str:
    """Publish what a tuning left behind as a model; return the address of its commit. Running it again continues.

    Raises HfsynError if the name is not valid, the Hub refuses (exit code 3) or does not answer in time (exit code 4).
    """
    repo = HubRepo(check_repo_id(repo_id), repo_type="model", say=teller(quiet))
    whole = folder / PIPELINE  # at the root of the repository, where `from_pretrained` looks for it
    paths = {path.relative_to(whole).as_posix(): path for path in sorted(whole.rglob("*")) if path.is_file()}
    paths |= {path: folder / path for path in (FILE, BY_CLASS, SHEET, CURVE, RESULT)}
    paths |= {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob(f"classes/*/{FILE}"))}
    files = {name: LocalFile(path, sha256_of(path)) for name, path in paths.items() if path.is_file()}
    card = (folder / CARD).read_text(encoding="utf-8")
    files[CARD] = LocalFile.made(card.replace(f"{_HERE}/{PIPELINE}", repo_id).replace(_HERE, repo_id))
    repo.create(private=private)
    return f"{page_of(repo_id, 'model')}/commit/{repo.bring(files, 'Add tuned weights')}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _save_weights(folder: Path, loss: DenoisingLoss, part: TunePart) -> Path:
    """The LoRA as the pipeline's own class writes it; or the whole checkpoint."""
    loss.rest_to("cpu")
    if part.full:
        loss.network.eval()
        loss.pipe.save_pretrained(folder / PIPELINE, safe_serialization=True)
        return folder / PIPELINE
    layers = lora_layers(loss, part)

    def write(path: Path) -> None:
        loss.pipe.save_lora_weights(path.parent, **layers, weight_name=path.name)

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


_PICTURES = {SHEET: "The same prompts and seeds while the generator was tuned", CURVE: "The loss by step"}


def _card(folder: Path, examples: Examples, recipe: Recipe, result: dict[str, Any]) -> str:
    """The card of the weights: what they were tuned on, from what, and how to use them."""
    public = published_recipe(recipe)
    part, base = public.tune, public.generate
    assert part is not None
    name = f"base_model: {base.model}\n" if base.model != BUILTIN and not base.model.startswith("./") else ""
    tags = ["text-to-image", "diffusers", "hfsyn", *([] if part.full else ["lora"])]
    what = "A whole checkpoint" if part.full else f"LoRA weights of rank {part.rank}"
    what += ", one file for each class," if part.per_class else ""
    where = f"{_HERE}/{PIPELINE}" if part.full else "HFSYN/MODELS/GENERATOR" if base.model == BUILTIN else base.model
    use = f'pipe = DiffusionPipeline.from_pretrained("{where}")'
    below = ', subfolder="classes/WNID"' if part.per_class else ""
    use += "" if part.full else f'\npipe.load_lora_weights("{_HERE}"{below})'
    set_it = f"generate.model={_HERE}/{PIPELINE}" if part.full else f"generate.lora={_HERE}"
    source = f"[{examples.title}]({examples.page})" if examples.page else examples.title
    at = f" at `{base.revision}`" if base.revision else ""
    of = f"{result['classes']:,} classes of {examples.title}" if result["classes"] else examples.title
    pictures = "".join(f"![{what}]({name})\n\n" for name, what in _PICTURES.items() if (folder / name).is_file())
    left_out = "".join(f"\nLeft out: {count:,} ({why})." for why, count in result["left_out"].items())
    return f"""---
{name}library_name: diffusers
pipeline_tag: text-to-image
tags: [{", ".join(tags)}]
---

# {recipe.name}, tuned

{what} for `{base.model}`{at}, tuned with hfsyn on {result["images"]:,} real images of
{of}, {examples.told}: {result["steps"]:,} steps of {part.batch_size} images.{left_out}
Images that are drawn with them may resemble those images more than images of the model itself do.

```python
from diffusers import DiffusionPipeline

{use}
```

With hfsyn: `hfsyn build RECIPE --set {set_it}`.

{pictures}## Licences

| | |
|---|---|
| real images | {source}: {examples.licence} |
| model | that of `{base.model}`, which holds for what is derived from it |

## Recipe

```yaml
{dump_recipe(public).strip()}
```
"""
