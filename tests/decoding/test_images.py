"""Decoding: what is an image becomes upright 8-bit RGB, what is not is rejected with a reason."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from builders.images.decoding import MAX_PIXELS, ImageRejected, decode_rgb

RED, GREEN = (200, 30, 30), (20, 180, 40)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(left=RED, right=GREEN, size=(16, 8)):
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def close(pixel, colour, by=12):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= by


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_common_formats_decode_to_rgb_without_metadata(kind):
    image = decode_rgb(encoded(two_halves(), kind, **({"dpi": (72, 72)} if kind != "WEBP" else {})))

    assert (image.mode, image.size, image.info) == ("RGB", (16, 8), {})
    assert close(image.getpixel((2, 4)), RED)
    assert close(image.getpixel((13, 4)), GREEN)


def test_the_first_picture_of_an_animation_is_taken():
    frames = [Image.new("P", (4, 4), 0), Image.new("P", (4, 4), 1)]
    for frame in frames:
        frame.putpalette([*RED, *GREEN] + [0] * 762)

    image = decode_rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file, whatever its name says\n" * 20, "not an image"),
        (b"\x00" * 1000, "not an image"),
        (encoded(two_halves(size=(64, 64)), "JPEG")[:-300], "truncated"),
        (encoded(two_halves(size=(64, 64)), "JPEG")[:40], "truncated"),
        (encoded(two_halves(size=(64, 64)), "PNG")[:-60], "truncated"),
        (b"\xff\xd8", "truncated"),
    ],
    ids=["empty", "text", "zeros", "half a jpeg", "head of a jpeg", "half a png", "two bytes"],
)
def test_what_is_no_whole_image_is_rejected_with_its_reason(data, reason):
    with pytest.raises(ImageRejected) as error:
        decode_rgb(data)

    assert error.value.reason == str(error.value) == reason


def test_truncated_images_are_rejected_although_another_library_lets_them_pass(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)

    with pytest.raises(ImageRejected, match="truncated"):
        decode_rgb(encoded(two_halves(size=(64, 64)), "JPEG")[:-300])


def test_bytes_flipped_at_random_give_an_image_or_a_reason_but_no_other_error():
    rng = np.random.default_rng(0)
    whole = {kind: encoded(two_halves(size=(32, 32)), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")}
    reasons = set()
    for _ in range(60):
        for data in whole.values():
            broken = bytearray(data)
            for place in rng.integers(0, len(broken), 4):
                broken[place] = rng.integers(256)
            try:
                assert decode_rgb(bytes(broken)).mode == "RGB"
            except ImageRejected as error:
                reasons.add("unsupported" if error.reason.startswith("unsupported kind of ") else error.reason)

    assert reasons <= {"truncated", "damaged", "not an image", "too large", "unsupported colours", "unsupported"}


def test_a_decompression_bomb_is_rejected_by_its_size_alone():
    side = int(MAX_PIXELS**0.5) + 1
    bomb = encoded(Image.new("1", (side, side)), "PNG")

    assert len(bomb) < 100_000
    with pytest.raises(ImageRejected, match="too large"):
        decode_rgb(bomb)


def test_cmyk_jpegs_are_not_inverted():
    image = decode_rgb(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))

    assert close(image.getpixel((4, 4)), (255, 0, 0), by=8)


def test_16_bit_grey_is_scaled_and_not_clipped():
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257

    image = decode_rgb(encoded(Image.fromarray(grey), "PNG"))

    values = np.asarray(image)
    assert (values[..., 0] == np.arange(256).reshape(16, 16)).all()
    assert (values[..., 0] == values[..., 2]).all()


def test_transparency_becomes_white():
    rgba = Image.new("RGBA", (4, 4), (*RED, 255))
    rgba.putpixel((0, 0), (*GREEN, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN] + [0] * 762)
    palette.putpixel((1, 0), 1)

    image = decode_rgb(encoded(rgba, "PNG"))
    indexed = decode_rgb(encoded(palette, "PNG", transparency=b"\x00\xff"))
    grey = decode_rgb(encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"))

    assert [image.getpixel(place) for place in ((0, 0), (2, 2))] == [(255, 255, 255), RED]
    assert close(image.getpixel((1, 0)), (127, 127, 127), by=1)
    assert [indexed.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), GREEN]
    assert grey.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_an_image_of_one_pixel_is_an_image(mode):
    assert decode_rgb(encoded(Image.new(mode, (1, 1)), "PNG")).size == (1, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = two_halves()
    stored = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation

    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        image = decode_rgb(encoded(stored, kind, exif=exif))
        assert image.size == (16, 8), kind
        assert close(image.getpixel((2, 4)), RED), kind
        assert close(image.getpixel((13, 4)), GREEN), kind


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00" + b"\xff" * 40,
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 500) + b"\x12\x01\x03\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHI4s", 1, 0x0112, 2, 3, b"abc\x00"),
        b"Exif\x00\x00",
    ],
    ids=["no header", "no tags", "too many tags", "orientation is text", "nothing"],
)
def test_broken_exif_does_not_cost_the_image(exif):
    image = decode_rgb(encoded(two_halves(), "JPEG", exif=exif))

    assert image.size == (16, 8)
    assert close(image.getpixel((2, 4)), RED)


def test_nothing_is_said_and_threads_do_not_mind_each_other():
    loud = encoded(two_halves(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 500))
    palette = Image.new("P", (8, 8))
    palette.putpalette(list(range(256)) * 3)
    batch = [loud, encoded(palette, "PNG", transparency=b"\x00\x10\xff"), encoded(two_halves(), "JPEG"), b"text"] * 25

    def outcome(data):
        try:
            return decode_rgb(data).tobytes()
        except ImageRejected as error:
            return error.reason

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(outcome, batch))

    assert together == [outcome(data) for data in batch]
    assert together[3] == "not an image"
