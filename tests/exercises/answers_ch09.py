"""Right and wrong answers to chapter 9's check of parameter groups, which looks into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minilora

Function = Callable[..., Any]


def groups(model, lr, ratio, layers=slice(None), more=lambda model: []):
    """B of the adapted layers at ratio · lr, and everything else that trains at lr."""
    adapted = list(minilora.lora_layers(model).values())[layers]
    of_B = [layer.B for layer in adapted]
    fast = set(map(id, of_B))
    rest = [p for p in minilora.lora_parameters(model) if id(p) not in fast]
    return [{"params": rest, "lr": lr}, {"params": of_B + more(model), "lr": ratio * lr}]


def factors_alone(model, lr, ratio, more_a=lambda model: [], layers=slice(None)):
    """What the page's own recipe suggests: A and B, and nothing for a new head."""
    adapted = list(minilora.lora_layers(model).values())[layers]
    return [
        {"params": [layer.A for layer in adapted] + more_a(model), "lr": lr},
        {"params": [layer.B for layer in adapted], "lr": ratio * lr},
    ]


def fast_head(model, lr, ratio):
    of_A = [layer.A for layer in minilora.lora_layers(model).values()]
    slow = set(map(id, of_A))
    rest = [p for p in minilora.lora_parameters(model) if id(p) not in slow]
    return [{"params": of_A, "lr": lr}, {"params": rest, "lr": ratio * lr}]


def factors_a(model):
    return [layer.A for layer in minilora.lora_layers(model).values()]


def three_groups(model, lr, ratio):
    """As good as two."""
    *_, of_B = groups(model, lr, ratio)
    slow = groups(model, lr, ratio)[0]["params"]
    return [{"params": slow[:1], "lr": lr}, of_B, {"params": slow[1:], "lr": lr}]


RIGHT: dict[str, Function] = {"rate_groups": groups}

WRONG: list[tuple[str, Function, str]] = [
    ("rate_groups", lambda *asked: groups(*asked)[0], "list of dictionaries"),
    ("rate_groups", lambda model, lr, k: groups(model, lr * k, 1 / k), "exchanged"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, 1 / k), "divide by the ratio"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, k / lr), "the ratio itself"),
    ("rate_groups", lambda model, lr, k: groups(model, lr, 1), "all B at 0.04"),
    ("rate_groups", factors_alone, "a new head beside its adapters"),
    ("rate_groups", fast_head, "The ratio is for B alone"),
    (
        "rate_groups",
        lambda *asked: factors_alone(*asked, more_a=lambda model: [model[0].base.weight]),
        "the base is frozen",
    ),
    ("rate_groups", lambda *asked: factors_alone(*asked, layers=slice(1)), "would never train"),
    ("rate_groups", lambda *asked: groups(*asked, more=factors_a), "two groups"),
]
