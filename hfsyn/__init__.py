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
    from hfsyn.checkup import doctor
    from hfsyn.comparison import Comparison, diff
    from hfsyn.errors import HfsynError
    from hfsyn.manifest import finish
    from hfsyn.publication import Publication, publish
    from hfsyn.recipe import Recipe, difference, fingerprint, load_recipe
    from hfsyn.reproduction import Reproduction, reproduce
    from hfsyn.runs import status
    from hfsyn.showcase import demo
    from hfsyn.specs import Plan, SampleSpec, plan, seed_of
    from hfsyn.stages import caption, generate
    from hfsyn.verification import Verification, verify
    from hfsyn.watching import watch

_HOME = {
    "Comparison": "hfsyn.comparison",
    "HfsynError": "hfsyn.errors",
    "Plan": "hfsyn.specs",
    "Publication": "hfsyn.publication",
    "Recipe": "hfsyn.recipe",
    "Reproduction": "hfsyn.reproduction",
    "SampleSpec": "hfsyn.specs",
    "Verification": "hfsyn.verification",
    "build": "hfsyn.building",
    "caption": "hfsyn.stages",
    "demo": "hfsyn.showcase",
    "diff": "hfsyn.comparison",
    "difference": "hfsyn.recipe",
    "doctor": "hfsyn.checkup",
    "fingerprint": "hfsyn.recipe",
    "finish": "hfsyn.manifest",
    "generate": "hfsyn.stages",
    "load_recipe": "hfsyn.recipe",
    "plan": "hfsyn.specs",
    "publish": "hfsyn.publication",
    "reproduce": "hfsyn.reproduction",
    "seed_of": "hfsyn.specs",
    "status": "hfsyn.runs",
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
    "build",
    "caption",
    "demo",
    "diff",
    "difference",
    "doctor",
    "fingerprint",
    "finish",
    "generate",
    "load_recipe",
    "plan",
    "publish",
    "reproduce",
    "seed_of",
    "status",
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
