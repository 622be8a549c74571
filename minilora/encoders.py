"""PyTorch's own encoder layers, whose fast path would pass an adapter by.

In eval mode ``nn.TransformerEncoderLayer`` may read the weights of ``linear1`` and ``linear2``
itself instead of calling the layers, and ``nn.TransformerEncoder`` may hand it nested tensors,
which only that path can read.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from minilora.state import is_adapted


def leave_fast_path(modules: Iterable[nn.Module]) -> list[nn.TransformerEncoder]:
    """Keep the adapted ones off the fast path; the encoders that no longer use nested tensors."""
    nested = []
    for module in modules:
        if isinstance(module, nn.TransformerEncoderLayer) and is_adapted(module):
            module.register_forward_pre_hook(_do_nothing)
        elif isinstance(module, nn.TransformerEncoder) and is_adapted(module):
            if getattr(module, "use_nested_tensor", False):
                module.use_nested_tensor = False
                nested.append(module)
    return nested


def allow_fast_path(model: nn.Module, nested: Iterable[nn.TransformerEncoder]) -> None:
    """Undo ``leave_fast_path``."""
    for encoder in nested:
        encoder.use_nested_tensor = True
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _do_nothing:
                del module._forward_pre_hooks[key]


def _do_nothing(module: nn.Module, args: tuple[object, ...]) -> None:
    """A hook whose presence keeps PyTorch's encoder layers off their fast path."""
