"""Chapter 10's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exercise_help import exercise_tests

from minilora import LoRAConfig
from minilora.exercises import ch10
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

Function = Callable[..., Any]


def rank_for_budget(shapes, budget):
    return budget // sum(d_out + d_in for d_out, d_in in shapes)


def one_block(block):
    return rf"blocks\.{block}\..*_proj"


def rearrangement_rank(order):
    # Another way than the solution's: the rank of the matrix itself.
    return np.linalg.matrix_rank(np.eye(len(order))[order] - np.eye(len(order)))


def block_ranks(ranks, alpha=8, dot=r"\.", patterns=True, zero=True, exclude=None, **changes):
    kept = {f"blocks{dot}{i}{dot}.*_proj": r for i, r in enumerate(ranks) if r or not zero}
    settings = {
        "r": max(ranks),
        "alpha": alpha,
        "targets": "|".join(kept),
        "rank_pattern": kept if patterns else {},
        "exclude": exclude,
    }
    return LoRAConfig(**(settings | changes))


RIGHT: dict[str, Function] = {
    "rank_for_budget": rank_for_budget,
    "one_block": one_block,
    "rearrangement_rank": rearrangement_rank,
    "block_ranks": block_ranks,
}


def price(shapes):
    return sum(map(sum, shapes))


def moving(order):
    return sum(int(j) != i for i, j in enumerate(order))


def cycles(order):
    return len(order) - rearrangement_rank(order)


def naive_exclude(ranks):
    """The last rank for most, and a block of rank 0 left out by its number without its dots."""
    most = ranks[-1]
    kept = {rf"blocks\.{i}\..*_proj": r for i, r in enumerate(ranks) if r not in (0, most)}
    zeros = [f"blocks.{i}.*" for i, r in enumerate(ranks) if not r]
    return LoRAConfig(
        r=most,
        alpha=8,
        targets=list(BLOCK_LINEARS),
        rank_pattern=kept,
        exclude="|".join(zeros) if zeros else None,
    )


def naive_pattern(ranks):
    keys = {f"blocks.{i}.*_proj": r for i, r in enumerate(ranks) if r}
    return block_ranks(ranks, rank_pattern=keys)


def attention_only(ranks):
    kept = {rf"blocks\.{i}\.attention\..*_proj": r for i, r in enumerate(ranks) if r}
    return LoRAConfig(r=max(ranks), alpha=8, targets="|".join(kept), rank_pattern=kept)


WRONG: list[tuple[str, Function, str]] = [
    ("rank_for_budget", lambda s, b: b / price(s) + 0.5, "whole number"),
    ("rank_for_budget", lambda s, b: -(-b // price(s)), "Round down"),
    ("rank_for_budget", lambda s, b: rank_for_budget(s, b) + 1, "Round down"),
    ("rank_for_budget", lambda s, b: b // sum(m * n for m, n in s), "stay frozen"),
    ("rank_for_budget", lambda s, b: b // sum(s[0]), "on the first layer"),
    ("rank_for_budget", lambda s, b: sum(b // sum(one) for one in s), "one budget for all"),
    (
        "rank_for_budget",
        lambda s, b: min(b // len(s) // sum(one) for one in s),
        "not the budget: a large one",
    ),
    ("rank_for_budget", lambda s, b: b // sum(m for m, _ in s), "one of the two factors"),
    ("rank_for_budget", lambda s, b: b // sum(n for _, n in s), "one of the two factors"),
    ("rank_for_budget", lambda s, b: rank_for_budget(s, b) - 1, "the largest that fits"),
    ("one_block", lambda k: [f"blocks.{k}"], "a regular expression is a string"),
    ("one_block", lambda k: rf"blocks\.{k}\.(", "is not a regular expression"),
    ("one_block", lambda k: rf"\.{k}\.", "must match the whole path"),
    ("one_block", lambda k: rf"layers\.{k}\..*_proj", "matches no layer"),
    ("one_block", lambda k: rf"blocks\.{k}\..*", "none of the six matrices"),
    ("one_block", lambda k: r"blocks\..*_proj", "does not look at the number"),
    ("one_block", lambda k: f"blocks.{k}.*_proj", "digits included"),
    ("one_block", lambda k: rf"blocks\.{k - 1}\..*_proj", "takes block 0 instead"),
    ("one_block", lambda k: rf"blocks\.({k}|5)\..*_proj", "block 5 as well"),
    ("one_block", lambda k: rf"blocks\.{k}\.attention\..*_proj", "feed_forward"),
    ("one_block", lambda k: rf"blocks.{k}\.(attention|feed_forward).\w+_proj", "write \\."),
    ("rearrangement_rank", moving, "take one off for each cycle"),
    ("rearrangement_rank", lambda o: moving(o) - 1, "not one altogether"),
    ("rearrangement_rank", lambda o: moving(o) - cycles(o), "single dots twice"),
    ("rearrangement_rank", lambda o: len(o) - (cycles(o) - len(o) + moving(o)), "that stay"),
    ("rearrangement_rank", cycles, "number of cycles"),
    ("rearrangement_rank", len, "rank of M, which loses nothing"),
    ("rearrangement_rank", lambda o: rearrangement_rank(o) + 0.5, "the rank is"),
    ("block_ranks", lambda ranks: {"r": 4}, "return the LoRAConfig"),
    ("block_ranks", lambda ranks: block_ranks(ranks, zero=False), "refuses your config"),
    ("block_ranks", lambda ranks: block_ranks(ranks, targets="all-linear"), "none of the six"),
    (
        "block_ranks",
        lambda ranks: block_ranks(ranks, targets=list(BLOCK_LINEARS)),
        "should have no adapter",
    ),
    ("block_ranks", naive_pattern, "treated like block 1"),
    ("block_ranks", naive_exclude, "treated like block 1"),
    (
        "block_ranks",
        lambda ranks: block_ranks(ranks, targets=r"blocks\.0\..*_proj", rank_pattern={}),
        "has no adapter, and should",
    ),
    ("block_ranks", attention_only, "on 4 of its six"),
    ("block_ranks", lambda ranks: block_ranks(ranks, patterns=False), "and should have"),
    ("block_ranks", lambda ranks: block_ranks(ranks, alpha=max(ranks)), "α is not 8"),
]


def test_the_paths_of_the_exercise_are_those_of_the_model() -> None:
    model = TransformerClassifier(TransformerConfig(layers=2))
    ours = set(ch10._paths(2))
    named = {path for path, module in model.named_modules() if list(module.parameters(False))}
    assert ours == named - {""}


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_cycles_are_what_the_matrix_loses(n: int) -> None:
    order = np.random.default_rng(n).permutation(n)
    assert n - ch10._cycles(order) == rearrangement_rank(order)


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)
