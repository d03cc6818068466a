"""The folder of a training: what may lie in it, and whether what lies in it is this training.

OUT/config.yaml  model.safetensors  model.json  results.json  checkpoints/  logs/
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from builders.files import atomic_text, remove_abandoned
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier.network import FACTS, WEIGHTS
from hfsyn.judging.train.checkpoints import check_same_config, found_checkpoints, have_changed
from hfsyn.judging.train.feed import Feed
from hfsyn.recipes.training_recipe import TrainConfig, config_difference, dump_train_config, load_train_config

CONFIG, RESULTS, CHECKPOINTS, LOGS = "config.yaml", "results.json", "checkpoints", "logs"
_OURS = (CONFIG, RESULTS, CHECKPOINTS, LOGS, WEIGHTS, FACTS)


def finished(folder: Path, config: TrainConfig, feed: Feed) -> dict[str, Any] | None:
    """The result that is there, if it is this training's; it may have been tested on something else.

    Raises:
        HfsynError: the images have changed since.
    """
    if not all((folder / name).is_file() for name in (RESULTS, WEIGHTS, FACTS)):
        return None
    try:
        found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        other = config_difference(load_train_config(found["config"]), config)
        images = found["training"].get("images")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if other:
        return None
    if images is not None and images != feed.fingerprints:
        raise have_changed("images", f"{folder} was finished")
    return found


def check_folder(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    """Refuse a folder that holds another training with something to lose, or anything that is not a training's.

    Raises:
        HfsynError: naming the first field that differs, or the files; or it is no folder.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise HfsynError(f"{path} is a file, and a training needs a folder.", "Choose another: --out DIR.")
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in _OURS and not p.name.startswith("."))
    if strangers:
        raise HfsynError(
            f"{folder} holds other things ({', '.join(strangers[:3])}).", "Choose an empty or new folder: --out DIR."
        )
    begun = (folder / RESULTS).is_file() or found_checkpoints(folder / CHECKPOINTS)
    if begun and (folder / CONFIG).is_file() and not overwrite:
        check_same_config(load_train_config(folder / CONFIG), config, folder)


def clear_leftovers(folder: Path) -> None:
    """Remove what a training that was killed while it wrote has left, which nothing else would ever remove."""
    remove_abandoned(folder.glob(".*.tmp"))
    for path in (folder / CHECKPOINTS).glob(".step-*.tmp"):  # half written, or half removed
        shutil.rmtree(path, ignore_errors=True)


def prepare_folder(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    """Delete what the training makes again, with `overwrite` all that a training makes; write the recipe."""
    for name in _OURS if overwrite else (RESULTS,):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    atomic_text(folder / CONFIG, dump_train_config(config))
