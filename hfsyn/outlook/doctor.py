"""What could stop a run or a publication here: account, disk, devices, libraries, and what a recipe needs of them.

Nothing is downloaded, written or sent. Estimates say that they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from builders.errors import DataError, and_more, plural, size_text
from builders.hub import is_offline, page_of
from builders.sources import open_source
from builders.stores.copies import is_address, local
from builders.variants import get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.hub.rights import rights_of
from hfsyn.judging.steering import pin_entropy
from hfsyn.models.finding import local_file, locate
from hfsyn.models.loras import FILE
from hfsyn.outlook.costs import memory_needed
from hfsyn.outlook.environment import existing, gpus, memory_free, torch_sees_gpus
from hfsyn.outlook.forecast import disk_needed
from hfsyn.recipes.parts import HUB, strategy_of
from hfsyn.recipes.recipe import BUILTIN, Recipe, is_content_hash, load_recipe
from hfsyn.recipes.strategies import is_user_strategy
from hfsyn.runs.inputs import FileTexts, check_order
from hfsyn.runs.prepare import run_in
from hfsyn.runs.run import Run
from hfsyn.workers import cores, default_processes, visible_gpus

_LOW_DISK = 10 * 10**9
_SPARE = 1.1  # there is a warning where the free space is less than this times what is needed
_WEIGHTS = (".safetensors", ".json", ".txt", ".model")
_VARIANTS = (".fp16.", ".bf16.", ".non_ema.")
Token = str | bool | None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at before anything is spent or sent, and the result."""

    state: Literal["ok", "warning", "failed"]
    text: str
    hint: str = ""
    code: int = ExitCode.PREFLIGHT

    def line(self) -> str:
        """For people."""
        mark = "FAILED" if self.state == "failed" else self.state
        return f"{mark:8}{self.text} {self.hint}".rstrip()


