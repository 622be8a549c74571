"""Whether the base is still what it was when the adapter came onto it.

An adapter's files hold the adapter alone. So whatever else has moved since, such as a batch norm's
averages, a normalisation that was trained by hand or the vectors of a spectral norm, would not come
back with it. Each tensor of the base is noted by two sums, which say so however it was changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

MOST = 2**20  # numbers of a tensor that are looked at; of a larger one, so many across all of it


class Note(NamedTuple):
    """A tensor by its sums: enough to tell that it has changed, and too little to give it back."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    total: float
    size: float  # the sum of the absolute values


def note(tensor: Tensor) -> Note | None:
    """The note of a tensor; None where its numbers are not here (meta, sharded, another's type)."""
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
        return None
    flat = tensor.detach().reshape(-1)
    if flat.numel() > MOST:
        # An odd stride, so that all rows and columns of a matrix have a part in it.
        flat = flat[:: flat.numel() // MOST | 1]
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    flat = flat.double()  # some types have no sum or no abs of their own
    return Note(tensor.dtype, tuple(tensor.shape), float(flat.sum()), float(flat.abs().sum()))


def notes(modules: Mapping[str, nn.Module], left_out: Collection[Tensor]) -> dict[str, Note]:
    """{path.name: note} of the parameters of the modules, and of the buffers that are saved.

    ``left_out`` are parameters that the adapter trains.
    """
    trained = {id(tensor) for tensor in left_out}
    found = {}
    for path, module in modules.items():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is None or name in module._non_persistent_buffers_set:
                continue
            if id(tensor) not in trained and (one := note(tensor)):
                found[f"{path}.{name}" if path else name] = one
    return found


def moved(before: Mapping[str, Note], now: Mapping[str, Note]) -> list[str]:
    """Paths of the modules whose tensors have changed, each once."""
    paths = [
        name.rpartition(".")[0] or name
        for name, one in now.items()
        if name in before and not _same(before[name], one)
    ]
    return list(dict.fromkeys(paths))


def is_other(before: Mapping[str, Note], now: Mapping[str, Note]) -> bool:
    """Whether these are the notes of another base: not of the same but for rounding."""
    for name, one in now.items():
        old = before.get(name)
        if old is None or old.shape != one.shape:
            return True
        count = max(1, math.prod(old.shape))
        # Sums of as many other numbers would differ by about √count times one of them.
        if not _near(old.total, one.total, 1e-3 * max(old.size, one.size) / count**0.5):
            return True
    return False


def _same(old: Note, new: Note) -> bool:
    # Of sums in double precision the order may change; another type rounds every number.
    coarse = 1e-12
    if old.dtype != new.dtype:
        types = [one.dtype for one in (old, new) if one.dtype.is_floating_point]
        coarse = max((torch.finfo(dtype).eps for dtype in types), default=0.0)
    slack = coarse * max(old.size, new.size)
    near = _near(old.total, new.total, slack) and _near(old.size, new.size, slack)
    return old.shape == new.shape and near


def _near(a: float, b: float, slack: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return abs(a - b) <= slack
