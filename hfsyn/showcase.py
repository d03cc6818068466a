"""The demo: the whole path on drawings with the small models, ending in a table and a page.

The question is the paper's, in miniature, and both halves of its answer are shown. `shapes-context` has drawings whose
colours and textures mostly go with the class, as surroundings do in photographs. A classifier is trained on real
drawings, on what the small Stable Diffusion makes of class names, of the captions of these same drawings, and of these
captions exchanged between the classes. Which reads new drawings best, if their contexts go with the class as before
(`shapes-context`), and which if the contexts say nothing about the class (`shapes`)?

**Fixed before the first run, and not changed after it:**

- 300 images per arm, 30 of each class: the first 30 training drawings of each class, and one image for each of them;
- seeds 0 to 4, of the classifier and of the generation alike: each seed has synthetic sets of its own, built with
  ``seed: S`` (``full``: seeds 0 to 14, and 10 images of each class besides, for a scaling curve);
- the synthetic sets are the shipped recipes `shapes-basic`, `shapes-cip` and `shapes-cip-across` on `shapes-context`
  (12 steps, guidance 2.5); captions do not depend on the seed, and are made once;
- the classifier: timm's `test_resnet` at 32 x 32 pixels with output stride 8, `TRAINING` below, the last weights. It
  was chosen by its time and by its accuracy when trained on real drawings, before any synthetic image was looked at;
- the tests are the whole test splits of both variants, 2,000 drawings each; chance is 10 %.

Of the first seed's captions it is also measured, on 50 real drawings, how much they tell the generator; the page says
it beside the accuracies.

An earlier design compared arms on `shapes` too and let a classifier trained on real drawings read the synthetic images.
Both are gone: on `shapes` no context goes with a class, so that captions have nothing to carry over; and a reader who
has learnt the contexts says nothing about labels where the contexts are exchanged.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from builders.runs import layout
from builders.stores.copies import on_disk
from builders.variants import get_variant
from hfsyn.building import build
from hfsyn.judging.bench.cells import bench, failures
from hfsyn.judging.bench.matrix import CELLS
from hfsyn.judging.bench.page import write_page
from hfsyn.judging.bench.task_pool import Submit, task_pool
from hfsyn.outlook.informativeness import keep, kept_in, measure
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.runs.sheets import compare_runs, save_png
from hfsyn.runs.status import status
from hfsyn.workers import check_device

VARIANT = "shapes-context"
LIMIT, FULL_LIMITS = 30, (10, 30)  # images of each class
SEEDS, FULL_SEEDS = range(5), range(15)
MEASURED = 50  # real drawings on which it is told beforehand what captions are worth
MODEL = "test_resnet"
RECIPES = {"class names": "shapes-basic", "captions": "shapes-cip", "captions across classes": "shapes-cip-across"}
"""The synthetic arms, and the recipe of each."""
TESTS = {"contexts as in training": VARIANT, "contexts independent of the class": "shapes"}
"""The variants whose test splits are read; the first is the headline."""
COMPARED = [["captions", "class names"], ["captions across classes", "captions"], ["captions", "real"]]
"""What the verdict is about: do captions help, do they carry contexts over, and what is missing to real drawings?"""
TRAINING: dict[str, Any] = {
    "model": {"image_size": 32, "options": {"output_stride": 8}, "channels_last": False},
    "augment": {"scale": [0.8, 1.0], "ratio": [1.0, 1.0], "flip": 0.5, "color_jitter": 0.0, "label_smoothing": 0.1},
    "optimise": {
        "epochs": 15,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 0.004,
        "weight_decay": 0.05,
        "warmup_epochs": 3,
    },
    "test": {"crop": 1.0},
}


def demo(
    out: str | Path = "runs/demo",
    *,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    full: bool = False,
    num_processes: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Build the synthetic sets, train and test on all arms, and show it on one page. Run again, it continues.

    Args:
        out: folder for the runs, the trainings and the page.
        limit: images per class, for a smaller demo; None is the fixed 30.
        seeds: fewer make a shorter demo without meaning; None is the fixed ones.
        full: the longer demo: ten more seeds and a scaling curve.
        num_processes: None is one per GPU, or one per CPU core.
        device: a torch device; None is each process's GPU, or the CPU.
        overwrite: delete the runs and trainings that the folder holds first.
        quiet: no progress and no table.

    Returns:
        The path of the page; `results.json` is beside it.

    Raises:
        HfsynError: see `build`; or, with exit code 4, some trainings failed.
    """
    check_device(device)
    folder = on_disk(out).resolve()
    limits = FULL_LIMITS if full and limit is None else (limit or LIMIT,)
    seeds = seeds or (FULL_SEEDS if full else SEEDS)
    started = time.monotonic()
    if overwrite:
        shutil.rmtree(folder / CELLS, ignore_errors=True)
    with task_pool(num_processes, device=device) as submit:
        _build_all(submit, folder, max(limits), seeds, device, overwrite, quiet)
        captioned = [run_of(folder, arm, seeds[0]) for arm in RECIPES if arm != "class names"]
        for told in [submit(_tell_beforehand, run, device) for run in captioned if kept_in(run) is None]:
            told.result()
        if not quiet:
            print(f"{time.monotonic() - started:.0f} s: the synthetic sets are there", file=sys.stderr)
        summary = bench(_matrix(folder, limits, seeds), folder, submit=submit, device=device, quiet=quiet)
    atomic_text(folder / "results.json", json.dumps(_results(summary, limits, seeds), indent=1) + "\n")
    _sheet(folder, seeds[0])
    page = write_page(folder)
    if not quiet:
        print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)
    if error := failures(summary, folder):
        raise error
    return page


