"""What becomes of an update when the merged weights are kept in bfloat16, and what the model loses.

Numbers are rounded to bfloat16 and computed with in single precision, so that what differs is the
weights' format and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minilora import lora_layers
from minilora.lab.language import LanguageModel, token_losses
from minilora.lab.sweep import Data

#: {path of a weight: what is added to it}
Updates = Mapping[str, Tensor]
#: How a weight can come to be: nothing of the update rounded; added to a weight that is in
#: bfloat16 already; or added in single precision, and the sum rounded once.
WAYS = ("beside", "rounded before", "rounded once")


@dataclass(frozen=True)
class Layer:
    """What became of an update of one weight.

    Attributes:
        relative: Its norm beside that of the weight. ``lost``: the norm of the error of what
            arrived, and ``along`` the length of what arrived in the update's own direction, both
            beside its norm.
    """

    path: str
    relative: float
    lost: float
    along: float


def updates(model: LanguageModel) -> dict[str, Tensor]:
    """{path of a weight: s · BA} of an adapted model."""
    layers = lora_layers(model)
    return {f"{path}.weight": layer.delta().detach() for path, layer in layers.items()}


def coarse(weight: Tensor) -> Tensor:
    """The weight as bfloat16 has it, in single precision."""
    return weight.detach().bfloat16().float()


def new_weight(weight: Tensor, update: Tensor, way: str) -> Tensor:
    """The weight after a merge, as one of ``WAYS``."""
    if way == "rounded once":
        return coarse(weight.detach() + update)
    return coarse(weight) + update if way == "beside" else coarse(coarse(weight) + update)


@torch.no_grad()
def merged(base: LanguageModel, change: Updates, strength: float, way: str) -> LanguageModel:
    """A copy of the base with ``strength`` times the update in its weights."""
    model = copy.deepcopy(base)
    for path, update in change.items():
        weight = model.get_parameter(path)
        weight.copy_(new_weight(weight, strength * update, way))
    return model.eval()


@torch.no_grad()
def by_layer(base: LanguageModel, change: Updates, strength: float, way: str) -> list[Layer]:
    """For each weight what became of the update, by its Frobenius norm.

    What arrived is the merged weight less the weight without an update, both in bfloat16.
    """
    found = []
    for path, whole in change.items():
        weight, update = base.get_parameter(path), strength * whole
        arrived = new_weight(weight, update, way) - coarse(weight)
        lost = torch.linalg.norm(arrived - update) / torch.linalg.norm(update)
        relative = torch.linalg.norm(update) / torch.linalg.norm(weight)
        along = (arrived * update).sum() / update.square().sum()
        name = path.removesuffix(".weight")
        found.append(Layer(name, float(relative), float(lost), float(along)))
    return found


def gains(
    base: LanguageModel, change: Updates, strengths: Sequence[float], pair: Data
) -> dict[float, dict[str, float]]:
    """{strength: {way: nats a token that the update gains on a text}}, over the coarse base."""

    def loss(strength: float, way: str) -> float:
        model = merged(base, change, strength, way)
        return float(token_losses(model, *pair).double().mean())

    start = loss(0.0, "beside")
    return {s: {way: start - loss(s, way) for way in WAYS} for s in strengths}
