"""Zero-shot classifiers: a model of images and texts, such as CLIP or SigLIP, that is told its classes by their names.

A class is the mean of the embeddings of its texts, each of length 1, brought to length 1 again, as Radford et al.,
"Learning transferable visual models from natural language supervision" (2021) do it. A logit is the cosine of image and
class times the model's own scale. Images are prepared by the model's own image processor.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from builders.errors import plural, quoted
from hfsyn.errors import HfsynError
from hfsyn.judging.preprocessing import ByProcessor
from hfsyn.models.finding import loading, pin, unloadable
from hfsyn.progress import Progress

IMAGENET = "imagenet"
"""The 80 templates that CLIP's authors made for ImageNet; `zero_shot_templates.json` says where they were read."""
_SLOT = "{c}"
_TEXTS = 256  # that are embedded at once
_MANY = 2000  # texts that take a while on a CPU


def templates_of(said: str) -> tuple[str, ...]:
    """The texts that `said` means, with ``{c}`` for the class: ``imagenet``, one text, or a file with a text a line.

    Raises HfsynError for anything else, and for a text without ``{c}``.
    """
    if said == IMAGENET:
        text = files("hfsyn.judging").joinpath("zero_shot_templates.json").read_text(encoding="utf-8")
        return tuple(json.loads(text)["templates"])
    path = Path(said).expanduser()
    if _SLOT not in said and path.is_file():
        found = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    else:
        found = (said,)
    if wrong := [text for text in found if _SLOT not in text] or (not found and [said]):
        said = f"The template {wrong[0]!r} has no {_SLOT} where the class goes."
        hint = f"Write --templates 'a photo of a {_SLOT}', {IMAGENET}, or a file with a template a line."
        raise HfsynError(said, hint)
    return found


class Tower(torch.nn.Module):
    """The half of a model of images and texts that sees: pixels (n, 3, h, w) to embeddings (n, d)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings of any length, by the name that timm's networks have for it."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits (n, classes) of the features or, before the last layer, the features themselves."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes)."""
        return self.forward_head(self.forward_features(pixels))


class ZeroShot(Tower):
    """A model of images and texts as a classifier; `classes` (c, d) are the embeddings of its classes, of length 1."""

    classes: torch.Tensor

    def __init__(self, model: torch.nn.Module, classes: torch.Tensor) -> None:
        super().__init__(model)
        self.register_buffer("classes", classes)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """See `Tower`."""
        if pre_logits:
            return features
        scale, bias = self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)  # type: ignore[operator]
        logits = torch.matmul(self.classes, _normalised(features, self.model).t()) * scale
        return (logits if bias is None else logits + bias).t()


def _pooled(output: Any) -> torch.Tensor:
    found: torch.Tensor = getattr(output, "pooler_output", output)
    return found


def _normalised(features: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Brought to length 1, by the very operations of the model's own class, so that the last bits are its own."""
    if hasattr(model, "logit_bias"):  # SigLIP
        return features / features.norm(p=2, dim=-1, keepdim=True)
    return features / features.pow(2).sum(-1, keepdim=True).pow(0.5)


def open_tower(model: str, *, allow_pickle: bool = False) -> tuple[str, Any, ByProcessor, Any]:
    """A model of images and texts in float32: its name with its commit, the model, how its images are prepared, and a
    function that opens its tokenizer.

    `model` is ``ORG/NAME[@REVISION]`` or a folder of ``save_pretrained``. Raises HfsynError if there is none, its
    weights are pickles that are not allowed, or it is a model of another kind.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, utils

    utils.logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    name, _, asked = (model, "", "") if Path(model).expanduser().exists() else model.partition("@")
    revision = pin(name, asked or None, "zero-shot classifier")
    where, options = loading(name, revision, "zero-shot classifier", allow_pickle=allow_pickle)
    pinned = {"revision": options["revision"]} if "revision" in options else {}

    def opened(kind: Any, **more: Any) -> Any:
        try:
            return kind.from_pretrained(where, **pinned, **more)
        except Exception as error:  # each library has its own exception for what is wrong with a model's files
            raise unloadable(name, "zero-shot classifier", error) from None

    more = {key: value for key, value in options.items() if key not in pinned}
    found, report = opened(AutoModel, dtype=torch.float32, output_loading_info=True, **more)
    hint = "Name a CLIP or a SigLIP with all its weights, such as clip:openai/clip-vit-large-patch14."
    if missing := sorted(set(report["missing_keys"]) & dict(found.named_parameters()).keys()):
        said = f"{len(missing)} weights of {name} are missing for a {type(found).__name__} ({quoted(missing, 3)})."
        raise HfsynError(said, hint)
    if not all(hasattr(found, part) for part in ("get_image_features", "get_text_features", "logit_scale")):
        said = f"{name} is a {type(found).__name__}, which does not compare images with texts."
        raise HfsynError(said, hint)
    preparation = ByProcessor.of(opened(AutoImageProcessor))
    return f"{name}@{revision}" if pinned else name, found.eval(), preparation, lambda: opened(AutoTokenizer)


def open_zero_shot(
    model: str, names: Sequence[str], templates: str, device: str, *, allow_pickle: bool = False
) -> tuple[str, ZeroShot, ByProcessor]:
    """A zero-shot classifier of the named classes, on a device; raises as `open_tower` and `templates_of`."""
    texts = templates_of(templates)
    source, found, preparation, tokenizer = open_tower(model, allow_pickle=allow_pickle)
    how: dict[str, Any] = {"padding": True, "truncation": True}
    if "siglip" in found.config.model_type:  # it was trained on texts of this length
        how |= {"padding": "max_length", "max_length": 64}
    return source, ZeroShot(found, _embedded(found.to(device), tokenizer(), names, texts, how)), preparation


@torch.inference_mode()
def _embedded(
    model: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[str], how: Mapping[str, Any]
) -> torch.Tensor:
    """The embeddings (c, d) of classes, each of length 1."""
    each = max(1, _TEXTS // len(templates))
    found = []
    every = len(names) * len(templates)
    with Progress(f"embed {plural(every, 'text')}", len(names), quiet=every < _MANY) as progress:
        for start in range(0, len(names), each):
            some = names[start : start + each]
            texts = [template.replace(_SLOT, name) for name in some for template in templates]
            inputs = tokenizer(texts, return_tensors="pt", **how).to(model.device)
            each_text = _normalised(_pooled(model.get_text_features(**inputs)), model)
            by_class = each_text.view(len(some), len(templates), -1)
            found.append(by_class[:, 0] if len(templates) == 1 else _normalised(by_class.mean(1), model))
            progress.add(len(some))
    return torch.cat(found).clone()
