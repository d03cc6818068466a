"""How near synthetic images are to real ones, how much of them they cover, and whether any is a copy.

Everything is measured on features: the output of a timm network before its last layer. The numbers depend on the
network, so a result always names it; compare only numbers of one network. `hfsyn.judging.measures.distances` has the
formulas.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builders.images.decoding import ImageRejected
from builders.stores.copies import on_disk
from hfsyn.errors import HfsynError
from hfsyn.judging.measures.distances import (
    NEIGHBOURS,
    frechet_distance,
    frechet_floor,
    nearest,
    neighbourhoods,
    nobody,
)
from hfsyn.judging.measures.feature_network import network_facts, open_network
from hfsyn.judging.measures.pairs import pairs_sheet
from hfsyn.judging.measures.results import Result, row
from hfsyn.judging.measures.tuned_on import named_by, opened_if_here
from hfsyn.judging.sets.copies import COPY, Copies, copies_between, copies_within, thumbnail
from hfsyn.progress import Progress
from hfsyn.runs.sheets import save_png

DEFAULT_FEATURES = "resnet18.a1_in1k"
"""A small network with timm's ImageNet weights, 512 features; downloaded on first use."""
_PAIRS = 100  # pairs of copies that a result names
_BATCH = 64


@dataclass(frozen=True)
class Features:
    """Features of a set of images, in its order."""

    values: np.ndarray  # float32 (n, d)
    hashes: Sequence[str]  # SHA-256 of size and pixels of each image: equal for equal pixels, however they are stored
    ids: Sequence[str]
    thumbnails: np.ndarray  # uint8 (n, 32, 32, 3); see `hfsyn.judging.sets.copies`

    def __len__(self) -> int:
        return len(self.hashes)


class Fidelity(Result):
    """How near two sets are; see `measure_fidelity`."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the list by image, ``nearest_real``."""
        return {name: value for name, value in self.items() if name != "nearest_real"}

    def title(self) -> str:
        """Which sets, and in which features."""
        sets, features = self["sets"], self["features"]
        synthetic, real = (f"{sets[name]['reference']} ({len_of} images)" for name, len_of in self._counts())
        return f"{synthetic} against {real}, {features['dimension']} features of {features['name']}"

    def _counts(self) -> list[tuple[str, int]]:
        return [(name, self["images"][name]) for name in ("synthetic", "real")]

    def rows(self) -> list[dict[str, str]]:
        """The measures, each with its yardstick."""
        frechet, copies = self["frechet"], self["duplicates"]
        floor = "" if frechet["floor"] is None else f"; two halves of the real set: {frechet['floor']:.4g}"
        rows = [
            row("Fréchet distance", f"{frechet['value']:.4g}", f"lower is nearer{floor}"),
            row("precision", f"{self['precision']:.3f}", "share of synthetic images that are near a real one"),
            row("recall", f"{self['recall']:.3f}", "share of real images that are near a synthetic one"),
            row("density", f"{self['density']:.3f}", "real neighbourhoods around a synthetic image, about 1 if alike"),
            row("coverage", f"{self['coverage']:.3f}", "share of real neighbourhoods with a synthetic image"),
        ]
        if copies is None:
            return rows
        within = f"within the real set: {_copies(copies['within_real'])}"
        rows += [
            row("copies within the set", _copies(copies["within"]), within),
            row("copies of real images", _copies(copies["against_real"]), within),
        ]
        if found := copies.get("against_evaluation"):
            rows.append(row("copies of test images", _copies(found), "a classifier must not train on these"))
        if found := copies.get("against_tuned_on"):
            rows.append(row("copies of tuning images", _copies(found), f"its model was tuned on {self['tuned_on']}"))
        return rows

    def remarks(self) -> list[str]:
        """Too few images, and features that see little."""
        size = self["features"]["dimension"]
        found = [
            f"{count} {name} images are no more than the {size} features: the Fréchet distance says little about them"
            for name, count in self._counts()
            if count <= size
        ]
        if (seen := self.get("tuned_on")) and "tuned_on" not in self["sets"]:
            told = f"its model was tuned on {seen}"
            apart = f"{told}, which is not compared with: {self.get('not_compared')}"
            found.append(apart if "not_compared" in self else f"{told}: copies of real images are copies of these")
        if self["features"]["weights"] == "random":
            found.append("the network has random weights and sees little more than colours")
        return found


def _copies(found: Mapping[str, int]) -> str:
    return f"{found['exact']} exact, {found['near']} near"


