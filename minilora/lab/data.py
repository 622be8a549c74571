"""Data that every machine already has: nothing here downloads anything.

``digits`` is the real handwriting that comes with scikit-learn, split so that no sheet is on
both sides. ``printed_digits`` draws as many digits as you like from the fonts that come with
matplotlib, bends them, and turns them into pictures the way the handwriting was. ``photo`` is one
of scikit-learn's two photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Fonts that ship with matplotlib and draw plain digits. Those whose zero is dotted are left out.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
)

#: Where each of the 14 sheets of handwriting begins. Every sheet asks for the same digits in the
#: same order, so the labels give the boundaries away (a test looks for them).
SHEET_STARTS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)


@dataclass(frozen=True)
class Split:
    """Pictures ``x`` (N, 1, H, W), ink from 0 to 1, with labels ``y`` (N,), and their sheets."""

    x: Tensor
    y: Tensor
    sheet: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> Split:
        return Split(self.x[rows], self.y[rows], self.sheet[rows])


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, in three parts that do not overlap."""

    train: Split
    validation: Split
    test: Split


def digits(split: str = "sheets", seed: int = 0) -> Digits:
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels each, in three parts.

    The set was collected by having people fill in sheets. With ``split="sheets"`` the first 5
    sheets (646 digits) are for training, the next 3 (383) for validation and the last 6 (768) for
    testing, so that a test digit was written on a sheet that training never saw. With
    ``split="random"`` the same numbers of digits are dealt out at random (``seed`` says how): then
    every test digit has neighbours from its own sheet in the training set, which flatters whatever
    works by looking for a near neighbour.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels)
    starts = torch.tensor(SHEET_STARTS)
    sheet = torch.searchsorted(starts, torch.arange(len(y)), right=True) - 1
    if split == "sheets":
        order = torch.arange(len(y))
    elif split == "random":
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    else:
        raise ValueError(f"split must be 'sheets' or 'random', but is {split!r}")
    parts = order.tensor_split([SHEET_STARTS[5], SHEET_STARTS[8]])
    train, validation, test = (Split(x[rows], y[rows], sheet[rows]) for rows in parts)
    return Digits(train, validation, test)


