"""Checks of chapter 15: bits of a format, a block rounded by hand, LoftQ's start, a card's rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    array,
    call,
    misshapen,
    not_attempted,
    passed,
    require,
)


def _bits(
    whole: Callable[[int, int], float],
    numel: int,
    per_weight: int,
    block: int,
    per_block: int,
    per_tensor: int,
) -> float:
    return (numel * per_weight + whole(numel, block) * per_block + per_tensor) / numel


#: {what to say: a wrong answer}
_FORMATS: dict[str, Function] = {
    "The scales are missing: every block stores one beside its codes.": (
        lambda numel, w, block, b, t: w + t / numel
    ),
    "The scale of the whole tensor is missing. It is small, but it is stored.": (
        lambda numel, w, block, b, t: _bits(lambda n, k: -(-n // k), numel, w, block, b, 0)
    ),
    "A block that is not full has a scale all the same: round the number of blocks up.": (
        lambda *given: _bits(lambda n, k: n // k, *given)
    ),
    "Half a block has a whole scale: the number of blocks is a whole number, rounded up.": (
        lambda *given: _bits(lambda n, k: n / k, *given)
    ),
    "That is the tensor's bits. Divide by its weights.": (
        lambda numel, *rest: numel * _bits(lambda n, k: -(-n // k), numel, *rest)
    ),
    "You divide the tensor's scale by nothing. It is stored once, for all weights together.": (
        lambda numel, w, block, b, t: _bits(lambda n, k: -(-n // k), numel, w, block, b, 0) + t
    ),
    "That is bytes a weight. Bits are asked for: do not divide by 8.": (
        lambda *given: _bits(lambda n, k: -(-n // k), *given) / 8
    ),
}

check_format_bits = Exercise(
    asks="numel, bits per weight, block, bits per block, bits per tensor → bits a weight, in all.",
    cases=[(1024, 4, 32, 8, 0), (1000, 4, 64, 32, 0), (100, 4, 16, 8, 32), (64, 2, 64, 32, 8)],
    right=partial(_bits, lambda n, k: -(-n // k)),
    mistakes=[Mistake(answer, says) for says, answer in _FORMATS.items()],
    otherwise=lambda found, numel, w, block, b, t: (
        f"{numel} weights of {w} bits, {-(-numel // block)} blocks with {b} bits each and {t} bits "
        f"for the tensor are {numel * w + -(-numel // block) * b + t} bits, or "
        f"{(numel * w + -(-numel // block) * b + t) / numel:.4g} a weight; found {found:.4g}."
    ),
    passed="codes, a scale for each block that was begun, and one for the tensor.",
    parts="The number of bits",
)


def _rounded(
    weights: np.ndarray,
    levels: np.ndarray,
    size: Callable[[np.ndarray], float] = lambda w: float(np.abs(w).max()),
    back: bool = True,
    pick: Callable[[np.ndarray], np.ndarray] = lambda gaps: np.abs(gaps).argmin(1),
) -> np.ndarray:
    absmax = size(weights)
    if absmax == 0:
        return weights
    chosen = levels[pick(weights[:, None] / absmax - levels)]
    return chosen * absmax if back else chosen


def _floor(gaps: np.ndarray) -> np.ndarray:
    """The highest level that is not above."""
    return np.maximum((gaps >= 0).sum(1) - 1, 0)


_LEVELS = np.array([-1.0, -0.5, -0.2, 0.0, 0.1, 0.3, 0.6, 1.0])
_BLOCKS = [
    np.array([0.3, -2.0, 0.9, 1.3, -0.1, 0.0]),
    np.array([0.05, 0.7, -0.26, 0.33]),
    np.zeros(3),
]

#: {what to say: a wrong answer}
_ROUNDINGS: dict[str, Function] = {
    "You divide by the largest weight. The absmax is the largest magnitude, and here a negative "
    "weight has it.": lambda w, levels: _rounded(w, levels, size=lambda w: float(w.max())),
    "You divide by the largest weight with its sign, which turns the block round. The absmax is a "
    "magnitude.": (
        lambda w, levels: _rounded(w, levels, size=lambda w: float(w[np.abs(w).argmax()]))
    ),
    "The levels come back, between −1 and 1. Multiply by the absmax: the weight is wanted.": (
        lambda w, levels: _rounded(w, levels, back=False)
    ),
    "You round downwards. Take the level that is nearest, above or below.": (
        lambda w, levels: _rounded(w, levels, pick=_floor)
    ),
    "The weights are compared with the levels as they are. Divide the block by its absmax first.": (
        lambda w, levels: _rounded(w, levels, size=lambda w: 1.0)
    ),
    "You divide by the root of the mean square, which leaves numbers beyond the last level. Divide "
    "by the largest magnitude.": (
        lambda w, levels: _rounded(w, levels, size=lambda w: float(np.sqrt(np.mean(w**2))))
    ),
    "Those are the codes, the numbers of the levels. Return the weights that they stand for.": (
        lambda w, levels: np.abs(w[:, None] / (np.abs(w).max() or 1.0) - levels).argmin(1)
    ),
}

check_round_block = Exercise(
    asks="weights (n,), levels (k,) sorted from −1 to 1 → the weights as they come back (n,).",
    cases=[(block, _LEVELS) for block in _BLOCKS],
    right=_rounded,
    mistakes=[
        Mistake(
            lambda w, levels: np.full_like(w, np.nan),
            "A block of zeros has an absmax of zero, and 0 ÷ 0 is no number. Return the zeros.",
            when=lambda found, w, levels: not w.any() and not np.isfinite(found).all(),
        ),
        *(Mistake(answer, says) for says, answer in _ROUNDINGS.items()),
    ],
    otherwise=lambda found, w, levels: (
        f"The block {np.round(w, 2).tolist()} comes back as "
        f"{np.round(_rounded(w, levels), 3).tolist()}; found {np.round(found, 3).tolist()}."
    ),
    passed="divided by the largest magnitude, rounded to the nearest level, multiplied back.",
    parts="The block",
)


def check_loftq_start(function: Function) -> None:
    """``function(E, r, scale)`` → A (r, in) and B (out, r), with scale · BA nearest to E.

    Factors are not unique, so the product is judged.
    """
    generator = np.random.default_rng(4)
    for (m, n), r, scale in (((5, 7), 2, 1.0), ((6, 4), 2, 2.0), ((6, 4), 3, 0.5)):
        E = generator.standard_normal((m, n))
        answer = call(function, E.copy(), r, scale)
        if not_attempted(answer):
            return
        words = misshapen(answer, (np.zeros((r, n)), np.zeros((m, r))), ("A", "B"))
        if words and isinstance(answer, (tuple, list)) and len(answer) == 2:
            shapes = [np.shape(one) for one in answer]
            require(
                shapes != [(m, r), (r, n)],
                "A and B are exchanged: A is (r, in) and meets the input first, B is (out, r).",
            )
        require(not words, words)
        A, B = array(answer[0], (r, n), "A"), array(answer[1], (m, r), "B")
        _judge_start(E, r, scale, B @ A)
    passed("scale · BA is the best approximation of the error, whatever the scale.")


def _judge_start(E: np.ndarray, r: int, scale: float, product: np.ndarray) -> None:
    U, S, Vh = np.linalg.svd(E, full_matrices=False)
    best = U[:, :r] * S[:r] @ Vh[:r]

    def is_(other: Any) -> bool:
        return bool(np.allclose(product, other, rtol=1e-5, atol=1e-6))

    if is_(best / scale):
        return
    require(
        not is_(best),
        f"B A is the best approximation, and the layer adds {scale:g} times that. Divide by the "
        "scale.",
    )
    require(
        not is_(best * scale),
        "You multiply by the scale, and the layer does so once more. Divide by it.",
    )
    require(
        not is_(best / scale**2),
        "Each factor is divided by the scale, so that the product is divided by it twice. Give "
        "each the root, or divide one.",
    )
    require(
        not (is_(best / scale**0.5) or is_(best * scale**0.5)),
        "The root of the scale stands on one factor only. "
        "The product has to be divided by the whole scale: give each factor its root, or divide "
        "one by it.",
    )
    require(
        bool(np.any(product)),
        "B A is zero: that is the usual start. LoftQ begins where scale · BA is near to E.",
    )
    require(
        not is_(-best / scale),
        "The sign is wrong: Q + scale · BA is to come nearer to W, and E is W − Q.",
    )
    require(
        not is_((U[:, :r] * S[:r] ** 2) @ Vh[:r] / scale),
        "Each factor has the singular values in full, so that the product has their squares. Give "
        "each the root, or one of them all.",
    )
    require(
        not is_(U[:, :r] @ Vh[:r] / scale),
        "The singular values are missing from the product.",
    )
    require(
        not is_((U[:, -r:] * S[-r:]) @ Vh[-r:] / scale),
        "Those are the smallest pieces of the error. Take the largest.",
    )
    missing = np.linalg.norm(E - scale * product) / np.linalg.norm(E)
    least = np.linalg.norm(E - best) / np.linalg.norm(E)
    raise AssertionError(
        f"scale · BA leaves {missing:.3f} of the error, and the best product of rank {r} leaves "
        f"{least:.3f}: take the first {r} singular triples of E."
    )


def _rank(
    card: float,
    packed: float,
    rest: int,
    shapes: list[tuple[int, int]],
    other: float,
    gib: float = 2**30,
    of_rest: int = 2,
    each: int = 16,
    size: Callable[[int, int], int] = lambda m, n: m + n,
) -> int:
    left = card * gib - packed - of_rest * rest - other
    return max(0, int(left // (each * sum(size(m, n) for m, n in shapes))))


#: {what to say: a wrong answer}
_CARDS: dict[str, Function] = {
    "A GiB is 2³⁰ bytes, and not 10⁹.": partial(_rank, gib=1e9),
    "The numbers that stay in bfloat16 take two bytes each.": partial(_rank, of_rest=1),
    "You forget what stays in bfloat16: embeddings, head and normalisations.": (
        partial(_rank, of_rest=0)
    ),
    "Four bytes are the adapter's weights alone. A trained number has a gradient and Adam's two "
    "means beside it: 16.": partial(_rank, each=4),
    "Eight bytes are a weight and its gradient. Adam keeps two means beside them: 16.": (
        partial(_rank, each=8)
    ),
    "Twelve bytes are those of full fine-tuning in bfloat16, where weight and gradient take two "
    "each. An adapter's number is in float32: 16.": partial(_rank, each=12),
    "Four bytes are float32. What stays outside the adapters is in bfloat16: two.": (
        partial(_rank, of_rest=4)
    ),
    "You forget the packed matrices, the largest part.": (
        lambda card, packed, rest, shapes, other: _rank(card, 0, rest, shapes, other)
    ),
    "You forget the activations and the rest that is in other.": (
        lambda card, packed, rest, shapes, other: _rank(card, packed, rest, shapes, 0)
    ),
    "An adapter of a matrix of m × n has r (m + n) numbers. You divide by m · n.": (
        partial(_rank, size=lambda m, n: m * n)
    ),
    "You round up, and that rank does not fit.": lambda *given: _rank(*given) + 1,
}

_SHAPES = [(4096, 4096)] * 4 + [(11_008, 4096)] * 3

check_largest_rank = Exercise(
    asks="card in GiB, packed bytes, rest numbers in bfloat16, shapes [(m, n), …], other bytes → "
    "the largest rank that fits.",
    cases=[
        (24, 3_360_000_000, 262_000_000, 32 * _SHAPES, 12_000_000_000),
        (6, 3_360_000_000, 262_000_000, 32 * _SHAPES, 1_000_000_000),
        (2, 3_360_000_000, 262_000_000, 32 * _SHAPES, 0),
    ],
    right=_rank,
    mistakes=[
        Mistake(
            lambda card, packed, rest, shapes, other: (
                (card * 2**30 - packed - 2 * rest - other) // (16 * sum(map(sum, shapes)))
            ),
            "A model that does not fit without an adapter has no rank: return 0, not a negative "
            "number.",
            when=lambda found, *case: found < 0,
        ),
        *(Mistake(answer, says) for says, answer in _CARDS.items()),
    ],
    otherwise=lambda found, card, packed, rest, shapes, other: (
        f"On {card} GiB there are {card * 2**30 - packed - 2 * rest - other:,.0f} bytes left, and "
        f"each rank takes {16 * sum(m + n for m, n in shapes):,}: "
        f"{_rank(card, packed, rest, shapes, other)}; found {found}."
    ),
    passed="what the base leaves free, divided by sixteen bytes for each of m + n numbers.",
    parts="The rank",
)