def measure_fidelity(
    synthetic: str,
    real: str,
    *,
    features: str = DEFAULT_FEATURES,
    split: str | None = None,
    evaluation: str | None = None,
    limit_per_class: int | None = None,
    overrides: Any = None,
    device: str = "cpu",
    copies: bool = True,
    sheet: str | Path | None = None,
    quiet: bool = False,
) -> Fidelity:
    """Compare a synthetic dataset with the real one behind it.

    The arguments are those of `hfsyn.api.judging.fidelity`, as is the HfsynError that it raises; `split` is the
    synthetic set's. Features of ``random:NAME`` see little more than colours, and are named so in the result.

    Returns:
        What `compare_sets` returns, with ``features`` (name, weights, sha256, dimension), ``sets`` and ``undecodable``.
    """
    from hfsyn.judging.preprocessing import plain_transform
    from hfsyn.judging.sets.image_set import facts_of, tell_unread

    if sheet is not None and (on_disk(sheet, "--sheet").suffix.lower() != ".png" or Path(sheet).is_dir()):
        raise HfsynError(f"--sheet {sheet} is not the name of a PNG file.", "Name one: --sheet copies.png")
    if sheet is not None and not copies:
        raise HfsynError("--sheet shows copies, and --no-copies looks for none.", "Leave out one of them.")
    classifier = open_network(features, device, overrides)
    transform = plain_transform(classifier.preprocessing)
    tuning, opened = _sets(synthetic, real, evaluation, split, limit_per_class)
    sets, found, undecodable = {}, {}, {}
    for name, images in opened.items():
        bad: dict[str, str] = {}
        with Progress(f"features of {images.reference}", len(images), quiet=quiet) as progress:
            found[name] = extract(
                _decoded(images, bad), classifier.network, transform, device, progress.add, copies=copies
            )
        sets[name], undecodable[name] = images.facts(), facts_of(bad)
        tell_unread(bad, f"{images.reference} ({images.split})")
    about = {
        "features": network_facts(classifier, features, found["real"].values.shape[1]),
        "sets": sets,
        "undecodable": undecodable,
        **tuning,
    }
    more = {name: found[name] for name in ("evaluation", "tuned_on") if name in found}
    result = Fidelity(about | compare_sets(found["synthetic"], found["real"], **more, copies=copies, quiet=quiet))
    if sheet is not None:
        save_png(pairs_sheet(result, opened), on_disk(sheet))
    return result


