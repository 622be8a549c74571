"""What is rounded, to which levels, and what becomes of an update afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from minilora import LoRAConfig
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier
from minilora.layers import LoRALayer
from minilora.quantize import (
    NF4_LEVELS,
    normal_float_levels,
    round_to_levels,
    uniform_levels,
)
from minilora.targets import find_targets
from minilora.variants import loftq

#: {bits: the levels that a block of 64 weights is rounded to}
LEVELS: dict[int, Tensor] = {4: NF4_LEVELS, 3: normal_float_levels(3), 2: normal_float_levels(2)}
EXACT = 32
BLOCK = 64

#: The start of the rivals that are rounded to as many evenly spaced levels, and have B = 0.
EVEN = "even levels"

#: What is rounded and what is adapted: the six matrices of every block.
TARGETS = list(BLOCK_LINEARS)


def rounding(bits: int, start: str = "default") -> Callable[[Tensor], Tensor]:
    """What so many bits leave of a weight; 32 leave it as it is."""
    if bits == EXACT:
        return torch.clone
    levels = uniform_levels(2**bits) if start == EVEN else LEVELS[bits]
    return partial(round_to_levels, levels=levels, block=BLOCK)


def arm_of(bits: int, r: int, start: str = "default") -> str:
    """The name of an arm; that of the default start is left out."""
    return f"{bits} bits, r={r}" + ("" if start == "default" else f", {start}")


def config_of(r: int, alpha: float) -> LoRAConfig:
    return LoRAConfig(r=r, alpha=alpha, targets=TARGETS)


def round_weights(model: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
    """Round the targets' weights in place."""
    for path in find_targets(model, LoRAConfig(targets=TARGETS)):
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        weight.data = rounded(weight.data)


def rounded_base(
    base: TransformerClassifier, bits: int, config: LoRAConfig, start: str, steps: int
) -> tuple[TransformerClassifier, LoRAConfig]:
    """A copy of the base with rounded weights, and the config with the start that goes with it.

    ``start`` is "default", "even levels" or "LoftQ", which takes so many ``steps``.
    """
    model = copy.deepcopy(base)
    if start == "LoftQ":
        return model, loftq.round_linears(model, config, rounding(bits), steps)
    round_weights(model, rounding(bits, start))
    return model, config


def with_update(
    base: TransformerClassifier,
    adapter: Mapping[str, Tensor],
    scale: float,
    rounded: Callable[[Tensor], Tensor] = torch.clone,
) -> TransformerClassifier:
    """A copy of the base whose weights W are ``rounded`` (W + scale · BA).

    ``adapter`` holds the factors by name, ``PATH.A`` (r, in) and ``PATH.B`` (out, r).
    """
    model = copy.deepcopy(base)
    for path in {name.rpartition(".")[0] for name in adapter}:
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        update = scale * adapter[f"{path}.B"] @ adapter[f"{path}.A"]
        weight.data = rounded(weight.data + update)
    return model


@torch.no_grad()
def relative_error(W: Tensor, levels: Tensor, block: int = BLOCK) -> float:
    """‖Q − W‖ / ‖W‖, where Q is W rounded to the levels in blocks."""
    return float(torch.linalg.norm(round_to_levels(W, levels, block) - W) / torch.linalg.norm(W))


def error(model: nn.Module, base: nn.Module) -> float:
    """The relative error of all targets' weights together, adapters included."""
    missing = size = 0.0
    for path in find_targets(base, LoRAConfig(targets=TARGETS)):
        layer, W = model.get_submodule(path), base.get_submodule(path).weight
        assert isinstance(W, Tensor)
        new = layer.new_weight() if isinstance(layer, LoRALayer) else layer.weight
        assert isinstance(new, Tensor)
        missing += (new - W).square().sum().item()
        size += W.square().sum().item()
    return float((missing / size) ** 0.5)
