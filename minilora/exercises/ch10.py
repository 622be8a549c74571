"""Checks of chapter 10: budgets, targets, the rank of a rearrangement, ranks by block."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from minilora.exercises.tools import Function, call, not_attempted, passed, require

LINEARS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "feed_forward": ("up_proj", "down_proj"),
}


def check_rank_for_budget(function: Function) -> None:
    """``function(shapes, budget)`` → the largest rank whose adapters train at most ``budget``."""
    square, wide, tall = (48, 48), (192, 48), (48, 192)
    cases = [
        ([square], 1920),
        ([wide, tall], 2000),
        ([square, square, wide], 2000),
        ([wide], 200),
        ([square], 960),
    ]
    for shapes, budget in cases:
        answer = call(function, list(shapes), budget)
        if not_attempted(answer):
            return
        found, price = float(answer), sum(map(sum, shapes))
        right = budget // price
        words = f"for shapes {shapes} and a budget of {budget:,}"
        require(
            found == int(found),
            f"Your rank is {found:g} {words}. A rank is a whole number: round down.",
        )
        require(
            found != right + 1,
            f"Rank {found:g} trains {found * price:,.0f} numbers {words}: that is over it. Round "
            "down, not to the nearest and not up.",
        )
        require(
            found != budget // sum(d_out * d_in for d_out, d_in in shapes) or found == right,
            "You divide by the size of the matrices, d_out·d_in. These stay frozen: a rank adds a "
            "row to A and a column to B, d_out + d_in numbers.",
        )
        require(
            len(shapes) == 1 or found != budget // sum(shapes[0]),
            f"Rank {found:g} {words} spends everything on the first layer. All of them have this "
            "rank: add up what a rank costs in each.",
        )
        require(
            len(shapes) == 1 or found != sum(budget // sum(shape) for shape in shapes),
            "You add up the ranks that the budget would buy in each layer by itself. There is one "
            "budget for all of them.",
        )
        require(
            found == right or found != min(budget // len(shapes) // sum(shape) for shape in shapes),
            "You split the budget into equal parts. The layers share the rank, not the budget: a "
            "large one may take more of it.",
        )
        require(
            found == right
            or found not in [budget // sum(shape[side] for shape in shapes) for side in (0, 1)],
            f"Rank {found:g} {words} pays for one of the two factors: A has r·d_in numbers, and B "
            "has r·d_out.",
        )
        require(
            found == right,
            f"Rank {right} is the largest that fits {words}, since one rank costs {price}; you "
            f"return {found:g}.",
        )
    passed("a rank costs d_out + d_in in each layer, and only whole ranks are sold.")


def check_one_block(function: Function) -> None:
    """``function(block)`` → the regular expression of that block's six matrices, of twelve."""
    paths = _paths(12)
    for block in (1, 0, 11):
        answer = call(function, block)
        if not_attempted(answer):
            return
        require(
            isinstance(answer, str),
            f"targets_of returns {type(answer).__name__}; a regular expression is a string.",
        )
        try:
            taken = {path for path in paths if re.fullmatch(answer, path)}
        except re.error as error:
            raise AssertionError(
                f"{answer!r} is not a regular expression ({error}). In a raw f-string, "
                'rf"…", a dot that means a dot is \\.'
            ) from None
        wanted = {path for path in paths if path.startswith(f"blocks.{block}.")}
        wanted = {path for path in wanted if path.endswith("_proj")}
        if not taken:
            require(
                not any(re.search(answer, path) for path in wanted),
                f"{answer!r} matches a piece of each path. It must match the whole path, from "
                "'blocks' to the end of the name.",
            )
            raise AssertionError(
                f"{answer!r} matches no layer. A path is, for example, {min(wanted)!r}."
            )
        require(
            not any(path.startswith("head") or "norm" in path for path in taken),
            "Your expression takes layers that are none of the six matrices. Their names all end "
            "in _proj.",
        )
        others = sorted({path.split(".")[1] for path in taken - wanted}, key=int)
        require(
            bool(taken & wanted),
            f"For block {block} your expression takes block {', '.join(others)} instead. Blocks "
            "are counted from 0, in the paths and in the argument.",
        )
        also = f"It takes layers of block {', '.join(others)} as well."
        require(
            not others or len(taken) < len(paths) // 2,
            f"Your expression does not look at the number of the block. {also}",
        )
        require(
            not others,
            f"For block {block}: {also} A bare dot stands for any character, and .* for any number "
            "of them, digits included: put \\. on both sides of the number.",
        )
        missing = sorted(wanted - taken)
        require(
            not missing,
            f"For block {block} your expression misses {len(missing)} of the six, for example "
            f"{missing[:1]}: they lie in attention and in feed_forward.",
        )
    for other in ("blocks-1.attention.q_proj", "blocks.1-attention.q_proj"):
        require(
            not re.fullmatch(function(1), other),
            f"Your expression would take a layer called {other!r} too: write \\. for a dot.",
        )
    passed("six matrices of one block, and block 1 is not block 10 or 11.")


