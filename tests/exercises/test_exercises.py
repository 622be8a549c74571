"""Every check: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minilora import exercises

Function = Callable[..., Any]


def svd(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(X, full_matrices=False)


# Right answers.


def addition_factors(a, b):
    return np.column_stack([a, np.ones(len(a))]), np.vstack([np.ones(len(b)), b])


def peel_once(X, i, j):
    return X - np.outer(X[:, j], X[i]) / X[i, j]


def truncate(X, r):
    U, s, Vt = svd(X)
    return (U[:, :r] * s[:r]) @ Vt[:r]


def errors(s, r):
    return np.sqrt((s[r:] ** 2).sum()), (s[r] if r < len(s) else 0.0)


def relative_errors(X, power=2):
    s = svd(X)[1] ** power
    return np.append(np.cumsum(s[::-1])[::-1], 0) / s.sum()


def rank_for_error(X, tolerance):
    return int(np.argmax(np.sqrt(relative_errors(X)) <= tolerance))


def never_full_rank(X, tolerance):
    for r, error in enumerate(np.sqrt(relative_errors(X))[:-1]):
        if error <= tolerance:
            return r


def share_of_squares(X, tolerance):
    kept = np.cumsum(svd(X)[1] ** 2) / (svd(X)[1] ** 2).sum()
    return int(np.argmax(kept >= 1 - tolerance)) + 1


def pca_scores(X, r):
    U, s, _ = svd(X - X.mean(axis=0))
    return -U[:, :r] * s[:r]


def leading_triplet(X, rounds=200, start=None):
    v = np.random.default_rng(0).standard_normal(X.shape[1]) if start is None else start
    for _ in range(rounds):
        v = X.T @ (X @ v)
        v = v / np.linalg.norm(v)
    sigma = np.linalg.norm(X @ v)
    return X @ v / sigma, sigma, v


RIGHT: dict[str, Function] = {
    "outer_product": lambda u, v: u[:, None] * v[None, :],
    "largest_saving_rank": lambda m, n: (m * n - 1) // (m + n),
    "addition_factors": addition_factors,
    "peel_once": peel_once,
    "truncate": truncate,
    "errors_from_singular_values": errors,
    "rank_for_error": rank_for_error,
    "pca_scores": pca_scores,
    "leading_triplet": leading_triplet,
}


def clear_row(X, i, j):
    X[i] = 0
    return X


def three_pieces(a, b):
    C, R = addition_factors(a, b)
    return np.column_stack([C, 0 * C[:, 0]]), np.vstack([R, R[0]])


def projected_with_mean(X, r):
    return X @ svd(X - X.mean(axis=0))[2][:r].T


def without_mean(X, r):
    U, s, _ = svd(X)
    return U[:, :r] * s[:r]


def overflowing(X):
    with np.errstate(all="ignore"):
        v = np.ones(X.shape[1])
        for _ in range(1000):
            v = X.T @ (X @ v)
        return X @ v, np.linalg.norm(X @ v), v


def unscaled(X):
    u, sigma, v = leading_triplet(X)
    return sigma * u, sigma, v


def squared(X):
    u, sigma, v = leading_triplet(X)
    return u, sigma**2, v


def flipped(X):
    u, sigma, v = leading_triplet(X)
    return -u, sigma, v


# (check, wrong answer, words that its message must hold)
WRONG: list[tuple[str, Function, str]] = [
    ("outer_product", lambda u, v: u[:2] @ v, "inner product"),
    ("outer_product", lambda u, v: u * v, "u[:, None]"),
    ("outer_product", lambda u, v: u.T @ v, "u[:, None]"),
    ("outer_product", lambda u, v: np.outer(v, u), "on its side"),
    ("outer_product", lambda u, v: np.outer(u, v).ravel(), "must have shape"),
    ("outer_product", lambda u, v: u[:, None] + v[None, :], "u[i] * v[j]"),
    ("largest_saving_rank", lambda m, n: min(m, n), "largest rank that the matrix can have"),
    ("largest_saving_rank", lambda m, n: m * n / (m + n), "whole number"),
    ("largest_saving_rank", lambda m, n: -(-m * n // (m + n)), "one too many"),
    ("largest_saving_rank", lambda m, n: m * n // (m + n), "break-even"),
    ("largest_saving_rank", lambda m, n: 12, "the answer is 256"),
    ("addition_factors", lambda a, b: a[:, None] + b, "the two factors"),
    (
        "addition_factors",
        lambda a, b: tuple(F.T for F in addition_factors(a, b)),
        "on its side",
    ),
    ("addition_factors", lambda a, b: (a, b), "must be matrices"),
    ("addition_factors", lambda a, b: addition_factors(a, b)[::-1], "R comes first"),
    ("addition_factors", three_pieces, "two are enough"),
    (
        "addition_factors",
        lambda a, b: (np.column_stack([a, 0 * a]), np.vstack([b, b])),
        "multiplication table",
    ),
    (
        "addition_factors",
        lambda a, b: (np.column_stack([a, a]), np.vstack([b, b])),
        "row of ones",
    ),
    ("peel_once", lambda X, i, j: np.outer(X[:, j], X[i]) / X[i, j], "the piece itself"),
    ("peel_once", lambda X, i, j: X - np.outer(X[:, j], X[i]), "divide by X[i, j]"),
    ("peel_once", clear_row, "one row"),
    ("peel_once", lambda X, i, j: X, "must be zero"),
    ("peel_once", lambda X, i, j: 2 * peel_once(X, i, j), "the rest is wrong"),
    ("peel_once", lambda X, i, j: peel_once(X, j, i), "column j and row i"),
    ("peel_once", lambda X, i, j: peel_once(X, 1, 1), "wrong for i = 0, j = 2"),
    ("truncate", lambda X, r: (svd(X)[0][:r] * svd(X)[1][:r]) @ svd(X)[2][:r], "U[:, :r]"),
    ("truncate", lambda X, r: svd(X)[0][:, :r] @ svd(X)[2][:r], "singular values are missing"),
    ("truncate", lambda X, r: X - truncate(X, r), "after the first r"),
    (
        "truncate",
        lambda X, r: (svd(X)[0][:, :r] * svd(X)[1][:r]) @ svd(X)[2].T[:r],
        "do not transpose",
    ),
    ("truncate", lambda X, r: 0 * X, "not the best"),
    ("truncate", lambda X, r: truncate(X, 2), "Rank 2 is right, rank 0"),
    ("errors_from_singular_values", lambda s, r: errors(s, r)[::-1], "wrong way round"),
    ("errors_from_singular_values", lambda s, r: (s[r:].sum(), s[r]), "Pythagoras"),
    ("errors_from_singular_values", lambda s, r: ((s[r:] ** 2).sum(), s[r]), "forgot the root"),
    ("errors_from_singular_values", lambda s, r: (errors(s, r)[0], s[r - 1]), "Off by one"),
    ("errors_from_singular_values", lambda s, r: (1.0, s[r]), "Frobenius error of"),
    ("errors_from_singular_values", lambda s, r: (errors(s, r)[0], 0.0), "spectral error of"),
    ("errors_from_singular_values", lambda s, r: (errors(s, r)[0], s[min(r, 3)]), "full rank"),
    ("errors_from_singular_values", lambda s, r: errors(s, r + 1), "s[2:] is lost"),
    ("errors_from_singular_values", lambda s, r: (errors(s, r)[0], s[r]), "At full rank, r = 4"),
    ("rank_for_error", never_full_rank, "rank 4 must be possible"),
    ("rank_for_error", share_of_squares, "share of squares"),
    ("rank_for_error", lambda X, t: rank_for_error(X, t) + 1, "One too many"),
    ("rank_for_error", lambda X, t: max(rank_for_error(X, t) - 1, 0), "One too few"),
    ("rank_for_error", lambda X, t: int(np.argmax(relative_errors(X) <= t)), "share of squares"),
    (
        "rank_for_error",
        lambda X, t: int(np.argmax(relative_errors(X, 1) <= t)),
        "added singular values",
    ),
    ("rank_for_error", lambda X, t: 2, "the smallest rank is 3"),
    ("pca_scores", without_mean, "subtract the mean"),
    ("pca_scores", lambda X, r: without_mean(X - X.mean(1, keepdims=True), r), "own mean"),
    ("pca_scores", lambda X, r: svd(X - X.mean(axis=0))[0][:, :r], "multiply by s"),
    ("pca_scores", projected_with_mean, "Project the centred data"),
    ("pca_scores", lambda X, r: X[:, :r], "not the first two"),
    ("pca_scores", lambda X, r: X, "must have shape"),
    ("leading_triplet", lambda X: leading_triplet(X)[:2], "three things"),
    ("leading_triplet", lambda X: (*leading_triplet(X)[::2], 8.0), "one number"),
    ("leading_triplet", overflowing, "overflowed"),
    ("leading_triplet", squared, "sigma squared"),
    ("leading_triplet", unscaled, "length one"),
    ("leading_triplet", lambda X: leading_triplet(X, 1), "go round"),
    ("leading_triplet", flipped, "sign included"),
    ("leading_triplet", lambda X: leading_triplet(X, 200, np.ones(X.shape[1])), "at random"),
]


# Chapter 4.


def gradients(G, A, B, scale, power=1):
    return scale**power * B.T @ G, scale**power * G @ A.T


def floor(D, r):
    return (svd(D)[1][r:] ** 2).sum()


def weighted_floor(D, X, r):
    return floor(X @ D.T, r) / len(X)


def cut_then_weighed(D, X, r):
    return (((D - truncate(D, r)) @ X.T) ** 2).sum() / len(X)


def through_cholesky(D, X, r):
    return floor(D @ np.linalg.cholesky(X.T @ X / len(X)), r)


def balance(B, A, power=0.5, extra=0):
    U, s, Vt = svd(B @ A)
    r = len(A) + extra
    return U[:, :r] * s[:r] ** power, s[:r, None] ** (1 - power) * Vt[:r]


def equal_norms(B, A):
    c = np.sqrt(np.linalg.norm(A) / np.linalg.norm(B))
    return c * B, A / c


def mean_errors(*means: float) -> Function:
    """An answer with these mean errors at ranks 4, 6, 12 and 48."""
    return lambda r: np.full(5, means[(4, 6, 12, 48).index(r)])


RIGHT |= {
    "lora_gradients": gradients,
    "floor": floor,
    "weighted_floor": weighted_floor,
    "balance": balance,
    "many_examples": mean_errors(0.66, 0.21, 0.34, 0.55),
}

WRONG += [
    ("lora_gradients", lambda G, A, B, s: s * B.T @ G, "return two arrays"),
    ("lora_gradients", lambda *given: gradients(*given)[::-1], "gradient of A comes first"),
    ("lora_gradients", lambda G, A, B, s: (A @ G.T, G @ A.T), "the shape of A"),
    ("lora_gradients", lambda *given: gradients(*given, power=0), "lacks the factor s"),
    ("lora_gradients", lambda *given: gradients(*given, power=2), "the factor s twice"),
    ("lora_gradients", lambda G, A, B, s: gradients(-G, A, B, s), "wrong sign"),
    ("lora_gradients", lambda G, A, B, s: gradients(G + 1, A, B, s), "A sees G through B"),
    ("floor", lambda D, r: svd(D)[1][r:].sum(), "so square them"),
    ("floor", lambda D, r: np.sqrt(floor(D, r)), "the loss is its square"),
    ("floor", lambda D, r: floor(D, 0) - floor(D, r), "what rank r captures"),
    ("floor", lambda D, r: floor(D, r) / floor(D, 0), "the share that rank r leaves over"),
    ("floor", lambda D, r: floor(D, r + 1), "one singular value too many"),
    ("floor", lambda D, r: floor(D, r) - floor(D, r + 1), "spectral norm"),
    ("floor", lambda D, r: floor(D, 1), "after the first r"),
    ("weighted_floor", cut_then_weighed, "you cut the SVD of D itself"),
    (
        "weighted_floor",
        lambda D, X, r: floor(X @ D.T, r) / floor(X @ D.T, 0),
        "the share left over",
    ),
    (
        "weighted_floor",
        lambda D, X, r: floor(D @ np.linalg.cholesky(X.T @ X / len(X)).T, r),
        "Cholesky factor is the wrong way round",
    ),
    ("weighted_floor", lambda D, X, r: floor(D, r), "you did not use X"),
    ("weighted_floor", lambda D, X, r: floor(X @ D.T, r), "you added up the error"),
    ("weighted_floor", lambda D, X, r: floor(X @ D.T / len(X), r), "before squaring"),
    ("weighted_floor", lambda D, X, r: floor(D @ X.T @ X / len(X), r), "multiplied D by Σ"),
    ("weighted_floor", lambda D, X, r: weighted_floor(D, X - X.mean(0), r), "as they are"),
    ("weighted_floor", lambda D, X, r: weighted_floor(D.T, X, r), "D is transposed"),
    ("weighted_floor", lambda D, X, r: weighted_floor(D, X, r + 1), "after the first r"),
    ("balance", lambda B, A: B @ A, "the new B and the new A"),
    ("balance", lambda B, A: balance(B, A)[::-1], "B first, then A"),
    ("balance", lambda B, A: balance(B, A, extra=1), "first r singular values only"),
    ("balance", lambda B, A: (2 * B, A), "the product has changed"),
    ("balance", lambda B, A: balance(B, A, power=1), "all the singular values"),
    ("balance", lambda B, A: balance(B, A, power=0), "all the singular values"),
    ("balance", equal_norms, "equal norms are not enough"),
    ("many_examples", lambda r: 0.5, "one error for each draw"),
    ("many_examples", lambda r: np.zeros((2, 5)), "one error for each draw"),
    ("many_examples", mean_errors(2.19, 2.50, 3.13, 3.58), "as with 96 examples"),
    ("many_examples", mean_errors(0.65, 0.20, 0.45, 0.79), "return the tuned errors"),
    ("many_examples", mean_errors(0.2, 0.2, 0.1, 0.2), "at the rank it is given"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(exercises, f"check_{name}")(RIGHT[name])
    assert capsys.readouterr().out.startswith("passed: ")


@pytest.mark.parametrize("name", RIGHT)
def test_stubs_are_no_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def raises(*_: Any) -> None:
        raise NotImplementedError

    check = getattr(exercises, f"check_{name}")
    check(lambda *_: None)
    check(raises)
    assert capsys.readouterr().out == "not attempted yet\n" * 2


@pytest.mark.parametrize(
    ("name", "function", "words"), WRONG, ids=[f"{n}: {w}" for n, _, w in WRONG]
)
def test_wrong_answers_hear_why(name: str, function: Function, words: str) -> None:
    with pytest.raises(AssertionError) as error:
        getattr(exercises, f"check_{name}")(function)
    assert words in str(error.value)


def test_a_bug_in_the_answer_is_shown_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        exercises.check_outer_product(lambda u, v: 1 / 0)


def test_any_root_of_sigma_gives_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.check_weighted_floor(through_cholesky)
    assert capsys.readouterr().out.startswith("passed: ")
