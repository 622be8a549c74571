"""Low-rank approximation in NumPy: the mathematics that LoRA stands on.

Everything here takes a matrix ``X`` of shape (m, n): a nested list, a NumPy array or a CPU tensor;
real or complex; integers become float64, and float32 stays float32. Rank counts are ``r`` and run
from 0 (keep nothing) to ``min(m, n)`` (keep everything). What cannot be used is refused with a
``ValueError`` that says what was found and what to do.

In order: the truncated SVD, the matrix it rebuilds, the error it makes; four answers to "what rank
is this, roughly?"; the rank at which two factors cost as much as the matrix; and a fast SVD that
finds the leading directions by chance.
"""

from __future__ import annotations

import operator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Norm = Literal["fro", "spectral"]

__all__ = [
    "break_even_rank",
    "effective_rank",
    "gavish_donoho_rank",
    "low_rank_approximation",
    "low_rank_error",
    "low_rank_errors",
    "random_range",
    "randomized_svd",
    "rank_for_share",
    "stable_rank",
    "truncated_svd",
]


def truncated_svd(X: ArrayLike, r: int) -> tuple[Array, Array, Array]:
    """The r leading singular triplets of X.

    X (m, n) → U (m, r), s (r,), Vt (r, n), with ``U * s @ Vt`` the best rank-r approximation of X.
    The columns of U and the rows of Vt are orthonormal; s falls and is never negative. For complex
    X, Vt is the conjugate transpose of V.

    A singular vector is determined only up to its sign. Here the largest entry of each column of U
    is made positive, so that the same X gives the same vectors on every machine.

    Raises ValueError for anything but a finite, non-empty matrix and 0 ≤ r ≤ min(m, n).
    Source: Eckart and Young (1936); computed by LAPACK through ``numpy.linalg.svd``.
    """
    X = _as_matrix(X)
    r = _as_rank(r, X.shape)
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    U, Vt = _fix_signs(U[:, :r], Vt[:r])
    return U, s[:r], Vt


def low_rank_approximation(X: ArrayLike, r: int) -> Array:
    """The matrix of rank at most r that lies nearest to X: (m, n) → (m, n).

    It is nearest in the Frobenius norm, in the spectral norm, and in every other norm that no
    rotation changes. In the Frobenius norm it is the only nearest one exactly when the singular
    values r and r + 1 differ (or nothing is lost).

    Raises ValueError as ``truncated_svd`` does.
    Source: Eckart and Young (1936); Mirsky (1960).
    """
    U, s, Vt = truncated_svd(X, r)
    approximation: Array = (U * s) @ Vt
    return approximation


def low_rank_error(X: ArrayLike, r: int, norm: Norm = "fro", relative: bool = False) -> float:
    """How far X (m, n) is from the nearest matrix of rank r, in the units of X's entries.

    ``norm="fro"``: √(s[r]² + s[r+1]² + …), the root of the sum of squared entry errors.
    ``norm="spectral"``: s[r], the largest error on any input of length one (s counts from 0).
    ``relative=True`` divides by the same norm of X: 0 is exact, 1 is as bad as the zero matrix.

    Raises ValueError as ``truncated_svd`` does, and for another norm.
    Source: Eckart and Young (1936); Mirsky (1960).
    """
    X = _as_matrix(X)
    r = _as_rank(r, X.shape)
    return float(low_rank_errors(X, norm, relative)[r])


def low_rank_errors(X: ArrayLike, norm: Norm = "fro", relative: bool = False) -> Array:
    """``low_rank_error`` at every rank, from one SVD: X (m, n) → (min(m, n) + 1,).

    Entry r belongs to rank r: the first is the norm of X, the last exactly 0.
    """
    s = _singular_values(_as_matrix(X)).astype(np.float64)
    if norm == "fro":
        # Squares of very large or small numbers would overflow or vanish: measure in units of s[0].
        unit = s[0] if s[0] > 0 else 1.0
        # Sum the small ones first: adding them to a large total would round them away.
        tail = np.cumsum((s[::-1] / unit) ** 2)[::-1]
        errors = unit * np.sqrt(np.append(tail, 0.0))
    elif norm == "spectral":
        errors = np.append(s, 0.0)
    else:
        raise ValueError(f'norm must be "fro" or "spectral", but is {norm!r}.')
    if relative and errors[0] > 0:
        errors = errors / errors[0]
    return errors


def effective_rank(X: ArrayLike) -> float:
    """How many singular values share the load: X (m, n), or singular values (k,) → 1 … min(m, n).

    exp(−Σ pᵢ log pᵢ) with pᵢ = sᵢ / Σs: k equal singular values give k, one alone gives 1. Scaling
    X changes nothing. A matrix of zeros gives 0.

    Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007).
    """
    s = _spectrum(X)
    if s[0] == 0:
        return 0.0
    p = s / s.sum()
    p = p[p > 0]  # p log p tends to 0 with p
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(X: ArrayLike) -> float:
    """Total energy in units of the largest: X (m, n), or singular values (k,) → 1 … rank of X.

    Σ sᵢ² / s₁² = ‖X‖_F² / ‖X‖₂². Tiny singular values hardly move it, whence the name. A matrix of
    zeros gives 0.

    Source: Rudelson and Vershynin, "Sampling from large matrices" (J. ACM 54, 2007).
    """
    s = _spectrum(X)
    if s[0] == 0:
        return 0.0
    return float(((s / s[0]) ** 2).sum())


