"""What a tuning shows again and again, computed once: latents of the images, and what the network is told of a prompt.

TUNED/cache/images-00000.safetensors   of 64 images: `latents`, (images, 2, channels, height, width), mirrored second
TUNED/cache/prompts-00000.safetensors  of 64 different prompts: the tensors of `Conditions`

A file is whole as soon as it has its name, so that a tuning that was stopped goes on with the next one; each process
makes every world-th.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from builders.files import atomic_write, remove_abandoned
from hfsyn.images.denoising_loss import Conditions, DenoisingLoss
from hfsyn.images.generate_stage import SourcePictures
from hfsyn.progress import Progress
from hfsyn.runs.run import Run
from hfsyn.runs.specs import SampleSpec
from hfsyn.workers import current_worker

_ROWS = 64  # images or prompts in a file
_BATCH = 8  # of them at once through the autoencoder or the text encoders


class Cache:
    """Latents and conditions of the samples of a tuning, on the disk; read as they are needed."""

    def __init__(self, folder: Path, specs: Sequence[SampleSpec]) -> None:
        self._folder, self._specs = folder, specs
        self._prompts = sorted({"", *(spec.prompt for spec in specs)})
        self._open: dict[Path, Any] = {}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {prompt: number for number, prompt in enumerate(self._prompts)}

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:05d}.safetensors"

    def fill(self, run: Run, loss: DenoisingLoss, *, quiet: bool) -> None:
        """Make this process's share of the files that are missing."""
        remove_abandoned(self._folder.glob(".*.tmp"))
        worker = current_worker()
        work = [(kind, n) for kind, rows in self._sizes.items() for n in range(-(-rows // _ROWS))]
        mine = [one for one in work[worker.rank :: worker.world] if not self._file(*one).is_file()]
        with Progress("encoding", len(mine) * _ROWS, quiet=quiet or not worker.is_main) as progress:
            pictures = SourcePictures(run, loss.fit) if any(kind == "images" for kind, _ in mine) else None
            for kind, number in mine:
                rows = range(number * _ROWS, min((number + 1) * _ROWS, self._sizes[kind]))
                tensors = self._images(loss, pictures, rows) if kind == "images" else self._told(loss, rows)
                self._write(self._file(kind, number), tensors)
                progress.add(_ROWS)

    @property
    def _sizes(self) -> dict[str, int]:
        return {"images": len(self._specs), "prompts": len(self._prompts)}

    def _images(self, loss: DenoisingLoss, pictures: Any, rows: range) -> dict[str, Any]:
        import torch
        from PIL import ImageOps

        found = []
        for first in rows[::_BATCH]:
            images = pictures(self._specs[first : min(first + _BATCH, rows.stop)])
            views = [view for image in images for view in (image, ImageOps.mirror(image))]
            latents = loss.latents(views).cpu()
            found.append(latents.view(len(images), 2, *latents.shape[1:]))
        return {"latents": torch.cat(found)}

    def _told(self, loss: DenoisingLoss, rows: range) -> dict[str, Any]:
        import torch

        parts = [loss.encode(self._prompts[n : min(n + _BATCH, rows.stop)]) for n in rows[::_BATCH]]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    @staticmethod
    def _write(path: Path, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        atomic_write(path, lambda temporary: save_file(whole, temporary))

    def latents(self, numbers: Sequence[int], mirrored: Sequence[bool]) -> Any:
        """The latents of some samples, (n, channels, height, width), on the CPU."""
        import torch

        return torch.stack(
            [self._row("images", n)["latents"][n % _ROWS, int(m)] for n, m in zip(numbers, mirrored, strict=True)]
        )

    def conditions(self, prompts: Sequence[str]) -> Conditions:
        """What the network is told of some prompts, or of the empty one, on the CPU."""
        import torch

        places = [self._place[prompt] for prompt in prompts]
        rows = [{name: part[n % _ROWS] for name, part in self._row("prompts", n).items()} for n in places]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, kind: str, number: int) -> dict[str, Any]:
        """The file that holds a row, whose tensors are read from the disk as they are indexed."""
        from safetensors import safe_open

        path = self._file(kind, number // _ROWS)
        if path not in self._open:
            opened = safe_open(path, framework="pt")
            self._open[path] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return self._open[path]
