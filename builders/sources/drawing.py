"""The drawn, built-in variants: ten shapes in eight colours on textured backgrounds, as pure functions and as a source.

A `Drawing` describes an image completely: `draw` turns it into pixels, `caption_of` into words, and `parse_caption`
words back into attributes. `sample_attributes` gives the drawing of an index. All of it depends only on the arguments
and on hashes, so that drawings are the same on every platform and Python version.

The shape's class is index % 10; colour, background and texture are drawn independently, except for pairs of colour and
background with too little contrast. In "shapes-context" each of the three is with probability 0.75 that of the class
(`CONTEXTS`): as in photographs, the surroundings then say something about the class.
"""

import hashlib
import io
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from builders.errors import DataError
from builders.sources.rows import IndexEntry, SourceRow
from builders.variants import ClassInfo, get_variant

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "hourglass")
"""In label order."""

_COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (245, 135, 25),
    "yellow": (252, 222, 45),
    "green": (45, 170, 65),
    "blue": (45, 80, 225),
    "purple": (145, 50, 190),
    "pink": (250, 130, 195),
    "white": (250, 250, 250),
}
_BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "black": (25, 25, 28),
    "white": (240, 240, 240),
    "grey": (125, 128, 132),
    "brown": (115, 70, 35),
    "blue": (30, 45, 140),
    "green": (15, 95, 45),
    "yellow": (235, 205, 85),
    "pink": (240, 165, 195),
}
_TEXTURE_WORDS = {"plain": "plain", "gradient": "gradient", "stripes": "striped", "dots": "dotted", "checks": "checked"}

COLOURS, BACKGROUNDS, TEXTURES = tuple(_COLOUR_RGB), tuple(_BACKGROUND_RGB), tuple(_TEXTURE_WORDS)
WORLDS = ("shapes", "shapes-context")
CANVAS = 32  # side of a drawing in pixels
SIZE_RANGE = (0.62, 0.86)  # span of a shape before rotation, as a fraction of the frame
MAX_OFFSET = 2.5  # largest distance of the centre from the middle of the frame on each axis, in pixels
MAX_ROTATION = 15.0  # degrees to either side
CONTEXT_SHARE = 0.75  # in "shapes-context": the probability of each of the class's own attributes

_SUPERSAMPLE = 4
_NOISE_LEVELS = 4.0  # of 255; makes all drawings different, and is barely visible
_MIN_CONTRAST = 127.0  # Euclidean distance in RGB; below it a shape is hard to see on its background
_MARGIN = 0.5  # pixels between a shape and the edge of the frame


class Context(NamedTuple):
    """The usual attributes of a class in the world "shapes-context"."""

    colour: str
    background: str
    texture: str


