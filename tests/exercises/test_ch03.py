"""Chapter 3's checks: estimates against tables, and second right ways that must pass."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import svd
from minilora.exercises import ch03


@pytest.mark.parametrize("case", [(0.5, 12**-0.5), (-1.0, 3.0)])
def test_the_estimate_is_that_of_a_large_table(case: tuple[float, float]) -> None:
    mean, sd = case
    table = np.random.default_rng(0).normal(mean, sd, (1000, 900))
    estimate = ch03.check_stable_rank_of_noise.right(mean, sd)
    assert svd.stable_rank(table) == pytest.approx(estimate, rel=0.02)


def test_other_lists_on_which_the_counts_part_are_accepted() -> None:
    def with_a_slope(k: int) -> np.ndarray:
        tail = np.linspace(1.2, 0.8, k - 1)
        return np.append(1.0, tail * np.sqrt(0.099 / np.sum(tail**2)))

    assert ch03.check_two_counts.judge(with_a_slope) is None
    assert ch03.check_two_counts.judge(lambda k: list(with_a_slope(k))) is None


@pytest.mark.parametrize("seed", range(20))
def test_columns_shuffled_one_by_one_are_accepted_whatever_the_draw(seed: int) -> None:
    def column_by_column(X: np.ndarray, _: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.stack([rng.permutation(column) for column in X.T], axis=1)

    assert ch03.SHUFFLED_RIVAL.judge(column_by_column) is None


def test_the_factor_of_the_page_is_exact_enough() -> None:
    def by_three_digits(X: np.ndarray, nu: float) -> int:
        s = np.linalg.svd(X, compute_uv=False)
        return int(np.sum(s > 2.309 * np.sqrt(len(X)) * nu))

    assert ch03.check_worth_keeping.judge(by_three_digits) is None
