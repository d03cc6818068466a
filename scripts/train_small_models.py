"""Train the small captioner and the small generator that ship in `hfsyn/models`, from nothing but drawings.

    python scripts/train_small_models.py --work-dir small-models --processes 2

runs all stages, each in its own module of `scripts/small_models`:

    judge      two attribute classifiers: the judge, and one that lends its features to the autoencoder's loss
    vae        the autoencoder, then its decoder alone
    text       the generator's text encoder
    unet       the denoiser, in `--processes` processes
    captioner  the BLIP
    evaluate   the measured table, on held-out drawings
    export     model folders with their cards, each swapped in as a whole

A stage whose result is in the work folder is skipped, one that was stopped goes on from its last checkpoint; delete a
file there to redo it. Stages can run side by side (`--stage captioner` beside `--stage vae`, say). Runs on a GPU if
there is one; one after the other on a shared CPU core, all stages take some two and three quarter hours.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several processes share the cores

import torch
from small_models import captioner, cards, judge, measure, text, unet, vae
from small_models.common import Job, pick_device

STAGES = ("judge", "vae", "text", "unet", "captioner", "evaluate", "export")


def run_stage(stage: str, job: Job) -> None:
    """Run one stage, or say that its result is there already."""
    result = {"vae": "vae.pt", "text": "text.pt", "unet": "unet.pt", "captioner": "captioner.pt"}.get(stage)
    if result and job.path(result).exists():
        print(f"[{stage}] {result} is there already", flush=True)
        return
    began = time.monotonic()
    match stage:
        case "judge":
            judge.run(job)
        case "vae":
            vae.run(job)
        case "text":
            text.run(job)
        case "unet":
            unet.run(job)
        case "captioner":
            captioner.run(job)
        case "evaluate":
            measure.run(job)
        case "export":
            cards.export(job)
    minutes = (time.monotonic() - began) / 60
    print(f"[{stage}] done in {minutes:.1f} minutes", flush=True)
    times_path = job.path("times.json")  # for the cards
    times = json.loads(times_path.read_text()) if times_path.exists() else {}
    times_path.write_text(json.dumps(times | {stage: times.get(stage, 0.0) + minutes}))


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage; may be given several times")
    parser.add_argument("--work-dir", type=Path, required=True, help="drawings, checkpoints and results")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "hfsyn" / "models",
        help="where `captioner` and `generator` are written",
    )
    parser.add_argument("--processes", type=int, default=1, help="of the stage unet; one CPU core each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of a stage's own number of training steps")
    options = parser.parse_args()
    job = Job(
        work_dir=options.work_dir,
        out_dir=options.out_dir,
        seed=options.seed,
        processes=options.processes,
        steps=options.steps,
        device=pick_device(),
    )
    job.work_dir.mkdir(parents=True, exist_ok=True)
    if job.device == "cpu":
        torch.set_num_threads(1)
    for stage in options.stage or STAGES:
        run_stage(stage, job)


if __name__ == "__main__":
    main()
