"""Checks of chapter 10: budgets, targets, the rank of a rearrangement, ranks by block."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np

from minilora import LoRAConfig, add_lora, lora_layers
from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    not_attempted,
    passed,
    require,
)
from minilora.lab.transformer import TransformerClassifier, TransformerConfig


def _price(shapes: list[tuple[int, int]]) -> int:
    return sum(map(sum, shapes))


def _rank(shapes: list[tuple[int, int]], budget: int) -> int:
    return budget // _price(shapes)


#: {what to say: wrong ranks}
_RANKS: dict[str, list[Function]] = {
    "You divide by the size of the matrices, d_out·d_in. These stay frozen: a rank adds a row to A "
    "and a column to B, d_out + d_in numbers.": [
        lambda shapes, budget: budget // sum(m * n for m, n in shapes)
    ],
    "Rank {found:g} {asked} spends everything on the first layer. All of them have this rank: add "
    "up what a rank costs in each.": [lambda shapes, budget: budget // sum(shapes[0])],
    "You add up the ranks that the budget would buy in each layer by itself. There is one budget "
    "for all of them.": [lambda shapes, budget: sum(budget // sum(shape) for shape in shapes)],
    "You split the budget into equal parts. The layers share the rank, not the budget: a large one "
    "may take more of it.": [
        lambda shapes, budget: min(budget // len(shapes) // sum(shape) for shape in shapes)
    ],
    "Rank {found:g} {asked} pays for one of the two factors: A has r·d_in numbers, and B has "
    "r·d_out.": [
        lambda shapes, budget: budget // sum(m for m, _ in shapes),
        lambda shapes, budget: budget // sum(n for _, n in shapes),
    ],
}


def _rank_words(says: str) -> Function:
    return lambda found, shapes, budget: says.format(
        found=found,
        asked=f"for shapes {shapes} and a budget of {budget:,}",
        price=_price(shapes),
        right=_rank(shapes, budget),
        over=(_rank(shapes, budget) + 1) * _price(shapes),
    )


check_rank_for_budget = Exercise(
    asks="shapes [(d_out, d_in), …], budget → the largest rank that trains at most budget numbers.",
    cases=[
        ([(48, 48)], 1920),
        ([(192, 48), (48, 192)], 2000),
        ([(48, 48), (48, 48), (192, 48)], 2000),
        ([(192, 48)], 200),
        ([(48, 48)], 960),
    ],
    right=_rank,
    mistakes=[
        Mistake(
            lambda shapes, budget: budget / _price(shapes),
            _rank_words("Your rank is {found:g} {asked}. A rank is a whole number: round down."),
            when=lambda found, shapes, budget: np.ndim(found) == 0 and found % 1 != 0,
        ),
        *(Mistake(wrong, _rank_words(says)) for says in _RANKS for wrong in _RANKS[says]),
        Mistake(
            lambda shapes, budget: -(-budget // _price(shapes)),
            _rank_words(
                "Rank {found:g} trains {over:,} numbers {asked}: that is over it. Round down, not "
                "to the nearest and not up."
            ),
            when=lambda found, *case: np.ndim(found) == 0 and found == _rank(*case) + 1,
        ),
    ],
    otherwise=_rank_words(
        "Rank {right} is the largest that fits {asked}, since one rank costs {price}; you return "
        "{found:g}."
    ),
    passed="a rank costs d_out + d_in in each layer, and only whole ranks are sold.",
    parts="The rank",
)


def _paths(blocks: int) -> list[str]:
    """The paths of a transformer's layers, as `named_modules` gives them."""
    names = [f"attention.{letter}_proj" for letter in "qkvo"]
    names += ["feed_forward.up_proj", "feed_forward.down_proj", "norm1", "norm2"]
    inside = [f"blocks.{block}.{name}" for block in range(blocks) for name in names]
    return ["patch_embedding", "norm", "head", *inside]


_PATHS = _paths(12)


