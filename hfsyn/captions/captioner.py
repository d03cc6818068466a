"""From images to captions: the Captioner protocol, and every captioning model of transformers through one path.

The path is: processor(images, text), ``generate``, ``batch_decode``. Chat models get their instruction through their
chat template, Florence-2 a task; others continue the prompt. Everything else that a processor makes (segment ids,
masks, sizes, places of tiles) is passed on unchanged. However tokens are chosen (see `hfsyn.captions.token_drawing`), a
caption does not depend on the other images of a batch beyond rounding.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL import Image

from builders.images import decoding
from builders.variants import ClassInfo
from hfsyn.captions.texts import clean, filled, longest
from hfsyn.captions.token_drawing import FEW, loaded, new_tokens, ready, room, taken, tried
from hfsyn.errors import HfsynError
from hfsyn.images.tuning import is_out_of_memory
from hfsyn.recipes.recipe import CaptionPart

_INSTRUCTION = "Describe the image in one sentence."
_FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""The tasks of Florence-2 whose answer is a caption, and not boxes."""
_STRIP = 1 << 18
"""Pixels of an image that are copied at once."""
_Group = tuple[list[int], dict[str, Any], int]  # rows, their batch, and how many new tokens there is room for


class Captioner(Protocol):
    """Something that describes images."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; an empty string if the model said nothing.

        An error sets the image aside, asked alone or in a batch.
        """
        ...


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2, PaliGemma and instruction VLMs through transformers' auto classes.

    A caption is what the model says *after* its prompt, and never the prompt itself: asked with ``a photo of``, BLIP
    continues ``a goldfish in a bowl``, and ``a photo of goldfish, a goldfish in a bowl`` is what a diffusion prompt
    should say. With the prompt kept, each of them would say "a photo of" twice.

    The model is tried with the longest of the `classes` that the prompt may have to name. Raises HfsynError if it
    cannot be loaded as a captioner, has lost weights, has no use for the prompt or needs one, or cannot caption a small
    picture.
    """

    def __init__(
        self, recipe: CaptionPart, device: str, *, allow_pickle: bool = False, classes: Sequence[ClassInfo] = ()
    ) -> None:
        self._recipe = recipe
        processor, self._model, self.idle = loaded(recipe, "captioner", _parts, allow_pickle=allow_pickle)
        self._inputs = CaptionInputs(processor, self._model, recipe)
        self._model.to(device).eval()
        self._info = longest(recipe.prompt, classes)
        self._check_prompt()
        self._takes_pixels = self._inputs.same_of_pixels(self._info)

    def caption(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[ClassInfo] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See `Captioner`; for RGB images of any size. Their classes are only needed if the prompt names them, and
        their seeds only if the recipe draws tokens.

        Raises Refused if one of them is more than the model's context takes, or its values are not finite.
        """
        known: Sequence[ClassInfo | None] = [None] * len(images) if classes is None else classes
        return self.ask([self.look(image, info) for image, info in zip(images, known, strict=True)], seeds)()

    def look(self, image: Image.Image, info: ClassInfo | None = None, *, close: bool = False) -> dict[str, Any]:
        """What the model will see of one RGB image of any size: the tensors of a batch of one, on the CPU; in any
        thread. With `close` the image is closed as soon as it is no longer needed: processors copy it several times.

        Raises an error of any kind if the processor does not take this image, and HfsynError if it no longer takes a
        small picture either.
        """
        try:
            seen: Any = image
            if self._takes_pixels:
                seen = _pixels(image)
                if close:
                    decoding.close(image)
            return self._inputs.of(seen, info)
        except Exception:
            self._tried(lambda: self._inputs.of(_picture(), self._info))
            raise

    def ask(self, views: Sequence[dict[str, Any]], seeds: Sequence[int] | None = None) -> Callable[[], list[str]]:
        """Put what `look` returned for several images together, in any thread; what is returned asks the model."""
        groups = self._inputs.groups(views)

        def answer() -> list[str]:
            try:
                return self._said(groups, len(views), seeds)
            except Exception as error:  # of any kind: each library has its own
                if not is_out_of_memory(error):
                    self._try_out()
                raise

        return answer

    def _said(
        self, groups: Sequence[_Group], count: int, seeds: Sequence[int] | None, most: int | None = None
    ) -> list[str]:
        said = [""] * count
        for rows, inputs, room_left in groups:
            chosen = None if seeds is None else [seeds[row] for row in rows]
            tokens = new_tokens(self._model, inputs, self._recipe, chosen, min(room_left, most or room_left))
            texts = self._inputs.processor.batch_decode(tokens, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row] = clean(text)
        return said

    def _try_out(self, *, first: bool = False) -> None:
        """Refuse a model that cannot caption a small picture with a few tokens."""

        def ask() -> list[str]:
            return self._said(self._inputs.groups([self._inputs.of(_picture(), self._info)]), 1, [0], FEW)

        self._tried(ask, first=first)

    def _tried(self, ask: Callable[[], Any], *, first: bool = False) -> None:
        tried(ask, self._recipe, "captioner", self.idle, first=first)

    def _check_prompt(self) -> None:
        """Try the model, and refuse a prompt that makes no difference, or a missing one if one is needed."""
        part, inputs = self._recipe, self._inputs
        try:
            self._try_out(first=True)
        except HfsynError:
            if inputs.prompt is not None:
                raise
            image_token = str(getattr(inputs.processor, "image_token", "<image>"))
            for prefix, where in (("", ""), (f"{image_token}\n", f", with {image_token} in the image's place")):
                inputs.prompt = f"{prefix}a photo of"
                try:
                    self._try_out(first=True)
                except HfsynError:
                    continue
                raise HfsynError(
                    f"{part.model} takes a text beside the image, and caption.prompt is null.",
                    f'Set caption.prompt to what it was trained with, such as "caption en" for PaliGemma{where}.',
                ) from None
            raise
        if part.prompt is None or self._model.config.model_type == "florence2":
            return
        one = inputs.with_prompt(_picture(), part.prompt)
        try:
            other = inputs.with_prompt(_picture(), "b" if part.prompt == "a" else "a")
        except Exception:  # a processor that refuses some texts does read them
            return
        if one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one):
            said = f"caption.prompt is {part.prompt!r}, and {part.model} takes images only."
            raise HfsynError(said, "Set caption.prompt to null, or name a BLIP model.")


