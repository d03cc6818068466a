"""Decode the bytes of an image file: format, limits, EXIF rotation, then 8-bit sRGB; or a reason why not."""

import ctypes
import importlib
import io
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from builders.images.colours import UnsupportedColours, to_srgb
from builders.images.formats import HEAD, format_of

MAX_PIXELS = 89_478_485
"""Pillow's default limit against decompression bombs (a quarter of a GiB as RGB), which other libraries change."""

_PLUGINS = "Avif Bmp Gif Ico Jpeg Jpeg2K Mpo Pcx Png Ppm Psd Qoi Sgi Sun Tga Tiff WebP"
for _plugin in _PLUGINS.split():  # importing one registers its format
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")

_NAMES = "JPEG PNG WEBP GIF BMP TIFF AVIF PPM ICO PCX PSD QOI SGI TGA"
_READ = {name: name for name in _NAMES.split()} | {"JPEG 2000": "JPEG2000", "Sun raster": "SUN"}
"""Format of a file -> its decoder, without those that start programs (EPS, WMF), need other libraries (FPX), or are
slow for small files (DDS, BLP)."""

_UNMARKED = ("DIB", "TGA")  # formats without a signature at their beginning, tried last

_SLOW_PIXELS = 250_000  # pixels that a decoder of Pillow written in Python decodes in well under a second

# Pillow's messages for files that end too early, and for valid files that it does not support.
_SHORT = re.compile(
    r"truncat|not enough|eof|only got|unpack|out of range|no more images|not a \w+ file|missing dimensions|"
    r"data organization|chunk b'[^'\\]{0,3}'|incomplete checksum"
)
_UNSUPPORTED = re.compile(r"mode|unsupported|unknown|not supported|compression|palette size")

_TGA_END = b"TRUEVISION-XFILE.\x00"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_PILLOW = re.compile(r"PIL(\.|$)")

# Otherwise Pillow's log messages about broken TIFF files are printed if logging is not configured.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# A photograph in JPEG 2000 takes a second on one core.
os.environ.setdefault("OPJ_NUM_THREADS", "ALL_CPUS")

_ROOM = 320 << 20
"""Bytes that the pictures of all `decoded` blocks of a process may take, if there is more than one; more on a machine
with more than 80 GB of memory."""
_LARGE = 32 << 20
_BYTES_A_PIXEL = 16  # Pillow uses 4 bytes per pixel, and up to four times that while it rotates or converts a picture

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_TURNS = {value: Image.Transpose[name] for value, name in enumerate(_UPRIGHT.split(), start=2)}


class ImageRejected(ValueError):  # noqa: N818 (a verdict on the data, not an error of the program)
    """An image that cannot be used; `reason` is short, and the same for every image with the same fault."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file to 8-bit sRGB, rotated as its EXIF says; of an animation, the first picture.

    The format is detected from the content. Transparent parts become white, a colour profile is applied, deep grey is
    scaled (see `builders.images.colours`). Broken EXIF and broken profiles are ignored. The result has no metadata.
    Thread-safe.

    Raises ImageRejected with one of these reasons: "empty file", "not an image", "truncated", "damaged", "too large"
    (more than MAX_PIXELS), "X is not read" for a format X without a decoder, "unsupported kind of X" for a rare kind of
    a format, "X this large is not read" if decoding would take seconds, or a reason of `builders.images.colours`.
    """
    if not data:
        raise ImageRejected("empty file")
    # Other libraries set this for the whole process; but a photograph whose lower half is missing is not valid.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    _silence()
    image = _load(data)
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF raises anything from SyntaxError to struct.error
        turn = None
    try:
        rgb = to_srgb(image)
    except UnsupportedColours as error:
        raise ImageRejected(str(error)) from error
    except (ValueError, OSError) as error:
        raise ImageRejected("unsupported colours") from error
    # A new picture, as the one that Pillow opened keeps the file in memory.
    plain = rgb._new(rgb.im) if turn is None else rgb.transpose(turn)
    plain.info.clear()
    return plain


@contextmanager
def decoded(data: bytes) -> Iterator[Image.Image]:
    """`decode_rgb` for several threads: waits while the pictures of the others use too much memory.

    The picture is closed at the end of the block, if `close` has not done so. Raises ImageRejected as `decode_rgb`.
    """
    try:
        header = _opened(data, _name(data))
        need = min(header.width * header.height, MAX_PIXELS) * _BYTES_A_PIXEL
        del header
    except Exception:  # decode_rgb reports what is wrong
        need = 0
    with _room.taking(need):
        image = decode_rgb(data)
        try:
            yield image
        finally:
            close(image)


def close(image: Image.Image) -> None:
    """Give the memory of a picture, and what was freed around it, back to the system."""
    image.close()
    if image.width * image.height * _BYTES_A_PIXEL > _LARGE and _trim is not None:
        _trim(0)


