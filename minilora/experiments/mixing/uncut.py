"""What the rules make of two updates when no rank is cut, as a model and not as an adapter."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from minilora.experiments.mixing.rounding import Updates
from minilora.experiments.mixing.rules import Rule
from minilora.lab.language import LanguageModel
from minilora.surgery import ties


@torch.no_grad()
def uncut(
    base: LanguageModel,
    changes: Sequence[Updates],
    rule: Rule,
    setting: tuple[float, float],
    seed: int = 0,
) -> LanguageModel:
    """A copy of the base with the rule's whole matrices added to its weights.

    Raises:
        ValueError: The rule is about factors, and has no rank to be cut.
    """
    strength, density = setting
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.full((len(changes),), strength)
    for path in changes[0]:
        updates = torch.stack([strength * change[path] for change in changes])
        if rule.method == "ties":
            total, _ = ties(updates, weights, density)
        elif rule.method in ("exact", "dare"):
            stays = torch.rand(updates.shape, generator=generator) < density
            total = (updates * stays / density).sum(0)
        else:
            raise ValueError(f"{rule.name} works on factors; give a rule that works on updates")
        model.get_parameter(path).add_(total)
    return model.eval()
