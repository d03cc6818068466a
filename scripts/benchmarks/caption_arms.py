"""Two ways of captioning the same photographs with the same BLIP: as the official code does, and ours.

`OfficialStyle` is written from a description of the paper's released script: files are opened one after the other, the
processor runs in the same thread, half precision, greedy, at most 16 tokens, captions as lines of a text file. Both
take batches of the same size, and both say 15 new tokens, as the random model never ends a sentence.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import Watched, module
from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from builders.sources.drawing import draw, sample_attributes
from builders.variants import get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run

NEW_TOKENS = 15
"""16 with the token that begins a caption."""
SHARD_BATCHES = 2


class Photographs:
    """JPEG files of 500 x 375 pixels, about 110 kB each, in Imagenette's class folders: a few, under many names."""

    def __init__(self, folder: Path, *, different: int) -> None:
        self.folder, self._different = folder, different
        self._wnids = [info.wnid for info in get_variant("imagenette").classes]
        self.files: list[Path] = []

    def grow(self, count: int) -> None:
        """Make them at least so many."""
        for number in range(len(self.files), count):
            wnid = self._wnids[number % len(self._wnids)]
            place = self.folder / "train" / wnid / f"{number:06d}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if number < self._different:
                self._draw(number, place)
            else:
                os.link(self.files[number % self._different], place)
            self.files.append(place)

    @staticmethod
    def _draw(number: int, place: Path) -> None:
        drawing = draw(sample_attributes(0, "train", number, world="shapes")).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        # The noise of a camera, without which the files would be a tenth of a photograph's.
        noise = np.random.default_rng(number).normal(0, 3, (375, 500, 3))
        pixels = np.clip(np.asarray(drawing, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place, quality=96, subsampling=0)


class OfficialStyle:
    """Everything in one thread."""

    name = "official-style"

    def __init__(
        self, model: Path, photographs: Photographs, device: str, folder: Path, *, batch: int, keep: bool = False
    ) -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        self.unit = batch
        self._photographs, self._device, self._folder, self._keep = photographs, device, folder / self.name, keep
        self._processor = BlipProcessor.from_pretrained(model)
        self._model = BlipForConditionalGeneration.from_pretrained(model, dtype=torch.float16).to(device)
        self._next = self._turn = 0

    def prepare(self, images: int) -> None:
        """See `Arm`."""
        self._photographs.grow(images)
        self._next = 0

    def work(self, images: int) -> int:
        """See `Arm`."""
        files = self._photographs.files[self._next : self._next + images]
        self._next, self._turn = self._next + images, self._turn + 1
        lines = []
        for first in range(0, images, self.unit):
            pictures = []
            for file in files[first : first + self.unit]:
                picture = Image.open(file)
                pictures.append(picture if picture.mode == "RGB" else picture.convert("RGB"))
            values = self._processor(images=pictures, return_tensors="pt").pixel_values
            out = self._model.generate(
                pixel_values=values.to(self._device, torch.float16), max_length=NEW_TOKENS + 1, num_beams=1
            )
            lines += [text.strip() for text in self._processor.batch_decode(out, skip_special_tokens=True)]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return len(self._file.read_text(encoding="utf-8").splitlines())

    def clear(self) -> None:
        """See `Arm`."""
        if not self._keep:
            self._file.unlink()

    def watched(self) -> Sequence[Watched]:
        """See `Arm`."""
        return module("vision", self._model.vision_model), module("text", self._model.text_decoder)

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._turn:03d}.txt"


class Ours:
    """The stage `caption` on a prepared run folder."""

    name = "ours"

    def __init__(
        self,
        model: Path,
        photographs: Photographs,
        device: str,
        folder: Path,
        *,
        batch: int,
        dtype: str,
        keep: bool = False,
    ) -> None:
        self._model, self._photographs, self._folder, self._keep = model, photographs, folder, keep
        self._batch, self._dtype = batch, dtype
        self.unit = batch * SHARD_BATCHES
        self._runs, self._done, self._turn = 0, 0, range(0)
        self._run: Run | None = None
        part = self._recipe(self.unit).caption
        assert part is not None
        self.captioner = TransformersCaptioner(part, device)

    def _recipe(self, images: int) -> Recipe:
        changes = {
            "source.path": self._photographs.folder,
            "source.limit_per_class": math.ceil(images / len(get_variant("imagenette").classes)),
            "caption.model": self._model,
            "caption.dtype": self._dtype,
            "caption.batch_size": self._batch,
            "caption.max_new_tokens": NEW_TOKENS,
            "generate.model": "builtin",
            "store.shard_rows": self.unit,
        }
        return load_recipe("imagenette-cip", [f"{name}={value}" for name, value in changes.items()])

    def prepare(self, images: int) -> None:
        """A new run folder."""
        if self._run is not None and not self._keep:
            shutil.rmtree(self._run.folder)
        classes = len(get_variant("imagenette").classes)
        self._photographs.grow(math.ceil(images / classes) * classes)
        self._runs, self._done = self._runs + 1, 0
        self._run = prepare(self._recipe(images), self._folder / f"{self.name}-{self._runs}")

    def work(self, images: int) -> int:
        """See `Arm`."""
        assert self._run is not None
        self._turn = range(self._done, self._done + images // self.unit)
        self._done = self._turn.stop
        chosen = f"{self._turn.start}:{self._turn.stop}"
        caption(self._run, shards=chosen, quiet=True, options=WorkOptions(), captioner=self.captioner)
        return sum(load_sidecar(sidecar_of(path)).rows for path in self._shards())

    def clear(self) -> None:
        """See `Arm`."""
        for path in self._shards() if not self._keep else ():
            path.unlink()
            sidecar_of(path).unlink()

    def watched(self) -> Sequence[Watched]:
        """See `Arm`."""
        model = self.captioner._model
        return module("vision", model.vision_model), module("text", model.text_decoder)

    def _shards(self) -> list[Path]:
        assert self._run is not None
        return [path for path in self._run.caption_shards() if (layout.shard_number(path) or ("", -1))[1] in self._turn]
