"""Bytes, operations, calls and seconds of a training step, measured on any model."""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from minilora.lab.work import keep_to_time

Call = Callable[[], object]


def saved_bytes(run: Call, model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of ``run()``; each storage counts once.

    The model's parameters and buffers are left out: they are there in any case. What ``run``
    returns must not be the only hold on the graph; it is dropped here.
    """
    there = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # held on to, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an optimizer keeps from step to step, measured: 0 before its first step."""
    entries = [entry for state in optimizer.state.values() for entry in state.values()]
    return sum(entry.nbytes for entry in entries if isinstance(entry, Tensor))


@dataclass(frozen=True)
class Watched:
    """What `watch` saw.

    Attributes:
        calls: Operations that PyTorch sent on, views included.
        flops: Floating-point operations of the matrix products, attention's included where it runs
            in one of PyTorch's fused forms.
        peak: The most bytes above those at the start.
    """

    calls: int
    flops: int
    peak: int


def watch(run: Call) -> Watched:
    """Call ``run()`` and follow every operation, and every tensor that it makes, on any device.

    What an operation allocates for itself and frees again is not seen. Operations are counted by
    the formulas of PyTorch's own counter, and without the hooks that it puts on all modules: an
    adapted layer with hooks takes its textbook form.
    """
    with _Counting() as seen:
        run()
    return Watched(seen.calls, seen.flops, seen.peak)


def _update_flops(y: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * b.shape[1]


def _attention_flops(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 2 * 2 * q.numel() * k.shape[2]  # queries by keys, shares by values


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 5 * 2 * q.numel() * k.shape[2]  # the scores once more, and a gradient for each operand


_aten = torch.ops.aten
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # What PyTorch's table leaves out: how an adapted layer adds its update, attention on the CPU.
    _aten.addmm_: _update_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = self.flops = self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, _FORMULAS.get(func._overloadpacket)
        if formula is None:  # in inference mode some operations arrive before they are taken apart
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._note([args, kwargs], new=False)  # there before; freeing it lowers the count
        result = func(*args, **kwargs)
        self._note(result, new=True)
        self.calls += 1
        self.flops += formula(*args, **kwargs, out_val=result) if formula else 0
        self.peak = max(self.peak, self.live)
        return result

    def _note(self, tree: Any, new: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes() if new else 0
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_bytes(run: Call, device: torch.device | str = "cpu") -> int:
    """The most bytes above those at the start that ``run()`` holds at any moment.

    On CUDA by the allocator's own count (``torch.cuda.max_memory_allocated``), which rounds every
    tensor up to 512 bytes; elsewhere by `watch`. Call it after two steps of training: the
    optimizer makes its state in the first.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return watch(run).peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def seconds(run: Call, device: torch.device | str = "cpu") -> float:
    """How long one ``run()`` takes, the work of a card included."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(
    runs: Mapping[str, Call], rounds: int, device: torch.device | str = "cpu", warm_ups: int = 1
) -> dict[str, list[float]]:
    """{name: seconds of each round}: every run once a round, in an order drawn anew.

    A machine that slows down for a while then slows all of them, and the ratio of two runs within
    a round stays fair. The first ``warm_ups`` rounds do not count. Under a
    `minilora.lab.work.time_limit` no round is begun for which the time left is too short.
    """
    order, names = random.Random(0), list(runs)
    spent: dict[str, list[float]] = {name: [] for name in names}
    longest = 0.0
    for turn in range(warm_ups + rounds):
        keep_to_time(longest)
        round_took = 0.0
        order.shuffle(names)
        for name in names:
            took = seconds(runs[name], device)
            round_took += took
            if turn >= warm_ups:
                spent[name].append(took)
        longest = max(longest, round_took)
    return spent
