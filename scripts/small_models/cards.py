"""Stage `export`: the two model folders with their cards, each swapped in as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import captioner, unet
from .common import Job, load
from .world import ATTRIBUTES, TRAIN_COUNT

_COMMAND = "python scripts/train_small_models.py --work-dir small-models --processes {processes}"

_CAPTIONER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-to-text
---
# The captioner of the drawn variants

A `BlipForConditionalGeneration` of {parameters:.2f} M parameters ({megabytes:.1f} MB) that says what a 32 x 32 drawing
of `builders.shapes` shows, in one fixed grammar: "a red star on a striped blue background". It knows {words} tokens and
nothing but the drawn world.

{origin}

## How good it is

Greedy captions of held-out drawings against the true attributes, half-precision weights run in single precision:

{table}

## Limits

Shown anything but such a drawing, it still answers with a shape, two colours and a texture.
"""

_GENERATOR = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The generator of the drawn variants

A `StableDiffusionPipeline` that draws 32 x 32 images of the world of `builders.shapes`: UNet {unet:.2f} M, text encoder
{text:.2f} M, autoencoder {vae:.2f} M parameters, {megabytes:.1f} MB in all. It has no safety checker, as it can draw
nothing but shapes. The saved scheduler is DPM-Solver++ (multistep, trailing time steps, v-prediction).

Best settings: **{steps} steps, guidance {guidance}**, width and height 32.

{origin} The UNet saw {samples:,} of the {planned:,}
planned samples (of {latents:,} drawings), in batches of {batch}, its learning rate all but at zero by then.
Prompts of the training: {unconditional:.0%} empty, {class_only:.0%} with the class name alone ("a photo of star",
"a photo of a star", "star", "a picture of a star"), an eighth of these followed by foreign words; the others with the
caption ("a photo of star, a red star on a striped blue background", the caption alone, "star, a red star ..."). The
class name always agreed with the caption.

## How good it is

What the judge (a small CNN trained on real drawings) reads from generated images, against the true captions that they
were generated from; for the class-name prompt only the shape is stated, so only the shape counts:

{table}

## Limits

Words outside the drawn world are encoded, byte by byte if need be, and mean nothing to it. A prompt is cut at 32
tokens.
"""

_ORIGIN = """Trained from random weights, seed {seed}, on {count:,} drawings of the world `shapes` (independent
attributes) that belong to neither the train nor the test split of any variant; "held out" below means drawings that
no model has seen. Made by `scripts/train_small_models.py`:

    {command}

{time}"""


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _row(name: str, scores: dict[str, Any], columns: tuple[str, ...]) -> str:
    cells = [f"{scores[column]:.3f}" if column in columns else "" for column in (*ATTRIBUTES, "all")]
    return f"| {name} | {scores['n']} | {' | '.join(cells)} |"


def _table(rows: list[str]) -> str:
    head = f"| | n | {' | '.join(ATTRIBUTES)} | all four |"
    return "\n".join([head, "|" + "---|" * (len(ATTRIBUTES) + 3), *rows])


def _origin(job: Job) -> str:
    times = json.loads(job.path("times.json").read_text()) if job.path("times.json").exists() else {}
    spent = ", ".join(f"{stage} {minutes:.0f}" for stage, minutes in times.items())
    time = (
        f"Minutes on two CPU cores that other work shared:\n{spent}.\nSome stages were continued from checkpoints: the "
        "same command gives other bits."
        if spent
        else ""
    )
    return _ORIGIN.format(
        seed=job.seed, count=TRAIN_COUNT, command=_COMMAND.format(processes=job.processes), time=time
    ).strip()


def _captioner_card(job: Job, folder: Path, measured: dict[str, Any]) -> str:
    model = captioner.load_captioner(job)
    every = (*ATTRIBUTES, "all")
    return _CAPTIONER.format(
        parameters=model.num_parameters() / 1e6,
        megabytes=_megabytes(folder),
        words=model.config.text_config.vocab_size,
        origin=_origin(job),
        table=_table([_row("captions", measured["captioner"], every)]),
    )


def _generator_card(job: Job, folder: Path, measured: dict[str, Any]) -> str:
    from .text import CLASS_ONLY_SHARE, UNCONDITIONAL_SHARE

    pipeline = unet.new_pipeline(job, unet.load_unet(job))
    millions = {
        name: sum(p.numel() for p in getattr(pipeline, part).parameters()) / 1e6
        for name, part in (("unet", "unet"), ("text", "text_encoder"), ("vae", "vae"))
    }
    every = (*ATTRIBUTES, "all")
    rows = [
        _row("the judge on real drawings", measured["judge on real drawings"], every),
        _row("reconstructions by the autoencoder", measured["autoencoder"], every),
        _row('"a photo of {class}, {caption}"', measured["generator: class and caption"], every),
        _row('"{caption}"', measured["generator: caption only"], every),
        _row('"a photo of {class}"', measured["generator: class name"], ("shape",)),
    ]
    samples = load(job.path("unet.pt"))["samples"] if job.path("unet.pt").exists() else 0
    samples = samples or load(job.path("unet-part.pt"))["samples"]
    return _GENERATOR.format(
        **millions,
        megabytes=_megabytes(folder),
        steps=measured["settings"]["steps"],
        guidance=measured["settings"]["guidance"],
        origin=_origin(job),
        samples=samples,
        planned=unet.SAMPLES,
        latents=unet.LATENT_COUNT,
        batch=unet.BATCH * job.processes,
        unconditional=UNCONDITIONAL_SHARE,
        class_only=CLASS_ONLY_SHARE,
        table=_table(rows),
    )


def _swap_in(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a new folder beside `folder`, then put it in its place, so that nobody reads half of one."""
    new, old = folder.with_name(f".{folder.name}-new"), folder.with_name(f".{folder.name}-old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    for file in new.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors are written for their owner alone
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def export(job: Job) -> None:
    """Write `captioner` and `generator`; without `measured.json` the cards say that nothing was measured yet."""
    measured_path = job.path("measured.json")
    measured = json.loads(measured_path.read_text()) if measured_path.exists() else None
    parts = (("captioner", captioner.export, _captioner_card), ("generator", unet.export, _generator_card))
    for name, write_model, write_card in parts:

        def write(folder: Path, write_model: Any = write_model, write_card: Any = write_card) -> None:
            write_model(job, folder)
            card = write_card(job, folder, measured) if measured else "Half-trained weights; not measured yet.\n"
            (folder / "README.md").write_text(card, encoding="utf-8")

        _swap_in(job.out_dir / name, write)
        print(f"[export] {job.out_dir / name}: {_megabytes(job.out_dir / name):.2f} MB", flush=True)
