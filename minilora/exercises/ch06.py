"""Checks of chapter 6: the change that fine-tuning makes."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    close,
    example,
    is_numeric,
    misshapen,
    require,
)

_size = np.linalg.norm


def _relative_change(before: np.ndarray, after: np.ndarray) -> float:
    return float(_size(after - before) / _size(before))


_SIZES_SUBTRACTED = (
    "you subtracted the sizes; a matrix can change a great deal and keep its size. Subtract the "
    "matrices first"
)

check_relative_change = Exercise(
    asks="before, after (m, n) → ‖after − before‖ / ‖before‖, Frobenius norms.",
    cases=[(np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 3.0], [0.0, 2.0]]))],
    right=_relative_change,
    mistakes=[
        Mistake(
            lambda before, after: _size(after - before),
            "this is the size of the change by itself; divide by the size of the matrix before",
        ),
        Mistake(
            lambda before, after: _size(after - before) / _size(after),
            "you divided by the size of the matrix after; the unit is the matrix before",
        ),
        Mistake(
            lambda before, after: _relative_change(before, after) ** 2,
            "you forgot the root: this is the ratio of the energies, not of the sizes",
        ),
        Mistake(lambda before, after: _size(after) / _size(before) - 1, _SIZES_SUBTRACTED),
        Mistake(lambda before, after: abs(_size(after) / _size(before) - 1), _SIZES_SUBTRACTED),
        Mistake(
            lambda before, after: _size(after - before, 2) / _size(before, 2),
            "you used the spectral norm; np.linalg.norm without a second argument is Frobenius",
        ),
    ],
    otherwise=lambda found, before, after: (
        f"for the example it is {_relative_change(before, after):.4f}, not {found}"
    ),
    passed="the size of the change, with the matrix before as the unit",
    parts="The relative size",
)


def _rank_for_share(X: np.ndarray, share: float, power: int = 2) -> int:
    energy = np.linalg.svd(X, compute_uv=False) ** power
    return int((energy.cumsum() / energy.sum() < share).sum()) + 1


_ONE_TOO_MANY = (
    "one too many each time: the share of the first entry of a cumulative sum is that of one "
    "direction, not of none"
)

check_rank_for_share = Exercise(
    asks="X, share → the smallest rank that holds this share of the energy.",
    # Singular values 8, 4, 2, 1: energies 64, 16, 4, 1 of 85.
    cases=[(example(), share) for share in (0.5, 0.6, 0.9, 0.97, 0.995)],
    right=_rank_for_share,
    mistakes=[
        Mistake(
            lambda X, share: share,
            lambda found, X, share: (
                "return a whole number: how many directions it takes, not the share that they "
                f"hold. For a share of {share} the function gave {found}"
            ),
            when=lambda found, X, share: np.ndim(found) != 0 or found != np.floor(found),
        ),
        Mistake(
            partial(_rank_for_share, power=1),
            "you added the singular values; energy is their square. A sum that is not squared "
            "gives small directions too much weight",
        ),
        Mistake(
            lambda X, share: _rank_for_share(X, share) - 1,
            "one too few each time: the entry of a cumulative sum with index i belongs to i + 1 "
            "directions",
        ),
        Mistake(lambda X, share: _rank_for_share(X, share) + 1, _ONE_TOO_MANY),
        Mistake(lambda X, share: min(_rank_for_share(X, share) + 1, 4), _ONE_TOO_MANY),
    ],
    otherwise=lambda found, X, share: (
        f"for singular values 8, 4, 2, 1 a share of {share} takes {_rank_for_share(X, share)} "
        f"directions; found {found}"
    ),
    passed="the smallest number of directions that holds the share",
    parts="The rank",
)


def _cut(X: np.ndarray, keep: slice, power: int = 1) -> np.ndarray:
    """The chosen directions of X."""
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return (U[:, keep] * s[keep] ** power) @ Vt[keep]


def _cut_with_columns(X: np.ndarray, r: int) -> np.ndarray:
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return (U[:, :r] * s[:r]) @ Vt[:, :r].T


def _each(rule: Function) -> Function:
    """(before, after, r) → the new matrices, by a rule that gets W, its change and r."""
    return lambda before, after, r: {n: rule(W, after[n] - W, r) for n, W in before.items()}


_truncate_update = _each(lambda W, change, r: W + _cut(change, slice(r)))


def _same_matrices(found: Any, right: Any) -> bool:
    fits = isinstance(found, dict) and found.keys() == right.keys()
    return fits and all(close(found[name], W) for name, W in right.items())


def _which_is_wrong(found: dict[str, Any], *case: Any) -> str:
    right = _truncate_update(*case)
    name = next(name for name, W in right.items() if not close(found[name], W))
    return misshapen(found[name], right[name], f"The new {name}") or f"the new {name} is not right"


def _matrices(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"q_proj": rng.normal(size=(5, 4)), "up_proj": rng.normal(size=(7, 4))}


TRUNCATE_UPDATE = Exercise(
    asks="before, after {name: matrix}, r → {name: W₀ plus the rank-r part of its change}.",
    cases=[(_matrices(6), _matrices(7), 2)],
    right=_truncate_update,
    mistakes=[
        Mistake(
            lambda before, after, r: list(_truncate_update(before, after, r).values()),
            "return a dictionary with the same keys as before",
            when=lambda found, before, after, r: (
                not isinstance(found, dict) or found.keys() != before.keys()
            ),
        ),
        Mistake(
            _each(lambda W, change, r: _cut(W + change, slice(r))),
            "you truncated the weight after training. The weight has a spectrum that decays "
            "slowly; it is the change that is nearly of low rank",
        ),
        Mistake(
            _each(lambda W, change, r: _cut(change, slice(r))),
            "this is the truncated change alone; add it to the weight before",
        ),
        Mistake(
            _each(lambda W, change, r: W + change + _cut(change, slice(r))),
            "you added the truncated change to the weight after; add it to the weight before",
        ),
        Mistake(
            _each(lambda W, change, r: W + _cut(change, slice(r, None))),
            "you kept the directions after the first r; keep the first r",
        ),
        Mistake(
            _each(lambda W, change, r: W - _cut(change, slice(r))),
            "the sign is wrong: the change is after − before",
        ),
        Mistake(
            _each(lambda W, change, r: W + _cut_with_columns(change, r)),
            "you took columns of the third factor. NumPy returns Vᵀ, whose rows are the right "
            "singular vectors: take Vt[:r]",
        ),
        Mistake(
            _each(lambda W, change, r: W + _cut(change, slice(r), power=0)),
            "you left out the singular values: each direction has to have its own size",
        ),
    ],
    otherwise=_which_is_wrong,
    passed="the weight before, and the r largest directions of its change",
    same=_same_matrices,
)


def check_truncate_update(function: Function) -> None:
    """The exercise of the table, and the matrices that were given stay as they were."""
    case = copy.deepcopy(TRUNCATE_UPDATE.cases[0])
    call(function, *case)
    require(
        _same_matrices(case[0], TRUNCATE_UPDATE.cases[0][0]),
        "you changed the matrices that you were given; work on new ones",
    )
    TRUNCATE_UPDATE(function)


def _stored(count: Function) -> Function:
    """(shapes, r) → the sum of a count (m, n, r) for each matrix."""
    return lambda shapes, r: sum(count(m, n, r) for m, n in shapes)


_stored_numbers = _stored(lambda m, n, r: min(r * (m + n), m * n))
_PRODUCT = "a direction costs a column and a row, m + n numbers, not m · n"
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


@cache
def _chance_share(
    m: int, n: int, r: int, power: int = 2, draw: str = "standard_normal", matrices: int = 0
) -> float:
    """The share of the first r directions, the mean over some random matrices."""
    size = (matrices or 10_000 // (m + n), m, n)
    s = np.linalg.svd(getattr(np.random.default_rng(66), draw)(size), compute_uv=False) ** power
    return float((s[:, :r].sum(axis=1) / s.sum(axis=1)).mean())


def _is_near(found: Any, right: float) -> bool:
    return is_numeric(found) and np.ndim(found) == 0 and bool(abs(found - right) < 0.03)


def _at_large(answer: Function, says: str) -> Mistake:
    """A mistake told by large matrices alone, in which even a single one shows it."""
    return Mistake(answer, says, lambda found, m, *nr: m > 40 and _is_near(found, answer(m, *nr)))


check_chance_share = Exercise(
    asks="m, n, r → the share of the energy that r directions hold in a random matrix, on average.",
    # In one matrix of the large shapes the share is within 0.03 of the mean. In the small ones it
    # scatters by 0.032 to 0.034, the mean of 20 by a fifth of that: the mean of 20 is within 0.03
    # at every shape, and the share in a single matrix is not. They are many, and differ in n, since
    # a function that seeds its generator gives one value for each, and like values for like shapes.
    cases=[
        *((48, 48, 8), (192, 48, 8)),
        *((5, 6, 3), (39, 4, 2), (20, 5, 3), (23, 6, 3), (22, 7, 1), (18, 8, 1), (15, 9, 1)),
        *((17, 10, 2), (16, 11, 2), (12, 12, 1), (14, 13, 2), (12, 14, 2), (12, 15, 3), (9, 16, 1)),
        *((30, 5, 1), (38, 3, 2)),
    ],
    right=_chance_share,
    mistakes=[
        _at_large(
            lambda m, n, r: r / min(m, n),
            "this is r / 48, the share if all directions were equal. Sorted, the first ones are "
            "the largest even in pure noise",
        ),
        _at_large(
            partial(_chance_share, power=1), "you added the singular values; energy is their square"
        ),
        _at_large(
            partial(_chance_share, draw="random"),
            "your entries are all positive: their mean is one large direction by itself. Draw them "
            "from a normal distribution around zero",
        ),
        Mistake(
            lambda m, n, r: _chance_share(48, 48, r),
            lambda found, m, n, r: (
                f"for ({m}, {n}) and r = {r} it is about {_chance_share(m, n, r):.2f}, not {found}"
            ),
            when=lambda found, m, n, r: m > 40 and np.ndim(found) == 0,
        ),
        Mistake(
            partial(_chance_share, matrices=1),
            "this is the share in one matrix, or in very few, and hangs on which were drawn; "
            "average over at least 20 matrices",
            when=lambda found, m, n, r: np.ndim(found) == 0,
        ),
    ],
    otherwise="the share is one number",
    passed="chance alone gives the first directions more than their part",
    parts="The share",
    same=_is_near,
)
