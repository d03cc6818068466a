#!/usr/bin/env python
"""Whether models of full size run on this GPU within the memory that the README states.

    python scripts/check_full_size.py                   SD 1.5, SDXL, BLIP-base and BLIP-2, one after the other
    python scripts/check_full_size.py --only sdxl       one of them; may be given several times
    python scripts/check_full_size.py --minutes 2       as many of them as two minutes are enough for
    python scripts/check_full_size.py --tiny            the same code on tiny models, also without a GPU

The models have the true configurations and random weights, so that nothing is downloaded and what they draw and say
means nothing. Each is saved, loaded by hfsyn's own classes in the dtype and batch size of its recipe, and makes 32
images or captions in whole batches, computed as by default on this device; images are looked at for NaN and for being
flat. The peak is what torch's allocator took of the device (reserved, the weights and its own gaps included): what a
card must have, beside some hundred MB for CUDA itself. With --out what was found is written after every model. Exit
code 1: something did not hold; 3: no GPU is here; 4: the minutes were over before all was seen. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import datetime
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
from benchmarks.budget import Budget
from benchmarks.full_size_cases import CASES, Case
from benchmarks.measuring import roomy
from full_size_models import EXPECTED, Size, save_blip, save_blip2, save_sdxl, save_stable_diffusion
from PIL import Image

from builders.errors import first_line
from builders.files import atomic_text
from hfsyn.errors import ExitCode, HfsynError, leave_at_once
from hfsyn.images.tuning import is_out_of_memory, release_memory
from hfsyn.recipes.recipe import CaptionPart, GeneratePart
from hfsyn.workers import describe_device

COUNT = 32


SAVE: dict[str, Callable[..., Path]] = {
    "stable-diffusion": save_stable_diffusion,
    "blip": save_blip,
    "sdxl": save_sdxl,
    "blip2": save_blip2,
}


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
    parser.add_argument("--minutes", type=float, help="end after so many, with what was seen by then [no limit]")
    parser.add_argument("--work", type=Path, help="folder for the models (15 GB); default: a temporary one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    options = parser.parse_args()
    if options.minutes is not None and options.minutes <= 0:
        parser.error("--minutes is above 0")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        print(
            "There is no GPU here, and full size is nothing for a CPU. The same code on tiny models: --tiny",
            file=sys.stderr,
        )
        sys.exit(ExitCode.PREFLIGHT)
    report = Report(
        [case for case in CASES if not options.only or case.name in options.only], device, options.tiny, options.out
    )
    budget = Budget(options.minutes)
    with folder(options.work) as work:

        def leave() -> None:
            """In the thread that watches the clock."""
            try:
                report.finish()
                if options.work is None:
                    shutil.rmtree(work, ignore_errors=True)
            finally:
                leave_at_once(report.code)

        budget.watch(leave)
        for case in report.cases:
            report.add(checked(case, work / case.name, "tiny" if options.tiny else "full", device))
        budget.close()
    report.finish()
    sys.exit(report.code)


class Report:
    """What was found so far; written down after every model."""

    def __init__(self, cases: list[Case], device: str, tiny: bool, out: Path | None) -> None:
        self.cases, self._out, self._found = cases, out, list[Found]()
        self._head = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": describe_device(device),
            "torch": torch.__version__,
            "tiny": tiny,
        }

    def add(self, found: Found) -> None:
        """One model's."""
        self._found.append(found)
        print(line(found), flush=True)
        self._save()

    def finish(self) -> None:
        """The last lines."""
        if left_out := self._figures()["left_out"]:
            print(f"LEFT OUT, as the minutes were over: {', '.join(left_out)}")
        self._save()
        print(json.dumps(self._figures()), flush=True)

    @property
    def code(self) -> int:
        """The exit code."""
        if not all(found.holds for found in self._found):
            return ExitCode.DIFFERS
        return ExitCode.PARTIAL if self._figures()["left_out"] else ExitCode.OK

    def _figures(self) -> dict[str, Any]:
        known = [found.name for found in self._found]
        return {
            **self._head,
            "models": [asdict(found) for found in self._found],
            "left_out": [case.name for case in self.cases if case.name not in known],
        }

    def _save(self) -> None:
        if self._out is not None:
            atomic_text(self._out, json.dumps(self._figures(), indent=1) + "\n")


class folder:  # noqa: N801 (used like a function)
    """The folder to work in: the user's, or one that is gone afterwards, in memory if there is enough."""

    def __init__(self, given: Path | None) -> None:
        self._given = given

    def __enter__(self) -> Path:
        self._path = self._given or Path(tempfile.mkdtemp(prefix="hfsyn-full-size-", dir=roomy()))
        return self._path

    def __exit__(self, *error: object) -> None:
        if self._given is None:
            shutil.rmtree(self._path, ignore_errors=True)


def checked(case: Case, where: Path, size: Size, device: str) -> Found:
    """Save, load, make `COUNT`; the folder of the model is removed at once, since all of them together are large."""
    dtype = case.dtype if size == "full" else "float32"
    SAVE[case.name](where, size, dtype=getattr(torch, dtype))
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
