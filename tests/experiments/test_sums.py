"""The pictures that several experiments share."""

import torch

from minilora.experiments import sums
from minilora.experiments.sums import SUMS
from minilora.lab import data


def test_the_sheets_are_those_of_the_two_digits():
    size = SUMS["cpu"]
    sheets, task, hand = sums.sheets(size), sums.task(size, 100), data.digits()
    assert sheets.shape == (1536, 2) and set(sheets.unique().tolist()) == set(range(8, 14))
    of = {}  # picture of a digit: the sheets that it is on
    for picture, sheet in zip(hand.test.x, hand.test.sheet.tolist(), strict=True):
        of.setdefault(picture.numpy().tobytes(), set()).add(sheet)
    for halves, both in zip(task.test[0], sheets.tolist(), strict=True):
        for half, sheet in zip(halves.split(8, dim=2), both, strict=True):
            assert sheet in of[half.contiguous().numpy().tobytes()]


def test_printed_pairs_are_new_to_the_base():
    x, y = sums.printed(50)
    seen = data.printed_digits(200, 0).x
    assert x.shape == (50, 1, 8, 16) and y.shape == (50,)
    halves = torch.cat(x.split(8, dim=3)).flatten(1)
    assert not (halves[:, None] == seen.flatten(1)[None]).all(dim=2).any()
    assert torch.equal(x, sums.printed(50)[0])
