"""The figures of a GPU that are kept in `scripts/figures`, and the README's tables of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.full_size_cases import CASES

Rows = Sequence[Mapping[str, object]]
KEPT = Path(__file__).resolve().parent.parent / "figures"
"""What was measured on GPUs, as the scripts wrote it down."""


def speed() -> Rows:
    """What `bench_gpu.py` measured, beside the aims; open where it measured nothing."""
    figures = _measured("gpu_speed")
    by_steps = {part["steps"]: part for part in figures.get("images", ())}
    captions = figures.get("captions") or {}

    def ratio(part: Mapping[str, Any], name: str) -> str:
        found = part.get("ratios", {}).get(name)
        void = " (void: ours was too unlike itself)" if found and part["void"] else ""
        return f"{found['ratio']:.2f} x ({found['low']:.2f} to {found['high']:.2f}){void}" if found else "open"

    def of_arm(steps: Sequence[int], form: Callable[[Mapping[str, Any]], str], arm: str = "ours") -> str:
        arms = [(steps, by_steps.get(steps, {}).get("arms", {}).get(arm, {})) for steps in steps]
        found = [(steps, form(figures)) for steps, figures in arms if figures]
        return ", ".join(f"{text} at {steps} steps" for steps, text in found if text) or "open"

    first = by_steps.get(50, {})
    guided = [(steps, by_steps[steps]) for steps in (50, 20) if steps in by_steps]
    exact = [(part["steps"], part["psnr_db"]) for part in by_steps.values() if "psnr_db" in part]
    speed = captions.get("arms", {}).get("ours", {}).get("images_per_second")
    rows = [
        ("images per second", "", of_arm((50, 20, 4), lambda arm: f"{arm['images_per_second']:.2f}")),
        ("over the official code (50 steps, one prompt per call)", "4.0 x", ratio(first, "ours / official-style")),
        ("over `pipe(prompts)` in the same batches, half precision", "1.4 x", ratio(first, "ours / plain")),
        (
            "over `--loop pipeline`: hfsyn with diffusers' own call in it",
            "1.05 x",
            ", ".join(f"{ratio(part, 'ours / pipeline')} at {steps} steps" for steps, part in guided) or "open",
        ),
        (
            "share of what a large matrix product reaches",
            "45 %",
            of_arm((50, 20), lambda arm: f"{arm['share_of_ceiling']:.1%}".replace("%", " %")),
        ),
        (
            "share of the time in which the device computes",
            "97 %",
            of_arm((50, 20, 4), lambda arm: f"{arm['busy']:.1%}".replace("%", " %") if "busy" in arm else ""),
        ),
        (
            "PSNR of 16 images against float32",
            "40 dB",
            ", ".join(f"{db:.1f} dB at {steps} steps" for steps, db in exact) or "open",
        ),
        ("captions per second", "", "open" if speed is None else f"{speed:.0f}"),
        ("over the official code with the same batch", "3.0 x", ratio(captions, "ours / official-style")),
    ]
    head = _where(figures)
    return [{"Stable Diffusion 1.5 at 512 px, BLIP-base; random weights": a, "aim": b, head: c} for a, b, c in rows]


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
    return f"measured on one {figures['device']}, torch {figures['torch']}, {figures['date']}"


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
    (KEPT / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
