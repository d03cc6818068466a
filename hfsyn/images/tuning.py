"""How the device computes a model: memory format, compilation, attention kernel, and how many images at once.

Only the last bits of an image depend on it, and sidecars record it.
"""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from builders.errors import brief
from hfsyn.errors import HfsynError
from hfsyn.runs.options import WorkOptions

ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")
"""Kernels of scaled dot product attention by their option; ``auto`` is torch's own choice."""
_GRAPHS = 64
T = TypeVar("T")
CANDIDATES = (1, 2, 4, 8, 16, 24, 48)
"""Sizes that are tried, ascending. Beyond 8 rows a batch no longer saves memory traffic, only launches; and from 64
rows on (32 images with guidance) diffusers leaves the channels-last format in the middle of the UNet.
"""
_MOST_ROWS = 63
_HEADROOM = 0.85  # share of the device's memory that may be used: fragmentation and other processes take the rest
_NO_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "can't allocate memory",
    "unable to find an engine",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""What cuBLAS, cuDNN and the CPU's allocator say when there is too little memory."""
_SMALLER = "Use a smaller model or size, a dtype of 16 bits, or another --device."


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is computed."""

    channels_last: bool = False
    """Convolutions read their channels side by side, which tensor cores want; on a CPU it costs time."""
    compiled: bool = False  # through `torch.compile`: minutes once, then fewer and larger kernels
    attention: str = "auto"  # one of `ATTENTION`

    def record(self) -> dict[str, str]:
        """What is not as on a CPU by default, for the sidecar."""
        found = {"channels_last": "yes"} if self.channels_last else {}
        found |= {"compile": "yes"} if self.compiled else {}
        return found | ({"attention": self.attention} if self.attention != "auto" else {})


PLAIN = Tuning()  # eager, contiguous, torch's own kernels


def tuning_of(options: WorkOptions, device: str) -> Tuning:
    """What the options ask for, or else what suits the device: channels last on an NVIDIA GPU, nothing elsewhere."""
    cuda = device.startswith("cuda")
    channels_last = cuda if options.channels_last is None else options.channels_last == "on"
    if options.attention in ("cudnn", "flash", "efficient") and not cuda:
        said = f"--attention {options.attention} is a kernel of NVIDIA GPUs, and the device is {device}."
        raise HfsynError(said, "Leave it out, or use --attention math.")
    return Tuning(channels_last, options.compile, options.attention or "auto")


def tune(pipe: Any, tuning: Tuning) -> None:
    """Apply it to a pipeline that is on its device."""
    import torch

    # UNets are compiled whole: their repeated blocks hold less than half of the work. Transformers are nothing but
    # repeated blocks, which are compiled once for all.
    unet, transformer, vae = (getattr(pipe, name, None) for name in ("unet", "transformer", "vae"))
    if tuning.channels_last:
        for network in (unet, vae):
            # Video's convolutions have weights of five dimensions, and this format is for four.
            if network is not None and not any(weight.dim() == 5 for weight in network.parameters()):
                network.to(memory_format=torch.channels_last)
    if tuning.compiled:
        # Each batch size is a graph of its own: those that `--batch-size auto` tries and those after a lack of memory.
        torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
        if unet is not None:
            unet.compile(fullgraph=True, dynamic=False)
        elif transformer is not None and getattr(transformer, "_repeated_blocks", None):
            transformer.compile_repeated_blocks(fullgraph=True)
        if vae is not None:
            vae.decode = torch.compile(vae.decode, fullgraph=True, dynamic=False)


@contextlib.contextmanager
def kernels(tuning: Tuning) -> Iterator[None]:
    """Compute attention with the chosen kernel, and word the errors of compilation and kernels.

    diffusers' own setting of a backend does nothing for the UNets and autoencoders of Stable Diffusion, which call
    torch's function; this is torch's own switch. Raises HfsynError if the model cannot be compiled here, or the kernel
    does not take its shapes.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    flash, efficient, plain = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    # An autoencoder's one head of 512 is too wide for flash and cuDNN, which would end every run: others follow them.
    orders = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION, flash, efficient, plain],
        "flash": [flash, efficient, plain],
        "efficient": [efficient],
        "math": [plain],
    }
    order = orders.get(tuning.attention)
    try:
        with contextlib.nullcontext() if order is None else sdpa_kernel(order, set_priority=True):
            yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = brief(error)
        if tuning.compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            said = f"--compile: torch cannot compile this model here ({reason})"
            raise HfsynError(said, "Leave --compile out.") from error
        if order is not None and "No available kernel" in reason:
            said = f"--attention {tuning.attention}: the kernel does not take this model ({reason})"
            raise HfsynError(said, "Leave --attention out.") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the machine, is too small."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def release_memory() -> None:
    """Free what a failed attempt holds."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSize:
    """The present batch size of a stage; halved when memory runs out, and never raised again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], T], *, settle: Callable[[], None] = lambda: None) -> tuple[T, int] | None:
        """The result of `work(size)`, and the size; None if it was too large and is smaller now.

        Before the size is halved, `settle` waits for what else holds memory. Raises HfsynError if there is too
        little for a batch of one.
        """
        size = self.size
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = brief(error, 160)
        # Outside the except clause: its traceback holds the tensors of the attempt.
        settle()
        release_memory()
        if size == 1:
            raise HfsynError(f"There is too little memory for one image at a time ({said}).", _SMALLER)
        self.size = max(1, size // 2)
        print(
            f"hfsyn: too little memory for batches of {size}; going on with {self.size} ({said})",
            file=sys.stderr,
            flush=True,
        )
        return None

    def over(self, items: Sequence[Any], work: Callable[[Sequence[Any]], T]) -> list[T]:
        """The results of `work` on all items in order, as many of them at once as there is memory for."""
        found, first = list[T](), 0
        while first < len(items):
            if (done := self.run(lambda size, first=first: work(items[first : first + size]))) is not None:  # type: ignore[misc]
                found.append(done[0])
                first += done[1]
        return found


def largest_batch(draw: Callable[[int], None], *, guided: bool, used: Callable[[], float]) -> int:
    """The largest of `CANDIDATES` that a device draws within its memory; raises HfsynError if not even one fits.

    `draw` draws a batch of a size and waits for it; `guided` is whether each image is two rows for the network; `used`
    the largest share of the device's memory that the last `draw` used, 0 to 1.
    """
    fitting = 0
    for size in CANDIDATES:
        if fitting and size * (2 if guided else 1) > _MOST_ROWS:
            break
        try:
            draw(size)
            share = used()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            share = 2.0
        release_memory()
        if share > (_HEADROOM if fitting else 1):
            break
        fitting = size
    if not fitting:
        raise HfsynError("There is too little memory for one image at a time.", _SMALLER)
    return fitting


def choose(asked: str | int | None, recipe_size: int, device: str, generator: Any, *, guided: bool) -> int:
    """The batch size to begin with: `asked`, a number; or the recipe's; ``auto`` fills the memory of a CUDA device, and
    is the recipe's size on others. `generator` is an `ImageGenerator`; for `guided` see `largest_batch`.
    """
    if asked not in (None, "auto"):
        return int(asked)
    if asked is None or not device.startswith("cuda"):
        return recipe_size
    import torch
    from PIL import Image

    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)  # also what CUDA itself takes

    def draw(size: int) -> None:
        torch.cuda.reset_peak_memory_stats(device)
        images = {"images": [generator.fit(Image.new("RGB", (64, 64)))] * size} if generator.starts_from_images else {}
        generator.start(["a photo"] * size, list(range(size)), size, **images)()

    return largest_batch(draw, guided=guided, used=lambda: (torch.cuda.max_memory_reserved(device) + others) / total)
