"""From the bytes of an image file to 8-bit sRGB, or a reason why not."""

from __future__ import annotations

import ctypes
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

# Pillow registers a format when its plug-in is imported; by name, so that no other plug-in needs to be loaded.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PcxImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    PsdImagePlugin,  # noqa: F401
    QoiImagePlugin,  # noqa: F401
    SgiImagePlugin,  # noqa: F401
    SunImagePlugin,  # noqa: F401
    TgaImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
    _imaging,
)

from builders.images.colours import UnsupportedColours, to_srgb
from builders.images.formats import HEAD, format_of

MAX_PIXELS = 89_478_485
"""Pillow's default bound against decompression bombs (a quarter of a GiB as RGB). Fixed here, because Pillow's own is a
global that other libraries lift."""

_READ = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WEBP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "JPEG 2000": "JPEG2000",
    "PPM": "PPM",
    "ICO": "ICO",
    "PCX": "PCX",
    "PSD": "PSD",
    "QOI": "QOI",
    "SGI": "SGI",
    "Sun raster": "SUN",
    "TGA": "TGA",
}
"""What a file says it is -> Pillow's decoder. All of them only decode; those which start programs (EPS, WMF), need
other libraries (FPX), or take seconds for a small file (DDS, BLP) are left out."""

_UNMARKED = ("DIB", "TGA")
"""Formats without a mark at their beginning, tried when nothing else is said."""

_SLOW_PIXELS = 250_000
"""How many pixels one of Pillow's decoders that are written in Python gets through in well under a second."""

_SHORT = re.compile(
    r"truncat|not enough|eof|only got|unpack|out of range|no more images|not a \w+ file|missing dimensions|"
    r"data organization|chunk b'[^'\\]{0,3}'|incomplete checksum"
)
_UNSUPPORTED = re.compile(r"mode|unsupported|unknown|not supported|compression|palette size")
"""What Pillow says of files that end too early, and of those which are whole but that it has no code for."""

_TGA_END = b"TRUEVISION-XFILE.\x00"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

# Else what Pillow logs of a broken TIFF file is printed wherever logging is not set up.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# A photograph in JPEG 2000 takes a second of one core; its library asks for this at every picture.
os.environ.setdefault("OPJ_NUM_THREADS", "ALL_CPUS")

_ROOM = 320 << 20
"""Bytes that the pictures of all `decoded` blocks of a process may take together, where there is more than one; more on
a machine with more than 80 GB of memory."""
_LARGE = 32 << 20
_BYTES_A_PIXEL = 16
"""Pillow keeps a pixel in 4 bytes; what turns, converts or reduces a picture holds it two or three times over."""

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
    """Decode an image file to 8-bit sRGB, turned upright as its EXIF says; of an animation, the first picture.

    What the file is, its content says, not its name. Transparent parts become white, a colour profile is applied, deep
    grey is scaled so that white stays white (see `builders.images.colours`). Broken EXIF and broken profiles are
    ignored. The result carries no metadata. Safe to call from several threads.

    Raises ImageRejected with one of these reasons: "empty file", "not an image", "truncated", "damaged", "too large"
    (more than MAX_PIXELS), "X is not read" for a format X without a decoder, "unsupported kind of X" for a rare kind of
    a format, "X this large is not read" where decoding would take seconds, or a reason of `builders.images.colours`.
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
        rgb = to_srgb(image)
    except UnsupportedColours as error:
        raise ImageRejected(str(error)) from error
    except (ValueError, OSError) as error:
        raise ImageRejected("unsupported colours") from error
    # A plain picture: what Pillow opened still holds the file.
    plain = rgb._new(rgb.im) if turn is None else rgb.transpose(turn)
    plain.info.clear()
    return plain


@contextmanager
def decoded(data: bytes) -> Iterator[Image.Image]:
    """`decode_rgb` for one of several threads: waits where the pictures of the others leave no room in memory.

    The picture is closed at the end of the block: what is needed of it is made before. However large they are, those of
    one process take some hundred megabytes together, or what the largest takes alone. Raises ImageRejected, as
    `decode_rgb` does.
    """
    try:
        header = _opened(data, _name(data))
        need = min(header.width * header.height, MAX_PIXELS) * _BYTES_A_PIXEL
        del header
    except Exception:  # whatever is wrong with it, decode_rgb finds the reason
        need = 0
    with _room.taking(need):
        image = decode_rgb(data)
        try:
            yield image
        finally:
            image.close()
            if need > _LARGE:
                _trim(0)


def _no_trim(pad: int) -> None:
    """Elsewhere memory that was given back is given back."""


# glibc keeps blocks below 32 MB for later; of photographs that is hundreds of megabytes, in pieces.
_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", _no_trim) if os.name == "posix" else _no_trim


class _Room:
    """Bytes that several threads share."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._left = size, 0, threading.Condition()

    @contextmanager
    def taking(self, need: int) -> Iterator[None]:
        """Wait until there are so many bytes, or until nobody else has any."""
        with self._left:
            self._left.wait_for(lambda: not self._taken or self._taken + need <= self._size)
            self._taken += need
        try:
            yield
        finally:
            with self._left:
                self._taken -= need
                self._left.notify_all()


