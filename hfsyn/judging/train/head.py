"""The last layer alone: a linear probe, fitted to features that are computed once and kept.

The features of an image are what goes into the last layer, without augmentation. They are kept by the weights that made
them, the preparation, and the images: below the Hub's cache, in parts that are written once, so that a stopped
extraction continues and another probe of the same network and images begins with the fit.

The fit is multinomial logistic regression: the cross-entropy summed over the images, plus `model.head_l2` / 2 times the
sum of the squared weights; the bias is free. scikit-learn's ``LogisticRegression`` minimises the same with C = 1 /
head_l2. Several sets count by their weights, as images of an epoch do.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from builders.errors import first_line
from builders.files import atomic_write
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import Classifier, state_sha256
from hfsyn.judging.measures.answers import predict
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.progress import Progress

PART = 1024  # images of a file of features
MOST_STEPS = 2000  # of L-BFGS
_TOLERANCE = 1e-5  # the largest slope at which the fit has converged, in coordinates of equal curvature
_ROWS = 65_536  # features that are made float64 at once
_KEPT = 2**28  # numbers that stay float64, 2 GB: all of ImageNette's, not of ImageNet's


@dataclass(frozen=True)
class Kept:
    """Features of a set: float32 (n, d) of the images that can be read, their labels (n,), and why others cannot be."""

    values: np.ndarray
    labels: np.ndarray
    unread: Mapping[str, str]


def last_layer(network: Any) -> str:
    """The name of the linear layer that makes the logits of the features; raises HfsynError if there is none."""
    import torch

    layer = network.get_classifier() if hasattr(network, "get_classifier") else None
    name = next((name for name, module in network.named_modules() if module is layer), None)
    if not name or not isinstance(layer, torch.nn.Linear) or layer.bias is None:
        kind = type(layer).__name__
        raise HfsynError(f"The last layer of {type(network).__name__} is a {kind}, not a linear one.", "Train it all.")
    return name


def without_head(network: Any) -> Any:
    """A copy of a network that ends with the features. Raises HfsynError if they are not all that its logits need."""
    import torch

    name = last_layer(network)
    bare = copy.deepcopy(network).eval()
    parent, _, leaf = name.rpartition(".")
    setattr(bare.get_submodule(parent), leaf, torch.nn.Identity())
    return bare


def try_head(classifier: Classifier) -> None:
    """Compute two blank images, to find what is wrong before the first costly second; raises as `without_head`."""
    import torch

    network, pixels = classifier.network.eval(), torch.rand(2, 3, *classifier.preprocessing.extent)
    with torch.inference_mode():
        try:
            logits, features = network(pixels), without_head(network)(pixels)
        except RuntimeError as error:
            said = f"{classifier.name} cannot look at images of {classifier.preprocessing.image_size} pixels"
            raise HfsynError(f"{said}: {first_line(error)}.", "Leave --image-size out.") from None
        expected = network.get_submodule(last_layer(network))(features) if features.ndim == 2 else None
        if expected is None or not torch.allclose(expected, logits, atol=1e-4):
            said = f"The logits of {classifier.name} are not those of its last layer on its features."
            raise HfsynError(said, "Train it all, or name another network.")


def kept_features(
    classifier: Classifier, images: ImageSet, accelerator: Any, *, num_workers: int | None, quiet: bool
) -> Kept:
    """The features of a set, in every process: from the parts that are there, and made where they are not."""
    from safetensors.numpy import load_file, save_file

    folder = _place(classifier, images)
    bare = replace(classifier, network=without_head(classifier.network))
    starts = range(0, len(images), PART)
    files = [folder / f"{start:09d}.safetensors" for start in starts]
    missing = [pair for pair in zip(starts, files, strict=True) if not pair[1].is_file()]
    accelerator.wait_for_everyone()  # all have looked
    there = len(images) - sum(min(PART, len(images) - start) for start, _ in missing)
    with Progress("features", len(images), there, quiet=quiet or not missing) as progress:
        for start, file in missing:
            part = images.only(range(start, min(start + PART, len(images))))
            found = predict(bare, part, accelerator, num_workers=num_workers)
            if accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                held = {"features": found.logits, "numbers": found.numbers + start}
                unread = {"unread": json.dumps(found.undecodable)}
                atomic_write(file, partial(save_file, held, metadata=unread))
            progress.add(len(part))
    accelerator.wait_for_everyone()
    parts = [load_file(file) for file in files]
    column = {wnid: number for number, wnid in enumerate(classifier.wnids)}
    numbers = np.concatenate([part["numbers"] for part in parts])
    labels = np.array([column[images.wnids[number]] for number in numbers], dtype=np.int64)
    values = np.concatenate([part["features"] for part in parts if len(part["numbers"])] or [np.empty((0, 1))])
    return Kept(values, labels, {name: why for file in files for name, why in _unread(file).items()})


def _unread(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        found: dict[str, str] = json.loads(opened.metadata()["unread"])
    return found


def _place(classifier: Classifier, images: ImageSet) -> Path:
    """The folder of the features: named by all that decides them."""
    from huggingface_hub.constants import HF_HOME

    weights = state_sha256(classifier.network, without=[last_layer(classifier.network)])
    about = [
        PART,
        weights,
        asdict(classifier.preprocessing),
        images.fingerprint,
        images.images.lengths(range(len(images))),
    ]
    return Path(HF_HOME) / "hfsyn" / "features" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def fit_head(
    classifier: Classifier,
    sets: Sequence[tuple[ImageSet, float]],
    l2: float,
    accelerator: Any,
    *,
    num_workers: int | None,
    quiet: bool,
) -> tuple[Classifier, dict[str, Any], dict[str, str]]:
    """Fit the last layer of a classifier to sets, each with what one of its images counts.

    Returns the classifier, facts of the fit, and why images could not be read. Raises HfsynError if no image can be.
    """
    import torch

    found = [kept_features(classifier, images, accelerator, num_workers=num_workers, quiet=quiet) for images, _ in sets]
    values, labels = (np.concatenate([getattr(one, name) for one in found]) for name in ("values", "labels"))
    counts = np.concatenate([np.full(len(one.labels), count) for one, (_, count) in zip(found, sets, strict=True)])
    unread = {name: why for one in found for name, why in one.unread.items()}
    if not len(labels):
        raise HfsynError("No image of the training sets can be decoded.", "Look at the files.")
    weight, bias, facts = logistic_regression(
        values, labels, len(classifier.wnids), l2, counts, device=str(accelerator.device), quiet=quiet
    )
    layer = classifier.network.get_submodule(last_layer(classifier.network))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return classifier, {"features": values.shape[1], "l2": l2, **facts}, unread


def logistic_regression(
    values: np.ndarray,
    labels: np.ndarray,
    classes: int,
    l2: float,
    counts: np.ndarray | None = None,
    *,
    device: str = "cpu",
    quiet: bool = True,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Weights (classes, d) and bias (classes,) of multinomial logistic regression, by L-BFGS in float64.

    Args:
        values: features, float (n, d).
        labels: int (n,), below `classes`.
        classes: how many there are.
        l2: the penalty of the weights; see the module. Two classes are told apart by one vector, as scikit-learn does.
        counts: what each image counts, (n,); None is 1.
        device: where it is computed.
        quiet: no warning if it does not converge.

    Returns:
        Weights, bias, and ``steps``, ``loss`` (mean cross-entropy), ``slope`` (the largest by which the mean objective
        changes with a weight), ``converged`` and ``seconds``.
    """
    import torch

    began = time.monotonic()
    count = np.ones(len(labels)) if counts is None else counts
    x, y, each = (torch.from_numpy(array).to(device) for array in (values, labels, count.astype(np.float64)))
    objective = _Objective(x, y, each, classes, l2)
    optimizer = torch.optim.LBFGS(
        [objective.theta],
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(objective)
    objective()
    steps, rest = int(optimizer.state[objective.theta]["n_iter"]), float(objective.theta.grad.abs().max())
    converged = rest <= 10 * _TOLERANCE
    if not converged and not quiet:
        said = f"the last layer has not converged: its largest slope is {objective.slope:.1e} after {steps} steps"
        print(f"Warning: {said}. A larger model.head_l2 makes it easier.", file=sys.stderr)
    found = {"steps": steps, "loss": objective.loss, "slope": objective.slope, "converged": converged}
    weight, bias = objective.solution()
    return weight.cpu().numpy(), bias.cpu().numpy(), {**found, "seconds": round(time.monotonic() - began, 1)}


class _Objective:
    """The mean objective of logistic regression, which leaves its gradient in `theta`; see `logistic_regression`.

    L-BFGS works in coordinates in which it curves alike in all directions where it starts: shifted by the mean (the
    bias is free), turned to the features' main axes and stretched. The optimum stays where it is.
    """

    def __init__(self, x: Any, y: Any, count: Any, classes: int, l2: float) -> None:
        import torch

        self._x, self._y, self._count, self._total = x, y, count, float(count.sum())
        self._penalty = l2 * (2 if classes == 2 else 1) / self._total
        self._parts = [slice(start, start + _ROWS) for start in range(0, len(y), _ROWS)]
        self._centre = sum((x[some].double() * count[some, None]).sum(0) for some in self._parts) / self._total
        self._kept = [self._rows(some) for some in self._parts] if x.numel() <= _KEPT else None
        spread = sum((rows := self._rows(some)).T @ (rows * count[some, None]) for some in self._parts) / self._total
        along, axes = torch.linalg.eigh(spread)
        self._axes = axes / (along.clamp(min=0) * (classes - 1) / classes**2 + self._penalty).sqrt()
        self.theta: Any = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
        self.loss, self.slope = 0.0, float("inf")

    def _rows(self, some: slice) -> Any:
        return self._x[some].double() - self._centre

    def __call__(self) -> float:
        import torch

        weight, bias = self.theta.detach()[:, :-1] @ self._axes.T, self.theta.detach()[:, -1]
        slope, loss = torch.zeros_like(weight), 0.0
        self.theta.grad = torch.zeros_like(self.theta)
        for number, some in enumerate(self._parts):
            rows, y, count = self._kept[number] if self._kept else self._rows(some), self._y[some], self._count[some]
            likely = torch.log_softmax(rows @ weight.T + bias, 1)
            loss -= float((likely.gather(1, y[:, None])[:, 0] * count).sum()) / self._total
            error = likely.exp_()
            error[torch.arange(len(rows), device=y.device), y] -= 1
            error *= count[:, None] / self._total
            slope += error.T @ rows
            self.theta.grad[:, -1] += error.sum(0)
        slope += self._penalty * weight
        self.theta.grad[:, :-1] = slope @ self._axes
        self.loss, self.slope = loss, float(slope.abs().max())
        return loss + self._penalty / 2 * float(weight.pow(2).sum())

    def solution(self) -> tuple[Any, Any]:
        """Weights and bias for the features as they are."""
        weight = self.theta.detach()[:, :-1] @ self._axes.T
        return weight, self.theta.detach()[:, -1] - weight @ self._centre