def run_of(folder: Path, arm: str, seed: int | str) -> Path:
    """The run folder of a synthetic arm of the demo."""
    return folder / "runs" / f"{arm.replace(' ', '-')}-{seed}"


def _build_all(
    submit: Submit, folder: Path, limit: int, seeds: Sequence[int], device: str | None, overwrite: bool, quiet: bool
) -> None:
    """Build every synthetic set: first one with captions, which the others take."""
    captioned = run_of(folder, "captions", seeds[0])
    tasks = []
    for arm, recipe in RECIPES.items():
        for seed in seeds:
            overrides = [
                f"name={VARIANT}-{recipe.removeprefix('shapes-')}",
                f"source.variant={VARIANT}",
                f"source.limit_per_class={limit}",
                f"seed={seed}",
                "store.shard_rows=512",  # one shard a set: a shard's last batch is padded, which costs time
            ]
            run = run_of(folder, arm, seed)
            captions = None if arm == "class names" or run == captioned else str(captioned)
            tasks.append((recipe, run, overrides, captions))
    # While the captions are being made, the other processes draw what needs none.
    first, others = [task for task in tasks if task[3] is None], [task for task in tasks if task[3] is not None]
    first.sort(key=lambda task: task[1] != captioned)
    begun = [(task, submit(_build, *task, device, overwrite)) for task in first]
    begun[0][1].result()
    begun += [(task, submit(_build, *task, device, overwrite)) for task in others]
    for task, made in begun:
        said = made.result()
        if not quiet:
            print(f"{task[1].relative_to(folder)}: {said}", file=sys.stderr, flush=True)


def _build(
    recipe: str, run: Path, overrides: Sequence[str], captions: str | None, device: str | None, overwrite: bool
) -> str:
    started = time.monotonic()
    made = build(
        recipe,
        run,
        overrides=overrides,
        captions=captions,
        num_processes=1,
        device=device,
        overwrite=overwrite,
        quiet=True,
    )
    parts = ", ".join(f"{stage.stage} {stage.seconds:.1f} s" for stage in status(made.folder).stages)
    return f"{made.planned_rows} images in {time.monotonic() - started:.1f} s ({parts})"


def _tell_beforehand(run: Path, device: str | None) -> None:
    options = WorkOptions(device=device, captions=str(run), quiet=True)
    keep(measure(load_run(run).recipe, MEASURED, options=options), run / layout.INFORMATIVENESS)


def _matrix(folder: Path, limits: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    synthetic = {arm: {"train": [str(run_of(folder, arm, "{seed}"))]} for arm in RECIPES}
    return {
        "name": VARIANT,
        "config": TRAINING,
        "arms": {"real": {"train": [VARIANT]}, **synthetic},
        "models": [MODEL],
        "seeds": list(seeds),
        "limits": list(limits),
        "tests": {name: {"dataset": variant, "split": "test"} for name, variant in TESTS.items()},
        "compare": COMPARED,
    }


def _results(summary: dict[str, Any], limits: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """What results.json holds: for each test the arms' means with intervals and seeds, and their paired differences."""
    found: dict[str, Any] = {}
    interval = ("mean", "low", "high")
    for test, variant in TESTS.items():
        rows, differences = (
            [row for row in summary[kind] if row["test"] == test and row["limit"] == max(limits)]
            for kind in ("rows", "differences")
        )
        found[test] = {
            "dataset": variant,
            "n": rows[0]["n"] if rows else 0,
            "chance": 1 / len(get_variant(variant).classes),
            "arms": {row["arm"]: {**{key: row[key] for key in interval}, "seeds": row["values"]} for row in rows},
            "differences": {f"{d['a']} - {d['b']}": {key: d[key] for key in interval} for d in differences},
        }
    settings = {
        "measure": "top-1, mean over seeds, 95 % interval (Student t); differences paired by seed",
        "model": MODEL,
        "training": TRAINING,
        "seeds": list(seeds),
        "images_per_arm": 10 * max(limits),
    }
    return {"tests": found, "settings": settings}


def _sheet(folder: Path, seed: int) -> None:
    title = (
        "Real images, and what a small Stable Diffusion makes of their class names, of their captions,\n"
        "and of the captions of other classes. Colours and textures of the real images come back with the captions."
    )
    runs = [load_run(run_of(folder, arm, seed)) for arm in RECIPES]
    save_png(compare_runs(runs, title=title, per_class=2), folder / layout.PREVIEW / "contact_sheet.png")
