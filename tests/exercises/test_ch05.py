"""Chapter 5's checks: the right counts are the model's, and a second right way is accepted."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import exercises
from minilora.lab.transformer import Block, TransformerConfig


@pytest.mark.parametrize("case", exercises.check_block_numbers.cases)
def test_the_right_count_is_that_of_the_model(case: tuple[int, int, int]) -> None:
    width, heads, factor = case
    block = Block(TransformerConfig(width=width, heads=heads, ffn_factor=factor))
    numbers = sum(p.numel() for p in block.parameters())
    assert exercises.check_block_numbers.right(*case) == numbers


def test_shares_made_whole_again_after_masking_are_accepted() -> None:
    def renormalised(Q: np.ndarray, K: np.ndarray, V: np.ndarray) -> np.ndarray:
        powers = np.tril(np.exp(Q @ K.swapaxes(1, 2) / Q.shape[2] ** 0.5))
        return powers / powers.sum(-1, keepdims=True) @ V

    assert exercises.check_causal_attention.judge(renormalised) is None
