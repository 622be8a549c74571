"""Many adapters over one base, in one batch: row i of a batch goes through adapter i.

The base's product is computed once for the whole batch, as if there were no adapter. Beside it
each row takes its own A and B out of a stack, and two batched products add its update [1, 2]::

    bank = AdapterBank(model)
    bank.add("code", "adapters/code")
    bank.add("prose", "adapters/prose")
    with torch.no_grad(), bank.rows(["code", "prose", None]):  # None: the base
        logits = model(ids)  # ids of shape (3, …)
    bank.close()

An adapter with trained biases, with a head of its own or with DoRA cannot share a batch, and is
refused; it can be merged.

Sources: [1] Chen et al. 2023 (Punica), arXiv 2310.18547. [2] Sheng et al. 2023 (S-LoRA),
arXiv 2311.03285.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minilora.adapt import remove_lora, replace_modules
from minilora.files import load
from minilora.folder import AdapterError
from minilora.layers import LoRAHFConv1D, LoRALayer, LoRALinear, own_or_of_base
from minilora.state import adaptation, is_adapted, lora_layers


class Rows:
    """Which adapter each row of the batch takes; all served layers of a model look at one."""

    index: Tensor | None = None  # (rows,): a place in the stacks; None: no adapter at all


class ServedLinear(nn.Module):
    """A linear layer with a stack of n adapters, all padded to the largest rank R with zeros.

    Attributes:
        base: The original layer.
        A: (n, R, in). ``B``: (n, out, R), multiplied by each adapter's scale. Place 0 is all
            zeros: the base.
    """

    is_served = True  # targets.py looks for it
    A: Tensor
    B: Tensor

    def __init__(self, base: nn.Module, d_in: int, d_out: int, rows: Rows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        weight: Any = base.weight  # of a quantized layer it is computed, and no parameter
        like = weight.detach()
        self.register_buffer("A", like.new_zeros(1, 0, d_in), persistent=False)
        self.register_buffer("B", like.new_zeros(1, d_out, 0), persistent=False)

    def __getattr__(self, name: str) -> Any:
        return own_or_of_base(self, name)

    def push(self, A: Tensor | None, B: Tensor | None) -> None:
        """Add an adapter at the end: A of shape (r, in), B of shape (out, r), or None for none."""
        if A is None or B is None:
            A, B = self.A.new_zeros(0, self.A.shape[2]), self.B.new_zeros(self.B.shape[1], 0)
        R = max(self.A.shape[1], len(A))
        old = _padded(self.A, R, 1), _padded(self.B, R, 2)
        A, B = _padded(A.to(self.A)[None], R, 1), _padded(B.to(self.B)[None], R, 2)
        self.A, self.B = torch.cat([old[0], A]), torch.cat([old[1], B])

    def drop(self, place: int) -> None:
        """Take the adapter at ``place`` out; those behind it move up."""
        keep = [i for i in range(len(self.A)) if i != place]
        self.A, self.B = self.A[keep], self.B[keep]

    def forward(self, x: Tensor) -> Tensor:
        """(rows, …, in) → (rows, …, out)."""
        y: Tensor = self.base(x)
        index = self.rows.index
        if index is None or self.A.shape[1] == 0:
            return y
        if x.dim() < 2 or len(x) != len(index):
            raise ValueError(
                f"rows named {len(index)} adapters, but a layer was given an input of shape "
                f"{tuple(x.shape)}; its first axis must count the rows of the batch"
            )
        A, B = self.A[index], self.B[index]  # (rows, R, in), (rows, out, R)
        narrow = torch.bmm(x.flatten(1, -2) if x.dim() > 2 else x[:, None], A.mT)
        return y + torch.bmm(narrow, B.mT).view_as(y)


def _padded(stack: Tensor, size: int, axis: int) -> Tensor:
    shape = list(stack.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([stack, stack.new_zeros(shape)], dim=axis)


class AdapterBank:
    """Named adapters on one model; a batch may mix them. For inference.

    ``with AdapterBank(model) as bank: …`` closes it at the end.

    Args:
        model: A model without an adapter; changed in place until ``close``.
    """

    def __init__(self, model: nn.Module) -> None:
        if is_adapted(model) or any(isinstance(m, ServedLinear) for m in model.modules()):
            raise ValueError(
                "the model has adapters already; call minilora.remove_lora(model), or close the "
                "other bank, first"
            )
        self.model = model
        self.names: list[str] = []
        self._rows = Rows()
        self._turn = threading.RLock()  # who is inside `rows`
        self._closed = False
        self._served: dict[str, ServedLinear] = {}

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """Read the adapter of the folder ``path`` and call it ``name``. The others stay.

        Raises:
            ValueError: The name is taken or empty, or a batch is running.
            AdapterError: As in ``minilora.load``; or the adapter is more than A and B on linear
                layers. The bank and the model are unchanged.
        """
        if not name or name in self.names:
            raise ValueError(f"the name {name!r} is {'taken' if name else 'empty'}; choose another")
        self._check_idle("add")
        if self._closed or is_adapted(self.model):
            raise ValueError(
                "the bank is closed, or the model has been adapted since; make a new AdapterBank "
                "of a model without an adapter"
            )
        self._show(False)
        try:
            load(self.model, path)
            try:
                found = self._plain_factors(name)
            finally:
                remove_lora(self.model)
            for where, (layer, _, _) in found.items():
                if where not in self._served:
                    self._served[where] = self._new(layer)
            for where, served in self._served.items():
                served.push(*(found[where][1:] if where in found else (None, None)))
            self.names.append(name)
        finally:
            self._show(True)

    def _plain_factors(self, name: str) -> dict[str, tuple[LoRALayer, Tensor, Tensor]]:
        noted = adaptation(self.model)
        more = [*noted.biases, *noted.config.modules_to_save]
        if more or noted.config.use_dora:
            raise AdapterError(
                f"the adapter {name!r} changes more than A and B add "
                f"({', '.join(map(repr, more)) or 'DoRA magnitudes'}), which cannot be mixed in "
                "one batch; merge it instead"
            )
        found: dict[str, tuple[LoRALayer, Tensor, Tensor]] = {}
        for path, layer in lora_layers(self.model).items():
            if not isinstance(layer, (LoRALinear, LoRAHFConv1D)):
                raise AdapterError(
                    f"the adapter {name!r} is on {path!r}, a {type(layer.base).__name__}; a bank "
                    "serves linear layers"
                )
            A, B = layer.factors()
            found[path] = layer, A.detach(), B.detach() * layer.scale
        return found

    def _new(self, layer: LoRALayer) -> ServedLinear:
        served = ServedLinear(layer.base, layer.A.shape[1], layer.B.shape[0], self._rows)
        for _ in self.names:  # those that were here before leave this layer alone
            served.push(None, None)
        return served

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ValueError: There is none of this name, or a batch is running.
        """
        self._check_idle("remove")
        place = self._place(name)
        for served in self._served.values():
            served.drop(place)
        self.names.remove(name)

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[nn.Module]:
        """Inside ``with bank.rows(names): …`` row i of each batch takes the adapter ``names[i]``.

        None takes the base. Outside, every row takes the base. Nests; restores after an error. One
        thread at a time is inside: others wait, since they share the model.

        Raises:
            ValueError: A name that the bank does not know. In the model: a layer whose input has
                another number of rows.
        """
        if isinstance(names, str):
            raise TypeError(f"rows needs a list with a name for each row, but got {names!r}")
        places = [0 if name is None else self._place(name) for name in names]
        device = next(iter(self._served.values())).A.device if self._served else None
        with self._turn:
            before = self._rows.index
            self._rows.index = torch.tensor(places, device=device)
            try:
                yield self.model
            finally:
                self._rows.index = before

    def close(self) -> None:
        """Put the original layers back and forget all adapters."""
        self._check_idle("close")
        self._show(False)
        self.names, self._served, self._closed = [], {}, True

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def nbytes(self) -> int:
        """Bytes of all the stacks, padding included."""
        stacks = [t for served in self._served.values() for t in (served.A, served.B)]
        return sum(t.numel() * t.element_size() for t in stacks)

    def _place(self, name: str) -> int:
        if name not in self.names:
            known = ", ".join(map(repr, self.names)) or "none"
            raise ValueError(f"the bank has no adapter {name!r}; it has {known}")
        return self.names.index(name) + 1

    def _check_idle(self, what: str) -> None:
        if self._rows.index is not None:
            raise ValueError(f"{what} was called inside rows(…); call it outside")

    def _show(self, on: bool) -> None:
        pairs: list[tuple[nn.Module, nn.Module]] = [(s.base, s) for s in self._served.values()]
        replace_modules(self.model, pairs if on else [(s, base) for base, s in pairs])
