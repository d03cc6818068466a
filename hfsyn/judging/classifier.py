"""A classifier: a timm network, the wnid of each output, how its images are prepared; and accelerate, which runs it.

On disk it is two files, ``model.safetensors`` and ``model.json``. Networks that timm names (``resnet50.a1_in1k``) or
that are on the Hub (``hf_hub:user/name``) are opened as well.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from builders.errors import did_you_mean, first_line, near_path, quoted
from builders.files import atomic_text, atomic_write, sha256_of
from builders.hub import Patience, page_of, patiently
from builders.sources.rows import label_map
from builders.variants import get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.preprocessing import Overrides, Preprocessing, of_weights
from hfsyn.judging.weights import classes_for, load_into, outputs_of, read_classes, read_weights
from hfsyn.workers import alone, cores, current_worker, pick_device

WEIGHTS = "model.safetensors"
FACTS = "model.json"
_ON_HUB = ("hf_hub:", "hf-hub:")
FOLDER = "local-dir:"
ELSEWHERE = (*_ON_HUB, FOLDER)
ZERO_SHOT = "clip:"
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Classifier:
    """An opened classifier; `network` is a torch module."""

    name: str  # timm's name of the architecture
    network: Any
    wnids: tuple[str, ...]  # the class of each output
    names: tuple[str, ...]
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # where the weights are from
    sha256: str = ""  # of the weights' file, or of the tensors if there is none
    seed: int | None = None
    started_from: Mapping[str, str] = field(default_factory=dict)
    """Name and hash of the pretrained weights that its training began with."""
    timm: Preprocessing | None = None
    """What timm's ``validate.py`` would use for these weights; None where timm knows none."""

    @property
    def classes(self) -> dict[str, str]:
        """Id -> name of each output, in order."""
        return dict(zip(self.wnids, self.names, strict=True))

    def facts(self) -> dict[str, Any]:
        """What a result says about the classifier."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "classes": len(self.wnids),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "options": dict(self.options),
            **({"started_from": dict(self.started_from)} if self.started_from else {}),
        }


def _fixed_size(name: str, image_size: int | None) -> dict[str, int]:
    """What a network is created with for inputs of another size, if it is made for one size, as transformers are."""
    import timm

    known = None if image_size is None else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} if image_size is not None and known is not None and known.fixed_input_size else {}


def create_network(
    name: str, classes: int | None, options: Mapping[str, Any], image_size: int | None, *, pretrained: bool = False
) -> Any:
    """A network of timm; `classes` None is as many as its pretrained weights have."""
    import timm

    check_model_name(name)
    kwargs = {**_fixed_size(name, image_size), **options, "num_classes": classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # timm's networks raise anything for options that they do not take
        said = f"The network {name} cannot be created: {first_line(error)}."
        raise HfsynError(said, f"Look at model.* in the recipe; its options are {dict(options)}.") from None


def check_model_name(name: str) -> None:
    """Refuse a network that timm does not know, with the nearest names."""
    import timm

    if name.startswith(ELSEWHERE):
        return
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        said = f"timm has no network {name!r}.{did_you_mean(name, known, 3)}"
        raise HfsynError(said, "timm.list_models('*resnet*') lists those with resnet in the name.")


def save_classifier(classifier: Classifier, folder: Path) -> str:
    """Write ``model.safetensors`` and ``model.json``; return the SHA-256 of the weights' file."""
    from safetensors.torch import save_file

    weights = {key: value.detach().cpu().contiguous() for key, value in classifier.network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS, lambda path: save_file(weights, path))
    sha256 = sha256_of(folder / WEIGHTS)
    facts = {
        "name": classifier.name,
        "options": dict(classifier.options),
        "sha256": sha256,
        "seed": classifier.seed,
        "wnids": list(classifier.wnids),
        "names": list(classifier.names),
        "preprocessing": asdict(classifier.preprocessing),
        **({"started_from": dict(classifier.started_from)} if classifier.started_from else {}),
    }
    atomic_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return sha256


