"""What made an image or a result, beside its recipe: the versions of the libraries and the device."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    "hfsyn",
    "torch",
    "diffusers",
    "transformers",
    "timm",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
    "pyarrow",
)


def software() -> dict[str, str]:
    """Versions of Python and of the libraries that decide an image's or a weight's last bits."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def describe_device(device: str) -> str:
    """A torch device in words: ``cuda:0 (NVIDIA H100)``, ``cpu (x86_64, 2 cores)``."""
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {os.cpu_count()} cores)" if device == "cpu" else device
