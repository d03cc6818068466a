"""Check the decode path against Pillow itself, file by file.

    python scripts/check_decoder.py --data FOLDER [--all] [--json]

Every file below FOLDER whose ending says that it is an image (with --all: every file) is either used or refused. One
that is used must equal what Pillow's own functions make of it (turned upright, on white, converted; profiles through
ImageCms; grey deeper than 8 bits as value over white) within one grey level. One that is refused must be refused with a
reason that is true of it. None may take over a second of processor time. The reference here shares no code with the
decode path. Exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from builders.images.decoding import ImageRejected, decode_rgb
from builders.images.formats import IMAGE_SUFFIXES

SECONDS = 1.0
"""Of processor time: on a machine that does other things too, the clock says little."""

_CALLED = {"EMF": "WMF", "McIDAS": "MCIDAS", "XV thumbnail": "XVThumb", "Photo CD": "PCD", "camera raw": "TIFF"}
"""What a refusal names -> what Pillow calls that format, where it is not the same word."""


@dataclass(frozen=True)
class Verdict:
    """What became of one file."""

    file: str
    outcome: str
    """``used``, or the reason why not."""
    problem: str
    """What is wrong with that; empty where nothing is."""
    seconds: float


def check(data: bytes, name: str = "") -> Verdict:
    """Decode one file both ways and compare."""
    found, outcome, seconds = _decoded(data)
    if seconds > SECONDS:  # the other work of the machine shows in processor time as well
        seconds = min(seconds, *(_decoded(data)[2] for _ in range(2)))
    problem = _unequal(data, found) if outcome == "used" else _untrue(data, outcome)
    if not problem and seconds > SECONDS:
        problem = f"took {seconds:.1f} s"
    return Verdict(name, outcome, problem, seconds)


def _decoded(data: bytes) -> tuple[Any, str, float]:
    started = time.process_time()
    found: Any = None
    try:
        found, outcome = np.asarray(decode_rgb(data)), "used"
    except ImageRejected as error:
        outcome = error.reason
    return found, outcome, time.process_time() - started


def _unequal(data: bytes, found: Any) -> str:
    try:
        wanted = np.asarray(reference(_loaded(data))).astype(int)
    except Exception as error:  # whatever Pillow raises: then the file should not have been used
        return f"used, and Pillow says: {type(error).__name__} {error}"
    if wanted.shape != found.shape:
        return f"{found.shape}, and {wanted.shape} is right"
    most = int(np.abs(wanted - found.astype(int)).max())
    return f"differs by up to {most} levels" if most > 1 else ""


def _loaded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def reference(image: Image.Image) -> Image.Image:
    """A loaded image as Pillow's own functions make it upright 8-bit RGB on white."""
    if image.mode[0] in "IF":
        image = _grey_reference(image)
    image = ImageOps.exif_transpose(image)
    if image.mode == "LAB":
        return _to_srgb(image, ImageCms.createProfile("LAB"), "LAB")
    colours, alpha = image, None
    if image.has_transparency_data:
        whole = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        alpha = whole.getchannel("A")
        colours = image.convert("L") if image.mode in ("L", "LA") else whole.convert("RGB")
    rgb = _through_profile(colours, image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    white = Image.new("RGBA", image.size, "white")
    rgb.putalpha(alpha)
    return Image.alpha_composite(white, rgb).convert("RGB")


def _through_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[str(opened.profile.xcolor_space)]
        if (mode == "RGB") == (image.mode in ("1", "L", "CMYK")) or (mode == "CMYK") != (image.mode == "CMYK"):
            return image.convert("RGB")
        return _to_srgb(image.convert(mode), opened, mode)
    except (KeyError, OSError, ImageCms.PyCMSError):  # none, broken, or of other colours than the image has
        return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: Any, mode: str) -> Image.Image:
    found = ImageCms.profileToProfile(image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert found is not None  # it is None in place only
    return found


def _grey_reference(image: Image.Image) -> Image.Image:
    """Value over white: as the file states it, or the first of the usual ones that holds every value."""
    values = np.asarray(image).astype(np.float64)
    values = np.where(np.isnan(values), 0, values)
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    white = 2.0 ** (bits - signed) - 1 if image.mode != "F" and bits <= 16 else 0.0
    if white == 65535 and values.max() <= 4095 and image.format in ("PNG", "TIFF"):
        white = 4095.0
    if not white:
        usual = (1.0, 255.0, 4095.0, 65535.0) if image.mode == "F" else (255.0, 4095.0, 65535.0)
        white = next((value for value in usual if values.max() <= value * 1.05), float(values.max()))
    levels = np.clip(values / white, 0, 1) * 255
    if tags.get(262) == 0:
        levels = 255 - levels
    grey = Image.fromarray(np.round(levels).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.paste(255, mask=Image.fromarray(np.where(values == clear, 255, 0).astype(np.uint8)))
    grey.info["exif"] = image.getexif().tobytes()
    return grey


def _untrue(data: bytes, reason: str) -> str:
    """What is false about a refusal; empty where it is true."""
    try:
        image = _loaded(data)
        if str(image.format) in ("TIFF", "PNG"):
            image.getexif()
    except Exception:  # what Pillow cannot load nobody expects to be used
        return "" if data or reason == "empty file" else f"called '{reason}', and it is empty"
    wide, said = image.mode[0] in "IF", f"refused as '{reason}', and Pillow reads it ({image.format} {image.mode})"
    if reason.endswith(" is not read"):
        named = reason.removesuffix(" is not read").removesuffix(" this large")
        if named.startswith("OLE") or _CALLED.get(named, named) == image.format:
            return ""
        return "" if "this large" in reason and image.width * image.height > 200_000 else said
    if reason == "too large":
        return "" if image.width * image.height > 80_000_000 else said
    values = np.asarray(image).astype(np.float64) if wide else np.zeros(1)
    high, low = float(np.nanmax(values)), float(np.nanmin(values))
    true = {
        "almost no contrast": wide and (high < 1024 or high == low),
        "negative grey": wide and low < 0,
        "grey of an unknown range": image.mode == "F" and 1 < high < 4,
    }
    return "" if true.get(reason) else said


def files_of(folder: Path, every: bool) -> list[Path]:
    """The files to check, sorted."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if every or path.suffix.lower() in IMAGE_SUFFIXES]


def main() -> int:
    """Check a folder and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder of files, looked through with its subfolders"
    )
    parser.add_argument("--all", action="store_true", help="every file, whatever its ending")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.init()
    verdicts = [check(path.read_bytes(), os.fspath(path)) for path in files_of(options.data, options.all)]
    if options.json:
        for verdict in verdicts:
            print(json.dumps(asdict(verdict)))
    outcomes, problems = Counter(verdict.outcome for verdict in verdicts), [v for v in verdicts if v.problem]
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}", file=sys.stderr)
    for verdict in problems:
        print(f"{verdict.file}: {verdict.problem}", file=sys.stderr)
    slowest = max(verdicts, key=lambda verdict: verdict.seconds, default=Verdict("", "", "", 0))
    print(f"slowest: {slowest.seconds:.2f} s of processor time, {slowest.file}", file=sys.stderr)
    print(
        f"{len(verdicts)} files: {outcomes['used']} used, {len(verdicts) - outcomes['used']} refused, "
        f"{len(problems)} not as they should be"
    )
    return 1 if problems or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
