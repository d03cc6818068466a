"""Image files as people have them: any format, any name, any colours, any depth; right, or refused for a reason."""

from __future__ import annotations

import io
import struct
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from builders.images.decoding import ImageRejected, decode_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def outcome(data: bytes) -> Any:
    """The decoded levels as int (h, w, 3), or the reason why there are none."""
    try:
        return np.asarray(decode_rgb(data)).astype(int)
    except ImageRejected as error:
        return error.reason


def refused_as(data: bytes, reason: str) -> bool:
    """Whether there is no picture, for that reason."""
    found = outcome(data)
    return isinstance(found, str) and found == reason


def used_as(data: bytes, levels: Any, by: float = 1) -> bool:
    """Whether a file is used, and comes out as these levels (h, w) or (h, w, 3)."""
    found = outcome(data)
    if isinstance(found, str):
        return False
    wanted = np.asarray(levels).astype(float)
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    return found.shape[:2] == wanted.shape[:2] and bool(np.abs(found - wanted).max() <= by)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth picture of many colours."""
    corners = np.array([[[200, 30, 30], [20, 180, 40]], [[30, 60, 210], [230, 220, 90]]], dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def tiff(values: Any, bits: int, kind: str, *, white_is_zero: bool = False, sample: int = 1) -> bytes:
    """A grey TIFF, uncompressed, in one strip; of 12 bits two values lie in three bytes."""
    if bits == 12:
        pairs = np.asarray(values, dtype=np.uint16).reshape(-1, 2)
        strip = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    else:
        strip = np.asarray(values).astype(kind).tobytes()
    height, width = np.shape(values)
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 8 + 2 + 10 * 12 + 4),
        (277, 1),
        (278, height),
        (279, len(strip)),
        (339, sample),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + strip


# --- which format ---------------------------------------------------------------------------------------------------

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "DIB": {},
    "TIFF": {},
    "PPM": {},
    "TGA": {},
    "SGI": {},
    "PCX": {},
    "ICO": {"sizes": [(48, 32)]},
    "JPEG2000": {"irreversible": False},
    "QOI": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_file_is_what_its_bytes_are_whatever_its_name_says(kind: str) -> None:
    data = encoded(picture(), kind, **LOSSLESS[kind])
    assert used_as(data, picture(), by=4 if kind in ("JPEG", "AVIF") else 0), outcome(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS is not read"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF is not read"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC is not read"),
        (b"\xff\x0a" + bytes(40), "JPEG XL is not read"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(40), "camera raw is not read"),
        (tiff(RAMP, 64, "<f8", sample=3), "unsupported kind of TIFF"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"RIFF\0\0\1\0WEBPVP8 ", "truncated"),
    ],
)
def test_what_no_decoder_reads_is_refused_by_its_name(data: bytes, reason: str) -> None:
    assert refused_as(data, reason)


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if kind not in ("DIB", "TGA", "JPEG2000", "AVIF")])
def test_a_file_that_is_cut_short_is_called_so(kind: str) -> None:
    data = encoded(picture(), kind, **LOSSLESS[kind])
    assert {outcome(data[: len(data) * part // 10]) for part in range(1, 9)} == {"truncated"}


def test_a_raw_file_is_not_taken_for_the_preview_in_it() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[50706] = b"\1\4\0\0"
    info.tagtype[50706] = 1
    assert refused_as(encoded(picture(), "TIFF", tiffinfo=info), "camera raw is not read")


# --- grey -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP.astype(int) * 4095 // 255, 12, ""),
        tiff(RAMP.astype(int) * 4095 // 255, 16, "<u2"),
        tiff(RAMP.astype(int) * 257, 16, "<u2"),
        tiff(65535 - RAMP.astype(int) * 257, 16, "<u2", white_is_zero=True),
        tiff(RAMP.astype(int) * 32767 // 255, 16, "<i2", sample=2),
        tiff(RAMP, 32, "<i4", sample=2),
        tiff(RAMP.astype(int) * 4095 // 255, 32, "<i4", sample=2),
        tiff(RAMP.astype(int) * 257, 32, "<u4"),
        tiff(RAMP.astype(int) * 1000, 32, "<i4", sample=2),
        tiff(RAMP / 255, 32, "<f4", sample=3),
        tiff(RAMP, 32, "<f4", sample=3),
        tiff(np.where(RAMP == 0, np.nan, RAMP / 255), 32, "<f4", sample=3),
        encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"),
        b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes(),
        b"P5 16 16 4095\n" + (RAMP.astype(int) * 4095 // 255).astype(">u2").tobytes(),
        b"Pf\n16 16\n-1.0\n" + (RAMP[::-1] / 255).astype("<f4").tobytes(),
    ],
    ids=[
        "12 bits",
        "12 bits in 16",
        "16 bits",
        "16 bits, white is zero",
        "16 bits with a sign",
        "int32 to 255",
        "int32 to 4095",
        "uint32 to 65535",
        "int32 to 255000",
        "floats to 1",
        "floats to 255",
        "floats with NaN",
        "PNG of 16 bits",
        "PGM of 16 bits",
        "PGM of 12 bits",
        "PFM",
    ],
)
def test_deep_grey_comes_out_as_value_over_white(data: bytes) -> None:
    assert used_as(data, RAMP), outcome(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.full((8, 8), 1000), 32, "<i4", sample=2), "almost no contrast"),
        (tiff(np.full((8, 8), 0.5), 32, "<f4", sample=3), "almost no contrast"),
        (tiff(np.arange(64).reshape(8, 8), 16, "<u2"), "almost no contrast"),
        (tiff(np.arange(64).reshape(8, 8) - 32, 32, "<i4", sample=2), "negative grey"),
        (tiff(np.linspace(0, 3, 64).reshape(8, 8), 32, "<f4", sample=3), "grey of an unknown range"),
    ],
    ids=["one int32", "one float", "16 bits of which six are used", "below zero", "floats up to three"],
)
def test_deep_grey_without_a_known_white_is_set_aside_and_not_black(data: bytes, reason: str) -> None:
    assert refused_as(data, reason)


# --- colours --------------------------------------------------------------------------------------------------------

# Chromaticities adapted to D50, as the profiles of the standards have them (columns red, green, blue).
ADOBE = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
P3 = [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]


def profile(columns: Sequence[Sequence[float]] | None, gamma: float) -> bytes:
    """An ICC profile of three colours, or of grey, with one gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: Sequence[float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"wtpt": xyz((0.9642, 1, 0.8249))}
    if columns is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz([row[i] for row in columns]) for i, name in enumerate((b"r", b"g", b"b"))}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    space = b"GRAY" if columns is None else b"RGB "
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(map(fixed, (0.9642, 1, 0.8249))) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def through(image: Image.Image, icc: bytes) -> Image.Image:
    """An image in sRGB, by Pillow's own ImageCms."""
    found = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("columns", [ADOBE, P3], ids=["Adobe RGB", "Display P3"])
