"""Checks of chapter 6: the change that fine-tuning makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake, example

# --- what chance gives to the first piece -----------------------------------------------------


def _first_share(m: int, n: int) -> float:
    """(√m + √n)² of m n: the largest singular value of noise, squared, over the sum of squares."""
    return (m**0.5 + n**0.5) ** 2 / (m * n)


_SQUARE_ONLY = (
    "this holds for a square matrix alone, whose largest singular value is about 2√n. For m by n "
    "it is about √m + √n"
)

check_first_share = Exercise(
    asks="m, n → the share of the first piece of an m by n matrix of noise, by a formula.",
    cases=[(48, 48), (192, 48), (48, 192), (10, 1000), (10**6, 10**4)],
    right=_first_share,
    mistakes=[
        Mistake(
            lambda m, n: 1 / min(m, n),
            "this is the share if all pieces were of one size. In noise the first is the largest: "
            "its size is about √m + √n",
        ),
        Mistake(
            lambda m, n: (m**0.5 + n**0.5) / (m * n) ** 0.5,
            "this is the first singular value over the root of the sum of squares; a share is the "
            "square of that",
        ),
        Mistake(
            lambda m, n: (m**0.5 + n**0.5) / (m * n),
            "you divided a length by a sum of squares: square the first singular value",
        ),
        Mistake(
            lambda m, n: (m + n) / (m * n),
            "(√m + √n)² is not m + n: the term 2√(mn) is missing, half of the answer for a square",
        ),
        Mistake(
            lambda m, n: (m**0.5 + n**0.5) ** 2,
            "this is the first squared singular value; divide by the sum of all of them, which is "
            "the sum of m n squared entries, each about 1",
        ),
        Mistake(
            lambda m, n: (m**0.5 + n**0.5) ** 2 / (m + n),
            "the sum of squares has m n terms and not m + n: every entry of the matrix counts",
        ),
        *(Mistake(lambda m, n, side=side: 4 / side(m, n), _SQUARE_ONLY) for side in (min, max)),
    ],
    otherwise=lambda found, m, n: (
        f"for {m:,} by {n:,} the estimate is {_first_share(m, n):.5f}; found {found}. Use no "
        "random numbers: a largest singular value of about √m + √n, and a sum of squares of "
        "about m n"
    ),
    passed="the estimate of what chance gives to the first piece, for a matrix of any shape",
    parts="The share",
)


# --- the rank that holds a share --------------------------------------------------------------


def _reached(X: np.ndarray, power: int = 2) -> np.ndarray:
    """What no piece, one piece, two pieces … hold of the sum, before dividing: (k + 1,)."""
    return np.append(0.0, (np.linalg.svd(X, compute_uv=False) ** power).cumsum())


def _rank_for_share(X: np.ndarray, share: float, power: int = 2) -> int:
    reached = _reached(X, power)
    return int(np.searchsorted(reached, share * reached[-1]))


def _by_another_sum(X: np.ndarray, share: float) -> int:
    """Right, but for dividing by a sum whose rounding differs from that of the running one."""
    squares = np.linalg.svd(X, compute_uv=False) ** 2
    return int((squares.cumsum() / squares.sum() < share).sum()) + 1 if X.any() else 0


def _first_true(X: np.ndarray, share: float) -> int:
    squares = np.linalg.svd(X, compute_uv=False) ** 2
    return int(np.argmax(squares.cumsum() / squares.sum() >= share)) + 1 if X.any() else 0


def _more_than(X: np.ndarray, share: float) -> int:
    reached = _reached(X)
    rank = int(np.searchsorted(reached, share * reached[-1], side="right"))
    return min(rank, len(reached) - 1) if X.any() else 0


_ONE_TOO_MANY = (
    "one too many each time: the share of the first entry of a cumulative sum is that of one "
    "piece, not of none"
)
_EQUAL = np.diag([2.0, 2.0, 2.0, 2.0])  # each piece holds a quarter, to the last bit


def _whole(found: Any, X: np.ndarray, share: float) -> bool:
    """Whether the case asks for everything, in a matrix that needs all its pieces."""
    return share == 1 and min(X.shape) > 4


check_rank_for_share = Exercise(
    asks="X, share → the smallest number of pieces that hold at least this share of the squares.",
    cases=[
        # Singular values 8, 4, 2, 1: squares 64, 16, 4, 1 of 85.
        *((example(), share) for share in (0.5, 0.6, 0.9, 0.97, 0.995)),
        (example().T, 0.9),
        *((_EQUAL, share) for share in (0.25, 0.5, 1.0)),
        (np.zeros((3, 2)), 0.9),
        # Rounded differently, two sums of the same squares differ in about a third of such draws.
        *((np.random.default_rng(seed).normal(size=(40, 30)), 1.0) for seed in range(16)),
    ],
    right=_rank_for_share,
    mistakes=[
        Mistake(
            lambda X, share: share,
            lambda found, X, share: (
                "return a whole number: how many pieces it takes, not the share that they "
                f"hold. For a share of {share} the function gave {found}"
            ),
            when=lambda found, X, share: np.ndim(found) != 0 or found != np.floor(found),
        ),
        Mistake(
            lambda X, share: _rank_for_share(X, share, power=1),
            "you added the singular values; the share is one of their squares. A sum that is not "
            "squared gives small pieces too much weight",
        ),
        Mistake(
            lambda X, share: _rank_for_share(X, share) - 1,
            "one too few each time: the entry of a cumulative sum with index i belongs to i + 1 "
            "pieces",
        ),
        Mistake(lambda X, share: _rank_for_share(X, share) + 1, _ONE_TOO_MANY),
        Mistake(lambda X, share: min(_rank_for_share(X, share) + 1, min(X.shape)), _ONE_TOO_MANY),
        Mistake(
            _more_than,
            "'at least' includes equality: each of four equal pieces holds exactly a quarter, so "
            "two hold a half, and you ask for a third",
            when=lambda found, X, share: (
                X.shape == (4, 4) and share < 1 and found == _rank_for_share(X, share) + 1
            ),
        ),
        Mistake(
            _first_true,
            lambda found, X, share: (
                f"to hold everything, a matrix with {min(X.shape)} pieces needs them all, and you "
                f"found {found}. Two sums of the same numbers, added in another order, differ in "
                "the last digit, so that the share may never reach 1, and np.argmax of a list "
                "without a True is 0: divide by the last entry of the cumulative sum"
            ),
            when=lambda found, X, share: _whole(found, X, share) and found <= 1,
        ),
        Mistake(
            _by_another_sum,
            lambda found, X, share: (
                f"you ask for {found} pieces of a matrix that has {min(X.shape)}. Two sums of the "
                "same numbers, added in another order, differ in the last digit: divide by the "
                "last entry of the cumulative sum"
            ),
            when=lambda found, X, share: _whole(found, X, share) and found > min(X.shape),
        ),
        Mistake(
            lambda X, share: _rank_for_share(X, share) + (not X.any()),
            "a matrix of zeros has nothing to hold, so no piece is needed: return 0 for it. A "
            "share of nothing is 0 / 0, which NumPy turns into nan",
            when=lambda found, X, share: not X.any(),
        ),
    ],
    otherwise=lambda found, X, share: (
        f"for a matrix of shape {X.shape} a share of {share} takes {_rank_for_share(X, share)} "
        f"pieces; found {found}"
    ),
    passed="the smallest number of pieces that holds the share, at the edges too",
    parts="The rank",
)


# --- what the truncated change costs ----------------------------------------------------------


def _stored(count: Function) -> Function:
    """(shapes, r) → the sum of a count (m, n, r) for each matrix."""
    return lambda shapes, r: sum(count(m, n, r) for m, n in shapes)


_stored_numbers = _stored(lambda m, n, r: min(r * (m + n), m * n))
_PRODUCT = "a piece costs a column and a row, m + n numbers, not m · n"
_WITH_SINGULAR_VALUES = (
    "you count the r singular values as well; multiplied into one of the two factors they cost "
    "nothing"
)

check_stored_numbers = Exercise(
    asks="shapes [(m, n), …], r → how many numbers the truncated changes take.",
    cases=[([(48, 48), (192, 48), (48, 192), (10, 4)], r) for r in (8, 0, 1, 24, 48)],
    right=_stored_numbers,
    mistakes=[
        Mistake(
            _stored(lambda m, n, r: r * (m + n)),
            "you count two factors for the (10, 4) matrix too, 112 numbers where the matrix has "
            "40: above the break-even rank send the change itself",
        ),
        Mistake(
            _stored(lambda m, n, r: m * n),
            "this is the size of the whole changes; two factors of rank r hold r(m + n) numbers",
        ),
        Mistake(_stored(lambda m, n, r: min(r * m * n, m * n)), _PRODUCT),
        Mistake(_stored(lambda m, n, r: r * m * n), _PRODUCT),
        Mistake(_stored(lambda m, n, r: min(r * (m + n + 1), m * n)), _WITH_SINGULAR_VALUES),
        Mistake(_stored(lambda m, n, r: r * (m + n + 1)), _WITH_SINGULAR_VALUES),
    ],
    otherwise=lambda found, shapes, r: (
        f"for the four example shapes at rank {r} it is {_stored_numbers(shapes, r)}; found {found}"
    ),
    passed="two factors where they save, the change itself where they do not",
    parts="The count",
)


# --- the rank of a gradient -------------------------------------------------------------------

_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
Ranks = Callable[[int, int], dict[str, int]]


def _ranks(k: Function, v: Function, rest: Function = lambda T, h: 1) -> Ranks:
    """(tokens, heads) → {kind: rank}, by a rule for the keys, the values, and the other four."""
    return lambda T, h: {kind: {"k_proj": k, "v_proj": v}.get(kind, rest)(T, h) for kind in _KINDS}


gradient_ranks = _ranks(k=lambda T, h: min(h, T - 1), v=lambda T, h: min(h, T))


def _wrong_kind(found: dict[str, Any], T: int, h: int) -> str:
    right = gradient_ranks(T, h)
    if found.keys() != right.keys():
        return f"return a dictionary with the keys {', '.join(_KINDS)}"
    kind = next(kind for kind in _KINDS if found[kind] != right[kind])
    return (
        f"for {T} tokens and {h} heads the rank for {kind} is {right[kind]}, and you said "
        f"{found[kind]}. Count the different errors e that its sum of outer products can hold"
    )


check_gradient_ranks = Exercise(
    asks="tokens, heads → {matrix of the last block: the largest rank of its gradient}.",
    # The reader's network; more heads than tokens; as many; one head; one token and nothing else.
    cases=[(9, 4), (17, 4), (3, 4), (4, 4), (9, 1), (2, 8)],
    right=gradient_ranks,
    mistakes=[
        Mistake(
            lambda T, h: 1,
            f"return a dictionary with the keys {', '.join(_KINDS)}",
            when=lambda found, T, h: not isinstance(found, dict) or found.keys() != set(_KINDS),
        ),
        Mistake(
            _ranks(*(3 * [lambda T, h: T])),
            "one outer product for each token is the bound for the blocks before the last. Behind "
            "the last block only the class token is read: which tokens get an error at all there?",
        ),
        Mistake(
            _ranks(*(3 * [lambda T, h: 1])),
            "keys and values are made for every token, and the class token's query compares and "
            "mixes them all: they get an error at every token, one for each head",
        ),
        Mistake(
            _ranks(*(2 * [lambda T, h: T])),
            "the errors of all tokens' values are multiples of one list of numbers in each head: "
            "the heads bound the rank, too",
            when=lambda found, T, h: h < T - 1 and found["v_proj"] == T and found["q_proj"] == 1,
        ),
        Mistake(
            _ranks(*(2 * [lambda T, h: h])),
            "with more heads than tokens the tokens are the bound: a sum of T outer products has "
            "a rank of at most T",
        ),
        Mistake(
            _ranks(*(2 * [lambda T, h: min(h, T)])),
            "right but for the keys where heads are many. A number added to all scores changes "
            "nothing behind a softmax, so in each head the errors of the scores add up to zero, "
            "and T of them are only T − 1 independent ones",
        ),
    ],
    otherwise=_wrong_kind,
    passed="the ranks of one picture's gradients, from what each token is told",
    same=lambda found, right: isinstance(found, dict) and found == right,
)
