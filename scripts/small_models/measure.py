"""Stage `evaluate`: the table of the cards, measured on held-out drawings with the folders' own settings."""

from __future__ import annotations

import json
from typing import Any

from . import captioner, unet, vae
from .common import Job, load

PROMPTS = {
    "class and caption": "a photo of {name}, {caption}",
    "caption only": "{caption}",
    "class name": "a photo of {name}",
}


def run(job: Job, count: int = 1000) -> None:
    """Measure captioner, autoencoder and generator; `measured.json` is the result."""
    table: dict[str, Any] = {"n": count}
    table["judge on real drawings"] = {"n": load(job.path("judge.pt"))["n"], **load(job.path("judge.pt"))["score"]}
    processor = captioner.new_processor()
    table["captioner"] = {
        "n": 2000,
        **captioner.evaluate(job, captioner.load_captioner(job).half().float().to(job.device), processor, 2000),
    }
    table["autoencoder"] = {"n": 1000, **vae.evaluate(job, vae.load_vae(job))}
    denoiser = unet.load_unet(job).half().float()
    table["settings"] = {"steps": unet.SAMPLING_STEPS, "guidance": unet.GUIDANCE}
    for name, template in PROMPTS.items():
        table[f"generator: {name}"] = {"n": count, **unet.evaluate(job, denoiser, count, template)}
        print(f"[evaluate] {name}: {table[f'generator: {name}']}", flush=True)
    job.path("measured.json").write_text(json.dumps(table, indent=2))
    print(json.dumps(table, indent=2), flush=True)