def check_rearrangement_rank(function: Function) -> None:
    """``function(order)`` → rank(M − I), the number of dots minus the number of cycles."""
    rng = np.random.default_rng(0)
    one_cycle = np.arange(9)
    one_cycle[[1, 4, 6, 7]] = [4, 6, 7, 1]
    two_cycles = np.array([1, 0, 3, 4, 2, 5, 6])
    for order in (one_cycle, two_cycles, np.arange(5), rng.permutation(40), np.arange(8)[::-1]):
        answer = call(function, order.copy())
        if not_attempted(answer):
            return
        found, n = float(answer), len(order)
        cycles, still = _cycles(order), int((order == np.arange(n)).sum())
        right = n - cycles
        require(
            found == right or found != n - still,
            "You count the dots that move. Each cycle has one direction that M − I leaves at zero, "
            "the one in which all its dots are equal: take one off for each cycle.",
        )
        require(
            found == right or found != n - still - cycles,
            "You subtract the single dots twice: each of them is a cycle by itself. Take the "
            "cycles off from all dots, or those of two dots and more from the dots that move.",
        )
        require(
            found == right or found != n - still - 1,
            "You take one off for all. One direction is lost for each cycle, not one altogether.",
        )
        require(
            found == right or found != n - (cycles - still),
            "You take the dots that stay for dots that move. A dot that stays is a cycle by "
            "itself, and adds nothing to the rank.",
        )
        require(
            found == right or found != cycles,
            "You return the number of cycles. The rank is the number of dots minus it.",
        )
        require(
            found == right or found != n,
            "That is the rank of M, which loses nothing. The change is M − I.",
        )
        require(
            found == right,
            f"For {n} dots in {cycles} cycles, {still} of which are single dots, the rank is "
            f"{right}; you return {found:g}.",
        )
    passed("dots minus cycles, as the rank of the matrix says too.")


def check_block_ranks(function: Function) -> None:
    """``function(ranks)`` → a LoRAConfig with rank ``ranks[i]`` in block i, and none where 0."""
    from minilora import LoRAConfig, add_lora, lora_layers
    from minilora.lab.transformer import TransformerClassifier, TransformerConfig

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
        found: dict[int, dict[str, Any]] = {block: {} for block in range(len(ranks))}
        for path, layer in layers.items():
            parts = path.split(".")
            require(
                parts[0] == "blocks" and path.endswith("_proj"),
                f"For ranks {ranks} there is an adapter on {path!r}, which is none of the six "
                "matrices of a block.",
            )
            found[int(parts[1])][parts[-1]] = layer
        for block, r in enumerate(ranks):
            _check_block(ranks, block, r, found[block])
    passed("a rank for each block, and no adapter where it is 0.")


def _check_block(ranks: list[int], block: int, r: int, adapted: dict[str, Any]) -> None:
    has = {layer.r for layer in adapted.values()}
    require(
        r > 0 or not adapted,
        f"For ranks {ranks} block {block} should have no adapter and has {len(adapted)}: a rank of "
        "0 means that the block is left out, with exclude or by not being a target.",
    )
    require(
        block < 10 or ranks[1] == r or has != {ranks[1]} - {0},
        f"For ranks {ranks} block {block} is treated like block 1. The keys of rank_pattern, and "
        "targets and exclude as strings, are regular expressions: without \\. around the number, "
        "blocks.1 fits blocks.10 and blocks.11 too.",
    )
    require(
        r == 0 or adapted,
        f"For ranks {ranks} block {block} has no adapter, and should have rank {r}.",
    )
    require(
        r == 0 or len(adapted) == 6,
        f"For ranks {ranks} block {block} has adapters on {len(adapted)} of its six matrices.",
    )
    require(
        r == 0 or has == {r},
        f"For ranks {ranks} block {block} has rank {sorted(has)}, and should have {r}.",
    )
    require(
        all(abs(layer.scale * layer.r - 8) < 1e-9 for layer in adapted.values()),
        f"For ranks {ranks} α is not 8 in block {block}: the factor in front of BA should be 8/r.",
    )


def _paths(blocks: int) -> list[str]:
    """The paths of a transformer's layers, as `named_modules` gives them."""
    paths = ["patch_embedding", "norm", "head"]
    for block in range(blocks):
        paths += [f"blocks.{block}.norm1", f"blocks.{block}.norm2"]
        paths += [f"blocks.{block}.{part}.{name}" for part in LINEARS for name in LINEARS[part]]
    return paths


def _cycles(order: np.ndarray) -> int:
    seen: set[int] = set()
    count = 0
    for start in range(len(order)):
        count += start not in seen
        while start not in seen:
            seen.add(start)
            start = int(order[start])
    return count
