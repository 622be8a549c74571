"""Checks of chapter 4: learning a low-rank update."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.linalg import norm

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    close,
    misshapen,
    not_attempted,
    passed,
    require,
)


def _factors(d_out: int, d_in: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A full gradient, or a change, with a factor A and a factor B."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(d_out, d_in)), rng.normal(size=(r, d_in)), rng.normal(size=(d_out, r))


def _is_pair(found: Any) -> bool:
    return isinstance(found, (tuple, list)) and len(found) == 2


def _shapes(found: Any) -> list[tuple[int, ...]]:
    return [np.shape(part) for part in found]


def _gradients(G: np.ndarray, A: np.ndarray, B: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    return scale * B.T @ G, scale * G @ A.T


def _first_wrong(found: Any, *case: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """Of the two gradients, the first that is wrong: its name, what was found, what is right."""
    parts = zip("AB", map(np.asarray, found), _gradients(*case), strict=True)
    return next(part for part in parts if not close(*part[1:]))


def _times(factor: float, says: str) -> Mistake:
    """A gradient that is the right one times a factor; s is 3 in the case."""
    return Mistake(
        lambda *case: tuple(factor * part for part in _gradients(*case)),
        lambda found, *case: f"the gradient of {_first_wrong(found, *case)[0]} {says}",
        when=lambda found, *case: close(
            _first_wrong(found, *case)[1], factor * _first_wrong(found, *case)[2]
        ),
    )


check_lora_gradients = Exercise(
    asks="G (d_out, d_in), A (r, d_in), B (d_out, r), scale → the gradients of A and of B.",
    cases=[(*_factors(5, 7, 2), 3.0)],
    right=_gradients,
    mistakes=[
        Mistake(
            lambda *case: _gradients(*case)[0],
            "return two arrays: the gradient of A and the gradient of B",
            when=lambda found, *case: not _is_pair(found),
        ),
        Mistake(
            lambda *case: _gradients(*case)[::-1],
            "the gradient of A comes first: it has the shape of A, (r, d_in)",
            when=lambda found, G, A, B, scale: _shapes(found) == _shapes([B, A]),
        ),
        Mistake(
            lambda G, A, B, scale: (A @ G.T, G @ A.T),
            lambda found, *case: (
                "the gradient of {0} must have the shape of {0}, {2.shape}, but has {1.shape}: "
                "which of the factors meets G, and which is transposed?"
            ).format(*_first_wrong(found, *case)),
            when=lambda found, *case: len({a.shape for a in _first_wrong(found, *case)[1:]}) == 2,
        ),
        _times(1 / 3, "lacks the factor s: ΔW = s·B·A, so the chain rule brings it in"),
        _times(3, "has the factor s twice; G is ∂L/∂W and knows nothing of s"),
        _times(-1, "has the wrong sign; it points uphill, and a step subtracts it"),
    ],
    otherwise=lambda found, *case: (
        f"the gradient of {_first_wrong(found, *case)[0]} is not right: A sees G through B, and B "
        "sees it through A"
    ),
    passed="each factor sees the full gradient through the other one",
    parts=("the gradient of A", "the gradient of B"),
)


def _floor(D: np.ndarray, r: int) -> float:
    return float((np.linalg.svd(D, compute_uv=False)[r:] ** 2).sum())


check_floor = Exercise(
    asks="D (m, n), r → the smallest loss that an update of rank r can reach.",
    cases=[(_factors(6, 5, 2)[0], r) for r in (1, 0, 3, 5)],
    right=_floor,
    mistakes=[
        Mistake(
            lambda D, r: np.linalg.svd(D, compute_uv=False)[r:].sum(),
            "you added up the singular values that are left; the loss is a squared norm, so square "
            "them",
        ),
        Mistake(
            lambda D, r: np.sqrt(_floor(D, r)),
            "you returned the Frobenius norm; the loss is its square",
        ),
        Mistake(
            lambda D, r: _floor(D, 0) - _floor(D, r),
            "you added up what rank r captures; the floor is what it leaves over",
        ),
        Mistake(
            lambda D, r: _floor(D, r) / _floor(D, 0),
            "you divided by the squared norm of D: that is the share that rank r leaves over; the "
            "loss is the sum itself",
        ),
        Mistake(
            lambda D, r: _floor(D, r + 1),
            "one singular value too many is gone: Python counts from 0, so the rest begins at s[r]",
        ),
        Mistake(
            lambda D, r: _floor(D, r) - _floor(D, r + 1),
            "you returned the square of the largest singular value that is left, which is the "
            "error in the spectral norm; the Frobenius norm adds up all that are left",
        ),
    ],
    otherwise="the floor is the sum of the squared singular values of D after the first r",
    passed="the floor is what the truncated SVD leaves over",
    parts="The floor",
)


def _inputs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A change D (6, 6) and inputs X (40, 6), of unequal sizes and with a mean."""
    return rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) * [5, 2, 1, 0.5, 0.1, 0.01] + 1.0


def _sigma(X: np.ndarray) -> np.ndarray:
    return X.T @ X / len(X)


