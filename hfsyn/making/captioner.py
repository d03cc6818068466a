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
from hfsyn.making.hub_models import loading, unloadable
from hfsyn.making.recipe import CaptionPart

_INSTRUCTION = "Describe the image in one sentence."
_SMALL = frozenset({"a", "an", "and", "at", "for", "from", "in", "of", "on", "or", "s", "the", "to", "with"})


class Captioner(Protocol):
    """Something that describes images."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB image, in order; an empty string where the model said nothing."""
        ...


class TransformersCaptioner:
    """BLIP, BLIP-2, GIT, ViT-GPT2 and instruction VLMs through transformers' auto classes.

    A caption is what the model says *after* its prompt, and never the prompt itself: asked with ``a photo of``, BLIP
    continues ``a goldfish in a bowl``, and ``a photo of goldfish, a goldfish in a bowl`` is what a diffusion prompt
    should say. With the prompt kept, each of them would say "a photo of" twice.

    Args:
        recipe: model, revision, prompt, length, beams and dtype.
        device: a torch device.
        allow_pickle: read weights that are no safetensors too.

    Raises:
        HfsynError: the model cannot be loaded as a captioner, has lost weights, or has no use for the prompt.
    """

    def __init__(self, recipe: CaptionPart, device: str, *, allow_pickle: bool = False) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._device = device
        where, options = loading(recipe.model, recipe.revision, "captioner", allow_pickle=allow_pickle)
        try:
            self._processor = _processor(where, {k: v for k, v in options.items() if k != "use_safetensors"})
            self._model, report = transformers.AutoModelForImageTextToText.from_pretrained(
                where, dtype=getattr(torch, recipe.dtype), output_loading_info=True, **options
            )
        except Exception as error:  # whatever is wrong with a model's files, each library has its own exception for it
            raise unloadable(recipe.model, "captioner", error) from error
        missing = sorted(report["missing_keys"])
        # Old checkpoints may lack a buffer or a pooler that captioning never uses; a tenth is another architecture,
        # whose captions would be random, which transformers only warns of.
        if len(missing) * 10 > len(self._model.state_dict()):
            raise HfsynError(
                f"{recipe.model} has no weights for {len(missing)} parameters of its captioner, such as {missing[0]}.",
                "Name a complete checkpoint.",
            )
        if recipe.prompt and isinstance(self._processor, _SplitProcessor):
            raise HfsynError(
                f"caption.prompt is {recipe.prompt!r}, and {recipe.model} takes images only.",
                "Set caption.prompt to null, or name a BLIP model.",
            )
        self._model.to(device).eval()
        tokenizer = getattr(self._processor, "tokenizer", None)
        # Otherwise the answer of a decoder-only model would follow padding instead of the question.
        if tokenizer is not None and not self._model.config.is_encoder_decoder:
            tokenizer.padding_side = "left"

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """See `Captioner`.

        Raises:
            HfsynError: the prompt is longer than the model's context.
        """
        import torch

        inputs = self._inputs(images)
        moved = {
            name: value.to(self._device, self._model.dtype) if value.is_floating_point() else value.to(self._device)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        watch = _FirstStep()
        with torch.inference_mode():
            out = self._model.generate(
                **moved,
                max_new_tokens=self._room(moved),
                num_beams=self._recipe.num_beams,
                do_sample=False,
                logits_processor=[watch],
            )
        return [clean(text) for text in self._processor.batch_decode(out[:, watch.given :], skip_special_tokens=True)]

    def _room(self, inputs: dict[str, Any]) -> int:
        """New tokens that fit behind the prompt: a decoder with learned positions fails beyond its last one."""
        positions = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if positions is None:
            return self._recipe.max_new_tokens
        asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        if asked >= positions:
            raise HfsynError(
                f"caption.prompt makes {asked} tokens, and {self._recipe.model} takes at most {positions - 1}.",
                "Shorten it.",
            )
        return min(self._recipe.max_new_tokens, positions - asked)

    def _inputs(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        prompt = self._recipe.prompt
        if getattr(self._processor, "chat_template", None):
            asked = {"type": "text", "text": prompt or _INSTRUCTION}
            inputs = self._processor.apply_chat_template(
                [[{"role": "user", "content": [{"type": "image", "image": image}, asked]}] for image in images],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        elif prompt:
            texts = [prompt] * len(images)
            inputs = self._processor(images=list(images), text=texts, return_tensors="pt", padding=True)
            inputs = self._to_continue(dict(inputs))
        else:
            inputs = self._processor(images=list(images), return_tensors="pt")
        return dict(inputs)

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


class _FirstStep:
    """Notes how many tokens stand before the first new one.

    Models differ in what `generate` gives back of its prompt (all of it, all but its last token, none, a start token);
    what decoding starts from is the same everywhere.
    """

    def __init__(self) -> None:
        self.given = 0
        self._seen = False

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if not self._seen:
            self.given, self._seen = input_ids.shape[1], True
        return scores


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
    """One line, single spaces, no control characters, no space or full stop or comma at the ends.

    A caption is put behind other words, and others may be put behind it.
    """
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split()).strip(" .,;:")


def caption_flags(caption: str, info: ClassInfo) -> tuple[str, ...]:
    """What looks wrong with a caption: any of ``empty``, ``repeated``, ``no-class-word``; flags are data, not errors.

    `repeated` is a word or a pair of words three times in a row, or one word making up half of six or more, which is
    how captioners fail (small function words do not count there). `no-class-word` means that no word of the class's
    name or lemmas occurs, be it in its plural, which is common and no fault by itself.
    """
    words = _words(caption)
    if not words:
        return ("empty",)
    flags = []
    if _repeats(words):
        flags.append("repeated")
    if not _stems(_words(" ".join((info.name, *info.lemmas)))) & _stems(words):
        flags.append("no-class-word")
    return tuple(flags)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def _stems(words: Sequence[str]) -> set[str]:
    """Content words, each with what it may be the regular English plural or possessive of."""
    stems = {word.removesuffix("'s") for word in words if word not in _SMALL}
    for word in tuple(stems):
        if word.endswith("s") and not word.endswith("ss"):
            stems.add(word[:-1])
        if word.endswith("es"):
            stems.add(word[:-2])
        if word.endswith("ies"):
            stems.add(word[:-3] + "y")
    return stems


def _repeats(words: Sequence[str]) -> bool:
    singles = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    pairs = any(words[i : i + 2] == words[i + 2 : i + 4] == words[i + 4 : i + 6] for i in range(len(words) - 5))
    content = [word for word in words if word not in _SMALL]
    most = Counter(content).most_common(1)
    return singles or pairs or (len(content) >= 6 and most[0][1] * 2 >= len(content))
