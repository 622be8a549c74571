"""Two adapters on one model: added, or averaged in two ways, of which one is a mistake."""

from __future__ import annotations

import copy

import torch

import minilora
from minilora import LoRAConfig
from minilora.lab.flow import FlowTransformer

#: How two adapters can be put together.
WAYS = ("sum", "mean of the updates", "mean of the factors")


def combine(
    base: FlowTransformer, first: FlowTransformer, second: FlowTransformer, way: str
) -> FlowTransformer:
    """A copy of the base with the adapters of two models put together in one of the ``WAYS``.

    Two updates added are one update of twice the rank: the rows of the two A under each other, the
    columns of the two B side by side. The adapters must have the same rank and scale, and be on the
    same layers.

    Raises:
        ValueError: They do not, or there is no such way.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, but is {way!r}")
    a, b = minilora.lora_layers(first), minilora.lora_layers(second)
    if a.keys() != b.keys():
        raise ValueError(f"only one of the two adapts {sorted(a.keys() ^ b.keys())[0]!r}")
    shapes = {(layer.r, layer.scale) for layer in (*a.values(), *b.values())}
    if len(shapes) != 1:
        raise ValueError(f"ranks and scales differ: {sorted(shapes)}")
    ((r, scale),) = shapes
    rank = r if way == "mean of the factors" else 2 * r
    config = LoRAConfig(r=rank, alpha=scale * rank, targets=list(a))
    model = minilora.add_lora(copy.deepcopy(base), config)
    with torch.no_grad():
        for path, layer in minilora.lora_layers(model).items():
            if way == "mean of the factors":
                layer.A.copy_((a[path].A + b[path].A) / 2)
                layer.B.copy_((a[path].B + b[path].B) / 2)
            else:
                layer.A.copy_(torch.cat([a[path].A, b[path].A]))
                layer.B.copy_(torch.cat([a[path].B, b[path].B], dim=1))
    if way == "mean of the updates":
        minilora.set_strength(model, 0.5)
    return model.eval()


def update(model: FlowTransformer) -> torch.Tensor:
    """All updates of an adapted model as one long vector."""
    layers = minilora.lora_layers(model).values()
    return torch.cat([layer.delta().detach().flatten() for layer in layers])


def cosine(first: FlowTransformer, second: FlowTransformer) -> float:
    """The cosine between the updates of two models, all layers together."""
    return torch.cosine_similarity(update(first), update(second), dim=0).item()
