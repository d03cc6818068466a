"""How the device computes a model: memory format, compilation, attention kernel.

Only the last bits of an image depend on it, and sidecars record it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.runs.options import WorkOptions

ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")
"""Kernels of scaled dot product attention by their option; ``auto`` is torch's own choice."""
_GRAPHS = 64


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is computed."""

    channels_last: bool = False
    """Convolutions read their channels side by side, which tensor cores want; on a CPU it costs time."""
    compiled: bool = False
    """Through `torch.compile`: minutes once, then fewer and larger kernels."""
    attention: str = "auto"
    """One of `ATTENTION`."""

    def record(self) -> dict[str, str]:
        """What is not as on a CPU by default, for the sidecar."""
        found = {"channels_last": "yes"} if self.channels_last else {}
        found |= {"compile": "yes"} if self.compiled else {}
        return found | ({"attention": self.attention} if self.attention != "auto" else {})


PLAIN = Tuning()
"""Eager, contiguous, torch's own kernels."""


def tuning_of(options: WorkOptions, device: str) -> Tuning:
    """What the options ask for, or else what suits the device: channels last on an NVIDIA GPU, nothing elsewhere."""
    cuda = device.startswith("cuda")
    channels_last = cuda if options.channels_last is None else options.channels_last == "on"
    if options.attention in ("cudnn", "flash", "efficient") and not cuda:
        raise HfsynError(
            f"--attention {options.attention} is a kernel of NVIDIA GPUs, and the device is {device}.",
            "Leave it out, or use --attention math.",
        )
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
    torch's function; this is torch's own switch.

    Raises:
        HfsynError: the model cannot be compiled here, or the kernel does not take its shapes.
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
        reason = " ".join(str(error).split())[:200]
        if tuning.compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise HfsynError(
                f"--compile: torch cannot compile this model here ({reason})", "Leave --compile out."
            ) from error
        if order is not None and "No available kernel" in reason:
            raise HfsynError(
                f"--attention {tuning.attention}: the kernel does not take this model ({reason})",
                "Leave --attention out.",
            ) from error
        raise
