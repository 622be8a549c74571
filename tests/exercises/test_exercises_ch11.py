"""Chapter 11's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from exercise_help import exercise_tests

from minilora.exercises import ch11

Function = Callable[..., Any]


def training_bytes(base, base_bytes, adapter):
    return base * base_bytes + 16 * adapter


def kept_inputs(layers, n, r, kinds=("trained", "lora"), narrow=True):
    needed = {name: d_in for name, d_in, _, kind in layers if kind in kinds}
    adapted = sum(kind == "lora" for *_, kind in layers)
    return n * (sum(needed.values()) + r * adapted * narrow)


def step_share(base, adapter):
    return (4 * base + 6 * adapter) / (6 * base)


def bytes_kept(blocks, whole, small, every):
    return math.ceil(blocks / every) * small + every * whole


def checkpoint_every(blocks, whole, small):
    return min(range(1, blocks + 1), key=lambda every: bytes_kept(blocks, whole, small, every))


def frozen_first(layers, n, r):
    """The kept inputs, but for those that a frozen layer has claimed before."""
    seen, kept = set(), 0
    for name, d_in, _, kind in layers:
        kept += d_in if name not in seen and kind != "frozen" else 0
        seen.add(name)
    return n * (kept + r * sum(kind == "lora" for *_, kind in layers))


RIGHT: dict[str, Function] = {
    "training_bytes": training_bytes,
    "kept_inputs": kept_inputs,
    "step_share": step_share,
    "checkpoint_every": checkpoint_every,
}


def each_time(layers, n, r):
    return n * sum(d_in for _, d_in, _, kind in layers if kind != "frozen")


def outputs(layers, n, r):
    kept = {name: d_out for name, _, d_out, kind in layers if kind != "frozen"}
    return n * sum(kept.values())


WRONG: list[tuple[str, Function, str]] = [
    ("training_bytes", lambda P, b, p: P * (2 * b + 8), "gradients and a state"),
    ("training_bytes", lambda P, b, p: 16 * P, "gradients and a state"),
    ("training_bytes", lambda P, b, p: 16 * p, "leave the frozen weights out"),
    ("training_bytes", lambda P, b, p: P * b + 12 * p, "One of the adapter's four"),
    ("training_bytes", lambda P, b, p: P * b + 8 * p, "You count 8 bytes"),
    ("training_bytes", lambda P, b, p: P * b + 4 * p, "own numbers only"),
    ("training_bytes", lambda P, b, p: P * b + 4 * b * p, "float32 whatever the base"),
    ("training_bytes", lambda P, b, p: P * (b + 4) + 16 * p, "no master copy"),
    ("training_bytes", lambda P, b, p: P * b + 16 * p + 1, "4 + 4 + 8"),
    ("training_bytes", lambda P, b, p: [1, 2], "must have shape"),
    ("kept_inputs", lambda la, n, r: kept_inputs(la, n, r, ch11._KINDS), "inputs of frozen"),
    ("kept_inputs", lambda la, n, r: each_time(la, n, r), "once for every layer"),
    ("kept_inputs", lambda la, n, r: kept_inputs(la, n, r, ("trained",)), "adapted layers off"),
    (
        "kept_inputs",
        lambda la, n, r: kept_inputs(la, n, r, ("trained",), False),
        "adapted layers off",
    ),
    ("kept_inputs", frozen_first, "reads first and an adapted one after"),
    ("kept_inputs", outputs, "You count outputs"),
    ("kept_inputs", lambda la, n, r: kept_inputs(la, n, r, narrow=False), "narrow products"),
    (
        "kept_inputs",
        lambda la, n, r: kept_inputs(la, n, r, narrow=False) + n * r,
        "You count A x once",
    ),
    ("kept_inputs", lambda la, n, r: kept_inputs(la, 1, r), "for one token"),
    ("kept_inputs", lambda la, n, r: kept_inputs(la, n, r) + 1, "The answer is"),
    ("step_share", lambda P, p: p / P, "share of the trained numbers"),
    ("step_share", lambda P, p: p / (P + p), "share of the trained numbers"),
    ("step_share", lambda P, p: (2 * P + 6 * p) / (6 * P), "gradient of the input is missing"),
    ("step_share", lambda P, p: 2 / 3, "adapter's own products"),
    ("step_share", lambda P, p: (4 * P + 2 * p) / (6 * P), "goes backward too"),
    ("step_share", lambda P, p: (4 * P + 4 * p) / (6 * P), "goes backward too"),
    ("step_share", lambda P, p: (4 * P + 6 * p) / (6 * P + 6 * p), "has no adapter"),
    ("step_share", lambda P, p: 1 / step_share(P, p), "the other way round"),
    ("step_share", lambda P, p: 1 + p / P, "gradient of their own"),
    ("step_share", lambda P, p: 1.0, "gradient of their own"),
    ("step_share", lambda P, p: step_share(P, p) + 0.01, "the share is"),
    ("checkpoint_every", lambda L, w, s: round(L**0.5), "Weigh the two costs"),
    ("checkpoint_every", lambda L, w, s: 1, "is not the least"),
    ("checkpoint_every", lambda L, w, s: L, "expensive spacing"),
    ("checkpoint_every", lambda L, w, s: L // 2, "would keep"),
    ("checkpoint_every", lambda L, w, s: (L * s / w) ** 0.5 + 0.1, "Blocks are whole"),
    ("checkpoint_every", lambda L, w, s: 0, "Between 1 and"),
    (
        "checkpoint_every",
        lambda L, w, s: L if s > w else checkpoint_every(L, w, s),
        "computed anew",
    ),
]


def test_any_spacing_with_the_fewest_bytes_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    def largest(blocks, whole, small):
        return max(
            range(1, blocks + 1),
            key=lambda every: (-bytes_kept(blocks, whole, small, every), every),
        )

    ch11.check_checkpoint_every(largest)
    assert capsys.readouterr().out.startswith("passed: ")
    assert largest(64, 16, 1) == checkpoint_every(64, 16, 1) == 2


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)
