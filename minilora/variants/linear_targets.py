"""What the variants with a layer of their own share: they adapt linear layers, and refuse the
settings of LoRAConfig that would mean nothing to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from minilora.config import LoRAConfig
from minilora.layers import LoRAHFConv1D, LoRALinear, Shape, layer_type
from minilora.state import is_adapted
from minilora.targets import Plan, exactly, plan


def plan_linear(
    model: nn.Module, config: LoRAConfig, variant: str, unused: Sequence[str]
) -> tuple[LoRAConfig, Plan]:
    """As ``minilora.targets.plan``, for linear layers only.

    Args:
        model: The model, not adapted.
        config: What to adapt.
        variant: The name of the variant, for the messages.
        unused: Settings that the variant does not use and that must be as LoRAConfig has them.

    Returns:
        The config as it is to be noted on the model, and the plan.

    Raises:
        TypeError, ValueError: What ``add_lora`` refuses, an unused setting, or a target that is
            not linear. Nothing is changed.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"{variant} needs a LoRAConfig, but got {type(config).__name__}")
    if is_adapted(model):
        raise ValueError(
            "the model has an adapter already; call minilora.remove_lora(model) first "
            "(keep_update=True keeps what it learnt)"
        )
    for name in unused:
        value, usual = getattr(config, name), getattr(LoRAConfig(), name)
        if value != usual:
            raise ValueError(
                f"{variant} does not use {name}, but it is {value!r}; leave it out of the config"
            )
    found = plan(model, config)
    for path in found.targets:
        if layer_type(found.modules[path]) not in (LoRALinear, LoRAHFConv1D):
            raise ValueError(
                f"{variant} fits linear layers, but targets matches {path!r}, which is a "
                f"{type(found.modules[path]).__name__}; narrow targets or list it in exclude"
            )
    if callable(config.targets) or callable(config.exclude):  # as in add_lora: it must pickle
        config = replace(config, targets=exactly(found.targets, found.modules), exclude=None)
    return config, found


def linear_shapes(base: Any, r: int) -> tuple[Shape, Shape]:
    """(r, in) and (out, r) for an ``nn.Linear`` or a Hugging Face ``Conv1D``."""
    kind = layer_type(base)
    assert kind is not None  # plan_linear let it through
    return kind.shapes(base, r)
