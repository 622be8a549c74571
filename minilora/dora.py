"""DoRA: a weight taken apart into the length of each output's row, and a direction.

W = m · V / ‖V‖ with V = W₀ + scale · B A, the norm taken over the inputs of each output [1,
equation 5]. The magnitudes m train beside A and B, and start at ‖V‖, so that nothing changes at
first. The norm in the denominator is a constant to the gradient [1, section 4.3].

Source: [1] Liu et al. 2024, arXiv 2402.09353.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minilora.layers import (
    LoRAConv,
    LoRAEmbedding,
    LoRAHFConv1D,
    LoRALayer,
    LoRALinear,
    in_textbook,
)


class DoRA(nn.Module):
    """The magnitudes of one adapted layer, and what the layer computes with them.

    Attributes:
        magnitude: One number for each output: (out,); for a convolution (1, out, 1, 1), or with
            one 1 at the end for Conv1d.
    """

    magnitude: nn.Parameter

    def __init__(self, layer: LoRALayer) -> None:
        super().__init__()
        with torch.no_grad():
            norm = _norm(layer, layer.product())
            ones = [1] * (layer.base.weight.dim() - 2)
            self.magnitude = nn.Parameter(norm.view(1, -1, *ones) if ones else norm)

    def forward(self, layer: LoRALayer, x: Tensor) -> Tensor:
        """m/‖V‖ · (W₀x + scale · B A x) + b, of the shape of the layer's output."""
        y: Tensor = layer.base(x)
        factor = _along_outputs(layer, self._factor(layer, _product(layer)))
        x, A, B = layer.same_dtype(x)
        if isinstance(layer, LoRAEmbedding):
            return (factor * y + factor * layer.low_rank(x, A, B) * layer.scale).to(y.dtype)
        if layer.dropout and layer.training:  # the base must see the same thinned input
            x = layer.drop(x)
            plain = layer.apply_weight(x, layer.base.weight.to(x.dtype))
        else:
            plain = y if layer.bias is None else y - _along_outputs(layer, layer.bias)
        low_rank = layer.low_rank(x, A, B)
        # The base's own output, bias and hooks included, is kept; what DoRA changes is added.
        return (y + ((factor - 1) * plain + factor * low_rank * layer.scale)).to(y.dtype)

    def weight(self, layer: LoRALayer) -> Tensor:
        """m · V / ‖V‖ in the shape of ``base.weight``."""
        product = layer.product()
        factor = self._factor(layer, product)
        shape = [1] * layer.base.weight.dim()
        shape[layer.out_axis] = -1
        return factor.view(shape) * (layer.plain_weight(product.dtype) + product)

    def _factor(self, layer: LoRALayer, product: Tensor) -> Tensor:
        """(out,): m / ‖V‖, and 1 where a row of V is zero and has no direction."""
        norm = _norm(layer, product)
        return torch.where(
            norm == 0, 1.0, self.magnitude.flatten() / norm.masked_fill(norm == 0, 1)
        )


def _norm(layer: LoRALayer, product: Tensor) -> Tensor:
    """(out,): the length of each output's row of V = W₀ + product, a constant to the gradient."""
    V = (layer.plain_weight(product.dtype) + product).detach().transpose(0, layer.out_axis)
    return torch.linalg.norm(V.flatten(1), dim=1)


def _product(layer: LoRALayer) -> Tensor:
    """scale · B A; under ``textbook`` in the order of PEFT, which sends unit vectors through."""
    if not in_textbook() or not isinstance(layer, (LoRALinear, LoRAHFConv1D)):
        return layer.product()
    units = torch.eye(layer.A.shape[1], dtype=layer.A.dtype, device=layer.A.device)
    BA = layer.low_rank(units, layer.A, layer.B).T
    return BA.transpose(0, layer.out_axis) * layer.scale


def _along_outputs(layer: LoRALayer, v: Tensor) -> Tensor:
    """(out,) in the shape that multiplies the layer's output: (out, 1, 1) for a Conv2d."""
    return v.view(-1, *[1] * (layer.base.weight.dim() - 2)) if isinstance(layer, LoRAConv) else v
