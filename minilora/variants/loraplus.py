"""LoRA+: B learns at a higher rate than A.

A sums over the d_in inputs of its layer, so that one Adam step, which moves every entry by about
the same amount, moves A x in proportion to the width; B sums over r only. In the limit of a wide
model both factors learn only if B's rate is larger by an order of the width [1]. In practice the
ratio is a setting, and about 16 served the paper.

What the paper leaves open is decided as in its authors' program and in PEFT: a parameter with one
axis (a bias, a norm's weight, DoRA's magnitudes) takes B's rate and is not decayed, and any other
matrix that trains, such as a new head's, takes A's. Embeddings are decided otherwise than there.
PEFT trains both of their factors at 1e-6 unless told otherwise, which is nearly not at all. Looking
up a token sums over no inputs, so that nothing speaks for holding A back: both take B's rate.

Source: [1] Hayou et al. 2024, arXiv 2402.12354.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from minilora.layers import LoRAEmbedding
from minilora.state import lora_layers, lora_parameters


def loraplus_groups(model: nn.Module, lr: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: ``torch.optim.AdamW(loraplus_groups(model, lr=1e-4))``.

    Args:
        model: The adapted model.
        lr: Learning rate of A.
        ratio: Learning rate of B over that of A. At 1, every parameter learns at ``lr``.

    Returns:
        Up to three groups, none empty: A and other matrices at ``lr``; B at ``lr · ratio``; what
        has one axis at ``lr · ratio`` with a weight decay of 0. Frozen parameters are left out.

    Raises:
        ValueError: The model has no adapter, or a rate is not positive and finite.
    """
    for name, value in [("lr", lr), ("ratio", ratio)]:
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, but is {value!r}")
    fast: set[nn.Parameter] = set()
    vectors: set[nn.Parameter] = set()
    for layer in lora_layers(model).values():
        fast |= {layer.A, layer.B} if isinstance(layer, LoRAEmbedding) else {layer.B}
        # A convolution's magnitudes have the axes of its output, but are a vector all the same.
        vectors |= {layer.dora.magnitude} if layer.dora is not None else set()
    a: dict[str, Any] = {"params": [], "lr": lr}
    b: dict[str, Any] = {"params": [], "lr": lr * ratio}
    undecayed: dict[str, Any] = {"params": [], "lr": lr * ratio, "weight_decay": 0.0}
    for parameter in lora_parameters(model):
        if parameter.requires_grad:
            vector = parameter.dim() == 1 or parameter in vectors
            group = undecayed if vector else b if parameter in fast else a
            group["params"].append(parameter)
    return [group for group in (a, b, undecayed) if group["params"]]