def _sets(
    synthetic: str, real: str, evaluation: str | None, split: str | None, limit: int | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """What the synthetic set's generator was ``tuned_on``, if it is known, and why that is ``not_compared``; and all
    sets, opened.
    """
    from hfsyn.judging.sets.image_set import TEST, TRAIN, open_images
    from hfsyn.judging.sets.shared import same_names

    opened = {
        "synthetic": open_images(synthetic, split, default=TRAIN, limit=limit),
        "real": open_images(real, default=TRAIN, limit=limit),
    }
    if evaluation is not None:
        opened["evaluation"] = open_images(evaluation, default=TEST, limit=limit)
    tuning = {}
    if (tuned_on := named_by(opened["synthetic"], synthetic)) is not None:
        seen, tuning["tuned_on"] = opened_if_here(tuned_on, opened["real"], limit), tuned_on
        if isinstance(seen, str):
            tuning["not_compared"] = seen
        elif seen is not opened["real"]:
            opened["tuned_on"] = seen
    same_names([(images.reference, images.names) for images in opened.values()])
    return tuning, opened


def _decoded(images: Any, bad: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
    for number, name in enumerate(images.ids):
        try:
            yield name, images.picture(number)
        except ImageRejected as problem:
            bad[name] = problem.reason


def extract(
    images: Iterable[tuple[str, Image.Image]],
    network: Any,
    transform: Any,
    device: str = "cpu",
    told: Callable[[int], None] = nobody,
    *,
    copies: bool = True,
) -> Features:
    """Features of images, ``(id, image)`` pairs, a batch at a time; `transform` makes float tensors (3, h, w), and
    `told` hears how many images are done. Without `copies` there are no thumbnails.
    """
    import torch

    def prepared() -> Iterator[tuple[str, str, Any]]:
        for name, image in images:
            rgb = image.convert("RGB")
            if copies:
                thumbnails.append(thumbnail(rgb))
            yield name, pixel_hash(rgb), transform(rgb)

    values: list[np.ndarray] = []
    hashes: list[str] = []
    ids: list[str] = []
    thumbnails: list[np.ndarray] = []
    waiting = prepared()
    while batch := list(islice(waiting, _BATCH)):
        ids += [name for name, _, _ in batch]
        hashes += [found for _, found, _ in batch]
        with torch.inference_mode():
            maps = network.forward_features(torch.stack([pixels for _, _, pixels in batch]).to(device))
            values.append(network.forward_head(maps, pre_logits=True).float().cpu().numpy())
        told(len(batch))
    if not ids:
        raise HfsynError("There is no image to look at.", "Check the dataset and its split.")
    return Features(np.concatenate(values), hashes, ids, np.array(thumbnails, dtype=np.uint8))


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of an image's size and RGB pixels."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def compare_sets(
    synthetic: Features,
    real: Features,
    evaluation: Features | None = None,
    tuned_on: Features | None = None,
    *,
    copies: bool = True,
    quiet: bool = True,
) -> dict[str, Any]:
    """Every measure of this module for one synthetic set and the real images behind it; ``duplicates`` is None without
    `copies`.

    Synthetic copies of `evaluation`, images on which classifiers are tested, would make a test worthless; those of
    `tuned_on`, which a LoRA has seen, would give these away. Raises HfsynError for fewer than ``NEIGHBOURS + 1`` images
    in a set.
    """
    for name, found in (("synthetic", synthetic), ("real", real)):
        if len(found) <= NEIGHBOURS:
            raise HfsynError(f"The {name} set has {len(found)} images.", f"At least {NEIGHBOURS + 1} are needed.")
    with Progress("compare features", len(real) + 3 * len(synthetic), quiet=quiet) as progress:
        result: dict[str, Any] = {
            "images": {"synthetic": len(synthetic), "real": len(real)},
            "frechet": {"value": frechet_distance(synthetic.values, real.values), "floor": frechet_floor(real.values)},
            **neighbourhoods(synthetic.values, real.values, progress.add),
            "nearest_real": nearest_images(synthetic, real, progress.add),
        }
    result["duplicates"] = None
    if not copies:
        return result
    result["duplicates"] = {
        "threshold": COPY,
        "within": duplicates_within(synthetic, quiet=quiet),
        "within_real": duplicates_within(real, quiet=quiet),
        "against_real": duplicates_between(synthetic, real, quiet=quiet),
    }
    for name, others in (("evaluation", evaluation), ("tuned_on", tuned_on)):
        if others is not None and len(others):
            result["images"][name] = len(others)
            result["duplicates"][f"against_{name}"] = duplicates_between(synthetic, others, quiet=quiet)
    return result


def nearest_images(a: Features, b: Features, told: Callable[[int], None] = nobody) -> list[dict[str, Any]]:
    """For each image of `a` the one of `b` whose features have the highest cosine: ``id``, ``nearest``, ``cosine``."""
    best, cosines = nearest(a.values, b.values, told)
    return [
        {"id": name, "nearest": b.ids[j], "cosine": round(float(cosine), 6)}
        for name, j, cosine in zip(a.ids, best, cosines, strict=True)
    ]


def duplicates_within(a: Features, *, quiet: bool = True) -> dict[str, Any]:
    """Images of a set that have a copy in it: ``exact`` in pixels (all but the first of each group), ``near``
    (see `hfsyn.judging.sets.copies`; exact ones included), and the most alike ``pairs``, by their ids.
    """
    found = copies_within(a.thumbnails, quiet=quiet)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, pixels in enumerate(a.hashes):
        groups[pixels].append(number)
    same = {number for group in groups.values() if len(group) > 1 for number in group}
    near = same | {number for pair in found.pairs for number in pair}
    return {"exact": len(a) - len(groups), "near": len(near), "pairs": _named(found, a, a)}


def duplicates_between(a: Features, b: Features, *, quiet: bool = True) -> dict[str, Any]:
    """Images of `a` that are also in `b`: ``exact`` in pixels, ``near`` (exact ones included), and the ``pairs``."""
    known = set(b.hashes)
    found = copies_between(a.thumbnails, b.thumbnails, quiet=quiet)
    same = {number for number, pixels in enumerate(a.hashes) if pixels in known}
    near = same | {number for number, _ in found.pairs}
    return {"exact": len(same), "near": len(near), "pairs": _named(found, a, b)}


def _named(found: Copies, a: Features, b: Features) -> list[list[Any]]:
    """The most alike pairs, by their ids, with their likeness."""
    pairs = zip(found.pairs[:_PAIRS], found.likeness, strict=False)
    return [[a.ids[first], b.ids[second], round(likeness, 4)] for (first, second), likeness in pairs]
