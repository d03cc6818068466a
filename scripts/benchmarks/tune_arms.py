"""Steps a second and memory of `hfsyn tune`: a LoRA of rank 16 at Stable Diffusion 1.5's true size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.budget import Budget
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.images.tuning import release_memory
from hfsyn.recipes.recipe import load_recipe
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.examples import of_dataset
from hfsyn.tuning.loop import Deck, Tuner

ARMS = {"plain": False, "checkpointing": True}
"""Whether activations are kept, or computed again."""
IMAGES, WARM = 32, 3


def measured(model: Path, folder: Path, options: Any, budget: Budget) -> dict[str, dict[str, float]]:
    """Of each arm: `steps_per_second`, `images_per_second` of a step of `options.tune_batch` images, `peak_gb`."""
    found: dict[str, dict[str, float]] = {}
    for name, checkpointing in ARMS.items():
        if budget.left() <= 0:
            break
        tuner = _tuner(model, folder, options, checkpointing)
        for _ in range(WARM):
            tuner.step()
        on_gpu = options.device.startswith("cuda")
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - began < options.seconds:
            tuner.step()  # which reads the loss, and so waits for the device
            steps += 1
        rate = steps / (time.perf_counter() - began)
        found[name] = {
            "steps_per_second": rate,
            "images_per_second": rate * options.tune_batch,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        }
        del tuner
        release_memory()
    return found


def _tuner(model: Path, folder: Path, options: Any, checkpointing: bool) -> Tuner:
    side = 64 if options.tiny else 512
    data = folder / "images.parquet"
    if not data.exists():
        _write_images(data, side)
    dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
    fields = {"generate.model": model, "generate.dtype": dtype, "generate.width": side, "generate.height": side}
    fields |= {"generate.safety_checker": "false", "tune.dataset": data, "tune.batch_size": options.tune_batch}
    recipe = load_recipe("imagenette-cip", [f"{key}={value}" for key, value in fields.items()])
    assert recipe.tune is not None
    loss = DenoisingLoss(recipe.generate, options.device)
    cache = Cache(folder / "cache", of_dataset(recipe.tune))
    cache.fill(loss, quiet=True)
    loss.rest_to("cpu")
    tuner = Tuner(recipe, loss, [Deck(cache, cache.usable()[0], recipe.seed)], folder)
    if checkpointing:
        loss.network.enable_gradient_checkpointing()
    return tuner


def _write_images(path: Path, side: int) -> None:
    import datasets
    from PIL import Image

    noise = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(IMAGES)]
    texts = [f"a photo of a thing, number {number}" for number in range(IMAGES)]
    datasets.Dataset.from_dict({"image": images, "text": texts}).to_parquet(str(path))
