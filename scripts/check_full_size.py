#!/usr/bin/env python
"""Whether models of full size run on this GPU within the memory that the README states.

    python scripts/check_full_size.py                   SD 1.5, SDXL, BLIP-base and BLIP-2, one after the other
    python scripts/check_full_size.py --only sdxl       one of them; may be given several times
    python scripts/check_full_size.py --tiny            the same code on tiny models, also without a GPU

The models have the true configurations and random weights, so that nothing is downloaded and what they draw and say
means nothing. Each is saved, loaded by hfsyn's own classes in the dtype and batch size of its recipe, and makes 32
images or captions in whole batches, computed as by default on this device; images are looked at for NaN and for being
flat. The peak is what torch's allocator took of the device (reserved, the weights and its own gaps included): what a
card must have, beside some hundred MB for CUDA itself. Exit code 1: something did not hold; 3: no GPU is here. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from full_size_models import EXPECTED, Size, save_blip, save_blip2, save_sdxl, save_stable_diffusion
from PIL import Image

from builders.errors import first_line
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.tuning import is_out_of_memory, release_memory
from hfsyn.recipes.recipe import CaptionPart, GeneratePart
from hfsyn.workers import describe_device

COUNT = 32


@dataclass(frozen=True)
class Case:
    """One model, and what it may take."""

    name: str
    save: Callable[..., Path]
    dtype: str
    batch_size: int
    steps: int
    """Of an image; few, because memory does not depend on them. 0 for a captioner."""
    allowed_gb: float
    """GPU memory that the README states, in 10^9 bytes."""


CASES = (
    Case("stable-diffusion", save_stable_diffusion, "bfloat16", 16, 4, 16),
    Case("sdxl", save_sdxl, "bfloat16", 8, 4, 32),
    Case("blip", save_blip, "bfloat16", 32, 0, 6),
    Case("blip2", save_blip2, "float16", 32, 0, 16),
)


@dataclass(frozen=True)
class Found:
    """What came of one model."""

    name: str
    parameters: int
    made: int
    faults: tuple[str, ...]
    peak_gb: float | None
    """None where there is no GPU."""
    allowed_gb: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.made == COUNT and not self.faults and (self.peak_gb is None or self.peak_gb <= self.allowed_gb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES], help="this model")
    parser.add_argument("--tiny", action="store_true", help="tiny models, also on a CPU")
    parser.add_argument("--work", type=Path, help="folder for the models (15 GB); default: a temporary one")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        print(
            "There is no GPU here, and full size is nothing for a CPU. The same code on tiny models: --tiny",
            file=sys.stderr,
        )
        sys.exit(ExitCode.PREFLIGHT)
    found = []
    with folder(options.work) as work:
        for case in CASES:
            if options.only and case.name not in options.only:
                continue
            found.append(checked(case, work / case.name, "tiny" if options.tiny else "full", device))
            print(line(found[-1]), flush=True)
    print(json.dumps({"device": describe_device(device), "tiny": options.tiny, "models": [asdict(f) for f in found]}))
    sys.exit(0 if all(f.holds for f in found) else ExitCode.DIFFERS)


class folder:  # noqa: N801 (used like a function)
    """The folder to work in: the user's, or one that is gone afterwards."""

    def __init__(self, given: Path | None) -> None:
        self._given = given

    def __enter__(self) -> Path:
        self._path = self._given or Path(tempfile.mkdtemp(prefix="hfsyn-full-size-"))
        return self._path

    def __exit__(self, *error: object) -> None:
        if self._given is None:
            shutil.rmtree(self._path, ignore_errors=True)


def checked(case: Case, where: Path, size: Size, device: str) -> Found:
    """Save, load, make `COUNT`; the folder of the model is removed at once, since all of them together are large."""
    dtype = case.dtype if size == "full" else "float32"
    case.save(where, size, dtype=getattr(torch, dtype))
    try:
        if device == "cuda":
            release_memory()  # the model before is full of cycles and may still be there
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        parameters, results = (images if case.steps else captions)(case, str(where), dtype, device)
        faults = [fault for fault in results if fault]
        if size == "full" and parameters != sum(EXPECTED[case.name].values()):
            faults.append(
                f"{parameters:,} parameters, and the published model has {sum(EXPECTED[case.name].values()):,}"
            )
        peak = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else None
        if peak is not None and peak > case.allowed_gb:
            faults.append(f"a peak of {peak:.1f} GB, and {case.allowed_gb:g} GB are stated")
        seconds = time.monotonic() - started
        return Found(case.name, parameters, len(results), tuple(dict.fromkeys(faults)), peak, case.allowed_gb, seconds)
    except HfsynError as error:
        return Found(case.name, 0, 0, (str(error),), None, case.allowed_gb, 0.0)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Found(case.name, 0, 0, (f"out of memory ({first_line(error)})",), None, case.allowed_gb, 0.0)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def images(case: Case, model: str, dtype: str, device: str) -> tuple[int, list[str | None]]:
    """Parameters, and of each image why it must not be kept."""
    from hfsyn.images.generator import DiffusersGenerator
    from hfsyn.images.tuning import tuning_of
    from hfsyn.runs.options import WorkOptions

    fields = {"dtype": dtype, "batch_size": case.batch_size, "steps": case.steps}
    generator = DiffusersGenerator(
        GeneratePart.model_validate({"model": model, **fields}), None, device, tuning=tuning_of(WorkOptions(), device)
    )
    found: list[str | None] = []
    for seeds in batches(case.batch_size):
        prompts = [f"a photo of thing {seed}" for seed in seeds]
        found += [image.problem for image in generator.start(prompts, seeds, case.batch_size)()]
    return count_of(generator._pipe.components.values()), found


def captions(case: Case, model: str, dtype: str, device: str) -> tuple[int, list[str | None]]:
    """Parameters, and of each caption whether it is missing."""
    from hfsyn.captions.captioner import TransformersCaptioner

    part = CaptionPart.model_validate({"model": model, "dtype": dtype, "batch_size": case.batch_size})
    captioner = TransformersCaptioner(part, device)
    found: list[str | None] = []
    for seeds in batches(case.batch_size):
        pictures = [Image.effect_noise((500, 375), 40 + seed).convert("RGB") for seed in seeds]
        found += [None if text.strip() else "an empty caption" for text in captioner.caption(pictures)]
    return count_of([captioner._model]), found


def batches(size: int) -> Iterator[list[int]]:
    """Numbers from 0 to `COUNT`, in batches; the last one is short where `COUNT` is not a multiple."""
    for start in range(0, COUNT, size):
        yield list(range(start, min(COUNT, start + size)))


def count_of(parts: Any) -> int:
    """Parameters of all networks among the parts, weights that are shared counted once."""
    return sum(p.numel() for part in parts if hasattr(part, "parameters") for p in part.parameters())


def line(found: Found) -> str:
    """For people."""
    peak = "no GPU" if found.peak_gb is None else f"{found.peak_gb:.1f} of {found.allowed_gb:g} GB"
    verdict = "holds" if found.holds else f"does not hold: {'; '.join(found.faults) or f'{found.made} of {COUNT}'}"
    size = f"{found.parameters / 1e6:,.1f} M parameters"
    return f"{found.name:16} {found.made} made, {size}, {peak}, {found.seconds:.1f} s: {verdict}"


if __name__ == "__main__":
    main()
