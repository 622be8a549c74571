"""What rounding a weight does to the outputs of its layer, on the inputs that it really gets."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from minilora.experiments.quantized.arms import BLOCK, relative_error
from minilora.quantize import round_to_levels


@torch.no_grad()
def output_errors(
    model: nn.Module, x: Tensor, levels: Tensor, block: int = BLOCK
) -> dict[str, tuple[float, float]]:
    """{path: (relative error of the weight, of the output x Wᵀ)} of all linear layers called.

    Every layer gets the inputs of the exact model, so that errors of earlier layers are not in it.
    """
    found: dict[str, tuple[float, float]] = {}

    def compare(module: nn.Linear, given: tuple[Tensor], output: Tensor, path: str) -> None:
        W = module.weight
        missing = round_to_levels(W, levels, block) - W
        rows = given[0].reshape(-1, W.shape[1])
        of_output = torch.linalg.norm(rows @ missing.T) / torch.linalg.norm(rows @ W.T)
        found[path] = relative_error(W, levels, block), float(of_output)

    hooks = [
        module.register_forward_hook(partial(compare, path=path))
        for path, module in model.named_modules()
        if type(module) is nn.Linear
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
