"""Checks of chapter 2: the singular value decomposition."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.guarded import Forbidden, Guarded
from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    close,
    example,
    is_numeric,
    misshapen,
)

_numpy_svd = np.linalg.svd  # by a name that no exercise forbids


def _svd(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vt = _numpy_svd(X, full_matrices=False)
    return U, s, Vt


def _alike(says: str, *answers: Function) -> list[Mistake]:
    """One mistake in several forms."""
    return [Mistake(answer, says) for answer in answers]


#: Largest and smallest singular value of diag(3, −5), of twice a rotation, of a 4 × 9 table of
#: ones, of [[0, 7], [0, 0]] and of the row (3, 4).
_VALUES = ((5.0, 3.0), (2.0, 2.0), (6.0, 0.0), (7.0, 0.0), (5.0, 5.0))


def _wrong_values(matrix: int, guess: tuple[float, float] | None, says: str) -> Mistake:
    """A wrong prediction for one of the five matrices; None stands for any."""
    answer = [*_VALUES[:matrix], guess or (99.0, 98.0), *_VALUES[matrix + 1 :]]
    return Mistake(
        lambda: answer,
        f"Matrix {'ABCDE'[matrix]}: {says}",
        when=lambda found: (
            np.shape(found) == (5, 2)
            and not close(found[matrix], _VALUES[matrix])
            and (guess is None or np.allclose(found[matrix], guess, atol=0.01))
        ),
    )


check_predicted_values = Exercise(
    asks="→ for the five matrices A to E, in this order, the largest and the smallest of their "
    "singular values.",
    cases=[()],
    right=lambda: np.array(_VALUES),
    mistakes=[
        *(
            _wrong_values(
                0,
                guess,
                "a singular value is a length, so that it is never negative, and the largest comes "
                "first. The minus sign goes into a singular vector.",
            )
            for guess in ((3, -5), (3, 5), (-5, 3), (5, -3))
        ),
        _wrong_values(0, None, "the unit vectors along the axes are stretched by 3 and by 5."),
        *(
            _wrong_values(
                1,
                guess,
                "those are its entries. How long does a rotation leave a "
                "vector, and how long is the vector after the factor 2?",
            )
            for guess in ((np.sqrt(3), 1), (np.sqrt(3), -1))
        ),
        _wrong_values(1, None, "a rotation changes no length, and the factor 2 doubles them all."),
        _wrong_values(
            2, (36, 0), "36 is the square: the root of the sum of all squared entries is 6."
        ),
        _wrong_values(
            2,
            (6, 6),
            "there is one piece only. The other three of the four singular values are zero.",
        ),
        *(
            _wrong_values(
                2,
                guess,
                "the column of four ones has length 2 and the row of nine has "
                "length 3. The piece is u vᵀ with vectors of length one, times 2 · 3.",
            )
            for guess in ((1, 0), (1, 1))
        ),
        _wrong_values(
            2,
            None,
            "it is one outer product; bring both of its vectors to length one, "
            "and the rest is the singular value.",
        ),
        _wrong_values(
            3,
            (0, 0),
            "zeros on the diagonal do not make the singular values zero. The "
            "input (0, 1) comes out as (7, 0).",
        ),
        _wrong_values(3, None, "the input (0, 1) comes out as (7, 0), and (1, 0) as nothing."),
        *(
            _wrong_values(
                4,
                guess,
                "a matrix of one row has one singular value, so the largest is the smallest.",
            )
            for guess in ((4, 3), (5, 0))
        ),
        _wrong_values(
            4, None, "a row is one piece: 1 times a vector of length one, times its length."
        ),
    ],
    otherwise="Five pairs are wanted, of shape (5, 2).",
    passed="lengths, largest first, and never negative.",
    parts="The five pairs",
    same=lambda found, right: close(found, right, 1e6),
)


def _errors(s: np.ndarray, r: int) -> tuple[float, float]:
    return np.sqrt((s[r:] ** 2).sum()), s[r:].max(initial=0)


def _wrong_error(found: Any, s: np.ndarray, r: int) -> str:
    if r == len(s):
        return f"At full rank nothing is lost: both are 0; found {np.asarray(found)}."
    which = 0 if not close(found[0], _errors(s, r)[0]) else 1
    return (
        f"The {('Frobenius', 'spectral')[which]} error of {', '.join(f'{x:g}' for x in s)} at rank "
        f"{r} is {_errors(s, r)[which]:g}; found {found[which]}."
    )


check_errors_from_singular_values = Exercise(
    asks="s falling (k,), r → (Frobenius error, spectral error) at rank r.",
    cases=[
        *((np.array([9.0, 6.0, 4.0, 3.0]), r) for r in (2, 4, 0, 3)),
        *((np.array([6.0, 2.0, 2.0, 2.0, 2.0]), r) for r in (1, 5)),
    ],
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
        Mistake(
            lambda s, r: (np.linalg.norm(s[r : r + 2]), _errors(s, r)[1]),
            "You took the next two singular values only. All that come after the first r are lost, "
            "however many they are.",
        ),
        Mistake(
            lambda s, r: (np.linalg.norm(s[-2:]) if r < len(s) else 0.0, _errors(s, r)[1]),
            "You took the last two singular values, whatever r is. All that come after the first r "
            "are lost.",
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
    cases=[
        *((example(), tolerance) for tolerance in (0.3, 0.24, 0.11, 0.06, 0.5, 1.0)),
        (example().T / 1000, 0.24),
    ],
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
        f"For singular values in the ratios 8, 4, 2, 1 and tolerance {t} the smallest rank is "
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


def _same_but_for_signs(found: Any, right: Any) -> bool:
    """Equal, once each column that was found is turned towards the right one."""
    if not is_numeric(found) or np.shape(found) != np.shape(right):
        return False
    against = np.sum(np.multiply(found, right), axis=0) < 0
    return close(np.where(against, np.negative(found), found), right, 10)


check_pca_scores = Exercise(
    asks="X (examples, features), r → PCA scores (examples, r), signs left open.",
    cases=[
        (example() + np.array([3.0, -2.0, 0.0, 5.0]), 2),
        (example().T + np.array([1.0, 0.0, -2.0, 5.0, 3.0]), 3),
    ],
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
    otherwise=lambda found, X, r: (
        f"For data of shape {X.shape}, these are not the first {r} scores."
    ),
    passed="PCA is the truncated SVD of the centred data.",
    parts="The scores",
    same=_same_but_for_signs,
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


def _close_together() -> np.ndarray:
    """A (4, 6) matrix with singular values 5, 4.95 and 1: the share of v2 falls by 2% a round."""
    generator = np.random.default_rng(7)
    U, V = (np.linalg.qr(generator.standard_normal((k, 3)))[0] for k in (4, 6))
    return (U * np.array([5.0, 4.95, 1.0])) @ V.T


_STUBBORN = np.array([[2.0, -1.0], [-1.0, 2.0]])  # v1 is (1, -1) / sqrt(2)
_MIDDLE = np.diag([1.0, 3.0, 2.0])  # v1 is (0, 1, 0)
_CLOSE = _close_together()


def _rounds(X: np.ndarray, rounds: int, v: Any = None) -> tuple[Any, ...]:
    v = np.random.default_rng(0).standard_normal(X.shape[1]) if v is None else v
    for _ in range(rounds):
        v = X.T @ (X @ v)
        v = v / np.linalg.norm(v)
    return _triplet(X, v)


def _first_axis(X: np.ndarray) -> tuple[Any, ...]:
    return _rounds(X, 1000, np.eye(X.shape[1])[0])


check_leading_triplet = Guarded(
    asks="X (m, n) → (u, sigma, v), the leading singular triplet, signs left open.",
    cases=[(example(),), (_STUBBORN,), (_MIDDLE,), (_CLOSE,), (_CLOSE.T / 1000,)],
    right=_triplet,
    without=("svd", "svdvals", "eig", "eigh", "eigvals", "eigvalsh"),
    mistakes=[
        Mistake(
            lambda X: np.linalg.svd(X)[0],
            lambda error, X: (
                f"You called {error}. The exercise is to do without: multiply by X and by its "
                "transpose, and divide by the length."
            ),
            raises=Forbidden,
        ),
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
            lambda X: _triplet(X, np.ones(2)) if X.shape == (2, 2) else _triplet(X),
            lambda found, X: (
                f"For [[2, -1], [-1, 2]] the leading singular value is 3; found {found[1]:.6g}. A "
                "start of ones is perpendicular to v1 there and never turns towards it: draw the "
                "start at random."
            ),
            when=lambda found, X: X.shape == (2, 2) and not np.isclose(found[1], 3, rtol=1e-6),
        ),
        Mistake(
            _first_axis,
            lambda found, X: (
                f"For diag(1, 3, 2) the leading singular value is 3; found {found[1]:.6g}. Your "
                "start is perpendicular to v1, which is (0, 1, 0) there, and stays so: draw the "
                "start at random."
            ),
            when=lambda found, X: X.shape == (3, 3) and not np.isclose(found[1], 3, rtol=1e-6),
        ),
        Mistake(
            partial(_rounds, rounds=14),
            "Right where the gap is wide. But for singular values 5, 4.95 and 1 the share of v2 "
            "shrinks by 2% a round only, and you stop too early: go on until v no longer changes.",
            when=lambda found, X: max(X.shape) == 6,
        ),
    ],
    otherwise="Xᵀ u is not sigma times v: v has not settled yet. Go round more often.",
    passed="to and fro through X, and the largest direction takes over.",
    parts=_TRIPLET,
    same=_same_triplet,
)