def few_labels(data: Split, n: int, seed: int) -> Split:
    """``n`` examples of ``data``, drawn at random, the ten classes as evenly as n allows.

    Drawn with a larger n and the same seed, the set contains the smaller one.
    """
    classes = len(data.y.unique())
    if not classes <= n <= len(data):
        raise ValueError(f"n must be between {classes} and {len(data)}, but is {n}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    # The k-th picture of every class comes before the (k+1)-th of any.
    rank_in_class = torch.empty(len(data), dtype=torch.long)
    for label in data.y.unique():
        rows = order[data.y[order] == label]
        rank_in_class[rows] = torch.arange(len(rows))
    return data[order[torch.argsort(rank_in_class[order], stable=True)][:n]]


def pairs(data: Split, n: int, seed: int = 0, label: str = "sum") -> Split:
    """``n`` pictures of two digits of ``data`` side by side: (n, 1, 8, 16).

    The label is the ``"sum"`` of the two, 0 to 18, or the ``"number"`` that they spell, 0 to 99.
    Digits are dealt like cards: all of ``data`` is used once before any is used again, so that up
    to ``len(data) // 2`` pictures share no digit. With the same seed, the first of a longer list
    are those of a shorter one. ``sheet`` is that of the left digit.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, but is {n}")
    if label not in ("sum", "number"):
        raise ValueError(f"label must be 'sum' or 'number', but is {label!r}")
    generator = torch.Generator().manual_seed(seed)
    in_a_pass = len(data) // 2
    passes = [torch.randperm(len(data), generator=generator) for _ in range(-(-n // in_a_pass))]
    dealt = torch.cat([cards[: 2 * in_a_pass] for cards in passes]).reshape(-1, 2)[:n]
    left, right = data[dealt[:, 0]], data[dealt[:, 1]]
    y = left.y + right.y if label == "sum" else 10 * left.y + right.y
    return Split(torch.cat([left.x, right.x], dim=3), y, left.sheet)


def photo(name: str = "china", colour: bool = False) -> np.ndarray:
    """A photograph from scikit-learn, ``"china"`` or ``"flower"``, as numbers from 0 to 1.

    Returns a float64 array of shape (427, 640), grey, or (427, 640, 3) with ``colour=True``.
    Grey is 0.299 red + 0.587 green + 0.114 blue, as ITU-R BT.601 weighs them.
    """
    from sklearn.datasets import load_sample_image

    if name not in ("china", "flower"):
        raise ValueError(f"name must be 'china' or 'flower', but is {name!r}")
    pixels = load_sample_image(f"{name}.jpg") / 255
    return pixels if colour else pixels @ np.array([0.299, 0.587, 0.114])


# --------------------------------------------------------------------------------------------
# Printed digits, drawn and bent.
#
# The handwriting was scanned, cut into one bitmap of 32×32 for each digit, stretched to fill the
# box, and reduced to 8×8 by counting the ink in blocks of 4×4. The printed digits go the same
# way. Between the font and the box they are bent. A glyph is kept not as a bitmap but as a field of
# distances (in pixels, positive inside the stroke), so that "thicker" is an addition, and so that
# one interpolation bends thousands of digits at once.

_CANVAS = 48  # pixels of the square in which a glyph is bent
_HEIGHT = 30  # pixels of a glyph's height in it
_BOX = 32  # pixels of the box that the bent digit fills, as in the real set


def printed_digits(n: int, seed: int = 0) -> Split:
    """``n`` printed digits, bent at random: pictures (n, 1, 8, 8) with ink from 0 to 1.

    Each digit gets a font, a slant, a rotation, a width, a height and a wobble of its own, and is
    drawn either in the font's own weight or, more often, with a round pen along the middle of its
    strokes. The same seed gives the same digits. ``sheet`` holds the number of the font. About 5
    thousand a second on one core.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, but is {n}")
    generator = torch.Generator().manual_seed(seed)
    chunks = [min(1000, n - start) for start in range(0, n, 1000)]
    parts = [_bent_digits(size, generator) for size in chunks]
    x, y, font = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Split(x, y, font)


def _bent_digits(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``n`` pictures (n, 1, 8, 8), their labels (n,) and fonts (n,)."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)  # (n,)

    outlines, middles = _glyph_fields()  # (fonts, 10, S, S) each
    y = torch.randint(10, (n,), generator=generator)
    font = torch.randint(len(FONTS), (n,), generator=generator)
    heavier, radius = between(-0.5, 1.5), between(1.5, 3.8)  # pixels of the canvas
    pen = between(0, 1) < 0.75
    field = torch.where(
        pen[:, None, None],
        middles[font, y] + radius[:, None, None],
        outlines[font, y] + heavier[:, None, None],
    )

    turn, slant = between(-0.25, 0.25), between(-0.25, 0.35)  # radians; pixels per pixel
    wide, tall = between(-0.3, 0.3).exp(), between(-0.1, 0.1).exp()
    cos, sin = turn.cos(), turn.sin()
    bend = torch.stack([cos / wide, (slant - sin) / tall, sin / wide, cos / tall], dim=1)
    bend = F.pad(bend.reshape(n, 2, 2), (0, 1))  # (n, 2, 3): no shift
    grid = F.affine_grid(bend, [n, 1, _CANVAS, _CANVAS], align_corners=False)
    wobble = 0.11 * torch.randn(n, 2, 25, generator=generator) @ _wobble_shapes()  # (n, 2, S·S)
    grid = grid + wobble.transpose(1, 2).reshape(grid.shape)
    field = F.grid_sample(field[:, None], grid, padding_mode="border", align_corners=False)

    # Fill the box: top to bottom exactly, left to right with the same scale, or less if too wide.
    top, bottom = _extent((field[:, 0] > 0).any(dim=2))
    left, right = _extent((field[:, 0] > 0).any(dim=1))
    high = (bottom - top) / _CANVAS
    across = torch.maximum(high, (right - left) / _CANVAS * _BOX / between(16, 26))
    zoom = torch.zeros(n, 2, 3)
    zoom[:, 0, 0], zoom[:, 0, 2] = across, (left + right) / _CANVAS - 1
    zoom[:, 1, 1], zoom[:, 1, 2] = high, (top + bottom) / _CANVAS - 1
    grid = F.affine_grid(zoom, [n, 1, _BOX, _BOX], align_corners=False)
    bitmap = F.grid_sample(field, grid, padding_mode="border", align_corners=False) > 0
    return F.avg_pool2d(bitmap.float(), _BOX // 8), y, font


def _extent(used: Tensor) -> tuple[Tensor, Tensor]:
    """The first used place and the one past the last: (n, S) bool → (n,), (n,) float."""
    place = torch.arange(used.shape[1])
    first = torch.where(used, place, used.shape[1] - 1).min(dim=1).values
    last = torch.where(used, place, 0).max(dim=1).values
    return first.float(), torch.maximum(last, first).float() + 1


@lru_cache(maxsize=1)
def _wobble_shapes() -> Tensor:
    """25 smooth bumps that fill the canvas between them: (25, S·S)."""
    bumps = torch.eye(25).reshape(25, 1, 5, 5)
    size = [_CANVAS, _CANVAS]
    return F.interpolate(bumps, size, mode="bicubic", align_corners=True).reshape(25, -1)


@lru_cache(maxsize=1)
def _glyph_fields() -> tuple[Tensor, Tensor]:
    """Distances for every font and digit, twice (fonts, 10, S, S), in pixels.

    First to the outline, positive inside; then to the middle line of the strokes, never positive.
    """
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    folder = Path(get_data_path()) / "fonts" / "ttf"
    canvases = []
    for name in FONTS:
        font = FT2Font(str(folder / f"{name}.ttf"))
        font.set_size(48, 72)  # points at 72 dots an inch: pixels
        for digit in "0123456789":
            font.set_text(digit)
            font.draw_glyphs_to_bitmap(antialiased=True)
            canvases.append(_centred(np.array(font.get_image(), dtype=np.float32)))
    ink = torch.stack(canvases) > 0.5  # (fonts·10, S, S)
    outline = _distance_to(~ink) - _distance_to(ink)
    middle = -_distance_to(_thinned(ink))
    shape = (len(FONTS), 10, _CANVAS, _CANVAS)
    return outline.reshape(shape), middle.reshape(shape)


def _centred(glyph: np.ndarray) -> Tensor:
    """A glyph of any size (h, w), 0 to 255, → its ink, 0 to 1, in the middle of a canvas."""
    rows, columns = np.flatnonzero(glyph.max(1) > 127), np.flatnonzero(glyph.max(0) > 127)
    glyph = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255
    width = max(1, round(glyph.shape[1] * _HEIGHT / glyph.shape[0]))
    size = [_HEIGHT, width]
    ink = F.interpolate(torch.tensor(glyph)[None, None], size, mode="bilinear", antialias=True)
    left, top = (_CANVAS - width) // 2, (_CANVAS - _HEIGHT) // 2
    return F.pad(ink[0, 0], (left, _CANVAS - width - left, top, _CANVAS - _HEIGHT - top))  # (S, S)


def _distance_to(mask: Tensor) -> Tensor:
    """How far each pixel is from the nearest True one: (N, S, S) → (N, S, S), in pixels.

    Exact, one direction at a time: the nearest in the same row first, then over the rows.
    """
    step = torch.arange(mask.shape[-1], dtype=torch.float32)
    apart = (step[:, None] - step[None, :]).square()  # (S, S)
    blank = torch.where(mask, 0.0, 1e6)  # (N, S, S)
    along = (blank[:, :, None, :] + apart).min(dim=3).values  # (N, S, S)
    across = (along.transpose(1, 2)[:, :, None, :] + apart).min(dim=3).values
    return across.transpose(1, 2).sqrt()


def _thinned(ink: Tensor) -> Tensor:
    """Strokes worn down to one pixel: (N, S, S) bool → the same. Zhang and Suen (1984)."""
    image = ink.float()
    size = image.shape[-1]
    clockwise = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    while True:
        before = image.sum()
        for first in (True, False):
            p = F.pad(image, (1, 1, 1, 1))
            around = [p[:, 1 + y : 1 + y + size, 1 + x : 1 + x + size] for y, x in clockwise]
            north, east, south, west = around[0::2]
            neighbours = torch.stack(around).sum(dim=0)
            following = [*around[1:], around[0]]
            steps = sum(
                (a == 0) & (b == 1) for a, b in zip(around, following, strict=True)
            )  # how often ink begins on the way round
            if first:
                corner = (north * east * south == 0) & (east * south * west == 0)
            else:
                corner = (north * east * west == 0) & (north * south * west == 0)
            gone = (image == 1) & (neighbours >= 2) & (neighbours <= 6) & (steps == 1) & corner
            image = image.masked_fill(gone, 0.0)
        if image.sum() == before:
            return image.bool()
