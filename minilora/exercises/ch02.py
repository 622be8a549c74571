"""Checks of chapter 2: the singular value decomposition."""

from __future__ import annotations

import numpy as np

from minilora.exercises.tools import (
    Function,
    array,
    call,
    close,
    example,
    not_attempted,
    passed,
    require,
)


def check_truncate(function: Function) -> None:
    """``function(X, r)``: X (m, n) → its best approximation of rank r, (m, n)."""
    X = example()
    try:
        answer = call(function, X.copy(), 2)
    except ValueError as error:
        raise AssertionError(
            f"Your shapes do not fit ({error}). The left singular vectors are the columns of U, "
            "U[:, :r], and the right ones the rows of Vt, Vt[:r]."
        ) from None
    if not_attempted(answer):
        return
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    found = array(answer, X.shape, "The approximation")
    require(
        not close(found, U[:, :2] @ Vt[:2]),
        "The singular values are missing: your pieces all have the same size. Multiply column i of "
        "U by s[i].",
    )
    require(
        not close(found, (U[:, 2:] * s[2:]) @ Vt[2:]),
        "You kept the pieces after the first r. NumPy sorts them from large to small: keep the "
        "first r.",
    )
    require(
        not close(found, (U[:, :2] * s[:2]) @ Vt.T[:2]),
        "NumPy returns Vᵀ, not V: its rows are the singular vectors already. "
        "Keep its first r rows, Vt[:r], and do not transpose it.",
    )
    require(
        close(found, (U[:, :2] * s[:2]) @ Vt[:2], 10),
        "This is not the best rank-2 approximation. Keep U[:, :r], s[:r] and Vt[:r].",
    )
    for r in (0, 1, 4):
        right = (U[:, :r] * s[:r]) @ Vt[:r]
        require(close(call(function, X.copy(), r), right, 10), f"Rank 2 is right, rank {r} is not.")
    passed("columns of U, rows of Vᵀ, and the sizes between them.")


def check_errors_from_singular_values(function: Function) -> None:
    """``function(s, r)``: s falling (k,) → (Frobenius error, spectral error) at rank r."""
    s, r = np.array([9.0, 6.0, 4.0, 3.0]), 2
    answer = call(function, s.copy(), r)
    if not_attempted(answer):
        return
    fro, spectral = array(answer, (2,), "The answer: (Frobenius error, spectral error), which")
    require(
        not (close(fro, 4) and close(spectral, 5)),
        "The two errors are the wrong way round: first Frobenius, then spectral.",
    )
    require(
        not close(fro, 7),
        "You added the lost singular values. Lengths at right angles add as in Pythagoras: add the "
        "squares, then take the root.",
    )
    require(not close(fro, 25), "You forgot the root: 25 is the squared Frobenius error.")
    require(
        not close(spectral, 6),
        "Off by one: at rank 2 the first two are kept, so the largest that is lost is the third, "
        "s[2], since Python counts from 0.",
    )
    require(
        not (close(fro, 3) and close(spectral, 3)),
        "You dropped one singular value too few from what is lost: at rank 2 the first two are "
        "kept, and s[2:] is lost, 4 and 3.",
    )
    require(close(fro, 5), f"The Frobenius error of 9, 6, 4, 3 at rank 2 is 5; found {fro}.")
    require(
        close(spectral, 4), f"The spectral error of 9, 6, 4, 3 at rank 2 is 4; found {spectral}."
    )
    try:
        answer = call(function, s.copy(), 4)
    except (IndexError, ValueError) as error:
        raise AssertionError(
            f"At full rank, r = 4, nothing is left to take the largest of ({error}). Both errors "
            "are 0 there."
        ) from None
    full = array(answer, (2,), "The answer at full rank")
    require(close(full, [0, 0]), f"At full rank nothing is lost: both are 0; found {full}.")
    passed("what is lost is the tail; its root of squares and its largest are the two errors.")


