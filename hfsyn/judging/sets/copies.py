"""Copies of pictures that are not equal bytes: smaller, cropped, mirrored, brighter, turned a little, encoded again.

Each picture is kept as 32 x 32 pixels. For each picture its most alike ones are looked up by 8 x 8 colours, of the
whole and of five crops, and mirrored. These few are then laid over each other: at every place and at seven scales the
correlation of their colours is computed, with brightness and contrast taken out (normalised cross-correlation; J. P.
Lewis, "Fast normalized cross-correlation", 1995), and the best one counts. Written out here, since libraries for
perceptual hashes lose crops, and those for local features need a corner to hold on to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image

from hfsyn.progress import Progress

SIDE = 32
"""Pixels of a thumbnail's side: as few as still tell photographs of one scene apart."""
COPY = 0.64
"""Correlation from which two pictures count as copies; `scripts/check_copies.py` says what it finds and what not."""
_COARSE = 8
_CANDIDATES = 8  # pictures that are laid over each one
_SIDES = [round(SIDE * share) for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)]  # of a crop
_CROPS = ((0, 0, 1), (0.1, 0.1, 0.8), (0, 0, 0.8), (0.2, 0, 0.8), (0, 0.2, 0.8), (0.2, 0.2, 0.8))  # left, top, side
_ANGLES = (-3.0, 3.0)
_INNER = 26 / 32  # side of the middle of a turned picture that has no empty corner; even, so that pixels meet pixels
_FAINT = 8.0  # grey levels of local contrast below which details fade out: the noise of an encoder
_FLAT = 2.0  # grey levels of deviation below which a picture shows nothing that could be a copy
_ROWS = 512  # pictures of a block of likenesses
_PAIRS = 1024  # pairs that are laid over each other at once


@dataclass(frozen=True)
class Copies:
    """Pairs of pictures, by their numbers, most alike first."""

    pairs: Sequence[tuple[int, int]]
    likeness: Sequence[float]  # of each pair, `COPY` to 1


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 (32, 32, 3), whatever its shape."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(small, dtype=np.uint8)


def copies_within(thumbnails: np.ndarray, *, least: float = COPY, quiet: bool = True) -> Copies:
    """The copies among pictures, uint8 (n, 32, 32, 3); each pair once, the smaller number first."""
    found = _copies(thumbnails, thumbnails, least, itself=True, quiet=quiet)
    once: dict[tuple[int, int], float] = {}
    for (a, b), likeness in found.items():
        pair = (min(a, b), max(a, b))
        once[pair] = max(likeness, once.get(pair, 0.0))
    return _sorted(once)


def copies_between(mine: np.ndarray, others: np.ndarray, *, least: float = COPY, quiet: bool = True) -> Copies:
    """The copies among the pairs of one of `mine` and one of `others`, uint8 (n, 32, 32, 3) each."""
    return _sorted(_copies(mine, others, least, itself=False, quiet=quiet))


def _sorted(found: dict[tuple[int, int], float]) -> Copies:
    order = sorted(found, key=lambda pair: (-found[pair], pair))
    return Copies(order, [found[pair] for pair in order])


def _copies(
    mine: np.ndarray, others: np.ndarray, least: float, *, itself: bool, quiet: bool
) -> dict[tuple[int, int], float]:
    """Likeness of the pairs that reach `least`."""
    import torch

    found: dict[tuple[int, int], float] = {}
    if not len(mine) or not len(others):
        return found
    telling = [torch.tensor([one.std() >= _FLAT for one in some]) for some in (mine, others)]
    with Progress("look for copies", len(mine), quiet=quiet) as progress:
        for rows, pairs in _candidates(mine, others, itself=itself):
            pairs = pairs[telling[0][pairs[:, 0]] & telling[1][pairs[:, 1]]]
            # A picture is transformed once for all of its pairs in a block: by far the most of the work.
            ours = _Prepared(mine[rows])
            for some in pairs[pairs[:, 1].argsort(stable=True)].split(_PAIRS) if len(pairs) else ():
                numbers, places = some[:, 1].unique(return_inverse=True)
                theirs = _Prepared(others[numbers.numpy()])
                likeness = overlaid(ours, some[:, 0] - rows.start, theirs, places)
                for pair, value in zip(some.tolist(), likeness.tolist(), strict=True):
                    if value >= least:
                        found[pair[0], pair[1]] = min(value, 1.0)
            progress.add(rows.stop - rows.start)
    return found


def _candidates(mine: np.ndarray, others: np.ndarray, *, itself: bool) -> Iterator[tuple[slice, Any]]:
    """Blocks of `mine`, and pairs of numbers, int64 (m, 2): those that are most alike in coarse colours."""
    import torch

    parts = [_coarse(others, crop) for crop in _CROPS]
    for start in range(0, len(mine), _ROWS):
        rows = slice(start, min(start + _ROWS, len(mine)))
        numbers = torch.arange(rows.start, rows.stop)
        best = torch.full((len(numbers), len(others)), -2.0)
        for view, part in _compared(mine[rows], parts):
            torch.maximum(best, view @ part.T, out=best)
        if itself:
            best[torch.arange(len(numbers)), numbers] = -2.0
        top = best.topk(min(_CANDIDATES, len(others) - itself)).indices
        yield rows, torch.stack([numbers[:, None].expand_as(top).flatten(), top.flatten()], 1)


