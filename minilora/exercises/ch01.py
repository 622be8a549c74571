"""Checks of chapter 1: rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises.guarded import Changed, Forbidden, Guarded
from minilora.exercises.tools import Exercise, Mistake, close

#: The ranks of i·j + 1, 2^(i + j), i² + j², cos(i − j) and |i − j|, for i and j from 1 to 8.
_RANKS = (2, 1, 2, 2, 8)


def _wrong_rank(table: int, guess: int | None, says: str) -> Mistake:
    """A wrong prediction for one of the five tables; None stands for any."""
    answer = [*_RANKS[:table], 7 if guess is None else guess, *_RANKS[table + 1 :]]
    return Mistake(
        lambda: answer,
        f"Table {'ABCDE'[table]}: {says}",
        when=lambda found: (
            len(found) == 5
            and found[table] != _RANKS[table]
            and (guess is None or found[table] == guess)
        ),
    )


check_predicted_ranks = Exercise(
    asks="→ the ranks of the five tables A to E, in this order.",
    cases=[()],
    right=lambda: list(_RANKS),
    mistakes=[
        _wrong_rank(0, 1, "i·j is one outer product, and the 1 in every entry needs another."),
        _wrong_rank(0, None, "write the entry as u_i v_j plus a constant, and count the pieces."),
        _wrong_rank(1, 2, "you see a sum, but it stands in the exponent: 2^(i + j) = 2^i · 2^j."),
        _wrong_rank(1, None, "a power of a sum is a product of two powers: 2^(i + j) = 2^i · 2^j."),
        _wrong_rank(
            2,
            1,
            "i² + j² is a sum, of a table that depends on the row alone and one of "
            "the column alone.",
        ),
        _wrong_rank(
            2,
            3,
            "there is no middle term: i² + j² is not (i + j)². Each of the two "
            "squares is one piece.",
        ),
        _wrong_rank(2, None, "each of the two squares is one piece."),
        _wrong_rank(
            3, 8, "the rows all look different, and yet cos(i − j) = cos i cos j + sin i sin j."
        ),
        _wrong_rank(3, None, "cos(i − j) = cos i cos j + sin i sin j. Count the products."),
        _wrong_rank(
            4,
            2,
            "i − j would have rank 2; the two bars change that. Subtract each row "
            "from the next: what is left is −1 on one side of a bend and +1 on the other, "
            "and the bend moves.",
        ),
        _wrong_rank(
            4,
            None,
            "subtract each row from the next. Every one of the seven differences "
            "bends in another place, so that none is a mixture of the others.",
        ),
    ],
    otherwise="Five whole numbers are wanted, the ranks of tables A to E.",
    passed="ranks read off a formula, before any computer counted.",
    parts="The five ranks",
)


def _largest_saving_rank(m: int, n: int) -> int:
    return (m * n - 1) // (m + n)


check_largest_saving_rank = Exercise(
    asks="m, n → the largest whole r with r·(m + n) < m·n.",
    # At (2, 2), (3, 6), (4, 12) and (384, 384) break-even is a whole number; at (7, 7) it is not.
    cases=[
        *((427, 640), (1, 1), (7, 26), (100, 3), (1000, 1000), (384, 384)),
        *((2, 2), (3, 6), (12, 4), (7, 7)),
    ],
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
        Mistake(
            lambda m, n: m * n // (m + n) - (m == n and m % 2 == 0),
            lambda found, m, n: (
                f"Even squares are right, but they are not alone: a ({m}, {n}) matrix breaks even "
                f"at exactly r = {found}, too. Do not look at the shape; ask for r (m + n) < m n."
            ),
        ),
        Mistake(
            lambda m, n: m * n // (m + n) - (m == n),
            "You take one off for every square matrix. For a side of 7, break-even is 3.5 and rank "
            "3 does save; and a (3, 6) matrix, which is no square, breaks even at exactly 2.",
        ),
    ],
    otherwise=lambda found, m, n: (
        f"For ({m}, {n}) the answer is {_largest_saving_rank(m, n)}; found {found}."
    ),
    passed="one rank more, and the factors hold as many numbers as the matrix, or more.",
    parts="The rank",
)


def _square_factors(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.ones_like(a), np.ones_like(b)
    return np.column_stack([a**2, 2 * a, one]), np.vstack([other, b, b**2])


def _wired_in(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([a**2, 2 * a, np.ones(4)]), np.vstack([np.ones(3), b, b**2])


def _shapes(found: Any) -> list[tuple[int, ...]]:
    return [np.shape(factor) for factor in found] if isinstance(found, (tuple, list)) else []


def _same_product(found: Any, right: Any) -> bool:
    fits = _shapes(found) == _shapes(right)
    return fits and close(np.matmul(*found), np.matmul(*right), 100)


check_square_factors = Exercise(
    asks="a (m,), b (n,) → C (m, 3) and R (3, n) with (C @ R)[i, j] = (a[i] + b[j])².",
    cases=[
        (np.array([0.0, 7.0, 14.0, 21.0]), np.array([1.0, 2.0, 3.0])),
        (np.array([1.0, -2.0]), np.array([3.0, 0.5, -1.0, 2.0, 4.0])),
    ],
    right=_square_factors,
    mistakes=[
        Mistake(
            _wired_in,
            lambda error, a, b: (
                f"For lists of {len(a)} and {len(b)} numbers your factors do not fit together "
                f"({error}). Take the lengths of the ones from a and b."
            ),
            raises=ValueError,
        ),
        Mistake(
            lambda a, b: (a[:, None] + b) ** 2,
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
            lambda a, b: tuple(factor.T for factor in _square_factors(a, b)),
            "Each factor lies on its side: C has a row for each a, R a column for each b. "
            "Transpose both.",
            when=lambda found, a, b: _shapes(found) == [(3, len(a)), (len(b), 3)],
        ),
        Mistake(
            lambda a, b: _square_factors(a, b)[::-1],
            "R comes first in your answer. Return C, the tall factor, and then R.",
            when=lambda found, a, b: _shapes(found) == [(3, len(b)), (len(a), 3)],
        ),
        Mistake(
            lambda a, b: (np.column_stack([a**2, 0 * a + 1]), np.vstack([0 * b + 1, b**2])),
            "You use two outer products, and they make a² + b². The square of a sum has a term "
            "between the two squares.",
            when=lambda found, a, b: _shapes(found)[0][1] == 2,
        ),
        Mistake(
            lambda a, b: tuple(np.pad(F, (0, 1)) for F in _square_factors(a, b)),
            lambda found, a, b: (
                f"You use {_shapes(found)[0][1]} outer products; three are enough, one for each "
                "term of the square."
            ),
            when=lambda found, a, b: _shapes(found)[0][1] > 3,
        ),
        Mistake(
            lambda a, b: (np.column_stack([a**2, a, 0 * a + 1]), _square_factors(a, b)[1]),
            "The term between the two squares is 2ab: you have it once.",
        ),
        Mistake(
            lambda a, b: (np.column_stack([a, 0 * a + 1, 0 * a]), np.vstack([0 * b + 1, b, b])),
            "Your factors make a + b, not its square. To square every entry is not to square a "
            "factor: multiply (a + b)² out first.",
        ),
    ],
    otherwise="C @ R is not (a[i] + b[j])². Multiply the square out: each of its terms is a list "
    "that runs down the rows times a list that runs along the columns.",
    passed="three terms, three outer products, however large the table is.",
    parts=("C", "R"),
    same=_same_product,
)


def _cross(X: np.ndarray) -> np.ndarray:
    """The outer product through the entry of X that is largest in size."""
    i, j = np.unravel_index(np.abs(X).argmax(), X.shape)
    return np.outer(X[:, j], X[i]) / X[i, j]


def _count_crosses(X: np.ndarray, relative: float = 1e-9, absolute: float = 0.0) -> int:
    """Crosses until what is left is small; at most as many as the shorter side."""
    rest = X.copy()
    limit = max(relative * np.abs(X).max(), absolute)
    for count in range(min(X.shape)):
        if np.abs(rest).max() <= limit:
            return count
        rest = rest - _cross(rest)
    return min(X.shape)


def _count_overwriting(X: np.ndarray) -> int:
    count, limit = 0, 1e-9 * np.abs(X).max()
    while np.abs(X).max() > limit:
        X -= _cross(X)
        count += 1
    return count


def _of_rank_three() -> np.ndarray:
    generator = np.random.default_rng(1)
    return generator.standard_normal((6, 3)) @ generator.standard_normal((3, 7))


_RANK_TWO = np.array([[2.0, 4.0, 6.0], [1.0, 5.0, 0.0], [3.0, 9.0, 6.0], [0.0, 3.0, -3.0]])
_RANK_THREE = _of_rank_three()

check_count_crosses = Guarded(
    asks="X (m, n) → how many crosses until nothing but rounding error is left.",
    cases=[
        (_RANK_TWO,),
        (_RANK_THREE,),
        (_RANK_THREE.T,),
        (-np.ones((2, 3)),),
        (np.diag([1.0, -3.0, 2.0]),),
        (np.zeros((3, 2)),),
        (1e-12 * _RANK_THREE,),
        (1e12 * _RANK_THREE,),
    ],
    right=_count_crosses,
    mistakes=[
        Mistake(
            lambda X: np.linalg.matrix_rank(X),
            lambda error, X: f"You called {error}. Count the crosses instead: peel, and count.",
            raises=Forbidden,
        ),
        Mistake(
            _count_overwriting,
            "Your function writes into the table that it was given, and whoever called it has lost "
            "the table. Work on a copy: rest = X.copy(), and rest = rest - piece.",
            raises=Changed,
        ),
        Mistake(
            lambda X: min(X.shape),
            "You return the shorter side. That is the most the rank can be, not what it is.",
        ),
        Mistake(
            lambda X: len(np.unique(X, axis=0)),
            "You counted the rows that differ. A row can differ from all others and still be a "
            "mixture of them.",
        ),
        Mistake(
            lambda X: int(np.any(X, axis=1).sum()),
            "You counted the rows that are not zero. What counts is how many crosses it takes to "
            "clear them all.",
        ),
        Mistake(
            lambda X: max(_count_crosses(X), 1),
            "A table of zeros needs no piece at all: its rank is 0.",
            when=lambda found, X: not X.any(),
        ),
        Mistake(
            lambda X: 0 if X.max() < 0 else _count_crosses(X),
            "For a table of minus ones you do not find rank 1. The largest entry means the largest "
            "in size: take np.abs(X).argmax().",
            when=lambda found, X: X.max() < 0,
        ),
        Mistake(
            lambda X: _count_crosses(X, relative=0.0),
            "You wait until every entry is exactly zero. Rounding leaves something of the size of "
            "10⁻¹⁶ behind, and you count it as a piece. Stop when what is left is small beside X.",
            when=lambda found, X: np.abs(X).max() < 1e6 and found > _count_crosses(X),
        ),
        Mistake(
            lambda X: _count_crosses(X, relative=0.0, absolute=1e-9),
            lambda found, X: (
                "Other units must not change the rank: with all entries about "
                f"{np.abs(X).max():.0e} you find {found}. Compare what is left with the largest "
                "entry of X, not with a fixed number."
            ),
            when=lambda found, X: not 1e-6 < np.abs(X).max() < 1e6,
        ),
    ],
    otherwise=lambda found, X: (
        f"A table of shape {X.shape} has rank {_count_crosses(X)}; found {found}."
    ),
    passed="the crosses that it takes are the rank.",
    parts="The number of crosses",
    without=("matrix_rank", "svd", "svdvals"),
)


def _with_identity(C: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    T = C[: C.shape[1]]
    return np.linalg.solve(T.T, C.T).T, T @ R


def _with_identity_in_R(C: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    T = R[:, : len(R)]
    return C @ T, np.linalg.solve(T, R)


def _pasted(C: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.vstack([np.eye(C.shape[1]), C[C.shape[1] :]]), R


def _pasted_into(C: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answer = _with_identity(C, R)
    C[: C.shape[1]] = np.eye(C.shape[1])
    return answer


def _begins_with_identity(C: Any) -> bool:
    return close(np.asarray(C)[: np.shape(C)[1]], np.eye(np.shape(C)[1]), 100)


def _keeps_product(found: Any, C: np.ndarray, R: np.ndarray) -> bool:
    return close(np.matmul(*found), C @ R, 1e4)


check_with_identity = Guarded(
    asks="C (m, r), R (r, n) → two factors of the same product, the first beginning with I (r, r).",
    cases=[
        (
            np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 3.0], [4.0, -1.0]]),
            np.array([[1.0, 2.0, 0.5], [3.0, -1.0, 1.0]]),
        ),
        (
            np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0]]),
            np.array([[1.0, 0, 2, 0, 1], [0.0, 1, 1, 3, 0], [2.0, 1, 0, 1, 1]]),
        ),
        (np.array([[4.0], [2.0], [-1.0]]), np.array([[2.0, 3.0]])),
    ],
    right=_with_identity,
    mistakes=[
        Mistake(
            _pasted_into,
            "Your function writes into one of its arguments. Make new factors, and leave C and R "
            "as they are.",
            raises=Changed,
        ),
        Mistake(
            lambda C, R: C @ R,
            "Return two factors, not their product.",
            when=lambda found, C, R: not (isinstance(found, (tuple, list)) and len(found) == 2),
        ),
        Mistake(
            lambda C, R: _with_identity(C, R)[::-1],
            "Return the tall factor first, then the flat one.",
            when=lambda found, C, R: _shapes(found) == [R.shape, C.shape] != [C.shape, R.shape],
        ),
        Mistake(
            _pasted,
            "Your tall factor begins with the identity, and R is what it was, so that the product "
            "has changed. Whatever T is taken out of C must be put into R.",
            when=lambda found, C, R: _begins_with_identity(found[0]) and close(found[1], R),
        ),
        Mistake(
            lambda C, R: (_with_identity(C, R)[0], np.linalg.solve(C[: len(R)], R)),
            "Your tall factor is right, and the product has changed. C was multiplied by T⁻¹ from "
            "the right; T itself, not its inverse, goes to the left of R, so that T⁻¹ T cancels.",
            when=lambda found, C, R: (
                close(found[0], _with_identity(C, R)[0], 100) and not _keeps_product(found, C, R)
            ),
        ),
        Mistake(
            _with_identity_in_R,
            "The identity stands in the flat factor, as its first columns. That is as short, but "
            "the exercise asks for it in the first rows of the tall one.",
            when=lambda found, C, R: _begins_with_identity(np.transpose(found[1])),
        ),
        Mistake(
            lambda C, R: (C, R),
            "The product is right, but the tall factor does not begin with the identity. Which T "
            "makes the first r rows of C T⁻¹ the identity?",
            when=lambda found, C, R: _keeps_product(found, C, R),
        ),
    ],
    otherwise="Let T be the first r rows of C. The factors are C T⁻¹ and T R.",
    passed="r² of the numbers need not be stored, for everybody knows the identity.",
    parts=("the tall factor", "the flat factor"),
    same=lambda found, right: close(found, right, 100),
)
