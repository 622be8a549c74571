"""Right and wrong answers to chapter 11's check of checkpoints, where several may be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


def spacing(blocks, whole, small, pick=min):
    kept = {k: math.ceil(blocks / k) * small + k * whole for k in range(1, blocks + 1)}
    return pick(k for k in kept if kept[k] == min(kept.values()))


RIGHT: dict[str, Function] = {"checkpoint_every": spacing}

WRONG: list[tuple[str, Function, str]] = [
    ("checkpoint_every", lambda L, w, s: round(L**0.5), "Weigh the two costs"),
    ("checkpoint_every", lambda L, w, s: 1, "is not the least"),
    ("checkpoint_every", lambda L, w, s: L, "expensive spacing"),
    ("checkpoint_every", lambda L, w, s: L // 2, "would keep"),
    ("checkpoint_every", lambda L, w, s: (L * s / w) ** 0.5 + 0.1, "Blocks are whole"),
    ("checkpoint_every", lambda L, w, s: 0, "Between 1 and"),
    ("checkpoint_every", lambda L, w, s: L if s > w else spacing(L, w, s), "computed anew"),
]
