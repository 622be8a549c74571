"""What the checks of chapter 2 accept, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.exercises import (
    check_errors_from_singular_values,
    check_leading_triplet,
    check_pca_scores,
    check_predicted_values,
    check_rank_for_error,
)


def test_the_predicted_values_are_those_that_numpy_computes() -> None:
    turn = np.radians(30)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrices = (np.diag([3, -5]), 2 * rotation, np.ones((4, 9)), [[0, 7], [0, 0]], [[3, 4]])
    for matrix, pair in zip(matrices, check_predicted_values.right(), strict=True):
        s = np.linalg.svd(np.array(matrix, float), compute_uv=False)
        np.testing.assert_allclose((s[0], s[-1]), pair, atol=1e-12)


def test_a_prediction_may_be_rounded_and_not_by_much() -> None:
    values = check_predicted_values.right()
    assert check_predicted_values.judge(lambda: (values + 1e-4).tolist()) is None
    assert check_predicted_values.judge(lambda: values + 0.1) is not None


@pytest.mark.parametrize("matrix", range(5))
def test_each_wrong_prediction_is_told_by_its_matrix(matrix: int) -> None:
    values = check_predicted_values.right()
    values[matrix] = 1.5
    verdict = check_predicted_values.judge(lambda: values)
    assert verdict is not None and f"Matrix {'ABCDE'[matrix]}:" in verdict.words


@pytest.mark.parametrize("kept", [2, 3])
def test_some_of_the_lost_values_are_not_all(kept: int) -> None:
    def the_next(s, r):
        return np.linalg.norm(s[r : r + kept]), s[r:].max(initial=0)

    assert check_errors_from_singular_values.judge(the_next) is not None


def test_four_values_are_not_wired_in() -> None:
    def of_four(s, r):
        return np.linalg.norm(s[r:4]), s[r:4].max(initial=0)

    assert check_errors_from_singular_values.judge(of_four) is not None


def test_a_rank_may_be_found_by_searching() -> None:
    def search(X, tolerance):
        s = np.linalg.svd(X, compute_uv=False)
        for r in range(len(s) + 1):
            if np.linalg.norm(s[r:]) <= tolerance * np.linalg.norm(s):
                return r

    assert check_rank_for_error.judge(search) is None


def test_scores_have_one_sign_a_column() -> None:
    def right(X, r):
        return check_pca_scores.right(X, r)

    assert check_pca_scores.judge(lambda X, r: right(X, r) * (-1) ** np.arange(r)) is None
    assert check_pca_scores.judge(lambda X, r: np.abs(right(X, r))) is not None


def until_it_settles(X, tolerance=1e-7):
    v = np.random.default_rng(3).standard_normal(X.shape[1])
    v = v / np.linalg.norm(v)
    while True:
        w = X.T @ (X @ v)
        w = w / np.linalg.norm(w)
        if np.linalg.norm(w - v) < tolerance:
            u = X @ w
            return u / np.linalg.norm(u), np.linalg.norm(u), w
        v = w


def test_going_on_until_the_vector_settles_is_right() -> None:
    assert check_leading_triplet.judge(until_it_settles) is None


@pytest.mark.parametrize("rounds", [14, 200])
def test_a_number_of_rounds_is_not_enough_for_every_gap(rounds: int) -> None:
    def some_rounds(X):
        v = np.random.default_rng(5).standard_normal(X.shape[1])
        for _ in range(rounds):
            v = X.T @ (X @ v)
            v = v / np.linalg.norm(v)
        return X @ v / np.linalg.norm(X @ v), np.linalg.norm(X @ v), v

    verdict = check_leading_triplet.judge(some_rounds)
    assert verdict is not None and "stop too early" in verdict.words


@pytest.mark.parametrize("name", ["svd", "eigh"])
def test_a_library_function_is_refused_in_words(name: str) -> None:
    def by_library(X):
        if name == "svd":
            U, s, Vt = np.linalg.svd(X)
            return U[:, 0], s[0], Vt[0]
        v = np.linalg.eigh(X.T @ X)[1][:, -1]
        return X @ v / np.linalg.norm(X @ v), np.linalg.norm(X @ v), v

    verdict = check_leading_triplet.judge(by_library)
    assert verdict is not None and f"np.linalg.{name}" in verdict.words


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_start_along_an_axis_can_be_stuck(start: int) -> None:
    def from_an_axis(X):
        v = np.eye(X.shape[1])[start % X.shape[1]]
        for _ in range(3000):
            v = X.T @ (X @ v)
            v = v / np.linalg.norm(v)
        return X @ v / np.linalg.norm(X @ v), np.linalg.norm(X @ v), v

    verdict = check_leading_triplet.judge(from_an_axis)
    assert (verdict is None) == (start == 1)
    assert verdict is None or "perpendicular to v1" in verdict.words
