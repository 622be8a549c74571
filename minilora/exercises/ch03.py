"""Checks of chapter 3: what a list of singular values says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    close,
    example,
    misshapen,
    require,
)


def _values(X: np.ndarray) -> np.ndarray:
    return np.linalg.svd(X, compute_uv=False)


def _told_where(here: Callable[..., bool], answer: Function, says: str) -> Mistake:
    """A mistake told by the cases where ``here`` holds; what the others ask comes after it."""
    return Mistake(
        answer, says, when=lambda found, *case: here(*case) and close(found, answer(*case))
    )


def _stable_rank(X: np.ndarray) -> float:
    return float((np.linalg.norm(X) / np.linalg.norm(X, 2)) ** 2)


_of_example = partial(_told_where, lambda X: X.shape == (5, 4))

check_stable_rank = Exercise(
    asks="X (m, n) → ‖X‖_F² / ‖X‖₂².",
    cases=[(example(),), (-2 * np.eye(5)[:, :1],), (-2 * np.eye(5)[:, :3],)],
    right=_stable_rank,
    mistakes=[
        _of_example(
            lambda X: _stable_rank(X) ** 0.5,
            "You divided the norms. The stable rank is the ratio of their squares.",
        ),
        *(
            _of_example(
                lambda X, power=power: _stable_rank(X) ** power,
                "Upside down: the sum of all squares is divided by the largest, so it is at least "
                "1.",
            )
            for power in (-1, -0.5)
        ),
        _of_example(
            lambda X: np.linalg.norm(X) ** 2 / np.linalg.norm(X, 2),
            "You squared ‖X‖_F only. Both norms are squared, above and below: the ratio has no "
            "unit.",
        ),
        _of_example(
            lambda X: np.linalg.norm(X) / np.linalg.norm(X, 2) ** 2,
            "You squared ‖X‖₂ only. Both norms are squared, above and below: the ratio has no "
            "unit.",
        ),
        _of_example(
            lambda X: _values(X).sum() / _values(X)[0],
            "You added the singular values. Their squares are added, over the largest square.",
        ),
        _of_example(
            np.linalg.matrix_rank,
            "That is the rank itself, which counts every piece as one, however small.",
        ),
        _of_example(
            lambda X: (X**2).sum() / np.abs(X).max() ** 2,
            "You divided by the largest entry. ‖X‖₂ is the largest singular value: "
            "np.linalg.norm(X, 2).",
        ),
    ],
    otherwise=lambda found, X: (
        f"For singular values 8, 4, 2, 1 it is 85/64; found {found}."
        if X.shape == (5, 4)
        else f"For {X.shape[1]} equal singular values it is {X.shape[1]}; found {found}."
    ),
    passed="how many times the largest square goes into the sum of all.",
    parts="The stable rank",
)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def _effective_rank(s: np.ndarray) -> float:
    return np.exp(_entropy(s / s.sum()))


_without_zeros = partial(_told_where, np.all)

check_effective_rank = Exercise(
    asks="s, singular values (k,) → exp(−Σ p log p), p = s / Σ s, 0 log 0 = 0.",
    cases=[(np.array([6.0, 3.0, 1.0]),), (np.array([5.0, 5.0, 0.0]),)],
    right=_effective_rank,
    mistakes=[
        _without_zeros(
            lambda s: _entropy(s / s.sum()),
            "That is the entropy, a logarithm. Its exponential is the number of sharers.",
        ),
        _without_zeros(
            lambda s: 1 / _effective_rank(s),
            "The sign is lost: the logarithm of a share is negative, and the entropy is minus the "
            "sum.",
        ),
        _without_zeros(
            lambda s: _effective_rank(s**2),
            "Your shares are those of the squares. The effective rank takes the shares of the "
            "singular values themselves; it is the stable rank that squares.",
        ),
        _without_zeros(
            lambda s: np.exp(_entropy(s / s.sum()) / np.log(2)),
            "You took the logarithm to base 2 and then exp. Use one base for both: np.log and "
            "np.exp.",
        ),
        _without_zeros(
            lambda s: 2 ** _entropy(s / s.sum()),
            "You took the natural logarithm and then a power of 2. Use one base for both: np.log "
            "and np.exp.",
        ),
        _without_zeros(
            lambda s: np.exp(_entropy(s)),
            "Divide by the sum first: the p are shares, and add up to 1.",
        ),
        Mistake(
            lambda s: _effective_rank(s) if s.all() else np.nan,
            "With a zero among the values you get NaN: 0 · log 0 is computed as 0 · (−∞). Leave "
            "the zeros out of the sum.",
        ),
    ],
    otherwise=lambda found, s: (
        f"For 6, 3, 1 it is {_effective_rank(s):.6f}; got {found}."
        if s.all()
        else f"For 5, 5, 0 two share equally, so it is 2; found {found}."
    ),
    passed="the number of equal sharers that would be as undecided.",
    parts="The effective rank",
    same=lambda found, right: close(found, right) or str(found) == str(right) == "nan",
)


def _noisy(n: int, nu: float) -> np.ndarray:
    """Three singular values above the cut at 2.31 √n·nu, and others where mistakes would cut."""
    rng = np.random.default_rng(4)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    # Three between the edge of the noise at 2 and the cut, five between √3 and 2.
    seen = np.concatenate([[5.0, 3.0, 2.5], [2.25, 2.2, 2.1], np.linspace(1.98, 1.75, 5)])
    s = np.concatenate([seen, np.linspace(1.7, 0.01, n - len(seen))])
    return np.sqrt(n) * nu * (U * s) @ V.T


def _count(X: np.ndarray, nu: float, factor: float = 4 / np.sqrt(3), power: float = 0.5) -> int:
    return int((_values(X) > factor * len(X) ** power * nu).sum())


_NOISY, _NU = _noisy(100, 0.5), 0.5
_miscount = partial(_told_where, lambda X, nu: nu == _NU)
_MISCOUNTED = {
    _NU: "Three pieces of this table are above 4/√3·√n·nu; you count {}.",
    10 * _NU: "Another unit for the table and the noise must not change the count.",
    1.0: "On a 4 by 4 table the count is wrong: use its own side.",
}

check_worth_keeping = Exercise(
    asks="X square (n, n), nu of known white noise → how many σᵢ > 4/√3·√n·nu.",
    cases=[(_NOISY, _NU), (10 * _NOISY, 10 * _NU), (2 * np.diag([2.4, 2.0, 1.0, 0.5]), 1.0)],
    right=_count,
    mistakes=[
        _miscount(
            partial(_count, factor=2),
            "You counted everything beyond the edge of the noise, 2√n·nu. Between there and the "
            "cut a piece can be seen, and keeping it does more harm than good.",
        ),
        _miscount(
            partial(_count, factor=np.sqrt(3)),
            "You compared what is seen with √3. That is the size of the planted piece; it is seen "
            "at √3 + 1/√3 = 4/√3.",
        ),
        _miscount(
            partial(_count, power=0),
            "The side is missing: noise in n rows adds up to singular values of the size of √n·nu.",
        ),
        _miscount(lambda X, nu: _count(X, 1), "The noise's nu is missing, or taken to be 1."),
        _miscount(
            partial(_count, power=1),
            "Too strict by far: the singular values of noise grow with √n, not with n.",
        ),
        _miscount(
            lambda X, nu: int((_values(X) ** 2 > 4 / np.sqrt(3 / len(X)) * nu).sum()),
            "You compared the squares of the singular values with the cut. It is meant for the "
            "singular values themselves.",
        ),
        _miscount(
            lambda X, nu: int((_values(X) > 2.858 * np.median(_values(X))).sum()),
            "You took the noise from the median of the singular values. Here nu is given: use it.",
        ),
        Mistake(lambda X, nu: int((_values(X) > 11.6).sum()), _MISCOUNTED[10 * _NU]),
        Mistake(lambda X, nu: int((_values(X) > 23.1 * nu).sum()), _MISCOUNTED[1.0]),
    ],
    otherwise=lambda found, X, nu: _MISCOUNTED[nu].format(found),
    passed="kept where keeping costs less than dropping.",
    parts="The number of pieces",
)


def _blur(kernel: np.ndarray, n: int) -> np.ndarray:
    return np.sort(np.abs(np.fft.fft(kernel, n)))[::-1]


def _from_a_matrix(kernel: np.ndarray, n: int) -> np.ndarray:
    if n > 10_000:
        raise MemoryError(f"no room for {n} by {n} numbers")
    return _blur(kernel, n)


_MILLION = 1_000_000
_RING_IS_WRONG = (
    "For a ring of a million places the answer is wrong; kernel (1, 1) has the largest value "
    "2, that of the wave that does not move."
)

_of_small_ring = partial(_told_where, lambda kernel, n: n < _MILLION)

check_blur_singular_values = Exercise(
    asks="kernel, n → the n singular values of the circular convolution, falling.",
    cases=[(np.array([0.5, 0.3, -0.2]), 8), (np.array([1.0, 1.0]), _MILLION)],
    right=_blur,
    mistakes=[
        Mistake(
            _from_a_matrix,
            "For a ring of a million places the matrix does not fit into memory. Work with the "
            "padded list alone.",
            raises=MemoryError,
        ),
        Mistake(
            lambda kernel, n: _blur(kernel, len(kernel)),
            "You have three values, one for each weight of the blur. Pad the list with zeros to n "
            "first: np.fft.fft(kernel, n).",
            when=lambda found, kernel, n: np.shape(found) == (3,),
        ),
        Mistake(
            lambda kernel, n: np.sort(np.abs(np.fft.rfft(kernel, n)))[::-1],
            "rfft leaves out the second half of the waves, whose sizes repeat. All n are wanted.",
            when=lambda found, kernel, n: np.shape(found) == (n // 2 + 1,),
        ),
        Mistake(
            np.fft.fft,
            "The transform is complex. A singular value is how much a wave is stretched: its size, "
            "np.abs.",
            when=lambda found, kernel, n: np.iscomplexobj(found),
        ),
        _of_small_ring(
            lambda kernel, n: np.sort(np.fft.fft(kernel, n).real)[::-1],
            "You took the real part. How much a wave is stretched is the size of the complex "
            "number.",
        ),
        _of_small_ring(
            lambda kernel, n: np.abs(np.fft.fft(kernel, n)),
            "The values are right and not yet sorted: from large to small.",
        ),
        _of_small_ring(
            lambda kernel, n: _blur(kernel, n)[::-1],
            "Sorted the wrong way round: the largest comes first.",
        ),
        _of_small_ring(
            lambda kernel, n: _blur(kernel, n) ** 2,
            "These are the squares, the eigenvalues of KᵀK. Take the root.",
        ),
        *(
            _of_small_ring(
                lambda kernel, n, power=power: _blur(kernel, n) / n**power,
                "Leave the transform as it is: a plain copy, kernel (1), must have all values 1.",
            )
            for power in (0.5, 1)
        ),
        Mistake(lambda kernel, n: _blur(kernel, min(n, 500)), _RING_IS_WRONG),
    ],
    otherwise=lambda found, kernel, n: (
        _RING_IS_WRONG
        if n == _MILLION
        else "These are not the sizes of the transform of the padded weights."
    ),
    passed="a blur stretches waves, and the transform says by how much.",
    parts="The singular values",
)

_PIECES = ("U", "s", "Vt")


def _in_basis(X: np.ndarray, Q: Any, r: int) -> tuple[np.ndarray, ...]:
    """The SVD of QQᵀX, from that of the small QᵀX."""
    U, s, Vt = np.linalg.svd(Q.T @ X, full_matrices=False)
    return (Q @ U)[:, :r], s[:r], Vt[:r]


def _randomized_svd(X: np.ndarray, omega: np.ndarray, r: int) -> tuple[np.ndarray, ...]:
    return _in_basis(X, np.linalg.qr(X @ omega)[0], r)


def _product(pieces: Any) -> np.ndarray:
    U, s, Vt = map(np.asarray, pieces)
    return (U * s) @ Vt


def _same_svd(found: Any, right: Any) -> bool:
    """Equal but for the signs that the columns of U share with the rows of Vt."""
    return (
        not misshapen(found, right, _PIECES)
        and close(found[1], right[1])
        and close(_product(found), _product(right))
        and close(np.transpose(found[0]) @ found[0], np.eye(len(found[1])))
    )


def _by_s(answer: Function, says: str) -> Mistake:
    """A mistake told by the singular values."""
    return Mistake(answer, says, when=lambda found, *case: close(found[1], answer(*case)[1]))


def _sketched(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """X (12, 9) whose values fall slowly, so that a sketch can be told; omega (9, 5); and r."""
    U, V = (np.linalg.qr(rng.standard_normal((k, 9)))[0] for k in (12, 9))
    return (U * (1 / np.arange(1.0, 10))) @ V.T, rng.standard_normal((9, 5)), 3


RANDOMIZED_SVD = Exercise(
    asks="X (m, n), omega (n, w), r → U (m, r), s (r,), Vt (r, n).",
    cases=[_sketched(np.random.default_rng(6))],
    right=_randomized_svd,
    mistakes=[
        Mistake(
            lambda X, omega, r: _randomized_svd(X.T, omega, r),
            lambda error, X, omega, r: (
                f"Your shapes do not fit ({error}). omega has a row for each column of X, so the "
                "sketch is X @ omega, of shape (m, w)."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda X, omega, r: _in_basis(X, np.linalg.qr(X @ omega), r),
            lambda error, X, omega, r: (
                f"{error}: np.linalg.qr returns two matrices, Q and R. Take the first."
            ),
            raises=AttributeError,
        ),
        Mistake(
            lambda X, omega, r: _randomized_svd(X, omega, r)[1],
            "Return three things, in this order: U, s, Vt.",
            when=lambda found, *case: not isinstance(found, (tuple, list)) or len(found) != 3,
        ),
        Mistake(
            lambda X, omega, r: _randomized_svd(X, omega, omega.shape[1]),
            "You return all w pieces of the sketch. The extra ones are there for luck: keep r of "
            "them.",
            when=lambda found, X, omega, r: np.shape(found[1]) == omega.shape[1:],
        ),
        Mistake(
            lambda X, omega, r: _in_basis(np.linalg.qr(X @ omega)[0].T @ X, np.eye(5), r),
            "Your U belongs to the small matrix QᵀX, and has a row for each column of Q. Multiply "
            "it by Q to come back.",
            when=lambda found, X, omega, r: np.shape(found[0]) == (omega.shape[1], r),
        ),
        Mistake(
            lambda *case: (*_randomized_svd(*case)[:2], _randomized_svd(*case)[2].T),
            "Vt lies on its side: it must have shape (r, n), a row for each piece.",
            when=lambda found, X, omega, r: np.shape(found[2]) == (X.shape[1], r),
        ),
        Mistake(
            lambda X, omega, r: _in_basis(X[:4], np.eye(4), r),
            lambda found, *case: (
                "U, s and Vt must have shapes (12, 3), (3,) and (3, 9); found {}, {} and {}."
            ).format(*map(np.shape, found)),
            when=lambda found, *case: [*map(np.shape, found)] != [(12, 3), (3,), (3, 9)],
        ),
        _by_s(
            lambda X, omega, r: _in_basis(X, np.eye(len(X)), r),
            "You decomposed X itself. That gives the best answer and saves nothing: decompose QᵀX.",
        ),
        _by_s(
            lambda X, omega, r: _in_basis(X, X @ omega, r),
            "The sketch X @ omega is not orthonormal: its columns have lengths of their own, and "
            "these end up in the singular values. Take Q from np.linalg.qr.",
        ),
        _by_s(
            lambda X, omega, r: _in_basis(X, X @ omega / np.linalg.norm(X @ omega, axis=0), r),
            "You gave the columns of the sketch length one; they must be at right angles too. Take "
            "Q from np.linalg.qr.",
        ),
        _by_s(
            lambda X, omega, r: (X[:, :r], _values(X @ omega)[:r], X[:r]),
            "These are the singular values of X @ omega, which depend on how large omega was "
            "drawn. Use the sketch for its directions only.",
        ),
        _by_s(
            lambda X, omega, r: _randomized_svd(X, omega[:, :r], r),
            "You used only r columns of omega. Use all w, and cut at the end.",
        ),
        Mistake(
            lambda *case: [part + 1 for part in _randomized_svd(*case)],
            lambda found, *case: (
                f"The singular values should be {_randomized_svd(*case)[1]}; found "
                f"{np.asarray(found[1])}."
            ),
            when=lambda found, *case: not close(found[1], _randomized_svd(*case)[1]),
        ),
        Mistake(
            lambda *case: (-_randomized_svd(*case)[0], *_randomized_svd(*case)[1:]),
            "s is right, but U times s times Vt is not the approximation: take the first r columns "
            "of Q @ U and the first r rows of Vt.",
            when=lambda found, *case: not close(_product(found), _product(_randomized_svd(*case))),
        ),
    ],
    otherwise="The columns of U must be orthonormal.",
    passed="a few random products, a small decomposition, and back.",
    parts=_PIECES,
    same=_same_svd,
)


def check_randomized_svd(function: Function) -> None:
    """A table, and a look at what was decomposed: a large matrix gives the same result."""
    spies: list[mock.Mock] = []

    def watched(*case: Any) -> Any:
        with ExitStack() as stack:
            for name in ("svd", "eigh"):
                spy = mock.patch.object(np.linalg, name, wraps=getattr(np.linalg, name))
                spies.append(stack.enter_context(spy))
            return function(*case)

    found: list[Any] = []
    if RANDOMIZED_SVD.judge(watched, found) is None and found[0] is not None:
        w = RANDOMIZED_SVD.cases[0][1].shape[1]
        for used in (used for spy in spies for used in spy.call_args_list):
            shape = np.shape([*used.args, *used.kwargs.values()][0])
            require(
                min(shape) <= w,
                f"The result is right, but you decomposed a matrix of shape {shape}, larger than w "
                "on its shorter side, which saves nothing: Q(QᵀX) is as large as X. Decompose QᵀX, "
                "which has only w rows, and multiply its U by Q.",
            )
    RANDOMIZED_SVD(function)
