"""hfsyn: caption real images, generate synthetic ones from the captions, publish and judge the result.

The names below are loaded when they are first used, so that ``import hfsyn`` costs nothing and loads no torch:

>>> from hfsyn import load_recipe, build
>>> build(load_recipe("shapes-cip"), "runs/shapes-cip")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from hfsyn.building import build
    from hfsyn.captions.caption_stage import caption
    from hfsyn.checks.diff import Comparison, diff
    from hfsyn.checks.reproduce import Reproduction, reproduce
    from hfsyn.checks.verify import Verification, verify
    from hfsyn.errors import HfsynError
    from hfsyn.exporting import export_real
    from hfsyn.images.generate_stage import generate
    from hfsyn.judging.bench.cells import bench
    from hfsyn.judging.bench.page import report
    from hfsyn.judging.measures.evaluate import evaluate
    from hfsyn.judging.train.loop import train
    from hfsyn.outlook.doctor import doctor
    from hfsyn.publishing.outcomes import Publication
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
    "Comparison": "hfsyn.checks.diff",
    "HfsynError": "hfsyn.errors",
    "Plan": "hfsyn.runs.specs",
    "Publication": "hfsyn.publishing.outcomes",
    "Recipe": "hfsyn.recipes.recipe",
    "Reproduction": "hfsyn.checks.reproduce",
    "SampleSpec": "hfsyn.runs.specs",
    "Verification": "hfsyn.checks.verify",
    "bench": "hfsyn.judging.bench.cells",
    "build": "hfsyn.building",
    "caption": "hfsyn.captions.caption_stage",
    "demo": "hfsyn.showcase",
    "diff": "hfsyn.checks.diff",
    "difference": "hfsyn.recipes.recipe",
    "doctor": "hfsyn.outlook.doctor",
    "evaluate": "hfsyn.judging.measures.evaluate",
    "export_real": "hfsyn.exporting",
    "fingerprint": "hfsyn.recipes.recipe",
    "finish": "hfsyn.runs.finish",
    "generate": "hfsyn.images.generate_stage",
    "load_recipe": "hfsyn.recipes.recipe",
    "load_train_config": "hfsyn.recipes.training_recipe",
    "plan": "hfsyn.runs.specs",
    "publish": "hfsyn.publishing.publication",
    "report": "hfsyn.judging.bench.page",
    "reproduce": "hfsyn.checks.reproduce",
    "seed_of": "hfsyn.rules",
    "status": "hfsyn.runs.status",
    "train": "hfsyn.judging.train.loop",
    "verify": "hfsyn.checks.verify",
    "watch": "hfsyn.publishing.watching",
}
__all__ = [
    "Comparison",
    "HfsynError",
    "Plan",
    "Publication",
    "Recipe",
    "Reproduction",
    "SampleSpec",
    "Verification",
    "bench",
    "build",
    "caption",
    "demo",
    "diff",
    "difference",
    "doctor",
    "evaluate",
    "export_real",
    "fingerprint",
    "finish",
    "generate",
    "load_recipe",
    "load_train_config",
    "plan",
    "publish",
    "report",
    "reproduce",
    "seed_of",
    "status",
    "train",
    "verify",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hfsyn' has no attribute {name!r}")
    # No module may carry one of these names: importing `hfsyn.plan` would put the module where the function belongs.
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
