#!/usr/bin/env python
"""Whether a loop that asks the classifier what to draw gets further than one that draws all kinds alike.

    python scripts/check_loop.py --out DIR            # 35 minutes of one core; run again, it continues
    python scripts/check_loop.py --out DIR --seeds 0  # some seeds only
    python scripts/check_loop.py --out DIR --explore  # other seeds than those that are chosen on and reported
    python scripts/check_loop.py --out DIR --json

**The world.** Photographs that people have are not balanced: of some classes there are many, of others a handful. Each
classifier starts from `COMMON` drawings of five classes and `RARE` of the other five; a seed decides which, and which
drawings. A loop adds `IMAGES` of the small generator's images in a first round of all kinds alike, and as many in each
of `ROUNDS` further rounds, by each of the policies of hfsyn and, beside them, by `uniform`: the first round is the same
for all, every classifier is trained from new weights on everything so far, each image as often as any other. What
steers is `STEER` drawings of each class that nobody is trained on; the test is `TEST` of each class of another split,
on which nothing is decided.

**What is stated.** Of each policy the accuracy on the test after every round, and after the last one its gain over
`uniform` at the same number of images, as the mean over seeds with its 95 % interval (Student's t). The policy with the
largest mean gain on seeds 0 to 4 is the one that is reported on seeds 5 to 9. It holds if there the gain is at least
`LEAST` points with its interval above zero. All policies are shown, also those that lose.

**Settings.** These are as they were committed before the first run on seeds 0 to 9; what led to them was tried on seeds
from 100 on (``--explore``): see `EXPLORED`. A first run was stopped after six seeds, when it was found that all parts
of a plan had the same levels in turn; this is the run after that was corrected.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hfsyn
from builders.sources.drawing import SHAPES, Drawing, png_of, sample_attributes
from builders.variants import get_variant
from hfsyn.judging.measures.metrics import paired_difference

POLICIES = ("hard-classes", "uncertain", "not-learned-early", "audit")
COMMON, RARE, RARE_CLASSES = 100, 2, 5
IMAGES, ROUNDS, CANDIDATES = 20, 2, 3
STEER, TEST = 20, 100
CHOSEN, REPORTED = range(5), range(5, 10)
LEAST = 3.0  # points
WORLD = 30_000  # added to the seed of the drawings that are started from
EXPLORED = """
With 100 and 2 drawings, five classes each, `hard-classes` against `uniform` alone: after 40, 60 and 80 images it was
better by 4.1, 15.4 and 1.0 points (seed 100) and by 5.6, 10.7 and 7.4 (seed 101); with 50 images a round by 11.1 after
100 and 1.6 after 200. So little room is left at 80 and more, and three rounds of 20 were settled on. With these, all
policies, seeds 102 and 103: `hard-classes` +21.3 and +12.1, `not-learned-early` +12.8 and +4.8, `uncertain` +5.6 and
+3.3, `audit` +0.6 and +1.6, of whose 20 images ten are spent on asking.
"""
_CLASSES = {info.name: info.wnid for info in get_variant("shapes").classes}


def rare(seed: int) -> list[str]:
    """The classes of which there is a handful."""
    return random.Random(f"rare {seed}").sample(SHAPES, RARE_CLASSES)


def drawings(seed: int) -> list[Drawing]:
    """What a classifier starts from."""
    few = rare(seed)
    left = {shape: RARE if shape in few else COMMON for shape in SHAPES}
    found, index = [], 0
    while any(left.values()):
        drawing = sample_attributes(WORLD + seed, "train", index)
        index += 1
        if left[drawing.shape]:
            left[drawing.shape] -= 1
            found.append(drawing)
    return found


def write(seed: int, folder: Path) -> Path:
    """Write the drawings of a seed as a folder that can be trained on."""
    rows = [
        {"source_id": f"{_CLASSES[one.shape]}/{n:06d}", "image": png_of(one), "wnid": _CLASSES[one.shape]}
        for n, one in enumerate(drawings(seed))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder


def cpu() -> float:
    """Seconds of processor time of this process and those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def looped(seed: int, out: Path, policies: Sequence[str]) -> dict[str, Any]:
    """The curve of a seed: policy -> accuracy on the test after each round, and what it took."""
    kept = out / f"{seed}.json"
    if not kept.exists():
        start = out / str(seed) / "start"
        if not start.exists():
            write(seed, start)
        fields = {
            "recipe": "shapes-basic",
            "factors": "shapes",
            "train": "shapes",
            "start": [f"shapes={start}"],
            "policy": list(policies),
            "images": IMAGES,
            "rounds": ROUNDS,
            "candidates": CANDIDATES,
            "steer": {"dataset": "shapes", "split": "train", "limit": STEER},
            "test": {"dataset": "shapes", "split": "test", "limit": TEST},
            "seed": seed,
        }
        file = out / str(seed) / "loop.yaml"
        file.write_text(json.dumps(fields))
        before, began = cpu(), time.monotonic()
        found = hfsyn.loop(file, out / str(seed) / "loop", device="cpu", num_processes=1, quiet=True)
        curve: dict[str, list[float]] = {}
        for one in found["curve"]:
            curve.setdefault(one["policy"], []).append(one["test"]["value"])
        took = {"cpu_minutes": (cpu() - before) / 60, "wall_minutes": (time.monotonic() - began) / 60}
        kept.write_text(json.dumps({"seed": seed, "rare": rare(seed), "curve": curve, **took}))
    result: dict[str, Any] = json.loads(kept.read_text())
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def compared(results: Sequence[dict[str, Any]], policy: str) -> dict[str, Any]:
    """The accuracy of a policy after each round in percent, and the gain in points over `uniform` after the last."""
    mine = [[100 * value for value in one["curve"][policy]] for one in results]
    beside = [[100 * value for value in one["curve"]["uniform"]] for one in results]
    return {
        "policy": policy,
        "accuracy": [sum(some) / len(some) for some in zip(*mine, strict=True)],
        "gain": paired_difference([one[-1] for one in mine], [one[-1] for one in beside]),
    }


