"""Checks of chapter 2: the singular value decomposition."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    close,
    example,
    is_numeric,
    misshapen,
)


def _svd(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return U, s, Vt


def _alike(says: str, *answers: Function) -> list[Mistake]:
    """One mistake in several forms."""
    return [Mistake(answer, says) for answer in answers]


def _truncate(X: np.ndarray, r: int) -> np.ndarray:
    U, s, Vt = _svd(X)
    return (U[:, :r] * s[:r]) @ Vt[:r]


check_truncate = Exercise(
    asks="X (m, n), r → its best approximation of rank r, (m, n).",
    cases=[(example(), r) for r in (2, 0, 1, 4)],
    right=_truncate,
    mistakes=[
        Mistake(
            lambda X, r: (_svd(X)[0][:r] * _svd(X)[1][:r]) @ _svd(X)[2][:r],
            lambda error, X, r: (
                f"Your shapes do not fit ({error}). The left singular vectors are the columns of "
                "U, U[:, :r], and the right ones the rows of Vt, Vt[:r]."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda X, r: _svd(X)[0][:, :r] @ _svd(X)[2][:r],
            "The singular values are missing: your pieces all have the same size. Multiply column "
            "i of U by s[i].",
        ),
        Mistake(
            lambda X, r: X - _truncate(X, r),
            "You kept the pieces after the first r. NumPy sorts them from large to small: keep the "
            "first r.",
            when=lambda found, X, r: r == 2 and close(found, X - _truncate(X, r)),
        ),
        Mistake(
            lambda X, r: (_svd(X)[0][:, :r] * _svd(X)[1][:r]) @ _svd(X)[2].T[:r],
            "NumPy returns Vᵀ, not V: its rows are the singular vectors already. "
            "Keep its first r rows, Vt[:r], and do not transpose it.",
        ),
    ],
    otherwise=lambda found, X, r: (
        f"Rank 2 is right, rank {r} is not."
        if r != 2
        else "This is not the best rank-2 approximation. Keep U[:, :r], s[:r] and Vt[:r]."
    ),
    passed="columns of U, rows of Vᵀ, and the sizes between them.",
    parts="The approximation",
    same=lambda found, right: close(found, right, 10),
)


def _errors(s: np.ndarray, r: int) -> tuple[float, float]:
    return np.sqrt((s[r:] ** 2).sum()), s[r:].max(initial=0)


def _wrong_error(found: Any, s: np.ndarray, r: int) -> str:
    if r == len(s):
        return f"At full rank nothing is lost: both are 0; found {np.asarray(found)}."
    if not close(found[0], 5):
        return f"The Frobenius error of 9, 6, 4, 3 at rank 2 is 5; found {found[0]}."
    return f"The spectral error of 9, 6, 4, 3 at rank 2 is 4; found {found[1]}."


check_errors_from_singular_values = Exercise(
    asks="s falling (k,), r → (Frobenius error, spectral error) at rank r.",
    cases=[(np.array([9.0, 6.0, 4.0, 3.0]), r) for r in (2, 4)],
    right=_errors,
    mistakes=[
        Mistake(
            lambda s, r: _errors(s, r)[::-1],
            "The two errors are the wrong way round: first Frobenius, then spectral.",
            when=lambda found, s, r: close(found, (4, 5)),
        ),
        Mistake(
            lambda s, r: (s[r:].sum(), s[r]),
            "You added the lost singular values. Lengths at right angles add as in Pythagoras: add "
            "the squares, then take the root.",
            when=lambda found, s, r: close(found[0], 7),
        ),
        Mistake(
            lambda s, r: ((s[r:] ** 2).sum(), s[r]),
            "You forgot the root: 25 is the squared Frobenius error.",
            when=lambda found, s, r: close(found[0], 25),
        ),
        Mistake(
            lambda s, r: (_errors(s, r)[0], s[r - 1]),
            "Off by one: at rank 2 the first two are kept, so the largest that is lost is the "
            "third, s[2], since Python counts from 0.",
            when=lambda found, s, r: r == 2 and close(found[1], 6),
        ),
        Mistake(
            lambda s, r: _errors(s, r + 1),
            "You dropped one singular value too few from what is lost: at rank 2 the first two are "
            "kept, and s[2:] is lost, 4 and 3.",
            when=lambda found, s, r: close(found, (3, 3)),
        ),
        Mistake(
            lambda s, r: (_errors(s, r)[0], s[r]),
            lambda error, s, r: (
                f"At full rank, r = 4, nothing is left to take the largest of ({error}). Both "
                "errors are 0 there."
            ),
            raises=(IndexError, ValueError),
        ),
        Mistake(lambda s, r: (_errors(s, r)[0], s[min(r, 3)]), _wrong_error),
    ],
    otherwise=_wrong_error,
    passed="what is lost is the tail; its root of squares and its largest are the two errors.",
    parts=("the Frobenius error", "the spectral error"),
)


def _rank_for_error(X: np.ndarray, tolerance: float, power: int = 2, root: float = 0.5) -> int:
    lost = np.append(np.cumsum(_svd(X)[1][::-1] ** power)[::-1], 0)
    return int(np.argmax((lost / lost[0]) ** root <= tolerance))


check_rank_for_error = Exercise(
    asks="X, tolerance → the smallest r whose relative Frobenius error is ≤ tolerance.",
    # The errors at ranks 0 to 4 are 1, .497, .243, .108 and 0.
    cases=[(example(), tolerance) for tolerance in (0.3, 0.24, 0.11, 0.06, 0.5, 1.0)],
    right=_rank_for_error,
    mistakes=[
        *_alike(
            "One too many each time. Entry r of the list of errors is the error at rank r, and the "
            "list begins with rank 0.",
            lambda X, t: _rank_for_error(X, t) + 1,
            lambda X, t: min(_rank_for_error(X, t) + 1, 4),
        ),
        *_alike(
            "One too few each time. Entry r of the list of errors is the error at rank r, and the "
            "list begins with rank 0.",
            lambda X, t: _rank_for_error(X, t) - 1,
            lambda X, t: max(_rank_for_error(X, t) - 1, 0),
        ),
        Mistake(
            lambda X, t: _rank_for_error(X, t) if t > 0.1 else None,
            "For one tolerance you return nothing. A tolerance of 1 must give rank 0, since the "
            'error of zeros is 1, and "at most" allows equality; and rank 4 must be possible, with '
            "error 0.",
            when=lambda found, X, t: found is None,
        ),
        *_alike(
            "You compared the share of squares that is lost with the tolerance. The relative error "
            "is its root: an error of 10% is a lost share of 1%.",
            partial(_rank_for_error, root=1),
            lambda X, t: max(_rank_for_error(X, t, root=1), 1),
        ),
        *_alike(
            "You added singular values where their squares are to be added, and taken the root of.",
            partial(_rank_for_error, power=1, root=1),
            lambda X, t: max(_rank_for_error(X, t, power=1, root=1), 1),
        ),
    ],
    otherwise=lambda found, X, t: (
        f"For singular values 8, 4, 2, 1 and tolerance {t} the smallest rank is "
        f"{_rank_for_error(X, t)}; found {found}."
    ),
    passed="the smallest rank that is good enough.",
    parts="The rank",
)


def _scores(X: np.ndarray, r: int) -> np.ndarray:
    U, s, _ = _svd(X)
    return U[:, :r] * s[:r]


def _centred(X: np.ndarray) -> np.ndarray:
    return X - X.mean(axis=0)


check_pca_scores = Exercise(
    asks="X (examples, features), r → PCA scores (examples, r), signs left open.",
    cases=[(example() + np.array([3.0, -2.0, 0.0, 5.0]), 2)],
    right=lambda X, r: _scores(_centred(X), r),
    mistakes=[
        Mistake(
            _scores,
            "You forgot to subtract the mean. Without it the first direction points at the average "
            "example, and this is TruncatedSVD, not PCA.",
        ),
        Mistake(
            lambda X, r: _scores(_centred(X.T).T, r),
            "You subtracted each example's own mean. PCA subtracts each feature's mean over the "
            "examples: X.mean(axis=0).",
        ),
        Mistake(
            lambda X, r: _svd(_centred(X))[0][:, :r],
            "These are the columns of U, all of length one. Scores carry the size too: multiply by "
            "s.",
        ),
        Mistake(
            lambda X, r: X @ _svd(_centred(X))[2][:r].T,
            "You found the directions from the centred data, then projected the data with its "
            "mean. Project the centred data.",
        ),
    ],
    otherwise="These are not the first two PCA scores.",
    passed="PCA is the truncated SVD of the centred data.",
    parts="The scores of 5 examples at r = 2",
    same=lambda found, right: is_numeric(found) and close(np.abs(found), np.abs(right), 10),
)


def _triplet(X: np.ndarray, v: Any = None) -> tuple[Any, ...]:
    """u, sigma and v: from a direction v, or the leading ones."""
    v = _svd(X)[2][0] if v is None else v / np.linalg.norm(v)
    sigma = np.linalg.norm(X @ v)
    return X @ v / sigma, sigma, v


def _triplet_misshapen(found: Any, X: np.ndarray) -> str:
    return misshapen(found, _triplet(X), _TRIPLET)


def _have_length_one(u: Any, v: Any) -> bool:
    return np.allclose([np.linalg.norm(u), np.linalg.norm(v)], 1)


def _same_triplet(found: Any, right: Any) -> bool:
    """Equal but for the sign that u and v share; v may still turn a little."""
    if misshapen(found, right, _TRIPLET) or not _have_length_one(*found[::2]):
        return False
    (u, sigma, v), (right_u, right_sigma, right_v) = found, right
    close_enough = np.allclose(np.outer(u, v), np.outer(right_u, right_v), atol=1e-4)
    return close_enough and bool(np.isclose(sigma, right_sigma, rtol=1e-6))


_TRIPLET = ("u", "sigma", "v")

check_leading_triplet = Exercise(
    asks="X (m, n) → (u, sigma, v), the leading singular triplet, signs left open.",
    cases=[(example(),), (np.array([[2.0, -1.0], [-1.0, 2.0]]),)],  # v1 is (1, -1) / sqrt(2) there
    right=_triplet,
    mistakes=[
        Mistake(
            lambda X: _triplet(X)[:2],
            "Return three things, in this order: u, sigma, v.",
            when=lambda found, X: not isinstance(found, (tuple, list)) or len(found) != 3,
        ),
        Mistake(
            lambda X: (*_triplet(X)[::2], _triplet(X)[1]),
            "Return u, sigma, v in this order: sigma is one number.",
            when=lambda found, X: np.ndim(found[1]) != 0,
        ),
        Mistake(
            lambda X: _triplet(X.T),
            _triplet_misshapen,
            when=lambda found, X: _triplet_misshapen(found, X) != "",
        ),
        Mistake(
            lambda X: tuple(part * np.inf for part in _triplet(X)),
            "Your vectors grew until they overflowed. Divide by the length after every "
            "multiplication.",
            when=lambda found, X: not all(np.isfinite(part).all() for part in found),
        ),
        Mistake(
            lambda X: (_triplet(X)[0], _triplet(X)[1] ** 2, _triplet(X)[2]),
            "64 is sigma squared: one round, by X and by its transpose, stretches twice. Take "
            "|X v|.",
            when=lambda found, X: np.isclose(found[1], 64),
        ),
        Mistake(
            lambda X: (X @ _triplet(X)[2], *_triplet(X)[1:]),
            lambda found, X: (
                "u and v must have length one; all of the size belongs to sigma. Found lengths "
                f"{np.linalg.norm(found[0]):.4g} and {np.linalg.norm(found[2]):.4g}."
            ),
            when=lambda found, X: not _have_length_one(*found[::2]),
        ),
        Mistake(
            lambda X: _triplet(X, np.ones(X.shape[1])),
            lambda found, X: (
                f"The leading singular value is 8; found {found[1]:.6g}. If it is a little less, "
                "go round more often."
            ),
            when=lambda found, X: len(X) == 5 and not np.isclose(found[1], 8, rtol=1e-6),
        ),
        Mistake(
            lambda X: (-_triplet(X)[0], *_triplet(X)[1:]),
            "X v must be sigma times u, sign included: compute u from the last v, as X v / |X v|.",
            when=lambda found, X: not close(X @ found[2], np.multiply(found[1], found[0]), 1e5),
        ),
        Mistake(
            lambda X: _triplet(X) if len(X) == 5 else _triplet(X, np.ones(2)),
            lambda found, X: (
                f"For [[2, -1], [-1, 2]] the leading singular value is 3; found {found[1]:.6g}. A "
                "start of ones is perpendicular to v1 there and never turns towards it: draw the "
                "start at random."
            ),
            when=lambda found, X: len(X) == 2 and not np.isclose(found[1], 3, rtol=1e-6),
        ),
    ],
    otherwise="Xᵀ u is not sigma times v: v has not settled yet. Go round more often.",
    passed="to and fro through X, and the largest direction takes over.",
    parts=_TRIPLET,
    same=_same_triplet,
)
