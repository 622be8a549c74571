"""The neighbours and the lean by which chapter 14 doubts its judge."""

from __future__ import annotations

import pytest
import torch

from minilora.experiments.images.second_look import KNOWN, lean, read_by_neighbours
from minilora.lab import styles


def test_neighbours_read_real_pictures_and_not_shuffled_ones() -> None:
    real = styles.styled("outline", 100, seed=7)
    assert read_by_neighbours(real.x, real.y, "outline", real=1000) > 0.95
    dots = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    mixed = real.x.flatten(1)[:, dots].view_as(real.x)
    assert read_by_neighbours(mixed, real.y, "outline", real=1000) < 0.4
    assert read_by_neighbours(real.x, (real.y + 1) % 10, "outline", real=1000) < 0.05


def test_neighbours_are_not_the_pictures_themselves() -> None:
    with pytest.raises(ValueError, match="handwriting"):
        read_by_neighbours(torch.zeros(1, 1, 16, 16), torch.zeros(1), "handwritten")
    assert KNOWN not in range(10_000)  # where training, judging and testing take theirs


def test_lean_is_what_a_picture_was_sheared_by() -> None:
    row = torch.arange(16.0)
    for slope in (-0.4, 0.0, 0.3):
        middle = 7.5 + slope * (7.5 - row)  # up is towards row 0
        bar = torch.exp(-((torch.arange(16.0)[None, :] - middle[:, None]) ** 2))
        assert lean(bar[None, None])[0] == pytest.approx(slope, abs=0.02)
    upright, slanted, left = (styles.styled(name, 300, seed=3).x for name in
                              ("plain", "slanted", "left"))  # fmt: skip
    there, back = (lean(slanted) - lean(upright)).mean(), (lean(left) - lean(upright)).mean()
    assert 0.25 < there < 0.6 and -0.6 < back < -0.25
    assert lean(torch.zeros(2, 1, 16, 16)).tolist() == [0, 0]
