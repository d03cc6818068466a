"""One path from pixels to bytes: lossless where it says so, the stated JPEG tables, equal bytes for equal pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from hfsyn.images.encoding import encode
from hfsyn.recipes.recipe import StorePart

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_png_and_webp_are_lossless(kind: str) -> None:
    image = opened(encode(PIXELS, StorePart(format=kind)))  # type: ignore[arg-type]
    assert image.format == kind.upper()
    assert (np.asarray(image) == PIXELS).all()


@pytest.mark.parametrize(("subsampling", "expected"), [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_jpeg_has_the_stated_subsampling(subsampling: str, expected: int) -> None:
    image = opened(encode(PIXELS, StorePart(subsampling=subsampling)))  # type: ignore[arg-type]
    assert image.format == "JPEG"
    assert JpegImagePlugin.get_sampling(image) == expected


def test_jpeg_quality_96_has_the_tables_of_imagenets_own_files() -> None:
    image = opened(encode(PIXELS, StorePart()))
    # Quality 96 scales the standard luminance table to 8 %: its first entry, 16, becomes 1 and its largest, 121, 10.
    table = image.quantization[0]  # type: ignore[attr-defined]
    assert (table[0], max(table)) == (1, 10)


def test_a_real_and_a_synthetic_image_with_equal_pixels_have_equal_bytes() -> None:
    for kind in ("jpeg", "png", "webp"):
        store = StorePart(format=kind)  # type: ignore[arg-type]
        assert encode(PIXELS, store) == encode(Image.fromarray(PIXELS), store) == encode(PIXELS.copy(), store)


def test_size_sets_the_short_side_and_keeps_the_shape() -> None:
    assert opened(encode(PIXELS, StorePart(size=12))).size == (12, 20)
    assert opened(encode(PIXELS, StorePart(size=24))).size == (24, 40)
    assert opened(encode(PIXELS, StorePart(size=None))).size == (24, 40)


def test_the_bytes_are_pillows_own_by_whatever_way(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG", quality=96, subsampling="4:4:4")
    assert encode(PIXELS, StorePart()) == plain.getvalue()
    monkeypatch.delattr("os.memfd_create", raising=False)
    assert encode(PIXELS, StorePart()) == plain.getvalue()
