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
        scores = Q @ K.swapaxes(1, 2) / Q.shape[2] ** 0.5
        visible = np.where(np.tri(Q.shape[1], dtype=bool), scores, -np.inf)
        powers = np.tril(np.exp(scores - visible.max(-1, keepdims=True)))
        return powers / powers.sum(-1, keepdims=True) @ V

    assert exercises.check_causal_attention.judge(renormalised) is None


def test_masking_after_the_powers_is_refused_where_a_hidden_score_is_the_largest() -> None:
    def struck_out(Q: np.ndarray, K: np.ndarray, V: np.ndarray) -> np.ndarray:
        scores = Q @ K.swapaxes(1, 2) / Q.shape[2] ** 0.5
        powers = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
        return powers / powers.sum(-1, keepdims=True) @ V

    with pytest.raises(AssertionError, match="this one is hidden"):
        exercises.check_causal_attention(struck_out)


def test_other_ways_to_look_back_are_accepted() -> None:
    def by_the_key(n: int) -> tuple[np.ndarray, np.ndarray]:
        before = np.eye(n, k=-1)
        before[0, 0] = 1
        return np.eye(n), 1000 * before

    assert exercises.check_look_back.judge(by_the_key) is None


@pytest.mark.parametrize("case", exercises.check_loss_without_looking.cases)
def test_no_other_fixed_probabilities_have_a_smaller_loss(case: tuple[np.ndarray]) -> None:
    (counts,) = case
    p = counts / counts.sum()
    least = exercises.check_loss_without_looking.right(counts)
    others = np.random.default_rng(0).dirichlet(np.ones(len(p)), 1000)  # (1000, k)
    assert (-(np.log(others) @ p) >= least - 1e-12).all()
