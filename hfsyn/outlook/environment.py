"""What a bug report needs to know of this machine: versions, devices, the Hub's settings; never a token."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from builders.errors import size_text
from builders.hub import is_offline
from hfsyn import __version__
from hfsyn.workers import cores, visible_gpus

_PACKAGES = "torch torchvision diffusers transformers tokenizers accelerate datasets huggingface_hub hf_xet timm peft"
_PACKAGES += " safetensors numpy pillow pyarrow pydantic ruamel.yaml jinja2 matplotlib click"
_VARIABLES = (
    "HFSYN_",
    "HF_",
    "HUGGINGFACE_",
    "ACCELERATE_",
    "CUDA_",
    "PYTORCH_",
    "TORCH_",
    "OMP_",
    "MKL_",
    "SLURM_JOB",
)
_ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TOKENIZERS_PARALLELISM", "PYTHONPATH")
_SECRET = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASSWORD")


def env() -> dict[str, Any]:
    """Versions, devices and settings of this machine, for a bug report. Asks no server, and shows no token.

    torch is imported only if a GPU is visible, to tell whether torch can use it.

    Returns:
        Facts by name; ``packages`` and ``variables`` are mappings, ``GPUs`` is a list.
    """
    from huggingface_hub import constants, get_token

    packages: dict[str, str | None] = {}
    for name in _PACKAGES.split():
        packages[name] = None
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    here, cache = Path.cwd(), existing(Path(constants.HF_HUB_CACHE))
    memory = memory_free()
    return {
        "hfsyn": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "GPUs": [f"{name}, {size_text(memory * 1e9)}" for memory, _, name in gpus()],
        "torch's devices": _torch_devices(),
        "cores": cores(),
        "free memory": "unknown" if math.isinf(memory) else size_text(memory * 1e9),
        "free disk, this folder": size_text(shutil.disk_usage(here).free),
        "free disk, the Hub's cache": size_text(shutil.disk_usage(cache).free),
        "Hub": _without_login(constants.ENDPOINT),
        "Hub cache": constants.HF_HUB_CACHE,
        "offline": is_offline(),
        "logged in": get_token() is not None,
        "variables": {
            name: "(set)" if _SECRET.search(name) else _without_login(value)
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES) or name in _ALONE
        },
    }


def _without_login(text: str) -> str:
    """The text without the user and the password that an address may have."""
    return re.sub(r"//[^/@\s]+@", "//(login)@", text)


def _torch_devices() -> str:
    if not (visible_gpus() or sys.platform == "darwin"):
        return "cpu"
    import torch

    if torch_sees_gpus():
        return f"cuda {torch.version.cuda}: {torch.cuda.device_count()}"
    return "mps, cpu" if torch.backends.mps.is_available() else "cpu (torch cannot use the GPU)"


def torch_sees_gpus() -> bool:
    """False for instance with a driver that is older than the one torch was built for."""
    import torch

    with warnings.catch_warnings(action="ignore"):  # which would say it in a paragraph
        return torch.cuda.is_available()


def gpus() -> list[tuple[float, float, str]]:
    """GB of memory, compute capability and name of each visible GPU, by nvidia-smi; empty if it does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        rows = [line.rsplit(", ", 2) for line in lines]
        found = [(float(memory) * 2**20 / 1e9, float(capability), name) for name, memory, capability in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return found[: visible_gpus()]


def memory_free() -> float:
    """GB of main memory that programs may take; infinite if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9
    except (OSError, StopIteration, ValueError):
        return math.inf


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
