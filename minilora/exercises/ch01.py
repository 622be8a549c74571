"""Checks of chapter 1: rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises.tools import Exercise, Mistake, close

check_outer_product = Exercise(
    asks="u (m,), v (n,) → (m, n), every entry of u times every entry of v.",
    cases=[(np.array([1.0, 2.0, -3.0]), np.array([4.0, 0.5]))],
    right=np.outer,
    mistakes=[
        Mistake(
            lambda u, v: u * v,
            lambda error, u, v: (
                f"NumPy cannot combine the two lists ({error}). u * v multiplies entry by entry "
                "and u @ v adds the products up, so both want lists of equal length. Make u a "
                "column first, u[:, None], so that each of its entries meets all of v."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda u, v: u[: len(v)] @ v,
            "You return one number: that is the inner product, which adds the products up. "
            "The outer product keeps them all, in a table.",
            when=lambda found, u, v: np.ndim(found) == 0,
        ),
        Mistake(
            lambda u, v: np.outer(v, u),
            "Your table lies on its side: u must run down the rows and v along the columns, "
            "so the shape is (len(u), len(v)).",
        ),
    ],
    otherwise="The shape is right, the entries are not: row i, column j must hold u[i] * v[j].",
    passed="every row is v times a number, every column is u times a number.",
    parts="The outer product of u (3,) and v (2,)",
)


def _largest_saving_rank(m: int, n: int) -> int:
    return (m * n - 1) // (m + n)


check_largest_saving_rank = Exercise(
    asks="m, n → the largest whole r with r·(m + n) < m·n.",
    cases=[(427, 640), (1, 1), (7, 26), (100, 3), (1000, 1000), (384, 384)],
    right=_largest_saving_rank,
    mistakes=[
        Mistake(
            min,
            lambda found, m, n: (
                f"{found} is the largest rank that the matrix can have, not the largest that "
                f"saves: at r = {found} the factors hold {found} · {m + n:,} numbers, the matrix "
                f"only {m} · {n}."
            ),
        ),
        Mistake(
            lambda m, n: m * n / (m + n),
            lambda found, m, n: (
                f"A rank is a whole number; found {found}. Round mn / (m + n) down, not up: above "
                "it the factors hold more numbers than the matrix."
            ),
            when=lambda found, m, n: found != int(found),
        ),
        Mistake(
            lambda m, n: -(-m * n // (m + n)),
            lambda found, m, n: (
                f"{found} is one too many: mn / (m + n) is {m * n / (m + n):.1f}, and above it "
                "the factors hold more numbers than the matrix. Round down."
            ),
        ),
        Mistake(
            lambda m, n: m * n // (m + n),
            lambda found, m, n: (
                f"At r = {found} the factors of a ({m}, {n}) matrix hold exactly as many numbers "
                "as the matrix. That is break-even; the exercise asks for fewer."
            ),
        ),
    ],
    otherwise=lambda found, m, n: (
        f"For ({m}, {n}) the answer is {_largest_saving_rank(m, n)}; found {found}."
    ),
    passed="one rank more, and the factors hold as many numbers as the matrix, or more.",
    parts="The rank",
)


def _addition_factors(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([a, np.ones_like(a)]), np.vstack([np.ones_like(b), b])


def _shapes(found: Any) -> list[tuple[int, ...]]:
    return [np.shape(factor) for factor in found] if isinstance(found, (tuple, list)) else []


def _same_product(found: Any, right: Any) -> bool:
    fits = _shapes(found) == _shapes(right)
    return fits and close(np.matmul(*found), np.matmul(*right), 100)


check_addition_factors = Exercise(
    asks="a (m,), b (n,) → C (m, 2) and R (2, n) with (C @ R)[i, j] = a[i] + b[j].",
    cases=[(np.array([0.0, 7.0, 14.0, 21.0]), np.array([1.0, 2.0, 3.0]))],
    right=_addition_factors,
    mistakes=[
        Mistake(
            lambda a, b: a[:, None] + b,
            "Return the two factors, C and R, not the table that they make.",
            when=lambda found, a, b: not (isinstance(found, (tuple, list)) and len(found) == 2),
        ),
        Mistake(
            lambda a, b: (a, b),
            lambda found, a, b: (
                "Both factors must be matrices; found shapes "
                f"{' and '.join(map(str, _shapes(found)))}."
            ),
            when=lambda found, a, b: any(len(shape) != 2 for shape in _shapes(found)),
        ),
        Mistake(
            lambda a, b: tuple(factor.T for factor in _addition_factors(a, b)),
            "Each factor lies on its side: C has a row for each a, R a column for each b. "
            "Transpose both.",
            when=lambda found, a, b: _shapes(found) == [(2, len(a)), (len(b), 2)],
        ),
        Mistake(
            lambda a, b: _addition_factors(a, b)[::-1],
            "R comes first in your answer. Return C, the tall factor, and then R.",
            when=lambda found, a, b: _shapes(found) == [(2, len(b)), (len(a), 2)],
        ),
        Mistake(
            lambda a, b: tuple(np.pad(F, (0, 1)) for F in _addition_factors(a, b)),
            lambda found, a, b: (
                f"You use {_shapes(found)[0][1]} outer products; two are enough. One carries a, "
                "the other b."
            ),
            when=lambda found, a, b: _shapes(found)[0][1] > 2,
        ),
        Mistake(
            lambda a, b: (np.column_stack([a, 0 * a]), np.vstack([b, b])),
            "Your factors make the multiplication table a[i] * b[j]. To carry a alone, pair it "
            "with a row of ones; to carry b alone, pair it with a column of ones.",
        ),
    ],
    otherwise="C @ R is not a[i] + b[j]. Its first outer product should be a column times a row "
    "of ones.",
    passed="an addition table has rank two, however large it is.",
    parts=("C", "R"),
    same=_same_product,
)


def _cross(X: np.ndarray, i: int, j: int) -> np.ndarray:
    """Column times row through X[i, j]."""
    return np.outer(X[:, j], X[i])


def _peel_once(X: np.ndarray, i: int, j: int) -> np.ndarray:
    return X - _cross(X, i, j) / X[i, j]


def _is_cleared(found: np.ndarray, i: int, j: int) -> bool:
    return close(found[i], 0 * found[i], 10) and close(found[:, j], 0 * found[:, j], 10)


def _clear_row(X: np.ndarray, i: int, j: int) -> np.ndarray:
    X[i] = 0
    return X


_RANK_TWO = np.array([[2.0, 4.0, 6.0], [1.0, 5.0, 0.0], [3.0, 9.0, 6.0], [0.0, 3.0, -3.0]])

check_peel_once = Exercise(
    asks="X (m, n), i, j → what is left after the cross through X[i, j] is removed.",
    cases=[(_RANK_TWO, 1, 1), (_RANK_TWO, 0, 2)],
    right=_peel_once,
    mistakes=[
        Mistake(
            lambda X, i, j: _cross(X, i, j) / X[i, j],
            "You return the piece itself; the exercise asks for what is left, X minus the piece.",
        ),
        Mistake(
            lambda X, i, j: X - _cross(X, i, j),
            "You forgot to divide by X[i, j]. The piece must equal X along row i and column j; "
            "where they meet, column times row is X[i, j] squared.",
        ),
        Mistake(
            _clear_row,
            "You cleared one row and left the others as they were. Every row must lose its share "
            "of row i: that is what the column in the outer product is for.",
        ),
        Mistake(
            lambda X, i, j: _peel_once(X, j, i),
            "With i = 0 and j = 2 you took column 0 and row 2. The cross through X[i, j] is column "
            "j and row i.",
        ),
        Mistake(
            lambda X, i, j: _peel_once(X, 1, 1),
            "It is right for i = 1, j = 1, and wrong for i = 0, j = 2: take the entry that was "
            "asked for.",
        ),
        Mistake(
            lambda X, i, j: X,
            "Row i and column j of what is left must be zero; yours are not.",
            when=lambda found, X, i, j: (
                np.shape(found) == X.shape and not _is_cleared(np.asarray(found), i, j)
            ),
        ),
    ],
    otherwise="Row i and column j are zero, but the rest is wrong: subtract "
    "outer(X[:, j], X[i]) / X[i, j].",
    passed="the rank fell by one, from 2 to 1.",
    parts="What is left of X",
)
