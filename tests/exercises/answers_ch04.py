"""Answers to the check of chapter 4 that is a function: nothing is trained here."""

from __future__ import annotations

import numpy as np

from minilora.exercises.tools import Function


def mean_errors(*means: float) -> Function:
    """An answer with these mean errors at ranks 4, 6, 12 and 48."""
    return lambda r: np.full(5, means[(4, 6, 12, 48).index(r)])


RIGHT: dict[str, Function] = {"many_examples": mean_errors(0.66, 0.21, 0.34, 0.55)}

WRONG: list[tuple[str, Function, str]] = [
    ("many_examples", lambda r: 0.5, "one error for each draw"),
    ("many_examples", lambda r: np.zeros((2, 5)), "one error for each draw"),
    ("many_examples", mean_errors(2.19, 2.50, 3.13, 3.58), "as with 96 examples"),
    ("many_examples", mean_errors(0.65, 0.20, 0.45, 0.79), "return the tuned errors"),
    ("many_examples", mean_errors(0.2, 0.2, 0.1, 0.2), "at the rank it is given"),
]
