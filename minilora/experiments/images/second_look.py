"""Second measures of what was drawn, by which chapter 14 doubts its judge.

The judge is a network that was trained on real pictures. Generated ones are not quite like them, so
that what it cannot read another reader may.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minilora.lab import styles

#: The seed of the pictures that neighbours are looked for among; nothing else draws them.
KNOWN = 31_415


def read_by_neighbours(
    x: Tensor, y: Tensor, style: str, real: int = 4000, neighbours: int = 5
) -> float:
    """The share of pictures x (N, 1, 16, 16) in which neighbours see the digits y (N,).

    The commonest digit among the nearest of so many real pictures in the style counts, dot by dot.
    """
    if style == "handwritten":
        raise ValueError("there is too little handwriting to look for neighbours; name a print")
    known = styles.styled(style, real, seed=KNOWN)
    near = torch.cdist(x.flatten(1), known.x.flatten(1)).topk(neighbours, largest=False).indices
    return float((known.y[near].mode(dim=1).values == y).float().mean())


def lean(x: Tensor) -> Tensor:
    """How far strokes lean to the right, in dots sideways for each dot up: (N, 1, H, W) → (N,).

    The slope of the line that best foretells the ink's column from its row. It depends on the
    digit: a 7 leans by itself. Compare pictures of the same digits.
    """
    ink = x[:, 0]
    ink = ink / ink.sum(dim=(1, 2), keepdim=True).clamp(min=1e-9)
    up = -torch.arange(ink.shape[1], dtype=ink.dtype)[:, None]
    right = torch.arange(ink.shape[2], dtype=ink.dtype)[None, :]
    mean_up, mean_right = ((ink * one).sum(dim=(1, 2), keepdim=True) for one in (up, right))
    away = up - mean_up
    together = (ink * away * (right - mean_right)).sum(dim=(1, 2))
    return together / (ink * away**2).sum(dim=(1, 2)).clamp(min=1e-9)
