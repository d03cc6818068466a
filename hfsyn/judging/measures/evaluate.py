"""Test a classifier on a set of images: logits in the set's own order, whatever runs it, then the measures.

Labels are matched by wnid, in whatever order the set or the classifier has them. If the set has only some of the
classes, as ImageNet-A and -R do, `metrics` holds both numbers: over all outputs, and in `masked` over the set's classes
alone. An image that cannot be decoded is not scored, since it would be wrong for every classifier; it is counted and
named in `undecodable`.
"""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builders.errors import quoted
from builders.files import atomic_text
from builders.variants import get_variant
from builders.variants.class_maps import OwnVariant
from builders.variants.real_labels import real_labels, validation_file
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import Classifier, open_classifier, start_accelerator, union
from hfsyn.judging.measures.answers import BATCH, answers, in_order
from hfsyn.judging.measures.metrics import Decisions, check_finite, decide, dump_result, metrics_of, wilson
from hfsyn.judging.measures.results import Result, interval, row
from hfsyn.judging.sets.image_set import ImageSet, Unread, facts_of, open_images, tell_left_out, tell_unread
from hfsyn.judging.sets.shared import check_classes, shared_with_training, tell_overlap, tell_part, testable
from hfsyn.progress import Progress
from hfsyn.workers import software


class Evaluation(Result):
    """How well a classifier answers; see `evaluate`."""

    def title(self) -> str:
        """Which classifier, and which set."""
        about = self["dataset"]
        return f"{self['model']['name']} on {about['reference']} ({about['split']}, {self['n']} images)"

    def rows(self) -> list[dict[str, str]]:
        """Accuracies and calibration with their 95 % intervals."""
        found = self["metrics"]
        rows = [
            row("top-1", interval(found["top1"], percent=True)),
            row("top-5", interval(found["top5"], percent=True)),
            row("calibration error", interval(found["ece"], percent=True), "confidence against accuracy"),
        ]
        if "overlap" in self:
            known = "not checked" if self["overlap"] is None else str(self["overlap"])
            rows.append(row("images it was trained on", known, "by their bytes; encoded again they count as others"))
        if whole := self["dataset"].get("part_of"):
            said = f"{self['dataset']['classes']} of the set's {whole['classes']} classes"
            rows.append(row("images", f"{self['n']} of {whole['images']}", said))
        if groups := self.get("groups"):
            rows.append(row("top-1", f"{groups['mean']:.4f}", f"mean over {len(groups['top1'])} versions of the test"))
        if masked := found["masked"]:
            rows.append(row("top-1", interval(masked["top1"], percent=True), f"among its {masked['classes']} classes"))
        if real := self["real"]:
            rows.append(row("ReaL", interval(real["top1"], percent=True), f"of {real['n']} images with such labels"))
        return rows


def evaluate(
    model: str | Path,
    dataset: str,
    *,
    split: str | None = None,
    limit_per_class: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    mixed_precision: str = "no",
    batch_size: int = BATCH,
    num_workers: int | None = None,
    quiet: bool = False,
    **said: Any,
) -> Evaluation:
    """Test a classifier on a dataset; called in every process of a launch.

    The arguments are those of `hfsyn.api.judging.evaluate`, as is the HfsynError that it raises; `said` goes to
    `open_classifier`.

    Returns:
        model, dataset, preprocessing, n, undecodable, metrics, seed, software, device; see the module's docstring. And
        ``overlap``: how many of the images the classifier was trained on, None if that was not checked.
    """
    if out is not None:
        _check_result_file(Path(out))
    accelerator = start_accelerator(device, mixed_precision)
    with accelerator.main_process_first():  # one process fills the caches
        images = open_images(dataset, split, limit=limit_per_class)
        classifier = open_classifier(model, device=str(accelerator.device), among=images.names, **said)
        images = _test_set(classifier, images)
        overlap = shared_with_training(Path(model).expanduser(), images)
    if accelerator.is_main_process and not quiet:
        tell_overlap(overlap, images)
        tell_left_out(images.facts())
        tell_part(images)
        _tell_preparation(classifier)
    result = measure(classifier, images, accelerator, batch_size=batch_size, num_workers=num_workers, quiet=quiet)
    result["overlap"] = overlap
    if out is not None and accelerator.is_main_process:
        atomic_text(Path(out), dump_result(result))
    return result


