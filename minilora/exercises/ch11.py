"""Checks of chapter 11: bytes of the weights, kept inputs, operations, and checkpoints."""

from __future__ import annotations

import math
from functools import partial

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

#: {what to say: the bytes, of P frozen numbers of b bytes and of p trained ones}
_BYTES: dict[str, list[Function]] = {
    "You give the frozen weights gradients and a state. They have neither: only their own bytes "
    "remain.": [
        lambda P, b, p: P * (2 * b + 8),
        lambda P, b, p: P * (2 * b + 8) + 16 * p,
        lambda P, b, p: 16 * P,
        lambda P, b, p: 16 * P + 16 * p,
    ],
    "You leave the frozen weights out. They are not trained, but they are there.": [
        lambda P, b, p: 16 * p
    ],
    "One of the adapter's four parts is missing. It has its own numbers, a gradient, and two "
    "moments: 4 bytes each.": [
        lambda P, b, p: P * b + 12 * p,
        lambda P, b, p: P * b + (2 * b + 8) * p,
    ],
    "You count 8 bytes for each trained number. An adapter is float32 whatever the base is, and "
    "has four parts of 4 bytes: its own numbers, a gradient, and two moments.": [
        lambda P, b, p: P * b + 8 * p,
        lambda P, b, p: P * b + 4 * b * p,
    ],
    "You count the adapter's own numbers only. Being trained, they have a gradient and two moments "
    "as well.": [lambda P, b, p: P * b + 4 * p],
    "A frozen weight needs no master copy: it never moves.": [
        lambda P, b, p: P * (b + 4) + 16 * p,
        lambda P, b, p: P * (b if b == 4 else b + 4) + 16 * p,
    ],
}

check_training_bytes = Exercise(
    asks="P frozen numbers, b bytes of each, p trained ones → bytes of weights, gradients and "
    "Adam's state.",
    cases=[(1_000_000, 2, 30_000), (700_000, 4, 50_000)],
    right=lambda P, b, p: P * b + 16 * p,
    mistakes=[Mistake(count, says) for says in _BYTES for count in _BYTES[says]],
    otherwise=lambda found, P, b, p: (
        f"With {P:,} frozen numbers of {b} bytes and {p:,} trained ones the answer is "
        f"{P * b + 16 * p:,}: the base's own bytes, and 4 + 4 + 8 for each trained number; found "
        f"{found:,.0f}."
    ),
    passed="the base's own bytes, and sixteen for each trained number.",
    parts="The number of bytes",
)


Layers = list[tuple[str, int, int, str]]
#: Layers as (input, d_in, d_out, how they are trained).
_LAYERS: Layers = [
    ("a", 8, 10, "lora"),
    ("a", 8, 10, "frozen"),
    ("a", 8, 10, "lora"),
    ("b", 5, 12, "frozen"),
    ("c", 7, 33, "trained"),
    ("d", 31, 13, "lora"),
]
_MORE: Layers = [
    ("a", 7, 9, "trained"),
    ("a", 7, 3, "lora"),
    ("e", 17, 5, "frozen"),
    ("e", 17, 5, "lora"),
    ("c", 5, 7, "frozen"),
]
_KINDS = ("trained", "frozen", "lora")


def _inputs(layers: Layers, kinds: tuple[str, ...] = ("trained", "lora")) -> int:
    """The widths of the inputs of these layers, each input once."""
    return sum({name: d_in for name, d_in, _, kind in layers if kind in kinds}.values())


def _unless_frozen_first(layers: Layers) -> int:
    """The widths of the inputs that no frozen layer has claimed before."""
    return _inputs(list({layer[0]: layer for layer in reversed(layers)}.values()))


def _narrow(layers: Layers, r: int) -> int:
    """The widths of A x in all adapted layers."""
    return r * sum(kind == "lora" for *_, kind in layers)


def _kept(inputs: Function, narrow: bool, layers: Layers, n: int, r: int) -> int:
    return n * (inputs(layers) + narrow * _narrow(layers, r))


#: {what to say: the widths of the inputs that are kept}
_WIDTHS: dict[str, Function] = {
    "You leave out a tensor that a frozen layer reads first and an adapted one after it. It is "
    "kept for the adapted one.": _unless_frozen_first,
    "You keep the inputs of frozen layers. Their weight gets no gradient, and the gradient of the "
    "input needs the weight alone.": lambda layers: _inputs(layers, _KINDS),
    "You keep an input once for every layer that reads it. Layers that read the same tensor keep "
    "the same tensor.": lambda layers: sum(d_in for _, d_in, _, how in layers if how != "frozen"),
    "You let the adapted layers off. A meets the whole input, so the gradient of A needs it, "
    "however small A is.": lambda layers: _inputs(layers, ("trained",)),
    "You count outputs. The gradient of a weight is (gradient of the output)ᵀ times the input; the "
    "output itself is not in it.": lambda layers: _inputs(
        [(name, d_out, d_in, how) for name, d_in, d_out, how in layers]
    ),
}

