"""Chapter 7's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exercise_help import exercise_tests

from minilora import exercises

Function = Callable[..., Any]


def lora_forward(x, W0, b, A, B, alpha):
    return x @ W0.T + b + alpha / len(A) * (x @ A.T @ B.T)


def mean_adapters(A1, B1, A2, B2):
    return np.vstack([A1, A2]) / 2, np.hstack([B1, B2])


def orthonormal_b(A, B):
    Q, R = np.linalg.qr(B)
    return R @ A, Q


def strict_load(model, file):
    for name in sorted(set(model) ^ set(file)):
        raise ValueError(f"{name} is in one of the two only")
    for name, tensor in file.items():
        if tensor.shape != model[name].shape:
            raise ValueError(f"{name}: {tensor.shape}, not {model[name].shape}")
    return dict(file)


def lora_embedding(ids, W0, A, B, scale):
    return W0[ids] + scale * np.moveaxis(A[:, ids], 0, -1) @ B.T


RIGHT: dict[str, Function] = {
    "lora_forward": lora_forward,
    "mean_adapters": mean_adapters,
    "orthonormal_b": orthonormal_b,
    "strict_load": strict_load,
    "lora_embedding": lora_embedding,
}


def scaled(factor: Callable[[float, int], float]) -> Function:
    return lambda x, W0, b, A, B, alpha: x @ W0.T + b + factor(alpha, len(A)) * (x @ A.T @ B.T)


def silent(model, file):
    return {name: file.get(name, tensor) for name, tensor in model.items()}


def bare(model, file):
    return {name: file[name] for name in model}


def half_loaded(model, file):
    model.update(strict_load(model, file))
    return model


def names_only(model, file):
    for name in set(model) ^ set(file):
        raise ValueError(name)
    return dict(file)


def nameless(model, file):
    if set(model) != set(file):
        raise ValueError("the names differ")
    return strict_load(model, file)


def whole_table(ids, W0, A, B, scale):
    if A.shape[1] > 1000:
        raise MemoryError
    return W0[ids] + scale * (B @ A).T[ids]


WRONG: list[tuple[str, Function, str]] = [
    ("lora_forward", scaled(lambda alpha, r: 1), "scale is missing"),
    ("lora_forward", scaled(lambda alpha, r: alpha), "divide it by the rank"),
    ("lora_forward", scaled(lambda alpha, r: alpha / r**0.5), "rsLoRA"),
    ("lora_forward", lambda x, W0, b, A, B, alpha: alpha / len(A) * x @ A.T @ B.T, "two paths"),
    ("lora_forward", lambda *a: lora_forward(*a) - a[2], "bias"),
    ("lora_forward", lambda *a: lora_forward(*a).T, "examples are rows"),
    (
        "lora_forward",
        lambda x, W0, b, A, B, alpha: x @ W0.T + b + alpha / len(A) * x @ B @ A,
        "the input meets A first",
    ),
    (
        "lora_forward",
        lambda x, W0, b, A, B, alpha: x @ W0 + b + alpha / len(A) * x @ A.T @ B.T,
        "meets its transpose",
    ),
    ("lora_forward", lambda *a: lora_forward(*a) + 1, "the numbers are not"),
    (
        "lora_forward",
        lambda x, W0, b, A, B, alpha: W0 @ x + b + alpha / len(A) * B @ A @ x,
        "examples as rows",
    ),
    ("lora_forward", lambda *a: lora_forward(*a)[:, :2], "must have shape"),
    (
        "mean_adapters",
        lambda A1, B1, A2, B2: ((A1 + A2) / 2, (B1 + B2) / 2),
        "averaged the factors",
    ),
    ("mean_adapters", lambda *a: (2 * mean_adapters(*a)[0], mean_adapters(*a)[1]), "halve it once"),
    ("mean_adapters", lambda *a: tuple(x / 2 for x in map(np.add, *[(0, 0)] * 2)), "matrices"),
    (
        "mean_adapters",
        lambda *a: (mean_adapters(*a)[0], mean_adapters(*a)[1] / 2),
        "a quarter of the sum",
    ),
    ("mean_adapters", lambda *a: mean_adapters(*a)[::-1], "B first and A second"),
    ("mean_adapters", lambda *a: mean_adapters(*a)[1] @ mean_adapters(*a)[0], "two factors"),
    (
        "mean_adapters",
        lambda A1, B1, A2, B2: (np.vstack([A1, A2]), np.hstack([B2, B1]) / 2),
        "and is not",
    ),
    (
        "mean_adapters",
        lambda A1, B1, A2, B2: ((B1 @ A1 + B2 @ A2) / 2, np.eye(len(B1))),
        "have rank 5",
    ),
    ("orthonormal_b", lambda A, B: (A, np.linalg.qr(B)[0]), "must go into A"),
    ("orthonormal_b", lambda A, B: (A, B / np.linalg.norm(B, axis=0)), "right angles"),
    (
        "orthonormal_b",
        lambda A, B: (np.linalg.qr(B)[1].T @ A, np.linalg.qr(B)[0]),
        "in this order",
    ),
    ("orthonormal_b", lambda A, B: orthonormal_b(A, B)[::-1], "B first and A second"),
    ("strict_load", silent, "strict=False"),
    ("strict_load", bare, "bare KeyError"),
    ("strict_load", half_loaded, "half loaded"),
    ("strict_load", names_only, "a shape differs"),
    ("strict_load", nameless, "must name it"),
    ("strict_load", lambda model, file: dict(model), "file's values"),
    ("strict_load", lambda model, file: list(file), "a dictionary"),
    ("lora_embedding", lambda i, W0, A, B, s: lora_embedding(i, W0, A, B, 1), "scale is missing"),
    ("lora_embedding", lambda i, W0, A, B, s: W0[i], "update is missing"),
    ("lora_embedding", lambda i, W0, A, B, s: W0[i] + s * (B @ A)[i], "rows of B A"),
    (
        "lora_embedding",
        lambda i, W0, A, B, s: np.moveaxis(lora_embedding(i, W0, A, B, s), -1, 0)[:2],
        "ids first",
    ),
    ("lora_embedding", lambda *a: lora_embedding(*a) + 1, "Row i should be"),
    ("lora_embedding", lambda i, W0, A, B, s: W0[i] + s * A[:, i].T @ B.T, "turns all of them"),
    ("lora_embedding", whole_table, "does not fit into memory"),
]


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)


def test_a_mean_of_factors_of_two_ranks_is_explained() -> None:
    def adds(A1, B1, A2, B2):
        if A1.shape == A2.shape:
            return mean_adapters(A1, B1, A2, B2)
        return A1 + A2, B1 + B2

    with pytest.raises(AssertionError, match="put side by side"):
        exercises.check_mean_adapters(adds)
