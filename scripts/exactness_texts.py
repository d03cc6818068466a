"""What `check_exactness.py` compares of texts: captions, and texts about classes.

Each case is a true model of transformers with tiny random weights. It is asked by hfsyn, in a batch, and by the model's
own ``generate``, one image after the other, as its documentation does it; the result is how many texts differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch
from exactness_images import Case, both
from PIL import Image

PROMPT = "a photo of"
TOKENS = 8
CHATS = ("llava", "idefics3", "smolvlm", "qwen2_vl")
PROMPTS: dict[str, Sequence[str | None]] = {
    "blip": (None, PROMPT),
    "blip2": (None, PROMPT),
    "git": (None, PROMPT),
    "vit_gpt2": (None,),
    "florence2": (None, "<DETAILED_CAPTION>"),
    "paligemma": ("caption en", "describe"),
    **dict.fromkeys(CHATS, (None, PROMPT)),
}
"""Families of captioners, and what each is asked."""
CACHES = (None, "static")
WRITERS = {"chat_model": "llm", "plain_model": "llm-diverse", "t5": "w2s"}
"""Language models, each with a strategy that asks it."""


@dataclass
class Texts:
    """Makes the cases, and the models that they need, in a folder.

    Args:
        root: empty.
    """

    root: Path
    _folders: dict[str, Path] = field(default_factory=dict)

    def model(self, name: str, cache: str | None) -> Path:
        """A saved tiny model, whose own settings name a kind of cache."""
        from transformers import GenerationConfig

        folder = self._folders.setdefault(name, self.root / name)
        if not folder.is_dir():
            getattr(tiny_models, name)(folder)
        settings = GenerationConfig.from_pretrained(folder)
        settings.cache_implementation = cache
        settings.save_pretrained(folder)
        return folder

    def cases(self) -> Iterator[Case]:
        """All of them."""
        for name, prompts in PROMPTS.items():
            for prompt in prompts:
                for beams in (1, 3):
                    for cache in CACHES:
                        told = f"prompt {prompt!r}, {beams} beams, {cache or 'growing'} cache"
                        yield Case("captions", name, told, partial(self._captions, name, prompt, beams, cache))
        for name, strategy in WRITERS.items():
            for beams in (1, 3):
                yield Case("texts", name, f"{strategy}, {beams} beams", partial(self._texts, name, strategy, beams))

    def _captions(self, name: str, prompt: str | None, beams: int, cache: str | None) -> int:
        from hfsyn.captions.captioner import TransformersCaptioner
        from hfsyn.recipes.recipe import CaptionPart

        folder = self.model(name, cache)
        part = CaptionPart(model=str(folder), prompt=prompt, num_beams=beams, max_new_tokens=TOKENS)
        ask, images = _asker(name, folder, prompt), pictures()
        found, expected = both(
            lambda: TransformersCaptioner(part, "cpu").caption(images), lambda: [ask(image, beams) for image in images]
        )
        return differing(found, expected)

    def _texts(self, name: str, strategy: str, beams: int) -> int:
        from builders.variants import get_variant
        from hfsyn.captions.text_writer import TextWriter
        from hfsyn.recipes.recipe import CaptionPart

        classes = list(get_variant("shapes").classes[:6])
        seeds = [11 * n for n in range(len(classes))]
        part = CaptionPart(model=str(self.model(name, None)), num_beams=beams, max_new_tokens=TOKENS)
        ask = _writer(name, self.model(name, None), strategy)
        found, expected = both(
            lambda: TextWriter(part, strategy, "cpu").write(classes, seeds),
            lambda: [ask(info, seed, beams) for info, seed in zip(classes, seeds, strict=True)],
        )
        # The last sign before the text is always the same, and decides what the smallest model says.
        return differing(found, expected, alike=name == "plain_model")


def differing(found: Sequence[str], expected: Sequence[str], *, alike: bool = False) -> int:
    """How many texts differ; those of one case may only be `alike` where this is said."""
    if len(set(expected)) < 2 and not alike:
        raise AssertionError("the texts are all alike, so that this case shows nothing")
    return sum(one != other for one, other in zip(found, expected, strict=True))


def pictures() -> list[Image.Image]:
    """Noise of several sizes."""
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (40, 10), (7, 90), (64, 64), (33, 20)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def _asker(name: str, folder: Path, prompt: str | None) -> Callable[[Image.Image, int], str]:
    """The model's own ``generate`` about one image, as its documentation shows it."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = None if name == "vit_gpt2" else AutoProcessor.from_pretrained(folder)

    def inputs(image: Image.Image) -> dict[str, Any]:
        if processor is None:
            return dict(AutoImageProcessor.from_pretrained(folder)(images=[image], return_tensors="pt"))
        if name in CHATS:
            text = prompt or "Describe the image in one sentence."
            turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
            return dict(
                processor.apply_chat_template(
                    [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
                )
            )
        if name == "git" and prompt:  # without the marker that ends a text
            ids = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
            return {"input_ids": torch.tensor([ids]), **processor(images=[image], return_tensors="pt")}
        text = prompt or ("<CAPTION>" if name == "florence2" else None)
        found = dict(processor(images=[image], return_tensors="pt", **({"text": [text]} if text else {})))
        # What a training reads, and what a tokenizer numbers for another kind of model.
        return {
            key: value for key, value in found.items() if key != "labels" and (key, name) != ("token_type_ids", "blip")
        }

    def ask(image: Image.Image, beams: int) -> str:
        given = inputs(image)
        new = _new_tokens(model, given, beams)
        return _clean((processor or tokenizer).batch_decode(new, skip_special_tokens=True)[0])

    return ask


def _writer(name: str, folder: Path, strategy: str) -> Callable[[Any, int, int], str]:
    """The model's own ``generate`` about one class."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from hfsyn.captions.text_writer import request

    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def ask(info: Any, seed: int, beams: int) -> str:
        asked = request(strategy, info, random.Random(seed))
        if name == "chat_model":
            given = dict(
                tokenizer.apply_chat_template(
                    asked.turns(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
                )
            )
        else:
            given = dict(tokenizer([asked.asked() if name == "t5" else asked.plain()], return_tensors="pt"))
        said = tokenizer.batch_decode(_new_tokens(model, given, beams), skip_special_tokens=True)[0]
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return _clean(lines[0].strip("\"'`*")) if lines else ""

    return ask


def _new_tokens(model: Any, given: dict[str, Any], beams: int) -> Any:
    """What ``generate`` says after what it was given, of which models give back all, a part or nothing: the likeliest
    tokens have as many scores as there are of them.
    """
    options = {"max_new_tokens": TOKENS, "do_sample": False}
    with torch.inference_mode():
        plain = model.generate(**given, num_beams=1, return_dict_in_generate=True, output_scores=True, **options)
        before = plain.sequences.shape[1] - len(plain.scores)
        return model.generate(**given, num_beams=beams, **options)[:, before:]


def _clean(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).strip(" .,;:")
