"""Serial adapters: small networks put between the layers of a frozen model.

After a layer's output h comes h + U σ(D h + c) + e with D (m, d) and U (d, m): down to a bottleneck
of m units, a nonlinearity, and up again [1], 2md + d + m numbers each. In a transformer
they stand after the attention's output projection and after the second layer of the feed-forward
network, and the norms and the head train along. U and D start near zero, so that an adapter is
nearly the identity at first.

Unlike LoRA they cannot be merged: with σ in between, no weight of the layer does the same, so that
every adapter costs time in inference for good. Nor can ``minilora.save`` write them.

Source: [1] Houlsby et al. 2019, arXiv 1902.00751.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minilora.config import LoRAConfig, Targets
from minilora.layers import LoRAConv, is_coarse, layer_type
from minilora.state import Model
from minilora.targets import find_targets
from minilora.variants.freezing import check_plain, put_back, train_only, whole_modules

UNDO = "adapters.remove_adapters"
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class Bottleneck(nn.Module):
    """h + U σ(D h + c) + e. Shapes: (…, d) → (…, d)."""

    def __init__(self, d: int, bottleneck: int, activation: str, like: Tensor) -> None:
        super().__init__()
        # As with LoRA: half precision is too coarse to train in.
        dtype = torch.float32 if is_coarse(like.dtype) else like.dtype
        self.down = nn.Linear(d, bottleneck, device=like.device, dtype=dtype)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(bottleneck, d, device=like.device, dtype=dtype)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(…, d) → (…, d)."""
        change = self.up(self.activation(self.down(h.to(self.down.weight.dtype))))
        return h + change.to(h.dtype)


def add_adapters(
    model: nn.Module,
    targets: Targets,
    bottleneck: int = 8,
    activation: str = "gelu",
    modules: Sequence[str] = (),
    exclude: Targets | None = None,
) -> list[nn.Parameter]:
    """Freeze ``model`` and put an adapter after every targeted layer.

    The layers stay the objects they are, with the adapter as their child ``adapter``: paths and
    the keys of the base in ``state_dict`` do not change.

    Args:
        model: A plain model; changed in place.
        targets: As in LoRAConfig, for linear layers and embeddings.
        bottleneck: Width m of the bottleneck.
        activation: ``"gelu"`` or ``"relu"``.
        modules: Names of modules to train whole beside the adapters, such as norms and the head.
        exclude: What ``targets`` takes too much, in the same forms.

    Returns:
        What trains, for an optimizer.

    Raises:
        ValueError: Targets that match nothing or cannot have an adapter, a name that matches
            nothing, or a model with an adapter or a baseline on it. The model is unchanged.
    """
    check_plain(model)
    if bottleneck < 1 or activation not in ACTIVATIONS:
        raise ValueError(
            f"bottleneck must be at least 1 and activation one of {', '.join(ACTIVATIONS)}, but "
            f"they are {bottleneck!r} and {activation!r}"
        )
    paths = find_targets(model, LoRAConfig(targets=targets, exclude=exclude))
    new: list[tuple[nn.Module, Bottleneck]] = []
    for path in paths:
        module: Any = model.get_submodule(path)
        kind = layer_type(module)
        if kind is None or kind is LoRAConv or hasattr(module, "adapter"):
            raise ValueError(
                f"{path!r}, a {type(module).__name__}, cannot have an adapter after it: that takes "
                "a linear layer or an embedding without a child named 'adapter'"
            )
        d = kind.shapes(module, 1)[1][0]
        new.append((module, Bottleneck(d, bottleneck, activation, module.weight)))
    whole = whole_modules(model, modules)
    train_only(model, whole, undo=UNDO)
    for module, adapter in new:
        adapter.train(module.training)
        module.adapter = adapter
        module.register_forward_hook(_apply_adapter)
    # Only the fast path of PyTorch's encoder layers reads nested tensors, and it reads the weights
    # of linear2 itself, so that a layer with hooks does not take it.
    nesting = [
        m
        for m in model.modules()
        if isinstance(m, nn.TransformerEncoder) and getattr(m, "use_nested_tensor", False)
    ]
    for encoder in nesting:
        encoder.use_nested_tensor = False
    model.__dict__["_minilora_nested"] = nesting
    return [p for _, adapter in new for p in adapter.parameters()] + whole


def remove_adapters(model: Model) -> Model:
    """Take the adapters off; the base, the named modules and every requires_grad are as before.

    Raises:
        ValueError: The model has no serial adapters.
    """
    put_back(model, keep_update=False, undo=UNDO)
    for module in list(model.modules()):
        for key, hook in list(module._forward_hooks.items()):
            if hook is _apply_adapter:
                del module._forward_hooks[key]
                del module.adapter
    for encoder in model.__dict__.pop("_minilora_nested"):
        encoder.use_nested_tensor = True
    return model


def _apply_adapter(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook: what it returns takes the place of the layer's output."""
    adapter: Any = module.adapter
    return adapter(output)
