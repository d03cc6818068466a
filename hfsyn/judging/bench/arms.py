"""What the page says about the arms themselves: what they are trained on, their run folders, and pictures of them."""

from __future__ import annotations

from os.path import relpath
from pathlib import Path
from typing import Any

from PIL import Image

from builders.runs import layout, run_files
from builders.variants import VARIANTS, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.matrix import Matrix, place
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.outlook.informativeness import kept_in
from hfsyn.pages.html import picture
from hfsyn.recipes.loading import dump_part
from hfsyn.recipes.recipe import published_recipe
from hfsyn.recipes.strategies import get_strategy
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import image_of
from hfsyn.runs.sheets import shared_samples

_SAMPLES = 3  # real images per class
_CLASSES = 12  # classes on a contact sheet


def about(matrix: Matrix, arm: str) -> str:
    """What an arm is trained on, in a few words."""
    found = []
    for text in matrix.arms[arm].train:
        named = place(text, matrix.seeds[0])
        try:
            named = parse_dataset(named).place
            prompt = published_recipe(load_run(named).recipe).prompt
            across = "" if prompt.pairing == "own" else " with captions of other classes"
            found.append(f"synthetic images from the prompt “{get_strategy(prompt.strategy).template}”{across}")
        except (HfsynError, OSError):
            found.append(
                f"the real images of {named}" if named in (*VARIANTS, "{variant}") else f"images of {Path(named).name}"
            )
    return " and ".join(found)


def _run_folders(matrix: Matrix, seed: int) -> dict[str, Path]:
    """The run folder of each arm that was trained on exactly one, which is here."""
    places = {name: Path(place(arm.train[0], seed)).expanduser() for name, arm in matrix.arms.items()}
    return {
        name: path for name, path in places.items() if len(matrix.arms[name].train) == 1 and layout.is_run_folder(path)
    }


def told_beforehand(matrix: Matrix) -> dict[str, str]:
    """How informative the prompts of an arm are, of those of whose runs it was measured: of the first such seed."""
    found: dict[str, str] = {}
    for seed in matrix.seeds:
        for arm, path in _run_folders(matrix, seed).items():
            if arm not in found and (kept := kept_in(path)) is not None:
                found[arm] = kept.gain.text().replace("-", "−")
    return found


def sheet(matrix: Matrix, public: bool) -> dict[str, Any] | None:
    """Real images with what each run of the first seed made of them; None if there is nothing to show.

    For the public the real ones are left out unless they are our own drawings.
    """
    arms = _run_folders(matrix, matrix.seeds[0])
    try:
        runs = [load_run(path) for path in arms.values()]
        found = shared_samples(runs, per_class=_SAMPLES, max_classes=_CLASSES) if runs else []
    except (HfsynError, OSError):
        return None  # the source has moved, or the runs are over other images: the page needs no pictures
    classes = []
    for info, samples in found:
        lines: list[dict[str, Any]] = []
        if not public or _is_ours(runs[0]):
            real = [_picture(sample.real, f"real {info.name}", "a real image") for sample in samples]
            lines.append({"arm": "real", "images": real})
        for number, arm in enumerate(arms):
            rows = [sample.rows[number] for sample in samples]
            made = [
                _picture(image_of(row), f"{arm}: {info.name}, made from: {row['prompt']}", row["prompt"])
                for row in rows
            ]
            lines.append({"arm": arm, "images": made})
        classes.append({"name": info.name, "lines": lines})
    return {"classes": classes, "seed": matrix.seeds[0]} if classes else None


def _is_ours(run: Run) -> bool:
    """Whether the real images of a run are our own drawings, which have no licence of others."""
    return get_variant(run.recipe.source.variant).drawn


def _picture(image: Image.Image, alt: str, title: str) -> dict[str, Any]:
    return {**picture(image), "alt": alt, "title": title}


def runs(matrix: Matrix, root: Path | None) -> list[dict[str, Any]]:
    """The manifest and the recipe of every finished run that an arm was trained on; without `root` for the public."""
    found = []
    for seed in matrix.seeds:
        for arm, path in _run_folders(matrix, seed).items():
            manifest = run_files.finished(path)
            if manifest is None:
                continue
            run = load_run(path)
            made = run.recipe.generate
            found.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "manifest": manifest.raw,
                    "fingerprint": run.fingerprint[:12],
                    "recipe": _recipe_text(run, root),
                    "link": None if root is None else relpath(path / layout.RECIPE, root),
                    "generator": f"{made.model}, {made.steps} steps, guidance {made.guidance_scale:g}",
                }
            )
    return found


def _recipe_text(run: Run, root: Path | None) -> str:
    if root is None:
        return dump_part(published_recipe(run.recipe))
    return (run.folder / layout.RECIPE).read_text(encoding="utf-8")