def _weighted_floor(D: np.ndarray, X: np.ndarray, r: int) -> float:
    return _floor(X @ D.T, r) / len(X)


def _cut_then_weighed(D: np.ndarray, X: np.ndarray, r: int) -> float:
    U, s, Vt = np.linalg.svd(D)
    return float(((X @ (U[:, r:] * s[r:] @ Vt[r:]).T) ** 2).sum()) / len(X)


check_weighted_floor = Exercise(
    asks="D (m, d), inputs X (n, d), r → the floor of the change D on the inputs.",
    cases=[(*_inputs(np.random.default_rng(44)), r) for r in (1, 0, 2, 4)],
    right=_weighted_floor,
    mistakes=[
        Mistake(
            _cut_then_weighed,
            "you cut the SVD of D itself and weighed what was left with the inputs: the grey curve "
            "of the chapter, not the floor. Multiply D by Σ^½ first and cut then, for it is the "
            "inputs that say which directions matter",
        ),
        Mistake(
            lambda D, X, r: _floor(X @ D.T, r) / _floor(X @ D.T, 0),
            "you divided by the error of the frozen layer: that is the share left over, which the "
            "chapter draws; the loss is the average squared error itself",
        ),
        Mistake(
            lambda D, X, r: _floor(D @ np.linalg.cholesky(_sigma(X)).T, r),
            "the Cholesky factor is the wrong way round: Σ = L Lᵀ, and tr(DΣDᵀ) is the squared "
            "norm of D L, not of D Lᵀ",
        ),
        Mistake(
            lambda D, X, r: _floor(D, r),
            "you did not use X: this is the floor for inputs that are noise",
        ),
        Mistake(
            lambda D, X, r: _floor(X @ D.T, r),
            "you added up the error over the inputs; the loss is the average, so divide X by √n",
        ),
        Mistake(
            lambda D, X, r: _floor(X @ D.T / len(X), r),
            "you divided by n before squaring; to average the squared error, divide X by √n",
        ),
        Mistake(
            lambda D, X, r: _floor(D @ _sigma(X), r),
            "you multiplied D by Σ; the loss has Σ once and squares, so D meets its square root",
        ),
        Mistake(
            lambda D, X, r: _weighted_floor(D, X - X.mean(0), r),
            "you took the mean of the inputs away; the layer gets the inputs as they are",
        ),
        Mistake(
            lambda D, X, r: _weighted_floor(D.T, X, r),
            "D is transposed: inputs are rows of X, so the outputs of the change are X @ D.T",
        ),
    ],
    otherwise="use the singular values of D Σ^½, which are those of X @ D.T / √n, after the first "
    "r",
    passed="what counts are singular values of the change as inputs see it",
    parts="The floor",
)


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


_UNEQUAL = "BᵀB and AAᵀ still differ; equal norms are not enough, the matrices must be equal"

check_balance = Exercise(
    asks="B (m, r), A (r, n) → factors with the same product and BᵀB = AAᵀ.",
    cases=[(_factors(8, 6, 3)[2], 10 * _factors(8, 6, 3)[1])],
    right=_balance,
    mistakes=[
        Mistake(
            lambda B, A: B @ A,
            "return the new B and the new A",
            when=lambda found, B, A: not _is_pair(found),
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
                close(F.T @ F, np.eye(3)) for F in (np.asarray(found[0]), np.transpose(found[1]))
            ),
        ),
        Mistake(
            lambda B, A: (B * np.sqrt(norm(A) / norm(B)), A * np.sqrt(norm(B) / norm(A))),
            _UNEQUAL,
        ),
    ],
    otherwise=_UNEQUAL,
    passed="one product, and the pair of factors that shares it evenly",
    parts=("B", "A"),
    same=lambda found, right: (
        not misshapen(found, right, ("B", "A"))
        and close(_product_and_gap(found), _product_and_gap(right), 10)
    ),
)


def check_many_examples(function: Function) -> None:
    """``function(r)`` gives the tuned errors of rank r with 768 examples, one a draw."""
    answers = {r: call(function, r) for r in (4, 6, 12, 48)}
    if not_attempted(answers[4]):
        return
    errors = {r: np.asarray(answer, float) for r, answer in answers.items()}
    for r, error in errors.items():
        require(
            error.ndim == 1 and len(error) >= 3,
            f"rank {r}: return one error for each draw of the data, not {error.shape}",
        )
    means = {r: float(error.mean()) for r, error in errors.items()}
    require(
        means[48] < 2,
        f"at rank 48 the error is {means[48]:.1f}, as with 96 examples: draw the training data "
        "again with n=768, and leave the validation data as they are",
    )
    require(
        means[48] < 0.67,
        f"at rank 48 the error is {means[48]:.2f}, as after the last step at a fixed learning "
        "rate: return the tuned errors, the second of the two that few_examples gives",
    )
    require(
        means[6] == min(means.values()),
        "rank 6 should be best: 768 examples can carry all six directions. Does your function "
        "train at the rank it is given?",
    )
    passed("with more examples the best rank moves to the true one")
