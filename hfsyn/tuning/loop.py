"""Tune a generator to captioned images: denoising steps on cached latents, with everything random bound to a sample.

The noise, the timestep, whether an image is mirrored and whether it is shown without its prompt follow from the
recipe's seed, the image's id and the step; the order of the images from the seed and the epoch. So neither the number
of processes nor an interruption changes more than the rounding of a sum, and a killed tuning continues to the same
weights. The error of a step is that of `hfsyn.images.denoising_loss`, with its gradients.

TUNED/tuning.yaml                        the recipe with its part `tune`, pinned; written first
TUNED/cache/                             see `hfsyn.tuning.cache`
TUNED/checkpoints/step-00000100.pt       weights that are trained, the optimizer, the losses so far
TUNED/samples/step-00000100.png          the same prompts and seeds, drawn at that step
TUNED/pytorch_lora_weights.safetensors   what plain diffusers loads; or, of all weights, TUNED/pipeline/
TUNED/tuning.json                        what came out; written last
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from builders.errors import brief
from builders.files import atomic_write, remove_abandoned
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.progress import Progress
from hfsyn.recipes.recipe import Recipe, TunePart
from hfsyn.rules import seed_of
from hfsyn.runs.specs import SampleSpec
from hfsyn.tuning.cache import Cache
from hfsyn.workers import current_worker

CHECKPOINTS = "checkpoints"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of the attention; those of the text's stream in transformers that have one."""
_KEPT = 2  # checkpoints
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Shown:
    """How one image is shown at one step."""

    share: float  # of noise
    mirrored: bool
    prompt: str
    noise: Any  # float32, of the latent's shape


