"""Chapter 3's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exercise_help import exercise_tests

from minilora.exercises import ch03

Function = Callable[..., Any]


def values(X):
    return np.linalg.svd(X, compute_uv=False)


def stable_rank(X):
    return (np.linalg.norm(X) / np.linalg.norm(X, 2)) ** 2


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def effective_rank(s):
    return np.exp(entropy(s / s.sum()))


def counting_above(factor: float, power: float = 0.5, with_nu: bool = True) -> Function:
    def count(X, nu):
        return int((values(X) > factor * len(X) ** power * (nu if with_nu else 1)).sum())

    return count


worth_keeping = counting_above(4 / np.sqrt(3))


def blur_singular_values(kernel, n):
    return np.sort(np.abs(np.fft.fft(kernel, n)))[::-1]


def randomized_svd(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    U, s, Vt = np.linalg.svd(Q.T @ X, full_matrices=False)
    return (Q @ U)[:, :r], s[:r], Vt[:r]


RIGHT: dict[str, Function] = {
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "worth_keeping": worth_keeping,
    "blur_singular_values": blur_singular_values,
    "randomized_svd": randomized_svd,
}


def with_zeros_as_nan(s):
    p = s / s.sum()
    with np.errstate(all="ignore"):
        return np.exp(-(p * np.log(p)).sum())


def exact(X, omega, r):
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return U[:, :r], s[:r], Vt[:r]


def in_a_basis(X, Q, r):
    U, s, Vt = np.linalg.svd(Q.T @ X, full_matrices=False)
    return (Q @ U)[:, :r], s[:r], Vt[:r]


def from_the_sketch(X, omega, r):
    U, s, _ = np.linalg.svd(X @ omega, full_matrices=False)
    return U[:, :r], s[:r], np.linalg.svd(X)[2][:r]


def not_brought_back(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    U, s, Vt = np.linalg.svd(Q.T @ X, full_matrices=False)
    return U[:, :r], s[:r], Vt[:r]


def all_pieces(X, omega, r):
    return randomized_svd(X, omega, omega.shape[1])


def in_full_size(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    U, s, Vt = np.linalg.svd(Q @ (Q.T @ X), full_matrices=False)
    return U[:, :r], s[:r], Vt[:r]


def in_full_size_by_eigenvalues(X, omega, r):
    Q, _ = np.linalg.qr(X @ omega)
    squares, V = np.linalg.eigh(X.T @ Q @ Q.T @ X)
    s, V = np.sqrt(squares[::-1][:r]), V[:, ::-1][:, :r]
    return Q @ (Q.T @ X) @ V / s, s, V.T


def whole_qr(X, omega, r):
    Q = np.linalg.qr(X @ omega)
    return in_a_basis(X, Q, r)


def too_large(kernel, n):
    if n > 10_000:
        raise MemoryError
    return blur_singular_values(kernel, n)


def fixed_length(kernel, n):
    return blur_singular_values(kernel, min(n, 500))


WRONG: list[tuple[str, Function, str]] = [
    ("stable_rank", lambda X: stable_rank(X) ** 0.5, "ratio of their squares"),
    ("stable_rank", lambda X: 1 / stable_rank(X), "Upside down"),
    ("stable_rank", lambda X: stable_rank(X) ** -0.5, "Upside down"),
    (
        "stable_rank",
        lambda X: (X**2).sum() / np.linalg.norm(X, 2),
        "You squared ‖X‖_F only",
    ),
    (
        "stable_rank",
        lambda X: np.linalg.norm(X) / np.linalg.norm(X, 2) ** 2,
        "You squared ‖X‖₂ only",
    ),
    ("stable_rank", lambda X: values(X).sum() / values(X)[0], "Their squares are added"),
    ("stable_rank", lambda X: np.linalg.matrix_rank(X), "the rank itself"),
    ("stable_rank", lambda X: (X**2).sum() / np.abs(X).max() ** 2, "largest entry"),
    ("stable_rank", lambda X: stable_rank(X) + 1, "85/64"),
    ("stable_rank", lambda X: 85 / 64, "equal singular values"),
    ("stable_rank", lambda X: values(X), "must have shape"),
    ("effective_rank", lambda s: entropy(s / s.sum()), "a logarithm"),
    ("effective_rank", lambda s: 1 / effective_rank(s), "The sign is lost"),
    ("effective_rank", lambda s: effective_rank(s**2), "those of the squares"),
    ("effective_rank", lambda s: np.exp(entropy(s / s.sum()) / np.log(2)), "to base 2"),
    ("effective_rank", lambda s: 2 ** entropy(s / s.sum()), "then a power of 2"),
    ("effective_rank", lambda s: np.exp(entropy(s)), "Divide by the sum"),
    ("effective_rank", lambda s: effective_rank(s) + 1, "For 6, 3, 1"),
    ("effective_rank", with_zeros_as_nan, "NaN"),
    ("effective_rank", lambda s: effective_rank(s + (s == 0)), "two share equally"),
    ("worth_keeping", counting_above(2), "edge of the noise"),
    ("worth_keeping", counting_above(np.sqrt(3)), "size of the planted piece"),
    ("worth_keeping", counting_above(4 / np.sqrt(3), power=0), "The side is missing"),
    ("worth_keeping", counting_above(4 / np.sqrt(3), power=1), "not with n"),
    ("worth_keeping", counting_above(4 / np.sqrt(3), with_nu=False), "nu is missing"),
    (
        "worth_keeping",
        lambda X, nu: (values(X) ** 2 > 4 / np.sqrt(3 / len(X)) * nu).sum(),
        "compared the squares",
    ),
    ("worth_keeping", lambda X, nu: (values(X) > 2.858 * np.median(values(X))).sum(), "median"),
    ("worth_keeping", lambda X, nu: len(X), "Three pieces"),
    ("worth_keeping", lambda X, nu: int((values(X) > 11.6).sum()), "Another unit"),
    ("worth_keeping", lambda X, nu: int((values(X) > 23.1 * nu).sum()), "its own side"),
    ("blur_singular_values", lambda k, n: np.sort(np.abs(np.fft.fft(k)))[::-1], "Pad the list"),
    (
        "blur_singular_values",
        lambda k, n: np.sort(np.abs(np.fft.rfft(k, n)))[::-1],
        "second half of the waves",
    ),
    ("blur_singular_values", lambda k, n: np.fft.fft(k, n), "complex"),
    (
        "blur_singular_values",
        lambda k, n: np.sort(np.fft.fft(k, n).real)[::-1],
        "the real part",
    ),
    ("blur_singular_values", lambda k, n: np.abs(np.fft.fft(k, n)), "not yet sorted"),
    ("blur_singular_values", lambda k, n: blur_singular_values(k, n)[::-1], "wrong way round"),
    ("blur_singular_values", lambda k, n: blur_singular_values(k, n) ** 2, "the squares"),
    (
        "blur_singular_values",
        lambda k, n: np.sort(np.abs(np.fft.fft(k, n, norm="ortho")))[::-1],
        "Leave the transform as it is",
    ),
    ("blur_singular_values", lambda k, n: blur_singular_values(k, n) + 1, "not the sizes"),
    ("blur_singular_values", too_large, "does not fit into memory"),
    ("blur_singular_values", fixed_length, "a million places"),
    ("randomized_svd", exact, "saves nothing"),
    ("randomized_svd", lambda X, om, r: in_a_basis(X, X @ om, r), "not orthonormal"),
    (
        "randomized_svd",
        lambda X, om, r: in_a_basis(X, X @ om / np.linalg.norm(X @ om, axis=0), r),
        "right angles too",
    ),
    ("randomized_svd", from_the_sketch, "how large omega was drawn"),
    ("randomized_svd", not_brought_back, "Multiply it by Q"),
    ("randomized_svd", all_pieces, "keep r of them"),
    ("randomized_svd", lambda X, om, r: randomized_svd(X, om[:, :r], r), "only r columns"),
    ("randomized_svd", lambda X, om, r: randomized_svd(X.T, om, r), "a row for each column of X"),
    ("randomized_svd", whole_qr, "Q and R"),
    ("randomized_svd", in_full_size, "matrix of shape (12, 9)"),
    ("randomized_svd", in_full_size_by_eigenvalues, "matrix of shape (9, 9)"),
    (
        "randomized_svd",
        lambda X, om, r: (*randomized_svd(X, om, r)[:2], randomized_svd(X, om, r)[2].T),
        "lies on its side",
    ),
    ("randomized_svd", lambda X, om, r: randomized_svd(X, om, r)[1], "three things"),
    (
        "randomized_svd",
        lambda X, om, r: (-randomized_svd(X, om, r)[0], *randomized_svd(X, om, r)[1:]),
        "is not the approximation",
    ),
    (
        "randomized_svd",
        lambda X, om, r: (randomized_svd(X, om, r)[0][:4], *randomized_svd(X, om, r)[1:]),
        "must have shapes",
    ),
    (
        "randomized_svd",
        lambda X, om, r: [part + 1 for part in randomized_svd(X, om, r)],
        "singular values should be",
    ),
]


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)


def test_u_and_v_share_no_size() -> None:
    def stretched(X, omega, r):
        U, s, Vt = randomized_svd(X, omega, r)
        return 2 * U, s, Vt / 2

    with pytest.raises(AssertionError, match="orthonormal"):
        ch03.check_randomized_svd(stretched)


def test_any_signs_of_the_pieces_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def turned(X, omega, r):
        U, s, Vt = randomized_svd(X, omega, r)
        return -U, s, -Vt

    ch03.check_randomized_svd(turned)
    assert capsys.readouterr().out.startswith("passed: ")


def test_a_blur_is_what_its_matrix_is() -> None:
    """The right answer of the exercise against the matrix that the exercise describes."""
    kernel, n = np.array([0.5, 0.3, -0.2]), 8
    column = np.zeros(n)
    column[:3] = kernel
    matrix = np.stack([np.roll(column, shift) for shift in range(n)], axis=1)
    np.testing.assert_allclose(values(matrix), blur_singular_values(kernel, n), atol=1e-12)