def measure(
    classifier: Classifier, images: ImageSet, accelerator: Any, *, quiet: bool = True, **loading: Any
) -> Evaluation:
    """Test an open classifier on an open set, in all processes of an Accelerator; see `evaluate` and `predict`."""
    columns = check_classes(classifier.classes, images, classifier.source or classifier.name)
    started = time.monotonic()
    columns, right = _right_columns(classifier.wnids, images, columns)
    mask = np.array(columns) if len(columns) < len(classifier.wnids) else None
    found = _answered(classifier, images, accelerator, right, mask, quiet=quiet, **loading)
    if not len(found.numbers):
        said = f"No image of {images.reference} can be decoded ({quoted(sorted(set(found.undecodable.values())), 3)})."
        raise HfsynError(said, "Look at the files.")
    if accelerator.is_main_process and not quiet:
        tell_unread(found.undecodable, f"{images.reference} ({images.split})")
    wnids, names = classifier.wnids, classifier.names
    named = [wnids[column] for column in found.whole.answers]
    return Evaluation(
        {
            "model": classifier.facts(),
            "dataset": images.facts(),
            "preprocessing": asdict(classifier.preprocessing),
            "timm_preprocessing": None if classifier.timm is None else asdict(classifier.timm),
            "n": len(found.numbers),
            "undecodable": facts_of(found.undecodable),
            "metrics": metrics_of(found.whole, wnids, names, mask, found.masked),
            "groups": _by_group(found, images),
            "real": real_accuracy([images.ids[number] for number in found.numbers], named, images),
            "seed": classifier.seed,
            "software": software(),
            "device": _device_text(accelerator),
            "seconds": round(time.monotonic() - started, 1),
        }
    )


