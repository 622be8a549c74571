"""How many parameters an adapter has: predicted from shapes, and counted in the model.

What training it takes in bytes and operations is predicted in `minilora.lab.predicting`, and
measured with `minilora.lab.measuring`; neither is loaded with the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from minilora.config import LoRAConfig
from minilora.layers import TrainedCopy, layer_type
from minilora.merging import merge_loss
from minilora.state import (
    adaptation,
    bias_of,
    check_unmerged,
    lora_layers,
    lora_parameters,
    trained_copies,
)
from minilora.targets import plan


def lora_size(d_out: int, d_in: int, r: int) -> int:
    """Parameters of one adapter: A is (r, d_in) and B is (d_out, r), so r · (d_in + d_out)."""
    return r * (d_in + d_out)


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters of a module; a shared one counts once, a quantized one as it was."""
    counted = sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)
    return counted if trainable_only else counted + _packed(module)


def _packed(module: nn.Module) -> int:
    # A quantized weight is no parameter. Asked of the type, since adapted layers answer for theirs.
    parts: list[Any] = [m for m in module.modules() if hasattr(type(m), "packed_parameters")]
    return sum(part.packed_parameters for part in parts)


def predict_trainable(model: nn.Module, config: LoRAConfig) -> int:
    """Number of parameters that would train after ``add_lora(model, config)``.

    The model, adapted already or not, is not changed, and nothing is allocated.

    Raises:
        ValueError: What ``add_lora`` refuses.
    """
    modules, targets, copies, biases = plan(model, config)
    total = 0
    for path in targets:
        kind = layer_type(modules[path])
        assert kind is not None  # plan let it through
        a_shape, b_shape = kind.shapes(modules[path], config.rank_for(path))
        total += prod(a_shape) + prod(b_shape) + (b_shape[0] if config.use_dora else 0)
    total += sum(count_parameters(modules[path]) for path in copies)
    return total + sum(bias.numel() for bias in biases.values())


@dataclass(frozen=True)
class Summary:
    """A table of what is trained. ``str()`` draws it.

    Attributes:
        rows: One (path, type, r, scale, parameters) for each adapted layer; r and scale are
            None for biases and copies.
        trainable: Number of parameters that train. ``total``: of all, the originals of copied
            modules not counted twice. ``share``: trainable / total.
        merged: Whether the adapter is merged, and so does not train at the moment.
        others: Number of parameters that train and are no part of the adapter.
    """

    rows: tuple[tuple[str, str, int | None, float | None, int], ...]
    trainable: int
    total: int
    merged: bool = False
    others: int = 0

    @property
    def share(self) -> float:
        return self.trainable / self.total

    def __str__(self) -> str:
        header = ("path", "type", "r", "scale", "parameters")
        body = [
            (path, kind, "" if r is None else str(r), "" if s is None else f"{s:g}", f"{n:,}")
            for path, kind, r, s, n in self.rows
        ]
        widths = [max(len(row[i]) for row in [header, *body]) for i in range(5)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [header, *body]
        ]
        rule = "-" * len(lines[0])
        total = f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})"
        if self.others:
            total += (
                f"; {self.others:,} of them are no part of the adapter, whose files will not hold "
                "them"
            )
        if self.merged:
            total += "; merged: A and B do not train until unmerge"
        return "\n".join([lines[0], rule, *lines[1:], rule, total])


def summary(model: nn.Module) -> Summary:
    """What the adapter trains, layer by layer, and its share of the whole.

    Raises:
        ValueError: The model has no adapter.
    """
    noted = adaptation(model)
    rows: list[tuple[str, str, int | None, float | None, int]] = []
    for path, layer in lora_layers(model).items():
        size = sum(p.numel() for p in layer.trained() if p.requires_grad)
        rows.append((path, type(layer.base).__name__, layer.r, layer.scale, size))
    for path, (module, _) in noted.biases.items():
        rows.append((path, "bias", None, None, bias_of(module).numel()))
    for path, wrapper in trained_copies(model).items():
        kind = type(wrapper.tuned).__name__ + " (copy)"
        rows.append((path, kind, None, None, count_parameters(wrapper.tuned)))
    used = dict.fromkeys(_parameters_in_use(model))
    total = sum(p.numel() for p in used) + _packed(model)
    trainable = sum(p.numel() for p in used if p.requires_grad)
    others = trainable - sum(p.numel() for p in lora_parameters(model) if p.requires_grad)
    merged = any(layer.merged for layer in lora_layers(model).values())
    return Summary(tuple(rows), trainable, total, merged, others)


def merge_losses(model: nn.Module) -> dict[str, float]:
    """{path: share of the update that merging would round away}, for each adapted layer.

    The share is ‖rounded update − update‖ / ‖update‖ in Frobenius norm, about 0 in float32. In
    bfloat16, whose numbers lie 2⁻⁸ of their size apart, it comes near 1 once the entries of the
    update are a few hundred times smaller than those of the weight. It is a warning: what the
    model loses by it, the loss of the merged model says (chapter 17).

    Raises:
        ValueError: The model has no adapter, or it is merged.
    """
    adaptation(model)
    check_unmerged(model, "merge_losses")
    return {path: merge_loss(layer) for path, layer in lora_layers(model).items()}


def _parameters_in_use(module: nn.Module) -> Iterator[nn.Parameter]:
    if isinstance(module, TrainedCopy):  # its base is kept, but not used
        module = module.tuned
    yield from module.parameters(recurse=False)
    for child in module.children():
        yield from _parameters_in_use(child)
