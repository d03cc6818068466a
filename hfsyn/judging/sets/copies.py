"""Copies of pictures that are not equal bytes: smaller, cropped, mirrored, brighter, turned a little, encoded again.

Each picture is kept as 32 x 32 pixels. For each picture its most alike ones are looked up by 8 x 8 colours, of the
whole and of five crops, and mirrored. These few are then laid over each other: at every place and at seven scales the
correlation of their colours is computed, with brightness and contrast taken out (normalised cross-correlation; J. P.
Lewis, "Fast normalized cross-correlation", 1995), and the best one counts. Written out here, since libraries for
perceptual hashes lose crops, and those for local features need a corner to hold on to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
"""Pixels of a thumbnail's side: as few as still tell photographs of one scene apart."""
COPY = 0.64
"""Correlation from which two pictures count as copies; `scripts/check_copies.py` says what it finds and what not."""
_COARSE = 8
_CANDIDATES = 8  # pictures that are laid over each one
_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # sides of a crop, as shares of the whole
_CROPS = ((0, 0, 1), (0.1, 0.1, 0.8), (0, 0, 0.8), (0.2, 0, 0.8), (0, 0.2, 0.8), (0.2, 0.2, 0.8))  # left, top, side
_ANGLES = (-3.0, 3.0)
_INNER = 26 / 32  # side of the middle of a turned picture that has no empty corner; even, so that pixels meet pixels
_FAINT = 8.0  # grey levels of local contrast below which details fade out: the noise of an encoder
_FLAT = 2.0  # grey levels of deviation below which a picture shows nothing that could be a copy
_ROWS = 512  # pictures of a block of likenesses, and pairs that are laid over each other at once


@dataclass(frozen=True)
class Copies:
    """Pairs of pictures, by their numbers, most alike first."""

    pairs: Sequence[tuple[int, int]]
    likeness: Sequence[float]  # of each pair, `COPY` to 1


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 (32, 32, 3), whatever its shape."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(small, dtype=np.uint8)


def copies_within(thumbnails: np.ndarray, *, least: float = COPY) -> Copies:
    """The copies among pictures, uint8 (n, 32, 32, 3); each pair once, the smaller number first."""
    found = _copies(thumbnails, thumbnails, least, itself=True)
    once: dict[tuple[int, int], float] = {}
    for (a, b), likeness in found.items():
        pair = (min(a, b), max(a, b))
        once[pair] = max(likeness, once.get(pair, 0.0))
    return _sorted(once)


def copies_between(mine: np.ndarray, others: np.ndarray, *, least: float = COPY) -> Copies:
    """The copies among the pairs of one of `mine` and one of `others`, uint8 (n, 32, 32, 3) each."""
    return _sorted(_copies(mine, others, least, itself=False))


def _sorted(found: dict[tuple[int, int], float]) -> Copies:
    order = sorted(found, key=lambda pair: (-found[pair], pair))
    return Copies(order, [found[pair] for pair in order])


def _copies(mine: np.ndarray, others: np.ndarray, least: float, *, itself: bool) -> dict[tuple[int, int], float]:
    """Likeness of the pairs that reach `least`."""
    import torch

    if not len(mine) or not len(others):
        return {}
    pairs = torch.cat(list(_candidates(mine, others, itself=itself)))
    telling = [torch.tensor([one.std() >= _FLAT for one in some]) for some in (mine, others)]
    pairs = pairs[telling[0][pairs[:, 0]] & telling[1][pairs[:, 1]]]
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(pairs), _ROWS):
        some = pairs[start : start + _ROWS]
        sides = [x[some[:, side].numpy()] for side, x in enumerate((mine, others))]
        a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in sides)
        for pair, likeness in zip(some.tolist(), overlaid(a, b).tolist(), strict=True):
            if likeness >= least:
                found[pair[0], pair[1]] = min(likeness, 1.0)
    return found


def _candidates(mine: np.ndarray, others: np.ndarray, *, itself: bool) -> Iterator[Any]:
    """Pairs of numbers, int64 (m, 2), a block of `mine` at a time: those that are most alike in coarse colours."""
    import torch

    whole = _coarse(others, _CROPS[0])
    views = [_coarse(mine[:, :, ::flip], crop) for flip in (1, -1) for crop in _CROPS]
    parts = [whole.T] + [_coarse(others, crop).T for crop in _CROPS[1:]]
    for start in range(0, len(mine), _ROWS):
        rows = slice(start, min(start + _ROWS, len(mine)))
        numbers = torch.arange(rows.start, rows.stop)
        best = torch.full((len(numbers), len(others)), -2.0)
        for view in views:  # a crop of mine against the whole of the others: the other may be the copy
            best = torch.maximum(best, view[rows] @ parts[0])
        for plain in (views[0], views[len(_CROPS)]):
            for part in parts[1:]:
                best = torch.maximum(best, plain[rows] @ part)
        if itself:
            best[torch.arange(len(numbers)), numbers] = -2.0
        top = best.topk(min(_CANDIDATES, len(others) - itself)).indices if len(others) > itself else best[:, :0].long()
        yield torch.stack([numbers[:, None].expand_as(top).flatten(), top.flatten()], 1)