def check_rank_for_error(function: Function) -> None:
    """``function(X, tolerance)`` → the smallest r whose relative Frobenius error is ≤ tolerance."""
    X = example()  # 8, 4, 2, 1: squares 64, 16, 4, 1 of 85
    answer = call(function, X.copy(), 0.3)
    if not_attempted(answer):
        return
    # The errors at ranks 0 to 4 are 1, .497, .243, .108 and 0.
    cases = ((0.3, 2), (0.24, 3), (0.11, 3), (0.06, 4), (0.5, 1), (1.0, 0))
    found = [call(function, X.copy(), tolerance) for tolerance, _ in cases]
    right = [r for _, r in cases]
    squared = [1, 2, 2, 2, 1, 0]
    plain = [2, 2, 3, 4, 1, 0]
    require(
        found != [r + 1 for r in right] and found != [min(r + 1, 4) for r in right],
        "One too many each time. Entry r of the list of errors is the error at rank r, and the "
        "list begins with rank 0.",
    )
    require(
        found != [r - 1 for r in right] and found != [max(r - 1, 0) for r in right],
        "One too few each time. Entry r of the list of errors is the error at rank r, and the "
        "list begins with rank 0.",
    )
    require(
        None not in found,
        "For one tolerance you return nothing. A tolerance of 1 must give rank 0, since the error "
        'of zeros is 1, and "at most" allows equality; and rank 4 must be possible, with error 0.',
    )
    require(
        found[:5] != squared[:5],
        "You compared the share of squares that is lost with the tolerance. The relative error is "
        "its root: an error of 10% is a lost share of 1%.",
    )
    require(
        found[:5] != plain[:5],
        "You added singular values where their squares are to be added, and taken the root of.",
    )
    for (tolerance, expected), value in zip(cases, found, strict=True):
        require(
            value == expected,
            f"For singular values 8, 4, 2, 1 and tolerance {tolerance} the smallest rank is "
            f"{expected}; found {value}.",
        )
    passed("the smallest rank that is good enough.")


def check_pca_scores(function: Function) -> None:
    """``function(X, r)``: X (examples, features) → PCA scores (examples, r), signs left open."""
    X = example() + np.array([3.0, -2.0, 0.0, 5.0])
    answer = call(function, X.copy(), 2)
    if not_attempted(answer):
        return
    centred = X - X.mean(axis=0)
    U, s, Vt = np.linalg.svd(centred, full_matrices=False)
    found = np.abs(array(answer, (5, 2), "The scores of 5 examples at r = 2"))
    U0, s0, _ = np.linalg.svd(X, full_matrices=False)
    by_row = X - X.mean(axis=1, keepdims=True)
    Ur, sr, _ = np.linalg.svd(by_row, full_matrices=False)
    require(
        not close(found, np.abs(U0[:, :2] * s0[:2])),
        "You forgot to subtract the mean. Without it the first direction points at the average "
        "example, and this is TruncatedSVD, not PCA.",
    )
    require(
        not close(found, np.abs(Ur[:, :2] * sr[:2])),
        "You subtracted each example's own mean. PCA subtracts each feature's mean over the "
        "examples: X.mean(axis=0).",
    )
    require(
        not close(found, np.abs(U[:, :2])),
        "These are the columns of U, all of length one. Scores carry the size too: multiply by s.",
    )
    require(
        not close(found, np.abs(X @ Vt[:2].T)),
        "You found the directions from the centred data, then projected the data with its mean. "
        "Project the centred data.",
    )
    require(close(found, np.abs(U[:, :2] * s[:2]), 10), "These are not the first two PCA scores.")
    passed("PCA is the truncated SVD of the centred data.")


def check_leading_triplet(function: Function) -> None:
    """``function(X)``: X (m, n) → (u, sigma, v), the leading singular triplet, signs left open."""
    X = example()
    answer = call(function, X.copy())
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 3,
        "Return three things, in this order: u, sigma, v.",
    )
    require(np.ndim(answer[1]) == 0, "Return u, sigma, v in this order: sigma is one number.")
    u, sigma, v = array(answer[0], (5,), "u"), float(answer[1]), array(answer[2], (4,), "v")
    require(
        np.isfinite(u).all() and np.isfinite(sigma) and np.isfinite(v).all(),
        "Your vectors grew until they overflowed. Divide by the length after every multiplication.",
    )
    require(
        not np.isclose(sigma, 64),
        "64 is sigma squared: one round, by X and by its transpose, stretches twice. Take |X v|.",
    )
    require(
        np.isclose(np.linalg.norm(v), 1) and np.isclose(np.linalg.norm(u), 1),
        "u and v must have length one; all of the size belongs to sigma. "
        f"Found lengths {np.linalg.norm(u):.4g} and {np.linalg.norm(v):.4g}.",
    )
    require(
        np.isclose(sigma, 8, rtol=1e-6),
        f"The leading singular value is 8; found {sigma:.6g}. If it is a little less, go round "
        "more often.",
    )
    require(
        np.allclose(X @ v, sigma * u, atol=1e-4),
        "X v must be sigma times u, sign included: compute u from the last v, as X v / |X v|.",
    )
    require(
        np.allclose(X.T @ u, sigma * v, atol=1e-3),
        "Xᵀ u is not sigma times v: v has not settled yet. Go round more often.",
    )
    tilted = np.array([[2.0, -1.0], [-1.0, 2.0]])  # v1 is (1, -1) / sqrt(2), sigma 3
    sigma = float(call(function, tilted)[1])
    require(
        np.isclose(sigma, 3, rtol=1e-6),
        f"For [[2, -1], [-1, 2]] the leading singular value is 3; found {sigma:.6g}. A start of "
        "ones is perpendicular to v1 there and never turns towards it: draw the start at random.",
    )
    passed("to and fro through X, and the largest direction takes over.")
