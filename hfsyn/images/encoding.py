"""The one path from pixels to stored bytes, for real and synthetic images alike.

A classifier that sees real and synthetic images stored in different ways learns the difference in storage (arXiv
2403.17608).
"""

import io
import os

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hfsyn.recipes.recipe import StorePart

Pixels = npt.NDArray[np.uint8]  # an image as height x width x 3, RGB, 0 to 255

_OWN_SIZE = 1 / 30  # an image whose scale is this close to 1 would hardly be resampled
_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


def stored_name(sample_id: str, store: StorePart) -> str:
    """The file name of a stored image."""
    return sample_id.replace("/", "_").replace("#", "_") + _SUFFIX[store.format]


def fitted(image: Image.Image, width: int, height: int, at: float = 0.5) -> Image.Image:
    """An RGB image at the size of synthetic ones: the middle of it in their shape, always resampled (Lanczos). `at`
    puts another part than the middle there, from 0 (left, top) to 1.

    A photograph that happens to have the size is resampled too, from a thirtieth less of it: left as it is, it would
    keep the whole 8 x 8 grid of its JPEG file, which no synthetic image has.
    """
    scale = min(image.width / width, image.height / height)
    if abs(scale - 1) < _OWN_SIZE:
        scale *= 1 - _OWN_SIZE
    across, down = scale * width, scale * height
    left, top = (image.width - across) * at, (image.height - down) * at
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + across, top + down))


def encode(image: Pixels | Image.Image, store: StorePart, mark: bytes | None = None) -> bytes:
    """The bytes of RGB pixels or an RGB image in the recipe's format; the same pixels give the same bytes. `store.size`
    resizes the short side (Lanczos) first. `mark` is an XMP packet to go with it, see `hfsyn.images.marking`.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.info:  # Pillow writes comments and profiles of the file that it was read from into the new one
        picture = picture.copy()
        picture.info.clear()
    if store.size is not None and min(picture.size) != store.size:
        scale = store.size / min(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    # Pillow's JPEG encoder lets other threads run (without the GIL) only while it writes to a real file. With a file in
    # memory several threads encode at once, and the thread that keeps the device busy is not held up.
    xmp = {} if mark is None else {"xmp": mark}
    in_file = store.format == "jpeg" and hasattr(os, "memfd_create")  # of Linux
    with os.fdopen(os.memfd_create("jpeg"), "w+b") if in_file else io.BytesIO() as out:
        if store.format == "jpeg":
            picture.save(out, "JPEG", quality=store.quality, subsampling=store.subsampling, **xmp)
        elif store.format == "png":
            # Level 1: a third of the default's time for a few per cent more bytes.
            picture.save(out, "PNG", compress_level=1, pnginfo=_chunks(mark))
        else:
            picture.save(out, "WEBP", lossless=True, method=0, **xmp)
        out.seek(0)
        return out.read()


def _chunks(mark: bytes | None) -> PngInfo | None:
    """Where PNG has its XMP packet."""
    if mark is None:
        return None
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", mark.decode())
    return chunks
