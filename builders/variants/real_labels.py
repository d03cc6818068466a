"""ReaL: the reassessed labels of ImageNet-1k's validation images, several per image.

    labels = real_labels()
    labels["ILSVRC2012_val_00000002.JPEG"]        # ("n09193705", "n04228054"): mountain or ski
    labels[validation_file("val/n01751748/ILSVRC2012_val_00000001_n01751748.JPEG")]

From "Are we done with ImageNet?" (Beyer et al., 2020). Accuracy is the share of images whose prediction is among their
labels; images without a label (3,163 of 50,000) are left out. The labels are read from a file of the installed timm;
neither timm nor torch is imported.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from builders.errors import DataError
from builders.variants import get_variant

_IMAGES = 50_000
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.jpe?g", re.IGNORECASE)
"""The original name, and the Hub's, which includes the wnid of the original label."""


@cache
def real_labels() -> Mapping[str, tuple[str, ...]]:
    """Original file name of each validation image -> its correct wnids, which may be none.

    Raises DataError if timm is not installed, or does not have the file as expected.
    """
    path = _timm_folder() / "data" / "_info" / "imagenet_real_labels.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        wnids = [info.wnid for info in get_variant("imagenet-1k").classes]
        found = {
            f"ILSVRC2012_val_{number:08d}.JPEG": tuple(wnids[label] for label in labels)
            for number, labels in enumerate(rows, start=1)
        }
    except (OSError, ValueError, TypeError, IndexError) as error:
        problem = f"The ReaL labels cannot be read from {path}: {error}"
        raise DataError(problem, "Install timm again: pip install -U timm.") from error
    if len(found) != _IMAGES:
        said = f"{path} has the labels of {len(found):,} images."
        raise DataError(said, f"Expected the {_IMAGES:,} of ImageNet's validation set.")
    return MappingProxyType(found)


def validation_file(path: str) -> str | None:
    """The original name of an ImageNet validation image, given a path or source id; None for any other image."""
    found = _VALIDATION.fullmatch(path.replace("\\", "/").rsplit("/", 1)[-1])
    return f"ILSVRC2012_val_{found[1]}.JPEG" if found else None


def _timm_folder() -> Path:
    spec = find_spec("timm")  # does not import it
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise DataError("The ReaL labels are read from timm, which is not installed.", "Install it: pip install timm.")
    return Path(next(iter(folders)))
