"""Tune a generator to captioned images: denoising steps on cached latents, with everything random bound to a sample.

The noise, the timestep, which crop of an image is shown, whether it is mirrored, which of its prompts it is shown with
and whether with any follow from the recipe's seed, the image's id and the step; the order of the images from the seed
and the epoch. So neither the number of processes nor an interruption changes more than the rounding of a sum, and a
killed tuning continues to the same weights. The error of a step is that of `hfsyn.images.denoising_loss`, with its
gradients.

TUNED/tuning.yaml                        the recipe with its part `tune`, pinned; written first
TUNED/cache/                             see `hfsyn.tuning.cache`; a tuning that is done does not need it
TUNED/checkpoints/step-00000100.pt       weights that are trained, the optimizer, the losses so far; until it is done
TUNED/samples/step-00000100.png          the same prompts and seeds, drawn at that step
TUNED/pytorch_lora_weights.safetensors   what plain diffusers loads; or, of all weights, TUNED/pipeline/
TUNED/tuning.json                        what came out; written last
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from builders.errors import brief
from builders.files import atomic_write, remove_abandoned
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.images.tuning import is_out_of_memory
from hfsyn.progress import Progress
from hfsyn.recipes.recipe import Recipe, TunePart
from hfsyn.rules import seed_of
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.weights import Average, trained_networks, trained_weights
from hfsyn.workers import current_worker

CHECKPOINTS = "checkpoints"
_KEPT = 2  # checkpoints
_BETA1, _EPSILON = 0.9, 1e-8


class Deck:
    """Images in a shuffled order for each epoch. `numbers` are those of the cache that are shown."""

    def __init__(self, cache: Cache, numbers: Sequence[int], seed: int, *, weight: float = 1.0, name: str = "") -> None:
        self.cache, self.numbers, self.weight = cache, numbers, weight
        self._seed, self._name = seed, name
        self._order = lru_cache(2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.numbers)

    def _shuffled(self, epoch: int) -> Any:
        import numpy as np

        seed = seed_of(self._seed, f"{self._name}epoch {epoch}", purpose="tune-order")
        return np.random.default_rng(seed).permutation(len(self.numbers))

    def number(self, place: int) -> int:
        """The number in the cache of the image at a place of the endless order."""
        epoch, at = divmod(place, len(self.numbers))
        return self.numbers[int(self._order(epoch)[at])]


@dataclass(frozen=True)
class Shown:
    """How one image is shown at one step."""

    deck: Deck
    number: int  # in the deck's cache
    share: float  # of noise
    mirrored: bool
    prompt: str
    noise: Any  # float32, of the latent's shape
    crop: int = 0


class Tuner:
    """The weights that are trained, and their steps; the same in every process of a launch.

    Of each deck as many images are shown in a step. `parts` is into how many each process divides its images of a step.
    Raises HfsynError if the targets match no layer. For the `parts` see `check_division`.
    """

    def __init__(
        self, recipe: Recipe, loss: DenoisingLoss, decks: Sequence[Deck], folder: Path, *, parts: int = 1
    ) -> None:
        assert recipe.tune is not None
        self._recipe, self._part, self._loss = recipe, recipe.tune, loss
        self._decks, self._folder, self._worker = decks, folder, current_worker()
        self._parts, self._logit_mean = parts, _logit_mean(self._part, loss)
        self.weights = trained_weights(loss, self._part, recipe.seed)
        self.networks = list(trained_networks(loss, self._part).values())
        texts = [part for name, part in loss.pipe.components.items() if name.startswith("text_encoder")]
        self.working = [*self.networks, *(texts if self._part.text_encoder else ())]
        """What stays on the device between samples: a step encodes its prompts itself if text encoders are trained."""
        self.average = Average(self.weights, self._part.ema)
        self._optimizer = _optimizer(self.weights, self._part)
        self._shape = tuple(decks[0].cache.latents([decks[0].number(0)], [False]).shape[1:])
        self.done, self.losses = 0, list[float]()
        self.seconds = 0.0, 0.0  # of all steps: by the clock, and of the CPUs of all processes

    def shown(self, step: int, rank: int = 0, world: int = 1) -> list[Shown]:
        """The images of a step that a process shows, and how; by default those of all."""
        size = self._part.batch_size
        whole = []
        for deck in self._decks:
            seen = Counter[int]()  # a step of more images than there are shows some again, each time in another way
            for number in map(deck.number, range(step * size, (step + 1) * size)):
                whole.append((deck, number, seen[number]))
                seen[number] += 1
        return [self._one(deck, number, step, again) for deck, number, again in whole[rank::world]]

    def _one(self, deck: Deck, number: int, step: int, again: int) -> Shown:
        import torch

        part, example = self._part, deck.cache.example(number)
        purpose = f"tune-again-{again}" if again else "tune"
        draw = torch.Generator().manual_seed(seed_of(self._recipe.seed, example.key, step, purpose=purpose))
        uniform = float(self._loss.schedule is not None) if part.uniform is None else part.uniform
        evenly, mirrored, dropped, chosen = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
        normal = torch.randn((), generator=draw, dtype=torch.float64) * part.logit_std + self._logit_mean
        # A number below the share is itself even, once it is divided by the share.
        share = evenly / uniform if evenly < uniform else float(torch.sigmoid(normal))
        noise = torch.randn(self._shape, generator=draw)
        return Shown(
            deck=deck,
            number=number,
            share=min(share, 1 - 1e-6),
            mirrored=part.flip and mirrored < 0.5,
            prompt="" if dropped < part.caption_dropout else example.prompts[int(chosen * len(example.prompts))],
            noise=noise,
            crop=int(torch.randint(deck.cache.crops, (), generator=draw)),
        )

    def step(self) -> float:
        """One step of the optimizer; returns the mean loss of its images, those of each deck weighed.

        Raises HfsynError if the loss is not finite, there is too little memory, or another process has stopped.
        """
        try:
            return self._step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            hint = f"Set --gradient-accumulation-steps {2 * self._parts} or --gradient-checkpointing."
            said = f"There is too little memory for a step of tune.batch_size {self._part.batch_size}"
            raise HfsynError(f"{said} ({brief(error, 160)}).", hint) from None

    def _step(self) -> float:
        import torch

        began, busy = time.monotonic(), time.process_time()
        shown = self.shown(self.done, self._worker.rank, self._worker.world)
        self._optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=self._loss.device)
        rank = self._worker.rank  # dropout in the network, the only thing that is not bound to an image
        torch.manual_seed(seed_of(self._recipe.seed, f"process {rank}", self.done, purpose="tune-dropout"))

        # Gradients of this process's images, a part of them at a time; each image of a deck weighs the same.
        for first in range(self._parts):
            loss = self._losses(shown[first :: self._parts]).sum() / self._part.batch_size
            loss.backward()
            summed += loss.detach()

        # The sum over all processes is the gradient of the whole step.
        spent = torch.tensor(time.process_time() - busy, device=self._loss.device)
        if self._worker.world > 1:
            summed, spent = self._added_up(summed, spent)
        value = float(summed)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), self._part.clip_grad or math.inf))
        for what, found in (("loss", value), ("gradient's norm", norm)):
            if not math.isfinite(found):
                said = f"The {what} is {found} at step {self.done + 1}."
                raise HfsynError(said, "Tune into another --out with a lower tune.lr, or with tune.dtype=float32.")
        for group in self._optimizer.param_groups:
            group["lr"] = self._part.lr * _course(self._part, self.done)
        self._optimizer.step()
        self.average.step()
        self.done += 1
        self.losses.append(value)
        self.seconds = self.seconds[0] + time.monotonic() - began, self.seconds[1] + float(spent)
        return value

    def _added_up(self, *more: Any) -> Any:
        """Add up the gradients of all processes, as one long tensor, and return the sums of some more numbers."""
        import torch
        from accelerate.utils import reduce

        grads = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        flat = torch.cat([*(grad.flatten() for grad in grads), torch.stack(more)])
        with together():
            flat = reduce(flat, "sum")
        *added, sums = flat.split([*(grad.numel() for grad in grads), len(more)])
        for grad, whole in zip(grads, added, strict=True):
            grad.copy_(whole.view_as(grad))
        return sums

    def _losses(self, shown: Sequence[Shown]) -> Any:
        """The weighted loss of each image, float32 (n,)."""
        import torch

        device, dtype = self._loss.device, self._loss.network.dtype
        rows = [one.deck.cache.latents([one.number], [one.mirrored], [one.crop]) for one in shown]
        latents = torch.cat(rows).to(device, dtype)
        noise = torch.stack([one.noise for one in shown]).to(device, dtype)
        shares = torch.tensor([one.share for one in shown], dtype=torch.float64)
        mixed = self._part.full and arithmetic(self._recipe) == "bfloat16"
        with _mixed(device) if mixed else nullcontext():
            errors = self._loss.errors(latents, noise, shares, self._told(shown))
        weights = torch.tensor([one.deck.weight for one in shown], dtype=torch.float64)
        if self._part.min_snr is not None and self._loss.schedule is not None:
            weights = weights * _min_snr(self._loss, shares, self._part.min_snr)
        return errors * weights.to(errors)

    def _told(self, shown: Sequence[Shown]) -> dict[str, Any]:
        """What the network is told of each prompt: computed now if text encoders are trained, else as it is kept."""
        import torch

        if self._part.text_encoder:
            return dict(self._loss.encode([one.prompt for one in shown], gradients=True))
        rows = [one.deck.cache.conditions([one.prompt]) for one in shown]
        found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {name: tensor.to(self._loss.device, self._loss.network.dtype) for name, tensor in found.items()}

    def run(self, every: int, after: Any, *, quiet: bool) -> None:
        """All steps that are left; each `every` steps `after(step)` is called, and a checkpoint written."""
        steps, is_main = self._part.steps, self._worker.is_main
        with Progress("tuning", steps, self.done, quiet=quiet or not is_main, unit="steps") as progress:
            while self.done < steps:
                self.step()
                progress.add(1)
                if is_main and (self.done % every == 0 or self.done == steps):
                    after(self.done)
                    self.save()  # last: what was killed before it is done again

    def save(self) -> None:
        """Write a checkpoint, and delete all but the newest."""
        import torch

        weights = {name: weight.detach().cpu() for name, weight in self.weights.items()}
        state: dict[str, Any] = {"step": self.done, "weights": weights, "optimizer": self._optimizer.state_dict()}
        state["average"] = self.average.state()
        path = self._folder / CHECKPOINTS / f"step-{self.done:08d}.pt"
        state |= {"losses": self.losses, "seconds": self.seconds}
        atomic_write(path, lambda temporary: torch.save(state, temporary))
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
                self.average.load(state["average"])
                self.done, self.losses = int(state["step"]), list(state["losses"])
                self.seconds = tuple(state["seconds"])
            except Exception as error:  # torch and pickle raise anything for a damaged file
                said = f"The checkpoint {found[-1]} is damaged: {type(error).__name__}: {brief(error)}"
                raise HfsynError(said, "Delete it; the one before it is then taken.") from None
        return self.done


def check_division(part: TunePart, parts: int) -> None:
    """Refuse parts of a step, or processes, into which its images cannot be divided."""
    size, processes = part.batch_size, current_worker().world
    if size % (processes * parts):
        said = f"tune.batch_size {size} cannot be divided among {processes} processes and {parts} parts of a step."
        raise HfsynError(said, "Choose others: --num-processes, --gradient-accumulation-steps.")


@contextmanager
def together() -> Iterator[None]:
    """Meet the other processes of a launch in here. Raises HfsynError if one of them has stopped, which says why."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise HfsynError("Another process has stopped.", "See its error.", ExitCode.PARTIAL) from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a tuning, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*.pt"))


