"""What a network answers for each image of a set, whatever runs it: the same logits in the same order.

Batches start at fixed places of the set and are dealt out to the processes; answers are put together by the images'
numbers, so that no image is counted twice or missed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.images.decoding import ImageRejected
from hfsyn.judging.classifier import Classifier, default_workers, union
from hfsyn.judging.preprocessing import plain_transform
from hfsyn.judging.sets.batches import loader
from hfsyn.judging.sets.image_set import ImageSet, Unread
from hfsyn.progress import Progress

BATCH = 64
"""Images of a batch. Batches start at fixed places of the set, so that a logit does not depend on the processes."""


@dataclass(frozen=True)
class Predictions:
    """A classifier's answers for the images of a set that can be decoded, in the set's order.

    `logits` are float32 (n, classes of the classifier); `labels` and `numbers` int64 (n,): the column of the right
    class, and the image's number in the set.
    """

    logits: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    undecodable: Unread


def predict(
    classifier: Classifier,
    images: ImageSet,
    accelerator: Any,
    *,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    quiet: bool = True,
) -> Predictions:
    """The logits of a set, complete in every process.

    Batches start at fixed places of the set and are dealt out to the processes; their answers are put together by the
    images' numbers, so that no image is counted twice or missed, whatever the number of processes.
    """
    import torch

    logits, numbers = [], []
    unread: dict[str, str] = {}
    quiet = quiet or not accelerator.is_main_process
    with Progress("test", len(images), quiet=quiet) as progress:
        for wanted, reasons, out in answers(classifier, images, accelerator, batch_size, num_workers):
            unread |= {images.ids[n]: reason for n, reason in zip(wanted.tolist(), reasons, strict=True) if reason}
            good = torch.tensor([not reason for reason in reasons])
            logits.append(out[good])
            numbers.append(wanted[good])
            progress.add(min(len(wanted) * accelerator.num_processes, len(images)))
    all_logits, all_numbers = in_order(accelerator, logits, numbers, width=len(classifier.wnids))
    column = {wnid: number for number, wnid in enumerate(classifier.wnids)}
    labels = np.array([column[images.wnids[number]] for number in all_numbers], dtype=np.int64)
    return Predictions(all_logits, labels, all_numbers, union(accelerator, unread))


def answers(
    classifier: Classifier, images: ImageSet, accelerator: Any, batch_size: int = BATCH, num_workers: int | None = None
) -> Iterator[tuple[Any, Sequence[str], Any]]:
    """This process's batches of a set: the images' numbers, why each cannot be decoded or "", and its logits, float32
    on the CPU. One that cannot be decoded keeps its place in the batch, so that the others' logits do not move.
    """
    import torch

    network, device = classifier.network, accelerator.device
    was_training = network.training
    network.eval()
    starts = range(accelerator.process_index * batch_size, len(images), accelerator.num_processes * batch_size)
    batches = loader(
        _Prepared(classifier, images),
        default_workers(accelerator) if num_workers is None else num_workers,
        _collate,
        batch_sampler=[list(range(start, min(start + batch_size, len(images)))) for start in starts],
        pin_memory=device.type == "cuda",
    )
    try:
        for wanted, reasons, pixels in batches:
            with torch.inference_mode(), accelerator.autocast():
                out = network(pixels.to(device, non_blocking=True)).float().cpu()
            yield wanted, reasons, out
    finally:
        network.train(was_training)


def in_order(accelerator: Any, rows: Sequence[Any], of: Sequence[Any], *, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all processes, tensors (n, width), in the order of the images' numbers `of`; and these numbers."""
    import torch
    from accelerate.utils import gather_object

    logits = torch.cat([torch.empty(0), *rows])  # a vector of nothing goes with rows of any width
    numbers = torch.cat([torch.empty(0, dtype=torch.long), *of])
    if accelerator.num_processes > 1:  # each has another number of images: as objects
        logits, numbers = torch.cat(gather_object([logits])), torch.cat(gather_object([numbers]))
    order = torch.argsort(numbers)
    return (logits[order] if len(order) else logits.view(0, width)).numpy(), numbers[order].numpy()


class _Prepared:
    """A map-style dataset: ``(number, why it cannot be decoded or "", pixels)``."""

    def __init__(self, classifier: Classifier, images: ImageSet) -> None:
        self._images, self._transform = images, plain_transform(classifier.preprocessing)
        self._extent = classifier.preprocessing.extent

    def __getitem__(self, number: int) -> tuple[int, str, Any]:
        import torch

        try:
            return number, "", self._transform(self._images.picture(number))
        except ImageRejected as problem:
            return number, problem.reason, torch.zeros(3, *self._extent)


def _collate(items: Sequence[tuple[int, str, Any]]) -> tuple[Any, tuple[str, ...], Any]:
    import torch

    numbers, reasons, pixels = zip(*items, strict=True)
    return torch.tensor(numbers), reasons, torch.stack(pixels)
