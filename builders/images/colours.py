"""Any picture (CMYK, Lab, palette, deep grey, transparent) as 8-bit sRGB; a colour profile is applied."""

import io
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_STRIP = 1 << 20
"""Pixels that are converted at once: a large picture is in memory once or twice, rather than five times."""

_FAMILIES = {
    "GRAY": ("L", ("1", "L", "LA")),
    "RGB ": ("RGB", ("P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "HSV")),
    "CMYK": ("CMYK", ("CMYK",)),
}
"""A profile's colour space -> the mode that it is applied to, and the modes of pictures that may have it."""

_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}

_VISIBLE = 64  # deep grey is nearly black if white divided by its brightest value is larger than this


class UnsupportedColours(ValueError):  # noqa: N818 (a verdict on the data, as `builders.images.decoding.ImageRejected` is)
    """Pixels whose colours are ambiguous; the message is the reason."""


def to_srgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as 8-bit sRGB, on white where it is transparent; the same object if it is that.

    An embedded profile is applied with the perceptual intent, and ignored if it is broken or of another colour space.
    White of 16-bit grey is what the file states (`BitsPerSample`), or 12 bits if all values fit; white of 32-bit and
    float grey is the first of 1 (only floats), 255, 4095 and 65535 that is not exceeded.

    Raises UnsupportedColours for deep grey whose white is unknown: "almost no contrast", "negative grey", "grey of an
    unknown range"; ValueError for a mode that Pillow cannot convert.
    """
    if image.mode[0] in "IF":
        image = _deep_grey(image)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    space = _applying(image)
    transparent = image.has_transparency_data
    if image.mode == "RGB" and space is None and not transparent:
        return image
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return _converted(image, space, transparent)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_converted(part, space, transparent), (0, top))
    return result


def _converted(image: Image.Image, space: tuple[str, Any] | None, transparent: bool) -> Image.Image:
    picture = image.convert("RGBA") if transparent else image
    if space is not None:
        mode, transform = space
        # Only RGBA knows what a colour key or a palette makes transparent; grey and CMYK must stay as they are.
        colours = transform.apply((picture if mode == "RGB" else image).convert(mode))
        if not transparent:
            return colours
        colours.putalpha(picture.getchannel("A"))
        picture = colours
    if not transparent:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


# --- profiles ----------------------------------------------------------------------------------------------------


def _applying(image: Image.Image) -> tuple[str, Any] | None:
    """A transform to sRGB with the mode that it is applied to; None if none is needed."""
    if image.mode == "LAB":
        return "LAB", _transform(None, "LAB")
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or len(profile) < 132:
        return None
    mode, of = _FAMILIES.get(profile[16:20].decode("latin-1"), ("", ()))
    transform = _transform(profile, mode) if image.mode in of else None
    return None if transform is None else (mode, transform)


@lru_cache(maxsize=8)  # building one takes milliseconds, and a camera's photographs share theirs
def _transform(profile: bytes | None, mode: str) -> Any:
    """From a profile (None is Lab) to sRGB; None for a broken one, or one that equals sRGB except for rounding."""
    try:
        source = ImageCms.createProfile("LAB") if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if mode == "RGB":
            chart = Image.fromarray(_chart())
            if np.abs(np.asarray(transform.apply(chart)).astype(int) - _chart()).max() <= 1:
                return None
    except Exception:  # a broken profile raises PyCMSError and others
        return None
    return transform


@cache
def _chart() -> Any:
    """A grid of colours in the RGB cube, uint8 (17, 289, 3)."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(17, 289, 3)


# --- deep grey ---------------------------------------------------------------------------------------------------


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits, or of floats, as L (or LA, if a value means transparent)."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    tags: Any = getattr(image, "tag_v2", {})
    white = _white(image, tags, low, high)
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        part = np.nan_to_num(values[top : top + rows].astype(np.float32), nan=0.0)
        levels[top : top + rows] = np.clip(part, 0, white) * np.float32(255 / white) + np.float32(0.5)
    if tags.get(262) == 0:  # WhiteIsZero, which Pillow respects only up to 8 bits
        np.subtract(255, levels, out=levels)
    grey = Image.fromarray(levels)
    grey.info.update(image.info)
    clear = grey.info.pop("transparency", None)
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _white(image: Image.Image, tags: Any, low: float, high: float) -> float:
    """The value of white in a deep grey picture with values from `low` to `high`; see `to_srgb`."""
    stated = _stated_white(image, tags)
    if stated is not None:
        white = stated
        if stated == 65535 and image.format in ("TIFF", "PNG") and high <= 4095:
            white = 4095.0  # cameras and microscopes with 12 bits, whose files state 16
    elif low < -0.01 * abs(high):
        raise UnsupportedColours("negative grey")
    elif image.mode == "F" and high <= 1.05:  # resampling overshoots a little
        white = 1.0
    else:
        white = next((white for white in (255.0, 4095.0, 65535.0) if high <= white), high)
        if image.mode == "F" and high * _VISIBLE < white:
            raise UnsupportedColours("grey of an unknown range")
    if high * _VISIBLE < (stated or white) or (stated is None and low == high):
        raise UnsupportedColours("almost no contrast")
    return white


def _stated_white(image: Image.Image, tags: Any) -> float | None:
    if image.mode == "F":
        return None
    if bits := tags.get(258):
        signed = tags.get(339, (1,))[0] == 2
        return None if bits[0] > 16 else float((1 << (bits[0] - signed)) - 1)
    return 65535.0  # PNG's, and what Pillow scales PGM and JPEG 2000 to