def open_classifier(
    model: str | Path,
    *,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    classes: str | None = None,
    overrides: Overrides | None = None,
    templates: str | None = None,
    allow_pickle: bool = False,
    among: Mapping[str, str] | None = None,
) -> Classifier:
    """Open a trained classifier for evaluation.

    Args:
        model: the folder of a training, or of timm's ``push_to_hf_hub``; a name of timm's pretrained networks;
            ``hf_hub:USER/NAME[@REVISION]``; or a zero-shot classifier, ``clip:ORG/NAME[@REVISION]`` or ``clip:FOLDER``.
        device: a torch device.
        checkpoint: weights for the network `model`, in place of timm's; see `hfsyn.judging.weights`.
        classes: what the outputs mean; see `read_classes`. None is what the weights say, or else ImageNet-1k's.
        overrides: of the preprocessing.
        templates: the texts of a zero-shot classifier; see `hfsyn.judging.zero_shot.templates_of`.
        allow_pickle: whether its weights may be pickles, which run code as they are read.
        among: id -> name of the classes that it tells apart if `classes` does not say.

    Raises:
        HfsynError: there is none, the weights do not fit, or its classes are not known, or known to be others.
    """
    folder, overrides = Path(model).expanduser(), overrides or Overrides()
    if str(model).startswith(ZERO_SHOT):
        if checkpoint is not None:
            raise HfsynError(f"{model} has weights of its own.", "--checkpoint is for a network of timm.")
        found = _open_zero_shot(str(model), classes, among, templates or "imagenet", device, allow_pickle)
        return replace(found, preprocessing=overrides.applied(found.preprocessing))
    if templates is not None or allow_pickle:
        flag = "--allow-pickle-weights" if templates is None else "--templates"
        hint = f"Name one: {ZERO_SHOT}ORG/NAME, or leave it out."
        raise HfsynError(f"{flag} is for zero-shot classifiers, which {model} is not.", hint)
    if checkpoint is not None:
        found = _open_checkpoint(str(model), Path(checkpoint).expanduser(), classes, overrides)
    elif folder.is_dir() and (folder / FACTS).is_file():
        found = _open_folder(folder, overrides)
    elif folder.is_dir() and (folder / "config.json").is_file():
        found = _open_pretrained(f"{FOLDER}{folder}", classes, overrides)
    else:
        found = _open_folder(folder, overrides) if folder.is_dir() else _open_pretrained(str(model), classes, overrides)
    if classes is not None:
        _check_order(found, classes)
    found.network.to(device).eval()
    return replace(found, preprocessing=overrides.applied(found.preprocessing))


def _check_order(found: Classifier, classes: str) -> None:
    """Refuse an order of classes that is not the one that is known of the weights."""
    wnids, names = read_classes(classes)
    said = dict(zip(wnids, names, strict=True))
    for place, (known, other) in enumerate(zip_longest(found.wnids, wnids)):
        if known != other:
            theirs, ours = f"{known} ({found.classes.get(known, '')})", f"{other} ({said.get(other, '')})"
            raise HfsynError(
                f"Output {place} of {found.source or found.name} is {theirs}; by --classes {classes} it is {ours}.",
                "Leave --classes out: the weights say what their outputs mean.",
            )


def _open_zero_shot(
    model: str, classes: str | None, among: Mapping[str, str] | None, templates: str, device: str, allow_pickle: bool
) -> Classifier:
    from hfsyn.judging.zero_shot import open_zero_shot

    if classes is not None:
        wnids, names = read_classes(classes)
    elif among:
        wnids, names = tuple(sorted(among)), tuple(among[wnid] for wnid in sorted(among))
    else:
        raise HfsynError(f"{model} must be told which classes there are.", "Say so: --classes VARIANT, or a file.")
    place = model.removeprefix(ZERO_SHOT)
    source, network, preprocessing = open_zero_shot(place, names, templates, device, allow_pickle=allow_pickle)
    name, options = Path(source.partition("@")[0]).name, {"templates": templates}
    sha256 = state_sha256(network.model)
    return Classifier(name, network, wnids, names, preprocessing, options, f"{ZERO_SHOT}{source}", sha256)


