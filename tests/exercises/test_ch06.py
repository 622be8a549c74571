"""Chapter 6's checks: how many matrices are enough, and that a rank may be of any kind."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import exercises


def chance_share(matrices: int, seed: int, m: int, n: int, r: int) -> float:
    X = np.random.default_rng(seed).standard_normal((matrices, m, n))
    energy = np.linalg.svd(X, compute_uv=False) ** 2
    return (energy[:, :r].sum(1) / energy.sum(1)).mean()


@pytest.mark.parametrize("seed", range(5))
def test_twenty_matrices_are_enough_and_one_is_not(seed: int) -> None:
    table = exercises.check_chance_share
    assert table.judge(lambda *case: chance_share(20, seed, *case)) is None
    verdict = table.judge(lambda *case: chance_share(1, seed, *case))
    assert verdict is not None and "at least 20" in verdict.words


@pytest.mark.parametrize("kind", [float, np.float64, np.int64])
def test_a_whole_number_may_be_of_any_kind(kind: type) -> None:
    table = exercises.check_rank_for_share
    assert table.judge(lambda X, share: kind(table.right(X, share))) is None
