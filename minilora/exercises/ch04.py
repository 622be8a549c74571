"""Checks of chapter 4: learning a low-rank update."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.linalg import norm

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    close,
    misshapen,
    require,
)


def _factors(d_out: int, d_in: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A full gradient, a factor A and a factor B."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(d_out, d_in)), rng.normal(size=(r, d_in)), rng.normal(size=(d_out, r))


def _shapes(found: Any) -> list[tuple[int, ...]]:
    return [np.shape(part) for part in found]


# ---------------------------------------------------------------- three factors

_THREE = ("the gradient of B", "the gradient of M", "the gradient of A")


def _three_factors(d_out: int, d_in: int, r: int, scale: float) -> tuple[Any, ...]:
    """G, B, M, A and the scale."""
    G, A, B = _factors(d_out, d_in, r)
    M = np.random.default_rng(40).normal(size=(r, r))
    return G, B, M, A, scale


def _gradients(G: Any, B: Any, M: Any, A: Any, scale: float) -> tuple[np.ndarray, ...]:
    return scale * G @ (M @ A).T, scale * B.T @ G @ A.T, scale * (B @ M).T @ G


def _first_wrong(found: Any, *case: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """Of the three gradients, the first that is wrong: its name, what was found, what is right."""
    parts = zip(_THREE, map(np.asarray, found), _gradients(*case), strict=True)
    return next(part for part in parts if not close(*part[1:]))


def _times(factor: float, says: str) -> Mistake:
    """A gradient that is the right one times a factor; s is 3 in the first case."""
    return Mistake(
        lambda *case: tuple(factor * part for part in _gradients(*case)),
        lambda found, *case: f"{_first_wrong(found, *case)[0]} {says}",
        when=lambda found, *case: close(
            _first_wrong(found, *case)[1], factor * _first_wrong(found, *case)[2]
        ),
    )


check_three_factors = Exercise(
    asks="G (d_out, d_in), B (d_out, r), M (r, r), A (r, d_in), scale → the gradients of B, M, A.",
    cases=[_three_factors(5, 7, 2, 3.0), _three_factors(4, 3, 3, 0.5)],
    right=_gradients,
    mistakes=[
        Mistake(
            lambda *case: _gradients(*case)[:2],
            "return three arrays: the gradients of B, of M and of A",
            when=lambda found, *case: not isinstance(found, (tuple, list)) or len(found) != 3,
        ),
        Mistake(
            lambda *case: _gradients(*case)[::-1],
            "the gradient of B comes first and that of A last; each has the shape of its matrix",
            when=lambda found, G, B, M, A, scale: (
                G.shape != M.shape and _shapes(found) == _shapes([A, M, B])
            ),
        ),
        Mistake(
            lambda G, B, M, A, scale: (scale * G @ A.T, scale * B.T @ G @ A.T, scale * B.T @ G),
            "the gradients of B and of A are those of ΔW = sBA: M is missing. B is multiplied by "
            "MA, and A by BM",
        ),
        Mistake(
            lambda G, B, M, A, scale: (
                scale * G @ A.T @ M,
                scale * B.T @ G @ A.T,
                scale * M @ B.T @ G,
            ),
            "M is the wrong way round in the gradients of B and of A: what B is multiplied by is "
            "MA, and its transpose is AᵀMᵀ",
        ),
        Mistake(
            lambda G, B, M, A, scale: (
                scale * G @ (M @ A).T,
                scale * A @ G.T @ B,
                scale * (B @ M).T @ G,
            ),
            "the gradient of M lies on its side: entry (i, k) of M meets column i of B and row k "
            "of A",
        ),
        Mistake(
            lambda G, B, M, A, scale: (A @ G.T, G, G @ A.T),
            lambda found, *case: (
                "{0} must have the shape {2.shape} of its matrix, but has {1.shape}: what stands "
                "before the matrix in the product, what behind it, and which is transposed?"
            ).format(*_first_wrong(found, *case)),
            when=lambda found, *case: len({a.shape for a in _first_wrong(found, *case)[1:]}) == 2,
        ),
        _times(1 / 3, "lacks the factor s: ΔW = s·B·M·A, so the chain rule brings it in"),
        _times(3, "has the factor s twice; G is ∂L/∂W and knows nothing of s"),
        _times(-1, "has the wrong sign; it points uphill, and a step subtracts it"),
    ],
    otherwise=lambda found, *case: (
        f"{_first_wrong(found, *case)[0]} is not right: transpose what stands before the matrix in "
        "sBMA and put it before G, and what stands behind it behind G"
    ),
    passed="each factor meets G through the others; at B = 0 only the gradient of B is not zero",
    parts=_THREE,
)


# ---------------------------------------------------------------- where the ground is level


def _weighted_values(D: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The singular values of D Σ^½, Σ being the second moments of the rows of X."""
    return np.linalg.svd(X @ D.T / np.sqrt(len(X)), compute_uv=False)


