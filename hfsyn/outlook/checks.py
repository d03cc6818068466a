"""Whether a run of a recipe can be carried out here: models and source open, room on the disks, memory of the devices.

Nothing is downloaded or written. What is estimated says so.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builders.errors import DataError
from builders.hub.answers import asked, is_offline, page_of
from builders.sources import open_source
from builders.variants import get_variant
from builders.wording import size_text
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.models.finding import Kind, local_file, locate
from hfsyn.models.loras import FILE
from hfsyn.outlook.check import Check
from hfsyn.outlook.costs import memory_needed
from hfsyn.outlook.forecast import disk_needed
from hfsyn.recipes.parts import HUB, strategy_of
from hfsyn.recipes.recipe import BUILTIN, CaptionPart, GeneratePart, Recipe, is_content_hash
from hfsyn.recipes.strategies import is_user_strategy
from hfsyn.runs.inputs import FileTexts, check_order
from hfsyn.runs.run import Run, run_in
from hfsyn.workers import default_processes, visible_gpus

_SPARE = 1.1
"""Room is short where there is less than this many times what is needed."""
_WEIGHTS = (".safetensors", ".json", ".txt", ".model")
_VARIANTS = (".fp16.", ".bf16.", ".non_ema.")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a recipe names."""

    field: str
    """Where, dotted."""
    name: str
    revision: str | None
    kind: Kind
    marker: str
    """A file without which it is not this model."""


def models_of(recipe: Recipe) -> list[Model]:
    """The models that a recipe names, in its order."""
    found = []
    if (part := recipe.caption) is not None:
        found.append(Model("caption.model", part.model, part.revision, "captioner", "config.json"))
    draw = recipe.generate
    found.append(Model("generate.model", draw.model, draw.revision, "generator", "model_index.json"))
    if draw.lora is not None:
        file = draw.lora_file or FILE
        found.append(Model("generate.lora", draw.lora, draw.lora_revision, "generator", file))
    return found


def recipe_checks(recipe: Recipe, out: str | Path | None, token: str | bool | None) -> Iterator[Check]:
    """What may stop a run of this recipe.

    Args:
        recipe: the recipe.
        out: where the run is or will be; None is this folder.
        token: as everywhere in huggingface_hub.
    """
    if out is not None:
        check, run = _folder(recipe, Path(out).expanduser())
        yield check
        recipe = recipe if run is None else run.recipe  # with what that run has pinned
    yield from _source(recipe, token)
    fetched = 0
    for model in models_of(recipe):
        check, size = _model(model, token)
        fetched += size
        yield check
    yield from _texts(recipe, token)
    yield from _room(recipe, out, fetched)
    yield from _memory(recipe)


