"""The demo: the whole path on the drawn variants with the small models, ending in a table and a page.

The question is the paper's, in miniature: a classifier is trained on real drawings (`real`), on what the small Stable
Diffusion makes of class names (`basic`), and on what it makes of the captions of these same drawings (`cip`); which of
them reads 2,000 real drawings best? It is asked of two drawn variants: in `shapes` colours and texture are independent
of the class, in `shapes-context` they mostly go with it, as surroundings do in photographs. The generator and the
captioner were trained on the world of `shapes` alone.

**Fixed before the first run, and not changed after it:**

- `shapes`: 500 images an arm, 50 of each class; `shapes-context`: 300, 30 of each class, so that all of it takes less
  than six minutes on two cores (``full`` uses 500 there too, and 100 and 250 besides in both, for a scaling curve);
- seeds 0, 1 and 2, of the classifier and of the generation alike: each seed has synthetic sets of its own, built with
  ``seed: S``; the real set is the first 50 (30) training drawings of each class, the test set the whole test split;
- the synthetic sets are the shipped recipes `shapes-basic` and `shapes-cip` (12 steps, guidance 2.5);
- the classifier: timm's `test_resnet` at 32 x 32 pixels with output stride 8, `TRAINING` below, the last weights. It
  was chosen by its time and by its accuracy when trained on real drawings, before any synthetic image was looked at.

How well a real-trained classifier reads the synthetic sets is measured too: where it reads them badly, their labels are
not what is drawn.
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
from hfsyn.building import build
from hfsyn.judging.bench.cells import bench, failures
from hfsyn.judging.bench.matrix import CELLS
from hfsyn.judging.bench.page import report
from hfsyn.judging.bench.task_pool import Submit, task_pool
from hfsyn.runs.run import load_run
from hfsyn.runs.sheets import compare_runs, save_png
from hfsyn.runs.status import status
from hfsyn.workers import check_device

LIMITS = {"shapes": 50, "shapes-context": 30}  # images of each class by variant
FULL_LIMITS = (10, 25, 50)
SEEDS = (0, 1, 2)
MODEL = "test_resnet"
SYNTHETIC = ("basic", "cip")
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
    seeds: Sequence[int] = SEEDS,
    full: bool = False,
    num_processes: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Build the synthetic sets, train and test on all arms, and show it on one page. Run again, it continues.

    Args:
        out: folder for the runs, the trainings and the page.
        limit: images per class in both variants, for a smaller demo; None is the fixed 50 and 30.
        seeds: fewer make a shorter demo without meaning.
        full: the longer demo with a scaling curve.
        num_processes: None is one a GPU, or one a CPU core.
        device: a torch device; None is each process's GPU, or the CPU.
        overwrite: delete the runs and trainings that the folder holds first.
        quiet: no progress and no table.

    Returns:
        The path of the page; `results.json` is beside it.

    Raises:
        HfsynError: see `build`; or, with exit code 4, some trainings failed.
    """
    check_device(device)
    folder = Path(out).expanduser().resolve()
    limits: dict[str, tuple[int, ...]] = {
        variant: FULL_LIMITS if full and limit is None else (limit or usual,) for variant, usual in LIMITS.items()
    }
    started = time.monotonic()
    if overwrite:
        for variant in limits:
            shutil.rmtree(folder / variant / CELLS, ignore_errors=True)
    with task_pool(num_processes, device=device) as submit:
        _build_all(submit, folder, limits, seeds, device, overwrite, quiet)
        if not quiet:
            print(f"{time.monotonic() - started:.0f} s: the synthetic sets are there", file=sys.stderr)
        summaries = {
            variant: bench(
                _matrix(folder, variant, sizes, seeds), folder / variant, submit=submit, device=device, quiet=quiet
            )
            for variant, sizes in limits.items()
        }
    atomic_text(folder / "results.json", json.dumps(_results(summaries, limits, seeds), indent=1) + "\n")
    _sheet(folder, seeds[0])
    page = report(folder)
    if not quiet:
        print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)
    for variant, summary in summaries.items():
        if error := failures(summary, folder / variant):
            raise error
    return page