def doctor(
    recipe: str | Path | Recipe | None = None, out: str | Path | None = None, *, token: Token = None
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
    return found if recipe is None else [*found, *_recipe(load_recipe(recipe), out, token)]


def _failed(error: HfsynError | DataError) -> Check:
    return Check("failed", error.message, error.hint)


# --- this machine and account -----------------------------------------------------------------------------------------


def _account(token: Token) -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    if is_offline():
        yield Check("warning", "HF_HUB_OFFLINE is set: only what is in the cache can be used.", "unset HF_HUB_OFFLINE")
        return
    if not (token or get_token()):
        yield Check("warning", "There is no token: public datasets and models only, no publishing.", "hf auth login")
        return
    try:
        who = HubRepo("", token=token, sleep=lambda seconds: None).account
    except HfsynError as error:
        yield _failed(error)
        return
    rights = rights_of(who, str(who.get("name")))
    yield Check("ok", f"{constants.ENDPOINT} knows this token: {who.get('name')} ({rights.role}).")
    if not rights.write:
        yield Check("warning", "The token cannot publish.", "One that may write to your repositories: hf auth login")
    if rights.more:
        more = f"{', '.join(rights.more[:4])}{and_more(len(rights.more), 4)}"
        hint = f"Make one with write access to a single repository: {constants.ENDPOINT}/settings/tokens"
        yield Check("warning", f"The token may do more than publishing needs: {more}.", hint)


def _disk() -> Iterator[Check]:
    from huggingface_hub import constants

    for name, folder in (("this folder", Path.cwd()), ("the Hub's cache", Path(constants.HF_HUB_CACHE))):
        free = shutil.disk_usage(existing(folder)).free
        text = f"{free / 1e9:.0f} GB are free for {name}."
        if free < _LOW_DISK:
            yield Check("warning", text, "`hfsyn plan RECIPE` says what a run takes; HF_HOME moves the cache.")
        else:
            yield Check("ok", text)


def _devices() -> Iterator[Check]:
    found = visible_gpus()
    visible = f"{plural(found, 'GPU')} visible"
    if not found:
        text = f"No GPU is visible, {plural(cores(), 'core')}: fine for the built-in models, days for real ones."
        yield Check("warning", text, "See nvidia-smi and CUDA_VISIBLE_DEVICES, or run elsewhere.")
    elif torch_sees_gpus():
        yield Check("ok", f"{visible}, {plural(cores(), 'core')}.")
    else:
        yield Check("failed", f"{visible}, but torch cannot use a GPU here.", "Update the driver, or --device cpu.")


def _libraries() -> Iterator[Check]:
    """The versions of the libraries, and which of them hfsyn's own metadata rules out."""
    from packaging.requirements import Requirement

    names = ("torch", "diffusers", "transformers", "datasets", "huggingface_hub", "accelerate", "timm")
    yield Check("ok", ", ".join(f"{name} {version(name)}" for name in names) + ".")
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
            there = ""
        if not there or not requirement.specifier.contains(there, prereleases=True):
            problem = f"{requirement.name} is {there or 'missing'} ({requirement.specifier} is wanted)"
            hint = f"pip install --upgrade hfsyn {requirement.name}"
            yield Check("warning", f"hfsyn was not made for this: {problem}.", hint)


# --- a recipe ---------------------------------------------------------------------------------------------------------


class _Model(NamedTuple):
    """A model that a recipe names: its field, and a file that it must have."""

    field: str
    name: str
    revision: str | None
    kind: Literal["captioner", "generator"]
    marker: str


def _models_of(recipe: Recipe) -> list[_Model]:
    part, draw = recipe.caption, recipe.generate
    found = [_Model("generate.model", draw.model, draw.revision, "generator", "model_index.json")]
    if part is not None:
        found.insert(0, _Model("caption.model", part.model, part.revision, "captioner", "config.json"))
    if draw.lora is not None:
        found.append(_Model("generate.lora", draw.lora, draw.lora_revision, "generator", draw.lora_file or FILE))
    return found


def _recipe(recipe: Recipe, out: str | Path | None, token: Token) -> Iterator[Check]:
    """What could stop a run of this recipe in `out`, or in this folder where that is None."""
    if out is not None:
        check, run = _folder(recipe, out)
        yield check
        recipe = recipe if run is None else run.recipe  # with what that run has pinned
    yield _source(recipe, token)
    models = [_model(model, token) for model in _models_of(recipe)]
    yield from (check for check, _ in models)
    if recipe.generate.entropy_weight and Path(str(recipe.generate.entropy_classifier)).expanduser().is_dir():
        yield _classifier(recipe)
    yield from _texts(recipe, token)
    yield from _room(recipe, out, sum(size for _, size in models))
    yield from _memory(recipe)


def _folder(recipe: Recipe, out: str | Path) -> tuple[Check, Run | None]:
    """Whether the run can be written to the folder, and the run that would be continued there."""
    try:
        folder = local(out)
        run = run_in(recipe, folder)
    except HfsynError as error:
        return _failed(error), None
    there = existing(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("failed", f"{there} may not be written to.", f"chmod u+w {there}, or name another --out."), run
    what = "has room for a new run" if run is None else "holds a run of this recipe, which is continued"
    return Check("ok", f"{folder} {what}."), run


def _source(recipe: Recipe, token: Token) -> Check:
    """Whether the real images are there, or open to this account."""
    source = recipe.source
    variant = get_variant(source.variant)
    try:
        check_order(recipe)
        if source.path is None and variant.hub is not None and is_offline():
            text = f"The images of {variant.name} are on the Hub ({variant.hub.repo_id}), and HF_HUB_OFFLINE is set."
            return Check("failed", text, "unset HF_HUB_OFFLINE, or --set source.path=FOLDER")
        opened = open_source(source.variant, source.split, path=source.path, revision=source.revision, token=token)
    except HfsynError as error:
        return _failed(error)
    return Check("ok", f"The images of {variant.name} are open: {opened.layout}.")


def _classifier(recipe: Recipe) -> Check:
    """Whether the classifier of entropy guidance is the one that the recipe means, and has the classes."""
    try:
        pin_entropy(recipe)
    except HfsynError as error:
        return _failed(error)
    return Check("ok", f"The classifier {recipe.generate.entropy_classifier} has all classes of the recipe.")


def _texts(recipe: Recipe, token: Token) -> Iterator[Check]:
    """Whether a prompt function and a captions file of the user's can be read."""
    part, file = recipe.prompt, recipe.prompt.captions_file
    if is_user_strategy(part.strategy):
        try:
            strategy_of(part)
            yield Check("ok", f"The strategy {part.strategy} is here.")
        except HfsynError as error:
            yield _failed(error)
    if file is not None and not file.startswith(HUB):
        try:
            FileTexts(part)
            yield Check("ok", f"The captions file {file} is here.")
        except HfsynError as error:
            yield _failed(error)
    elif file is not None and not is_offline():
        name = "/".join(file.removeprefix(HUB).split("/")[:2]).partition("@")[0]
        repo = HubRepo(name, token=token, sleep=lambda seconds: None)
        try:
            may = repo.may(f"read {name}", name, "dataset")
        except HfsynError as error:
            yield Check("failed", error.message, _way_out(error))
            return
        if may is False:
            text = f"The captions of {name} are gated, private or missing, and this account has no access."
            yield Check("failed", text, f"Accept the terms at {page_of(name)}, then: hf auth login")
        elif may:
            yield Check("ok", f"The captions of {name} are open.")
        else:
            yield Check("warning", f"The server does not say whether the captions of {name} are open.")


def _model(model: _Model, token: Token) -> tuple[Check, int]:
    """Whether a model is here, or open to this account; and how many bytes of it would be downloaded."""
    if model.name == BUILTIN:
        return Check("ok", f"{model.field} comes with hfsyn."), 0
    try:
        place = locate(model.name, model.kind) if model.field.endswith(".model") else model.name
    except HfsynError as error:
        return _failed(error), 0
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
    repo = HubRepo(place, repo_type="model", token=token, sleep=lambda seconds: None)
    try:
        info = repo.call(f"read the model {place}", repo.api.model_info, place, revision=revision, files_metadata=True)
        may = repo.may(f"read the model {place}", place, "model")  # the listing of a gated model is public
    except HfsynError as error:
        return Check("warning" if cached else "failed", error.message, _way_out(error)), 0
    if may is False:
        text = f"The model {place} is gated, and this account has no access."
        return Check("failed", text, f"Accept its terms at {page_of(place, 'model')}, then: hf auth login"), 0
    if may is None and info.gated:
        return Check("warning", f"The model {place} is gated, and the server does not say whether it is open."), 0
    if cached:
        return Check("ok", f"The model {place} is open, and in the cache."), 0
    size = sum(s.size or 0 for s in info.siblings or () if _is_fetched(model, s.rfilename))
    return Check("ok", f"The model {place} is open; up to {size_text(size)} to fetch. {command}"), size


def _way_out(error: HfsynError) -> str:
    """A hint where the Hub could not be asked; the error's own is about sending."""
    return "Check the network and HF_ENDPOINT, then ask again." if error.code == ExitCode.PARTIAL else error.hint


def _is_fetched(model: _Model, name: str) -> bool:
    """Whether a file of a repository is loaded: some weights are there in several formats."""
    if model.field.endswith(".lora"):
        return name == model.marker
    if not name.endswith(_WEIGHTS) or any(variant in name for variant in _VARIANTS):
        return False
    # The parts of a pipeline are in folders; weights beside its index are the whole in one file for other programs.
    return model.kind == "captioner" or "/" in name or name == model.marker


def _room(recipe: Recipe, out: str | Path | None, fetched: int) -> Iterator[Check]:
    """Whether images and models fit on the disks that they go to."""
    from huggingface_hub import constants

    # Of a run in object storage hardly more than a shard is here at a time.
    target = existing(local(out) if out is not None else Path.cwd())
    cache = existing(Path(constants.HF_HUB_CACHE))
    try:
        images = 0 if is_address(out) else disk_needed(recipe, out)
    except HfsynError as error:
        yield Check("warning", f"It is not known how much disk space the run takes: {error.message}", error.hint)
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


def _memory(recipe: Recipe) -> Iterator[Check]:
    """Whether the models fit into the memory of the smallest device; an estimate."""
    if there := gpus():
        room, capability, name = min(there)
        where, each = f"a {name}", ""
        parts = {"caption": recipe.caption, "generate": recipe.generate}
        halves = [field for field, part in parts.items() if part is not None and part.dtype == "bfloat16"]
        if capability < 8 and halves:  # NVIDIA's GPUs have bfloat16 from 8.0 on
            hint = " ".join(f"--set {field}.dtype=float16" for field in halves)
            yield Check("warning", f"{name} has no bfloat16 and emulates it slowly.", hint)
    else:
        processes = default_processes()
        room, where, each = memory_free() / processes, "this machine", f" for each of {processes} processes"
    for model, needed in zip(("captioner", "generator"), memory_needed(recipe), strict=True):
        if not needed:  # not known, or nothing
            continue
        text = f"The {model} takes about {needed:.1f} GB (estimate); {where} has {room:.1f} GB{each}."
        if needed <= room:
            yield Check("ok", text)
        else:
            hint = "--batch-size auto" if model == "generator" and there else "--num-processes 1, or a larger device"
            yield Check("warning", text, f"Try: {hint}")
