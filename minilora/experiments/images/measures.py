"""What is measured on generated pictures: content, style, and how far they are from real ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from minilora.lab import styles
from minilora.lab.flowbase import Judge, image_judge, verdicts

#: Seeds of real pictures that no training sees: to compare with, and the ceiling.
REAL, CEILING = 7000, 8000


@dataclass(frozen=True)
class Marks:
    """Of a set of pictures: the share with the right digit, the share in the style that was meant.

    ``distance`` is their `energy_distance` to real pictures of that style, ``ink`` the mean ink.
    """

    content: float
    style: float
    distance: float
    ink: float


def judged(x: Tensor, y: Tensor, style: str) -> Marks:
    """The verdict on pictures x (N, 1, 16, 16) that were meant as digits y (N,) in a style."""
    digit, look = verdicts(judge(), x)
    return Marks(
        content=(digit == y).float().mean().item(),
        style=(look == styles.STYLES.index(style)).float().mean().item(),
        distance=energy_distance(x, real(style)),
        ink=x.mean().item(),
    )


def energy_distance(a: Tensor, b: Tensor) -> float:
    """How far apart two sets of pictures are: (N, …), (M, …) → a number from 0 on.

    Twice the mean distance between a picture of one set and one of the other, less the mean
    distances within each set. It would be zero for two sets that hold the same pictures, and is
    more, for two samples of the same kind, the fewer pictures there are. The distance of two
    pictures is that of all their dots, as one vector each.

    Source: Székely and Rizzo (2013), Journal of Statistical Planning and Inference 143.
    """
    a, b = a.flatten(1), b.flatten(1)
    between = torch.cdist(a, b).mean()
    within = torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return max(0.0, (2 * between - within).item())


@lru_cache(maxsize=1)
def judge() -> Judge:
    """The shipped judge, read once."""
    return image_judge()


@lru_cache(maxsize=16)
def real(style: str) -> Tensor:
    """300 real pictures of a style, as evenly over the digits as it comes: (300, 1, 16, 16)."""
    return styles.styled(style, 300, REAL).x


def ceiling(style: str, n: int = 200) -> Marks:
    """The verdict on ``n`` other real pictures: what a perfect generator would get."""
    held = styles.styled(style, n, CEILING)
    return judged(held.x, held.y, style)