def rank_for_share(X: ArrayLike, share: float = 0.9) -> int:
    """How many pieces hold a share of the sum of squares: X (m, n), or singular values (k,) → r.

    The smallest r with s₁² + … + s_r² ≥ share · ‖X‖_F², so that the best approximation of rank r
    has a relative error of at most √(1 − share). An exact tie counts as held. The answer is the
    number of singular values above rounding for ``share=1``, and 0 for a matrix of zeros.

    Raises ValueError as ``truncated_svd`` does, and for a share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:  # also refuses NaN
        raise ValueError(
            f"share must lie between 0 and 1 (0.9 for nine tenths of ‖X‖²), but is {share!r}."
        )
    s = _spectrum(X)
    if s[0] == 0:
        return 0
    held = np.append(0.0, np.cumsum((s / s[0]) ** 2))
    rounding = 1 - len(s) * np.finfo(s.dtype).eps
    return int(np.argmax(held >= share * held[-1] * rounding))


def gavish_donoho_rank(X: ArrayLike, sigma: float | None = None) -> int:
    """How many singular values of X (m, n) stand out of white noise.

    X is taken to be a low-rank matrix plus independent noise of standard deviation ``sigma`` (in
    the units of X's entries) in every entry. Singular values above a threshold are counted: with
    sigma known, λ(β)·√max(m, n)·sigma; with ``sigma=None``, ω(β) times the median singular value,
    β = min(m, n) / max(m, n). For a square matrix λ = 4/√3 and ω ≈ 2.858. Among all fixed
    thresholds this one loses least, as m and n grow. Noise that is not white breaks the promise.

    Raises ValueError as ``truncated_svd`` does, and for a sigma that is not positive and finite.
    Source: Gavish and Donoho (2014), arXiv:1305.5870; the median of the noise is computed here
    rather than taken from their polynomial fit.
    """
    X = _as_matrix(X)
    s = _singular_values(X)
    beta = min(X.shape) / max(X.shape)
    if sigma is None:
        threshold = _lambda(beta) / np.sqrt(_marchenko_pastur_median(beta)) * np.median(s)
    elif np.isfinite(sigma) and sigma > 0:
        threshold = _lambda(beta) * np.sqrt(max(X.shape)) * sigma
    else:
        raise ValueError(
            f"sigma must be a positive number, the noise's standard deviation, but is {sigma!r}. "
            "Leave it out to estimate it, or count with numpy.linalg.matrix_rank if there is none."
        )
    # Without noise the median can be a rounding error: never count those.
    rounding = s[0] * max(X.shape) * np.finfo(s.dtype).eps
    return int((s > max(threshold, rounding)).sum())


def break_even_rank(m: int, n: int) -> float:
    """The rank at which two factors hold as many numbers as the (m, n) matrix: mn / (m + n).

    A column and a row cost m + n numbers, so rank r costs r(m + n); below the value returned that
    is less than mn. It is a fraction in general: the largest rank that still saves is the largest
    whole number below it.

    Raises ValueError unless m and n are whole numbers of at least 1.
    """
    for name, size in (("m", m), ("n", n)):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, but is {size!r}.")
    return int(m) * int(n) / (int(m) + int(n))


def random_range(
    X: ArrayLike,
    width: int,
    power_iterations: int = 0,
    seed: int | np.random.Generator = 0,
) -> Array:
    """A few orthonormal directions that hold most of X's columns: X (m, n) → Q (m, width).

    X is shown ``width`` random vectors; what comes out leans towards the directions in which X is
    large. Each power iteration multiplies by X Xᵀ once more and makes them lean further. For
    ``width = k + p``, p ≥ 2 and no power iteration, the mean of ‖X − Q Qᵀ X‖_F over the random
    vectors is at most √(1 + k/(p − 1)) times the best rank-k error.

    Raises ValueError as ``truncated_svd`` does.
    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4 and theorem 10.5 (arXiv:0909.4061).
    """
    X = _as_matrix(X)
    width = _as_rank(width, X.shape)
    power_iterations = _as_count(power_iterations, "power_iterations")
    generator = np.random.default_rng(seed)
    sketch = generator.standard_normal((X.shape[1], width)).astype(X.dtype)
    Q = np.linalg.qr(X @ sketch)[0]
    for _ in range(power_iterations):
        # Orthonormalise at every step: otherwise all columns turn into the leading direction.
        W = np.linalg.qr(X.conj().T @ Q)[0]
        Q = np.linalg.qr(X @ W)[0]
    return Q


def randomized_svd(
    X: ArrayLike,
    r: int,
    oversample: int = 10,
    power_iterations: int = 2,
    seed: int | np.random.Generator = 0,
) -> tuple[Array, Array, Array]:
    """Nearly ``truncated_svd(X, r)``, for a small part of the work when r is small.

    X (m, n) → U (m, r), s (r,), Vt (r, n). Finds r + oversample directions with ``random_range``,
    then takes the exact SVD of the small matrix that X becomes in them. The singular values are
    never larger than the exact ones. The same seed gives the same answer.

    Raises ValueError as ``truncated_svd`` does, and for a negative oversample or power_iterations.
    Source: Halko, Martinsson and Tropp (2011), algorithms 4.4 and 5.1 (arXiv:0909.4061).
    """
    X = _as_matrix(X)
    r = _as_rank(r, X.shape)
    width = min(r + _as_count(oversample, "oversample"), *X.shape)
    Q = random_range(X, width, power_iterations, seed)
    small_U, s, Vt = np.linalg.svd(Q.conj().T @ X, full_matrices=False)
    U, Vt = _fix_signs((Q @ small_U)[:, :r], Vt[:r])
    return U, s[:r], Vt


# What every function above leans on.


def _as_matrix(X: ArrayLike, what: str = "X") -> Array:
    """X as a finite, non-empty 2-D array of float32, float64, complex64 or complex128."""
    if hasattr(X, "detach"):  # a tensor: off the graph, and to the CPU
        X = X.detach().cpu()
    try:
        array = np.asarray(X)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} cannot be read as an array ({error}). Give a nested list with rows of one "
            "length, a NumPy array, or a tensor in float32 or float64 (`.float()`)."
        ) from error
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{what} must hold numbers, but has dtype {array.dtype}.")
    if array.ndim != 2:
        raise ValueError(
            f"{what} must be a matrix, with two axes, but has shape {array.shape}. "
            "Make a vector a single row with `x[None, :]`; take one channel of a colour picture, "
            "or reshape it to (height, 3 * width)."
        )
    if array.size == 0:
        raise ValueError(f"{what} has shape {array.shape} and so no entries; give at least one.")
    if array.dtype.char not in "fdFD":
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    _refuse_not_finite(array, what)
    return array


def _refuse_not_finite(array: Array, what: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        first = ", ".join(str(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{what} holds {int(bad.sum())} entries that are NaN or infinite, the first at "
            f"[{first}]. Replace or remove them: the SVD of such a matrix is not defined."
        )


def _as_rank(r: int, shape: tuple[int, ...]) -> int:
    """r as an int between 0 and min(shape)."""
    r = _as_count(r, "r")
    if r > min(shape):
        raise ValueError(
            f"r must lie between 0 and {min(shape)}, the shorter side of a matrix of shape "
            f"{tuple(shape)}, but is {r}."
        )
    return r


def _as_count(value: int, name: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < 0 or isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be a whole number of at least 0, but is {value!r}.")
    return count


def _singular_values(X: Array) -> Array:
    s: Array = np.linalg.svd(X, compute_uv=False)
    return s


def _spectrum(X: ArrayLike) -> Array:
    """Singular values in falling order, from a matrix or from the singular values themselves."""
    if hasattr(X, "detach"):
        X = X.detach().cpu()
    if np.ndim(X) != 1:
        return _singular_values(_as_matrix(X)).astype(np.float64)
    s = _as_matrix(np.asarray(X)[None, :], "the singular values")[0]
    if np.iscomplexobj(s) or (s < 0).any():
        raise ValueError("a 1-D argument is read as singular values: real and at least 0.")
    return np.sort(s.astype(np.float64))[::-1]


def _fix_signs(U: Array, Vt: Array) -> tuple[Array, Array]:
    """Turn each pair of singular vectors so that the largest entry of u is positive."""
    largest = U[np.abs(U).argmax(axis=0), np.arange(U.shape[1])]
    turn = np.where(largest == 0, 1, largest / np.where(largest == 0, 1, np.abs(largest)))
    return U * turn.conj(), Vt * turn[:, None]


def _lambda(beta: float) -> float:
    """Gavish and Donoho's λ(β), in units of √max(m, n)·sigma."""
    root = np.sqrt(beta**2 + 14 * beta + 1)
    return float(np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root)))


def _marchenko_pastur_median(beta: float, points: int = 20_000) -> float:
    """The median of the squared singular values of white noise, in units of max(m, n)·sigma².

    Their density is √((b − t)(t − a)) / (2πβt) between a = (1 − √β)² and b = (1 + √β)². With
    t = a + (b − a) sin²φ the integrand stays smooth at both ends, and so a plain sum will do.
    """
    a, b = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2
    phi = (np.arange(points) + 0.5) * (np.pi / 2 / points)
    t = a + (b - a) * np.sin(phi) ** 2
    mass = np.cumsum((np.sin(phi) * np.cos(phi)) ** 2 / t)
    return float(np.interp(0.5, mass / mass[-1], t))
