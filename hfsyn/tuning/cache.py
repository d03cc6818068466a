"""What a tuning shows again and again, computed once: latents of the images, and what the network is told of a prompt.

TUNED/cache/images-00000.safetensors   of 256 images: `latents`, (images, views, channels, height, width), for
                                       each crop it and its mirror image; `left_out`, why an image
                                       is not shown, 0 if it is
TUNED/cache/prompts-00000.safetensors  of 256 different prompts: the tensors of `Conditions`

A file is whole as soon as it has its name, so that a tuning that was stopped goes on with the next one; each process
makes every world-th.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from shutil import disk_usage
from typing import Any

from builders.errors import size_text
from builders.files import atomic_write, remove_abandoned
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.denoising_loss import Conditions, DenoisingLoss
from hfsyn.images.tuning import BatchSize
from hfsyn.progress import Progress
from hfsyn.tuning.examples import FLAT, SMALL, UNREADABLE, Example, Examples
from hfsyn.workers import current_worker

_ROWS = {"images": 256, "prompts": 256}  # in a file
_BATCH = 8  # of them at once through the autoencoder or the text encoders, if there is memory for so many
_OPEN = 512  # files that are kept open
_WHY = ("", UNREADABLE, SMALL, FLAT)


class Cache:
    """Latents and conditions of the examples of a tuning, on the disk; read as they are needed.

    Of each example there are `crops`. Without `texts` prompts are not encoded: they are when the text encoders are
    trained themselves.
    """

    def __init__(
        self, folder: Path, examples: Examples, *, flip: bool = True, texts: bool = True, crops: int = 1
    ) -> None:
        self._folder, self._examples, self._flip, self.crops = folder, examples, flip, crops
        prompts = {prompt for example in examples.rows for prompt in example.prompts}
        self._prompts = sorted({"", *prompts}) if texts else []
        self._views = BatchSize(_BATCH * (1 + flip))  # at once, whatever the number of crops is
        self._texts = BatchSize(_BATCH)
        self._opened = lru_cache(_OPEN)(_opened)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {prompt: number for number, prompt in enumerate(self._prompts)}

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:05d}.safetensors"

    def fill(self, loss: DenoisingLoss, *, quiet: bool) -> None:
        """Make this process's share of the files that are missing."""
        remove_abandoned(self._folder.glob(".*.tmp"))
        worker = current_worker()
        sizes = {"images": len(self._examples.rows), "prompts": len(self._prompts)}
        work = [(kind, n) for kind, count in sizes.items() for n in range(-(-count // _ROWS[kind]))]
        mine = [one for one in work[worker.rank :: worker.world] if not self._file(*one).is_file()]
        rows = {(kind, n): range(n * _ROWS[kind], min((n + 1) * _ROWS[kind], sizes[kind])) for kind, n in mine}
        total = sum(map(len, rows.values()))
        with Progress("encoding", total, quiet=quiet or not worker.is_main) as progress:
            pictures = self._examples.open(loss) if any(kind == "images" for kind, _ in mine) else None
            for kind, number in mine:
                parts = []
                for first in rows[kind, number][::_BATCH]:
                    some = range(first, min(first + _BATCH, rows[kind, number].stop))
                    parts += (
                        [self._images(loss, pictures(some))]
                        if pictures and kind == "images"
                        else self._texts.over(some, lambda rows: self._told(loss, rows))
                    )
                    progress.add(len(some))
                self._write(self._file(kind, number), parts)
                if (kind, number) == next(one for one in mine if one[0] == kind):
                    left = [n for of, n in work if of == kind and not self._file(kind, n).is_file()]
                    self._check_room(self._file(kind, number), len(left))

    def _check_room(self, first: Path, left: int) -> None:
        """Refuse to fill the disk with files like the first one, as many as are left."""
        needed, free = first.stat().st_size * left, disk_usage(self._folder).free
        if needed > free:
            said = f"{self._folder} will take {size_text(needed)} more, and {size_text(free)} are free."
            hint = "Free some room, and run it again: what is encoded is kept. Or lower tune.crops, or tune.flip=false."
            raise HfsynError(said, hint, ExitCode.PREFLIGHT)

    def _images(self, loss: DenoisingLoss, images: Sequence[Any]) -> dict[str, Any]:
        import torch
        from PIL import Image, ImageOps

        why = [_WHY.index(image) if isinstance(image, str) else 0 for image in images]
        blank = [Image.new("RGB", loss.size)] * self.crops
        whole = [crop for crops in images for crop in (blank if isinstance(crops, str) else crops)]
        views = [view for image in whole for view in ((image, ImageOps.mirror(image)) if self._flip else (image,))]
        latents = torch.cat(self._views.over(views, lambda some: loss.latents(some).cpu()))
        return {
            "latents": latents.view(len(images), self.crops * (1 + self._flip), *latents.shape[1:]),
            "left_out": torch.tensor(why, dtype=torch.uint8),
        }

    def _told(self, loss: DenoisingLoss, rows: Sequence[int]) -> dict[str, Any]:
        return {name: part.cpu() for name, part in loss.encode([self._prompts[n] for n in rows]).items()}

    @staticmethod
    def _write(path: Path, parts: Sequence[dict[str, Any]]) -> None:
        import torch
        from safetensors.torch import save_file

        whole = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        atomic_write(path, lambda temporary: save_file(whole, temporary))

    def usable(self) -> tuple[list[int], dict[str, int]]:
        """The numbers of the images that are shown, and how many are left out, by reason; once all files are there."""
        shown, why = [], Counter[str]()
        for first in range(0, len(self._examples.rows), _ROWS["images"]):
            for number, reason in enumerate(self._row("images", first)["left_out"][:].tolist(), first):
                if reason:
                    why[_WHY[reason]] += 1
                else:
                    shown.append(number)
        return shown, dict(why)

    def example(self, number: int) -> Example:
        """An example."""
        return self._examples.rows[number]

    def latents(self, numbers: Sequence[int], mirrored: Sequence[bool], crops: Sequence[int] | None = None) -> Any:
        """The latents of some examples, (n, channels, height, width), on the CPU; `crops` None is the first of each."""
        import torch

        views = [c * (1 + self._flip) + m for c, m in zip(crops or [0] * len(numbers), mirrored, strict=True)]
        rows = zip(numbers, views, strict=True)
        found = [self._row("images", n)["latents"][n % _ROWS["images"], view] for n, view in rows]
        return torch.stack(found)

    def conditions(self, prompts: Sequence[str]) -> Conditions:
        """What the network is told of some prompts, or of the empty one, on the CPU."""
        import torch

        places = [self._place[prompt] for prompt in prompts]
        rows = [{name: part[n % _ROWS["prompts"]] for name, part in self._row("prompts", n).items()} for n in places]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, kind: str, number: int) -> Any:
        """The file that holds a row, whose tensors are read from the disk as they are indexed."""
        return self._opened(self._file(kind, number // _ROWS[kind]))


def _opened(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    found = safe_open(path, framework="pt")
    return {name: found.get_slice(name) for name in found.keys()}  # noqa: SIM118