def _open_folder(folder: Path, overrides: Overrides) -> Classifier:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FACTS).is_file() or not (folder / WEIGHTS).is_file():
        raise HfsynError(
            f"{folder} holds no trained classifier: {FACTS} or {WEIGHTS} is missing.",
            "`hfsyn train --out DIR` writes both; a training that was interrupted is continued by its own command.",
        )
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        preprocessing = Preprocessing.read(facts["preprocessing"])
        wnids, names, name = tuple(facts["wnids"]), tuple(facts["names"]), str(facts["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise HfsynError(f"{folder / FACTS} does not describe a classifier ({error}).", "Train it again.") from None
    options = facts.get("options", {})
    network = create_network(name, len(wnids), options, overrides.image_size or preprocessing.extent[0])
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise HfsynError(f"{folder / WEIGHTS} does not fit {name}: {first_line(error)}.", "Train it again.") from None
    sha256, started = sha256_of(folder / WEIGHTS), facts.get("started_from", {})
    seed = facts.get("seed")
    return Classifier(name, network, wnids, names, preprocessing, options, str(folder), sha256, seed, started)


def _open_checkpoint(name: str, file: Path, classes: str | None, overrides: Overrides) -> Classifier:
    """Weights of the user's for a network of timm."""
    state, told = read_weights(file)
    options: dict[str, Any] = {}
    network = create_network(name, None, options, overrides.image_size)
    outputs = outputs_of(network, state) or network.num_classes
    wnids, names = classes_for(outputs, classes, str(file))
    if outputs != network.num_classes:
        network = create_network(name, outputs, options, overrides.image_size)
    told += load_into(network, state, file)
    for line in told:
        print(f"hfsyn: {file}: {line}", file=sys.stderr)
    usual = of_weights(network)
    return Classifier(name, network, wnids, names, usual, options, str(file), sha256_of(file), timm=usual)


def _open_pretrained(name: str, classes: str | None, overrides: Overrides) -> Classifier:
    import timm

    if "/" in name and not name.startswith(ELSEWHERE):
        said = f"There is no folder {name}.{near_path(name)}"
        raise HfsynError(said, "A classifier is a training's folder, a timm name, or hf_hub:USER/NAME.")
    check_model_name(name)
    repo_id = name.partition(":")[2].partition("@")[0] or name
    patience = Patience(repo_id, f"read the weights of {name}", page=page_of(repo_id, "model"))
    more = _fixed_size(name, overrides.image_size)
    try:
        network = patiently(lambda: timm.create_model(name, pretrained=True, **more), patience)
    except HfsynError:
        raise
    except Exception as error:  # timm raises a dozen kinds; the text would show an error of ours
        said = f"The weights of {name} cannot be loaded: {type(error).__name__}: {first_line(error)}."
        raise HfsynError(said, "Check the name and the network, or name the folder of a training.") from None
    wnids, names = _classes_of(network, name, classes)
    usual = of_weights(network)
    return Classifier(name, network, wnids, names, usual, {}, name, state_sha256(network), timm=usual)


def _classes_of(network: Any, name: str, classes: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The wnid and name of each output: from the weights' configuration, as said, or ImageNet-1k's for 1,000."""
    imagenet = get_variant("imagenet-1k")
    if labels := network.pretrained_cfg.get("label_names"):
        for variant in (imagenet, get_variant("shapes")):
            wnids = label_map(variant, labels)
            if None not in wnids.values():
                found = tuple(str(wnids[label]) for label in labels)
                return found, tuple(variant.by_wnid[wnid].name for wnid in found)
        unknown = [label for label, wnid in label_map(imagenet, labels).items() if wnid is None]
        raise HfsynError(f"{len(unknown)} classes of {name} are not ImageNet's: {quoted(unknown)}.", "Train another.")
    return classes_for(network.num_classes, classes, name)


def state_sha256(network: Any, without: Sequence[str] = ()) -> str:
    """SHA-256 over the names, shapes and bytes of all tensors, in order; `without` those of some layers."""
    found = hashlib.sha256()
    for key, value in network.state_dict().items():
        if key.startswith(tuple(f"{layer}." for layer in without)):
            continue
        tensor = value.detach().cpu().contiguous()
        found.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.flatten().numpy().tobytes())
    return found.hexdigest()


def start_accelerator(
    device: str | None,
    mixed_precision: str = "no",
    accumulation: int = 1,
    log_with: str | None = None,
    log_folder: Path | None = None,
) -> Any:
    """An Accelerator for this process, alone or one of a launch; on a CPU it computes with one thread."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    check_tracker(log_with)
    picked = pick_device(device)
    if device is not None and ":" in device:
        said = f"--device {device} names one of several."
        raise HfsynError(said, "Set CUDA_VISIBLE_DEVICES=1, and use --device cuda.")
    # These are global, and an earlier training in this process may have used another precision.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        with alone() if current_worker().world == 1 else contextlib.nullcontext():
            return Accelerator(
                cpu=picked == "cpu",
                mixed_precision=mixed_precision,
                gradient_accumulation_steps=accumulation,
                log_with=log_with,
                project_dir=str(log_folder) if log_with else None,
                step_scheduler_with_optimizer=False,
            )
    except (ValueError, RuntimeError) as error:
        raise HfsynError(f"accelerate cannot start: {first_line(error)}", "Try --mixed-precision no.") from None


def default_workers(accelerator: Any) -> int:
    """Decoding processes beside each process if the user gives no number.

    A GPU waits for the decoders, so its processes share the machine's cores; a CPU would only take turns with them.
    """
    if accelerator.device.type != "cuda":
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return min(16, max(1, cores() // here))


def check_tracker(log_with: str | None) -> None:
    """Refuse a tracker that is not installed; accelerate would only warn and log nothing."""
    from accelerate import utils

    if log_with is None:
        return
    if log_with not in TRACKERS:
        raise HfsynError(f"Unknown tracker {log_with!r}.", f"Known: {', '.join(TRACKERS)}.")
    if not getattr(utils, f"is_{log_with}_available")():
        hint = f"pip install 'hfsyn[{log_with}]'" if log_with != "wandb" else "pip install wandb"
        raise HfsynError(f"The tracker {log_with} is not installed.", hint, code=ExitCode.PREFLIGHT)


def check_division(batch_size: int, accumulation: int, processes: int, *, pairs: bool = False) -> None:
    """Refuse a batch that cannot be divided into equal parts, or with `pairs` not into even ones; name one that can."""
    parts = accumulation * processes
    if batch_size % parts:
        fits = max(1, round(batch_size / parts)) * parts
        raise HfsynError(
            f"A batch of {batch_size} images cannot be divided into {processes} processes times {accumulation} parts.",
            f"The batch size is that of a whole step over all processes; {fits} can be: --batch-size {fits}.",
        )
    if pairs and (each := batch_size // parts) % 2:
        fits = max(1, round(batch_size / parts / 2)) * 2 * parts
        said = f"Mixup pairs images, and a batch of {batch_size} in {parts} part{'s' * (parts > 1)} has {each} in each."
        raise HfsynError(said, f"Make --batch-size even for it: {fits} can be.")


def total(accelerator: Any, value: float) -> float:
    """The sum of a number over all processes."""
    import torch

    return float(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item())


def union(accelerator: Any, values: Mapping[str, str]) -> dict[str, str]:
    """The entries of all processes together, sorted."""
    from accelerate.utils import gather_object

    found = list(values.items())
    return dict(sorted(found if accelerator.num_processes == 1 else gather_object(found)))
