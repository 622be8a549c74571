"""Digits of 16 × 16 dots in many styles: what an image generator is to draw.

A glyph comes from one of matplotlib's upright fonts, as a field of distances to its outline (in
pixels of a canvas of 48 × 48, positive inside), so that a style is a line of arithmetic: bold adds
to the distance, an outline is where it is near a number, slanted shears the field. Every digit is
varied a little in size, place, turn and weight. The canvas is then reduced to 16 × 16.

Handwriting is scikit-learn's, enlarged to 12 × 12 and given a margin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora.lab.data import FONTS, Split, _glyph_fields, digits

#: Upright fonts of a regular weight. Nothing bold or slanted is among them.
UPRIGHT = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10")

SIDE = 16
_CANVAS = 48
#: How many pixels sideways for each pixel up.
_SLANTS = {"slanted": 0.45, "bold slanted": 0.45, "left": -0.45}

#: From a field of distances (…, 48, 48) to where the ink is. What is not named here is plain.
_INK: dict[str, Callable[[Tensor], Tensor]] = {
    "bold": lambda field: field > -2.0,
    "bold slanted": lambda field: field > -2.0,
    "thin": lambda field: field > 0.8,
    "outline": lambda field: (field > -3.0) & (field < -0.3),
}

#: Everything that `styled` can draw.
STYLES = (
    *("plain", "bold", "thin", "slanted", "left", "bold slanted"),
    *("outline", "negative", "handwritten"),
)


def styled(style: str, n: int, seed: int = 0) -> Split:
    """``n`` digits in one of the ``STYLES``: pictures (n, 1, 16, 16), ink from 0 to 1.

    The same seed gives the same digits in every printed style: same fonts, sizes and places.
    ``sheet`` holds the number of the font, or, of handwriting, the sheet. Handwriting comes from
    the sheets kept for training with a seed below 1000, for validation below 8000, else for tests.

    Raises:
        ValueError: No such style, or n below 1.
    """
    if style not in STYLES:
        raise ValueError(f"no style {style!r}; there are {', '.join(STYLES)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, but is {n}")
    if style == "handwritten":
        return _handwriting(n, seed)
    generator = torch.Generator().manual_seed(seed)
    chunks = [min(1000, n - start) for start in range(0, n, 1000)]
    parts = [_printed(style, size, generator) for size in chunks]
    x, y, font = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(1 - x if style == "negative" else x, y, font)


def _printed(style: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``n`` printed digits (n, 1, 16, 16), their classes (n,) and fonts (n,)."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)  # (n,)

    y = torch.randint(10, (n,), generator=generator)
    font = torch.randint(len(UPRIGHT), (n,), generator=generator)
    turn, size = between(-0.06, 0.06), between(0.80, 0.92)
    across, down, weight = between(-0.06, 0.06), between(-0.06, 0.06), between(0.0, 0.8)
    slant = _SLANTS.get(style, 0.0)
    cos, sin = turn.cos() * size, turn.sin() * size
    bend = torch.stack([cos, slant * cos - sin, across, sin, slant * sin + cos, down], dim=1)
    grid = F.affine_grid(bend.reshape(n, 2, 3), [n, 1, _CANVAS, _CANVAS], align_corners=False)
    field = _fields()[font, y] + weight[:, None, None]  # (n, 48, 48)
    field = F.grid_sample(field[:, None], grid, padding_mode="border", align_corners=False)
    ink = _INK.get(style, lambda field: field > 0)(field).float()
    return F.avg_pool2d(ink, _CANVAS // SIDE), y, font


@lru_cache(maxsize=1)
def _fields() -> Tensor:
    """The distances of the upright fonts: (fonts, 10, 48, 48), in pixels."""
    return _glyph_fields()[0][[FONTS.index(name) for name in UPRIGHT]]


def _handwriting(n: int, seed: int) -> Split:
    parts = digits()
    pool = parts.train if seed < 1000 else parts.validation if seed < 8000 else parts.test
    if n > len(pool):
        raise ValueError(f"there are {len(pool)} handwritten digits here, and {n} were asked for")
    rows = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    chosen = pool[rows[:n]]
    x = F.interpolate(chosen.x, size=(12, 12), mode="bicubic", align_corners=False)
    return Split(F.pad(x.clamp(0, 1), (2, 2, 2, 2)), chosen.y, chosen.sheet)