def _taken(found: Any, block: int) -> SimpleNamespace:
    """What a regular expression takes of the paths, and does not take, where block is asked for."""
    its = SimpleNamespace(kind=type(found).__name__, error="")
    if not isinstance(found, str):
        return its
    try:
        takes = re.compile(found).fullmatch
    except re.error as error:
        its.error = str(error)
        return its
    wanted = {p for p in _PATHS if p.startswith(f"blocks.{block}.") and p.endswith("_proj")}
    decoys = ("blocks-1.attention.q_proj", "blocks.1-attention.q_proj")
    its.taken = set(filter(takes, _PATHS))
    others = {path.split(".")[1] for path in its.taken - wanted if path.startswith("blocks.")}
    its.others = ", ".join(sorted(others, key=int))
    its.piece = any(re.search(found, path) for path in wanted)
    its.example, its.missing = min(wanted), sorted(wanted - its.taken)[:1]
    its.misses = len(wanted - its.taken)
    its.decoy = next(filter(takes, decoys), "")
    return its


def _same_layers(found: Any, right: str) -> bool:
    theirs, ours = vars(_taken(found, 1)), vars(_taken(right, 1))
    return all(theirs.get(which) == ours[which] for which in ("taken", "decoy"))


#: {what to say: (an expression, whether it is this one's mistake)}, from `_taken`
_TARGETS: dict[str, tuple[Function, Function]] = {
    "targets_of returns {kind}; a regular expression is a string.": (
        lambda block: [f"blocks.{block}"],
        lambda its: its.kind != "str",
    ),
    '{found!r} is not a regular expression ({error}). In a raw f-string, rf"…", a dot that means a '
    "dot is \\.": (lambda block: rf"blocks\.{block}\.(", lambda its: its.error),
    "Your expression takes layers that are none of the six matrices. Their names all end in "
    "_proj.": (
        lambda block: rf"blocks\.{block}\..*",
        lambda its: any(not path.endswith("_proj") for path in its.taken),
    ),
    "For block {block} your expression takes block {others} instead. Blocks are counted from 0, in "
    "the paths and in the argument.": (
        lambda block: rf"blocks\.{block - 1}\..*_proj",
        lambda its: its.misses == 6 and its.taken,
    ),
    "{found!r} matches a piece of each path. It must match the whole path, from 'blocks' to the "
    "end of the name.": (
        lambda block: rf"\.{block}\.",
        lambda its: its.piece and not its.taken,
    ),
    "{found!r} matches no layer. A path is, for example, {example!r}.": (
        lambda block: rf"layers\.{block}\..*_proj",
        lambda its: not its.taken,
    ),
    "Your expression does not look at the number of the block. It takes layers of block {others} "
    "as well.": (
        lambda block: r"blocks\..*_proj",
        lambda its: 2 * len(its.taken) >= len(_PATHS),
    ),
    "For block {block}: It takes layers of block {others} as well. A bare dot stands for any "
    "character, and .* for any number of them, digits included: put \\. on both sides of the "
    "number.": (lambda block: f"blocks.{block}.*_proj", lambda its: its.others),
    "For block {block} your expression misses {misses} of the six, for example {missing}: "
    "they lie in attention and in feed_forward.": (
        lambda block: rf"blocks\.{block}\.attention\..*_proj",
        lambda its: its.missing,
    ),
    "Your expression would take a layer called {decoy!r} too: write \\. for a dot.": (
        lambda block: rf"blocks.{block}\.(attention|feed_forward).\w+_proj",
        lambda its: its.decoy,
    ),
}


def _wrong_targets(says: str, answer: Function, when: Function) -> Mistake:
    return Mistake(
        answer,
        lambda found, k: says.format(found=found, block=k, **vars(_taken(found, k))),
        when=lambda found, k: bool(when(_taken(found, k))),
    )


check_one_block = Exercise(
    asks="block → the regular expression of that block's six matrices, of twelve blocks.",
    cases=[(1,), (0,), (11,)],
    right=lambda block: rf"blocks\.{block}\..*_proj",
    mistakes=[_wrong_targets(says, *wrong) for says, wrong in _TARGETS.items()],
    otherwise="Your expression does not take the six matrices of its block.",
    passed="six matrices of one block, and block 1 is not block 10 or 11.",
    same=_same_layers,
)


def _cycles(order: np.ndarray) -> int:
    """Each takes one off the rank of M − I."""
    unit = np.eye(len(order))
    return len(order) - int(np.linalg.matrix_rank(unit[order] - unit))


def _counted(count: Function) -> Function:
    """From the numbers of dots, of cycles, and of dots that stay."""
    return lambda order: count(len(order), _cycles(order), sum(order == np.arange(len(order))))


