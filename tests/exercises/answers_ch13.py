"""Right and wrong answers to chapter 13's check of a random rival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def rival(update, seed):
    generator = np.random.default_rng(seed)
    values = np.linalg.svd(update, compute_uv=False)
    U, V = (
        np.linalg.qr(generator.standard_normal((side, len(values))))[0] for side in update.shape
    )
    return (U * values) @ V.T


def gaussian(update, seed):
    noise = np.random.default_rng(seed).standard_normal(update.shape)
    return noise * np.linalg.norm(update) / np.linalg.norm(noise)


def shuffled(update, seed):
    return np.random.default_rng(seed).permutation(update.ravel()).reshape(update.shape)


def flat(update, seed):
    """Rank and norm are kept, and all pieces are of equal size."""
    values = np.linalg.svd(update, compute_uv=False)
    rank = int((values > 1e-9).sum())
    level = np.linalg.norm(values) / rank**0.5
    generator = np.random.default_rng(seed)
    U, V = (np.linalg.qr(generator.standard_normal((side, rank)))[0] for side in update.shape)
    return level * U @ V.T


def unnormalised(update, seed):
    values = np.linalg.svd(update, compute_uv=False)
    generator = np.random.default_rng(seed)
    U, V = (generator.standard_normal((side, len(values))) for side in update.shape)
    return (U * values) @ V.T


def one_side(update, seed):
    """Only what it reads is random."""
    U, values, _ = np.linalg.svd(update, full_matrices=False)
    generator = np.random.default_rng(seed)
    V = np.linalg.qr(generator.standard_normal((update.shape[1], len(values))))[0]
    return (U * values) @ V.T


RIGHT: dict[str, Function] = {"random_rival": rival}

WRONG: list[tuple[str, Function, str]] = [
    ("random_rival", gaussian, "the rival has rank 24 and the update rank 3"),
    ("random_rival", shuffled, "the rival has rank 24 and the update rank 3"),
    ("random_rival", flat, "but not the singular values themselves"),
    ("random_rival", unnormalised, "must have length 1"),
    ("random_rival", one_side, "writes to the same directions"),
    ("random_rival", lambda update, seed: one_side(update.T, seed).T, "reads from the same"),
    ("random_rival", lambda update, seed: update, "writes to the same directions"),
    ("random_rival", lambda update, seed: rival(update, 0), "use the seed"),
    ("random_rival", lambda update, seed: rival(update, None), "a generator of its own"),
    ("random_rival", lambda update, seed: rival(update, seed).T, "shape"),
]