def _folder(recipe: Recipe, folder: Path) -> tuple[Check, Run | None]:
    """Whether the run can be written where it is to be, and the run that is continued there."""
    try:
        run = run_in(recipe, folder)
    except HfsynError as error:
        return Check("failed", error.message, error.hint), None
    there = _existing(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("failed", f"{there} may not be written to.", f"chmod u+w {there}, or name another --out."), run
    what = "has room for a new run" if run is None else "holds a run of this recipe, which is continued"
    return Check("ok", f"{folder} {what}."), run


def _source(recipe: Recipe, token: str | bool | None) -> Iterator[Check]:
    """Whether the real images are there, or open to this account."""
    source = recipe.source
    variant = get_variant(source.variant)
    hub = None if source.path is not None or variant.hub is None else variant.hub.repo_id
    try:
        check_order(recipe)
    except HfsynError as error:
        yield Check("failed", error.message, error.hint)
        return
    if hub and is_offline():
        yield Check(
            "failed",
            f"The images of {variant.name} are on the Hub ({hub}), and HF_HUB_OFFLINE is set.",
            "unset HF_HUB_OFFLINE, or --set source.path=FOLDER",
        )
        return
    try:
        opened = open_source(source.variant, source.split, path=source.path, revision=source.revision, token=token)
    except DataError as error:
        yield Check("failed", error.message, error.hint)
        return
    yield Check("ok", f"The images of {variant.name} are open: {opened.layout}.")


def _texts(recipe: Recipe, token: str | bool | None) -> Iterator[Check]:
    """Whether the function that writes the prompts is there, and the captions that others made are, or are open."""
    if is_user_strategy(recipe.prompt.strategy):
        try:
            strategy_of(recipe.prompt)
            yield Check("ok", f"The strategy {recipe.prompt.strategy} is here.")
        except HfsynError as error:
            yield Check("failed", error.message, error.hint)
    file = recipe.prompt.captions_file
    if file is not None and not file.startswith(HUB):
        try:
            FileTexts(recipe.prompt)
            yield Check("ok", f"The captions file {file} is here.")
        except HfsynError as error:
            yield Check("failed", error.message, error.hint)
    if file is None or not file.startswith(HUB) or is_offline():
        return
    name = "/".join(file.removeprefix(HUB).split("/")[:2]).partition("@")[0]
    repo = HubRepo(name, token=token, sleep=lambda seconds: None)
    try:
        may = repo.call(f"read {name}", _may_read, repo, name, "dataset")
        if may is None:
            yield Check("warning", f"Whether the captions of {name} are open could not be asked.")
        elif may:
            yield Check("ok", f"The captions of {name} are open.")
        else:
            text = f"The captions of {name} are gated, and this account has no access."
            yield Check("failed", text, f"Accept the terms at {page_of(name)}, then: hf auth login")
    except HfsynError as error:
        yield Check("failed", error.message, _way_out(error))


def _model(model: Model, token: str | bool | None) -> tuple[Check, int]:
    """Whether a model is here, or open to this account; and how many bytes of it would be fetched."""
    if model.name == BUILTIN:
        return Check("ok", f"{model.field} comes with hfsyn."), 0
    try:
        place = locate(model.name, model.kind) if model.field.endswith(".model") else model.name
    except HfsynError as error:
        return Check("failed", error.message, error.hint), 0
    if Path(place).expanduser().exists():
        return Check("ok", f"{model.field} is here: {place}."), 0
    revision = None if is_content_hash(model.revision) else model.revision
    cached = local_file(place, revision, model.marker, model.kind) is not None
    command = f"hf download {place}" + (f" --revision {revision}" if revision else "")
    if is_offline():
        if cached:
            return Check("ok", f"The model {place} is in the cache, as far as its configuration tells."), 0
        text = f"The model {place} is not in the cache, and HF_HUB_OFFLINE is set."
        return Check("failed", text, f"With a network: HF_HUB_OFFLINE=0 {command}"), 0
    repo = HubRepo(place, token=token, sleep=lambda seconds: None)
    try:
        may = repo.call(f"read the model {place}", _may_read, repo, place, "model")
        if may is False:
            text = f"The model {place} is gated, and this account has no access."
            return Check("failed", text, f"Accept its terms at {page_of(place, 'model')}, then: hf auth login"), 0
        info = repo.call(f"read the model {place}", repo.api.model_info, place, revision=revision, files_metadata=True)
    except HfsynError as error:
        return Check("warning" if cached else "failed", error.message, _way_out(error)), 0
    if may is None and info.gated:
        return Check("warning", f"The model {place} is gated, and whether it is open could not be asked."), 0
    if cached:
        return Check("ok", f"The model {place} is open, and in the cache."), 0
    size = sum(s.size or 0 for s in info.siblings or () if _is_fetched(model, s.rfilename))
    return Check("ok", f"The model {place} is open; up to {size_text(size)} to fetch. {command}"), size


def _way_out(error: HfsynError) -> str:
    """What helps where the Hub could not be asked; the hint of its calls speaks of sending."""
    return "Check the network and HF_ENDPOINT, then ask again." if error.code == ExitCode.PARTIAL else error.hint


def _is_fetched(model: Model, name: str) -> bool:
    """Whether a file of a repository is among those that are loaded: some are there in copies of another kind too."""
    if model.field.endswith(".lora"):
        return name == model.marker
    if not name.endswith(_WEIGHTS) or any(variant in name for variant in _VARIANTS):
        return False
    # A pipeline's parts are in folders, and what lies beside its index is the whole in one file for other programs.
    return model.kind == "captioner" or "/" in name or name == model.marker


def _may_read(repo: HubRepo, name: str, repo_type: str) -> bool | None:
    """Whether the files of a repository are open to this account; its listing can be read by everybody. None where the
    Hub does not say.
    """
    from huggingface_hub.errors import GatedRepoError

    try:
        return asked(lambda: repo.api.auth_check(name, repo_type=repo_type)) or None
    except GatedRepoError:
        return False


def _room(recipe: Recipe, out: str | Path | None, fetched: int) -> Iterator[Check]:
    """Whether images and models fit on the disks that they go to."""
    from huggingface_hub import constants

    target = _existing(Path(out).expanduser() if out is not None else Path.cwd())
    cache = _existing(Path(constants.HF_HUB_CACHE))
    try:
        images = disk_needed(recipe, out)
    except HfsynError as error:
        yield Check("warning", f"What the run takes on the disk is not known: {error.message}", error.hint)
        images = 0
    shared = target.stat().st_dev == cache.stat().st_dev
    if images:
        more = fetched if shared else 0
        what = f"The run takes about {size_text(images)}" + (f", its models {size_text(more)}" if more else "")
        yield _fits(what, images + more, target, "Name an --out on a larger disk.")
    if fetched and not (shared and images):
        yield _fits(f"The models take {size_text(fetched)}", fetched, cache, "export HF_HOME=FOLDER on a larger disk")


def _fits(what: str, size: float, folder: Path, hint: str) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{what} (estimate); {size_text(free)} are free in {folder}."
    if size > free:
        return Check("failed", text, hint)
    return Check("warning", text, hint) if size * _SPARE > free else Check("ok", text)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver tells."""

    name: str
    gigabytes: float
    capability: float
    """NVIDIA's compute capability; bfloat16 begins at 8."""


def gpus() -> list[Gpu]:
    """The visible GPUs; empty where nvidia-smi tells of none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in said.splitlines():
        name, _, rest = line.partition(", ")
        memory, _, capability = rest.partition(", ")
        try:
            found.append(Gpu(name, float(memory) * 2**20 / 1e9, float(capability)))
        except ValueError:
            continue
    return found[: visible_gpus()]


def _memory(recipe: Recipe) -> Iterator[Check]:
    """Whether the models fit into the memory of a device, by the table; an estimate."""
    captioner, generator = memory_needed(recipe)
    found = gpus()
    if found:
        device = min(found, key=lambda gpu: gpu.gigabytes)
        room, where, each = device.gigabytes, f"a {device.name}", ""
        if device.capability < 8 and (_is_bfloat16(recipe.generate) or _is_bfloat16(recipe.caption)):
            parts = {"caption": recipe.caption, "generate": recipe.generate}
            hint = " ".join(f"--set {name}.dtype=float16" for name, part in parts.items() if _is_bfloat16(part))
            yield Check("warning", f"{device.name} has no bfloat16 and imitates it slowly.", hint)
    else:
        processes = default_processes()
        room, where, each = _memory_free() / processes, "this machine", f" for each of {processes} processes"
    for part, needed in (("captioner", captioner), ("generator", generator)):
        if not needed:  # not known, or nothing
            continue
        text = f"The {part} takes about {needed:.1f} GB (estimate); {where} has {room:.1f} GB{each}."
        if needed <= room:
            yield Check("ok", text)
        else:
            hint = "--batch-size auto" if part == "generator" and found else "--num-processes 1, or a larger device"
            yield Check("warning", text, f"Try: {hint}")


def _is_bfloat16(part: CaptionPart | GeneratePart | None) -> bool:
    return part is not None and part.dtype == "bfloat16"


def _memory_free() -> float:
    """GB of main memory that programs may take; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9
    except (OSError, StopIteration, ValueError):
        return math.inf
