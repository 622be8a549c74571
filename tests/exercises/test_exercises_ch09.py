"""Chapter 9's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exercise_help import exercise_tests

import minilora

Function = Callable[..., Any]


def needs_rung(losses):
    rates = sorted(losses)
    best = min(rates, key=losses.get)
    if best == rates[0]:
        return "lower"
    return "higher" if best == rates[-1] else "no"


def unsorted(losses):
    rates = list(losses)
    best = min(rates, key=losses.get)
    return "lower" if best == rates[0] else "higher" if best == rates[-1] else "no"


def without_diverged(losses):
    return needs_rung({rate: loss for rate, loss in losses.items() if loss < 1e9})


def exchanged_sides(losses):
    return {"lower": "higher", "higher": "lower", "no": "no"}[needs_rung(losses)]


def groups(model, lr, ratio):
    layers = minilora.lora_layers(model).values()
    return [
        {"params": [layer.A for layer in layers], "lr": lr},
        {"params": [layer.B for layer in layers], "lr": ratio * lr},
    ]


def with_rates(for_a, for_b):
    def answer(model, lr, ratio):
        first, second = groups(model, lr, ratio)
        return [{**first, "lr": for_a(lr, ratio)}, {**second, "lr": for_b(lr, ratio)}]

    return answer


def with_base(model, lr, ratio):
    first, second = groups(model, lr, ratio)
    return [{**first, "params": list(model.parameters())}, second]


def first_layer_only(model, lr, ratio):
    layer = next(iter(minilora.lora_layers(model).values()))
    return [{"params": [layer.A], "lr": lr}, {"params": [layer.B], "lr": ratio * lr}]


def in_both(model, lr, ratio):
    first, second = groups(model, lr, ratio)
    return [first, {**second, "params": first["params"] + second["params"]}]


def after_decay(W0, A, B, scale, lr, decay, steps, power=2):
    keep = (1 - lr * decay) ** steps
    return keep * (W0 + scale * B @ A), W0 + scale * keep**power * (B @ A)


def linear_decay(W0, A, B, scale, lr, decay, steps):
    keep = 1 - lr * decay * steps
    return keep * (W0 + scale * B @ A), after_decay(W0, A, B, scale, lr, decay, steps)[1]


RIGHT: dict[str, Function] = {
    "needs_rung": needs_rung,
    "standard_alpha": lambda alpha, r: alpha * r**0.5,
    "same_run_sgd": lambda alpha, a, b, p, q: (alpha / (p * q), p**2 * a, q**2 * b),
    "rate_groups": groups,
    "after_decay": after_decay,
}

WRONG: list[tuple[str, Function, str]] = [
    ("needs_rung", lambda losses: 0.002, 'Return "lower"'),
    ("needs_rung", exchanged_sides, "sides are exchanged"),
    ("needs_rung", unsorted, "Sort the rates"),
    ("needs_rung", without_diverged, "A run that diverged is a worse neighbour"),
    ("needs_rung", lambda losses: "no", "nobody knows yet"),
    ("needs_rung", lambda losses: "higher", "nothing is missing"),
    (
        "needs_rung",
        lambda losses: "no" if needs_rung(losses) == "lower" else needs_rung(losses),
        "a lower one may be better",
    ),
    ("standard_alpha", lambda alpha, r: alpha / r**0.5, "must be the larger one"),
    ("standard_alpha", lambda alpha, r: alpha * r, "the bare α"),
    ("standard_alpha", lambda alpha, r: alpha, "in one program"),
    ("standard_alpha", lambda alpha, r: alpha / r, "factor in front of BA"),
    ("standard_alpha", lambda alpha, r: 4 * alpha, "For α = 8 and r = 1"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), p * a, q * b), "Adam's rates"),
    ("same_run_sgd", lambda al, a, b, p, q: (al * p * q, p**2 * a, q**2 * b), "is multiplied"),
    ("same_run_sgd", lambda al, a, b, p, q: (al, p**2 * a, q**2 * b), "must stay the same"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), a / p, b / q), "has to grow"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), a, b), "has to grow"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), a / p**2, b / q**2), "has to grow"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), q**2 * a, p**2 * b), "belongs to A"),
    ("same_run_sgd", lambda al, a, b, p, q: (al / (p * q), p**3 * a, q**2 * b), "leaves the first"),
    ("rate_groups", lambda model, lr, ratio: groups(model, lr, ratio)[0], "two dictionaries"),
    ("rate_groups", with_rates(lambda lr, k: lr * k, lambda lr, k: lr), "exchanged"),
    ("rate_groups", with_rates(lambda lr, k: lr, lambda lr, k: lr / k), "divide by the ratio"),
    ("rate_groups", with_rates(lambda lr, k: lr, lambda lr, k: k), "the ratio itself"),
    ("rate_groups", with_rates(lambda lr, k: lr, lambda lr, k: lr), "all B at 0.04"),
    ("rate_groups", with_base, "the base is frozen"),
    ("rate_groups", first_layer_only, "would never train"),
    ("rate_groups", in_both, "two groups"),
    ("after_decay", lambda *a: after_decay(*a)[0], "two weights"),
    ("after_decay", lambda *a: after_decay(*a)[::-1], "exchanged"),
    ("after_decay", lambda *a: (after_decay(*a, 1)[1], after_decay(*a)[1]), "all of it shrinks"),
    ("after_decay", linear_decay, "take the power"),
    ("after_decay", lambda *a: (a[0], after_decay(*a)[1]), "full fine-tuning is not right"),
    ("after_decay", lambda *a: (after_decay(*a)[0], after_decay(*a)[0]), "it cannot shrink"),
    ("after_decay", lambda *a: after_decay(*a, 1), "Both factors shrink"),
    ("after_decay", lambda *a: (after_decay(*a)[0], a[0]), "it only shrinks"),
    ("after_decay", lambda *a: after_decay(*a, 3), "after LoRA is not right"),
]

test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)
