"""Right and wrong answers to chapter 9's check of parameter groups, which looks into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minilora

Function = Callable[..., Any]


def groups(model, lr, ratio, layers=slice(None), more_a=lambda model: [], more_b=lambda model: []):
    adapted = list(minilora.lora_layers(model).values())[layers]
    return [
        {"params": [layer.A for layer in adapted] + more_a(model), "lr": lr},
        {"params": [layer.B for layer in adapted] + more_b(model), "lr": ratio * lr},
    ]


def factors_a(model):
    return groups(model, 1, 1)[0]["params"]


RIGHT: dict[str, Function] = {"rate_groups": groups}

WRONG: list[tuple[str, Function, str]] = [
    ("rate_groups", lambda *asked: groups(*asked)[0], "two dictionaries"),
    ("rate_groups", lambda model, lr, k: groups(model, lr * k, 1 / k), "exchanged"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, 1 / k), "divide by the ratio"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, k / lr), "the ratio itself"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, 1), "all B at 0.04"),
    (
        "rate_groups",
        lambda *asked: groups(*asked, more_a=lambda model: [model[0].base.weight]),
        "the base is frozen",
    ),
    ("rate_groups", lambda *asked: groups(*asked, slice(1)), "would never train"),
    ("rate_groups", lambda *asked: groups(*asked, more_b=factors_a), "two groups"),
]
