"""The folder of a training: what may be in it, whether it is of this training, and its checkpoints.

OUT/config.yaml  model.safetensors  model.json  results.json  logs/  record/  record.parquet
OUT/checkpoints/step-00000120/
    model.safetensors  optimizer.bin  custom_checkpoint_0.pkl  random_states_0.pkl     as accelerate writes them
    checkpoint.json                                          the step, the recipe, the images; written last
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import first_line
from builders.files import atomic_text, check_own_folder, remove_abandoned
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import FACTS, WEIGHTS
from hfsyn.recipes.loading import dump_part
from hfsyn.recipes.training_recipe import TrainConfig, config_difference, load_train_config

CONFIG, RESULTS, CHECKPOINTS, LOGS = "config.yaml", "results.json", "checkpoints", "logs"
RECORD, RECORDED = "record", "record.parquet"
_OURS = (CONFIG, RESULTS, CHECKPOINTS, LOGS, WEIGHTS, FACTS, RECORD, RECORDED)
_MARKER = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8})")


def check_folder(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    """Refuse a folder that holds another training with something to lose, or anything that is not a training's."""
    check_own_folder(folder, _OURS, "a training")
    begun = (folder / RESULTS).is_file() or found_checkpoints(folder / CHECKPOINTS)
    if begun and (folder / CONFIG).is_file() and not overwrite:
        _check_same_config(load_train_config(folder / CONFIG), config, folder)


def finished(folder: Path, config: TrainConfig, images: Sequence[str]) -> dict[str, Any] | None:
    """The result in the folder if it is this training's, though perhaps of another test.

    Refuses one of other images: `images` are the fingerprints of those that are there now.
    """
    if not all((folder / name).is_file() for name in (RESULTS, WEIGHTS, FACTS)):
        return None
    try:
        found: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        other = config_difference(load_train_config(found["config"]), config)
        then = found["training"].get("images")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if other:
        return None
    if then not in (None, images):
        raise _have_changed("images", f"{folder} was finished")
    return found


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of a training that was killed while it wrote."""
    remove_abandoned(folder.glob(".*.tmp"))
    for path in (folder / CHECKPOINTS).glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def prepare_folder(folder: Path, config: TrainConfig, overwrite: bool) -> None:
    """Delete what the training makes again, with `overwrite` all that a training makes; write the recipe."""
    for name in _OURS if overwrite else (RESULTS,):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    atomic_text(folder / CONFIG, dump_part(config))


@dataclass(frozen=True)
class Place:
    """Where a training continues."""

    step: int = 0
    feed: Mapping[str, Any] = field(default_factory=dict)  # this process's place in its streams; empty without streams
    tally: Mapping[str, Any] = field(default_factory=dict)
    """Met and spent so far: ``undecodable`` (id -> reason), ``seconds`` and ``cpu_seconds`` of all processes."""
    history: tuple[dict[str, Any], ...] = ()  # the tests during the training


def save_checkpoint(accelerator: Any, folder: Path, place: Place, facts: Mapping[str, Any], keep: int) -> None:
    """Save the state of all processes at a place, then delete all but the `keep` newest checkpoints.

    Called by every process. A checkpoint is written under a hidden name and renamed when complete, so that a kill at
    any moment leaves the one before it.
    """
    final = folder / f"step-{place.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if place.feed:
        atomic_text(temporary / f"feed-{accelerator.process_index}.json", json.dumps(place.feed) + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        met = {"step": place.step, "tally": place.tally, "history": place.history}
        atomic_text(temporary / _MARKER, json.dumps({**met, **facts}, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        remove_old(folder, keep)
    accelerator.wait_for_everyone()


def remove_old(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for old in found_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(folder / f".{old.name}.tmp"))  # never half of one under its name


def found_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / _MARKER).is_file())


def load_checkpoint(accelerator: Any, folder: Path, facts: Mapping[str, Any]) -> Place:
    """Load the newest checkpoint into the prepared model, optimizer and averages; return its place.

    Raises HfsynError if it is of another recipe, another network or other images, or it is damaged.
    """
    if not (found := found_checkpoints(folder)):
        return Place()
    newest = found[-1]
    damaged, hint = f"The checkpoint {newest} is damaged", "Delete it; the one before it is then taken."
    try:
        stored = json.loads((newest / _MARKER).read_text(encoding="utf-8"))
        step = int(stored["step"])
    except (ValueError, KeyError, TypeError):
        raise HfsynError(f"{damaged}: its {_MARKER} cannot be read.", hint) from None
    if stored.get("config") != facts["config"]:
        other = load_train_config(stored["config"]) if isinstance(stored.get("config"), dict) else None
        _check_same_config(other, load_train_config(facts["config"]), newest)
    for what in ("images", "classes"):
        if stored.get(what) != facts[what]:
            raise _have_changed(what, f"the checkpoint {newest.name} was written")
    try:
        accelerator.load_state(str(newest))
    except Exception as error:  # torch, safetensors and pickle raise anything for a damaged file
        raise HfsynError(f"{damaged}: {type(error).__name__}: {first_line(error)}.", hint) from None
    feed = newest / f"feed-{accelerator.process_index}.json"
    there = json.loads(feed.read_text(encoding="utf-8")) if feed.is_file() else {}
    return Place(step, there, stored.get("tally", {}), tuple(stored.get("history", ())))


def _have_changed(what: str, since: str) -> HfsynError:
    return HfsynError(
        f"The training {what} have changed since {since}.",
        "Start again with --overwrite, or in another --out; or name a fixed @REVISION and restore the files.",
    )


def _check_same_config(there: TrainConfig | None, wanted: TrainConfig, where: Path) -> None:
    """Refuse to continue another recipe's training, naming the first field that differs and decides the weights."""
    found = config_difference(there, wanted) if there is not None else [("recipe", "unreadable", "this one")]
    if found:
        key, old, new = found[0]
        more = f" (and {len(found) - 1} more fields)" if len(found) > 1 else ""
        said = f"{where} belongs to another training: {key} was {old!r} there and is {new!r} now{more}."
        raise HfsynError(said, "Train with the old value, in another --out, or from the start with --overwrite.")