def run_of(folder: Path, variant: str, arm: str, seed: int | str) -> Path:
    """The run folder of a synthetic arm of the demo."""
    return folder / variant / "runs" / f"{arm}-{seed}"


def _build_all(
    submit: Submit,
    folder: Path,
    limits: dict[str, tuple[int, ...]],
    seeds: Sequence[int],
    device: str | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Build every synthetic set, the longest first, so that the processes end together."""
    tasks = []
    for variant, sizes in limits.items():
        for arm in reversed(SYNTHETIC):
            for seed in seeds:
                overrides = [
                    f"name={variant}-{arm}",
                    f"source.variant={variant}",
                    f"source.limit_per_class={max(sizes)}",
                    f"seed={seed}",
                    "store.shard_rows=512",  # one shard a set: a shard's last batch is padded, which costs time
                ]
                tasks.append((f"shapes-{arm}", run_of(folder, variant, arm, seed), overrides))
    for task, made in [(task, submit(_build, *task, device, overwrite)) for task in tasks]:
        said = made.result()
        if not quiet:
            print(f"{task[1].relative_to(folder)}: {said}", file=sys.stderr, flush=True)


def _build(recipe: str, run: Path, overrides: Sequence[str], device: str | None, overwrite: bool) -> str:
    started = time.monotonic()
    made = build(recipe, run, overrides=overrides, num_processes=1, device=device, overwrite=overwrite, quiet=True)
    parts = ", ".join(f"{stage.stage} {stage.seconds:.1f} s" for stage in status(made.folder).stages)
    return f"{made.planned_rows} images in {time.monotonic() - started:.1f} s ({parts})"


def _matrix(folder: Path, variant: str, limits: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    synthetic = {arm: str(run_of(folder, variant, arm, "{seed}")) for arm in SYNTHETIC}
    labels = {
        f"images of {arm}": {"dataset": path, "split": "train", "arms": ["real"]} for arm, path in synthetic.items()
    }
    return {
        "name": variant,
        "config": TRAINING,
        "arms": {"real": {"train": [variant]}, **{arm: {"train": [path]} for arm, path in synthetic.items()}},
        "models": [MODEL],
        "seeds": list(seeds),
        "limits": list(limits),
        "tests": {"real drawings": {"dataset": variant, "split": "test"}, **labels},
    }


def _results(
    summaries: dict[str, dict[str, Any]], limits: dict[str, tuple[int, ...]], seeds: Sequence[int]
) -> dict[str, Any]:
    """What results.json holds: for each variant and arm the mean, its interval and the accuracy of each seed."""
    found: dict[str, Any] = {}
    tested: dict[str, int] = {}
    for variant, summary in summaries.items():
        rows = [r for r in summary["rows"] if r["test"] == "real drawings" and r["limit"] == max(limits[variant])]
        found[variant] = {
            row["arm"]: {**{key: row[key] for key in ("mean", "low", "high")}, "seeds": row["values"]} for row in rows
        }
        tested[variant] = rows[0]["n"] if rows else 0
    return {
        **found,
        "settings": {
            "measure": "top-1 on real drawings, mean over seeds, 95 % interval (Student t)",
            "model": MODEL,
            "training": TRAINING,
            "seeds": list(seeds),
            "images_an_arm": {variant: 10 * max(sizes) for variant, sizes in limits.items()},
            "n_test": tested,
        },
    }


def _sheet(folder: Path, seed: int) -> None:
    title = (
        "Real images, and what a small Stable Diffusion makes of their class names and of their captions.\n"
        "Colours and textures of the real images come back in the caption images only."
    )
    runs = [load_run(run_of(folder, "shapes", arm, seed)) for arm in SYNTHETIC]
    save_png(compare_runs(runs, title=title), folder / layout.PREVIEW / "contact_sheet.png")