def text(found: dict[str, Any]) -> str:
    """A line of the table."""
    gain = found["gain"]
    ends = "" if gain["low"] is None else f" [{gain['low']:+.1f}, {gain['high']:+.1f}]"
    return f"{found['policy']:18} {' '.join(f'{one:5.1f}' for one in found['accuracy'])}  {gain['mean']:+.1f}{ends}"


def table(results: Sequence[dict[str, Any]], title: str) -> tuple[list[dict[str, Any]], list[str]]:
    """All policies, and the lines that show them."""
    lines = [compared(results, policy) for policy in results[0]["curve"]]
    counts = ", ".join(str(IMAGES * (number + 1)) for number in range(ROUNDS + 1))
    head = f"{title}: accuracy with {counts} images in percent, gain over uniform with the last in points"
    return lines, [head, *map(text, lines)]


def main() -> int:
    """Print the tables, or JSON; 1 if it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="keeps everything there, and continues")
    parser.add_argument("--seeds", help="only these, such as 0,1 or 5-9")
    parser.add_argument("--policies", default=",".join(POLICIES), help="only these; for --explore")
    parser.add_argument("--explore", action="store_true", help="seeds from 100 on")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    ends = (words.seeds or f"0-{REPORTED[-1]}").split("-")
    seeds = [*range(int(ends[0]), int(ends[1]) + 1)] if len(ends) == 2 else [int(one) for one in ends[0].split(",")]
    out = words.out.resolve()
    results = [looped(seed + 100 * words.explore, out, words.policies.split(",")) for seed in seeds]
    spent = {key: sum(one[key] for one in results) for key in ("cpu_minutes", "wall_minutes")}
    found: dict[str, Any] = {"results": results, **spent}
    lines, holds = [], True
    by_part = {"chosen on": CHOSEN, "reported on": REPORTED}
    for title, part in {"explored on": seeds}.items() if words.explore else by_part.items():
        some = [one for seed, one in zip(seeds, results, strict=True) if seed in part]
        if some:
            found[title], told = table(some, f"{title} {len(some)} seeds")
            lines += told
    if len(found.get("chosen on", ())) and len(seeds) == len(CHOSEN) + len(REPORTED):
        best = max((one for one in found["chosen on"] if one["policy"] != "uniform"), key=lambda o: o["gain"]["mean"])
        mine = next(one for one in found["reported on"] if one["policy"] == best["policy"])
        holds = mine["gain"]["mean"] >= LEAST and mine["gain"]["low"] > 0
        found |= {"policy": best["policy"], "holds": holds}
        lines.append(f"chosen: {best['policy']}; it {'holds' if holds else 'does not hold'} on the reported seeds")
    lines.append(f"{spent['cpu_minutes']:.0f} minutes of processor time, {spent['wall_minutes']:.0f} of the clock")
    print(json.dumps(found, indent=1) if words.json else "\n".join(lines))
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
