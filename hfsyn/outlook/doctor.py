"""What of this machine and account may stop a run or a publication, each finding with what helps."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.hub.rights import rights_of
from hfsyn.outlook.check import Check
from hfsyn.outlook.checks import recipe_checks
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.workers import visible_gpus

_LOW_DISK = 10 * 10**9


def doctor(
    recipe: str | Path | Recipe | None = None, out: str | Path | None = None, *, token: str | bool | None = None
) -> list[Check]:
    """Look at token, Hub, disk, devices and libraries, and at what a recipe needs of them. Nothing is changed or sent.

    Args:
        recipe: see `load_recipe`; None looks at this machine and account alone.
        out: where the recipe's run is or will be.
        token: as everywhere in huggingface_hub; None takes HF_TOKEN or the stored one.

    Raises:
        HfsynError: there is no such recipe.
    """
    found = [*_account(token), *_disk(), *_devices(), *_libraries()]
    return found if recipe is None else [*found, *recipe_checks(load_recipe(recipe), out, token)]


def _account(token: str | bool | None) -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    from builders.hub.answers import is_offline

    if is_offline():
        yield Check("warning", "HF_HUB_OFFLINE is set: only what is in the cache can be used.", "unset HF_HUB_OFFLINE")
        return
    if not (token or get_token()):
        yield Check("warning", "There is no token: public datasets and models only, no publishing.", "hf auth login")
        return
    try:
        who = HubRepo("", token=token, sleep=lambda seconds: None).whoami()
    except HfsynError as error:
        yield Check("failed", error.message, error.hint)
        return
    rights = rights_of(who, str(who.get("name")))
    yield Check("ok", f"{constants.ENDPOINT} knows this token: {who.get('name')} ({rights.role}).")
    if not rights.write:
        yield Check("warning", "The token cannot publish.", "One that may write to your repositories: hf auth login")
    if rights.more:
        yield Check(
            "warning",
            f"The token may do more than publishing needs: {', '.join(rights.more[:4])}"
            + (f" and {len(rights.more) - 4} more." if rights.more[4:] else "."),
            f"Make one with write access to a single repository: {constants.ENDPOINT}/settings/tokens",
        )


def _disk() -> Iterator[Check]:
    from huggingface_hub import constants

    for name, folder in (("this folder", Path.cwd()), ("the Hub's cache", Path(constants.HF_HUB_CACHE))):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        state = "warning" if free < _LOW_DISK else "ok"
        hint = "`hfsyn plan RECIPE` says what a run takes; HF_HOME moves the cache." if state == "warning" else ""
        yield Check(state, f"{free / 1e9:.0f} GB are free for {name}.", hint)  # type: ignore[arg-type]


def _devices() -> Iterator[Check]:
    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0))
    if gpus and not _usable():
        yield Check(
            "failed",
            f"{gpus} GPU{'s' if gpus > 1 else ''} visible, but torch cannot use a GPU here.",
            "Update the driver, or --device cpu.",
        )
    elif gpus:
        yield Check("ok", f"{gpus} GPU{'s' if gpus > 1 else ''} visible, {cores} cores.")
    else:
        yield Check(
            "warning",
            f"No GPU is visible, {cores} cores: fine for the built-in models, days for real ones.",
            "See nvidia-smi and CUDA_VISIBLE_DEVICES, or run elsewhere.",
        )


def _usable() -> bool:
    """Whether torch can use a GPU: not with a driver that is older than what it was built for."""
    import torch

    with warnings.catch_warnings(action="ignore"):  # which would say it in a paragraph
        return torch.cuda.is_available()


def _libraries() -> Iterator[Check]:
    names = ("torch", "diffusers", "transformers", "datasets", "huggingface_hub", "accelerate", "timm")
    yield Check("ok", ", ".join(f"{name} {version(name)}" for name in names) + ".")
    for wrong in _unfit():
        name, _, _ = wrong.partition(" ")
        yield Check("warning", f"hfsyn was not made for this: {wrong}.", f"pip install --upgrade hfsyn {name}")


def _unfit() -> Iterator[str]:
    """Libraries in versions that hfsyn's own metadata rules out, or that are not there."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("hfsyn") or ()]
    except PackageNotFoundError:  # a copy that is not installed
        return
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is missing ({requirement.specifier} is wanted)"
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            yield f"{requirement.name} is {there} ({requirement.specifier} is wanted)"
