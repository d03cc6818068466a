"""A network as it is before its training: new, or with weights that others trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.files import sha256_of
from hfsyn.judging.classifier import ELSEWHERE, FOLDER, WEIGHTS, Classifier, create_network, state_sha256
from hfsyn.judging.preprocessing import of_training
from hfsyn.recipes.training_recipe import TrainConfig


def new_classifier(config: TrainConfig, wnids: Sequence[str], names: Mapping[str, str]) -> Classifier:
    """A network to be trained, its weights decided by the seed (or timm's own if pretrained ones are asked for).

    Raises HfsynError for an unknown network (with the nearest name), or options that it does not take.
    """
    import torch

    part = config.model
    torch.manual_seed(config.seed)
    wanted = {**part.options, "drop_rate": part.dropout or None, "drop_path_rate": part.drop_path or None}
    options = {key: value for key, value in wanted.items() if value is not None}
    network = create_network(part.name, len(wnids), options, part.image_size, pretrained=part.pretrained)
    preprocessing = of_training(network, part.image_size, config.test.crop, config.augment.interpolation)
    name, started = part.name, {}
    if part.pretrained:
        started = {"name": part.name, "sha256": _hash_of_start(part.name, network)}
    if part.name.startswith(ELSEWHERE):
        # The trained classifier stands alone: where it began may be gone by the time when it is opened.
        name = str(network.pretrained_cfg["architecture"])
        options = {**_options_of(network), **options}
    classes = tuple(names[wnid] for wnid in wnids)
    return Classifier(
        name, network, tuple(wnids), classes, preprocessing, options, part.name, seed=config.seed, started_from=started
    )


def _hash_of_start(name: str, network: Any) -> str:
    """SHA-256 of the weights' file in a folder; or of the tensors, without the new last layer's."""
    file = Path(name.removeprefix(FOLDER)).expanduser() / WEIGHTS
    if name.startswith(FOLDER) and file.is_file():
        return sha256_of(file)
    heads = network.pretrained_cfg.get("classifier") or ()
    return state_sha256(network, without=(heads,) if isinstance(heads, str) else tuple(heads))


def _options_of(network: Any) -> dict[str, Any]:
    """What a folder's or repository's configuration says beside the architecture."""
    given = getattr(network, "_model_args", {})
    kept = {key: value for key, value in given.items() if key not in ("num_classes", "img_size", "drop_rate")}
    return {key: value for key, value in kept.items() if isinstance(value, str | int | float | bool | list | tuple)}
