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
    from hfsyn.benchmarking import bench
    from hfsyn.building import build
    from hfsyn.checkup import doctor
    from hfsyn.comparison import Comparison, diff
    from hfsyn.errors import HfsynError
    from hfsyn.evaluation import evaluate
    from hfsyn.manifest import finish
    from hfsyn.outcomes import Publication
    from hfsyn.pages import report
    from hfsyn.publication import publish
    from hfsyn.recipe import Recipe, difference, fingerprint, load_recipe
    from hfsyn.reproduction import Reproduction, reproduce
    from hfsyn.runs import status
    from hfsyn.showcase import demo
    from hfsyn.specs import Plan, SampleSpec, plan, seed_of
    from hfsyn.stages import caption, generate
    from hfsyn.train_config import load_train_config
    from hfsyn.training import train
    from hfsyn.verification import Verification, verify
    from hfsyn.watching import watch

_HOME = {
    "Comparison": "hfsyn.comparison",
    "HfsynError": "hfsyn.errors",
    "Plan": "hfsyn.specs",
    "Publication": "hfsyn.outcomes",
    "Recipe": "hfsyn.recipe",
    "Reproduction": "hfsyn.reproduction",
    "SampleSpec": "hfsyn.specs",
    "Verification": "hfsyn.verification",
    "bench": "hfsyn.benchmarking",
    "build": "hfsyn.building",
    "caption": "hfsyn.stages",
    "demo": "hfsyn.showcase",
    "diff": "hfsyn.comparison",
    "difference": "hfsyn.recipe",
    "doctor": "hfsyn.checkup",
    "evaluate": "hfsyn.evaluation",
    "fingerprint": "hfsyn.recipe",
    "finish": "hfsyn.manifest",
    "generate": "hfsyn.stages",
    "load_recipe": "hfsyn.recipe",
    "load_train_config": "hfsyn.train_config",
    "plan": "hfsyn.specs",
    "publish": "hfsyn.publication",
    "report": "hfsyn.pages",
    "reproduce": "hfsyn.reproduction",
    "seed_of": "hfsyn.specs",
    "status": "hfsyn.runs",
    "train": "hfsyn.training",
    "verify": "hfsyn.verification",
    "watch": "hfsyn.watching",
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
