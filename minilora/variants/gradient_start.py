"""A start in the directions of the first full gradient.

With B at zero the first step of gradient descent on B changes the weight by −η s² G Aᵀ A, where
G = ∂L/∂W, (out, in), is the gradient that full fine-tuning would have, and s the scale: G, looked
at through the r directions that A happens to hold. With the usual random A most of G is not seen.
Here the rows of A are the r leading right singular vectors v₁ … v_r of G, so that this first step
goes along the best rank-r approximation of G. B stays at zero, and W₀ as it is::

    config = LoRAConfig(r=8, alpha=16, targets=["q_proj", "v_proj"])
    start = gradient_start(model, config, lambda: loss_of(model))
    minilora.add_lora(model, replace(config, init=start))

It is the simplest of a family. LoRA-GA [1] gives A the directions v₁ … v_r and B the next left
ones, u_{r+1} … u_{2r}, and takes s·BA out of W₀, so that both factors can move at once, along 2r
directions. LoRA-One [2] fills both factors with the leading r, so that W₀ + s·BA is the model after
one step along the best rank-r approximation of −G; and it preconditions the steps that follow.

Sources: [1] Wang et al. 2024, arXiv 2407.05000. [2] Zhang et al. 2025, arXiv 2502.01235.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minilora.config import LoRAConfig
from minilora.layers import LoRALayer
from minilora.targets import find_targets


class GradientStart:
    """Fills A of the layers of one model: what ``LoRAConfig(init=…)`` calls.

    A layer is known by the values of its weight, so that the start fits copies of the model.

    Args:
        gradients: [(W₀, G) …], both (out, in).
    """

    def __init__(self, gradients: list[tuple[Tensor, Tensor]]) -> None:
        self.weights = [W.detach().clone() for W, _ in gradients]
        self.right = [torch.linalg.svd(G, full_matrices=False).Vh for _, G in gradients]

    def __call__(self, layer: LoRALayer) -> None:
        """A = (v₁ … v_r)ᵀ / √3, and B = 0.

        Divided by √3, A is as long as the usual start is on average, in which entries are uniform
        in ±1/√d_in. So the directions alone are another start.

        Raises:
            ValueError: The layer's weight is none of those that the gradients belong to, or the
                rank is too large.
        """
        weight = layer.base.weight
        fitting = (
            Vh
            for W, Vh in zip(self.weights, self.right, strict=True)
            if W.shape == weight.shape and torch.equal(W.to(weight), weight)
        )
        Vh = next(fitting, None)
        if Vh is None:
            raise ValueError(
                "this start was made for other weights: give add_lora the model whose gradients "
                "were taken, or a copy of it, before anything has changed it"
            )
        if layer.r > len(Vh):
            raise ValueError(
                f"a gradient of shape {tuple(weight.shape)} has {len(Vh)} directions, and the rank "
                f"is {layer.r}: take a smaller one"
            )
        layer.A.copy_(Vh[: layer.r] / 3**0.5)
        layer.B.zero_()


def weight_gradients(
    model: nn.Module, config: LoRAConfig, loss: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """{path: ∂L/∂W} of the layers that ``config`` would adapt, which must be linear ones.

    ``loss()`` gives the loss of the model as it is, a scalar. Nothing of the model changes, and no
    ``.grad`` is filled.

    Raises:
        TypeError: A target that is not an ``nn.Linear``.
    """
    weights: dict[str, Tensor] = {}
    for path in find_targets(model, config):
        layer = model.get_submodule(path)
        if type(layer) is not nn.Linear:
            raise TypeError(
                f"{path!r} is a {type(layer).__name__}, and this start is for nn.Linear layers; "
                "narrow targets or list it in exclude"
            )
        weights[path] = layer.weight
    before = [weight.requires_grad for weight in weights.values()]
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            found = torch.autograd.grad(loss(), list(weights.values()))
    finally:
        for weight, flag in zip(weights.values(), before, strict=True):
            weight.requires_grad_(flag)
    return dict(zip(weights, found, strict=True))


def gradient_start(
    model: nn.Module, config: LoRAConfig, loss: Callable[[], Tensor]
) -> GradientStart:
    """The start for ``LoRAConfig(init=…)``, from one gradient of the plain model.

    Arguments and errors as in `weight_gradients`. Take as many examples for the loss as memory
    allows: this is the one moment at which the gradient of the whole weights is needed.
    """
    gradients = weight_gradients(model, config, loss)
    weights = dict(model.named_parameters(remove_duplicate=False))
    return GradientStart([(weights[f"{path}.weight"], G) for path, G in gradients.items()])
