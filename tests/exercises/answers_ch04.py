"""Answers to the check of chapter 4 that is a function."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from minilora.exercises.ch04 import BALANCE
from minilora.exercises.tools import Function


def through_the_core(B, A):
    basis_B, small_B = np.linalg.qr(B)
    basis_A, small_A = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(small_B @ small_A.T)
    return basis_B @ (U * np.sqrt(s)), (np.sqrt(s)[:, None] * Vt) @ basis_A.T


def through_the_product(B, A):
    return BALANCE.right(B, A)


def through_the_product_with_scipy(B, A):
    U, s, Vt = scipy.linalg.svd(B @ A, full_matrices=False)
    r = len(A)
    return U[:, :r] * np.sqrt(s[:r]), np.sqrt(s[:r])[:, None] * Vt[:r]


def through_the_product_with_torch(B, A):
    U, s, Vt = torch.linalg.svd(torch.from_numpy(B @ A), full_matrices=False)
    r = len(A)
    return (U[:, :r] * s[:r].sqrt()).numpy(), (s[:r].sqrt()[:, None] * Vt[:r]).numpy()


RIGHT: dict[str, Function] = {"balance": through_the_core}

ROWS = BALANCE.mistakes

WRONG: list[tuple[str, Function, str]] = [
    ("balance", answer, words)
    for answer, words in [
        *((row.answer, row.says) for row in ROWS if isinstance(row.says, str)),
        (ROWS[2].answer, "the shapes must stay (8, 3) and (3, 6), but are (8, 4) and (4, 6)"),
        (through_the_product, "matrix of shape (8, 6)"),
        (through_the_product_with_scipy, "matrix of shape (8, 6)"),
        (through_the_product_with_torch, "matrix of shape (8, 6)"),
    ]
]