def _compared(mine: np.ndarray, parts: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Colours of `mine` and what they are held against: crops of one side and the whole of the other, which may be the
    copy; mirrored ones too.
    """
    for flip in (1, -1):
        whole, *crops = (_coarse(mine[:, :, ::flip], crop) for crop in _CROPS)
        yield from ((whole, part) for part in parts)
        yield from ((crop, parts[0]) for crop in crops)


def _coarse(thumbnails: np.ndarray, crop: tuple[float, float, float]) -> Any:
    """Colours of 8 x 8 fields of a crop, without mean and contrast: float32 (n, 192) of length 1."""
    import torch
    import torch.nn.functional as F  # noqa: N812 (its usual name)

    left, top, side = (round(SIDE * share) for share in crop)
    found = []
    for start in range(0, len(thumbnails), _ROWS):
        part = np.array(thumbnails[start : start + _ROWS, top : top + side, left : left + side])
        pooled = F.adaptive_avg_pool2d(torch.from_numpy(part).permute(0, 3, 1, 2).float(), _COARSE).flatten(1)
        found.append(F.normalize(pooled - pooled.mean(1, keepdim=True), dim=1))
    return torch.cat(found)


class _Prepared:
    """Pictures, uint8 (n, 32, 32, 3), as a place for others to lie on and as what is laid on others."""

    def __init__(self, thumbnails: np.ndarray) -> None:
        import torch
        import torch.nn.functional as F  # noqa: N812

        pictures = torch.from_numpy(np.array(thumbnails)).permute(0, 3, 1, 2).float()
        fine = _fine(pictures)
        smaller = [_fine(F.interpolate(pictures, (side, side), mode="area")) for side in _SIDES[1:]]
        self.templates = {_sides(one): _Template(one) for one in (fine, *smaller)}
        self.turned = [_Template(_fine(_turned(pictures, angle))) for angle in _ANGLES]
        self.ground, self.mirrored = _Ground(fine), _Ground(fine.flip(3))


class _Template:
    """What is laid over a picture: the conjugate spectrum, complex64 (n, 3, 32, 17), and its length, (n,)."""

    def __init__(self, fine: Any) -> None:
        import torch

        template = fine - fine.mean((1, 2, 3), keepdim=True)
        self.side = _sides(fine)
        self.spectrum = torch.fft.rfft2(template, s=(SIDE, SIDE)).conj()
        self.length = template.flatten(1).norm(dim=1).clamp(min=1e-6)


class _Ground:
    """What others are laid on: its spectrum, and the length of its windows by their side, (n, places, places)."""

    def __init__(self, fine: Any) -> None:
        import torch

        self.spectrum = torch.fft.rfft2(fine)
        sums, squares = (_integral(values.sum(1)) for values in (fine, fine**2))
        self.lengths = {}
        for side in {*_SIDES, round(SIDE * _INNER)}:
            count = fine.shape[1] * side * side
            variance = _windows(squares, side) - _windows(sums, side) ** 2 / count
            self.lengths[side] = variance.clamp(min=1e-3 * count).sqrt().float()


def overlaid(ours: _Prepared, mine: Any, theirs: _Prepared, others: Any) -> Any:
    """The best correlation of each of our pictures with one of theirs, by their numbers: -1 to 1, float32 (n,).

    One may be the mirrored other, or a crop of it of 70 % or more of its side, or our picture may be turned a little.
    """
    import torch

    best = torch.full((len(mine),), -1.0)
    # A mirrored template on a ground is the template on the mirrored ground.
    for ground in (ours.ground, ours.mirrored):
        for template in theirs.templates.values():
            best = torch.maximum(best, _correlation(template, others, ground, mine))
    for ground in (theirs.ground, theirs.mirrored):
        for template in (*(one for one in ours.templates.values() if one.side < SIDE), *ours.turned):
            best = torch.maximum(best, _correlation(template, mine, ground, others))
    return best


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
    rows = reduce(torch.add, (wide[:, :, shift : shift + side] for shift in range(5)))
    return reduce(torch.add, (rows[..., shift : shift + side] for shift in range(5))) / 25


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


def _integral(values: Any) -> Any:
    """The sum of all above and to the left of each place, float64 (n, side + 1, side + 1)."""
    import torch.nn.functional as F  # noqa: N812

    return F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))


def _windows(total: Any, side: int) -> Any:
    """The sum of each window of a side, float64 (n, places, places)."""
    return total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]


def _correlation(template: _Template, above: Any, ground: _Ground, below: Any) -> Any:
    """The best normalised cross-correlation over all places of the templates `above` on the grounds `below`, (n,).

    By Fourier transform of the ground's own size: at a place where the template lies within, nothing wraps around.
    """
    import torch

    lengths = ground.lengths[template.side][below]
    product = (ground.spectrum[below] * template.spectrum[above]).sum(1)
    dots = torch.fft.irfft2(product, s=(SIDE, SIDE))[:, : lengths.shape[-1], : lengths.shape[-1]]
    return (dots / (lengths * template.length[above][:, None, None])).flatten(1).amax(1)


def _sides(pictures: Any) -> int:
    return int(pictures.shape[-1])
