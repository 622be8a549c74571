"""Checks of chapter 11: bytes of the weights, kept inputs, operations, and checkpoints."""

from __future__ import annotations

import math

from minilora.exercises.tools import Function, array, call, close, not_attempted, passed, require


def check_training_bytes(function: Function) -> None:
    """``function(base, base_bytes, adapter)`` → bytes of weights, gradients and Adam's state."""
    for base, base_bytes, adapter in ((1_000_000, 2, 30_000), (700_000, 4, 50_000)):
        answer = call(function, base, base_bytes, adapter)
        if not_attempted(answer):
            return
        found = float(array(answer, (), "The number of bytes"))
        frozen, right = base * base_bytes, base * base_bytes + 16 * adapter
        full = base * (2 * base_bytes + 8)
        require(
            found not in (full, full + 16 * adapter, 16 * base, 16 * base + 16 * adapter),
            "You give the frozen weights gradients and a state. They have neither: only their own "
            "bytes remain.",
        )
        require(
            found != 16 * adapter,
            "You leave the frozen weights out. They are not trained, but they are there.",
        )
        require(
            found != frozen + 12 * adapter,
            "One of the adapter's four parts is missing. It has its own numbers, a gradient, and "
            "two moments: 4 bytes each.",
        )
        require(
            found != frozen + 8 * adapter,
            "You count 8 bytes for each trained number. An adapter is float32 whatever the base "
            "is, and has four parts of 4 bytes: its own numbers, a gradient, and two moments.",
        )
        require(
            found != frozen + 4 * adapter,
            "You count the adapter's own numbers only. Being trained, they have a gradient and "
            "two moments as well.",
        )
        require(
            base_bytes == 4 or found != frozen + 4 * base + 16 * adapter,
            "A frozen weight needs no master copy: it never moves.",
        )
        require(
            found == right,
            f"With {base:,} frozen numbers of {base_bytes} bytes and {adapter:,} trained ones the "
            f"answer is {right:,}: the base's own bytes, and 4 + 4 + 8 for each trained number; "
            f"found {found:,.0f}.",
        )
    passed("the base's own bytes, and sixteen for each trained number.")


#: Layers as (input, d_in, d_out, how they are trained).
_LAYERS = [
    ("a", 8, 10, "lora"),
    ("a", 8, 10, "frozen"),
    ("a", 8, 10, "lora"),
    ("b", 5, 12, "frozen"),
    ("c", 7, 33, "trained"),
    ("d", 31, 13, "lora"),
]
_MORE = [
    ("a", 7, 9, "trained"),
    ("a", 7, 3, "lora"),
    ("e", 17, 5, "frozen"),
    ("e", 17, 5, "lora"),
    ("c", 5, 7, "frozen"),
]


def check_kept_inputs(function: Function) -> None:
    """``function(layers, n, r)`` → how many numbers are kept, each input once, and A x for LoRA."""
    n = 10
    for layers, r in ((_LAYERS, 2), (_MORE, 3)):
        answer = call(function, list(layers), n, r)
        if not_attempted(answer):
            return
        found = float(array(answer, (), "The count"))
        kinds = {kind: [one for one in layers if one[3] == kind] for kind in _KINDS}
        needed = kinds["trained"] + kinds["lora"]
        narrow = n * r * len(kinds["lora"])
        distinct = n * sum({name: d_in for name, d_in, _, _ in needed}.values())
        each = n * sum(d_in for _, d_in, _, _ in needed)
        everything = n * sum({name: d_in for name, d_in, _, _ in layers}.values())
        outputs = n * sum({name: d_out for name, _, d_out, _ in needed}.values())
        only_trained = n * sum({name: d_in for name, d_in, _, _ in kinds["trained"]}.values())
        first_reader = {name: (d_in, kind) for name, d_in, _, kind in reversed(layers)}
        unless_frozen = n * sum(d for d, kind in first_reader.values() if kind != "frozen")
        require(
            found not in (unless_frozen, unless_frozen + narrow) or unless_frozen == distinct,
            "You leave out a tensor that a frozen layer reads first and an adapted one after it. "
            "It is kept for the adapted one.",
        )
        require(
            found not in (everything, everything + narrow),
            "You keep the inputs of frozen layers. Their weight gets no gradient, and the gradient "
            "of the input needs the weight alone.",
        )
        require(
            found not in (each, each + narrow),
            "You keep an input once for every layer that reads it. Layers that read the same "
            "tensor keep the same tensor.",
        )
        require(
            found not in (only_trained, only_trained + narrow),
            "You let the adapted layers off. A meets the whole input, so the gradient of A needs "
            "it, however small A is.",
        )
        require(
            found not in (outputs, outputs + narrow),
            "You count outputs. The gradient of a weight is (gradient of the output)ᵀ times the "
            "input; the output itself is not in it.",
        )
        require(
            found != distinct,
            "The narrow products are missing: the gradient of B needs A x, n · r numbers for each "
            "adapted layer.",
        )
        require(
            found != distinct + n * r,
            "You count A x once. Every adapted layer has an A of its own, and so an A x.",
        )
        require(
            found != (distinct + narrow) / n,
            "You count for one token; there are n.",
        )
        require(
            found == distinct + narrow,
            f"The answer is {distinct + narrow}: {distinct} for the inputs that a trained or an "
            f"adapted layer reads, each once, and {narrow} for the products A x; found {found:g}.",
        )
    passed("an input is kept where a weight or an A is trained, once, and A x beside it.")


