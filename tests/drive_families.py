"""What a generator does, looked at in a process whose Hugging Face libraries know the Hub on loopback only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

BATCH = 3
PROMPTS = ["a photo of goldfish", "a dog", "the red house on a hill"]


def look(model: str, revision: str, fields: Mapping[str, Any], *, starts: bool) -> dict[str, Any]:
    """Draw a little and say what can be said of the images, of the text encoders and of what is flagged."""
    import torch

    from hfsyn.images.generator import DiffusersGenerator
    from hfsyn.recipes.recipe import GeneratePart

    base = {"model": model, "revision": revision, "dtype": "float32", "batch_size": BATCH, "steps": 4}

    def load(**more: Any) -> DiffusersGenerator:
        return DiffusersGenerator(GeneratePart(**{**base, **fields, **more}), None, "cpu")

    generator = load()
    together = generator.generate(PROMPTS, [1, 2, 3])
    noise, text, _ = generator.generate([PROMPTS[1], PROMPTS[2], PROMPTS[0]], [9, 2, 7])
    found: dict[str, Any] = {
        "size": [together[0].pixels.shape[1], together[0].pixels.shape[0]],
        "problems": [image.problem for image in together],
        "alone": largest(together[1], generator.generate(PROMPTS[1:2], [2])[0]),
        "elsewhere": largest(together[1], generator.generate([PROMPTS[2], PROMPTS[0], PROMPTS[1]], [7, 8, 2])[2]),
        "other seed": largest(together[1], noise),
        "other prompt": largest(together[1], text),
        **counted(generator),
    }
    decoder = generator._pipe.vae.decoder.conv_out
    with torch.no_grad():
        decoder.weight.zero_()
        found["flat"] = generator.generate(PROMPTS[:1], [1])[0].problem
        decoder.weight.fill_(float("nan"))
        found["nan"] = generator.generate(PROMPTS[:1], [1])[0].problem
    if starts:
        images = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue", "green")]
        over = load(init="source", strength=0.5)
        drawn = over.generate(PROMPTS, [1, 2, 3], images)
        other_image, other_seed = over.generate([PROMPTS[1]] * 2, [2, 9], images[:2])
        found["over"] = {
            "size": [drawn[0].pixels.shape[1], drawn[0].pixels.shape[0]],
            "problems": [image.problem for image in drawn],
            "alone": largest(drawn[1], over.generate(PROMPTS[1:2], [2], images[1:2])[0]),
            "other image": largest(drawn[1], other_image),
            "other seed": largest(drawn[1], other_seed),
            "from noise": largest(drawn[1], together[1]),
        }
    else:
        found["over"] = refusal(lambda: load(init="source", strength=0.5))
    return found


def counted(generator: Any) -> dict[str, Any]:
    """What the text encoders take, and how long a short and a long prompt are for them."""
    words = ["a photo of goldfish", " ".join(["a"] * 600)]
    return {"max tokens": generator.max_tokens, "tokens": generator.count_tokens(words)}


def limits(model: str, revision: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The limits alone."""
    from hfsyn.images.generator import DiffusersGenerator
    from hfsyn.recipes.recipe import GeneratePart

    part = GeneratePart(model=model, revision=revision, dtype="float32", **fields)
    return counted(DiffusersGenerator(part, None, "cpu"))


def flags(model: str, revision: str, fields: Mapping[str, Any]) -> list[str | None]:
    """What becomes of an image, with the checkpoint's safety checker and without."""
    from hfsyn.images.generator import DiffusersGenerator
    from hfsyn.recipes.recipe import GeneratePart

    base = {"model": model, "revision": revision, "dtype": "float32", "batch_size": 1, "steps": 2}
    parts = [GeneratePart(**{**base, **fields, "safety_checker": checked}) for checked in (True, False)]
    return [DiffusersGenerator(part, None, "cpu").generate(PROMPTS[:1], [1])[0].problem for part in parts]


def largest(a: Any, b: Any) -> int:
    """The largest difference of two images in grey levels."""
    return int(np.abs(a.pixels.astype(int) - b.pixels).max())


def refusal(call: Any) -> str:
    """What a user reads."""
    from hfsyn.errors import HfsynError

    try:
        call()
    except HfsynError as error:
        return str(error)
    return ""
