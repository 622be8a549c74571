"""Chapter 19's checks: the formulas held against counting and against an SVD."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.exercises import ch19
from minilora.svd import low_rank_error


@pytest.mark.parametrize(("n", "error"), [(20, 0.3), (16, 0.5), (9, 0.9)])
def test_the_rank_of_a_flat_spectrum_is_the_least_that_will_do(n: int, error: float) -> None:
    r = ch19.check_flat_rank.right(n, error)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    assert low_rank_error(rotation, r, relative=True) <= error + 1e-9
    assert low_rank_error(rotation, r - 1, relative=True) > error


def test_alarms_are_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    poisoned = rng.random(400_000) < 0.05
    alarm = rng.random(400_000) < np.where(poisoned, 0.9, 0.1)
    expected = ch19.check_true_alarms.right(0.05, 0.9, 0.1)
    assert np.mean(poisoned[alarm]) == pytest.approx(expected, abs=0.01)


def test_an_episode_is_worth_its_entropy() -> None:
    """Two answers: every episode is worth a bit, as a label is."""
    assert ch19.check_least_episodes.right(16, 2) == 16
    assert ch19.check_least_episodes.right(100, 19) > 10 * 100


def test_a_disguise_has_the_spectrum_of_one_and_the_directions_of_the_other() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(6, 4)) for seed in (0, 1))
    found = ch19.check_disguise.right(a, b)
    assert np.allclose(*(np.linalg.svd(one, compute_uv=False) for one in (found, b)))
    U, _, Vt = np.linalg.svd(a, full_matrices=False)
    inside = U.T @ found @ Vt.T
    assert np.allclose(inside, np.diag(np.diag(inside)))
    assert not np.allclose(found, a)
