"""Right and wrong answers to chapter 15's check of LoftQ's start, whose factors are not unique."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def start(E, r, scale, power=0.5, keep=slice(None), factor=lambda scale: 1 / scale):
    """A with the singular values to ``1 - power``, B with the others, times a factor."""
    U, S, Vh = np.linalg.svd(E, full_matrices=False)
    U, S, Vh = U[:, keep][:, :r], S[keep][:r], Vh[keep][:r]
    return S[:, None] ** (1 - power) * Vh, U * S**power * factor(scale)


def all_in_b(E, r, scale):
    """As good as half and half."""
    return start(E, r, scale, power=1.0)


def squared(E, r, scale):
    A, B = start(E, r, scale, power=1.0)
    S = np.linalg.svd(E, compute_uv=False)[:r]
    return S[:, None] * A, B


def bare(E, r, scale):
    U, _, Vh = np.linalg.svd(E, full_matrices=False)
    return Vh[:r], U[:, :r] / scale


def smallest(E, r, scale):
    U, S, Vh = np.linalg.svd(E, full_matrices=False)
    return Vh[-r:], U[:, -r:] * S[-r:] / scale


RIGHT: dict[str, Function] = {"loftq_start": start}

WRONG: list[tuple[str, Function, str]] = [
    ("loftq_start", lambda E, r, s: start(E, r, s)[::-1], "exchanged"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: 1), "Divide by the scale"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: s), "once more"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: s**-2), "twice"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: -1 / s), "sign"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: s**-0.5), "its root"),
    ("loftq_start", lambda E, r, s: start(E, r, s, factor=lambda s: 0), "usual start"),
    ("loftq_start", squared, "their squares"),
    ("loftq_start", bare, "singular values are missing"),
    ("loftq_start", smallest, "smallest pieces"),
    ("loftq_start", lambda E, r, s: start(np.abs(E), r, s), "leaves"),
    ("loftq_start", lambda E, r, s: s, "Return 2 things"),
]
