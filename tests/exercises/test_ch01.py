"""What the checks of chapter 1 accept, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.exercises import (
    check_count_crosses,
    check_largest_saving_rank,
    check_predicted_ranks,
    check_square_factors,
    check_with_identity,
)


def test_the_predicted_ranks_are_those_that_numpy_counts() -> None:
    i, j = np.mgrid[1:9, 1:9].astype(float)
    tables = (i * j + 1, 2 ** (i + j), i**2 + j**2, np.cos(i - j), abs(i - j))
    ranks = [int(np.linalg.matrix_rank(table)) for table in tables]
    assert check_predicted_ranks.right() == ranks
    assert check_predicted_ranks.judge(lambda: np.array(ranks)) is None


@pytest.mark.parametrize("table", range(5))
@pytest.mark.parametrize("guess", [0, 1, 2, 3, 4, 8])
def test_each_wrong_rank_is_told_by_its_table(table: int, guess: int) -> None:
    ranks = check_predicted_ranks.right()
    if guess == ranks[table]:
        return
    ranks[table] = guess
    verdict = check_predicted_ranks.judge(lambda: ranks)
    assert verdict is not None and f"Table {'ABCDE'[table]}:" in verdict.words


def test_the_last_rank_that_pays_is_found_by_trying_all() -> None:
    for m in range(1, 40):
        for n in range(1, 40):
            tried = max(r for r in range(min(m, n)) if r * (m + n) < m * n)
            assert check_largest_saving_rank.right(m, n) == tried


def test_a_square_may_be_made_in_other_ways() -> None:
    def by_peeling(a, b):
        left = (a[:, None] + b) ** 2
        columns, rows = [], []
        for _ in range(3):
            i, j = np.unravel_index(np.abs(left).argmax(), left.shape)
            if left[i, j] == 0:
                columns.append(0 * left[:, j])
                rows.append(0 * left[i])
                continue
            columns.append(left[:, j] / left[i, j])
            rows.append(left[i])
            left = left - np.outer(columns[-1], rows[-1])
        return np.column_stack(columns), np.vstack(rows)

    assert check_square_factors.judge(by_peeling) is None


def test_crosses_may_be_taken_anywhere_that_is_not_zero() -> None:
    def first_large_entry(X):
        left, count, limit = X.copy(), 0, 1e-9 * np.abs(X).max()
        while (np.abs(left) > limit).any():
            i, j = np.argwhere(np.abs(left) >= 0.5 * np.abs(left).max())[0]
            left = left - np.outer(left[:, j], left[i]) / left[i, j]
            count += 1
        return count

    assert check_count_crosses.judge(first_large_entry) is None


def test_a_library_function_is_refused_in_words() -> None:
    def by_svd(X):
        s = np.linalg.svd(X, compute_uv=False)
        return int((s > 1e-9 * s[0]).sum())

    verdict = check_count_crosses.judge(by_svd)
    assert verdict is not None and "np.linalg.svd" in verdict.words
    assert np.linalg.matrix_rank(np.eye(2)) == 2, "what was forbidden is there again"


def test_only_the_tall_factor_changed_is_refused() -> None:
    def half(C, R):
        return check_with_identity.right(C, R)[0], R

    verdict = check_with_identity.judge(half)
    assert verdict is not None and "R is what it was" in verdict.words


def test_the_explicit_inverse_is_as_good() -> None:
    def inverse(C, R):
        T = C[: C.shape[1]]
        return C @ np.linalg.inv(T), T @ R

    assert check_with_identity.judge(inverse) is None
