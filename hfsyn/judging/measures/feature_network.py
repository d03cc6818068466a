"""The network that computes features of images: a classifier's, one of timm, or one of random weights."""

from dataclasses import asdict, replace
from typing import Any

RANDOM = "random:"


def open_network(features: str, device: str, overrides: Any) -> Any:
    """The classifier of a folder or of timm, or ``random:NAME``, whose last layer is not used."""
    from hfsyn.judging.classifier import ZERO_SHOT, open_classifier
    from hfsyn.judging.starting import new_classifier
    from hfsyn.recipes.training_recipe import load_train_config

    nothing = {"n00000000": "none"}
    if features.startswith(ZERO_SHOT):  # features need no classes
        return open_classifier(features, device=device, overrides=overrides, among=nothing, templates="{c}")
    if not features.startswith(RANDOM):
        return open_classifier(features, device=device, overrides=overrides)
    config = load_train_config({"data": {"train": ["shapes"]}, "model": {"name": features.removeprefix(RANDOM)}})
    classifier = new_classifier(config, list(nothing), nothing)
    classifier.network.to(device).eval()
    given = classifier.preprocessing
    return classifier if overrides is None else replace(classifier, preprocessing=overrides.applied(given))


def network_facts(classifier: Any, features: str, dimension: int) -> dict[str, Any]:
    """What a result says about the network."""
    return {
        "name": classifier.name,
        "source": classifier.source,
        "weights": "random" if features.startswith(RANDOM) else "trained",
        "sha256": classifier.sha256,
        "dimension": dimension,
        "preprocessing": asdict(classifier.preprocessing),
        "timm_preprocessing": None if classifier.timm is None else asdict(classifier.timm),
    }
