"""Checks of chapter 6: the change that fine-tuning makes."""

from __future__ import annotations

import numpy as np

from minilora.exercises.tools import (
    Function,
    array,
    call,
    close,
    example,
    not_attempted,
    passed,
    require,
)


def check_relative_change(function: Function) -> None:
    """Chapter 6: ``function(before, after)`` gives ‖after − before‖ / ‖before‖, Frobenius norms."""
    before, after = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 3.0], [0.0, 2.0]])
    change = after - before
    answer = call(function, before.copy(), after.copy())
    if not_attempted(answer):
        return
    found = float(array(answer, (), "The relative size, one number,"))
    size, whole = np.linalg.norm(change), np.linalg.norm(before)
    require(
        not close(found, size),
        "this is the size of the change by itself; divide by the size of the matrix before",
    )
    require(
        not close(found, size / np.linalg.norm(after)),
        "you divided by the size of the matrix after; the unit is the matrix before",
    )
    require(
        not close(found, (size / whole) ** 2),
        "you forgot the root: this is the ratio of the energies, not of the sizes",
    )
    require(
        not close(found, (np.linalg.norm(after) - whole) / whole)
        and not close(found, abs(np.linalg.norm(after) - whole) / whole),
        "you subtracted the sizes; a matrix can change a great deal and keep its size. Subtract "
        "the matrices first",
    )
    require(
        not close(found, np.linalg.norm(change, 2) / np.linalg.norm(before, 2)),
        "you used the spectral norm; np.linalg.norm without a second argument is Frobenius",
    )
    require(close(found, size / whole), f"for the example it is {size / whole:.4f}, not {found}")
    passed("the size of the change, with the matrix before as the unit")


def check_rank_for_share(function: Function) -> None:
    """Chapter 6: ``function(X, share)`` gives the smallest rank that holds a share of energy."""
    X = example()  # singular values 8, 4, 2, 1: energies 64, 16, 4, 1 of 85
    cases = ((0.5, 1), (0.6, 1), (0.9, 2), (0.97, 3), (0.995, 4))
    found = [call(function, X.copy(), share) for share, _ in cases]
    if not_attempted(found[0]):
        return
    for (share, _), value in zip(cases, found, strict=True):
        require(
            np.ndim(value) == 0 and value == np.floor(value),
            "return a whole number: how many directions it takes, not the share that they hold. "
            f"For a share of {share} the function gave {value}",
        )
    found = [int(value) for value in found]
    require(
        found != [1, 2, 3, 4, 4],
        "you added the singular values; energy is their square. A sum that is not squared gives "
        "small directions too much weight",
    )
    require(
        found != [right - 1 for _, right in cases],
        "one too few each time: the entry of a cumulative sum with index i belongs to i + 1 "
        "directions",
    )
    require(
        found != [right + 1 for _, right in cases]
        and found != [min(right + 1, 4) for _, right in cases],
        "one too many each time: the share of the first entry of a cumulative sum is that of one "
        "direction, not of none",
    )
    for (share, right), value in zip(cases, found, strict=True):
        require(
            value == right,
            f"for singular values 8, 4, 2, 1 a share of {share} takes {right} directions; "
            f"found {value}",
        )
    passed("the smallest number of directions that holds the share")


def check_truncate_update(function: Function) -> None:
    """Chapter 6: ``function(before, after, r)``: W₀ plus the rank-r part of each change."""
    rng = np.random.default_rng(6)
    before = {"q_proj": rng.normal(size=(5, 4)), "up_proj": rng.normal(size=(7, 4))}
    after = {name: W + rng.normal(size=W.shape) / 2 for name, W in before.items()}
    inputs = {name: W.copy() for name, W in before.items()}
    answer = call(function, inputs, {name: W.copy() for name, W in after.items()}, 2)
    if not_attempted(answer):
        return
    require(
        isinstance(answer, dict) and set(answer) == set(before),
        "return a dictionary with the same keys as before",
    )

    def cut(X: np.ndarray, part: slice) -> np.ndarray:
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        return (U[:, part] * s[part]) @ Vt[part]

    def cut_with_columns(X: np.ndarray) -> np.ndarray:
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        return (U[:, :2] * s[:2]) @ Vt[:, :2].T

    def cut_without_sizes(X: np.ndarray) -> np.ndarray:
        U, _, Vt = np.linalg.svd(X, full_matrices=False)
        return U[:, :2] @ Vt[:2]

    for name, W in before.items():
        found, change = array(answer[name], W.shape, f"The new {name}"), after[name] - W
        require(
            np.array_equal(inputs[name], W),
            "you changed the matrices that you were given; work on new ones",
        )
        require(
            not close(found, cut(after[name], slice(2))),
            "you truncated the weight after training. The weight has a spectrum that decays "
            "slowly; it is the change that is nearly of low rank",
        )
        require(
            not close(found, cut(change, slice(2))),
            "this is the truncated change alone; add it to the weight before",
        )
        require(
            not close(found, after[name] + cut(change, slice(2))),
            "you added the truncated change to the weight after; add it to the weight before",
        )
        require(
            not close(found, W + cut(change, slice(2, None))),
            "you kept the directions after the first r; keep the first r",
        )
        require(
            not close(found, W - cut(change, slice(2))),
            "the sign is wrong: the change is after − before",
        )
        require(
            not close(found, W + cut_with_columns(change)),
            "you took columns of the third factor. NumPy returns Vᵀ, whose rows are the right "
            "singular vectors: take Vt[:r]",
        )
        require(
            not close(found, W + cut_without_sizes(change)),
            "you left out the singular values: each direction has to have its own size",
        )
        require(close(found, W + cut(change, slice(2))), f"the new {name} is not right")
    passed("the weight before, and the r largest directions of its change")


