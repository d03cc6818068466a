"""A network as it is before its training: new, or with weights that others trained."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.files import sha256_of
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import (
    ELSEWHERE,
    FACTS,
    FOLDER,
    WEIGHTS,
    ZERO_SHOT,
    Classifier,
    create_network,
    state_sha256,
)
from hfsyn.judging.preprocessing import Overrides, Preprocessing, of_training, of_weights
from hfsyn.judging.weights import load_into, read_weights
from hfsyn.recipes.training_recipe import ModelPart, TrainConfig


def new_classifier(config: TrainConfig, wnids: Sequence[str], names: Mapping[str, str]) -> Classifier:
    """A network to be trained, its weights decided by the seed, or those that the recipe starts from.

    Raises HfsynError for an unknown network (with the nearest name), options that it does not take, or weights that do
    not fit.
    """
    import torch

    part = config.model
    torch.manual_seed(config.seed)
    classes = tuple(names[wnid] for wnid in wnids)
    if part.name.startswith(ZERO_SHOT):
        return _new_probe(part, tuple(wnids), classes, config.seed)
    begun = _of_folder(part)
    wanted = {**part.options, "drop_rate": part.dropout or None, "drop_path_rate": part.drop_path or None}
    options = {**begun.get("options", {}), **{key: value for key, value in wanted.items() if value is not None}}
    network = create_network(part.name, len(wnids), options, part.image_size, pretrained=part.pretrained)
    preprocessing = of_training(network, part.image_size, config.test.crop, config.augment.interpolation)
    name, started = part.name, {}
    if part.pretrained:
        started = {"name": part.name, "sha256": _hash_of_start(part.name, network)}
    elif part.init_from is not None:
        started = _begin(network, Path(part.init_from).expanduser(), begun.get("wnids") == list(wnids))
    if part.head_only:  # as it is tested, so that the features of the test are prepared alike
        usual = Preprocessing.read(begun["preprocessing"]) if begun else of_weights(network)
        preprocessing = Overrides(image_size=part.image_size).applied(usual)
    if part.name.startswith(ELSEWHERE):
        # The trained classifier stands alone: where it began may be gone by the time when it is opened.
        name = str(network.pretrained_cfg["architecture"])
        options = {**_options_of(network), **options}
    return Classifier(
        name, network, tuple(wnids), classes, preprocessing, options, part.name, seed=config.seed, started_from=started
    )


def _new_probe(part: ModelPart, wnids: tuple[str, ...], classes: tuple[str, ...], seed: int) -> Classifier:
    """The tower of a model of images and texts with a last layer for classes."""
    from hfsyn.judging.zero_shot import new_probe

    if not part.head_only:
        said = f"{part.name} is a model of images and texts, of which only a last layer can be fitted."
        raise HfsynError(said, "Add --head-only.")
    source, network, preprocessing, options = new_probe(part.name.removeprefix(ZERO_SHOT), len(wnids))
    Overrides(image_size=part.image_size).applied(preprocessing)  # which leaves nothing to be said
    started = {"name": f"{ZERO_SHOT}{source}", "sha256": state_sha256(network, without=("head",))}
    return Classifier(
        part.name, network, wnids, classes, preprocessing, options, part.name, seed=seed, started_from=started
    )


def _of_folder(part: ModelPart) -> dict[str, Any]:
    """What a training's folder says of the weights to start from; empty for a file, or for none."""
    folder = Path(part.init_from).expanduser() if part.init_from else None
    if folder is None or folder.is_file():
        return {}
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        name = facts["name"]
    except (OSError, ValueError, KeyError, TypeError):
        said = f"{folder} is neither the folder of a finished training nor a file of weights."
        raise HfsynError(said, "Name one: --set model.init_from=out/real") from None
    if name != part.name:
        said = f"{folder} holds the weights of a {name}, and the network to train is a {part.name}."
        raise HfsynError(said, f"Train the same: --model {name}")
    return facts


def _begin(network: Any, place: Path, same_classes: bool) -> dict[str, str]:
    """Load the weights of a folder or file; the last layer stays new unless it is known to have the same classes."""
    file = place / WEIGHTS if place.is_dir() else place
    state, _ = read_weights(file)
    heads = tuple(f"{layer}." for layer in heads_of(network))
    if not same_classes:
        own = network.state_dict()
        if not own.keys() & state.keys() and len(own) == len(state):  # in order, as from other frameworks
            state = dict(zip(own, state.values(), strict=True))
        kept = {key: value for key, value in state.items() if not key.startswith(heads)}
        state = kept | {key: value for key, value in own.items() if key.startswith(heads)}
    load_into(network, state, file)
    return {"name": str(place), "sha256": sha256_of(file), "head": "kept" if same_classes else "new"}


def tell_start(classifier: Classifier | None) -> None:
    """Say on stderr from which weights of the user's a training starts."""
    begun = {} if classifier is None else classifier.started_from
    if "head" in begun:
        why = "" if begun["head"] == "kept" else ", since its classes are others or not known"
        said = f"its last layer is {begun['head']}{why}; SHA-256 {begun['sha256'][:16]}"
        print(f"hfsyn: the training starts from {begun['name']}: {said}", file=sys.stderr)


def heads_of(network: Any) -> tuple[str, ...]:
    """The names of a network's last layers; timm's networks have one or two."""
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _hash_of_start(name: str, network: Any) -> str:
    """SHA-256 of the weights' file in a folder; or of the tensors, without the new last layer's."""
    file = Path(name.removeprefix(FOLDER)).expanduser() / WEIGHTS
    if name.startswith(FOLDER) and file.is_file():
        return sha256_of(file)
    return state_sha256(network, without=heads_of(network))


def _options_of(network: Any) -> dict[str, Any]:
    """What a folder's or repository's configuration says beside the architecture."""
    given = getattr(network, "_model_args", {})
    kept = {key: value for key, value in given.items() if key not in ("num_classes", "img_size", "drop_rate")}
    return {key: value for key, value in kept.items() if isinstance(value, str | int | float | bool | list | tuple)}
