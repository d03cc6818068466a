"""hfsyn: caption real images, generate synthetic ones from the captions, publish and judge the result.

Every command is a function of the same name that takes the same words, and is loaded when it is first used:

>>> import hfsyn
>>> run = hfsyn.build("shapes-cip", "runs/shapes", limit=2)  # doctest: +SKIP
>>> hfsyn.publish(run, "alice/shapes", "1.0.0")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from builders.captioned import Captioned
    from builders.imagenet import ImageNet
    from builders.published import load_version
    from builders.shapes import Shapes
    from builders.synthetic import Synthetic
    from hfsyn import recipes
    from hfsyn.api import captioners, generators, strategies, variants
    from hfsyn.api.hub import publish
    from hfsyn.api.judging import evaluate, fidelity, membership, train
    from hfsyn.api.looping import loop, report, status
    from hfsyn.api.making import build, caption, doctor, generate, informativeness, plan, tune
    from hfsyn.api.scoring import audit, score, select
    from hfsyn.checks.diff import Comparison, diff
    from hfsyn.checks.reproduce import Reproduction, reproduce
    from hfsyn.checks.verify import Verification, verify
    from hfsyn.errors import HfsynError
    from hfsyn.exporting import export_real
    from hfsyn.gallery.view import look
    from hfsyn.judging.bench.cells import bench
    from hfsyn.outlook.environment import env
    from hfsyn.publishing.job import Publication
    from hfsyn.recipes.recipe import Recipe, difference, fingerprint, load_recipe
    from hfsyn.recipes.training_recipe import load_train_config
    from hfsyn.rules import seed_of
    from hfsyn.runs.finish import finish
    from hfsyn.runs.run import Run, load_run
    from hfsyn.showcase import demo

_HOME = {
    "builders.captioned": "Captioned",
    "builders.imagenet": "ImageNet",
    "builders.published": "load_version",
    "builders.shapes": "Shapes",
    "builders.synthetic": "Synthetic",
    "hfsyn.api.hub": "publish",
    "hfsyn.api.judging": "evaluate fidelity membership train",
    "hfsyn.api.looping": "loop report status",
    "hfsyn.api.making": "build caption doctor generate informativeness plan tune",
    "hfsyn.api.scoring": "audit score select",
    "hfsyn.checks.diff": "Comparison diff",
    "hfsyn.checks.reproduce": "Reproduction reproduce",
    "hfsyn.checks.verify": "Verification verify",
    "hfsyn.errors": "HfsynError",
    "hfsyn.exporting": "export_real",
    "hfsyn.gallery.view": "look",
    "hfsyn.judging.bench.cells": "bench",
    "hfsyn.outlook.environment": "env",
    "hfsyn.publishing.job": "Publication",
    "hfsyn.recipes.recipe": "Recipe difference fingerprint load_recipe",
    "hfsyn.recipes.training_recipe": "load_train_config",
    "hfsyn.rules": "seed_of",
    "hfsyn.runs.finish": "finish",
    "hfsyn.runs.run": "Run load_run",
    "hfsyn.showcase": "demo",
}
"""The names of each module that are loaded when they are first used."""
_MODULES = {name: f"hfsyn.api.{name}" for name in ("captioners", "generators", "strategies", "variants")}
_MODULES["recipes"] = "hfsyn.recipes"
"""Groups of commands, which are modules."""
__all__ = ["Captioned", "Comparison", "HfsynError", "ImageNet", "Publication", "Recipe", "Reproduction", "Run"]
__all__ += ["Shapes", "Synthetic", "Verification", "audit", "bench", "build", "caption", "captioners", "demo", "diff"]
__all__ += ["difference", "doctor", "env", "evaluate", "export_real", "fidelity", "fingerprint", "finish", "generate"]
__all__ += [
    "generators",
    "informativeness",
    "load_recipe",
    "load_run",
    "load_train_config",
    "load_version",
    "look",
    "loop",
]
__all__ += [
    "membership",
    "plan",
    "publish",
    "recipes",
    "report",
    "reproduce",
    "score",
    "seed_of",
    "select",
    "status",
    "strategies",
    "train",
]
__all__ += ["tune", "variants", "verify"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    for module, names in _HOME.items():
        if name in names.split():
            # No module may have one of these names: importing `hfsyn.plan` would replace the function by the module.
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'hfsyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
