"""Checkpoints of a training: folders that are there whole or not at all, the last few kept.

OUT/checkpoints/step-00000120/
    model.safetensors  optimizer.bin  custom_checkpoint_0.pkl  random_states_0.pkl     as accelerate writes them
    checkpoint.json                                          the step, the recipe, the images; written last
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier.accelerator import total, union
from hfsyn.recipes.training_recipe import TrainConfig, config_difference, load_train_config

FACTS = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Tally:
    """What a training has cost and met so far, the legs before a restart included."""

    earlier: Mapping[str, Any] = field(default_factory=dict)
    """The `reading` that the checkpoint holds from which this leg went on."""
    _wall: float = field(default_factory=time.monotonic)
    _cpu: float = field(default_factory=time.process_time)

    def reading(self, accelerator: Any, unread: Mapping[str, str]) -> dict[str, Any]:
        """``undecodable`` (id -> reason), ``seconds`` and ``cpu_seconds`` of all processes; called by each of them."""
        now = {
            "seconds": time.monotonic() - self._wall,
            "cpu_seconds": total(accelerator, time.process_time() - self._cpu),
        }
        met = {**self.earlier.get("undecodable", {}), **union(accelerator, unread)}
        return {"undecodable": met, **{key: value + self.earlier.get(key, 0) for key, value in now.items()}}


@dataclass(frozen=True)
class Place:
    """Where a training goes on."""

    step: int = 0
    feed: Mapping[str, Any] = field(default_factory=dict)
    """This process's place in its streams; empty without streams."""
    tally: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    """The tests on the way."""


def save_checkpoint(accelerator: Any, folder: Path, place: Place, facts: Mapping[str, Any], keep: int) -> None:
    """Save the state of all processes at a place, then delete all but the `keep` newest checkpoints.

    Called by every process. It is written under a hidden name and renamed when it is whole: a kill at any moment leaves
    the checkpoint before it.
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
        atomic_text(temporary / FACTS, json.dumps({**met, **facts}, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        remove_old(folder, keep)
    accelerator.wait_for_everyone()


def remove_old(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for old in found_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(folder / f".{old.name}.tmp"))  # never half of one under its name


def found_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / FACTS).is_file())


def load_checkpoint(accelerator: Any, folder: Path, facts: Mapping[str, Any]) -> Place:
    """Put the newest checkpoint into the prepared model, optimizer and averages; return its place.

    Raises:
        HfsynError: it is of another recipe, another network or other images, or it is damaged.
    """
    found = found_checkpoints(folder)
    if not found:
        return Place()
    newest = found[-1]
    try:
        stored = json.loads((newest / FACTS).read_text(encoding="utf-8"))
        step = int(stored["step"])
    except (ValueError, KeyError, TypeError):
        raise _damaged(newest, f"its {FACTS} cannot be read") from None
    _check_same(stored, facts, newest)
    try:
        accelerator.load_state(str(newest))
    except Exception as error:  # torch, safetensors and pickle raise what they like for a damaged file
        raise _damaged(newest, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from None
    feed = newest / f"feed-{accelerator.process_index}.json"
    there = json.loads(feed.read_text(encoding="utf-8")) if feed.is_file() else {}
    return Place(step, there, stored.get("tally", {}), tuple(stored.get("history", ())))


def _damaged(path: Path, why: str) -> HfsynError:
    return HfsynError(f"The checkpoint {path} is damaged: {why}.", "Delete it; the one before it is then taken.")


def _check_same(stored: Mapping[str, Any], facts: Mapping[str, Any], where: Path) -> None:
    """Refuse a checkpoint that is not of this training, naming what differs."""
    if stored.get("config") != facts["config"]:
        other = load_train_config(stored["config"]) if isinstance(stored.get("config"), dict) else None
        check_same_config(other, load_train_config(facts["config"]), where)
    for key, what in (("images", "images"), ("classes", "classes")):
        if stored.get(key) != facts[key]:
            raise have_changed(what, f"the checkpoint {where.name} was written")


def have_changed(what: str, since: str) -> HfsynError:
    """The error of a training that is run again on something else."""
    return HfsynError(
        f"The training {what} have changed since {since}.",
        "Start again with --overwrite, or in another --out; or name a fixed @REVISION and restore the files.",
    )


def check_same_config(there: TrainConfig | None, wanted: TrainConfig, where: Path) -> None:
    """Refuse to go on with another recipe's training, naming the first field that differs.

    Raises:
        HfsynError: they differ in a field that decides the weights.
    """
    found = config_difference(there, wanted) if there is not None else [("recipe", "unreadable", "this one")]
    if found:
        key, old, new = found[0]
        more = f" (and {len(found) - 1} more fields)" if len(found) > 1 else ""
        raise HfsynError(
            f"{where} belongs to another training: {key} was {old!r} there and is {new!r} now{more}.",
            "Train with the old value, in another --out, or from the start with --overwrite.",
        )
