"""Checks of chapter 16: equal sizes, PiSSA's rate, the best A."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    array,
    call,
    not_attempted,
    passed,
    require,
)

Shapes = list[tuple[int, int]]


def _sizes(shapes: Shapes, budget: int) -> tuple[int, int, int]:
    outputs, inputs = sum(out for out, _ in shapes), sum(d_in for _, d_in in shapes)
    return (
        budget // (outputs + inputs),
        budget // outputs,
        (budget - outputs) // len(shapes),
    )


_SQUARE = [(48, 48)] * 4 + [(192, 48), (48, 192)]

check_equal_sizes = Exercise(
    asks="shapes [(d_out, d_in) …], budget → the largest ranks of LoRA, LoRA-FA and VeRA that "
    "train at most so many numbers.",
    cases=[(_SQUARE, 3456), ([(64, 32), (16, 64)], 1000), ([(100, 30)], 700)],
    right=_sizes,
    mistakes=[
        Mistake(
            lambda shapes, budget: (*_sizes(shapes, budget)[:2], budget // len(shapes)),
            "VeRA also trains one number for each *output* of a layer, whatever its rank.",
        ),
        Mistake(
            lambda shapes, budget: (
                *_sizes(shapes, budget)[:2],
                budget - sum(out for out, _ in shapes),
            ),
            "VeRA's A and B are shared by all layers, but each layer has a vector d of its own: a "
            "rank costs one number for each layer.",
            lambda found, shapes, budget: (
                len(shapes) > 1 and found[2] == budget - sum(out for out, _ in shapes)
            ),
        ),
        Mistake(
            lambda shapes, budget: (
                *_sizes(shapes, budget)[:2],
                budget // sum(out + d_in for out, d_in in shapes),
            ),
            "You count VeRA's A and B. They are random, frozen and trained by nothing; two vectors "
            "train, d with an entry for each rank and b with one for each output.",
        ),
        Mistake(
            lambda shapes, budget: (
                _sizes(shapes, budget)[0],
                budget // sum(d_in for _, d_in in shapes),
                _sizes(shapes, budget)[2],
            ),
            "You count the inputs for LoRA-FA. It freezes A, which reads the inputs; B trains, "
            "(d_out, r).",
            lambda found, shapes, budget: (
                sum(out for out, _ in shapes) != sum(d_in for _, d_in in shapes)
                and found[1] == budget // sum(d_in for _, d_in in shapes)
            ),
        ),
        Mistake(
            lambda shapes, budget: (
                _sizes(shapes, budget)[0],
                _sizes(shapes, budget)[0],
                _sizes(shapes, budget)[2],
            ),
            "LoRA-FA trains B alone, and so has about half of the numbers at the same rank: with "
            "an equal budget its rank is larger.",
        ),
        Mistake(
            lambda shapes, budget: tuple(
                math.ceil(exact)
                for exact in (
                    budget / sum(out + d_in for out, d_in in shapes),
                    budget / sum(out for out, _ in shapes),
                    (budget - sum(out for out, _ in shapes)) / len(shapes),
                )
            ),
            "Rounded up, the methods train more than the budget: round down.",
        ),
    ],
    otherwise=lambda found, shapes, budget: (
        f"The layers have {sum(out for out, _ in shapes)} outputs and "
        f"{sum(d_in for _, d_in in shapes)} inputs, and the budget is {budget}; found {found}."
    ),
    passed="LoRA pays for inputs and outputs, LoRA-FA for outputs, VeRA for outputs once.",
    parts=("LoRA's rank", "LoRA-FA's", "VeRA's"),
)


check_pissa_rate = Exercise(
    asks="rate, scale s → the rate with which PiSSA at scale 1 is the same run under Adam.",
    cases=[(0.01, 2.0), (0.004, 0.25), (0.02, 9.0)],
    right=lambda lr, scale: lr * scale**0.5,
    mistakes=[
        Mistake(
            lambda lr, scale: lr * scale,
            "You put all of the scale on one factor. PiSSA shares it out: A and B both begin as "
            "√(S/s) times singular vectors, so each is √s times as long at scale 1.",
        ),
        Mistake(
            lambda lr, scale: lr,
            "With the usual start only B's rate would answer for α. Here A and B themselves begin "
            "shorter where the scale is larger, and Adam's steps do not know of that.",
        ),
        Mistake(
            lambda lr, scale: lr / scale**0.5,
            "The other way round. At scale 1 the factors begin longer by √s (for s > 1), and have "
            "to take steps that are longer by as much.",
        ),
        Mistake(
            lambda lr, scale: lr / scale,
            "Neither the direction nor the size: the product B A is s times as large at scale 1, "
            "each factor √s times, and the rate goes with a factor.",
        ),
    ],
    otherwise=lambda found, lr, scale: (
        f"At scale {scale:g} each factor begins 1/√{scale:g} times as long as at scale 1; "
        f"found {found}."
    ),
    passed="p = q = √s in chapter 9's identity: both rates grow with the factors.",
    parts="The rate",
)


def check_best_start(function: Function) -> None:
    """``function(G, r)`` → A (r, d_in) with orthonormal rows, whose first step is the best."""
    generator = np.random.default_rng(16)
    U, _ = np.linalg.qr(generator.standard_normal((14, 14)))
    V, _ = np.linalg.qr(generator.standard_normal((14, 14)))
    G = (U * np.linspace(6, 0.2, 14)) @ V.T
    found = call(function, G.copy(), 3)
    if not_attempted(found):
        return
    if np.shape(found) == (14, 3):
        require(False, "A has one *row* for each direction, (r, d_in): transpose it.")
    A = array(found, (3, 14), "A")
    lengths = np.linalg.norm(A, axis=1)
    if not np.allclose(A @ A.T, np.eye(3), atol=1e-5):
        directions = A / lengths[:, None]
        if np.allclose(directions @ directions.T, np.eye(3), atol=1e-5):
            require(
                False,
                f"The rows have lengths {np.round(lengths, 2).tolist()}. A stands in G Aᵀ A twice, "
                "so that a long row weighs its direction again: all rows must have length 1.",
            )
        require(False, "The rows must have length 1 and stand at right angles.")
    step = -G @ A.T @ A
    got = _cosine(step, -G)
    S = np.linalg.svd(G, compute_uv=False)
    best = float(np.sqrt((S[:3] ** 2).sum() / (S**2).sum()))
    if not np.isclose(got, best, atol=1e-5):
        inside = [float(((side[:, :3].T @ A.T) ** 2).sum() / 3) for side in (U, V[:, ::-1])]
        require(
            inside[0] < 0.99,
            "These are left singular vectors, which G writes to. The rows of A read x, as those of "
            "G do: take the right ones.",
        )
        require(
            inside[1] < 0.99,
            "These are the directions in which G is smallest: singular values fall, so take the "
            "first rows of Vᵀ and not the last.",
        )
        require(
            False,
            f"The first step has a cosine of {got:.3f} with −G, and {best:.3f} can be had: look "
            "for the directions that hold most of G's sum of squares.",
        )
    tall = array(call(function, G[:, :5].copy(), 2), (2, 5), "A for a G of shape (14, 5)")
    require(np.allclose(tall @ tall.T, np.eye(2), atol=1e-5), "For a tall G, A is not orthonormal.")
    passed("the leading right directions: no other A sees as much of G.")


def _cosine(X: Any, Y: Any) -> float:
    return float((X * Y).sum() / (np.linalg.norm(X) * np.linalg.norm(Y)))
