#!/usr/bin/env python
"""Whether `hfsyn informativeness` tells beforehand what a classifier gains: eight recipes and one on a drawn world.

    python scripts/check_informativeness.py                  # about twenty minutes on two free cores
    python scripts/check_informativeness.py --world shapes --out DIR    # the other world; run again, it continues
    python scripts/check_informativeness.py --json

All recipes have the same real drawings, generator and number of images, and differ in what the generator is told:

- `true`: the class and the true caption, with colour, background and texture;
- `wrong 25 %` to `wrong 100 %`: each of the three words is, with this probability, another one of its kind;
- `across classes`: the true captions, exchanged between the classes by ``prompt.pairing``;
- `class names`: the class alone;
- `nothing`: "a photo", whatever the class;
- `of the class`: the true caption of another drawing of the same class. It misleads the generator about each drawing,
  and the prompts and labels of the set are those of `true`: an exception that is known beforehand. It is counted apart.

Of each recipe two numbers are measured. Beforehand: by how much its prompts lower the generator's denoising loss on
`MEASURED` real drawings below that of class names. Afterwards: the accuracy, on the world's own test drawings, of
classifiers that are trained on the images that were made, `SEEDS` of them, each with images of its own. Stated is the
rank correlation (Spearman) of the two over the recipes, with a 95 % interval from resampling the recipes and, within
each, the seeds; of the first eight recipes, and of all nine. With so few it is wide, and recipes that were chosen
otherwise would give another number.

Expected: a clearly positive correlation on `shapes-context`, where words for contexts help to tell the classes apart;
on `shapes`, where contexts say nothing about the class, a weaker one, since captions tell the generator as much there,
and the classifier needs it less. The recipe whose captions are all wrong is to be named uninformative on both. This,
the recipes and all settings below were written down before the first run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.sources.drawing import BACKGROUNDS, COLOURS, TEXTURES, Drawing, ShapesSource, caption_of
from hfsyn import build, informativeness
from hfsyn.judging.bench.cells import bench
from hfsyn.judging.bench.task_pool import task_pool
from hfsyn.outlook.informativeness import kept_in
from hfsyn.rules import seed_of

WORLDS = ("shapes-context", "shapes")
WRONG = (0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)
LIMIT = 30  # real drawings of each class, and images made of each
MEASURED = 100  # real drawings, four noises each
RESAMPLES = 10_000
APART = "of the class"
NOTHING = 'def nothing(c, caption, rng):\n    return "a photo"\n'
"""The strategy of the recipe `nothing`."""


def told(drawings: Sequence[Drawing], ids: Sequence[str], wrong: float) -> list[str]:
    """A caption of each drawing, whose words for colour, background and texture are wrong at this rate."""
    texts = []
    for drawing, source_id in zip(drawings, ids, strict=True):
        rng = random.Random(seed_of(0, source_id, purpose="wrong-caption"))
        said = {}
        for field, words in (("colour", COLOURS), ("background", BACKGROUNDS), ("texture", TEXTURES)):
            share, others = rng.random(), [word for word in words if word != getattr(drawing, field)]
            other = rng.choice(others)
            said[field] = other if share < wrong else getattr(drawing, field)
        texts.append(caption_of(Drawing(**{name: getattr(drawing, name) for name in Drawing.__slots__} | said)))
    return texts


def recipes(folder: Path, world: str) -> dict[str, tuple[str, list[str]]]:
    """A shipped recipe and what is changed in it, by name; writes the files with the captions."""
    source = ShapesSource(variant=world, limit_per_class=LIMIT)
    count = len(source)
    drawings, ids = [source.drawing(n) for n in range(count)], [source.entry(n).source_id for n in range(count)]

    def file(name: str, texts: Sequence[str]) -> list[str]:
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"source_id": i, "caption": text}) for i, text in zip(ids, texts, strict=True))
        path.write_text("\n".join(lines) + "\n")
        return ["caption=null", f"prompt.captions_file={path}"]

    true = told(drawings, ids, 0.0)
    found = {"true": ("shapes-cip", file("true", true))}
    for rate in WRONG:
        found[f"wrong {rate:.0%}".replace("%", " %")] = (
            "shapes-cip",
            file(f"wrong-{rate:g}", told(drawings, ids, rate)),
        )
    # Drawing n + 10 is the next one of the class, after the last the first.
    found[APART] = ("shapes-cip", file("of-the-class", [true[(n + 10) % count] for n in range(count)]))
    found["across classes"] = ("shapes-cip-across", file("true", true))
    found["class names"] = ("shapes-basic", [])
    (folder / "strategy.py").write_text(NOTHING)
    found["nothing"] = ("shapes-basic", [f"prompt.strategy={folder / 'strategy.py'}:nothing"])
    common = [f"source.variant={world}", f"source.limit_per_class={LIMIT}", "store.shard_rows=512"]
    return {name: (recipe, [*common, *changes]) for name, (recipe, changes) in found.items()}


def made(recipe: str, changes: Sequence[str], seed: int, run: Path) -> None:
    """Build the images of a recipe and a seed; of the first seed it is measured how informative the prompts are."""
    found = build(recipe, run, overrides=[*changes, f"name={run.name}", f"seed={seed}"], num_processes=1, quiet=True)
    if seed == SEEDS[0] and kept_in(found.folder) is None:
        informativeness(run, images=MEASURED, quiet=True)


def measured(world: str, folder: Path) -> list[dict[str, Any]]:
    """Of each recipe ``name``, ``gain`` with ``mean`` and ``error``, ``verdict``, and ``accuracies`` by seed."""
    wanted = recipes(folder / "told", world)
    runs = {name: folder / "runs" / name.replace(" %", "").replace(" ", "-") for name in wanted}
    with task_pool(None) as submit:
        tasks = [
            submit(made, *wanted[name], seed, runs[name].with_name(f"{runs[name].name}-{seed}"))
            for seed in SEEDS
            for name in wanted
        ]
        for number, task in enumerate(tasks, start=1):
            task.result()
            print(f"{world}: {number} of {len(tasks)} sets", file=sys.stderr, flush=True)
        matrix = {
            "name": world,
            "config": "shapes",
            "arms": {name.replace("%", "percent"): {"train": [f"{run}-{{seed}}"]} for name, run in runs.items()},
            "models": ["test_resnet"],
            "seeds": list(SEEDS),
            "tests": {"own": {"dataset": world, "split": "test"}},
        }
        rows = {row["arm"]: row for row in bench(matrix, folder, submit=submit, quiet=True)["rows"]}
    lines = []
    for name, run in runs.items():
        found = kept_in(run.with_name(f"{run.name}-{SEEDS[0]}"))
        assert found is not None
        gain = {"mean": found.gain.mean, "error": found.gain.error}
        accuracies = rows[name.replace("%", "percent")]["values"]
        lines.append({"name": name, "gain": gain, "verdict": found.verdict, "accuracies": accuracies})
    return lines


def spearman(a: Any, b: Any) -> float:
    """The correlation of ranks, equal values sharing theirs; 0 where all of one side are equal."""

    x, y = (_ranks(np.asarray(one)) for one in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    return (values < values[:, None]).sum(1) + (values == values[:, None]).sum(1) / 2


def correlated(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``rank`` correlation of gain and mean accuracy, and ``low`` and ``high`` of its 95 % interval."""
    gains, each = np.array([line["gain"]["mean"] for line in lines]), np.array([line["accuracies"] for line in lines])
    draw, (count, seeds) = np.random.default_rng(0), each.shape
    drawn = []
    for _ in range(RESAMPLES):
        some = draw.integers(0, count, count)
        accuracies = each[some[:, None], draw.integers(0, seeds, (count, seeds))].mean(1)
        drawn.append(spearman(gains[some], accuracies))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rank": spearman(gains, each.mean(1)), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", action="append", choices=WORLDS, help="this world; may be given twice")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep what is made here; run again, it continues")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the lines")
    options = parser.parse_args()
    started = time.monotonic()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hfsyn-informativeness-") as temporary:
        for world in options.world or WORLDS:
            lines = measured(world, (options.out or Path(temporary)).resolve() / world)
            eight = [line for line in lines if line["name"] != APART]
            found[world] = {"recipes": lines, "correlation": correlated(eight), "of_all_nine": correlated(lines)}
            if not options.json:
                print(f"{world}:")
                for line in sorted(lines, key=lambda line: -line["gain"]["mean"]):
                    each = " ".join(f"{100 * value:.1f}" for value in line["accuracies"])
                    gain = f"{line['gain']['mean']:+.4f} ± {line['gain']['error'] or 0:.4f}"
                    mean = 100 * float(np.mean(line["accuracies"]))
                    print(
                        f"  {line['name']:15} {gain}, accuracy {mean:.1f} % ({each}); {line['verdict'].split(',')[0]}"
                    )
                for key, which in (("correlation", f"without “{APART}”"), ("of_all_nine", "of all nine")):
                    of = found[world][key]
                    interval = f"95 % interval {of['low']:+.2f} to {of['high']:+.2f}"
                    print(f"  rank correlation {of['rank']:+.2f} ({interval}), {which}")
    found["seconds"] = round(time.monotonic() - started)
    print(json.dumps(found, indent=1) if options.json else f"{found['seconds']} s")


if __name__ == "__main__":
    main()