def _optimizer(weights: Mapping[str, Any], part: TunePart) -> Any:
    import torch

    return torch.optim.AdamW(
        list(weights.values()), lr=part.lr, betas=(_BETA1, part.beta2), eps=_EPSILON, weight_decay=part.weight_decay
    )


def _logit_mean(part: TunePart, loss: DenoisingLoss) -> float:
    """The mean of the logits of the shares of noise; a fixed shift of the shares, which samplers of flow matching make
    and diffusers' scripts train with, is one of the logits.
    """
    config = loss.pipe.scheduler.config
    if part.logit_mean is not None or loss.schedule is not None or config.get("use_dynamic_shifting"):
        return part.logit_mean or 0.0
    return math.log(config.get("shift", 1.0))


@contextmanager
def _mixed(device: str) -> Iterator[None]:
    """bfloat16 where that is safe; on a CPU with the attention kernel that saves a fifth of a step then."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kind = torch.device(device).type
    with torch.autocast(kind, torch.bfloat16), sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext():
        yield


def arithmetic(recipe: Recipe) -> str:
    """In which the steps of a tuning compute: ``float32`` or ``bfloat16``."""
    part = recipe.tune or TunePart()
    return part.dtype or ("float32" if recipe.generate.dtype == "float32" else "bfloat16")


def _course(part: TunePart, done: int) -> float:
    """The share of the peak learning rate after `done` steps."""
    flat = max(part.warmup_steps, part.decay_from * part.steps)
    if done < part.warmup_steps:
        return (done + 1) / part.warmup_steps
    if part.schedule == "constant" or done < flat:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - flat) / max(1, part.steps - flat)))


def _min_snr(loss: DenoisingLoss, shares: Any, gamma: float) -> Any:
    """Min-SNR weights for the prediction of noise, velocity or image: (n,)."""
    from diffusers.training_utils import compute_snr

    snr = compute_snr(loss.schedule, loss.steps(shares)).double()
    kind = loss.schedule.config.prediction_type
    clipped = snr.clamp(max=gamma)
    return {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[kind]
