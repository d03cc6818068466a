"""Entropy guidance: a classifier's doubt about the image to come steers the denoising towards what it is unsure of.

Deliberate Practice (arXiv 2502.15588, equation 7) adds ``weight * grad H(f(x0))`` to the score of a diffusion model: H
is the entropy of the classifier f on the image x0 that the model predicts at a noisy latent x, and the gradient is that
by x, through the classifier, the autoencoder's decoder and the network. The score is ``-noise / sigma``, so that the
predicted noise changes by ``-weight * sigma * grad H`` (as in arXiv 2105.05233, algorithm 2). Here sigma and
alpha belong to the scale in which every network of Stable Diffusion sees its input: ``x = alpha * x0 + sigma * noise``.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.images.guidance import calls_within, is_guided, is_stable_diffusion
from hfsyn.images.latents import draws_noise
from hfsyn.judging.preprocessing import tensor_transform
from hfsyn.judging.steering import OFF, columns_of, opened
from hfsyn.recipes.recipe import GeneratePart

_AT_ONCE = 4
"""Images of 512 px whose gradients are computed at once, of smaller ones more: each keeps the activations of UNet and
decoder. On no GPU measured yet.
"""
_PIXELS = 64 * 64  # height times width of the latents of a 512 px image
_ALL_NOISE = 1e-4  # share of the signal's variance in a latent below which there is nothing to steer


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
        within = calls_within(self._pipe, part, part.entropy_start, part.entropy_stop)
        skipped = len(self._pipe.scheduler.timesteps) - len(within)
        guided = set([at for at, wanted in enumerate(within) if wanted][:: part.entropy_every])
        calls = iter(range(len(within)))

        def forward(sample: Any, timestep: Any, **told: Any) -> Any:
            at = next(calls)
            signal = self._signal(timestep, skipped + at)
            if at not in guided or signal < _ALL_NOISE:
                return plain(sample, timestep, **told)
            doubled = is_guided(self._pipe, part) and self._pipe._guidance_scale > 1
            found = torch.empty_like(sample)
            for rows in _chunks(sample, 2 if doubled else 1):
                with torch.enable_grad():
                    predicted = functools.partial(plain, timestep=timestep, **_taken(told, rows, len(sample)))
                    found[rows] = self._steered(predicted, sample[rows], signal, part, doubled=doubled)
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
        self, predict: Callable[..., Any], sample: Any, signal: float, part: GeneratePart, *, doubled: bool
    ) -> Any:
        """What the network predicts for some rows of its batch, moved towards entropy. If they are `doubled`, the
        second half are the same latents, which it is steered to, and the first half those that it is steered away from.
        """
        import torch

        alpha, sigma = math.sqrt(signal), math.sqrt(1 - signal)
        noisy = sample.chunk(2)[0] if doubled else sample
        noisy = noisy.detach().float().requires_grad_()
        predicted = predict(torch.cat([noisy] * (2 if doubled else 1)).to(sample.dtype))[0].float()
        wanted = predicted
        if doubled:
            away, towards = predicted.chunk(2)
            wanted = away + part.guidance_scale * (towards - away)
        velocity = self._pipe.scheduler.config.prediction_type == "v_prediction"
        clean = alpha * noisy - sigma * wanted if velocity else (noisy - sigma * wanted) / alpha
        (gradient,) = torch.autograd.grad(self.entropies(clean).sum(), noisy)
        # The velocity is alpha * noise - sigma * x0, and x0 moves with the noise.
        step = -part.entropy_weight * sigma / (alpha if velocity else 1.0) * gradient
        return (predicted.detach() + torch.cat([step] * (2 if doubled else 1))).to(sample.dtype)

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
    if part.dtype == "float16":
        said = "generate.dtype is float16, in which the gradients of entropy guidance are lost to rounding."
        raise HfsynError(said, "Set generate.dtype to bfloat16 or float32.")
    kind, why = pipe.scheduler.config.get("prediction_type"), ""
    if not is_stable_diffusion(pipe):
        why = f"{part.model} is a {type(pipe).__name__}, and entropy guidance is for Stable Diffusion 1, 2 and XL"
    elif kind not in ("epsilon", "v_prediction"):
        why = f"{part.model} predicts {kind}, and entropy guidance is for models that predict noise or velocity"
    elif draws_noise(pipe.vae):
        why = f"The {type(pipe.vae).__name__} of {part.model} draws noise, which entropy guidance would use up"
    elif not any(calls_within(pipe, part, part.entropy_start, part.entropy_stop)):
        start, stop = part.entropy_start, part.entropy_stop
        why = f"none of the {part.steps} steps lies between generate.entropy_start {start:g} and stop {stop:g}"
    if why:
        raise HfsynError(f"{why}.", OFF)


def _channels(values: Sequence[float], device: str) -> Any:
    import torch

    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _chunks(sample: Any, halves: int) -> Iterator[list[int]]:
    """Rows of a batch that are computed together: equally many images each time, so that an image's place in the batch
    changes nothing, with their rows in each half of the batch.
    """
    images = sample.shape[0] // halves
    most = max(1, _AT_ONCE * _PIXELS // (sample.shape[-2] * sample.shape[-1]))
    size = next(size for size in range(min(most, images), 0, -1) if images % size == 0)
    for start in range(0, images, size):
        yield [half * images + at for half in range(halves) for at in range(start, start + size)]


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
