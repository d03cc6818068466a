"""Entropy guidance: a classifier's doubt about the image to come steers the denoising towards what it is unsure of.

Deliberate Practice (arXiv 2502.15588, equation 7) adds ``weight * grad H(f(x0))`` to the score of a diffusion model: H
is the entropy of the classifier f on the image x0 that the model predicts at a noisy latent x, and the gradient is that
by x, through the classifier, the autoencoder's decoder and the network. The score is ``-noise / sigma``, so that the
predicted noise changes by ``-weight * sigma * grad H`` (as in arXiv 2105.05233, algorithm 2). Here sigma and
alpha belong to the scale in which every network of Stable Diffusion sees its input: ``x = alpha * x0 + sigma * noise``.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.errors import quoted
from builders.sources.rows import is_wnid, spelling
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.images.guidance import calls_within, is_guided, is_stable_diffusion
from hfsyn.images.latents import draws_noise
from hfsyn.judging.classifier import ZERO_SHOT, Classifier, open_classifier
from hfsyn.judging.preprocessing import tensor_transform
from hfsyn.recipes.loading import check_content
from hfsyn.recipes.recipe import GeneratePart, Recipe

_AT_ONCE = 4
"""Images of 512 px whose gradients are computed at once, of smaller ones more: each keeps the activations of UNet and
decoder. On no GPU measured yet.
"""
_PIXELS = 64 * 64  # height times width of the latents of a 512 px image
_ALL_NOISE = 1e-4  # share of the signal's variance in a latent below which there is nothing to steer
_OFF = "--set generate.entropy_weight=0 draws without."


def pin_entropy(recipe: Recipe) -> Recipe:
    """The recipe with the classifier of its entropy guidance opened, and named by its content and absolute path.

    Raises HfsynError if there is none, its content is not the one that the recipe says, or it lacks a class of the
    recipe's variant.
    """
    part = recipe.generate
    if not part.entropy_weight:
        return recipe
    folder = Path(str(part.entropy_classifier)).expanduser()
    if folder.is_dir():
        part = part.model_copy(update={"entropy_classifier": str(folder.resolve())})
    classifier = opened(part)
    columns_of(classifier, recipe.source.variant)
    part = part.model_copy(update={"entropy_revision": content_of(classifier)})
    return recipe.model_copy(update={"generate": part})


def opened(part: GeneratePart, device: str = "cpu") -> Classifier:
    """The classifier of a recipe. Raises HfsynError as `pin_entropy`."""
    name = str(part.entropy_classifier)
    if name.startswith(ZERO_SHOT):
        said = f"generate.entropy_classifier is {name!r}, a zero-shot classifier, through which no gradient is taken."
        raise HfsynError(said, "Name the folder of a training, a network of timm, or hf_hub:USER/NAME.")
    try:
        classifier = open_classifier(name, device=device)
    except HfsynError as error:
        raise HfsynError(f"generate.entropy_classifier: {error.message}", error.hint, code=error.code) from None
    if part.entropy_revision is not None:
        what = f"The classifier {name} is not the one"
        check_content(content_of(classifier), part.entropy_revision, what, "generate.entropy_revision")
    return classifier


def content_of(classifier: Classifier) -> str:
    """``sha256:`` and the hash of all of a classifier that decides its answers: weights, classes, preprocessing."""
    facts = [classifier.name, dict(classifier.options), classifier.wnids, classifier.sha256]
    text = json.dumps([*facts, asdict(classifier.preprocessing)], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def columns_of(classifier: Classifier, variant: str) -> list[int]:
    """The outputs that are classes of a variant, among which alone the entropy is taken: so one classifier of ImageNet
    serves each of its parts. Raises HfsynError if the classifier lacks one of them, or there are fewer than two.
    """
    wanted, there = get_variant(variant).by_wnid, classifier.classes
    lacking = [
        f"{wnid} {info.name}"
        for wnid, info in wanted.items()
        if wnid not in there or not (is_wnid(wnid) or spelling(there[wnid]) == spelling(info.name))
    ]
    if lacking or len(wanted) < 2:
        said = f"{len(lacking)} of the {len(wanted)} classes of {variant} are not among the {len(there)} of the "
        said += f"classifier {classifier.source or classifier.name}: {quoted(lacking)}."
        if not lacking:
            said = f"{variant} has one class, of which no classifier is unsure."
        raise HfsynError(said, f"Name a generate.entropy_classifier that has them all. {_OFF}")
    return [at for at, wnid in enumerate(classifier.wnids) if wnid in wanted]


class EntropyGuidance:
    """The guidance of one pipeline, which is on its device, by one classifier.

    `pipe` is the pipeline that is called, of Stable Diffusion 1, 2 or XL. Raises HfsynError if it is another, or no
    step is guided, and as `pin_entropy`.
    """

    def __init__(self, pipe: Any, part: GeneratePart, variant: str, device: str) -> None:
        _check(pipe, part)
        self._pipe = pipe
        classifier = opened(part, device)
        self._columns, self._network = columns_of(classifier, variant), classifier.network
        self._preprocessing, self._prepare = classifier.preprocessing, dict[tuple[int, int], Any]()
        # Otherwise autograd would keep what only gradients by the weights need.
        for network in (pipe.unet, pipe.vae, self._network):
            network.requires_grad_(False)
        config = pipe.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        self._shift: Any = 0.0 if mean is None or std is None else _channels(mean, device)
        self._scale: Any = (1.0 if mean is None or std is None else _channels(std, device)) / config.scaling_factor

    @contextmanager
    def steering(self, part: GeneratePart) -> Iterator[None]:
        """Steer what the pipeline draws meanwhile, by this part (the recipe's own, or a sketch's)."""
        import torch

        unet = self._pipe.unet
        plain, own = unet.forward, "forward" in vars(unet)
        guided = calls_within(self._pipe, part, part.entropy_start, part.entropy_stop)
        first = guided.index(True) if True in guided else 0
        skipped, calls = len(self._pipe.scheduler.timesteps) - len(guided), iter(range(len(guided)))

        def forward(sample: Any, timestep: Any, *args: Any, return_dict: bool = True, **told: Any) -> Any:
            at = next(calls)
            signal = self._signal(timestep, skipped + at)
            if not guided[at] or (at - first) % part.entropy_every or signal < _ALL_NOISE:
                return plain(sample, timestep, *args, return_dict=return_dict, **told)
            assert not args and not return_dict, "as the pipelines of Stable Diffusion call their UNet"
            images = sample.shape[0] // (2 if is_guided(self._pipe, part) and self._pipe._guidance_scale > 1 else 1)
            found = torch.empty_like(sample)
            for rows in _chunks(sample, images):
                with torch.enable_grad():
                    found[rows] = self._steered(plain, sample, timestep, told, rows, images, signal, part)
            return (found,)

        unet.forward = forward
        try:
            with _repeatable(self._pipe.device.type):
                yield
        finally:
            if own:
                unet.forward = plain
            else:
                del unet.forward

    def _signal(self, timestep: Any, at: int) -> float:
        """The share of the signal's variance in the input of a call: alpha squared."""
        scheduler = self._pipe.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) > len(scheduler.timesteps):
            return 1 / (1 + float(sigmas[at]) ** 2)  # which schedules with fractional timesteps interpolate
        return float(scheduler.alphas_cumprod[int(timestep)])

    def _steered(
        self,
        plain: Callable[..., Any],
        sample: Any,
        timestep: Any,
        told: dict[str, Any],
        rows: Sequence[int],
        images: int,
        signal: float,
        part: GeneratePart,
    ) -> Any:
        """What the network predicts for some rows of its batch, moved towards entropy."""
        import torch

        alpha, sigma = math.sqrt(signal), math.sqrt(1 - signal)
        halves = len(rows) // sum(row < images for row in rows)
        noisy = sample[rows[: len(rows) // halves]].detach().float().requires_grad_()
        predicted = plain(
            torch.cat([noisy] * halves).to(sample.dtype), timestep, return_dict=False, **_taken(told, rows, len(sample))
        )[0]
        wanted = predicted.float()
        if halves == 2:
            away, towards = wanted.chunk(2)
            wanted = away + part.guidance_scale * (towards - away)
        velocity = self._pipe.scheduler.config.prediction_type == "v_prediction"
        clean = alpha * noisy - sigma * wanted if velocity else (noisy - sigma * wanted) / alpha
        (gradient,) = torch.autograd.grad(self.entropies(clean).sum(), noisy)
        # A velocity is alpha * noise - sigma * x0, both of which move.
        step = -part.entropy_weight * sigma / (alpha if velocity else 1.0) * gradient
        return (predicted.detach().float() + torch.cat([step] * halves)).to(sample.dtype)

    def entropies(self, latents: Any) -> Any:
        """The classifier's entropy (nats, float32) on each of these clean latents, among the classes of the set."""
        import torch

        vae = self._pipe.vae
        decoded = vae.decode((latents * self._scale + self._shift).to(vae.dtype), return_dict=False)[0]
        images = (decoded.float() / 2 + 0.5).clamp(0, 1)
        height, width = images.shape[-2:]
        if (height, width) not in self._prepare:
            self._prepare[height, width] = tensor_transform(self._preprocessing, height, width)
        logits = self._network(self._prepare[height, width](images))[:, self._columns]
        likely = torch.log_softmax(logits.float(), 1)
        return -(likely.exp() * likely).sum(1)


def _check(pipe: Any, part: GeneratePart) -> None:
    """Refuse what cannot be steered."""
    kind, why = pipe.scheduler.config.get("prediction_type"), ""
    if not is_stable_diffusion(pipe):
        why = f"{part.model} is a {type(pipe).__name__}, and entropy guidance is for Stable Diffusion 1, 2 and XL"
    elif kind not in ("epsilon", "v_prediction"):
        why = f"{part.model} predicts {kind}, and entropy guidance is for models that predict noise or velocity"
    elif part.dtype == "float16":
        why = "generate.dtype is float16, in which the gradients of entropy guidance are lost to rounding"
        raise HfsynError(f"{why}.", "Set generate.dtype to bfloat16 or float32.")
    elif draws_noise(pipe.vae):
        why = f"The {type(pipe.vae).__name__} of {part.model} draws noise, which entropy guidance would use up"
    elif not any(calls_within(pipe, part, part.entropy_start, part.entropy_stop)):
        start, stop = part.entropy_start, part.entropy_stop
        why = f"none of the {part.steps} steps lies between generate.entropy_start {start:g} and stop {stop:g}"
    if why:
        raise HfsynError(f"{why}.", _OFF)


def _channels(values: Sequence[float], device: str) -> Any:
    import torch

    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _chunks(sample: Any, images: int) -> Iterator[list[int]]:
    """Rows of a batch that are computed together: equally many images, so that the place of one changes nothing, and
    the row that is steered away from before the one that is steered to, for each half of the batch.
    """
    most = max(1, _AT_ONCE * _PIXELS // (sample.shape[-2] * sample.shape[-1]))
    size = next(size for size in range(min(most, images), 0, -1) if images % size == 0)
    for start in range(0, images, size):
        some = range(start, start + size)
        yield [half + at for half in range(0, sample.shape[0], images) for at in some]


def _taken(told: Any, rows: Sequence[int], batch: int) -> Any:
    """These rows of all that a network is told."""
    if isinstance(told, dict):
        return {name: _taken(value, rows, batch) for name, value in told.items()}
    return told[rows] if hasattr(told, "shape") and told.ndim and told.shape[0] == batch else told


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Gradients that are the same on each call: some kernels of a GPU add them up in any order."""
    import torch

    if device == "cpu":
        yield
        return
    before, convolutions = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic = convolutions
