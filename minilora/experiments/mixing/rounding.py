"""What becomes of an update when the merged weights are kept in bfloat16, and what the model loses.

Numbers are rounded to bfloat16 and computed with in single precision, so that what differs is the
weights' format and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
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
            beside its norm; what arrived is counted from the weight without an update, in bfloat16.
        off: How far the merged weight is from the weight in single precision plus the update,
            beside the norm of the update. Rounding once, it is as small as the format allows.
    """

    path: str
    relative: float
    lost: float
    along: float
    off: float


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
        new, size = new_weight(weight, update, way), torch.linalg.norm(update)
        arrived = new - coarse(weight)
        lost = torch.linalg.norm(arrived - update) / size
        relative = size / torch.linalg.norm(weight)
        along = (arrived * update).sum() / size.square()
        off = torch.linalg.norm(new - weight - update) / size
        name = path.removesuffix(".weight")
        found.append(Layer(name, *map(float, (relative, lost, along, off))))
    return found


def halfway(weight: Tensor) -> float:
    """The share of a weight's entries that lie exactly between two numbers of bfloat16."""
    part, _ = torch.frexp(weight.detach())
    steps = (part * 2**8).abs()  # bfloat16 has eight significant bits
    return float((steps - steps.floor() == 0.5).float().mean())


@torch.no_grad()
def nudged(base: LanguageModel, paths: Iterable[str], seed: int) -> LanguageModel:
    """A copy of the base whose entries are moved at random, by half a step of bfloat16 at most.

    So nothing is left of how the weights lay between the numbers of the format.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base)
    for path in paths:
        weight = model.get_parameter(path)
        _, power = torch.frexp(weight)
        step = torch.ldexp(torch.ones_like(weight), power - 8)
        weight.add_((torch.rand(weight.shape, generator=generator) - 0.5) * step)
    return model


def gains(
    base: LanguageModel, change: Updates, strengths: Sequence[float], pair: Data
) -> dict[float, dict[str, float]]:
    """{strength: {way: nats a token that the update gains on a text}}, over the coarse base."""

    def loss(strength: float, way: str) -> float:
        model = merged(base, change, strength, way)
        return float(token_losses(model, *pair).double().mean())

    start = loss(0.0, "beside")
    return {s: {way: start - loss(s, way) for way in WAYS} for s in strengths}
