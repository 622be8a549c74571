"""Ways to make one adapter of two, and the model that comes of each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import minilora
from minilora.lab.language import LanguageModel
from minilora.surgery import add


@dataclass(frozen=True)
class Rule:
    """A way, and the settings that are tried for it.

    Attributes:
        name: What a figure calls it.
        method: That of `minilora.surgery.add`, or "factors": A and B averaged by themselves.
        strengths: What both updates are multiplied by; with "factors", what the product of the
            means is multiplied by.
        densities: Of the entries that stay; (1,) where all do.
    """

    name: str
    method: str
    strengths: tuple[float, ...]
    densities: tuple[float, ...] = (1.0,)

    @property
    def settings(self) -> list[tuple[float, float]]:
        """Every strength with every density."""
        return [(s, d) for d in self.densities for s in self.strengths]


STRENGTHS, DENSITIES = (0.2, 0.4, 0.6, 0.8), (0.2, 0.5, 0.8)
RULES = (
    Rule("sum", "exact", (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)),
    Rule("TIES", "ties", STRENGTHS, DENSITIES),
    Rule("DARE", "dare", STRENGTHS, DENSITIES),
    Rule("mean of the factors", "factors", (0.5, 1.0, 2.0, 4.0)),
)


def described(strength: float, density: float) -> str:
    """A setting in words, as rows have it."""
    return f"× {strength:g}" + (f", {density:g} stay" if density < 1 else "")


def mixed(
    base: LanguageModel,
    adapters: Sequence[Path],
    out: Path,
    rule: Rule,
    setting: tuple[float, float],
    seed: int = 0,
) -> LanguageModel:
    """A copy of the base with the one adapter that the rule makes of two folders.

    TIES and DARE are cut to the rank that the exact sum has, so that all files are equally large.
    """
    strength, density = setting
    if rule.method == "factors":
        return _mean_of_factors(base, adapters, strength)
    loaded = [minilora.load(copy.deepcopy(base), path) for path in adapters]
    ranks = [max(layer.r for layer in minilora.lora_layers(model).values()) for model in loaded]
    rank = None if rule.method == "exact" else sum(ranks)
    parts = {str(path): strength for path in adapters}
    add(parts, out, rank, rule.method, density=density, seed=seed)
    return minilora.load(copy.deepcopy(base), out).eval()


def _mean_of_factors(
    base: LanguageModel, adapters: Sequence[Path], strength: float
) -> LanguageModel:
    model, *others = (minilora.load(copy.deepcopy(base), path) for path in adapters)
    layers = minilora.lora_layers(model)
    with torch.no_grad():
        for other in others:
            for path, layer in minilora.lora_layers(other).items():
                layers[path].A.add_(layer.A)
                layers[path].B.add_(layer.B)
        for layer in layers.values():
            layer.A.div_(len(adapters))
            layer.B.div_(len(adapters))
    return minilora.set_strength(model, strength).eval()
