"""The right answers of the checks of chapter 4 against what their exercises describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilora.exercises import check_level_losses, check_predicted_rank, check_three_factors
from minilora.exercises.ch04 import BALANCE


def test_three_gradients_are_those_of_autograd() -> None:
    for case in check_three_factors.cases:
        G, B, M, A = (torch.from_numpy(part).requires_grad_() for part in case[:4])
        (G.detach() * (case[4] * B @ M @ A)).sum().backward()
        for found, part in zip(check_three_factors.right(*case), (B, M, A), strict=True):
            np.testing.assert_allclose(found, part.grad)


@pytest.mark.parametrize("kept", [[], [0], [2], [0, 1], [1, 3]])
def test_both_gradients_vanish_where_the_list_says(kept: list[int]) -> None:
    D, X, r = check_level_losses.cases[0]
    values, vectors = np.linalg.eigh(X.T @ X / len(X))
    root = vectors * np.sqrt(values) @ vectors.T
    U, s, Vt = np.linalg.svd(D @ root)
    B, A = np.zeros((4, r)), np.zeros((r, 4))
    B[:, : len(kept)] = U[:, kept]
    A[: len(kept)] = s[kept, None] * Vt[kept] @ np.linalg.inv(root)
    slope = 2 * (B @ A - D) @ root @ root
    np.testing.assert_allclose(B.T @ slope, 0, atol=1e-9)
    np.testing.assert_allclose(slope @ A.T, 0, atol=1e-9)
    loss = (((D - B @ A) @ X.T) ** 2).sum() / len(X)
    assert np.isclose(check_level_losses.right(D, X, r), loss).sum() == 1


def test_the_list_begins_with_the_floor() -> None:
    D, X, r = check_level_losses.cases[0]
    root = np.linalg.cholesky(X.T @ X / len(X))  # any root of Σ gives the same singular values
    floor = (np.linalg.svd(D @ root, compute_uv=False)[r:] ** 2).sum()
    assert np.isclose(check_level_losses.right(D, X, r)[0], floor)


@pytest.mark.parametrize("case", BALANCE.cases)
def test_a_balanced_pair_is_what_it_says(case: tuple[np.ndarray, np.ndarray]) -> None:
    B, A = BALANCE.right(*case)
    np.testing.assert_allclose(B @ A, case[0] @ case[1], atol=1e-12)
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-12)


def test_predicted_ranks_are_those_of_the_chapter() -> None:
    found = [check_predicted_rank.right(*case) for case in check_predicted_rank.cases]
    assert found == [4, 5, 6, 2, 2, 6, 0, 4]


def test_a_bare_loop_predicts_the_same() -> None:
    def by_hand(sizes, n, noise, d):
        return sum(size**2 > 3 * noise**2 * d / n for size in sizes)

    assert check_predicted_rank.judge(by_hand) is None