def _left_over(values: np.ndarray, counts: Iterable[int]) -> list[float]:
    """The sum of squares that is left, for each choice of that many values; sorted."""
    squares = values**2
    places = range(len(squares))
    kept = [list(k) for count in counts for k in combinations(places, count)]
    return sorted(float(np.delete(squares, k).sum()) for k in kept)


def _levels(D: np.ndarray, X: np.ndarray, r: int) -> list[float]:
    return _left_over(_weighted_values(D, X), range(r + 1))


def _inputs(m: int, d: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A change D (m, d) and inputs X (n, d), of unequal sizes and with a mean."""
    rng = np.random.default_rng(44)
    return rng.normal(size=(m, d)), rng.normal(size=(n, d)) * [5, 2, 1, 0.5, 0.1][:d] + 1.0


#: Singular values 5, 4 and 3 on inputs with Σ = I: leaving out 5 costs as much as 4 and 3.
_TIE = (np.diag([5.0, 4.0, 3.0, 0.0])[:3], 2 * np.eye(4))

check_level_losses = Exercise(
    asks="D (m, d), inputs X (n, d), r → the losses of all level places, from small to large.",
    cases=[
        (*_inputs(4, 4, 30), 2),
        (*_inputs(4, 4, 30), 0),
        (*_inputs(4, 4, 30), 4),
        (*_inputs(3, 5, 20), 1),
        (*_TIE, 2),
        (*_TIE, 5),
    ],
    right=_levels,
    mistakes=[
        Mistake(
            lambda D, X, r: _levels(D, X, r)[0],
            "you returned one loss, the floor; the slopes vanish at other places too, and their "
            "losses are asked for as well",
            when=lambda found, D, X, r: np.ndim(found) == 0,
        ),
        Mistake(
            lambda D, X, r: _left_over(_weighted_values(D, X), [min(r, len(D))]),
            "you kept exactly r pieces each time. An update of rank r may hold fewer: with both "
            "factors at zero it holds none, and both gradients vanish",
        ),
        Mistake(
            lambda D, X, r: _left_over(_weighted_values(D, X), range(r)),
            "you kept fewer than r pieces each time; r pieces fit",
        ),
        Mistake(
            lambda D, X, r: sorted(
                float((_weighted_values(D, X)[k:] ** 2).sum()) for k in range(min(r, len(D)) + 1)
            ),
            "you kept the largest pieces only. The slopes vanish for every choice, pieces 1 and 3 "
            "as well as 1 and 2",
        ),
        Mistake(
            lambda D, X, r: sorted(_levels(D, X, len(D))[-1] - loss for loss in _levels(D, X, r)),
            "you added up the pieces that are kept; the loss is what the others leave over",
        ),
        Mistake(
            lambda D, X, r: _left_over(np.sqrt(_weighted_values(D, X)), range(r + 1)),
            "you added up the singular values that are left; the loss is a squared norm, so square "
            "them",
        ),
        Mistake(
            lambda D, X, r: [loss**0.5 for loss in _levels(D, X, r)],
            "you returned Frobenius norms; the loss is the square",
        ),
        Mistake(
            lambda D, X, r: _left_over(np.linalg.svd(D, compute_uv=False), range(r + 1)),
            "you did not use X: these are the level places for inputs that are noise",
        ),
        Mistake(
            lambda D, X, r: [loss * len(X) for loss in _levels(D, X, r)],
            "you added up the error over the inputs; the loss is the average, so divide X by √n",
        ),
        Mistake(
            lambda D, X, r: [loss / len(X) for loss in _levels(D, X, r)],
            "you divided by n before squaring; to average the squared error, divide X by √n",
        ),
        Mistake(
            lambda D, X, r: _levels(D, X - X.mean(0), r),
            "you took the mean of the inputs away; the layer gets the inputs as they are",
        ),
        Mistake(
            lambda D, X, r: _left_over(
                np.linalg.svd(D @ (X.T @ X / len(X)), compute_uv=False), range(r + 1)
            ),
            "you multiplied D by Σ; the loss has Σ once and squares, so D meets its square root",
        ),
        Mistake(
            lambda D, X, r: _levels(D, X, r)[::-1],
            "the losses are right, and the order is not: from small to large",
        ),
        Mistake(
            lambda D, X, r: sorted(set(np.round(_levels(D, X, r), 9).tolist())),
            "one loss for each choice of pieces: two places of the same height are two places",
        ),
    ],
    otherwise="keep 0, 1, … r of the singular values of X @ D.T / √n, in every way there is, and "
    "add up the squares of the others",
    passed="many level places, and all but the lowest are saddles",
    parts="The list of losses",
)


# ---------------------------------------------------------------- the same update, balanced


def _balance(
    B: np.ndarray, A: np.ndarray, power: float = 0.5, extra: int = 0
) -> tuple[np.ndarray, ...]:
    U, s, Vt = np.linalg.svd(B @ A, full_matrices=False)
    r = len(A) + extra
    return U[:, :r] * s[:r] ** power, s[:r, None] ** (1 - power) * Vt[:r]


def _product_and_gap(found: Any) -> tuple[np.ndarray, np.ndarray]:
    """BA, and BᵀB − AAᵀ."""
    B, A = map(np.asarray, found)
    return B @ A, B.T @ B - A @ A.T


def _equal_norms(B: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, ...]:
    ratio = float(norm(A) / np.fmax(norm(B), 1e-12)) ** 0.5
    return B * ratio, A / ratio


_UNEQUAL = "BᵀB and AAᵀ still differ; equal norms are not enough, the matrices must be equal"
_G, _A, _B = _factors(8, 6, 3)

BALANCE = Exercise(
    asks="B (m, r), A (r, n) → factors with the same product and BᵀB = AAᵀ.",
    cases=[(_B, 10 * _A), (np.arange(5.0)[:, None], np.ones((1, 7))), (0 * _B, _A)],
    right=_balance,
    mistakes=[
        Mistake(
            lambda B, A: B @ A,
            "return the new B and the new A",
            when=lambda found, B, A: not isinstance(found, (tuple, list)) or len(found) != 2,
        ),
        Mistake(
            lambda B, A: _balance(B, A)[::-1],
            "return B first, then A",
            when=lambda found, B, A: _shapes(found) == _shapes([A, B]),
        ),
        Mistake(
            lambda B, A: _balance(B, A, extra=1),
            lambda found, B, A: (
                f"the shapes must stay {B.shape} and {A.shape}, but are "
                f"{' and '.join(map(str, _shapes(found)))}; keep the first r singular values only"
            ),
            when=lambda found, B, A: _shapes(found) != _shapes([B, A]),
        ),
        Mistake(
            lambda B, A: (2 * B, A),
            "the product has changed: what one factor is multiplied by, the other must be divided "
            "by",
            when=lambda found, B, A: not close(np.matmul(*found), B @ A, 10),
        ),
        Mistake(
            lambda B, A: _balance(B, A, power=1),
            "one factor has all the singular values and the other none; give each their square "
            "roots",
            when=lambda found, B, A: any(
                close(F.T @ F, np.eye(len(A)))
                for F in (np.asarray(found[0]), np.transpose(found[1]))
            ),
        ),
        Mistake(
            lambda B, A: (B, A) if not B.any() else _balance(B, A),
            "with B at zero, as at LoRA's start, the product is zero, and only a pair of zeros is "
            "balanced",
            when=lambda found, B, A: not B.any(),
        ),
        Mistake(_equal_norms, _UNEQUAL),
    ],
    otherwise=_UNEQUAL,
    passed="one product, and the pair of factors that shares it evenly",
    parts=("B", "A"),
    same=lambda found, right: (
        not misshapen(found, right, ("B", "A"))
        and close(_product_and_gap(found), _product_and_gap(right), 10)
    ),
)


def check_balance(function: Function) -> None:
    """A table, and a look at what was decomposed: a large matrix gives the same result."""
    libraries = [np.linalg, torch.linalg]
    if importlib.util.find_spec("scipy"):
        libraries.append(importlib.import_module("scipy.linalg"))
    spies: list[mock.Mock] = []

    def watched(*case: Any) -> Any:
        with ExitStack() as stack:
            for library in libraries:
                for name in ("svd", "eig", "eigh", "qr"):
                    spy = mock.patch.object(library, name, wraps=getattr(library, name))
                    spies.append(stack.enter_context(spy))
            return function(*case)

    found: list[Any] = []
    if BALANCE.judge(watched, found) is None and found[0] is not None:
        r = max(len(A) for _, A in BALANCE.cases)
        for used in (used for spy in spies for used in spy.call_args_list):
            shape = tuple(np.shape([*used.args, *used.kwargs.values()][0]))
            require(
                min(shape) <= r,
                f"the result is right, but you decomposed a matrix of shape {shape}, larger than r "
                "on its shorter side: a product of the size of the weight. Decompose the small "
                "matrix that is left when np.linalg.qr has taken B and Aᵀ apart",
            )
    BALANCE(function)


# ---------------------------------------------------------------- predict, then run

_SIZES = np.array([1.6, 1.3, 1.0, 0.8, 0.6, 0.4])


def _worth_learning(
    sizes: np.ndarray,
    n: int,
    noise: float,
    d: int,
    cut: float = 3**0.5,
    powers: tuple[float, float, float] = (1, 0.5, 0.5),
) -> int:
    """How many sizes exceed the cut; ``powers`` are those of noise, 1/n and d in the unit."""
    of_noise, of_n, of_d = powers
    return int((np.asarray(sizes) > cut * noise**of_noise / n**of_n * d**of_d).sum())


check_predicted_rank = Exercise(
    asks="sizes (k,), n examples, noise, side d → how many pieces are worth learning.",
    cases=[
        (_SIZES, 96, 0.5, 48),
        (_SIZES, 192, 0.5, 48),
        (_SIZES, 768, 0.5, 48),
        (_SIZES, 96, 1.0, 48),
        (_SIZES, 24, 0.5, 48),
        (_SIZES, 96, 0.5, 12),
        (_SIZES, 96, 5.0, 48),
        (10 * np.append(_SIZES, 0.2), 96, 5.0, 48),
    ],
    right=_worth_learning,
    mistakes=[
        Mistake(
            partial(_worth_learning, cut=4 / 3**0.5),
            "you compared with 4/√3. That is the cut for a size that is seen in a noisy table; "
            "these are the true sizes, and theirs is √3",
        ),
        Mistake(
            partial(_worth_learning, cut=1),
            "you counted the pieces that can be seen, from 1 on. Between 1 and √3 a piece can be "
            "seen, and learning it does more harm than good",
        ),
        Mistake(
            partial(_worth_learning, cut=2),
            "you compared with 2, where the singular values of the noise end; the true size of a "
            "piece is compared with √3",
        ),
        Mistake(
            partial(_worth_learning, cut=3),
            "you compared with 3: that is the square of the size from which a piece is worth "
            "learning",
        ),
        Mistake(
            partial(_worth_learning, powers=(1, 0.5, 0)),
            "the side is missing: white noise of standard deviation ν has singular values of the "
            "size of ν√d",
        ),
        Mistake(
            partial(_worth_learning, powers=(1, 0, 0.5)),
            "the number of examples is missing: averaging over n examples divides the noise by √n",
        ),
        Mistake(
            partial(_worth_learning, powers=(1, 1, 0.5)),
            "you divided the noise by n; averaging over n examples divides its standard deviation "
            "by √n",
        ),
        Mistake(
            partial(_worth_learning, powers=(1, 0.5, 1)),
            "you multiplied by the side d; the singular values of noise grow with √d",
        ),
        Mistake(
            partial(_worth_learning, powers=(2, 0.5, 0.5)),
            "you squared the noise; it is given as a standard deviation, as the cut needs it",
        ),
        Mistake(
            lambda sizes, n, noise, d: len(sizes),
            "that is the true rank. Count only the pieces that stand out of the noise enough",
        ),
    ],
    otherwise=lambda found, sizes, n, noise, d: (
        f"with n = {n}, noise {noise} and side {d} the unit ν√d is {noise / n**0.5 * d**0.5:.3f}; "
        f"count the sizes above √3 of it; found {found}"
    ),
    passed="the noise says beforehand which rank will be best",
    parts="The number of pieces",
)
