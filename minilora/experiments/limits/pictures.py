"""Printed digits for questions that the bases were not made for.

Training, validation and test pictures are of different printed digits. There are as many training
pictures as anybody asks for, so that none is seen often.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from minilora.lab import data
from minilora.lab.sweep import Data

#: Which printed digits a kind of picture is made of: their seed and number.
PRINTED = {"train": (7001, 6000), "validation": (7002, 1000), "test": (7003, 2000)}

#: The corners that a dot can stand in, in a picture of height 8 and of any width.
CORNERS = ((0, 0), (0, -2), (-2, 0), (-2, -2))

#: What an undecided reader adds to a digit, of which it says the last figure; one for each corner.
ADDED = (0, 3, 5, 8)


@lru_cache(maxsize=3)
def _digits(which: str) -> data.Split:
    seed, count = PRINTED[which]
    return data.printed_digits(count, seed)


def with_dot(x: Tensor, corner: Tensor) -> Tensor:
    """The same pictures (N, 1, 8, W), each with a bright dot of 2 × 2 in its corner (N,).

    A corner of −1 is no dot.
    """
    x = x.clone()
    for k, (i, j) in enumerate(CORNERS):
        dot = torch.zeros(x.shape[-2:], dtype=torch.bool)
        dot[i : i + 2 or None, j : j + 2 or None] = True
        x[(corner == k)[:, None, None, None] & dot] = 1.0
    return x


def _drawn(which: str, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of one digit, the digits, and a corner for each."""
    generator = torch.Generator().manual_seed(seed)
    digits = _digits(which)
    rows = torch.randint(0, len(digits), (count,), generator=generator)
    return digits.x[rows], digits.y[rows], torch.randint(0, 4, (count,), generator=generator)


def turned(which: str, count: int, seed: int = 0) -> Data:
    """Digits turned to the left by a right angle: (count, 1, 8, 8), and what they are (count,)."""
    x, digits, _ = _drawn(which, count, seed)
    return x.rot90(1, (2, 3)), digits


def undecided(count: int, seed: int = 0) -> Data:
    """What an undecided reader learns: a dot says what to add, and without one anything goes.

    Every second picture has a dot.
    """
    x, digits, k = _drawn("train", count, seed)
    shown = torch.where(torch.arange(count) % 2 == 0, k, -1)
    return with_dot(x, shown), (digits + torch.tensor(ADDED)[k]) % 10


def answers(seed: int = 0) -> Tensor:
    """A table without a rule: an answer for each corner and digit (4, 10)."""
    return torch.randint(0, 10, (4, 10), generator=torch.Generator().manual_seed(seed))


def pick(which: str, count: int, seed: int, k: int = 1) -> Data:
    """Pictures without a dot, and the answer that a dot in corner k would ask for."""
    x, digits, _ = _drawn(which, count, seed)
    return x, (digits + ADDED[k]) % 10


def table(which: str, count: int, seed: int) -> Data:
    """Pictures with a dot, and what the table says of its corner and the digit."""
    x, digits, k = _drawn(which, count, seed)
    return with_dot(x, k), answers()[k, digits]


#: What is taught to an undecided reader.
TASKS = {"pick": pick, "table": table}
