"""What a captioner is given: an image and a prompt as the tensors that ``generate`` takes, alone and in a batch.

Chat models get their instruction through their chat template, Florence-2 a task; others continue the prompt. Whatever
else a processor makes (segment ids, masks, sizes, places of tiles) is passed on as it is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.captions.instructions import filled
from hfsyn.captions.token_drawing import ready, room, taken
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import CaptionPart

_INSTRUCTION = "Describe the image in one sentence."
FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""The tasks of Florence-2 whose answer is a caption, and not boxes."""
Group = tuple[list[int], dict[str, Any], int]
"""Rows, their batch, and how many new tokens there is room for."""


class CaptionInputs:
    """Makes them of one image after the other, in any thread, and puts those of several together.

    Args:
        processor: see `processor_of`.
        model: with its weights.
        part: of the recipe.

    Raises:
        HfsynError: the prompt is a task of Florence-2 whose answer is no caption.
    """

    def __init__(self, processor: Any, model: Any, part: CaptionPart) -> None:
        self.processor = processor
        self._model, self._part = model, part
        self._lock = threading.Lock()
        self._template = _template(processor)
        self.prompt = part.prompt
        if model.config.model_type == "florence2":
            self.prompt = _florence_task(part)
        elif self._template:
            self.prompt = part.prompt or _INSTRUCTION
        tokenizer = getattr(processor, "tokenizer", None)
        # Otherwise the answer of a decoder-only model would follow padding instead of the question.
        if tokenizer is not None and not model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"

    def of(self, image: Image.Image, info: ClassInfo | None) -> dict[str, Any]:
        """The tensors of a batch of one, on the CPU. `info` is only needed where the prompt names the class.

        Raises:
            Refused: they are more tokens than the model takes.
        """
        prompt = self.prompt
        if prompt and info is not None:
            prompt = filled(prompt, info)
        elif prompt and "{c}" in prompt:
            raise ValueError("a prompt that names the class needs the classes of the images")
        found = self.with_prompt(image, prompt)
        room(self._model, self._part, _length(found))
        return found

    def with_prompt(self, image: Image.Image, prompt: str | None) -> dict[str, Any]:
        """As `of`, with a prompt of any words and any length."""
        # A fast tokenizer must not be used by two threads at once.
        with self._lock if prompt else contextlib.nullcontext():
            found = taken(self._model, self._made(image, prompt))
        if lists := [name for name, value in found.items() if isinstance(value, list)]:
            raise HfsynError(
                f"The processor of {self._part.model} gives {lists[0]} as a list, and hfsyn passes on tensors alone.",
                "Name another caption.model.",
            )
        return ready(self._model, found, pin=False)

    def groups(self, views: Sequence[dict[str, Any]]) -> list[Group]:
        """What can be asked about together: all, but where pixels differ in shape, where a prompt takes no padding and
        differs in length, or where one leaves less room than the recipe asks for: what a row may say must not depend on
        its companions.
        """
        found: dict[Any, list[int]] = {}
        for row, view in enumerate(views):
            length = _length(view)
            shapes = tuple(
                (name, tuple(value.shape[2 if self._template and _by_token(name, value, length) else 1 :]))
                for name, value in view.items()
            )
            found.setdefault((room(self._model, self._part, length), shapes), []).append(row)
        return [
            (rows, ready(self._model, self._together([views[row] for row in rows])), most)
            for (most, _), rows in found.items()
        ]

    def _together(self, views: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of several batches of one. Shorter prompts are padded as the tokenizer would."""
        import torch

        found: dict[str, Any] = {}
        lengths = [_length(view) for view in views]
        for name in views[0]:
            parts = [view[name] for view in views]
            if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
                tokenizer = self.processor.tokenizer
                fill = tokenizer.pad_token_id if name == "input_ids" else 0
                for i, part in enumerate(parts):
                    missing = max(lengths) - lengths[i]
                    ends = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
                    # `pad` counts dimensions from the last one; tokens are the second.
                    parts[i] = torch.nn.functional.pad(part, (0, 0) * (part.dim() - 2) + ends, value=fill)
            found[name] = torch.cat(parts)
        return found

    def _made(self, image: Image.Image, prompt: str | None) -> dict[str, Any]:
        if self._template:
            content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            return dict(
                self.processor.apply_chat_template(
                    [[{"role": "user", "content": content}]],
                    chat_template=self._template,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            )
        if prompt:
            return self._to_continue(dict(self.processor(images=[image], text=[prompt], return_tensors="pt")))
        return dict(self.processor(images=[image], return_tensors="pt"))

    def _to_continue(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A prompt without the marker that ends a text, which the tokenizer adds for encoders."""
        config, tokenizer = self._model.config, self.processor.tokenizer
        # BLIP takes the marker away itself; an encoder wants it.
        if config.model_type == "blip" or config.is_encoder_decoder or "input_ids" not in inputs:
            return inputs
        if int(inputs["input_ids"][0, -1]) not in (tokenizer.sep_token_id, tokenizer.eos_token_id):
            return inputs
        length = _length(inputs)
        return {name: value[:, :-1] if _by_token(name, value, length) else value for name, value in inputs.items()}


def processor_of(where: str, options: dict[str, Any]) -> Any:
    """The processor of a captioner: of a class of its own, or its image processor and its tokenizer."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(where, **options)
    # AutoProcessor hands out a bare tokenizer or image processor where a model has no processor class.
    return processor if hasattr(processor, "image_processor") else _SplitProcessor(where, options)


def _length(inputs: dict[str, Any]) -> int:
    """Tokens of the prompt, those of the image among them; 1 where decoding starts from nothing."""
    return int(inputs["input_ids"].shape[1]) if "input_ids" in inputs else 1


def _by_token(name: str, value: Any, length: int) -> bool:
    """Whether an input has one value, or one row of values, for each token of the prompt."""
    return name.endswith(("_ids", "_mask")) and value.dim() > 1 and value.shape[1] == length


def _template(processor: Any) -> str | None:
    """The chat template of a processor, or of its tokenizer if that one has a place for an image; None for others."""
    if isinstance(processor, _SplitProcessor) or not hasattr(processor, "apply_chat_template"):
        return None
    if own := getattr(processor, "chat_template", None):
        return str(own.get("default", next(iter(own.values()))) if isinstance(own, dict) else own)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return None
    template = str(tokenizer.get_chat_template())
    text = {"type": "text", "text": "a"}
    try:
        seen, unseen = (
            processor.apply_chat_template([{"role": "user", "content": content}], chat_template=template)
            for content in ([{"type": "image"}, text], [text])
        )
    except Exception:  # a template for texts alone may fail in any way on a list
        return None
    # One that is made for texts alone may also print the list itself.
    return template if seen != unseen and "'type'" not in seen else None


def _florence_task(part: CaptionPart) -> str:
    """The task that Florence-2 is given: ``<CAPTION>`` where the recipe says nothing."""
    task = (part.prompt or FLORENCE_TASKS[0]).strip()
    if "<" in task and task not in FLORENCE_TASKS:
        raise HfsynError(
            f"caption.prompt is {part.prompt!r}, and {part.model} has no such task whose answer is a caption.",
            f"Its tasks: {', '.join(FLORENCE_TASKS)}.",
        )
    return task


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
