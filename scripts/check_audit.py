#!/usr/bin/env python
"""Whether an audit finds what a classifier was never shown, and what the images of its repair recipe are worth.

    python scripts/check_audit.py                     # hours of one core
    python scripts/check_audit.py --out DIR           # keeps everything there; run again, it continues
    python scripts/check_audit.py --only plants       # or repair
    python scripts/check_audit.py --explore --pairs 1 # other seeds than those that are reported

**Plants.** Classifiers are trained by the shipped recipe `shapes` on `IMAGES` drawings of the variant `shapes`, the
same number of each class. In a plant two colours never occur with one class: the classes take turns, one colour is
green, the other is drawn from the seed. There are three kinds (`KINDS`): `missing` is that alone; of `taken` more than
half of the images of another class show the two colours; of `shared` more than half of those of three other classes.

Half of such plants do no harm: the network knows the shape in a colour that it never saw it in, and there is nothing to
find. So seeds are gone through from `FIRST` on, and those are taken whose classifier is at least `HARM` worse on
drawings of what it was never shown than on others of that class (`GROUP` test drawings each). The audit has no part in
that; how many were tried is said. To each belong two classifiers without a plant: one that is trained on as many
drawings, and one on `MORE` times as many. All are audited with the shipped factors `shapes`, on the same `AUDIT` images
of the built-in generator, made for the first, and on at most `CONFIRM` more of what each audit suspects.

The audit should name the plant (its class, and no colours but one or both of the two) among its first two findings in
ten of ten, in at most four minutes of two cores each, which are eight minutes of processor time, since the machine may
be shared; and name anything in at most one of the ten classifiers without a plant that are trained on more drawings.
Those that are trained on as many have weaknesses of their own: what is named of them is tried on `GROUP` test drawings
of it and on as many of the rest of the class, and it is said of how many findings it is true that the classifier is
worse there by ten points, which is what a finding claims. (At first those were to have no findings. Of the first that
were run two had some, circles on white and green stars, and of a classifier tried with other seeds blue squares; with
twice as many drawings the same network makes no mistake on the images of an audit. So the second kind was added, and
the first kept.)

Seeds 20 to 34 were run with these settings and are not reported, because what they showed was corrected in the audit:
new images were judged among the classes of the suspects alone; a hard class was named with any level; and then, with a
bound that was too strict for suspects, two plants of six were missed. Those from `FIRST` on were run afterwards.

**Repair.** The next `REPAIRED` such classifiers, audited likewise. Each gets `REPAIR` more images of the same
generator: those of its audit's repair recipe, or as many of the same design over all classes and levels, beside its
drawings, each image as often as any other. It is trained on with them from the weights that it has, for `TUNED`, as
one does who repairs a classifier; and, stated beside it, again from new weights by the whole recipe. The two kinds of
images are compared by balanced accuracy, as is usual where a class and an attribute go together (Nam et al., arXiv
2007.02561): what was never shown counts as much as all else, which is the mean of three groups: the class in other
colours, other classes in the two colours, other classes in other colours. With the classifier trained on, the repair
should gain at least three points more, with a 95 % interval (Student's t over the seeds) above zero. Stated are, too,
the accuracy on what was never shown alone, and on drawings of all kinds alike, of which that is one in forty.

Tried before, with other seeds: from new weights 300 images of all kinds are enough (their seven or eight of the kind
that was missing raise 56 % to 97 %), and the repair gains one or two points. Trained on for five epochs at a quarter of
the learning rate it gained 0.6 to 15.9 over six classifiers, 8.5 on average, with drawings for images; with three
epochs at the whole rate 0.4 to 15.3, 7.2 on average.

Exit code 1 where it falls short. All settings were committed before the first run with the seeds that are reported, but
for `MORE`, of which it is said above how it came.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hfsyn
from builders.sources.drawing import COLOURS, SHAPES, Drawing, draw, png_of, sample_attributes
from builders.variants import get_variant
from hfsyn.judging.audit.prompts import Axes, cells, recipe_for, write_prompts
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.measures.metrics import paired_difference
from hfsyn.judging.preprocessing import plain_transform
from hfsyn.judging.scores.classifiers import answers_of
from hfsyn.recipes.factor_file import load_factors
from hfsyn.recipes.recipe import load_recipe

IMAGES = 600
KINDS = {"missing": 0, "taken": 1, "shared": 3}
"""Kind -> how many other classes show the two colours in `TAKEN` of their images instead of in a quarter."""
TAKEN = 0.6
HARM = 0.25
AUDIT, CONFIRM, REPAIR = 1600, 800, 300
TUNED = {"epochs": 5, "lr": 0.001, "warmup_epochs": 0}
PAIRS, REPAIRED = 10, 5
FIRST, EXPLORED = 40, 1000
"""The first seed, and that of --explore."""
MORE = 2
TRUE_POINTS = 10.0
MOST_SECONDS = 480
LEAST_POINTS = 3.0
GROUP = 400  # test drawings of a group
_CLASSES = get_variant("shapes").classes


class Plant(NamedTuple):
    """Two colours that never occur with a class."""

    kind: str
    shape: str
    colours: tuple[str, str]
    others: tuple[str, ...]

    def lacks(self, drawing: Drawing) -> bool:
        """Whether a drawing is of what was never shown."""
        return drawing.shape == self.shape and drawing.colour in self.colours

    def keeps(self, drawing: Drawing, chance: float) -> bool:
        """Whether a drawing may be among the training images; `chance` is its own random number."""
        share = 0.0 if drawing.shape == self.shape else TAKEN if drawing.shape in self.others else 0.25
        weight = share / 0.25 if drawing.colour in self.colours else (1 - share) / 0.75
        return 4 * chance < weight


def plant_of(seed: int) -> Plant:
    """The plant of a seed."""
    rng = random.Random(f"plant {seed}")
    shape = SHAPES[seed % len(SHAPES)]
    kind = list(KINDS)[seed % len(KINDS)]
    others = rng.sample([one for one in SHAPES if one != shape], KINDS[kind])
    second = rng.choice([one for one in COLOURS if one != "green"])
    return Plant(kind, shape, ("green", second), tuple(others))


def drawings(seed: int, plant: Plant | None, images: int = IMAGES) -> list[Drawing]:
    """The training drawings of a seed, the same number of each class."""
    left, found, index = dict.fromkeys(SHAPES, images // len(SHAPES)), [], 0
    rng = random.Random(f"drawings {seed}")
    while any(left.values()):
        drawing = sample_attributes(10_000 + seed, "train", index)
        index, chance = index + 1, rng.random()
        if left[drawing.shape] and (plant is None or plant.keeps(drawing, chance)):
            left[drawing.shape] -= 1
            found.append(drawing)
    return found


def write(found: Sequence[Drawing], folder: Path) -> Path:
    """Write drawings as a folder of Parquet that can be trained on."""
    infos = {info.name: info for info in _CLASSES}
    rows = [
        {"source_id": f"{infos[one.shape].wnid}/{number:06d}", "image": png_of(one), "wnid": infos[one.shape].wnid}
        for number, one in enumerate(found)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder


def trained(out: Path, seed: int, data: Path, *more: Path, base: Path | None = None, images: int = IMAGES) -> Path:
    """A classifier, trained on drawings and on further runs, each image as often as any other; `base` trained on."""
    sets = [f"shapes={data}", *map(str, more)]
    counts = [images, *[REPAIR] * len(more)]
    words: dict[str, Any] = {"config": "shapes", "seed": seed, "device": "cpu", "num_processes": 1, "quiet": True}
    if base is not None:
        fields = [f"optimise.{name}={value}" for name, value in TUNED.items()]
        words["overrides"] = [f"model.init_from={base.resolve()}", *fields]
    weighted = [f"{one}:{count / sum(counts):.6f}" for one, count in zip(sets, counts, strict=True)]
    hfsyn.train(out, train_dataset=weighted if more else sets, budget=sum(counts), **words)
    return out


def called(model: Path, some: Sequence[Drawing]) -> np.ndarray:
    """Whether a classifier is right about each drawing."""
    classifier = open_classifier(model, device="cpu")
    transform = plain_transform(classifier.preprocessing)
    found: list[str] = []
    for start in range(0, len(some), 250):
        pixels = [transform(draw(one)) for one in some[start : start + 250]]
        found += [classifier.names[place] for place in answers_of(classifier, pixels, "cpu").argmax(1)]
    return np.array([name == one.shape for name, one in zip(found, some, strict=True)])


def balanced(plant: Plant) -> tuple[list[Drawing], np.ndarray]:
    """Test drawings and the group of each: the plant's class or not, its colours or not."""
    found: list[Drawing] = []
    groups: list[int] = []
    left, index = [GROUP] * 4, 0
    while any(left):
        drawing = sample_attributes(0, "test", index)
        group = 2 * (drawing.shape == plant.shape) + (drawing.colour in plant.colours)
        index += 1
        if left[group]:
            left[group] -= 1
            found.append(drawing)
            groups.append(group)
    return found, np.array(groups)


