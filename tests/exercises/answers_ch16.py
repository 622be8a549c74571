"""Right and wrong answers to chapter 16's check of a start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def leading(G, r):
    return np.linalg.svd(G, full_matrices=False)[2][:r]


def weighted(G, r):
    _, S, Vh = np.linalg.svd(G, full_matrices=False)
    return S[:r, None] * Vh[:r]


def left(G, r):
    return np.linalg.svd(G, full_matrices=False)[0][:, :r].T


def last(G, r):
    return np.linalg.svd(G, full_matrices=False)[2][-r:]


def random(G, r):
    noise = np.random.default_rng(0).standard_normal((G.shape[1], r))
    return np.linalg.qr(noise)[0].T


RIGHT: dict[str, Function] = {"best_start": leading}

WRONG: list[tuple[str, Function, str]] = [
    ("best_start", weighted, "weighs its direction again"),
    ("best_start", left, "These are left singular vectors"),
    ("best_start", last, "in which G is smallest"),
    ("best_start", random, "can be had"),
    ("best_start", lambda G, r: leading(G, r).T, "transpose it"),
    ("best_start", lambda G, r: G[:r], "stand at right angles"),
    ("best_start", lambda G, r: leading(G, r)[:1], "shape"),
]