def _coarse(thumbnails: np.ndarray, crop: tuple[float, float, float]) -> Any:
    """Colours of 8 x 8 fields of a crop, without mean and contrast: float32 (n, 192) of length 1."""
    import torch
    import torch.nn.functional as F  # noqa: N812 (its usual name)

    left, top, side = (round(SIDE * share) for share in crop)
    found = []
    for start in range(0, len(thumbnails), _ROWS):
        part = np.array(thumbnails[start : start + _ROWS, top : top + side, left : left + side])
        fields = F.adaptive_avg_pool2d(torch.from_numpy(part).permute(0, 3, 1, 2).float(), _COARSE).flatten(1)
        found.append(F.normalize(fields - fields.mean(1, keepdim=True), dim=1))
    return torch.cat(found)


def overlaid(a: Any, b: Any) -> Any:
    """The best correlation of each picture of `a` with that of `b`, float32 (n, 3, 32, 32) both: -1 to 1, float32 (n,).

    One may be the mirrored other, or a crop of it of 70 % or more of its side.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    best = torch.full((len(a),), -1.0)
    for scale in _SCALES:
        side = round(SIDE * scale)
        for small, large in ((a, b), (b, a)) if side < SIDE else ((a, b),):
            part = small if side == SIDE else F.interpolate(small, (side, side), mode="area")
            best = torch.maximum(best, _mirrored(part, large))
    for angle in _ANGLES:
        best = torch.maximum(best, _mirrored(_turned(a, angle), b))
    return best


def _mirrored(small: Any, large: Any) -> Any:
    """The better correlation of pictures and of their mirror images with larger ones, float32 (n,)."""
    import torch

    small, large = _fine(small), _fine(large)
    spectrum, deviation = torch.fft.rfft2(large), _deviation(large, small.shape[-1])
    return torch.maximum(*(_correlation(template, spectrum, deviation) for template in (small, small.flip(3))))


def _fine(pictures: Any) -> Any:
    """Pictures with their local shading and contrast taken out: skies have the shading in common, and a white border
    would outweigh all that it surrounds.
    """
    fine = pictures - _blurred(pictures)
    return fine / (_blurred((fine**2).mean(1, keepdim=True)).sqrt() + _FAINT)


def _blurred(pictures: Any) -> Any:
    """The mean of 5 x 5 pixels, by sums of shifted copies: faster here than torch's pooling."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    wide, side = F.pad(pictures, (2, 2, 2, 2), mode="reflect"), pictures.shape[-1]
    rows = torch.stack([wide[:, :, shift : shift + side] for shift in range(5)]).sum(0)
    return torch.stack([rows[..., shift : shift + side] for shift in range(5)]).sum(0) / 25


def _turned(pictures: Any, angle: float) -> Any:
    """The middle of pictures that are turned by some degrees, float32 (n, 3, side, side)."""
    import math

    import torch
    import torch.nn.functional as F  # noqa: N812

    side, share = round(SIDE * _INNER), round(SIDE * _INNER) / SIDE
    cosine, sine = share * math.cos(math.radians(angle)), share * math.sin(math.radians(angle))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(pictures), 2, 3)
    places = F.affine_grid(turn, [len(pictures), 3, side, side], align_corners=False)
    return F.grid_sample(pictures, places, mode="bilinear", align_corners=False)


def _deviation(large: Any, side: int) -> Any:
    """Length of each window of a side, its mean taken out: float32 (n, places, places)."""
    count = large.shape[1] * side * side
    sums, squares = _windows(large.sum(1), side), _windows((large**2).sum(1), side)
    return (squares - sums**2 / count).clamp(min=1e-3 * count).sqrt()


def _windows(values: Any, side: int) -> Any:
    """The sum of each window of a side, from the sums of all above and to the left of a place."""
    import torch.nn.functional as F  # noqa: N812

    total = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    corners = total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]
    return corners.float()


def _correlation(small: Any, spectrum: Any, deviation: Any) -> Any:
    """The best normalised cross-correlation of each small picture over all places in its large one, float32 (n,).

    By Fourier transform of the large one's own size: at a place where the small one lies within, nothing wraps around.
    """
    import torch

    template = small - small.mean((1, 2, 3), keepdim=True)
    product = (spectrum * torch.fft.rfft2(template, s=(SIDE, SIDE)).conj()).sum(1)
    places = deviation.shape[-1]
    dots = torch.fft.irfft2(product, s=(SIDE, SIDE))[:, :places, :places]
    norm = template.flatten(1).norm(dim=1).clamp(min=1e-6)
    return (dots / (deviation * norm[:, None, None])).flatten(1).amax(1)
