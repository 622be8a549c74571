"""A weight that is read instead of called, so that the adapter is passed by.

Some models hand ``layer.weight`` to a function of PyTorch's instead of calling the layer, as WavLM
does with its queries and Mamba with ``dt_proj``, or use an embedding's weight for the output head.
What they read is W₀: the adapter does not act there, and merging it would change the output. Others
only ask the weight for its type or its shape, as T5 does, which is harmless.

So inside a forward, a read through an adapted layer gives a stand-in, which answers such questions
and notes the first computation. ``save`` and ``merge`` then name the layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

# What a tensor can be asked without anything being computed with it.
QUESTIONS = {
    *("dtype", "device", "shape", "layout", "ndim", "itemsize", "nbytes", "names", "is_leaf"),
    *("requires_grad", "is_cuda", "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized"),
    *("size", "dim", "numel", "nelement", "stride", "element_size", "get_device", "is_nested"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_same_size", "__len__", "__hash__"),
    *("is_mkldnn", "is_xpu", "_version", "grad_fn", "untyped_storage", "storage_offset"),
}


class StandIn(Tensor):
    """A weight, as code inside a forward has read it from an adapted layer."""

    weight: Tensor
    found: Callable[[], None]  # called on the first computation

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        read: list[StandIn] = []

        def real(stand_in: StandIn) -> Tensor:
            read.append(stand_in)
            return stand_in.weight

        args, kwargs = tree_map_only(StandIn, real, (args, kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute: the getter knows its name
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name not in QUESTIONS:
            for stand_in in read:
                stand_in.found()
        return func(*args, **kwargs)


def read_weight(weight: Any, note: Callable[[str], None]) -> Any:
    """What a read of ``weight`` through its layer gives: inside a forward, a stand-in.

    ``note`` gets the place of the read, should anything be computed with what was read.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return weight
    if torch._C._are_functorch_transforms_active():  # whose tensors can be no stand-in
        return weight
    if type(weight) not in (nn.Parameter, Tensor):
        return weight
    place = _reader()
    if place is None:
        return weight
    with torch.no_grad():
        stand_in = weight.as_subclass(StandIn)
    stand_in.weight, stand_in.found = weight, lambda: note(place)
    stand_in._is_param = isinstance(weight, nn.Parameter)  # isinstance(…, nn.Parameter) asks this
    return stand_in


def _reader() -> str | None:
    """The function that reads, where a module's forward is on the stack."""
    reader = frame = sys._getframe(3)  # past read_weight and the layer's __getattr__
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return None
    code = reader.f_code
    return f"{code.co_qualname} in line {reader.f_lineno} of {code.co_filename}"


_CALL = nn.Module._call_impl.__code__
