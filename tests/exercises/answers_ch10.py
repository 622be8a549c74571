"""Right and wrong answers to chapter 10's check of ranks by block, which looks into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minilora import LoRAConfig
from minilora.lab.transformer import BLOCK_LINEARS

Function = Callable[..., Any]


def graded(path=r"blocks\.{}\..*_proj", key=None, zeros=False, **changes):
    """The right config, but for other paths, keys or settings, or with blocks of rank 0."""

    def answer(ranks):
        kept = {i: r for i, r in enumerate(ranks) if r or zeros}
        settings = {
            "r": max(ranks),
            "alpha": 8,
            "targets": "|".join(path.format(i) for i in kept),
            "rank_pattern": {(key or path).format(i): r for i, r in kept.items()},
        }
        return LoRAConfig(**(settings | changes))

    return answer


def naive_exclude(ranks):
    """The last rank for most, and a block of rank 0 left out by its number without its dots."""
    most = ranks[-1]
    keys = {rf"blocks\.{i}\..*_proj": r for i, r in enumerate(ranks) if r not in (0, most)}
    zeros = "|".join(f"blocks.{i}.*" for i, r in enumerate(ranks) if not r) or None
    targets = list(BLOCK_LINEARS)
    return LoRAConfig(r=most, alpha=8, targets=targets, rank_pattern=keys, exclude=zeros)


RIGHT: dict[str, Function] = {"block_ranks": graded()}

WRONG: list[tuple[str, Function, str]] = [
    ("block_ranks", lambda ranks: {"r": 4}, "return the LoRAConfig"),
    ("block_ranks", graded(zeros=True), "refuses your config"),
    ("block_ranks", graded(targets="all-linear"), "none of the six"),
    ("block_ranks", graded(targets=list(BLOCK_LINEARS)), "should have no adapter"),
    ("block_ranks", graded(key="blocks.{}.*_proj"), "treated like block 1"),
    ("block_ranks", naive_exclude, "treated like block 1"),
    (
        "block_ranks",
        graded(targets=r"blocks\.0\..*_proj", rank_pattern={}),
        "has no adapter, and should",
    ),
    ("block_ranks", graded(r"blocks\.{}\.attention\..*_proj"), "on 4 of its six"),
    ("block_ranks", graded(rank_pattern={}), "and should have"),
    ("block_ranks", lambda ranks: graded(alpha=max(ranks))(ranks), "α is not 8"),
]
