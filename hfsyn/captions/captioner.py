"""From images to captions: the Captioner protocol, and every captioning model of transformers through one path.

The path is: processor(images, text), ``generate``, ``batch_decode``; see `hfsyn.captions.inputs`. However tokens are
chosen (see `hfsyn.captions.token_drawing`), a caption does not depend on the other images of a batch beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.captions.cleaning import clean
from hfsyn.captions.inputs import CaptionInputs, Group, processor_of
from hfsyn.captions.instructions import longest
from hfsyn.captions.token_drawing import FEW, loaded, new_tokens, tried
from hfsyn.errors import HfsynError
from hfsyn.models.batch_sizes import is_out_of_memory
from hfsyn.models.finding import loading, unloadable
from hfsyn.recipes.recipe import CaptionPart


class Captioner(Protocol):
    """Something that describes images."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; an empty string where the model said nothing.

        What it raises, an image alone or in a batch, is why that image is set aside.
        """
        ...


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2, PaliGemma and instruction VLMs through transformers' auto classes.

    A caption is what the model says *after* its prompt, and never the prompt itself: asked with ``a photo of``, BLIP
    continues ``a goldfish in a bowl``, and ``a photo of goldfish, a goldfish in a bowl`` is what a diffusion prompt
    should say. With the prompt kept, each of them would say "a photo of" twice.

    Args:
        recipe: model, revision, prompt, length, beams, drawing and dtype.
        device: a torch device.
        allow_pickle: read weights that are no safetensors too.
        classes: that the prompt may have to name: the model is tried with the longest of them.

    Raises:
        HfsynError: the model cannot be loaded as a captioner, has lost weights, has no use for the prompt or needs one,
            or cannot caption a small picture.
    """

    def __init__(
        self, recipe: CaptionPart, device: str, *, allow_pickle: bool = False, classes: Sequence[ClassInfo] = ()
    ) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._recipe = recipe
        where, options = loading(recipe.model, recipe.revision, "captioner", allow_pickle=allow_pickle)
        try:
            processor = processor_of(where, {k: v for k, v in options.items() if k != "use_safetensors"})
            auto = transformers.AutoModelForImageTextToText
            self._model, self.idle = loaded(auto, where, recipe, "captioner", options)
        except HfsynError:
            raise
        except Exception as error:  # whatever is wrong with a model's files, each library has its own exception for it
            raise unloadable(recipe.model, "captioner", error) from error
        self._inputs = CaptionInputs(processor, self._model, recipe)
        self._model.to(device).eval()
        self._info = longest(recipe.prompt, classes)
        self._check_prompt()

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
            Refused: one of them is more than the model's context takes, or its values are not finite.
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

        Raises:
            Exception: whatever the processor has against this image.
            HfsynError: the processor does not take a small picture any more either.
        """
        try:
            return self._inputs.of(image, info)
        except Exception:  # as above
            self._tried(lambda: self._inputs.of(_picture(), self._info))
            raise

    def ask(self, views: Sequence[dict[str, Any]], seeds: Sequence[int] | None = None) -> Callable[[], list[str]]:
        """Put what was seen of several images together, in any thread; what is returned asks the model about them.

        Args:
            views: of each image what `look` returned.
            seeds: of each image; only needed where the recipe draws tokens.
        """
        groups = self._inputs.groups(views)

        def answer() -> list[str]:
            try:
                return self._said(groups, len(views), seeds)
            except Exception as error:  # as above
                if not is_out_of_memory(error):
                    self._try_out()
                raise

        return answer

    def _said(
        self, groups: Sequence[Group], count: int, seeds: Sequence[int] | None, most: int | None = None
    ) -> list[str]:
        said = [""] * count
        for rows, inputs, room in groups:
            chances = None if seeds is None else [seeds[row] for row in rows]
            tokens = new_tokens(self._model, inputs, self._recipe, chances, min(room, most or room))
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
        """Try the model, and refuse a prompt that makes no difference, or none where one is needed."""
        part, inputs = self._recipe, self._inputs
        try:
            self._try_out(first=True)
        except HfsynError:
            place = str(getattr(inputs.processor, "image_token", "<image>"))
            tries = ("a photo of", f"{place}\na photo of") if inputs.prompt is None else ()
            found = [text for text in tries if self._works_with(text)]
            if not found:
                raise
            raise HfsynError(
                f"{part.model} takes a text beside the image, and caption.prompt is null.",
                'Set caption.prompt to what it was trained with, such as "caption en" for PaliGemma'
                + (f", with {place} in the image's place." if found[0] != "a photo of" else "."),
            ) from None
        if part.prompt is None or self._model.config.model_type == "florence2":
            return
        one = inputs.with_prompt(_picture(), part.prompt)
        try:
            other = inputs.with_prompt(_picture(), "b" if part.prompt == "a" else "a")
        except Exception:  # a processor that refuses some texts takes notice of them
            return
        if one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one):
            raise HfsynError(
                f"caption.prompt is {part.prompt!r}, and {part.model} takes images only.",
                "Set caption.prompt to null, or name a BLIP model.",
            )

    def _works_with(self, prompt: str) -> bool:
        before, self._inputs.prompt = self._inputs.prompt, prompt
        try:
            self._try_out(first=True)
        except HfsynError:
            return False
        finally:
            self._inputs.prompt = before
        return True


def _picture() -> Image.Image:
    """A small picture in which each row, column and colour differs."""
    grey = Image.linear_gradient("L")
    return Image.merge("RGB", (grey, grey.rotate(90), Image.radial_gradient("L"))).resize((64, 64))
