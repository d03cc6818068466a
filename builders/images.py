"""From the bytes of an image file to 8-bit RGB, or a reason why not."""

from __future__ import annotations

import io
import re
import warnings

# Pillow registers a format when its plug-in is imported; by name, so that no other plug-in needs to be loaded.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

__all__ = ["MAX_PIXELS", "ImageRejected", "decode_rgb"]

MAX_PIXELS = 89_478_485
"""Pillow's default bound against decompression bombs (a quarter of a GiB as RGB). Fixed here, because Pillow's own is a
global that other libraries lift."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
"""What people keep photographs in. Pillow's other decoders, some of which start programs, are not tried."""

_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
"""How files of these formats begin: a file that does so and cannot be opened is cut short rather than no image."""

_PILLOW = re.compile(r"PIL(\.|$)")

_ORIENTATION = 0x0112  # the EXIF tag; its values are the eight ways to hold a camera
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(ValueError):  # noqa: N818 (a verdict on the data, not an error of the program)
    """An image that cannot be used. `reason` is short, and the same for every image with the same fault."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB, turned upright as its EXIF says; of an animation, the first picture.

    Transparent parts become white. 16-bit grey is scaled to 8 bits. Broken EXIF is ignored. The result carries no
    metadata. Safe to call from several threads.

    Raises ImageRejected with one of these reasons: "empty file", "not an image", "truncated", "damaged", "too large"
    (more than MAX_PIXELS), "unsupported colours".
    """
    if not data:
        raise ImageRejected("empty file")
    # Other libraries switch this on for the whole process; a half-grey photograph must not pass for a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    _silence()
    image = _load(data)
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF raises anything from SyntaxError to struct.error, and says nothing about the pixels
        turn = None
    try:
        rgb = _to_rgb(image)
    except (ValueError, OSError) as error:
        raise ImageRejected("unsupported colours") from error
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info.clear()
    return rgb


def _silence() -> None:
    """Ignore Pillow's warnings about odd files, which say nothing that the result does not.

    A filter of the whole process, because `warnings.catch_warnings` is not safe in threads; looked for at each call,
    because test runners and others put the filters back to what they were.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _load(data: bytes) -> Image.Image:
    """Open and decode the pixels, or raise ImageRejected."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ImageRejected("too large")
        image.load()
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected("too large") from error
    except UnidentifiedImageError as error:
        raise ImageRejected("truncated" if data.startswith(_SIGNATURES) else "not an image") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds of exception for damaged files
        short = isinstance(error, EOFError) or "truncat" in str(error).lower()
        raise ImageRejected("truncated" if short else "damaged") from error
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new 8-bit RGB image. JPEG's inverted CMYK was already put right by Pillow's decoder."""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or floating-point grey so that white stays white; `convert` alone would clip at 255."""
    wide = image if image.mode == "F" else image.convert("I")
    _, high = wide.getextrema()
    full = 1.0 if wide.mode == "F" else 65535.0  # PNG's range; what exceeds it has a range of its own
    white = max(full, float(high if isinstance(high, int | float) else full))
    return wide.point(lambda value: value * (255.0 / white) + 0.5).convert("L")
