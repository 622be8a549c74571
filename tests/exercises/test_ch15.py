"""Chapter 15's checks: more right answers, and the package beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from answers_ch15 import all_in_b

from minilora import quantize
from minilora.exercises import ch15


def test_any_split_of_the_singular_values_is_a_start(capsys: pytest.CaptureFixture[str]) -> None:
    ch15.check_loftq_start(all_in_b)
    assert capsys.readouterr().out.startswith("passed: ")


def test_the_bits_of_a_format_are_those_that_the_package_stores() -> None:
    for numel in (64, 100, 4096):
        mine = ch15.check_format_bits.right(numel, 4, 64, 32, 0)
        assert mine * numel / 8 == pytest.approx(quantize.nf4_bytes(numel, double=False))


def test_a_block_is_rounded_as_the_package_rounds_it() -> None:
    levels = quantize.NF4_LEVELS
    block = torch.tensor([0.03, -0.21, 0.10, 0.42, -0.07, 0.0, -0.3, 0.16])
    mine = ch15.check_round_block.right(block.numpy(), levels.numpy())
    np.testing.assert_allclose(mine, quantize.round_to_levels(block, levels, 8), rtol=1e-6)