#: {what to say: a wrong rank}
_MOVES: dict[str, Function] = {
    "You count the dots that move. Each cycle has one direction that M − I leaves at zero, the one "
    "in which all its dots are equal: take one off for each cycle.": lambda n, cycles, still: (
        n - still
    ),
    "You subtract the single dots twice: each of them is a cycle by itself. Take the cycles off "
    "from all dots, or those of two dots and more from the dots that move.": (
        lambda n, cycles, still: n - still - cycles
    ),
    "You take one off for all. One direction is lost for each cycle, not one altogether.": (
        lambda n, cycles, still: n - still - 1
    ),
    "You take the dots that stay for dots that move. A dot that stays is a cycle by itself, and "
    "adds nothing to the rank.": lambda n, cycles, still: n - (cycles - still),
    "You return the number of cycles. The rank is the number of dots minus it.": (
        lambda n, cycles, still: cycles
    ),
    "That is the rank of M, which loses nothing. The change is M − I.": lambda n, *_: n,
}
_ONE_CYCLE, _TWO_CYCLES = [0, 4, 2, 3, 6, 5, 7, 1, 8], [1, 0, 3, 4, 2, 5, 6]
_MANY = np.random.default_rng(0).permutation(40)

check_rearrangement_rank = Exercise(
    asks="order → rank(M − I) of the matrix that rearranges dots in this order.",
    cases=[
        (np.array(order),) for order in (_ONE_CYCLE, _TWO_CYCLES, range(5), _MANY, range(8)[::-1])
    ],
    right=_counted(lambda n, cycles, still: n - cycles),
    mistakes=[Mistake(_counted(count), says) for says, count in _MOVES.items()],
    otherwise=lambda found, order: _counted(
        lambda n, cycles, still: (
            f"For {n} dots in {cycles} cycles, {still} of which are single dots, the rank is "
            f"{n - cycles}; you return {found:g}."
        )
    )(order),
    passed="dots minus cycles, as the rank of the matrix says too.",
    parts="The rank",
)


def check_block_ranks(function: Function) -> None:
    """``function(ranks)`` → a LoRAConfig with rank ``ranks[i]`` in block i, and none where 0."""
    for ranks in ([4, 1, 1], [2, 0, 3], [0, 5], [1, 3, *[2] * 9, 4], [1, 0, *[2] * 10]):
        model = TransformerClassifier(TransformerConfig(width=8, heads=2, layers=len(ranks)))
        try:
            config = call(function, list(ranks))
            if not_attempted(config):
                return
            require(
                isinstance(config, LoRAConfig),
                f"graded returns {type(config).__name__}; return the LoRAConfig, added to nothing.",
            )
            layers = lora_layers(add_lora(model, config))
        except ValueError as error:
            raise AssertionError(
                f"For ranks {ranks} minilora refuses your config: {error}"
            ) from None
        for path in layers:
            require(
                path.startswith("blocks.") and path.endswith("_proj"),
                f"For ranks {ranks} there is an adapter on {path!r}, which is none of the six "
                "matrices of a block.",
            )
        for block, r in enumerate(ranks):
            adapted = [layer for path, layer in layers.items() if path.split(".")[1] == str(block)]
            has = {layer.r for layer in adapted}
            where = f"For ranks {ranks} block {block}"
            require(
                r > 0 or not adapted,
                f"{where} should have no adapter and has {len(adapted)}: a rank of 0 means that "
                "the block is left out, with exclude or by not being a target.",
            )
            require(
                block < 10 or ranks[1] == r or has != {ranks[1]} - {0},
                f"{where} is treated like block 1. The keys of rank_pattern, and targets and "
                "exclude as strings, are regular expressions: without \\. around the number, "
                "blocks.1 fits blocks.10 and blocks.11 too.",
            )
            require(r == 0 or adapted, f"{where} has no adapter, and should have rank {r}.")
            require(
                r == 0 or len(adapted) == 6,
                f"{where} has adapters on {len(adapted)} of its six matrices.",
            )
            require(r == 0 or has == {r}, f"{where} has rank {sorted(has)}, and should have {r}.")
            require(
                all(abs(layer.scale * layer.r - 8) < 1e-9 for layer in adapted),
                f"For ranks {ranks} α is not 8 in block {block}: the factor in front of BA should "
                "be 8/r.",
            )
    passed("a rank for each block, and no adapter where it is 0.")
