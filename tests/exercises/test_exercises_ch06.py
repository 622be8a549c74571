"""Chapter 6's checks: right answers pass, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exercise_help import check, exercise_tests

Function = Callable[..., Any]


def fro(X: np.ndarray) -> float:
    return float(np.linalg.norm(X))


def rank_for_share(X, share, power=2, shift=1):
    energy = np.linalg.svd(X, compute_uv=False) ** power
    return int((energy.cumsum() / energy.sum() < share).sum()) + shift


def part(X, r, last=False):
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    keep = slice(r, None) if last else slice(r)
    return (U[:, keep] * s[keep]) @ Vt[keep]


def part_by_columns(X, r):
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    return (U[:, :r] * s[:r]) @ Vt[:, :r].T  # Vt taken for V


def part_without_sizes(X, r):
    U, _, Vt = np.linalg.svd(X, full_matrices=False)
    return U[:, :r] @ Vt[:r]


def share_held(X, share):
    energy = np.linalg.svd(X, compute_uv=False) ** 2
    shares = energy.cumsum() / energy.sum()
    return shares[np.searchsorted(shares, share)]


def per_matrix(rule: Function) -> Function:
    return lambda before, after, r: {name: rule(before[name], after[name], r) for name in before}


def in_place(before, after, r):
    for name in before:
        before[name] += part(after[name] - before[name], r)
    return before


def chance_share(m, n, r, power=2, uniform=False, matrices=40, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.random((matrices, m, n)) if uniform else rng.standard_normal((matrices, m, n))
    energy = np.linalg.svd(X, compute_uv=False) ** power
    return (energy[:, :r].sum(1) / energy.sum(1)).mean()


RIGHT: dict[str, Function] = {
    "relative_change": lambda W, V: fro(V - W) / fro(W),
    "rank_for_share": rank_for_share,
    "truncate_update": per_matrix(lambda W, V, r: W + part(V - W, r)),
    "stored_numbers": lambda shapes, r: sum(min(r * (m + n), m * n) for m, n in shapes),
    "chance_share": chance_share,
}

# (check, wrong answer, words that its message must hold)
WRONG: list[tuple[str, Function, str]] = [
    ("relative_change", lambda W, V: fro(V - W), "divide by the size"),
    ("relative_change", lambda W, V: fro(V - W) / fro(V), "the matrix after"),
    ("relative_change", lambda W, V: (fro(V - W) / fro(W)) ** 2, "forgot the root"),
    ("relative_change", lambda W, V: (fro(V) - fro(W)) / fro(W), "subtracted the sizes"),
    (
        "relative_change",
        lambda W, V: np.linalg.norm(V - W, 2) / np.linalg.norm(W, 2),
        "spectral norm",
    ),
    ("relative_change", lambda W, V: 1.0, "for the example"),
    ("relative_change", lambda W, V: (V - W) / W.max(), "shape"),
    ("rank_for_share", lambda X, share: rank_for_share(X, share, power=1), "square"),
    ("rank_for_share", lambda X, share: rank_for_share(X, share, shift=0), "one too few"),
    ("rank_for_share", lambda X, share: rank_for_share(X, share, shift=2), "one too many"),
    ("rank_for_share", lambda X, share: 2, "directions"),
    ("rank_for_share", share_held, "a whole number"),
    ("rank_for_share", lambda X, share: np.linalg.svd(X)[1].cumsum(), "a whole number"),
    ("truncate_update", per_matrix(lambda W, V, r: part(V, r)), "weight after training"),
    ("truncate_update", per_matrix(lambda W, V, r: part(V - W, r)), "alone"),
    ("truncate_update", per_matrix(lambda W, V, r: V + part(V - W, r)), "weight before"),
    ("truncate_update", per_matrix(lambda W, V, r: W + part(V - W, r, True)), "first r"),
    ("truncate_update", per_matrix(lambda W, V, r: W - part(V - W, r)), "sign"),
    ("truncate_update", per_matrix(lambda W, V, r: W + part_by_columns(V - W, r)), "Vt[:r]"),
    (
        "truncate_update",
        per_matrix(lambda W, V, r: W + part_without_sizes(V - W, r)),
        "left out the singular values",
    ),
    ("truncate_update", per_matrix(lambda W, V, r: V), "not right"),
    ("truncate_update", in_place, "you were given"),
    ("truncate_update", lambda before, after, r: {}, "same keys"),
    ("stored_numbers", lambda shapes, r: sum(r * (m + n) for m, n in shapes), "break-even"),
    ("stored_numbers", lambda shapes, r: sum(m * n for m, n in shapes), "whole changes"),
    ("stored_numbers", lambda shapes, r: sum(r * m * n for m, n in shapes), "a column and a row"),
    (
        "stored_numbers",
        lambda shapes, r: sum(min(r * (m + n) + r, m * n) for m, n in shapes),
        "the r singular values",
    ),
    ("stored_numbers", lambda shapes, r: 0, "four example shapes"),
    ("chance_share", lambda m, n, r: r / min(m, n), "all directions were equal"),
    ("chance_share", lambda m, n, r: chance_share(m, n, r, power=1), "square"),
    ("chance_share", lambda m, n, r: chance_share(m, n, r, uniform=True), "positive"),
    ("chance_share", lambda m, n, r: 0.9, "about"),
    ("chance_share", lambda m, n, r: chance_share(48, 48, r), "(192, 48)"),
    ("chance_share", lambda m, n, r: chance_share(m, n, r, matrices=1), "at least 20"),
]


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)


def test_messages_differ() -> None:
    said: dict[str, list[str]] = {}
    for name, answer, _ in WRONG:
        with pytest.raises(AssertionError) as error:
            check(name)(answer)
        said.setdefault(name, []).append(str(error.value))
    for messages in said.values():
        assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("seed", range(5))
def test_twenty_matrices_are_enough_and_one_is_not(seed: int) -> None:
    check("chance_share")(lambda m, n, r: chance_share(m, n, r, matrices=20, seed=seed))
    with pytest.raises(AssertionError, match="at least 20"):
        check("chance_share")(lambda m, n, r: chance_share(m, n, r, matrices=1, seed=seed))


@pytest.mark.parametrize("kind", [float, np.float64, np.int64])
def test_a_whole_number_may_be_of_any_kind(kind: type) -> None:
    check("rank_for_share")(lambda X, share: kind(rank_for_share(X, share)))
