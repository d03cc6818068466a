"""Weights that people bring: a file of torch.save or safetensors for a network of timm, and what its outputs mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builders.errors import first_line, plural, quoted
from builders.sources.rows import label_map
from builders.variants import VARIANTS, get_variant
from hfsyn.errors import HfsynError

_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net", "network", "weights")
"""Names under which training scripts keep the weights in a checkpoint, as timm prefers them: averaged ones first."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")
"""What wrappers put before every name: DistributedDataParallel, torch.compile, Lightning."""


def read_weights(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The tensors of a file by name, without wrappers and prefixes; and what was taken off, for people.

    Raises HfsynError if it cannot be read without running code from it, or holds no tensors.
    """
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise HfsynError(f"There is no file {file}.", "Name a file of weights: --checkpoint FILE") from None
    except Exception as error:  # each format has errors of its own
        said = f"{file} cannot be read as weights ({first_line(error)})."
        hint = "It is of safetensors, or of torch.save(network.state_dict(), FILE); pickles that run code are not read."
        raise HfsynError(said, hint) from None
    told: list[str] = []
    while isinstance(held, Mapping):
        found = next((name for name in _WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if found is None:
            break
        told.append(f"taken from its {found!r}")
        held = held[found]
    held = held if isinstance(held, Mapping) else {}
    state = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise HfsynError(f"{file} holds no tensors by name.", "Save the network's state_dict() in it.")
    if others := len(held) - len(state):
        told.append(f"{plural(others, 'value')} that are not tensors left out")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        told.append(f"{prefix!r} taken off every name")
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state, told


def load_into(network: Any, state: Mapping[str, Any], file: Path) -> list[str]:
    """Load the tensors into a network, all of them or none; returns what is to be said of it.

    Where no name is known, but all shapes are, in the same order, they are taken in that order, as from ports to other
    frameworks. Raises HfsynError if anything is missing, left over, or of another shape.
    """
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # not used by evaluation
    told = []
    in_order = len(state) == len(wanted)
    in_order = in_order and all(a.shape == b.shape for a, b in zip(state.values(), wanted.values(), strict=True))
    if in_order and not wanted.keys() & state.keys():
        told.append("no name of it is timm's: taken in their order, in which every shape fits")
        state = dict(zip(wanted, state.values(), strict=True))
    missing = sorted(wanted.keys() - state.keys() - counters)
    unknown = sorted(state.keys() - wanted.keys())
    shapes = [n for n in sorted(wanted.keys() & state.keys()) if wanted[n].shape != state[n].shape]
    if missing or unknown or shapes:
        parts = [f"{len(missing)} of its {len(wanted)} tensors are missing ({quoted(missing, 3)})"] if missing else []
        parts += [f"{len(unknown)} are not its own ({quoted(unknown, 3)})"] if unknown else []
        for name in shapes[:1]:
            parts.append(f"{name} has the shape {tuple(state[name].shape)} and not {tuple(wanted[name].shape)}")
        arch = getattr(network, "pretrained_cfg", {}).get("architecture", type(network).__name__)
        raise HfsynError(f"{file} does not fit {arch}: {'; '.join(parts)}.", "Name the network that it was saved from.")
    network.load_state_dict({**{name: wanted[name] for name in counters}, **state})
    return told


def outputs_of(network: Any, state: Mapping[str, Any]) -> int | None:
    """How many outputs weights have for this kind of network, by its last layer; None if that is not among them."""
    head = getattr(network, "pretrained_cfg", {}).get("classifier")
    for name in (head,) if isinstance(head, str) else tuple(head or ()):
        for end in ("weight", "l.weight"):
            if (tensor := state.get(f"{name}.{end}")) is not None:
                return int(tensor.shape[0])
    last = list(state.values())[-1] if state else None  # in order, the last tensor is the head's bias
    return int(last.shape[0]) if last is not None and last.ndim == 1 and head and not _named(network, state) else None


def _named(network: Any, state: Mapping[str, Any]) -> bool:
    return bool(network.state_dict().keys() & state.keys())


def read_classes(classes: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The wnid and the name of each output.

    `classes` is a variant (its classes in their order; ``imagenet-1k`` is timm's order as well), ``timm:SET`` for one
    of timm's other sets (``timm:imagenet-12k``), or a file: a wnid or class name a line, a JSON list of them, or a JSON
    object from class to number, or from number to class, as torchvision's ``class_to_idx``. Raises HfsynError if it is
    none of these, or a class is not ImageNet's or stands there twice.
    """
    if classes.startswith("timm:"):
        return _of_timm(classes.removeprefix("timm:"))
    path = Path(classes).expanduser()
    if not path.is_file() or path.suffix in (".yaml", ".yml"):
        variant = get_variant(classes)
        return tuple(info.wnid for info in variant.classes), tuple(info.name for info in variant.classes)
    labels = _labels(path)
    imagenet = get_variant("imagenet-1k")
    meant = label_map(imagenet, labels)
    if unknown := [label for label in labels if meant[label] is None]:
        said = f"{len(unknown)} of the {len(labels)} classes of {path} are not ImageNet's: {quoted(unknown)}."
        raise HfsynError(
            said, "A line is a wnid or a class name of ImageNet; own classes are a class map: --classes MAP.yaml"
        )
    found = tuple(str(meant[label]) for label in labels)
    if twice := [wnid for wnid in dict.fromkeys(found) if found.count(wnid) > 1]:
        raise HfsynError(f"{path} names {quoted(twice)} more than once.", "Each output is a class of its own.")
    return found, tuple(imagenet.by_wnid[wnid].name for wnid in found)


def _labels(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise HfsynError(f"{path} is not JSON: {first_line(error)}", "It is a list of classes.") from None
    if isinstance(found, dict):
        pairs = [(value, key) if isinstance(value, int) else (key, value) for key, value in found.items()]
        try:
            numbered = {int(number): str(label) for number, label in pairs}
        except (TypeError, ValueError):
            numbered = {}
        if sorted(numbered) != list(range(len(found))):
            said = f"{path} does not number its {len(found)} classes from 0 to {len(found) - 1}."
            raise HfsynError(said, "It is an object from class to number, or from number to class.")
        return [numbered[number] for number in range(len(found))]
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise HfsynError(f"{path} is not a list of classes.", "It is a JSON list of wnids or class names.")
    return found


def _of_timm(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from timm.data import ImageNetInfo

    try:
        info = ImageNetInfo(name)
    except (AssertionError, KeyError, ValueError, OSError) as error:
        known = "timm:imagenet-1k, timm:imagenet-12k, timm:imagenet-22k"
        raise HfsynError(f"timm knows no set of classes {name!r} ({first_line(error)}).", f"Known: {known}.") from None
    count = info.num_classes()
    wnids = tuple(info.index_to_label_name(number) for number in range(count))
    return wnids, tuple(info.index_to_description(number) for number in range(count))


def classes_for(outputs: int, classes: str | None, whose: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes of that many outputs: as they are said, or ImageNet-1k's if there are 1,000.

    Raises HfsynError as `read_classes`, or if their number is another one, with both.
    """
    if classes is None and outputs == len(get_variant("imagenet-1k").classes):
        return read_classes("imagenet-1k")
    if classes is None:
        fitting = [name for name, variant in VARIANTS.items() if len(variant.classes) == outputs]
        like = f" With that many classes there are: {quoted(fitting, 3)}." if fitting else ""
        said = f"{whose} has {outputs} outputs, and nothing says which classes they are."
        raise HfsynError(said, f"Say so: --classes VARIANT, or a file with a wnid a line.{like}")
    found = read_classes(classes)
    if len(found[0]) != outputs:
        said = f"{whose} has {outputs} outputs, and --classes {classes} names {len(found[0])} classes."
        raise HfsynError(said, "Name the classes that it was trained on, in the order of its outputs.")
    return found