def rights(classifier: Classifier, images: ImageSet, accelerator: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the images of a set that can be decoded, int64 (n,), and whether a classifier is right about each,
    bool (n,); as `measure`, in all processes.
    """
    columns = check_classes(classifier.classes, images, classifier.source or classifier.name)
    _, right = _right_columns(classifier.wnids, images, columns)
    found = _answered(classifier, images, accelerator, right, None)
    return found.numbers, found.whole.ranks == 0


@dataclass(frozen=True)
class _Answered:
    """Decisions on the images of a set that can be decoded, in its order; `numbers` are theirs in the set."""

    numbers: np.ndarray
    whole: Decisions
    masked: Decisions | None
    undecodable: Unread


def _right_columns(
    wnids: Sequence[str], images: ImageSet, columns: list[int]
) -> tuple[list[int], dict[int, np.ndarray]]:
    """The set's columns, and which are right for a class of which several are, by the class's own column."""
    also = {} if images.variant is None else get_variant(images.variant).also_right
    place = {wnid: column for column, wnid in enumerate(wnids)}
    right: dict[int, np.ndarray] = {}
    for wnid, others in also.items():
        if wnid in place and wnid in images.names:
            right[place[wnid]] = np.array([place[one] for one in (wnid, *others) if one in place])
    return sorted({*columns, *(int(column) for some in right.values() for column in some)}), right


def _answered(
    classifier: Classifier,
    images: ImageSet,
    accelerator: Any,
    right: Mapping[int, np.ndarray],
    mask: np.ndarray | None,
    *,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    quiet: bool = True,
) -> _Answered:
    """Test a set, in all processes. Of a batch's logits only the decisions are kept: those of 1.3 million images and a
    thousand classes would be 5 GB.
    """
    import torch

    place = {wnid: column for column, wnid in enumerate(classifier.wnids)}
    # Written in place: small arrays that stay between large ones that go would keep the heap from shrinking.
    table, seen = np.zeros((len(images), 9)), np.zeros(len(images), dtype=bool)
    unread: dict[str, str] = {}
    with Progress("test", len(images), quiet=quiet or not accelerator.is_main_process) as progress:
        for wanted, reasons, out in answers(classifier, images, accelerator, batch_size, num_workers):
            unread |= {images.ids[n]: reason for n, reason in zip(wanted.tolist(), reasons, strict=True) if reason}
            good = np.array([not reason for reason in reasons])
            logits, numbers = out.numpy()[good], wanted.numpy()[good]
            labels = np.array([place[images.wnids[number]] for number in numbers], dtype=np.int64)
            for own, some in right.items():  # of several right classes the likeliest is the label
                mine = np.flatnonzero(labels == own)
                labels[mine] = some[logits[np.ix_(mine, some)].argmax(1)]
            finite = np.isfinite(logits).all(1)
            each = [decide(np.where(finite[:, None], logits, 0), labels, chosen) for chosen in (None, mask)]
            fields = [field for one in each for field in (one.labels, one.answers, one.ranks, one.confidence)]
            table[numbers], seen[numbers] = np.column_stack([finite, *fields]), True
            progress.add(min(len(wanted) * accelerator.num_processes, len(images)))
    mine = np.flatnonzero(seen)
    table, order = in_order(accelerator, [torch.from_numpy(table[mine])], [torch.from_numpy(mine)], width=9)
    check_finite(np.where(table[:, 0], 0.0, np.nan))  # here all processes know of it
    decided = [_decisions(table[:, first : first + 4]) for first in (1, 5)]
    return _Answered(order, decided[0], None if mask is None else decided[1], union(accelerator, unread))


def _decisions(table: np.ndarray) -> Decisions:
    labels, answered, ranks = (table[:, column].astype(np.int64) for column in range(3))
    return Decisions(labels, answered, ranks, table[:, 3])


def _by_group(found: _Answered, images: ImageSet) -> dict[str, Any] | None:
    """Top-1 of each version of a test that there are several of, and ``mean``, in which each counts alike."""
    if images.groups is None:
        return None
    right = found.whole.ranks == 0
    group = np.array([images.groups[number] for number in found.numbers])
    top1 = {name: wilson(int(right[group == name].sum()), int((group == name).sum())) for name in dict.fromkeys(group)}
    return {"mean": float(np.mean([one["value"] for one in top1.values()])), "top1": top1}


def check_test(
    model: str | Path,
    dataset: str,
    *,
    split: str | None,
    limit_per_class: int | None,
    out: str | Path | None,
    **said: Any,
) -> None:
    """Find what is wrong with a test before it is started in several processes; arguments and errors as `evaluate`."""
    if out is not None:
        _check_result_file(Path(out))
    images = open_images(dataset, split, limit=limit_per_class)
    _test_set(open_classifier(model, among=images.names, **said), images)


def _check_result_file(out: Path) -> None:
    if out.is_dir():
        raise HfsynError(f"--out {out} is a folder.", f"Name a file: --out {out / 'result.json'}")
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise HfsynError(f"--out {out} lies in {parent}, which is a file.", "Name another file.")


def _test_set(classifier: Classifier, images: ImageSet) -> ImageSet:
    """What of a set the classifier is tested on; raises as `testable` and `check_counts`."""
    part = testable(classifier.classes, images, classifier.source or classifier.name)
    check_counts(images)
    return part


def _tell_preparation(classifier: Classifier) -> None:
    """Say on stderr where images are not prepared as timm would prepare them for these weights."""
    if classifier.timm is not None and classifier.timm != classifier.preprocessing:
        used, usual = asdict(classifier.preprocessing), asdict(classifier.timm)
        parts = [f"{name} {used[name]} (timm: {usual[name]})" for name in used if used[name] != usual[name]]
        print(f"Images are not prepared as timm's validate.py does it: {', '.join(parts)}.", file=sys.stderr)


def check_counts(images: ImageSet) -> None:
    """Refuse a copy of a variant that has another number of images than the variant's facts say.

    A part of a local copy (some of the classes, or a limit) passes; results say how many images they are over. Of a
    test-only variant only a limit does: its published numbers are all over the whole set. Raises HfsynError, with both
    numbers.
    """
    if images.variant is None or not images.complete:
        return
    variant = get_variant(images.variant)
    if isinstance(variant, OwnVariant):  # images may have been added since they were counted
        return
    wrong = None
    stated = next(iter(variant.splits.values()), None) if variant.tests_only else variant.splits.get(images.split)
    if variant.tests_only and len(images.classes) != len(variant.classes):
        wrong = f"{variant.name} has {len(images.classes)} of its {len(variant.classes)} classes."
    elif stated not in (None, 0, len(images)):
        wrong = f"{variant.name} ({images.split}) has {len(images)} images, and {stated} are right."
    if wrong:
        part = "a part on purpose with --limit (of a training: --set test.limit_per_class=N)"
        hint = f"Numbers on it would not be comparable. Get it again, or use {part}."
        raise HfsynError(f"This copy of {wrong}", f"{hint} See {variant.homepage}")


def real_accuracy(ids: Sequence[str], answers: Sequence[str], images: ImageSet) -> dict[str, Any] | None:
    """How often an answer is among an image's ReaL labels, on ImageNet-1k's validation images; None on other sets.

    `ids` end in the images' original file names; `answers` are wnids. Returns ``top1`` with its 95 % interval over the
    ``n`` images that have a label, and how many are ``without_label``.
    """
    if (images.variant, images.split) != ("imagenet-1k", "validation"):
        return None
    files = [validation_file(name) for name in ids]
    if None in files:
        return None  # a copy whose files were renamed: which image is which is unknown
    known = real_labels()
    right = [answer in known[str(file)] for file, answer in zip(files, answers, strict=True) if known[str(file)]]
    return {"n": len(right), "without_label": len(files) - len(right), "top1": wilson(sum(right), len(right))}


def _device_text(accelerator: Any) -> str:
    import torch

    device, precision = accelerator.device, accelerator.mixed_precision or "no"
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{accelerator.num_processes} x {device.type} ({what}), {precision} mixed precision"


def summary(result: Mapping[str, Any]) -> str:
    """A result's numbers in one line."""
    found = result["metrics"]
    parts = [
        f"{name} {found[key]['value']:.4f} [{found[key]['low']:.4f}, {found[key]['high']:.4f}]"
        for name, key in (("top-1", "top1"), ("top-5", "top5"), ("ECE", "ece"))
        if found[key]["value"] is not None  # four classes have no top-5
    ]
    text = f"{', '.join(parts)}, n = {result['n']}"
    if whole := result["dataset"].get("part_of"):
        text += f" of {whole['images']} ({result['dataset']['classes']} of the set's {whole['classes']} classes)"
    if groups := result.get("groups"):
        text += f"; mean over {len(groups['top1'])} versions {groups['mean']:.4f}"
    if masked := found["masked"]:
        text += f"; among the set's {masked['classes']} classes alone top-1 {masked['top1']['value']:.4f}"
    if result.get("real"):
        text += f"; ReaL {result['real']['top1']['value']:.4f} of {result['real']['n']}"
    return text