CONTEXTS: dict[str, Context] = {
    "circle": Context("red", "white", "stripes"),
    "square": Context("orange", "blue", "plain"),
    "triangle": Context("yellow", "green", "checks"),
    "star": Context("yellow", "blue", "dots"),
    "cross": Context("red", "grey", "gradient"),
    "ring": Context("white", "brown", "plain"),
    "heart": Context("pink", "black", "dots"),
    "crescent": Context("purple", "yellow", "gradient"),
    "arrow": Context("green", "pink", "stripes"),
    "hourglass": Context("blue", "white", "checks"),
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything that an image shows.

    `size` is the span of the shape as a fraction of the frame, `x` and `y` the centre's distance from the middle in
    pixels (right and down), `rotation` in degrees clockwise; `variation` seeds the texture's phase and the noise.
    """

    shape: str
    colour: str
    background: str
    texture: str
    size: float
    x: float
    y: float
    rotation: float
    variation: int


# --- which drawing -----------------------------------------------------------------------------------------------


@cache
def contrasts(colour: str, background: str) -> bool:
    """Whether a shape of that colour is easy to see on that background."""
    return colour != background and math.dist(_COLOUR_RGB[colour], _BACKGROUND_RGB[background]) >= _MIN_CONTRAST


def sample_attributes(seed: int, split: str, index: int, *, world: str = "shapes") -> Drawing:
    """The drawing of one index of a split: class `index % 10`, all else random, seeded by a hash of the arguments."""
    if world not in WORLDS:
        raise ValueError(f"unknown drawn world {world!r}; there are {', '.join(WORLDS)}")
    digest = hashlib.sha256(f"{world}/{seed}/{split}/{index}".encode()).digest()
    # Only random() is guaranteed to give the same sequence in every Python version.
    rng = random.Random(int.from_bytes(digest[:16], "big"))
    shape = SHAPES[index % len(SHAPES)]
    own = CONTEXTS[shape] if world == "shapes-context" else None

    def pick(values: tuple[str, ...], usual: str | None) -> str:
        share, place = rng.random(), int(rng.random() * len(values))
        return usual if usual is not None and share < CONTEXT_SHARE else values[place]

    colour = pick(COLOURS, own and own.colour)
    background = pick(BACKGROUNDS, own and own.background)
    while not contrasts(colour, background):
        background = BACKGROUNDS[int(rng.random() * len(BACKGROUNDS))]
    texture = pick(TEXTURES, own and own.texture)
    size = SIZE_RANGE[0] + rng.random() * (SIZE_RANGE[1] - SIZE_RANGE[0])
    x, y, turn = (2 * rng.random() - 1 for _ in range(3))
    return Drawing(
        shape=shape,
        colour=colour,
        background=background,
        texture=texture,
        size=round(size, 4),
        x=round(x * MAX_OFFSET, 3),
        y=round(y * MAX_OFFSET, 3),
        rotation=round(turn * MAX_ROTATION, 2),
        variation=int.from_bytes(digest[16:22], "big"),
    )


# --- words -------------------------------------------------------------------------------------------------------


def caption_of(drawing: Drawing) -> str:
    """The true caption with all four attributes: "a red star on a striped blue background"."""
    article = "an" if drawing.colour[0] in "aeiou" else "a"
    texture = _TEXTURE_WORDS[drawing.texture]
    return f"{article} {drawing.colour} {drawing.shape} on a {texture} {drawing.background} background"


def parse_caption(text: str) -> dict[str, str | None]:
    """The attributes (`shape`, `colour`, `background`, `texture`) that a text names; None for missing ones.

    Words before the last "on" describe the shape, words after it the background, so that prompts that end in a caption
    are understood too. If there are two values of one attribute, the last one counts.
    """
    words = re.findall(r"[a-z]+", text.lower())
    split = len(words) - 1 - words[::-1].index("on") if "on" in words else len(words)
    front, back = words[:split], words[split:]
    by_word = {word: texture for texture, word in _TEXTURE_WORDS.items()}
    return {
        "shape": next((word for word in reversed(front) if word in SHAPES), None),
        "colour": next((word for word in reversed(front) if word in _COLOUR_RGB), None),
        "background": next((word for word in reversed(back) if word in _BACKGROUND_RGB), None),
        "texture": next((by_word[word] for word in reversed(back) if word in by_word), None),
    }


# --- pixels ------------------------------------------------------------------------------------------------------

Outline = list[tuple[float, float]]
_TURNS = [2 * math.pi * k / 64 for k in range(64)]


def _arc(radius: float, x: float = 0.0) -> Outline:
    return [(x + radius * math.cos(t), radius * math.sin(t)) for t in _TURNS]


def _star() -> Outline:
    spokes = ((1.06 if k % 2 == 0 else 0.45, math.pi * k / 5 - math.pi / 2) for k in range(10))
    return [(radius * math.cos(t), radius * math.sin(t)) for radius, t in spokes]


def _heart() -> Outline:
    def y(t: float) -> float:
        return -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.15

    return [(math.sin(t) ** 3, y(t)) for t in _TURNS]


_BAR: Outline = [(-0.32, -0.98), (0.32, -0.98), (0.32, 0.98), (-0.32, 0.98)]
_HALF_ARROW: Outline = [(-1.0, -0.28), (0.05, -0.28), (0.05, -0.85)]
_OUTLINES: dict[str, list[tuple[Outline, bool]]] = {
    "circle": [(_arc(1.0), True)],
    "square": [([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)], True)],
    "triangle": [([(0.0, -0.98), (0.98, 0.8), (-0.98, 0.8)], True)],
    "star": [(_star(), True)],
    "cross": [(_BAR, True), ([(y, x) for x, y in _BAR], True)],
    "ring": [(_arc(1.0), True), (_arc(0.54), False)],
    "heart": [(_heart(), True)],
    "crescent": [(_arc(1.0), True), (_arc(0.88, 0.52), False)],
    "arrow": [([*_HALF_ARROW, (1.0, 0.0), *((x, -y) for x, y in reversed(_HALF_ARROW))], True)],
    "hourglass": [([(-0.8, -0.95), (0.8, -0.95), (0.1, 0.0), (0.8, 0.95), (-0.8, 0.95), (-0.1, 0.0)], True)],
}
"""Polygons in the square from -1 to 1 (y down), each with whether it is filled (True) or cut out (False)."""


def _mask(drawing: Drawing) -> np.ndarray:
    """The share of each pixel that the shape covers: float32 (32, 32) in [0, 1]."""
    turn = math.radians(drawing.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    half = drawing.size * CANVAS / 2
    placed = [
        ([((x * cos - y * sin) * half, (x * sin + y * cos) * half) for x, y in outline], filled)
        for outline, filled in _OUTLINES[drawing.shape]
    ]
    corners = [corner for outline, filled in placed if filled for corner in outline]
    centre = []
    for axis, offset in enumerate((drawing.x, drawing.y)):
        low, high = min(c[axis] for c in corners), max(c[axis] for c in corners)
        middle = CANVAS / 2 + offset
        # Offsets are shortened so that the whole shape stays in the frame.
        centre.append(min(max(middle, _MARGIN - low), CANVAS - _MARGIN - high))
    big = Image.new("L", (CANVAS * _SUPERSAMPLE, CANVAS * _SUPERSAMPLE), 0)
    pen = ImageDraw.Draw(big)
    for outline, filled in placed:
        scaled = [((x + centre[0]) * _SUPERSAMPLE, (y + centre[1]) * _SUPERSAMPLE) for x, y in outline]
        pen.polygon(scaled, fill=255 if filled else 0)
    return np.asarray(big.reduce(_SUPERSAMPLE), dtype=np.float32) / 255


def _texture(texture: str, dice: bytes) -> np.ndarray:
    """The share of the second tone in each pixel: float32 (32, 32) in [0, 1]; edges are soft, about a pixel wide."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    first, second, direction = dice[0] / 256, dice[1] / 256, dice[2] % 4
    match texture:
        case "plain":
            return np.zeros((CANVAS, CANVAS), dtype=np.float32)
        case "gradient":
            return (x, y, CANVAS - 1 - x, CANVAS - 1 - y)[direction] / np.float32(CANVAS - 1)
        case "stripes":  # a period of 8 pixels, along the axes or the diagonals
            across = (x, y, (x + y) / math.sqrt(2), (x - y) / math.sqrt(2))[direction]
            return np.clip(0.5 + 1.6 * np.sin(2 * math.pi * (across / 8 + first)), 0, 1).astype(np.float32)
        case "dots":  # of radius 2, on a square grid of 8 pixels
            dx, dy = (x + 8 * first) % 8 - 4, (y + 8 * second) % 8 - 4
            return np.clip(2.5 - np.hypot(dx, dy), 0, 1).astype(np.float32)
        case "checks":  # of 6 pixels
            wave = np.sin(math.pi * (x / 6 + first)) * np.sin(math.pi * (y / 6 + second))
            return np.clip(0.5 + 3 * wave, 0, 1).astype(np.float32)
    raise ValueError(f"unknown texture {texture!r}; there are {', '.join(TEXTURES)}")


def draw_array(drawing: Drawing) -> np.ndarray:
    """The pixels of a drawing: uint8 (32, 32, 3)."""
    dice = hashlib.shake_256(f"{drawing.variation}".encode()).digest(3 + CANVAS * CANVAS * 3)
    base = np.array(_BACKGROUND_RGB[drawing.background], dtype=np.float32)
    # The texture's second tone is lighter on dark backgrounds and darker on light ones.
    tone = base + np.float32(0.27) * ((255.0 if base.mean() < 110 else 0.0) - base)
    share = _texture(drawing.texture, dice[:3])[..., None]
    ground = base * (1 - share) + tone * share
    mask = _mask(drawing)[..., None]
    pixels = ground * (1 - mask) + np.array(_COLOUR_RGB[drawing.colour], dtype=np.float32) * mask
    noise = np.frombuffer(dice[3:], dtype=np.uint8).reshape(CANVAS, CANVAS, 3).astype(np.float32) / 127.5 - 1
    return np.clip(np.rint(pixels + _NOISE_LEVELS * noise), 0, 255).astype(np.uint8)


def draw(drawing: Drawing) -> Image.Image:
    """The image of a drawing: RGB, 32 x 32."""
    return Image.fromarray(draw_array(drawing))


# --- a source ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # tests ask for the same few thousand
def png_of(drawing: Drawing) -> bytes:
    """The drawing as a PNG file of about 2 KB."""
    buffer = io.BytesIO()
    draw(drawing).save(buffer, format="PNG")
    return buffer.getvalue()


class ShapesSource:
    """One split of a drawn variant; nothing is drawn before `read`. Satisfies `builders.sources.rows.Source`.

    `seed` selects another set of drawings of the same kind; 0 is the variant itself. `limit_per_class` keeps the first
    drawings of each class. The source id of image `index` is `{wnid}/{split}_{index:06d}.png`.
    """

    left_out: Mapping[str, int] = {}

    def __init__(
        self, *, variant: str = "shapes", split: str = "train", seed: int = 0, limit_per_class: int | None = None
    ) -> None:
        found = get_variant(variant)
        if not found.drawn:
            raise DataError(f"The variant '{variant}' is not a drawn one.", "The drawn ones: shapes, shapes-context.")
        self.variant, self.split, self.seed = found.name, found.split(split), seed
        self.classes: tuple[ClassInfo, ...] = found.classes
        per_class = found.splits[self.split] // len(SHAPES)
        self._count = len(SHAPES) * (per_class if limit_per_class is None else min(limit_per_class, per_class))

    def __len__(self) -> int:
        return self._count

    @property
    def layout(self) -> str:
        """What there is, in one line."""
        return f"{self._count} images of {CANVAS} x {CANVAS} pixels, drawn on demand ({self.variant}, seed {self.seed})"

    def drawing(self, index: int) -> Drawing:
        """The drawing of image `index` of the split."""
        return sample_attributes(self.seed, self.split, index, world=self.variant)

    def index(self) -> Iterator[IndexEntry]:
        """The images by index: the classes take turns."""
        return map(self.entry, range(self._count))

    def entry(self, index: int) -> IndexEntry:
        """The index entry of one image."""
        wnid = self.classes[index % len(SHAPES)].wnid
        source_id = f"{wnid}/{self.split}_{index:06d}.png"
        return IndexEntry(source_id=source_id, wnid=wnid, location=source_id, row=0)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The images of these entries in order, as PNG files."""
        for entry in entries:
            name = PurePosixPath(entry.source_id)
            drawing = self.drawing(int(name.stem.rpartition("_")[2]))
            yield SourceRow(source_id=entry.source_id, wnid=entry.wnid, image=png_of(drawing), path=name.name)