_KINDS = ("trained", "frozen", "lora")


def check_step_share(function: Function) -> None:
    """``function(base, adapter)`` → operations of a LoRA step ÷ those of a full one."""
    for base, adapter in ((1000, 10), (640, 400)):
        answer = call(function, base, adapter)
        if not_attempted(answer):
            return
        found = array(answer, (), "The share")
        right = (4 * base + 6 * adapter) / (6 * base)
        wrong = {
            "That is the share of the trained numbers. The frozen matrices still multiply, "
            "forward and backward.": (adapter / base, adapter / (base + adapter)),
            "The gradient of the input is missing. It has to pass through the frozen matrices to "
            "reach the adapters below.": ((2 * base + 6 * adapter) / (6 * base),),
            "The adapter's own products are missing: 2 forward and 4 backward for each of its "
            "numbers.": (2 / 3,),
            "The adapter goes backward too: its factors get gradients, and pass one on. It takes 6 "
            "operations a number, like everything that is trained.": (
                (4 * base + 2 * adapter) / (6 * base),
                (4 * base + 4 * adapter) / (6 * base),
            ),
            "Full fine-tuning has no adapter: its step takes 6 operations for each number of the "
            "base.": ((4 * base + 6 * adapter) / (6 * (base + adapter)),),
            "You have divided the other way round.": (1 / right,),
            "You let the frozen matrices have a gradient of their own.": (
                (6 * base + 6 * adapter) / (6 * base),
                1.0,
            ),
        }
        for message, values in wrong.items():
            require(not any(close(found, value) for value in values), message)
        require(
            close(found, right),
            f"For {base} numbers in the base and {adapter} in the adapter the share is "
            f"{right:.4f}; found {float(found):.4f}.",
        )
    passed("two thirds, and one more adapter's share on top.")


def check_checkpoint_every(function: Function) -> None:
    """``function(blocks, whole, small)`` → how many blocks lie between two checkpoints.

    A checkpoint keeps ``small`` bytes, a block that is computed anew ``whole``, and as many blocks
    as lie between two checkpoints are computed anew at a time.
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

        def kept(every: int, whole: int = whole, small: int = small, blocks: int = blocks) -> int:
            return math.ceil(blocks / every) * small + every * whole

        costs = {every: kept(every) for every in range(1, blocks + 1)}
        lowest = min(costs.values())
        if costs[int(found)] == lowest:
            continue
        require(
            costs[int(found)] != max(costs.values()),
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
        best = [every for every, cost in costs.items() if cost == lowest]
        raise AssertionError(
            f"For {blocks} blocks, whole = {whole} and small = {small}: {int(found)} blocks "
            f"between checkpoints keep {costs[int(found)]} bytes, and {best[0]} would keep "
            f"{lowest}. Try every spacing."
        )
    passed("the fewest bytes lie between one checkpoint at each block and one in all.")