check_kept_inputs = Exercise(
    asks="layers [(input, d_in, d_out, how), …], n tokens, r → how many numbers are kept.",
    cases=[(_LAYERS, 10, 2), (_MORE, 10, 3)],
    right=partial(_kept, _inputs, True),
    mistakes=[
        *(
            Mistake(partial(_kept, inputs, narrow), says)
            for says, inputs in _WIDTHS.items()
            for narrow in (True, False)
        ),
        Mistake(
            partial(_kept, _inputs, False),
            "The narrow products are missing: the gradient of B needs A x, n · r numbers for each "
            "adapted layer.",
        ),
        Mistake(
            lambda layers, n, r: n * (_inputs(layers) + r),
            "You count A x once. Every adapted layer has an A of its own, and so an A x.",
        ),
        Mistake(
            lambda layers, n, r: _kept(_inputs, True, layers, 1, r),
            "You count for one token; there are n.",
        ),
    ],
    otherwise=lambda found, layers, n, r: (
        f"The answer is {n * (_inputs(layers) + _narrow(layers, r))}: {n * _inputs(layers)} for "
        "the inputs that a trained or an adapted layer reads, each once, and "
        f"{n * _narrow(layers, r)} for the products A x; found {found:g}."
    ),
    passed="an input is kept where a weight or an A is trained, once, and A x beside it.",
    parts="The count",
)


#: {what to say: the share, of P numbers in the base and p in the adapter}
_SHARES: dict[str, list[Function]] = {
    "That is the share of the trained numbers. The frozen matrices still multiply, forward and "
    "backward.": [lambda P, p: p / P, lambda P, p: p / (P + p)],
    "The gradient of the input is missing. It has to pass through the frozen matrices to reach the "
    "adapters below.": [lambda P, p: (2 * P + 6 * p) / (6 * P)],
    "The adapter's own products are missing: 2 forward and 4 backward for each of its numbers.": [
        lambda P, p: 4 * P / (6 * P)
    ],
    "The adapter goes backward too: its factors get gradients, and pass one on. It takes 6 "
    "operations a number, like everything that is trained.": [
        lambda P, p: (4 * P + 2 * p) / (6 * P),
        lambda P, p: (4 * P + 4 * p) / (6 * P),
    ],
    "Full fine-tuning has no adapter: its step takes 6 operations for each number of the base.": [
        lambda P, p: (4 * P + 6 * p) / (6 * (P + p))
    ],
    "You have divided the other way round.": [lambda P, p: 6 * P / (4 * P + 6 * p)],
    "You let the frozen matrices have a gradient of their own.": [
        lambda P, p: (6 * P + 6 * p) / (6 * P),
        lambda P, p: 1.0,
    ],
}

check_step_share = Exercise(
    asks="P numbers in the base, p in the adapter → operations of a LoRA step ÷ those of a full "
    "one.",
    cases=[(1000, 10), (640, 400)],
    right=lambda P, p: (4 * P + 6 * p) / (6 * P),
    mistakes=[Mistake(share, says) for says in _SHARES for share in _SHARES[says]],
    otherwise=lambda found, P, p: (
        f"For {P} numbers in the base and {p} in the adapter the share is "
        f"{(4 * P + 6 * p) / (6 * P):.4f}; found {found:.4f}."
    ),
    passed="two thirds, and one more adapter's share on top.",
    parts="The share",
)


def check_checkpoint_every(function: Function) -> None:
    """``function(blocks, whole, small)`` → how many blocks lie between two checkpoints.

    A checkpoint keeps ``small`` bytes, a block that is computed anew ``whole``, and as many blocks
    as lie between two checkpoints are computed anew at a time. Several spacings may be the best.
    """
    for blocks, whole, small in ((64, 16, 1), (100, 1, 1), (12, 16, 1), (36, 3, 2), (40, 2, 9)):
        answer = call(function, blocks, whole, small)
        if not_attempted(answer):
            return
        found = float(array(answer, (), "The number of blocks"))
        require(found.is_integer(), f"Blocks are whole; found {found:g}.")
        require(
            1 <= found <= blocks, f"Between 1 and {blocks} blocks can lie there; not {found:g}."
        )
        kept = [math.ceil(blocks / k) * small + k * whole for k in range(1, blocks + 1)]
        lowest, theirs = min(kept), kept[int(found) - 1]
        if theirs == lowest:
            continue
        require(
            theirs != max(kept),
            "You choose the most expensive spacing. Take the smallest number of bytes.",
        )
        require(
            found != blocks,
            "Then there is one checkpoint only, and all blocks are computed anew at once.",
        )
        require(
            found != 1,
            f"With {blocks} blocks a checkpoint at each is not the least: their inputs alone take "
            f"{blocks * small}, and fewer checkpoints would do.",
        )
        require(
            found not in (round(blocks**0.5), math.isqrt(blocks)),
            "The square root of the number of blocks is right where a checkpoint costs as much as "
            "a block. Weigh the two costs.",
        )
        raise AssertionError(
            f"For {blocks} blocks, whole = {whole} and small = {small}: {int(found)} blocks "
            f"between checkpoints keep {theirs} bytes, and {kept.index(lowest) + 1} would keep "
            f"{lowest}. Try every spacing."
        )
    passed("the fewest bytes lie between one checkpoint at each block and one in all.")
