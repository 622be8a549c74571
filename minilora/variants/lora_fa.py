"""LoRA-FA: A stays as it began, and only B trains.

The gradient of A needs the layer's input x, which LoRA must therefore keep until the backward
pass; the gradient of B needs only A x, which is r numbers for each row of x. With A frozen, x is
not kept for the adapter's sake [1]. (It is kept where something else asks for it, as a
nonlinearity may, and dropout keeps a mask of its size.) About half of the optimizer's state goes
too.

The update then lies in the r directions that A drew, ΔW = B A with A fixed, and B starts at zero:
gradient descent on B moves ΔW along −G AᵀA, a random projection of the full gradient G.

The second version of the paper (2026) also multiplies the gradient of B by (A Aᵀ)⁻¹ / scale², so
that ΔW moves by the nearest thing to −G that A allows. PEFT's ``create_lorafa_optimizer`` does
that; here the optimizer is left as it is, as in the first version.

Source: [1] Zhang et al. 2023, arXiv 2308.03303.
"""

from __future__ import annotations

from minilora.layers import LoRAConv, LoRAHFConv1D, LoRALayer, LoRALinear
from minilora.state import Model, adaptation, lora_layers


def freeze_A(model: Model) -> Model:
    """Freeze A in every adapted layer; call it before the optimizer is made, or after.

    ``lora_parameters`` still lists A. Without a gradient no optimizer moves or decays it. A
    convolution keeps its input in PyTorch whether A is frozen or not, so there it saves only the
    optimizer's state. ``layer.A.requires_grad_(True)`` takes the freezing back; ``load`` makes
    new layers, which are not frozen.

    Args:
        model: The adapted model; changed in place.

    Returns:
        The same object.

    Raises:
        ValueError: No adapter, or a layer that has no random A, and the model is unchanged: an
            embedding's A starts at zero, so that freezing it would leave nothing to learn.
    """
    adaptation(model)
    layers = lora_layers(model)
    for path, layer in layers.items():
        check_A_is_random(path, layer)
    for layer in layers.values():
        layer.A.requires_grad_(False)
        layer.A.grad = None  # an optimizer would still follow a gradient from before
    return model


def check_A_is_random(path: str, layer: LoRALayer) -> None:
    """Raise ValueError where freezing A is not what LoRA-FA means."""
    if layer.start is not None:
        raise ValueError(
            f"in {path!r} A began as a part of the weight, and LoRA-FA needs a random one; use "
            "init='default'"
        )
    if not isinstance(layer, (LoRALinear, LoRAHFConv1D, LoRAConv)):
        raise ValueError(
            f"{path!r} is adapted by a {type(layer).__name__}, and LoRA-FA needs layers whose A "
            "begins at random and B at zero: linear layers and convolutions with plain LoRA. In "
            "an embedding A begins at zero, and frozen there it would never learn; list it in "
            "exclude"
        )
