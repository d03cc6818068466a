"""What two real processes do in the tests: run under accelerate launch with a folder that holds `job.json`.

Each set of the job is tested, and one network without batch normalisation is trained; the logits and weights are kept
for the test to compare with those of one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from hfsyn.judging.classifier import open_classifier, start_accelerator
from hfsyn.judging.measures.answers import predict
from hfsyn.judging.sets.image_set import open_images
from hfsyn.judging.train.loop import RunOptions, train
from hfsyn.recipes.training_recipe import load_train_config
from hfsyn.workers import leave_group


def predict_all(model: str, tables: dict[str, str], folder: Path) -> None:
    """Write the logits and numbers of each set to FOLDER/NAME.npz."""
    accelerator = start_accelerator("cpu")
    classifier = open_classifier(model)
    for name, path in tables.items():
        found = predict(classifier, open_images(path), accelerator, batch_size=4)
        if accelerator.is_main_process:
            np.savez(
                folder / f"{name}.npz",
                logits=found.logits,
                numbers=found.numbers,
                labels=found.labels,
                missing=np.array(sorted(found.undecodable)),
                processes=accelerator.num_processes,
            )


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    predict_all(job["model"], job["tables"], folder)
    for name, config in job["trainings"].items():
        train(load_train_config(config), folder / name, RunOptions(device="cpu", quiet=True))
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
