"""Checks of chapter 1: rank."""

from __future__ import annotations

import numpy as np

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require


def check_outer_product(function: Function) -> None:
    """``function(u, v)``: u (m,), v (n,) → (m, n), every entry of u times every entry of v."""
    u, v = np.array([1.0, 2.0, -3.0]), np.array([4.0, 0.5])
    try:
        answer = call(function, u.copy(), v.copy())
    except ValueError as error:
        raise AssertionError(
            f"NumPy cannot combine the two lists ({error}). u * v multiplies entry by entry and "
            "u @ v adds the products up, so both want lists of equal length. Make u a column "
            "first, u[:, None], so that each of its entries meets all of v."
        ) from None
    if not_attempted(answer):
        return
    found = np.asarray(answer, dtype=float)
    require(
        found.ndim != 0,
        "You return one number: that is the inner product, which adds the products up. "
        "The outer product keeps them all, in a table.",
    )
    require(
        not close(found, np.outer(v, u)),
        "Your table lies on its side: u must run down the rows and v along the columns, "
        "so the shape is (len(u), len(v)).",
    )
    found = array(found, (3, 2), "The outer product of u (3,) and v (2,)")
    require(
        close(found, np.outer(u, v)),
        "The shape is right, the entries are not: row i, column j must hold u[i] * v[j].",
    )
    passed("every row is v times a number, every column is u times a number.")


def check_largest_saving_rank(function: Function) -> None:
    """``function(m, n)`` → the largest whole r with r·(m + n) < m·n."""
    answer = call(function, 427, 640)
    if not_attempted(answer):
        return
    require(
        answer != 427,
        "427 is the largest rank that the matrix can have, not the largest that saves: at r = 427 "
        "the factors hold 427 · 1,067 numbers, the matrix only 427 · 640.",
    )
    require(
        answer == int(answer),
        f"A rank is a whole number; found {answer}. Round mn / (m + n) down, not up: above it the "
        "factors hold more numbers than the matrix.",
    )
    require(
        answer != 257,
        "257 is one too many: mn / (m + n) is 256.1, and above it the factors hold more numbers "
        "than the matrix. Round down.",
    )
    require(answer == 256, f"For (427, 640) the answer is 256; found {answer}.")
    for m, n, right in ((1, 1, 0), (7, 26, 5), (100, 3, 2), (1000, 1000, 499), (384, 384, 191)):
        found = call(function, m, n)
        if m == n and found == m // 2 and m > 1:
            raise AssertionError(
                f"At r = {found} the factors of a ({m}, {n}) matrix hold exactly as many numbers "
                "as the matrix. That is break-even; the exercise asks for fewer."
            )
        require(found == right, f"For ({m}, {n}) the answer is {right}; found {found}.")
    passed("one rank more, and the factors hold as many numbers as the matrix, or more.")


def check_addition_factors(function: Function) -> None:
    """``function(a, b)``: a (m,), b (n,) → C (m, 2), R (2, n) with (C @ R)[i, j] = a[i] + b[j]."""
    a, b = np.array([0.0, 7.0, 14.0, 21.0]), np.array([1.0, 2.0, 3.0])
    answer = call(function, a.copy(), b.copy())
    if not_attempted(answer):
        return
    require(
        isinstance(answer, (tuple, list)) and len(answer) == 2,
        "Return the two factors, C and R, not the table that they make.",
    )
    C, R = (np.asarray(factor, dtype=float) for factor in answer)
    require(
        C.ndim == 2 and R.ndim == 2,
        f"Both factors must be matrices; found shapes {C.shape} and {R.shape}.",
    )
    require(
        not (C.shape == (2, 4) and R.shape == (3, 2)),
        "Each factor lies on its side: C has a row for each a, R a column for each b. "
        "Transpose both.",
    )
    require(
        not (C.shape == (2, 3) and R.shape == (4, 2)),
        "R comes first in your answer. Return C, the tall factor, and then R.",
    )
    require(
        C.shape[1] <= 2,
        f"You use {C.shape[1]} outer products; two are enough. One carries a, the other b.",
    )
    C, R = array(C, (4, 2), "C"), array(R, (2, 3), "R")
    product = C @ R
    require(
        not close(product, np.outer(a, b), 100),
        "Your factors make the multiplication table a[i] * b[j]. To carry a alone, pair it with a "
        "row of ones; to carry b alone, pair it with a column of ones.",
    )
    require(
        close(product, a[:, None] + b[None, :], 100),
        "C @ R is not a[i] + b[j]. Its first outer product should be a column times a row of ones.",
    )
    passed("an addition table has rank two, however large it is.")


def check_peel_once(function: Function) -> None:
    """``function(X, i, j)``: X (m, n) → what is left after the cross through X[i, j] is removed."""
    X = np.array([[2.0, 4.0, 6.0], [1.0, 5.0, 0.0], [3.0, 9.0, 6.0], [0.0, 3.0, -3.0]])  # rank 2
    answer = call(function, X.copy(), 1, 1)
    if not_attempted(answer):
        return
    found = array(answer, (4, 3), "What is left of X")
    cross = np.outer(X[:, 1], X[1])
    require(
        not close(found, cross / X[1, 1], 10),
        "You return the piece itself; the exercise asks for what is left, X minus the piece.",
    )
    require(
        not close(found, X - cross, 100),
        "You forgot to divide by X[i, j]. The piece must equal X along row i and column j; where "
        "they meet, column times row is X[i, j] squared.",
    )
    require(
        not (close(found[1], np.zeros(3)) and close(found[[0, 2, 3]], X[[0, 2, 3]])),
        "You cleared one row and left the others as they were. Every row must lose its share of "
        "row i: that is what the column in the outer product is for.",
    )
    require(
        close(found[1], np.zeros(3), 10) and close(found[:, 1], np.zeros(4), 10),
        "Row i and column j of what is left must be zero; yours are not.",
    )
    require(
        close(found, X - cross / X[1, 1], 10),
        "Row i and column j are zero, but the rest is wrong: subtract "
        "outer(X[:, j], X[i]) / X[i, j].",
    )
    at_0_2 = array(call(function, X.copy(), 0, 2), (4, 3), "What is left of X")
    require(
        not close(at_0_2, X - np.outer(X[:, 0], X[2]) / X[2, 0], 10),
        "With i = 0 and j = 2 you took column 0 and row 2. The cross through X[i, j] is column j "
        "and row i.",
    )
    require(
        close(at_0_2, X - np.outer(X[:, 2], X[0]) / X[0, 2], 10),
        "It is right for i = 1, j = 1, and wrong for i = 0, j = 2: take the entry that was asked "
        "for.",
    )
    passed("the rank fell by one, from 2 to 1.")
