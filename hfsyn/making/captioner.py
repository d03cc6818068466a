"""From images to captions: the Captioner protocol, and every captioning model of transformers through one path.

The path is: processor(images, text), ``generate``, ``batch_decode``. Chat models get their instruction through their
chat template, Florence-2 a task. However tokens are chosen (see `hfsyn.making.token_drawing`), a caption does not
depend on the other images of a batch beyond rounding.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.errors import HfsynError
from hfsyn.making.caption_texts import clean
from hfsyn.making.hub_models import loading, unloadable
from hfsyn.making.instructions import filled
from hfsyn.making.recipe import CaptionPart
from hfsyn.making.token_drawing import loaded, new_tokens, ready

_INSTRUCTION = "Describe the image in one sentence."
FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""The tasks of Florence-2 whose answer is a caption, and not boxes."""
_OF_TOKENS = ("_ids", "attention_mask")
"""How inputs are called that have one value for each token of the prompt."""


class Captioner(Protocol):
    """Something that describes images."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; an empty string where the model said nothing."""
        ...


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2 and instruction VLMs through transformers' auto classes.

    A caption is what the model says *after* its prompt, and never the prompt itself: asked with ``a photo of``, BLIP
    continues ``a goldfish in a bowl``, and ``a photo of goldfish, a goldfish in a bowl`` is what a diffusion prompt
    should say. With the prompt kept, each of them would say "a photo of" twice.

    Args:
        recipe: model, revision, prompt, length, beams, drawing and dtype.
        device: a torch device.
        allow_pickle: read weights that are no safetensors too.

    Raises:
        HfsynError: the model cannot be loaded as a captioner, has lost weights, or has no use for the prompt.
    """

    def __init__(self, recipe: CaptionPart, device: str, *, allow_pickle: bool = False) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._lock = threading.Lock()
        where, options = loading(recipe.model, recipe.revision, "captioner", allow_pickle=allow_pickle)
        try:
            self._processor = _processor(where, {k: v for k, v in options.items() if k != "use_safetensors"})
            self._model = loaded(transformers.AutoModelForImageTextToText, where, recipe, "captioner", options)
        except HfsynError:
            raise
        except Exception as error:  # whatever is wrong with a model's files, each library has its own exception for it
            raise unloadable(recipe.model, "captioner", error) from error
        if recipe.prompt and isinstance(self._processor, _SplitProcessor):
            raise HfsynError(
                f"caption.prompt is {recipe.prompt!r}, and {recipe.model} takes images only.",
                "Set caption.prompt to null, or name a BLIP model.",
            )
        self._chats = bool(getattr(self._processor, "chat_template", None))
        self._prompt = recipe.prompt
        if self._model.config.model_type == "florence2":
            self._prompt = _florence_task(recipe)
        elif self._chats:
            self._prompt = recipe.prompt or _INSTRUCTION
        self._model.to(device).eval()
        tokenizer = getattr(self._processor, "tokenizer", None)
        # Otherwise the answer of a decoder-only model would follow padding instead of the question.
        if tokenizer is not None and not self._model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"

    def caption(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[ClassInfo] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """See `Captioner`.

        Args:
            images: of any size.
            classes: of each image; only needed where the prompt names them.
            seeds: of each image; only needed where the recipe draws tokens.

        Raises:
            HfsynError: the prompt is longer than the model's context.
        """
        return self.prepare(images, classes, seeds)()

    def prepare(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[ClassInfo] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Callable[[], list[str]]:
        """What `caption` does before the model is asked, in any thread; what is returned asks it.

        Args:
            images, classes, seeds: see `caption`.
        """
        known: Sequence[ClassInfo | None] = [None] * len(images) if classes is None else classes
        return self.ask([self.look(image, info) for image, info in zip(images, known, strict=True)], seeds)

    def look(self, image: Image.Image, info: ClassInfo | None = None) -> dict[str, Any]:
        """What the model will see of one image: the tensors of a batch of one, on the CPU; in any thread.

        An image is looked at by itself, so that of a photograph of any size no more needs to be kept than this.

        Args:
            image: RGB, of any size.
            info: the image's class; only needed where the prompt names it.
        """
        prompt = self._prompt
        if prompt and info is not None:
            prompt = filled(prompt, info)
        elif prompt and "{c}" in prompt:
            raise ValueError("a prompt that names the class needs the classes of the images")
        # A fast tokenizer must not be used by two threads at once.
        with self._lock if prompt else contextlib.nullcontext():
            inputs = self._inputs(image, prompt)
        return ready(self._model, inputs, pin=False)

    def ask(self, views: Sequence[dict[str, Any]], seeds: Sequence[int] | None = None) -> Callable[[], list[str]]:
        """Put what was seen of several images together, in any thread; what is returned asks the model about them.

        Args:
            views: of each image what `look` returned.
            seeds: of each image; only needed where the recipe draws tokens.
        """
        groups = [
            (rows, ready(self._model, self._together([views[row] for row in rows]))) for rows in self._alike(views)
        ]

        def answer() -> list[str]:
            said = [""] * len(views)
            for rows, inputs in groups:
                chances = None if seeds is None else [seeds[row] for row in rows]
                tokens = new_tokens(self._model, inputs, self._recipe, chances)
                texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
                for row, text in zip(rows, texts, strict=True):
                    said[row] = clean(text)
            return said

        return answer

    def _alike(self, views: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Rows that can be asked about together: all, but where pixels differ in shape, or where a prompt takes no
        padding and differs in length.
        """
        groups: dict[Any, list[int]] = {}
        for row, view in enumerate(views):
            shapes = tuple(
                (name, tuple(value.shape[1:]))
                for name, value in view.items()
                if not (self._chats and name.endswith(_OF_TOKENS))
            )
            groups.setdefault(shapes, []).append(row)
        return list(groups.values())

    def _together(self, views: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of several batches of one. Shorter prompts are padded as the tokenizer would."""
        import torch

        found: dict[str, Any] = {}
        for name in views[0]:
            parts = [view[name] for view in views]
            if name.endswith(_OF_TOKENS):
                tokenizer, longest = self._processor.tokenizer, max(part.shape[1] for part in parts)
                fill = tokenizer.pad_token_id if name == "input_ids" else 0
                left = tokenizer.padding_side == "left"
                parts = [
                    torch.nn.functional.pad(
                        part, (longest - part.shape[1], 0) if left else (0, longest - part.shape[1]), value=fill
                    )
                    for part in parts
                ]
            found[name] = torch.cat(parts)
        return found

    def _inputs(self, image: Image.Image, prompt: str | None) -> dict[str, Any]:
        if self._chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            return dict(
                self._processor.apply_chat_template(
                    [[{"role": "user", "content": content}]],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            )
        if prompt:
            return self._to_continue(dict(self._processor(images=[image], text=[prompt], return_tensors="pt")))
        return dict(self._processor(images=[image], return_tensors="pt"))

    def _to_continue(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A prompt without what the tokenizer adds for encoders: segment ids, and the marker that ends a text."""
        inputs.pop("token_type_ids", None)
        config, tokenizer = self._model.config, self._processor.tokenizer
        # BLIP takes the marker away itself; an encoder wants it.
        if config.model_type == "blip" or config.is_encoder_decoder:
            return inputs
        last = set(inputs["input_ids"][:, -1].tolist())
        if last <= {tokenizer.sep_token_id, tokenizer.eos_token_id}:
            return {k: v[:, :-1] if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
        return inputs


def _florence_task(recipe: CaptionPart) -> str:
    """The task that Florence-2 is given: ``<CAPTION>`` where the recipe says nothing."""
    task = (recipe.prompt or FLORENCE_TASKS[0]).strip()
    if "<" in task and task not in FLORENCE_TASKS:
        raise HfsynError(
            f"caption.prompt is {recipe.prompt!r}, and {recipe.model} has no such task whose answer is a caption.",
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


def _processor(where: str, options: dict[str, Any]) -> Any:
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(where, **options)
    # AutoProcessor hands out a bare tokenizer or image processor where a model has no processor class.
    return processor if hasattr(processor, "image_processor") else _SplitProcessor(where, options)
