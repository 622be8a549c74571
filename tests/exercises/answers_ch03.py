"""Answers to the checks of chapter 3 that are functions."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from minilora.exercises.ch03 import RANDOMIZED_SVD, SHUFFLED_RIVAL
from minilora.exercises.tools import Function


def with_other_signs(X, omega, r):
    U, s, Vt = RANDOMIZED_SVD.right(X, omega, r)
    return -U, s, -Vt


def stretched(X, omega, r):
    U, s, Vt = RANDOMIZED_SVD.right(X, omega, r)
    return 2 * U, s, Vt / 2


def in_full_size(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    U, s, Vt = np.linalg.svd(Q @ (Q.T @ X), full_matrices=False)
    return U[:, :r], s[:r], Vt[:r]


def in_full_size_by_eigenvalues(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    squares, V = np.linalg.eigh(X.T @ Q @ Q.T @ X)
    s, V = np.sqrt(squares[::-1][:r]), V[:, ::-1][:, :r]
    return Q @ (Q.T @ X) @ V / s, s, V.T


def in_full_size_by_scipy(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    U, s, Vt = scipy.linalg.svd(Q @ (Q.T @ X), full_matrices=False)
    return U[:, :r], s[:r], Vt[:r]


def in_place(X, seed):
    np.random.default_rng(seed).permuted(X, axis=0, out=X)
    return X


RIGHT: dict[str, Function] = {
    "randomized_svd": with_other_signs,
    "shuffled_rival": SHUFFLED_RIVAL.right,
}

ROWS = RANDOMIZED_SVD.mistakes

WRONG: list[tuple[str, Function, str]] = [
    ("randomized_svd", answer, words)
    for answer, words in [
        *((row.answer, row.says) for row in ROWS if isinstance(row.says, str)),
        (ROWS[0].answer, "a row for each column of X"),
        (ROWS[1].answer, "Q and R"),
        (ROWS[6].answer, "must have shapes (12, 3), (3,) and (3, 9); found (4, 3)"),
        (ROWS[12].answer, "singular values should be"),
        (stretched, "orthonormal"),
        (in_full_size, "matrix of shape (12, 9)"),
        (in_full_size_by_eigenvalues, "matrix of shape (9, 9)"),
        (in_full_size_by_scipy, "matrix of shape (12, 9)"),
    ]
]

WRONG += [("shuffled_rival", row.answer, str(row.says)) for row in SHUFFLED_RIVAL.mistakes]
WRONG += [
    ("shuffled_rival", in_place, "shuffled its argument"),
    ("shuffled_rival", lambda X, seed: X[:-1], "must have shape"),
    ("shuffled_rival", lambda X, seed: X[::-1], "moved whole rows"),
]
