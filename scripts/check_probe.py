#!/usr/bin/env python
"""A linear probe of hfsyn beside scikit-learn's logistic regression on the same features of photographs.

    python scripts/check_probe.py --data imagenette --model tf_efficientnet_lite0 --weights lite0.pth --image-size 128 \
        --out out

DIR is an ImageNette: train/<wnid>/*, val/<wnid>/*. `hfsyn train --head-only` is run as anybody would run it, on all
photographs of the training split; then scikit-learn fits the features that it kept, with the same penalty. Both are
tested on the features of all validation photographs. It aims at 0.2 points between the two accuracies and one minute
for the fit, the features not counted; exit code 1 where it falls short.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hfsyn
from hfsyn.judging.classifier import open_classifier, start_accelerator
from hfsyn.judging.sets.image_set import open_images
from hfsyn.judging.train.head import kept_features

POINTS, SECONDS = 0.2, 60.0
TOLERANCE, MOST_STEPS = 1e-4, 1000  # of scikit-learn's solver: the first is its own


def check(data: Path, model: str, weights: str, out: Path, size: int | None, l2: float) -> dict[str, Any]:
    """Accuracies and seconds of both."""
    from sklearn.linear_model import LogisticRegression

    dataset = f"imagenette={data}"
    recipe = [f"model.init_from={weights}", f"model.head_l2={l2}"]
    words: dict[str, Any] = {"train_dataset": dataset, "model": model, "image_size": size, "overrides": recipe}
    ours = hfsyn.train(out, **words, head_only=True, device="cpu")
    classifier, accelerator = open_classifier(out), start_accelerator("cpu")
    train, test = (
        kept_features(classifier, open_images(dataset, split), accelerator, num_workers=None, quiet=False)
        for split in ("train", "validation")
    )
    began = time.monotonic()
    theirs = LogisticRegression(C=1 / l2, tol=TOLERANCE, max_iter=MOST_STEPS).fit(
        train.values.astype("float64"), train.labels
    )
    seconds = time.monotonic() - began
    head = classifier.network.get_classifier()
    answers = (test.values @ head.weight.detach().numpy().T + head.bias.detach().numpy()).argmax(1)
    return {
        "photographs": [len(train.labels), len(test.labels)],
        "features": train.values.shape[1],
        "hfsyn": {"top1": float((answers == test.labels).mean()), **ours["training"]["head"]},
        "scikit-learn": {
            "top1": float(theirs.score(test.values.astype("float64"), test.labels)),
            "steps": int(theirs.n_iter_.max()),
            "seconds": round(seconds, 1),
        },
    }


def main() -> int:
    """Check, print JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", required=True, help="a network of timm")
    parser.add_argument("--weights", required=True, help="its weights: a file, or the folder of a training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-size", type=int, help="input of the network")
    parser.add_argument("--l2", type=float, default=1.0)
    words = parser.parse_args()
    found = check(words.data, words.model, words.weights, words.out, words.image_size, words.l2)
    print(json.dumps(found, indent=1))
    apart = 100 * abs(found["hfsyn"]["top1"] - found["scikit-learn"]["top1"])
    print(f"{apart:.2f} points apart, {found['hfsyn']['seconds']} s for the fit", file=sys.stderr)
    return int(apart > POINTS or found["hfsyn"]["seconds"] > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
