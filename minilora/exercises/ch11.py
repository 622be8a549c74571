"""Checks of chapter 11: bytes of a LLaMA, kept inputs, operations, and checkpoints."""

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

Sizes = tuple[int, int, int, int, int]  # blocks, width, narrow, wide, vocab


def _matrices(sizes: Sizes, narrow: bool = True, gate: int = 3, tables: int = 2) -> int:
    """Numbers in the matrices: of the blocks, and of so many tables of the vocabulary."""
    blocks, h, kv, wide, vocab = sizes
    return (
        blocks * (2 * h * h + 2 * h * (kv if narrow else h) + gate * h * wide) + tables * vocab * h
    )


def _adapters(sizes: Sizes, r: int, narrow: bool = True, gate: int = 3) -> int:
    """Numbers in adapters of rank r on every matrix of the blocks."""
    blocks, h, kv, wide, _ = sizes
    return blocks * r * (2 * (h + h) + 2 * (h + (kv if narrow else h)) + gate * (h + wide))


def _llama(P: int, p: int, frozen: int = 2, trained: int = 16) -> tuple[int, int, int]:
    return P, p, frozen * P + trained * p


_PARTS = ("Numbers in the base", "Numbers in the adapters", "The number of bytes")

check_llama_bytes = Exercise(
    asks="sizes (blocks, width, narrow, wide, vocab) and r → numbers in the base, numbers in the "
    "adapters, bytes of weights, gradients and Adam's state.",
    cases=[((32, 4096, 1024, 14_336, 128_256), 16), ((3, 40, 10, 56, 300), 2)],
    right=lambda sizes, r: _llama(_matrices(sizes), _adapters(sizes, r)),
    mistakes=[
        Mistake(
            lambda s, r: _llama(_matrices(s, narrow=False), _adapters(s, r, narrow=False)),
            "You make keys and values as wide as queries. Their matrices have `narrow` rows here, "
            "because several heads of queries share one head of keys and values.",
        ),
        Mistake(
            lambda s, r: _llama(_matrices(s), _adapters(s, r, narrow=False)),
            "The base is right. An adapter has r numbers for each input and r for each output, and "
            "the layers of keys and values have `narrow` outputs.",
        ),
        Mistake(
            lambda s, r: _llama(_matrices(s, gate=2), _adapters(s, r, gate=2)),
            "You count two wide matrices in a block. There is a third, the gate, as large as `up`.",
        ),
        Mistake(
            lambda s, r: _llama(_matrices(s), _adapters(s, r, gate=2)),
            "The gate has an adapter too: seven in each block.",
        ),
        *(
            Mistake(
                lambda s, r, tables=tables: _llama(_matrices(s, tables=tables), _adapters(s, r)),
                "Embedding and head are two tables here, of one row of the width for each entry of "
                "the vocabulary.",
            )
            for tables in (0, 1)
        ),
        Mistake(
            lambda s, r: _llama(_matrices(s), _adapters((1, *s[1:]), r)),
            "That is the adapters of one block. There are as many in every block.",
        ),
        Mistake(
            lambda s, r: _llama(_matrices((1, *s[1:])), _adapters((1, *s[1:]), r)),
            "You count one block. There are several, and one embedding and one head for all.",
        ),
        *(
            Mistake(lambda s, r, cost=cost: _llama(_matrices(s), _adapters(s, r), *cost), says)
            for says, costs in {
                "A frozen weight costs its own bytes and no others, two in bfloat16: no gradient, "
                "no state, no master copy.": [(16, 16), (4, 16), (6, 16), (8, 16)],
                "An adapter is float32 and trained: 4 bytes for the number, 4 for its gradient, 8 "
                "for the two means.": [(2, 4), (2, 8), (2, 12), (2, 14), (2, 2)],
                "The frozen weights are there too, at two bytes each.": [(0, 16)],
            }.items()
            for cost in costs
        ),
    ],
    otherwise=lambda found, sizes, r: (
        f"For the sizes {sizes} and r = {r} there are {_matrices(sizes):,} numbers in the base, "
        f"{_adapters(sizes, r):,} in the adapters, and "
        f"{2 * _matrices(sizes) + 16 * _adapters(sizes, r):,} bytes; found {found}."
    ),
    passed="two bytes for each frozen number, sixteen for each trained one, whatever the block.",
    parts=_PARTS,
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


#: {what to say: the rank, of a matrix of m × n}
_RANKS: dict[str, list[Function]] = {
    "That is the rank from which the adapter has as many *numbers* as the matrix. Ask for the "
    "operations: the frozen matrix still takes 4 for each of its numbers.": [
        lambda m, n: -(-m * n // (m + n)),
        lambda m, n: m * n / (m + n),
    ],
    "A number of the adapter takes 6 operations a token, like everything that is trained, and full "
    "fine-tuning's advantage is 2 for each number of the matrix.": [
        lambda m, n: -(-m * n // (2 * (m + n))),
        lambda m, n: -(-2 * m * n // (m + n)),
        lambda m, n: -(-m * n // (6 * (m + n))),
    ],
    "That is right for a square matrix, of m = n. In general an adapter has r (m + n) numbers.": [
        lambda m, n: -(-m // 6),
        lambda m, n: -(-n // 6),
        lambda m, n: -(-min(m, n) // 6),
        lambda m, n: -(-max(m, n) // 6),
    ],
    "At the rank below yours LoRA takes as many operations already: that is no cheaper.": [
        lambda m, n: m * n // (3 * (m + n)) + 1,
    ],
    "At your rank LoRA is still cheaper. Round up: a rank is whole.": [
        lambda m, n: m * n // (3 * (m + n)),
        lambda m, n: -(-m * n // (3 * (m + n))) - 1,
    ],
    "A rank is a whole number: the first at which LoRA is no cheaper.": [
        lambda m, n: m * n / (3 * (m + n)),
    ],
}

check_no_cheaper_rank = Exercise(
    asks="m, n: the shape of a matrix → the smallest rank at which LoRA's step takes no fewer "
    "operations than full fine-tuning's.",
    cases=[(4096, 4096), (768, 768), (11_008, 4096), (12, 4), (7, 50)],
    right=lambda m, n: -(-m * n // (3 * (m + n))),
    mistakes=[Mistake(rank, says) for says in _RANKS for rank in _RANKS[says]],
    otherwise=lambda found, m, n: (
        f"For a matrix of {m} × {n} the condition is 4mn + 6r(m + n) ≥ 6mn, which the rank "
        f"{-(-m * n // (3 * (m + n)))} is the first to meet; found {found}."
    ),
    passed="r ≥ mn / 3(m + n), a third of the rank at which the adapter is as large as the matrix.",
    parts="The rank",
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
