"""Answers to the check of chapter 6 that is more than a table."""

from __future__ import annotations

import numpy as np

from minilora.exercises.ch06 import TRUNCATE_UPDATE
from minilora.exercises.tools import Function

Matrices = dict[str, np.ndarray]


def in_place(before: Matrices, after: Matrices, r: int) -> Matrices:
    before.update(TRUNCATE_UPDATE.right(before, after, r))
    return before


RIGHT: dict[str, Function] = {"truncate_update": TRUNCATE_UPDATE.right}

WRONG: list[tuple[str, Function, str]] = [
    *(("truncate_update", row.answer, row.says) for row in TRUNCATE_UPDATE.mistakes),
    ("truncate_update", lambda before, after, r: after, "the new q_proj is not right"),
    ("truncate_update", in_place, "you were given"),
]