def check_stored_numbers(function: Function) -> None:
    """Chapter 6: ``function(shapes, r)`` counts the numbers of truncated changes."""
    shapes = [(48, 48), (192, 48), (48, 192), (10, 4)]
    answer = call(function, list(shapes), 8)
    if not_attempted(answer):
        return
    factors = sum(8 * (m + n) for m, n in shapes)
    right = factors - 8 * 14 + 40
    require(
        answer != factors,
        "you count two factors for the (10, 4) matrix too, 112 numbers where the matrix has 40: "
        "above the break-even rank send the change itself",
    )
    require(
        answer != sum(m * n for m, n in shapes),
        "this is the size of the whole changes; two factors of rank r hold r(m + n) numbers",
    )
    require(
        answer != sum(min(8 * m * n, m * n) for m, n in shapes)
        and answer != sum(8 * m * n for m, n in shapes),
        "a direction costs a column and a row, m + n numbers, not m · n",
    )
    require(
        answer not in (right + 8 * 3, factors + 8 * 4),
        "you count the r singular values as well; multiplied into one of the two factors they "
        "cost nothing",
    )
    require(answer == right, f"for the four example shapes at rank 8 it is {right}; found {answer}")
    for r in (0, 1, 24, 48):
        expected = sum(min(r * (m + n), m * n) for m, n in shapes)
        found = call(function, list(shapes), r)
        require(found == expected, f"at rank {r} it is {expected}; found {found}")
    passed("two factors where they save, the change itself where they do not")


# Shapes and ranks at which the shares of two random matrices differ a great deal.
_SMALL = (
    *((2, 2, 1), (3, 2, 1), (5, 2, 1), (3, 3, 1), (3, 3, 2), (4, 3, 1), (4, 4, 2), (9, 2, 1)),
    *((7, 3, 2), (2, 6, 1), (5, 5, 1), (6, 4, 1), (12, 2, 1), (3, 10, 1), (8, 8, 1), (4, 15, 2)),
)


def _scatter(function: Function) -> float:
    """How far ``function`` is from the mean share, in units of what one matrix scatters.

    About 1 for a single matrix, 1/√20 ≈ 0.22 for the mean of 20. The root mean square is taken over
    many shapes, since a function that seeds its generator gives one value for each.
    """
    rng, off = np.random.default_rng(68), []
    for m, n, r in _SMALL:
        energy = np.linalg.svd(rng.standard_normal((2000, m, n)), compute_uv=False) ** 2
        shares = energy[:, :r].sum(1) / energy.sum(1)
        off.append((float(function(m, n, r)) - shares.mean()) / shares.std())
    return float(np.sqrt(np.mean(np.square(off))))


def check_chance_share(function: Function) -> None:
    """Chapter 6: ``function(m, n, r)``: the share of r directions in a random matrix."""
    answer = call(function, 48, 48, 8)
    if not_attempted(answer):
        return
    found = float(answer)

    def near(value: float) -> bool:
        return abs(found - value) < 0.03

    X = np.random.default_rng(66).standard_normal((60, 48, 48))
    s = np.linalg.svd(X, compute_uv=False)

    def share(s: np.ndarray) -> float:
        return float((s[:, :8].sum(1) / s.sum(1)).mean())

    uniform = np.linalg.svd(np.random.default_rng(66).random((60, 48, 48)), compute_uv=False)
    require(
        not near(8 / 48),
        "this is r / 48, the share if all directions were equal. Sorted, the first ones are the "
        "largest even in pure noise",
    )
    require(not near(share(s)), "you added the singular values; energy is their square")
    require(
        not near(share(uniform**2)),
        "your entries are all positive: their mean is one large direction by itself. Draw them "
        "from a normal distribution around zero",
    )
    require(near(share(s**2)), f"for (48, 48) and r = 8 it is about {share(s**2):.2f}, not {found}")
    wide = call(function, 192, 48, 8)
    tall = np.random.default_rng(67).standard_normal((40, 192, 48))
    right = share(np.linalg.svd(tall, compute_uv=False) ** 2)
    require(abs(float(wide) - right) < 0.03, f"for (192, 48) it is about {right:.2f}; found {wide}")
    require(
        _scatter(function) < 0.5,
        "this is the share in one matrix, or in very few, and hangs on which were drawn; average "
        "over at least 20 matrices",
    )
    passed("chance alone gives the first directions more than their part")
