"""hfsyn: caption real images, generate synthetic ones from the captions, publish and judge the result.

The names below are loaded when they are first used, so that ``import hfsyn`` costs nothing and loads no torch:

>>> from hfsyn import load_recipe, build
>>> build(load_recipe("shapes-cip"), "runs/shapes-cip")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from hfsyn.building import build
    from hfsyn.captions.caption_stage import caption
    from hfsyn.checks.diff import Comparison, diff
    from hfsyn.checks.reproduce import Reproduction, reproduce
    from hfsyn.checks.verify import Verification, verify
    from hfsyn.errors import HfsynError
    from hfsyn.exporting import export_real
    from hfsyn.gallery.view import look
    from hfsyn.images.generate_stage import generate
    from hfsyn.judging.bench.cells import bench
    from hfsyn.judging.bench.page import report
    from hfsyn.judging.measures.evaluate import evaluate
    from hfsyn.judging.train.loop import train
    from hfsyn.outlook.doctor import doctor
    from hfsyn.publishing.job import Publication
    from hfsyn.publishing.publication import publish
    from hfsyn.publishing.watching import watch
    from hfsyn.recipes.recipe import Recipe, difference, fingerprint, load_recipe
    from hfsyn.recipes.training_recipe import load_train_config
    from hfsyn.rules import seed_of
    from hfsyn.runs.finish import finish
    from hfsyn.runs.specs import Plan, SampleSpec, plan
    from hfsyn.runs.status import status
    from hfsyn.showcase import demo

_HOME = {
    "hfsyn.building": "build",
    "hfsyn.captions.caption_stage": "caption",
    "hfsyn.checks.diff": "Comparison diff",
    "hfsyn.checks.reproduce": "Reproduction reproduce",
    "hfsyn.checks.verify": "Verification verify",
    "hfsyn.errors": "HfsynError",
    "hfsyn.exporting": "export_real",
    "hfsyn.gallery.view": "look",
    "hfsyn.images.generate_stage": "generate",
    "hfsyn.judging.bench.cells": "bench",
    "hfsyn.judging.bench.page": "report",
    "hfsyn.judging.measures.evaluate": "evaluate",
    "hfsyn.judging.train.loop": "train",
    "hfsyn.outlook.doctor": "doctor",
    "hfsyn.publishing.job": "Publication",
    "hfsyn.publishing.publication": "publish",
    "hfsyn.publishing.watching": "watch",
    "hfsyn.recipes.recipe": "Recipe difference fingerprint load_recipe",
    "hfsyn.recipes.training_recipe": "load_train_config",
    "hfsyn.rules": "seed_of",
    "hfsyn.runs.finish": "finish",
    "hfsyn.runs.specs": "Plan SampleSpec plan",
    "hfsyn.runs.status": "status",
    "hfsyn.showcase": "demo",
}
"""The names of each module that are loaded when they are first used."""
__all__ = ["Comparison", "HfsynError", "Plan", "Publication", "Recipe", "Reproduction", "SampleSpec"]
__all__ += ["Verification", "bench", "build", "caption", "demo", "diff", "difference", "doctor", "evaluate"]
__all__ += ["export_real", "fingerprint", "finish", "generate", "load_recipe", "load_train_config", "look", "plan"]
__all__ += ["publish", "report", "reproduce", "seed_of", "status", "train", "verify", "watch"]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names.split():
            # No module may have one of these names: importing `hfsyn.plan` would replace the function by the module.
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module 'hfsyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