def test_a_photograph_with_a_profile_comes_out_in_srgb(kind: str, columns: Any) -> None:
    icc = profile(columns, 2.2)
    data = encoded(picture(), kind, icc_profile=icc, **LOSSLESS[kind])
    wanted = through(Image.open(io.BytesIO(data)).convert("RGB"), icc)
    assert used_as(data, wanted), outcome(data)
    assert not used_as(data, picture(), by=8), "the profile makes a difference that can be seen"


def test_transparency_palettes_and_grey_go_through_profiles_too() -> None:
    icc, grey = profile(ADOBE, 2.2), profile(None, 1.8)
    half = Image.new("L", (48, 32), 128)
    clear = picture()
    clear.putalpha(half)
    wanted = through(picture(), icc)
    wanted.putalpha(half)
    white = Image.alpha_composite(Image.new("RGBA", (48, 32), "white"), wanted).convert("RGB")
    palette = picture().quantize(32)
    assert used_as(encoded(clear, "PNG", icc_profile=icc), white)
    assert used_as(encoded(palette, "PNG", icc_profile=icc), through(palette.convert("RGB"), icc))
    assert used_as(encoded(picture().convert("L"), "PNG", icc_profile=grey), through(picture().convert("L"), grey))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "1"])
def test_a_profile_that_is_broken_or_of_other_colours_is_passed_over(mode: str) -> None:
    image, other = picture().convert(mode), profile(None, 2.2) if mode in ("RGB", "RGBA") else profile(P3, 2.2)
    for icc in (other, b"no profile at all", profile(P3, 2.2)[:200], b"\xff" * 4000, other[:128]):
        data = encoded(image, "TIFF", icc_profile=icc)
        assert used_as(data, image.convert("RGB")), outcome(data)


def test_an_srgb_profile_changes_nothing() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert used_as(encoded(picture(), "PNG", icc_profile=icc), picture(), by=0)


