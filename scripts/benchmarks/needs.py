"""Which packages a machine needs beside those of a common CUDA image, where no registry can be reached."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGE = frozenset(
    {"accelerate", "click", "filelock", "fsspec", "hf-xet", "httpx", "huggingface-hub", "jinja2", "matplotlib", "numpy"}
    | {
        "packaging",
        "pandas",
        "peft",
        "pillow",
        "psutil",
        "pyarrow",
        "pyyaml",
        "regex",
        "requests",
        "safetensors",
        "timm",
    }
    | {"tokenizers", "torch", "torchvision", "tqdm", "transformers", "typing-extensions", "xxhash", "zipp"}
)
"""What such an image has, each with all that it needs itself in the image's own version."""


APART = frozenset({"duckdb"})
"""What only other commands load, `hfsyn select` in this case: 20 MB that no benchmark needs."""


def missing(package: str = "hfsyn") -> dict[str, Distribution]:
    """What a package needs and the image lacks, by canonical name; of what is installed here."""
    found: dict[str, Distribution] = {}
    waiting = list(_needed(distribution(package)))
    while waiting:
        name = waiting.pop()
        if name in IMAGE | APART or name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        waiting += _needed(found[name])
    return dict(sorted(found.items()))


def told() -> str:
    """Each package with its version and about its size as a wheel; then the sum, and how to get them."""
    found = missing()
    sizes = {name: _packed(package) for name, package in found.items()}
    lines = [f"{name}=={found[name].version}  {sizes[name] / 1e6:.1f} MB" for name in found]
    # For the image's Python, not this one: some packages hold compiled code.
    words = " ".join(f"{name}=={package.version}" for name, package in found.items())
    return "\n".join(
        [
            *lines,
            f"{len(found)} packages, about {sum(sizes.values()) / 1e6:.0f} MB",
            f"python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels {words}",
        ]
    )


def _needed(package: Distribution) -> Iterator[str]:
    for line in package.requires or ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield canonicalize_name(need.name)


def _packed(package: Distribution) -> int:
    """Bytes of the package's files, compressed as in a wheel."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, str(file))
    return buffer.tell()