def _memory() -> int:
    """Bytes of memory that the machine has; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


_room = _Room(max(_ROOM, _memory() // 256))


def _silence() -> None:
    """Ignore Pillow's warnings about odd files, and libtiff's, which say nothing that the result does not.

    A filter of the whole process, because `warnings.catch_warnings` is not safe in threads; looked for at each call,
    because test runners and others put the filters back to what they were.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
    _libtiff()


@cache
def _libtiff() -> Any:
    """The libtiff that Pillow is linked to, once its errors are no longer written to the terminal: Pillow raises them.

    None for a build of Pillow that keeps its libtiff to itself; then only the noise remains.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)  # a library is also asked for what those behind it have
        library.TIFFSetErrorHandler(None)
    except (OSError, AttributeError):
        return None
    return library


def _load(data: bytes) -> Image.Image:
    """Open and decode the pixels, or raise ImageRejected."""
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
    """The format that the file has, as `builders.images.formats` calls it."""
    return format_of(data[:HEAD]) or ("TGA" if data.endswith(_TGA_END) else None)


def _opened(data: bytes, name: str | None) -> Image.Image:
    """The image with its header read. Raises ImageRejected for a format without a decoder, and what Pillow raises."""
    if data.startswith(_OLE):
        raise ImageRejected("OLE (FPX, MIC) is not read")
    if name is None:
        return Image.open(io.BytesIO(data), formats=_UNMARKED)
    if name not in _READ:
        raise ImageRejected(f"{name} is not read")
    # Not through Image.open, which says of every fault that it cannot identify the file.
    image: Any = Image.OPEN[_READ[name]][0](io.BytesIO(data), "")
    if name == "ICO":  # the largest of its pictures, whose own header says how large it is
        image = image.ico.getimage(image.size)
    elif name == "TIFF" and _is_camera_raw(image.tag_v2):
        raise ImageRejected("camera raw is not read")
    return image


def _is_camera_raw(tags: Any) -> bool:
    """Whether the first picture of a TIFF file is but the preview in a camera's raw file."""
    return 50706 in tags or (330 in tags and tags.get(254, 0) & 1 == 1)  # DNGVersion; SubIFDs behind a reduced picture


def _unusual_pnm(data: bytes, image: Image.Image, tile: Any) -> Image.Image:
    """A binary PGM or PPM whose white is not 255 or 65535, for which Pillow takes a second for each megapixel."""
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
    """The reason for what one of Pillow's decoders raised over a file of this format (None: of none that is known)."""
    said = str(error).lower()
    cut = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    cut = cut or (name == "JPEG" and "not identified" in said)  # it ends before the size is said
    if cut or isinstance(error, EOFError | struct.error | IndexError) or _SHORT.search(said):
        return "truncated"
    if name is None:
        return "not an image"
    if "too large for png" in said:  # text that unpacks to megabytes
        return "too large"
    compression = getattr(image, "tag_v2", {}).get(259, 1)
    uncoded = name == "TIFF" and _libtiff() is not None and not _libtiff().TIFFIsCODECConfigured(compression)
    return f"unsupported kind of {name}" if uncoded or _UNSUPPORTED.search(said) else "damaged"