# glibc keeps freed blocks below 32 MB, which for photographs are hundreds of fragmented megabytes.
_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


class _Room:
    """A budget of bytes that several threads share."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._left = size, 0, threading.Condition()

    @contextmanager
    def taking(self, need: int) -> Iterator[None]:
        """Wait until that many bytes are left, or until no other thread has any."""
        with self._left:
            self._left.wait_for(lambda: not self._taken or self._taken + need <= self._size)
            self._taken += need
        try:
            yield
        finally:
            with self._left:
                self._taken -= need
                self._left.notify_all()


_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 0
_room = _Room(max(_ROOM, _memory // 256))


def _silence() -> None:
    """Ignore warnings of Pillow and libtiff about odd files.

    The filter is global, as `warnings.catch_warnings` is not thread-safe, and is checked at each call, as test runners
    reset the filters.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
    _libtiff()


@cache
def _libtiff() -> Any:
    """Pillow's libtiff, which then no longer prints its errors; None for a build of Pillow that hides it."""
    try:
        library = ctypes.CDLL(_imaging.__file__)  # also looks up symbols of the libraries that it links to
        library.TIFFSetErrorHandler(None)
    except (OSError, AttributeError):
        return None
    return library


def _load(data: bytes) -> Image.Image:
    name, image = _name(data), None
    try:
        image = _opened(data, name)
        if image.width * image.height > MAX_PIXELS:
            raise ImageRejected("too large")
        tiles: Any = getattr(image, "tile", [])
        codec = tiles[0].codec_name if tiles else ""
        if codec == "ppm":
            return _unusual_pnm(data, image, tiles[0])
        if codec in Image.DECODERS and image.width * image.height > _SLOW_PIXELS:
            raise ImageRejected(f"{name} this large is not read")
        image.load()
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected("too large") from error
    except UnidentifiedImageError as error:
        raise ImageRejected("not an image") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds of exception for damaged files
        raise ImageRejected(_fault(error, name, image, data)) from error
    return image


def _name(data: bytes) -> str | None:
    """The format of a file, as `builders.images.formats` calls it."""
    return format_of(data[:HEAD]) or ("TGA" if data.endswith(_TGA_END) else None)


def _opened(data: bytes, name: str | None) -> Image.Image:
    """The image with its header read. Raises ImageRejected for a format without a decoder, and errors of Pillow."""
    if data.startswith(_OLE):
        raise ImageRejected("OLE (FPX, MIC) is not read")
    if name is None:
        return Image.open(io.BytesIO(data), formats=_UNMARKED)
    if name not in _READ:
        raise ImageRejected(f"{name} is not read")
    # Not with Image.open, which reports every fault as an unidentified image.
    image: Any = Image.OPEN[_READ[name]][0](io.BytesIO(data), "")
    if name == "ICO":  # the largest of its pictures, whose own header states its size
        image = image.ico.getimage(image.size)
    elif name == "TIFF" and (50706 in (tags := image.tag_v2) or (330 in tags and tags.get(254, 0) & 1 == 1)):
        raise ImageRejected("camera raw is not read")  # it has DNGVersion, or SubIFDs behind a preview
    return image


def _unusual_pnm(data: bytes, image: Image.Image, tile: Any) -> Image.Image:
    """A binary PGM or PPM whose white is not 255 or 65535; Pillow takes a second per megapixel for these."""
    white = tile.args[-1]
    kind, deep = (">u2" if white > 255 else "u1"), image.mode == "I"
    shape = (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
    if len(data) - tile.offset < np.prod(shape) * np.dtype(kind).itemsize:
        raise ImageRejected("truncated")
    values = np.frombuffer(data, kind, int(np.prod(shape)), tile.offset).reshape(shape)
    full = 65535 if deep else 255
    scaled = np.minimum(values.astype(np.float32) * np.float32(full / white) + np.float32(0.5), full)
    return Image.fromarray(scaled.astype(np.uint16 if deep else np.uint8))


def _fault(error: Exception, name: str | None, image: Image.Image | None, data: bytes) -> str:
    """The reason for an error of a Pillow decoder, given the format of the file (None: unknown)."""
    said = str(error).lower()
    cut = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    cut = cut or (name == "JPEG" and "not identified" in said)  # it ends before its size
    if cut or isinstance(error, EOFError | struct.error | IndexError) or _SHORT.search(said):
        return "truncated"
    if name is None:
        return "not an image"
    if "too large for png" in said:  # compressed text of megabytes
        return "too large"
    compression = getattr(image, "tag_v2", {}).get(259, 1)
    uncoded = name == "TIFF" and _libtiff() is not None and not _libtiff().TIFFIsCODECConfigured(compression)
    return f"unsupported kind of {name}" if uncoded or _UNSUPPORTED.search(said) else "damaged"
