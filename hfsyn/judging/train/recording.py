"""What a training shows of each image that it learns from: a record, kept for `hfsyn score --from`.

At places spread over the training, every image goes through the network as a test image does, neither augmented nor
mixed, so that a record does not depend on the order of the images, and the training does not depend on the record.

OUT/record/step-00000120.npz      what was seen at one place; written again where a training continues
OUT/record.parquet                a row for each image, written at the end

early_loss   cross-entropy in nats, the mean over the places of the first fifth of the steps (at least one place)
margin       logit of the label minus the largest other logit, the mean over all places (area under the margin,
             arXiv 2001.10528): low for what is hard or has a wrong label
forgotten    how often it was right at a place and wrong at the next (arXiv 1812.05159); all places if never right
likeness     cosine of its gradient in the last layer and that of the real validation images, the mean over the places
influence    the same inner product over the length of the latter alone: how much a step on this image lowers the
             validation loss, to first order (TracIn, arXiv 2002.08484)
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_write
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import Classifier
from hfsyn.judging.measures.answers import answers, in_order
from hfsyn.judging.sets.image_set import TEST, ImageSet, open_images
from hfsyn.judging.sets.shared import testable
from hfsyn.judging.train.checkpoints import RECORD, RECORDED
from hfsyn.judging.train.feeds import Feed
from hfsyn.judging.train.head import last_layer
from hfsyn.recipes.training_recipe import TrainConfig
from hfsyn.runs.shards import write_parquet

_EARLY = 0.2  # of the steps
MEASURES = ("early_loss", "margin", "forgotten", "likeness", "influence")


@dataclass(frozen=True)
class Recorder:
    """Records the images of some sets at `places` of a training; see the module. The same in every process."""

    folder: Path  # the training's
    sets: Sequence[ImageSet]
    against: ImageSet | None  # the real images whose gradient is compared; None leaves likeness and influence out
    wnids: Sequence[str]  # of the classifier's outputs
    steps: int
    points: int
    workers: int | None = None

    @property
    def places(self) -> list[int]:
        """The numbers of steps after which a record is taken, at most `points` of them, the last one included."""
        return sorted({max(1, round(self.steps * number / self.points)) for number in range(1, self.points + 1)})

    def facts(self) -> dict[str, Any]:
        """What a result says about the record."""
        return {"steps": self.places, "against": None if self.against is None else self.against.facts()}

    def missing(self, done: int) -> list[int]:
        """The places up to `done` steps at which nothing was recorded."""
        return [place for place in self.places if place <= done and not self._file(place).is_file()]

    def take(self, done: int, classifier: Classifier, accelerator: Any) -> None:
        """Record all images after that many steps; called in every process. The network's mode is left as it was."""
        arrays: dict[str, np.ndarray] = {}
        validation = self._gradient(classifier, accelerator) if self.against is not None else None
        for number, images in enumerate(self.sets):
            for name, values in self._of(images, classifier, accelerator, validation).items():
                arrays[f"{number}.{name}"] = values
        if accelerator.is_main_process:
            out = io.BytesIO()
            np.savez(out, allow_pickle=False, **arrays)
            (self.folder / RECORD).mkdir(exist_ok=True)
            atomic_write(self._file(done), lambda path: path.write_bytes(out.getvalue()))
        accelerator.wait_for_everyone()

    def _of(self, images: ImageSet, classifier: Classifier, accelerator: Any, validation: Any) -> dict[str, np.ndarray]:
        """loss, margin, likeness and influence of each image, float32 (n,), NaN if it cannot be decoded."""
        import torch

        rows: list[Any] = []
        for numbers, logits, features, errors in self._errors(images, classifier, accelerator):
            labels = self._labels(images, numbers)
            right = logits.gather(1, labels[:, None])[:, 0]
            others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            loss = torch.logsumexp(logits, 1) - right
            likeness = influence = torch.full_like(loss, torch.nan)
            if validation is not None:
                # The gradient of an image is the outer product of error and feature: it is never written out.
                influence = ((errors @ validation) * features).sum(1)
                likeness = influence / (errors.norm(dim=1) * features.norm(dim=1)).clamp_min(1e-30)
            rows.append((numbers, torch.stack([loss, right - others, likeness, influence], 1)))
        found = np.full((len(images), 4), np.nan, np.float32)
        values, numbers = in_order(accelerator, [row[1] for row in rows], [row[0] for row in rows], width=4)
        found[numbers] = values
        return dict(zip(("loss", "margin", "likeness", "influence"), found.T.copy(), strict=True))

    def _gradient(self, classifier: Classifier, accelerator: Any) -> Any:
        """The mean last-layer gradient of the validation images, (classes, features + 1), of length 1."""
        from accelerate.utils import gather_object

        assert self.against is not None
        total: Any = 0.0
        for _, _, features, errors in self._errors(self.against, classifier, accelerator):
            total = total + errors.double().T @ features.double()
        if accelerator.num_processes > 1:
            total = sum(gather_object([total]))
        return (total / total.norm().clamp_min(1e-30)).float()

    def _errors(self, images: ImageSet, classifier: Classifier, accelerator: Any) -> Iterator[tuple[Any, ...]]:
        """Batches of what can be decoded: numbers, logits, features and a one for the bias, softmax minus label."""
        import torch

        seen: list[Any] = []
        head = classifier.network.get_submodule(last_layer(classifier.network))
        hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0].float().cpu()))
        try:
            for numbers, reasons, logits in answers(classifier, images, accelerator, num_workers=self.workers):
                good = torch.tensor([not reason for reason in reasons])
                numbers, logits, features = numbers[good], logits[good], seen.pop()[good]
                errors = logits.softmax(1)
                errors[torch.arange(len(numbers)), self._labels(images, numbers)] -= 1
                yield numbers, logits, torch.cat([features, torch.ones(len(numbers), 1)], 1), errors
        finally:
            hook.remove()

    def _labels(self, images: ImageSet, numbers: Any) -> Any:
        import torch

        column = {wnid: number for number, wnid in enumerate(self.wnids)}
        return torch.tensor([column[images.wnids[number]] for number in numbers.tolist()], dtype=torch.long)

    def _file(self, done: int) -> Path:
        return self.folder / RECORD / f"step-{done:08d}.npz"

    def sum_up(self) -> Path:
        """Write the table from what was seen at all places; return its path."""
        seen = [np.load(self._file(place)) for place in self.places]
        early = sum(place <= _EARLY * self.steps for place in self.places) or 1
        columns: dict[str, list[Any]] = {name: [] for name in ("reference", "id", "wnid", *MEASURES)}
        for number, images in enumerate(self.sets):
            loss, margin, likeness, influence = (
                np.stack([place[f"{number}.{name}"] for place in seen])
                for name in ("loss", "margin", "likeness", "influence")
            )
            right = margin > 0
            forgotten = np.where(right.any(0), (right[:-1] & ~right[1:]).sum(0), len(seen))
            columns["reference"] += [images.reference] * len(images)
            columns["id"] += list(images.ids)
            columns["wnid"] += list(images.wnids)
            columns["forgotten"] += [None if np.isnan(m) else int(n) for n, m in zip(forgotten, margin[0], strict=True)]
            measured = {"early_loss": loss[:early], "margin": margin, "likeness": likeness, "influence": influence}
            for name, values in measured.items():
                columns[name] += [None if np.isnan(v) else float(v) for v in values.mean(0, dtype=np.float64)]
        write_parquet(self.folder / RECORDED, columns, _schema())
        return self.folder / RECORDED


def open_recorder(
    config: TrainConfig, folder: Path, workers: int | None, feed: Feed, test: ImageSet | None, steps: int
) -> Recorder:
    """The recorder of a training; raises HfsynError if its sets are streams, or as `open_images`."""
    if feed.sets is None:
        said = "--record passes through all images again and again, and a stream has no end that is known."
        raise HfsynError(said, "Leave --streaming or --record out.")
    part = config.test
    against = test
    if part.record_against is not None:
        whole = open_images(part.record_against, default=TEST)
        against = testable({wnid: feed.names[wnid] for wnid in feed.classes}, whole, "the training set")
    return Recorder(folder, feed.sets, against, feed.classes, steps, part.record_points, workers)


def _schema() -> Any:
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in ("reference", "id", "wnid")]
    kinds = {"forgotten": pa.int32()}
    return pa.schema([*texts, *(pa.field(name, kinds.get(name, pa.float32())) for name in MEASURES)])
