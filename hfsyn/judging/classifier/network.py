"""A classifier: a timm network, the wnid of each of its outputs, and how its images are prepared.

On disk it is two files, ``model.safetensors`` and ``model.json``; what `timm` names (``resnet50.a1_in1k``) or the Hub
holds (``hf_hub:user/name``) is opened alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import did_you_mean
from builders.files import atomic_text, atomic_write, sha256_of
from builders.hub.answers import Patience, page_of, patiently
from builders.sources.labels import label_map
from builders.variants import get_variant
from builders.wording import first_line, quoted
from hfsyn.errors import HfsynError
from hfsyn.recipes.training_recipe import TrainConfig

WEIGHTS = "model.safetensors"
FACTS = "model.json"


@dataclass(frozen=True)
class Preprocessing:
    """What an image is made into before the network sees it."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 0.875
    """Side of the central crop, as a share of the resized image."""


@dataclass(frozen=True)
class Classifier:
    """An opened classifier; `network` is a torch module."""

    name: str
    """timm's name of the architecture."""
    network: Any
    wnids: tuple[str, ...]
    """The class of each output."""
    names: tuple[str, ...]
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    """Where the weights are from."""
    sha256: str = ""
    """Of the weights: of the file, or of the tensors where there is none at hand."""
    seed: int | None = None
    """Of its training, where that is known."""

    @property
    def classes(self) -> dict[str, str]:
        """Id -> name of each output, in order."""
        return dict(zip(self.wnids, self.names, strict=True))

    def facts(self) -> dict[str, Any]:
        """What a result says of the classifier."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "classes": len(self.wnids),
            "options": dict(self.options),
        }


def new_classifier(config: TrainConfig, wnids: Sequence[str], names: Mapping[str, str]) -> Classifier:
    """A network to be trained, its weights decided by the seed (or timm's own, where pretrained ones are asked for).

    Raises:
        HfsynError: an unknown network (with the nearest name), or options that it does not take.
    """
    import torch

    part = config.model
    torch.manual_seed(config.seed)
    wanted = {**part.options, "drop_rate": part.dropout or None, "drop_path_rate": part.drop_path or None}
    options = {key: value for key, value in wanted.items() if value is not None}
    network = create_network(part.name, len(wnids), options, part.image_size, pretrained=part.pretrained)
    preprocessing = _preprocessing(network, part.image_size, config.test.crop, config.augment.interpolation)
    return Classifier(
        part.name,
        network,
        tuple(wnids),
        tuple(names[wnid] for wnid in wnids),
        preprocessing,
        options,
        part.name,
        seed=config.seed,
    )


def create_network(
    name: str, classes: int | None, options: Mapping[str, Any], image_size: int | None, *, pretrained: bool = False
) -> Any:
    """A timm network with `classes` outputs (None: its own).

    Raises:
        HfsynError: see `new_classifier`.
    """
    import timm

    check_model_name(name)
    sized = dict(options)
    if image_size is not None and "img_size" not in sized and _takes_img_size(name):
        sized["img_size"] = image_size
    kwargs = {**sized, **({} if classes is None else {"num_classes": classes})}
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise HfsynError(f"{name} does not take these options: {error}.", f"model.options is {options}.") from None
    except Exception as error:  # timm's networks raise what they like for options that do not go together
        raise HfsynError(
            f"The network {name} cannot be made: {first_line(error)}.",
            f"Look at model.* in the recipe; its options are {dict(options)}.",
        ) from None


def _takes_img_size(name: str) -> bool:
    """Whether the network is built for one size of image, as transformers are."""
    import timm

    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(found is not None and found.fixed_input_size)


def check_model_name(name: str) -> None:
    """Refuse a network that timm does not know, with the nearest names.

    Raises:
        HfsynError: there is none of that name.
    """
    import timm

    if name.startswith(("hf_hub:", "hf-hub:", "local-dir:")):
        return
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise HfsynError(
            f"timm has no network {name!r}.{did_you_mean(name, known, 3)}",
            "timm.list_models('*resnet*') lists those with resnet in the name.",
        )


def _preprocessing(
    network: Any, image_size: int | None, crop: float | None, interpolation: str | None
) -> Preprocessing:
    from timm.data import resolve_model_data_config

    found = resolve_model_data_config(network)
    return Preprocessing(
        image_size or found["input_size"][-1],
        tuple(found["mean"]),
        tuple(found["std"]),
        found["interpolation"] if interpolation in (None, "random") else str(interpolation),
        found["crop_pct"] if crop is None else crop,
    )


def plain_transform(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform: resize, central crop, normalise; no randomness."""
    from timm.data import create_transform

    return create_transform(
        preprocessing.image_size,
        is_training=False,
        crop_pct=preprocessing.crop or None,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


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
    }
    atomic_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return sha256


def open_classifier(model: str | Path, *, device: str = "cpu") -> Classifier:
    """Open a trained classifier for evaluation.

    Args:
        model: the folder of a training, a name of timm's pretrained networks, or ``hf_hub:USER/NAME[@REVISION]``.
        device: a torch device.

    Raises:
        HfsynError: there is none, the weights do not fit, or its classes are not known as wnids.
    """
    text = str(model)
    folder = Path(text).expanduser()
    found = _open_folder(folder) if folder.is_dir() else _open_pretrained(text)
    found.network.to(device).eval()
    return found


def _open_folder(folder: Path) -> Classifier:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FACTS).is_file() or not (folder / WEIGHTS).is_file():
        raise HfsynError(
            f"{folder} holds no trained classifier: {FACTS} or {WEIGHTS} is missing.",
            "`hfsyn train --out DIR` writes both; a training that was interrupted is continued by its own command.",
        )
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        given = facts["preprocessing"]
        preprocessing = Preprocessing(**{**given, "mean": tuple(given["mean"]), "std": tuple(given["std"])})
        wnids, names, name = tuple(facts["wnids"]), tuple(facts["names"]), str(facts["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise HfsynError(f"{folder / FACTS} does not describe a classifier ({error}).", "Train it again.") from None
    options = facts.get("options", {})
    network = create_network(name, len(wnids), options, preprocessing.image_size)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(f"{folder / WEIGHTS} does not fit {name}: {reason}", "Train it again.") from None
    return Classifier(
        name, network, wnids, names, preprocessing, options, str(folder), sha256_of(folder / WEIGHTS), facts.get("seed")
    )


def _open_pretrained(name: str) -> Classifier:
    import timm

    if "/" in name and not name.startswith(("hf_hub:", "hf-hub:")):
        raise HfsynError(
            f"There is no folder {name}.", "A classifier is a training's folder, a timm name, or hf_hub:USER/NAME."
        )
    check_model_name(name)
    repo_id = name.partition(":")[2].partition("@")[0] or name
    patience = Patience(repo_id, f"read the weights of {name}", page=page_of(repo_id, "model"))
    try:
        network = patiently(lambda: timm.create_model(name, pretrained=True), patience)
    except HfsynError:
        raise
    except Exception as error:  # timm raises a dozen kinds; a fault of ours would show in the text
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(
            f"The weights of {name} cannot be had: {type(error).__name__}: {reason}",
            "Check the name and the network, or name the folder of a training.",
        ) from None
    wnids, names = _classes_of(network, name)
    preprocessing = _preprocessing(network, None, None, None)
    return Classifier(name, network, wnids, names, preprocessing, {}, name, state_sha256(network))


def _classes_of(network: Any, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The wnid and name of each output: said by the weights' configuration, or ImageNet-1k's by their number.

    Raises:
        HfsynError: neither.
    """
    imagenet = get_variant("imagenet-1k")
    labels = network.pretrained_cfg.get("label_names")
    if labels:
        for variant in (imagenet, get_variant("shapes")):
            wnids = label_map(variant, labels)
            if None not in wnids.values():
                found = tuple(str(wnids[label]) for label in labels)
                return found, tuple(variant.by_wnid[wnid].name for wnid in found)
        unknown = [label for label, wnid in label_map(imagenet, labels).items() if wnid is None]
        raise HfsynError(f"{len(unknown)} classes of {name} are not ImageNet's: {quoted(unknown)}.", "Train another.")
    if network.num_classes != len(imagenet.classes):
        raise HfsynError(
            f"{name} has {network.num_classes} outputs, and nothing says which classes they are.",
            "Weights with 1,000 outputs are taken as ImageNet-1k's; others must name their labels.",
        )
    return tuple(c.wnid for c in imagenet.classes), tuple(c.name for c in imagenet.classes)


def state_sha256(network: Any) -> str:
    """SHA-256 over the names, shapes and bytes of all tensors, in order."""
    found = hashlib.sha256()
    for key, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        found.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.flatten().view(-1).numpy().tobytes())
    return found.hexdigest()
