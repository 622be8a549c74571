"""Counting: probabilities that sum to one, and the rule by hand."""

from __future__ import annotations

import math

import pytest

from minilora.lab.counting import Counted


def test_probabilities_sum_to_one_after_anything() -> None:
    model = Counted([0, 1, 2, 0, 1, 3, 0, 1, 2], vocab=6)
    for before in ([], [0], [0, 1], [5], [4, 1], [0, 0, 1]):
        assert sum(model.probability(before, t) for t in range(6)) == pytest.approx(1)


def test_the_rule_by_hand() -> None:
    """After 0 came 1 twice and 2 once; of five tokens seen in all one was a 2."""
    model = Counted([0, 1, 0, 1, 0, 2], vocab=4, order=2)
    single = (1 + 3 * 1 / 4) / (6 + 3)
    assert model.probability([], 2) == pytest.approx(single)
    assert model.probability([0], 2) == pytest.approx((1 + 2 * single) / (3 + 2))
    assert model.probability([3], 2) == pytest.approx(single)  # never seen: the shorter one
    assert model.probability([3, 0], 2) == model.probability([0], 2)  # looks no further back


def test_what_was_counted_is_cheap_and_order_one_knows_frequencies_alone() -> None:
    text = [0, 1, 2, 3] * 50
    assert Counted(text, 8).bits(text) < 0.2 * Counted(text, 8, order=1).bits(text)
    assert Counted(text, 8, order=1).bits(text) / 200 == pytest.approx(2, rel=0.05)
    assert Counted([], 8).bits([1, 2]) == pytest.approx(2 * math.log2(8))
    with pytest.raises(ValueError, match="order"):
        Counted(text, 8, order=0)