def cpu() -> float:
    """Seconds of processor time of this process and those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, or what is made now and written there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(file.read_text())
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def audited(model: Path, out: Path, seed: int, *, same_images: bool = False) -> dict[str, Any]:
    """The findings of an audit, and what it took; `same_images` takes those of the audit that is there."""
    if not same_images:
        shutil.rmtree(out, ignore_errors=True)  # of one that was stopped, whose time would be too short
    before, started = cpu(), time.monotonic()
    words: dict[str, Any] = {
        "images": AUDIT,
        "confirm": CONFIRM,
        "seed": seed,
        "repair": REPAIR,
        "device": "cpu",
        "num_processes": 1,
    }
    found = hfsyn.audit(model, "shapes", out, overrides=f"seed={seed}", quiet=True, **words)
    assert found is not None
    took = {"cpu": round(cpu() - before), "wall": round(time.monotonic() - started)}
    return {"right": found["right"]["value"], "findings": found["findings"], **took}


def harmed(out: Path, count: int, first: int) -> Iterator[int]:
    """The seeds from `first` on whose plant does harm; their classifiers are in ``SEED/planted``."""
    seed = first
    while count:
        if kept(out / str(seed) / "harm.json", lambda s=seed: harm(s, out / str(s)))["harm"] >= HARM:  # type: ignore[misc]
            count -= 1
            yield seed
        seed += 1


def harm(seed: int, out: Path) -> dict[str, Any]:
    """By how much a classifier is worse on what it was never shown than on the rest of that class."""
    plant = plant_of(seed)
    model = trained(out / "planted", seed, write(drawings(seed, plant), out / "planted-drawings"))
    some, groups = balanced(plant)
    right = called(model, some)
    return {"seed": seed, "harm": float(right[groups == 2].mean() - right[groups == 3].mean())}


def pair(seed: int, out: Path) -> dict[str, Any]:
    """The audits of a classifier with a plant and of two without, on the same images."""
    plant = plant_of(seed)

    def plain(name: str, images: int) -> dict[str, Any]:
        model = trained(out / name, seed, write(drawings(seed, None, images), out / f"{name}-drawings"), images=images)
        return audited(model, out / "audit", seed, same_images=True)

    first = kept(out / "audited.json", lambda: audited(out / "planted", out / "audit", seed))
    second = kept(out / "plain.json", lambda: plain("plain", IMAGES))
    worse = kept(out / "true.json", lambda: {"points": [worse_by(out / "plain", one) for one in second["findings"]]})
    third = kept(out / "more.json", lambda: plain("more", MORE * IMAGES))
    place = next((n for n, finding in enumerate(first["findings"]) if names(finding, plant)), None)
    return {
        "seed": seed,
        "plant": plant._asdict(),
        "place": place,
        "said": [finding["sentence"] for finding in first["findings"]],
        "of_none": [finding["sentence"] for finding in second["findings"]],
        "points": worse["points"],
        "of_more": [finding["sentence"] for finding in third["findings"]],
        **{key: first[key] for key in ("right", "cpu", "wall")},
    }


def worse_by(model: Path, finding: dict[str, Any]) -> float:
    """By how many points a classifier is worse on test drawings of a finding than on others of its classes."""
    wanted = {("shape" if factor == "class" else factor): set(of) for factor, of in finding["levels"].items()}
    sides: tuple[list[Drawing], list[Drawing]] = ([], [])
    index = 0
    while min(map(len, sides)) < GROUP:
        one = sample_attributes(1, "test", index)
        index += 1
        if one.shape in wanted.get("shape", SHAPES):
            side = sides[all(getattr(one, name) in levels for name, levels in wanted.items())]
            if len(side) < GROUP:
                side.append(one)
    elsewhere, here = (100 * float(called(model, side).mean()) for side in sides)
    return elsewhere - here


def names(finding: dict[str, Any], plant: Plant) -> bool:
    """Whether a finding is the plant: its class, and none but its colours."""
    levels = finding["levels"]
    colours = set(levels.get("colour", ()))
    return levels.get("class") == [plant.shape] and bool(colours) and colours <= set(plant.colours)


def repaired(seed: int, out: Path) -> dict[str, Any]:
    """One classifier with a plant, and what images of its repair recipe and of all kinds add to it."""
    return kept(out / "result.json", lambda: _repaired(seed, out))


def _repaired(seed: int, out: Path) -> dict[str, Any]:
    plant = plant_of(seed)
    data, base = out / "planted-drawings", out / "planted"
    found = kept(out / "audited.json", lambda: audited(base, out / "audit", seed))
    axes = Axes(load_factors("shapes"), _CLASSES)
    prompts = out / "random.parquet"
    if not prompts.exists():
        write_prompts(prompts, axes.rows(cells(axes, REPAIR, seed + 1), "random"))
    recipes = {"random": recipe_for(load_recipe("shapes-basic", [f"seed={seed}"]), prompts.resolve(), "random")}
    if (out / "audit" / "repair.yaml").exists():
        recipes["repair"] = load_recipe(str(out / "audit" / "repair.yaml"))
    some, groups = balanced(plant)
    alike = [sample_attributes(0, "test", number) for number in range(2000)]

    def measured(model: Path) -> dict[str, float]:
        right = called(model, some)
        by_group = [float(right[groups == group].mean()) for group in range(4)]
        return {
            "balanced": (by_group[3] + float(np.mean(by_group[:3]))) / 2,
            "lacking": by_group[3],
            "alike": float(called(model, alike).mean()),
        }

    result: dict[str, Any] = {"seed": seed, "plant": plant._asdict(), "base": measured(base)}
    for name, recipe in recipes.items():
        run = hfsyn.build(recipe, out / f"{name}-run", device="cpu", num_processes=1, quiet=True)
        result[name] = measured(trained(out / name, seed, data, run.folder, base=base))
        result[f"{name}, new"] = measured(trained(out / f"{name}-new", seed, data, run.folder))
    # Without a finding there is nothing to repair: nothing is added, and nothing gained.
    result = {"repair": result["base"], "repair, new": result["base"], **result}
    return {**result, "said": [finding["sentence"] for finding in found["findings"]]}


def plants_line(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> tuple[str, bool]:
    """The first half in a line, and whether it holds."""
    among = sum(row["place"] is not None and row["place"] < 2 for row in rows)
    points = [one for row in rows for one in row["points"]]
    named, more = (sum(bool(row[key]) for row in rows) for key in ("of_none", "of_more"))
    kinds = ", ".join(f"{sum(row['plant']['kind'] == kind for row in rows)} {kind}" for kind in KINDS)
    wall, tried = max(row["wall"] for row in rows), seeds[len(rows) - 1] - seeds[0] + 1
    most = max(row["cpu"] for row in rows)
    text = (
        f"{len(rows)} plants (of {tried} tried; {kinds}): named among the first two findings in {among}; without a "
        f"plant, trained on {MORE * IMAGES} drawings, {more} with a finding; on {IMAGES} drawings {named}, and of the "
        f"{len(points)} findings {sum(one >= TRUE_POINTS for one in points)} are true of drawings; an audit took at "
        f"most {most / 60:.1f} minutes of processor time and {wall / 60:.1f} of the clock"
    )
    return text, among == len(rows) and more <= len(rows) / 10 and most <= MOST_SECONDS


def repair_line(rows: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """The second half in a line, and whether it holds."""
    parts, gains = [], {}
    for way, test in itertools.product(("", ", new"), ("balanced", "lacking", "alike")):
        arms = ("base", f"random{way}", f"repair{way}")
        mean = {arm: 100 * float(np.mean([row[arm][test] for row in rows])) for arm in arms}
        gain = paired_difference(*([100 * row[arm][test] for row in rows] for arm in (arms[2], arms[1])))
        gains[test + way] = gain
        ends = "" if gain["low"] is None else f" [{gain['low']:+.1f}, {gain['high']:+.1f}]"
        parts.append(
            f"{'new weights' if way else 'trained on'}, {test}: {mean['base']:.1f} before, {mean[arms[1]]:.1f} with "
            f"{REPAIR} of all kinds, {mean[arms[2]]:.1f} with {REPAIR} of the repair, {gain['mean']:+.1f}{ends}"
        )
    gain = gains["balanced"]
    holds = gain["mean"] >= LEAST_POINTS and (gain["low"] or 0) > 0
    return "\n  ".join([f"{len(rows)} classifiers, repaired", *parts]), holds


def main() -> int:
    """Print both lines, or JSON; 1 if something falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep everything there, and continue")
    parser.add_argument("--only", choices=["plants", "repair"])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="the first N pairs")
    parser.add_argument("--repaired", type=int, default=REPAIRED, help="the first N classifiers of the repair")
    parser.add_argument("--explore", action="store_true", help="other seeds")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = words.out or Path(folder)
        seeds, pairs, repairs = [], [], []
        for number, seed in enumerate(harmed(out, words.pairs + words.repaired, EXPLORED if words.explore else FIRST)):
            seeds.append(seed)
            if number < words.pairs and words.only != "repair":
                pairs.append(pair(seed, out / str(seed)))
            elif number >= words.pairs and words.only != "plants":
                repairs.append(repaired(seed, out / str(seed)))
    lines = [plants_line(pairs, seeds)] if pairs else []
    lines += [repair_line(repairs)] if repairs else []
    found: dict[str, Any] = {"plants": pairs, "repair": repairs}
    found["seconds"] = round(time.monotonic() - started)
    print(json.dumps(found, indent=1) if words.json else "\n".join(text for text, _ in lines))
    return int(not all(holds for _, holds in lines))


if __name__ == "__main__":
    sys.exit(main())