class Tuner:
    """The weights that are trained, and their steps; the same in every process of a launch.

    `parts` is into how many each process divides its images of a step. Raises HfsynError if the targets match no layer,
    or the batch cannot be divided.
    """

    def __init__(
        self,
        recipe: Recipe,
        loss: DenoisingLoss,
        specs: Sequence[SampleSpec],
        cache: Cache,
        folder: Path,
        *,
        parts: int = 1,
    ) -> None:
        assert recipe.tune is not None
        self._recipe, self._part, self._loss = recipe, recipe.tune, loss
        self._specs, self._cache, self._folder, self._worker = specs, cache, folder, current_worker()
        size, processes = self._part.batch_size, self._worker.world
        if size % (processes * parts):
            said = f"tune.batch_size {size} cannot be divided among {processes} processes and {parts} parts of a step."
            raise HfsynError(said, "Choose others: --num-processes, --gradient-accumulation-steps.")
        self._parts = parts
        self.weights = trained_weights(loss.network, self._part, recipe.seed)
        self._optimizer = _optimizer(self.weights, self._part)
        self.done, self.losses = 0, list[float]()

    def shown(self, step: int) -> tuple[list[int], list[Shown]]:
        """The numbers of the images of a step, and how each is shown."""
        size, count = self._part.batch_size, len(self._specs)
        numbers = [self._order(place // count)[place % count] for place in range(step * size, (step + 1) * size)]
        return numbers, [self._one(self._specs[number], step) for number in numbers]

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._cache.latents([0], [False]).shape[1:])

    def _order(self, epoch: int) -> list[int]:
        """The order of the images in an epoch."""
        import numpy as np

        seed = seed_of(self._recipe.seed, f"epoch {epoch}", purpose="tune-order")
        return [int(number) for number in np.random.default_rng(seed).permutation(len(self._specs))]

    def _one(self, spec: SampleSpec, step: int) -> Shown:
        import torch

        draw = torch.Generator().manual_seed(seed_of(self._recipe.seed, spec.source_id, step, purpose="tune"))
        if self._loss.schedule is None:  # flow matching: more often from the middle (arXiv 2403.03206)
            share = torch.sigmoid(torch.randn((), generator=draw, dtype=torch.float64))
        else:
            share = torch.rand((), generator=draw, dtype=torch.float64)
        mirrored, dropped = (float(torch.rand((), generator=draw)) for _ in range(2))
        return Shown(
            share=float(share),
            mirrored=self._part.flip and mirrored < 0.5,
            prompt="" if dropped < self._part.caption_dropout else spec.prompt,
            noise=torch.randn(self._shape, generator=draw),
        )

    def step(self) -> float:
        """One step of the optimizer; returns the mean loss of its images."""
        import torch

        numbers, shown = self.shown(self.done)
        self._optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=self._loss.device)

        # Gradients of this process's images, a part of them at a time; each image weighs the same.
        mine = range(self._worker.rank, len(numbers), self._worker.world)
        for first in range(self._parts):
            chosen = mine[first :: self._parts]
            loss = self._losses([numbers[n] for n in chosen], [shown[n] for n in chosen]).sum() / len(numbers)
            loss.backward()
            summed += loss.detach()

        # The sum over all processes is the gradient of the whole step.
        if self._worker.world > 1:
            from accelerate.utils import reduce

            for weight in self.weights.values():
                weight.grad = reduce(weight.grad, "sum")
            summed = reduce(summed, "sum")
        value = float(summed)
        if not math.isfinite(value):
            said = f"The loss is {value} at step {self.done + 1}."
            raise HfsynError(said, "Lower tune.lr, or set generate.dtype to bfloat16 or float32.")
        if self._part.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self._part.clip_grad)
        for group in self._optimizer.param_groups:
            group["lr"] = self._part.lr * _course(self._part, self.done)
        self._optimizer.step()
        self.done += 1
        self.losses.append(value)
        return value

    def _losses(self, numbers: Sequence[int], shown: Sequence[Shown]) -> Any:
        """The weighted loss of each image, float32 (n,)."""
        import torch

        device, dtype = self._loss.device, self._loss.network.dtype
        latents = self._cache.latents(numbers, [one.mirrored for one in shown]).to(device, dtype)
        noise = torch.stack([one.noise for one in shown]).to(device, dtype)
        conditions = self._cache.conditions([one.prompt for one in shown])
        told = {name: tensor.to(device, dtype) for name, tensor in conditions.items()}
        shares = torch.tensor([one.share for one in shown], dtype=torch.float64)
        errors = self._loss.errors(latents, noise, shares, told)
        if self._part.min_snr is None or self._loss.schedule is None:
            return errors
        return errors * _min_snr(self._loss, shares, self._part.min_snr).to(errors)

    def run(self, every: int, after: Any, *, quiet: bool) -> None:
        """All steps that are left; a checkpoint is written each `every` steps, and `after(step)` called with it."""
        steps, is_main = self._part.steps, self._worker.is_main
        with Progress("tuning", steps, self.done, quiet=quiet or not is_main, unit="steps") as progress:
            while self.done < steps:
                self.step()
                progress.add(1)
                if is_main and (self.done % every == 0 or self.done == steps):
                    self.save()
                    after(self.done)

    def save(self) -> None:
        """Write a checkpoint, and delete all but the newest."""
        import torch

        weights = {name: weight.detach().cpu() for name, weight in self.weights.items()}
        state = {"step": self.done, "weights": weights, "optimizer": self._optimizer.state_dict()}
        path = self._folder / CHECKPOINTS / f"step-{self.done:08d}.pt"
        atomic_write(path, lambda temporary: torch.save({**state, "losses": self.losses}, temporary))
        for old in checkpoints(self._folder)[:-_KEPT]:
            old.unlink()

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns how many steps are done.

        Raises HfsynError if it cannot be read.
        """
        import torch

        remove_abandoned((self._folder / CHECKPOINTS).glob(".*.tmp"))
        if found := checkpoints(self._folder):
            try:
                state: Mapping[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
                with torch.no_grad():
                    for name, weight in self.weights.items():
                        weight.copy_(state["weights"][name])
                self._optimizer.load_state_dict(state["optimizer"])
                self.done, self.losses = int(state["step"]), list(state["losses"])
            except Exception as error:  # torch and pickle raise anything for a damaged file
                said = f"The checkpoint {found[-1]} is damaged: {type(error).__name__}: {brief(error)}"
                raise HfsynError(said, "Delete it; the one before it is then taken.") from None
        return self.done


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a tuning, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*.pt"))


def trained_weights(network: Any, part: TunePart, seed: int) -> dict[str, Any]:
    """Make a network ready to be tuned, and return the weights that are trained, float32, by name.

    Raises HfsynError if `part.targets` match no layer.
    """
    import torch

    network.requires_grad_(part.full)
    network.train()
    if part.full:
        network.float()
        return dict(network.named_parameters())
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    names = part.targets or (*ATTENTION, *JOINT)
    layers = [name for name, layer in network.named_modules() if _is_target(name, names) and _has_rank(layer)]
    if not layers:
        some = sorted({name.rsplit(".", 1)[-1] for name, layer in network.named_modules() if _has_rank(layer)})
        said = f"tune.targets {', '.join(names)} match no layer of the {type(network).__name__}."
        raise HfsynError(said, f"It has, for instance: {', '.join(some[:8])}.")
    torch.manual_seed(seed_of(seed, "weights", purpose="tune"))
    rank = part.rank
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
    network.add_adapter(lora)
    cast_training_params(network, dtype=torch.float32)
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def _is_target(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _has_rank(layer: Any) -> bool:
    """Whether a LoRA can stand beside a layer."""
    import torch

    return isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)


def _optimizer(weights: Mapping[str, Any], part: TunePart) -> Any:
    import torch

    return torch.optim.AdamW(
        list(weights.values()), lr=part.lr, betas=_BETAS, eps=_EPSILON, weight_decay=part.weight_decay
    )


def _course(part: TunePart, done: int) -> float:
    """The share of the peak learning rate after `done` steps."""
    if done < part.warmup_steps:
        return (done + 1) / part.warmup_steps
    if part.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - part.warmup_steps) / max(1, part.steps - part.warmup_steps)))


def _min_snr(loss: DenoisingLoss, shares: Any, gamma: float) -> Any:
    """Min-SNR weights for the prediction of noise, velocity or image: (n,)."""
    from diffusers.training_utils import compute_snr

    snr = compute_snr(loss.schedule, loss.steps(shares)).double()
    kind = loss.schedule.config.prediction_type
    clipped = snr.clamp(max=gamma)
    return {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[kind]
