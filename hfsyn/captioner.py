"""From images to captions: the Captioner protocol, and every captioning model of transformers through one path.

The path is: processor(images, text), ``generate``, ``batch_decode``. Chat models get their instruction through their
chat template. Decoding is greedy or by beams; both are deterministic and do not depend on the other images of a batch
beyond rounding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.errors import HfsynError
from hfsyn.hub_models import locate
from hfsyn.recipe import CaptionPart


class Captioner(Protocol):
    """Something that describes images."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; an empty string where the model said nothing."""
        ...


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT, ViT-GPT2 and instruction VLMs through transformers' auto classes.

    Args:
        recipe: model, revision, prompt, length, beams and dtype.
        device: a torch device.

    Raises:
        HfsynError: the model cannot be loaded as a captioner.
    """

    def __init__(self, recipe: CaptionPart, device: str) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._device = device
        where = locate(recipe.model, "captioner")
        dtype = getattr(torch, recipe.dtype)
        options: dict[str, Any] = {"revision": recipe.revision} if recipe.revision else {}
        try:
            self._processor = _processor(where, options)
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(where, dtype=dtype, **options)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise HfsynError(
                f"{recipe.model} cannot be loaded as a captioner: {reason}", "Try a BLIP model."
            ) from error
        self._model.to(device).eval()
        tokenizer = getattr(self._processor, "tokenizer", None)
        # Without a side to pad on, the new tokens of a decoder-only model would follow padding.
        if tokenizer is not None and not self._model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """See `Captioner`."""
        import torch

        inputs = self._inputs(images)
        moved = {
            name: value.to(self._device, self._model.dtype) if value.is_floating_point() else value.to(self._device)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        with torch.inference_mode():
            out = self._model.generate(
                **moved, max_new_tokens=self._recipe.max_new_tokens, num_beams=self._recipe.num_beams, do_sample=False
            )
        asked = moved.get("input_ids")
        # Decoder-only models repeat the prompt before their answer; those with a separate decoder do not.
        if asked is not None and out.shape[1] >= asked.shape[1] and bool((out[:, : asked.shape[1]] == asked).all()):
            out = out[:, asked.shape[1] :]
        return [clean(text) for text in self._processor.batch_decode(out, skip_special_tokens=True)]

    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        prompt = self._recipe.prompt
        if getattr(self._processor, "chat_template", None):
            turn = [{"type": "image"}, {"type": "text", "text": prompt or "Describe the image in one sentence."}]
            messages = [
                [{"role": "user", "content": [{**turn[0], "image": image}, turn[1]]}] for image in images
            ]  # fmt: skip
            return dict(
                self._processor.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    padding=True,
                )
            )
        if prompt:
            return dict(
                self._processor(images=list(images), text=[prompt] * len(images), return_tensors="pt", padding=True)
            )
        return dict(self._processor(images=list(images), return_tensors="pt"))


class _SplitProcessor:
    """An image processor and a tokenizer behind the face of a processor, for models without one (ViT-GPT2)."""

    def __init__(self, where: str, options: dict[str, Any]) -> None:
        import transformers

        self.image_processor = transformers.AutoImageProcessor.from_pretrained(where, **options)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        return self.image_processor(images=images, return_tensors="pt")

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        return list(self.tokenizer.batch_decode(tokens, **options))


def _processor(where: str, options: dict[str, Any]) -> Any:
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(where, **options)
    # AutoProcessor hands out a bare tokenizer or image processor where a model has no processor class.
    return processor if hasattr(processor, "image_processor") else _SplitProcessor(where, options)


def clean(text: str) -> str:
    """One line, single spaces, no space or full stop at the ends: a caption continues a prompt."""
    return " ".join(text.split()).strip(" .")


def caption_flags(caption: str, info: ClassInfo) -> tuple[str, ...]:
    """What looks wrong with a caption: any of ``empty``, ``repeated``, ``no-class-word``; flags are data, not errors.

    `repeated` is a word or a pair of words three times in a row, or one word making up half of six or more, which is
    how captioners fail (small function words do not count there). `no-class-word` means that no word of the class's
    name or lemmas occurs, which is common and no fault by itself.
    """
    words = re.findall(r"[\w'-]+", caption.lower())
    flags = []
    if not words:
        return ("empty",)
    if _repeats(words):
        flags.append("repeated")
    known = {w for name in (info.name, *info.lemmas) for w in re.findall(r"[\w'-]+", name.lower())}
    if not known & {*words, *(w.removesuffix("s") for w in words)}:
        flags.append("no-class-word")
    return tuple(flags)


def _repeats(words: Sequence[str]) -> bool:
    singles = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    pairs = any(
        words[i : i + 2] == words[i + 2 : i + 4] == words[i + 4 : i + 6] for i in range(len(words) - 5)
    )  # fmt: skip
    content = [w for w in words if w not in {"a", "an", "the", "of", "on", "in", "and", "with"}]
    most = Counter(content).most_common(1)
    return singles or pairs or (len(content) >= 6 and most[0][1] * 2 >= len(content))
