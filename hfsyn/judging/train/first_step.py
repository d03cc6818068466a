"""One step of a training tried on nothing, so that a network or an augmentation that cannot work is said before it.

timm and torch raise what they like, in the midst of a network, for a size or an option that does not go with it.
"""

from __future__ import annotations

import copy

from builders.wording import first_line
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier.network import Classifier
from hfsyn.judging.sets.batches import seeded
from hfsyn.judging.train.augmentation import Augmentation
from hfsyn.recipes.training_recipe import TrainConfig


def try_training(classifier: Classifier, config: TrainConfig, images: int) -> None:
    """Augment one picture and let a copy of the network look at a part of a step, `images` images.

    Neither the network nor any random generator is changed by it.

    Raises:
        HfsynError: timm cannot make the augmentation, or the network cannot be trained on such a part.
    """
    import torch
    from PIL import Image

    size = classifier.preprocessing.image_size
    with seeded(config.seed):
        try:
            Augmentation(classifier.preprocessing, config.augment)(Image.new("RGB", (size, size), "grey"))
        except Exception as error:
            raise HfsynError(
                f"timm cannot make the augmentation: {first_line(error)}.",
                f"Look at augment.*: auto_augment is {config.augment.auto_augment!r}, such as rand-m7-n2-inc1.",
            ) from None
    network = copy.deepcopy(classifier.network).train()
    count = min(images, 2)  # batch normalisation refuses one, where its map is a single pixel
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            shape = tuple(network(torch.zeros(count, 3, size, size)).shape)
        except Exception as error:
            raise HfsynError(
                f"{classifier.name} cannot be trained on {images} colour image{'s' * (images > 1)} of {size} pixels "
                f"at a time: {first_line(error)}.",
                "Look at --image-size, --batch-size and model.options.",
            ) from None
    if shape != (count, len(classifier.wnids)):
        raise HfsynError(
            f"{classifier.name} answers {count} images with {shape} instead of {len(classifier.wnids)} numbers each.",
            f"model.options is {dict(classifier.options)}.",
        )