def _pixels(image: Image.Image) -> Any:
    """An RGB image as a tensor, uint8 (3, height, width), of which nothing else is in memory meanwhile.

    Asked for all of its pixels at once, Pillow makes two copies more, one of them of small pieces, which the allocator
    then keeps.
    """
    import numpy as np
    import torch

    pixels = torch.empty((3, image.height, image.width), dtype=torch.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[:, top : top + rows] = torch.from_numpy(np.array(strip)).permute(2, 0, 1)
    return pixels


def _picture() -> Image.Image:
    """A small picture in which each row, column and colour differs."""
    grey = Image.linear_gradient("L")
    return Image.merge("RGB", (grey, grey.rotate(90), Image.radial_gradient("L"))).resize((64, 64))


def _parts(where: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The processor of a captioner, or its image processor and its tokenizer; and the class of its network."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(where, **options)
    # AutoProcessor returns a bare tokenizer or image processor if a model has no processor class.
    if not hasattr(processor, "image_processor"):
        processor = _SplitProcessor(where, options)
    return processor, transformers.AutoModelForImageTextToText


class _SplitProcessor:
    """An image processor and a tokenizer with the interface of a processor, for models without one (ViT-GPT2)."""

    def __init__(self, where: str, options: dict[str, Any]) -> None:
        import transformers

        self.image_processor = transformers.AutoImageProcessor.from_pretrained(where, **options)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        return self.image_processor(images=images, return_tensors="pt")

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        return list(self.tokenizer.batch_decode(tokens, **options))


class CaptionInputs:
    """Makes the inputs of a captioner from one image after the other, in any thread, and batches of several."""

    def __init__(self, processor: Any, model: Any, part: CaptionPart) -> None:
        self.processor = processor
        self._model, self._part = model, part
        self._lock = threading.Lock()
        self._template = _template(processor)
        self.prompt = part.prompt
        if model.config.model_type == "florence2":
            self.prompt = (part.prompt or _FLORENCE_TASKS[0]).strip()
            if "<" in self.prompt and self.prompt not in _FLORENCE_TASKS:
                raise HfsynError(
                    f"caption.prompt is {part.prompt!r}, and {part.model} has no such task whose answer is a caption.",
                    f"Its tasks: {', '.join(_FLORENCE_TASKS)}.",
                )
        elif self._template:
            self.prompt = part.prompt or _INSTRUCTION
        tokenizer = getattr(processor, "tokenizer", None)
        # Otherwise the answer of a decoder-only model would follow padding instead of the question.
        if tokenizer is not None and not model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"

    def same_of_pixels(self, info: ClassInfo | None) -> bool:
        """Whether the processor makes exactly the same of an image and of its pixels in a tensor. Those of chat models,
        which cut images into tiles by their size, are given images: one small picture proves nothing there.
        """
        if self._template:
            return False
        picture = _picture().resize((61, 40))
        try:
            one, other = self.of(picture, info), self.of(_pixels(picture), info)
        except Exception:  # each processor has its own exception for what it does not take
            return False
        return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)

    def of(self, image: Any, info: ClassInfo | None) -> dict[str, Any]:
        """The tensors of a batch of one, on the CPU, of an image or its `_pixels`; `Refused` if they are more tokens
        than the model takes.
        """
        prompt = self.prompt
        if prompt and info is not None:
            prompt = filled(prompt, info)
        elif prompt and "{c}" in prompt:
            raise ValueError("a prompt that names the class needs the classes of the images")
        found = self.with_prompt(image, prompt)
        room(self._model, self._part, _length(found))
        return found

    def with_prompt(self, image: Any, prompt: str | None) -> dict[str, Any]:
        """As `of`, with a prompt of any words and any length."""
        # A fast tokenizer must not be used by two threads at once.
        with self._lock if prompt else contextlib.nullcontext():
            found = taken(self._model, self._made(image, prompt))
        if lists := [name for name, value in found.items() if isinstance(value, list)]:
            said = f"The processor of {self._part.model} gives {lists[0]} as a list, and hfsyn passes on tensors alone."
            raise HfsynError(said, "Name another caption.model.")
        return ready(self._model, found, pin=False)

    def groups(self, views: Sequence[dict[str, Any]]) -> list[_Group]:
        """What can be asked about together: all, except where pixels differ in shape, where a prompt takes no padding
        and differs in length, or if one leaves less room than the recipe asks for: what a row may say must not
        depend on the others.
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

    def _made(self, image: Any, prompt: str | None) -> dict[str, Any]:
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
        if not prompt:
            return dict(self.processor(images=[image], return_tensors="pt"))
        inputs = dict(self.processor(images=[image], text=[prompt], return_tensors="pt"))
        # Tokenizers add the marker that ends a text for encoders. A decoder is to continue the prompt without it; BLIP
        # removes it itself.
        config, tokenizer = self._model.config, self.processor.tokenizer
        if config.model_type == "blip" or config.is_encoder_decoder or "input_ids" not in inputs:
            return inputs
        if int(inputs["input_ids"][0, -1]) not in (tokenizer.sep_token_id, tokenizer.eos_token_id):
            return inputs
        length = _length(inputs)
        return {name: value[:, :-1] if _by_token(name, value, length) else value for name, value in inputs.items()}


def _length(inputs: dict[str, Any]) -> int:
    """Tokens of the prompt, those of the image among them; 1 if decoding starts from nothing."""
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
    # A template that is made for texts alone may also print the list itself.
    return template if seen != unseen and "'type'" not in seen else None