def test_lab_is_converted_and_cmyk_is_not_inverted() -> None:
    source, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    coded = ImageCms.profileToProfile(picture(), source, lab, outputMode="LAB")
    assert coded is not None
    back = ImageCms.profileToProfile(coded, lab, source, outputMode="RGB")
    assert used_as(encoded(coded, "TIFF"), back), outcome(encoded(coded, "TIFF"))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert used_as(encoded(cmyk, "TIFF"), np.full((8, 8, 3), (255, 0, 0)))
    assert used_as(encoded(cmyk, "JPEG", quality=95), np.full((8, 8, 3), (255, 0, 0)), by=8)


MODES = {
    "1": ("PNG", "TIFF", "BMP", "PPM"),
    "L": ("PNG", "TIFF", "JPEG", "BMP", "JPEG2000"),
    "LA": ("PNG", "TIFF", "TGA"),
    "P": ("PNG", "TIFF", "GIF", "BMP"),
    "RGB": ("PNG", "WEBP"),
    "RGBA": ("PNG", "WEBP", "TIFF", "TGA", "ICO"),
    "CMYK": ("TIFF", "JPEG"),
    "YCbCr": ("TIFF", "JPEG"),
    "I;16": ("PNG", "TIFF"),
    "PA": ("TIFF",),
}


@pytest.mark.parametrize(("mode", "kind"), [(mode, kind) for mode, kinds in MODES.items() for kind in kinds])
def test_every_mode_and_orientation_comes_out_as_pillow_makes_it(mode: str, kind: str) -> None:
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else picture().convert(mode)
    if image.has_transparency_data and mode != "PA":
        image.putalpha(picture().convert("L"))
    for turn in range(1, 9) if kind in ("PNG", "JPEG", "WEBP", "TIFF") else (1,):
        exif = Image.Exif()
        exif[0x0112] = turn
        data = encoded(image, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        loaded = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if mode == "I;16":
            levels = np.asarray(loaded) / 257
        else:
            whole = loaded.convert("RGBA")
            levels = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB"))
        assert used_as(data, levels), (turn, outcome(data))


# --- hostile --------------------------------------------------------------------------------------------------------


def test_broken_tiff_files_are_set_aside_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    reasons = set()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        image = picture().convert("1") if compression == "group4" else picture()
        whole = encoded(image, "TIFF", compression=compression)
        for _ in range(12):
            broken = bytearray(whole)
            for place in rng.integers(8, len(broken), 6):
                broken[place] = rng.integers(256)
            reasons.add(type(outcome(bytes(broken))))
    assert str in reasons, "none of them was broken enough"
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out == ""


def test_small_files_that_unpack_to_much_take_neither_time_nor_memory() -> None:
    plain = b"P3 3000 3000 255\n" + b"1 2 3 " * 1000
    qoi = b"qoif" + struct.pack(">II", 8000, 8000) + b"\3\0" + b"\xc0" * 100
    wide = b"P5 80000 80000 255\n"
    icon = encoded(Image.new("1", (9500, 9500)), "PNG")
    icon = b"\0\0\1\0\1\0\0\0\0\0\1\0\1\0" + struct.pack("<II", len(icon), 22) + icon
    chunk = b"iTXt" + b"a\0\1\0\0\0" + __import__("zlib").compress(bytes(80 << 20))
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", __import__("zlib").crc32(chunk))
    stuffed = encoded(picture(), "PNG")
    stuffed = stuffed[:33] + text + stuffed[33:]
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [outcome(data) for data in (plain, qoi, wide, icon, stuffed)]
    assert found == ["PPM this large is not read", "QOI this large is not read", "too large", "too large", "too large"]
    assert time.process_time() - started < 3


def test_a_folder_of_all_of_these_adds_up(tmp_path: Path) -> None:
    """The tool that is for large folders, on a small one: the same reference for every file."""
    import subprocess
    import sys

    for kind, options in LOSSLESS.items():
        (tmp_path / f"{kind}.{kind.lower()[:3]}.png").write_bytes(encoded(picture(), kind, **options))
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "deep.tif").write_bytes(tiff(RAMP.astype(int) * 4095 // 255, 12, ""))
    (tmp_path / "p3.png").write_bytes(encoded(picture(), "PNG", icc_profile=profile(P3, 2.2)))
    command = [sys.executable, str(ROOT / "scripts" / "check_decoder.py"), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.stdout == f"{len(LOSSLESS) + 3} files: {len(LOSSLESS) + 2} used, 1 refused, 0 not as they should be\n"
    assert done.returncode == 0


def test_a_pixmap_of_another_white_is_rounded_to_the_nearest_level() -> None:
    values = np.arange(101, dtype=np.uint8).repeat(4)
    row = np.asarray(decode_rgb(b"P5\n101 4\n100\n" + values.tobytes()))[:, :, 0].ravel()
    assert (abs(row - values * 2.55) <= 0.51).all()
