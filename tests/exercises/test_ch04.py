"""What a check of chapter 4 must let pass."""

from __future__ import annotations

import numpy as np

from minilora.exercises import check_weighted_floor


def test_any_root_of_sigma_gives_the_floor() -> None:
    def through_cholesky(D, X, r):
        root = np.linalg.cholesky(X.T @ X / len(X))
        return (np.linalg.svd(D @ root, compute_uv=False)[r:] ** 2).sum()

    assert check_weighted_floor.judge(through_cholesky) is None
