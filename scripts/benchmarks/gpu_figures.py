"""The figures of a GPU that are kept in `scripts/figures`, and the README's tables of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.full_size_cases import CASES

Rows = Sequence[Mapping[str, object]]
KEPT = Path(__file__).resolve().parent.parent / "figures"
"""What was measured on GPUs, as the scripts wrote it down."""


def speed() -> Rows:
    """What `bench_gpu.py` measured, beside the aims; open where it measured nothing.

    What no run of one lease had time for is taken from the next one on the same device.
    """
    runs = _measured("gpu_speed").get("runs", [])
    images = [part for run in runs for part in run["images"]]
    by_steps = {steps: [part for part in images if part["steps"] == steps] for steps in (50, 20, 4)}
    captions = [run["captions"] for run in runs if run["captions"]]

    def each(steps: Sequence[int], cell: Callable[[Mapping[str, Any]], str]) -> str:
        found = [(_first(by_steps[number], cell), number) for number in steps]
        return ", ".join(f"{text} at {number} steps" for text, number in found if text) or "open"

    def ratio(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda part: _over(part, name)

    rows = [
        ("images per second", "", each((50, 20, 4), lambda part: f"{_shipped(part)['images_per_second']:.2f}")),
        ("over the official code (one prompt per call)", "4.0 x", each((50,), ratio("official-style"))),
        ("over `pipe(prompts)` in the same batches, half precision", "1.4 x", each((50, 20), ratio("plain"))),
        (
            "share of what a large matrix product reaches",
            "45 %",
            each((50, 20), lambda part: _percent(_shipped(part)["share_of_ceiling"])),
        ),
        (
            "share of the time in which the device computes",
            "97 %",
            each((50, 20, 4), lambda part: _percent(_shipped(part)["busy"]) if "busy" in _shipped(part) else ""),
        ),
        (
            "PSNR of 16 images against float32",
            "40 dB",
            each((50, 20), lambda part: f"{part['psnr_db']:.1f} dB" if "psnr_db" in part else ""),
        ),
        ("captions per second", "", _first(captions, lambda p: f"{_shipped(p)['images_per_second']:.0f}") or "open"),
        ("over the official code with the same batch", "3.0 x", _first(captions, ratio("official-style")) or "open"),
    ]
    head = _where(runs[0] if runs else {})
    return [{"Stable Diffusion 1.5 at 512 px, BLIP-base; random weights": a, "aim": b, head: c} for a, b, c in rows]


def _first(parts: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]) -> str:
    """The first of these cells that is not empty."""
    return next((text for part in parts if (text := cell(part))), "")


def _shipped(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arm that is what users get: with diffusers' own call, where both were measured."""
    arms: Mapping[str, Mapping[str, Any]] = part["arms"]
    return arms.get("pipeline", arms["ours"])


def _over(part: Mapping[str, Any], other: str) -> str:
    """The shipped arm over another one: paired turns; or, of an arm that was not the judged one, medians."""
    if other not in part["arms"]:
        return ""
    if part["void"]:
        return "void, as ours was too unlike itself"
    if "pipeline" in part["arms"]:
        return f"{_shipped(part)['images_per_second'] / part['arms'][other]['images_per_second']:.2f} x"
    found = part["ratios"][f"ours / {other}"]
    return f"{found['ratio']:.2f} x ({found['low']:.2f} to {found['high']:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def memory() -> Rows:
    """What `check_full_size.py` measured, beside what is stated."""
    figures = _measured("gpu_memory")
    found = {model["name"]: model for model in figures.get("models", ())}
    titles = {
        "stable-diffusion": "Stable Diffusion 1.5, 512 px",
        "sdxl": "SDXL, 1024 px",
        "blip": "BLIP-base, 384 px",
        "blip2": "BLIP-2 with OPT-2.7b, 224 px",
    }

    def said(model: Mapping[str, Any] | None) -> str:
        if model is None or model["peak_gb"] is None:
            return "open"
        faults = "; ".join(model["faults"])
        return f"{model['peak_gb']:.1f} GB" + (f", {faults}" if faults else "")

    return [
        {
            "model": titles[case.name],
            "dtype": case.dtype,
            "batch": case.batch_size,
            "GPU memory, at most": f"{case.allowed_gb:g} GB",
            _where(figures): said(found.get(case.name)),
        }
        for case in CASES
    ]


def _where(figures: Mapping[str, Any]) -> str:
    """The head of what was measured: on which card."""
    if not figures:
        return "measured"
    card = re.sub(r"^cuda\S* \((.*)\)$", r"\1", figures["device"])
    return f"measured on one {card}, torch {figures['torch']}, {figures['date']}"


def _measured(name: str) -> dict[str, Any]:
    """Figures that were kept; empty where there are none."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(path: Path) -> None:
    """Keep the figures of a file.

    Raises:
        ValueError: it holds no figures of a GPU.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        name = "gpu_speed" if "images" in figures else "gpu_memory" if "models" in figures else ""
        real = bool(name) and figures["tiny"] is False and str(figures["device"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as figures: {error}") from None
    if not real:
        raise ValueError(f"{path} does not hold the figures of bench_gpu.py or check_full_size.py on true sizes")
    KEPT.mkdir(exist_ok=True)
    if name == "gpu_speed":
        before = [run for run in _measured(name).get("runs", []) if run != figures and _where(run) == _where(figures)]
        figures = {"runs": [*before, figures]}
    (KEPT / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
