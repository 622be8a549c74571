"""Merging: the update written into the weight, and taken out again without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minilora.checks import check_present, not_linear
from minilora.layers import LoRALayer, full_precision, is_coarse, is_sharded
from minilora.state import (
    Model,
    adaptation,
    check_enabled,
    check_unmerged,
    lora_layers,
)
from minilora.targets import original_modules, tied_weights


def merge(model: Model, keep_base: bool = True, untie: bool = False) -> Model:
    """Write every update into its weight, so that the model runs at the speed of the base.

    A merged adapter does not train: ``unmerge`` first. Its ``state_dict`` holds the merged weights
    beside A and B, and fits a merged model only; for a plain checkpoint, use
    ``remove_lora(model, keep_update=True)``.

    Args:
        model: The adapted model; changed in place.
        keep_base: Keep the original weights aside, outside ``state_dict``, so that ``unmerge``
            is exact. It costs the memory of the adapted weights once more. Without them the
            adapter can no longer be saved, unmerged or disabled: ``save`` it before.
        untie: Give a weight that is shared with another layer a copy of its own first. For a
            Hugging Face model, also set ``model.config.tie_word_embeddings = False``, or its
            ``tie_weights()`` ties them again.

    Raises:
        ValueError: No adapter, merged already, a shared weight without ``untie``, a quantized
            or sharded weight, or an update that is not finite. The model is unchanged.

    Warns:
        UserWarning: Rounding to the weight's type takes away more than half of an update.
            ``minilora.accounting.merge_losses`` tells how much of each.
    """
    adaptation(model)
    check_unmerged(model, "merge")
    check_enabled(model, "merge")
    check_present(model, "merge")
    layers = lora_layers(model)
    for path, layer in layers.items():
        if layer.bypassed:
            raise ValueError(
                f"the weight of {path!r} is read by {layer.bypassed}, beside or instead of calling "
                "the layer: there the adapter does not act, and merging would change the output; "
                "leave it out of targets"
            )
        if is_sharded(layer.weight):
            raise ValueError(
                f"the weight of {path!r} is sharded, and writing into it would be lost; save the "
                "adapter, load it onto a model that is not sharded, and merge there"
            )
        if why := not_linear(layer):
            raise ValueError(
                f"merging {path!r} would not give what it computes now, since {why}; use it "
                "unmerged"
            )
        if not isinstance(layer.weight, nn.Parameter):
            raise ValueError(
                f"the weight of {path!r} is computed, by a parametrization, a hook or a "
                "quantization, so nothing can be merged into it; take that off before, for NF4 "
                "with minilora.quantize.dequantize_linears(model)"
            )
    tied = tied_weights(original_modules(model), layers)
    if tied and not untie:
        path, others = next(iter(tied.items()))
        raise ValueError(
            f"the weight of {path!r} is shared with {', '.join(map(repr, others))}: merging would "
            "change that too. untie=True gives the adapted layer a weight of its own"
        )
    losses = {path: _checked_loss(path, layer) for path, layer in layers.items()}
    done: list[LoRALayer] = []
    try:
        for path, layer in layers.items():
            new = merged_weight(layer)
            if path in tied:
                new = nn.Parameter(new, requires_grad=False)
            old = layer.exchange(new)
            layer.aside.unmerged = old if keep_base or path in tied else None
            layer.merged = True
            done.append(layer)
    except BaseException:  # out of memory, or a key pressed: back to where it was, if it was kept
        for layer in done:
            if layer.aside.unmerged is not None:
                unmerge_layer(layer)
        raise
    rounded = {path: loss for path, loss in losses.items() if loss > 0.5}
    if rounded:
        worst = max(rounded, key=lambda path: rounded[path])
        warnings.warn(
            f"merging into {layers[worst].weight.dtype} rounds away most of the update of "
            f"{len(rounded)} of {len(layers)} layers, {rounded[worst]:.0%} of it in {worst!r}; "
            "leave the adapter unmerged, or merge into a float32 copy of the model",
            stacklevel=2,
        )
    return model


def merged_weight(layer: LoRALayer) -> Tensor:
    """The weight that merging gives the layer, rounded to the weight's own type."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(layer.weight):
        return layer.new_weight().to(layer.weight.dtype)


def merge_loss(layer: LoRALayer) -> float:
    """‖rounded update − update‖ / ‖update‖ in Frobenius norm; 0 where the update is zero.

    1 means that rounding to the type of the weight loses as much as there is.
    """
    with torch.inference_mode(False), torch.no_grad(), full_precision(layer.weight):
        update = layer.delta()
        lost = (merged_weight(layer).to(update.dtype) - layer.weight.to(update.dtype)) - update
        norm = torch.linalg.norm(update)
        return float(torch.linalg.norm(lost) / norm) if norm > 0 else 0.0


def _checked_loss(path: str, layer: LoRALayer) -> float:
    if not torch.isfinite(merged_weight(layer).float()).all():
        raise ValueError(
            f"merging {path!r} would give NaN or infinity in {layer.weight.dtype}; "
            "training diverged: lower the learning rate and train again"
        )
    return merge_loss(layer) if is_coarse(layer.weight.dtype) else 0.0


def unmerge(model: Model) -> Model:
    """Take the updates out of the weights again: the originals come back, bit for bit.

    Raises:
        ValueError: The model is not merged, or was merged with ``keep_base=False``.
    """
    adaptation(model)
    check_enabled(model, "unmerge")
    layers = [layer for layer in lora_layers(model).values() if layer.merged]
    if not layers:
        raise ValueError("the model is not merged, so there is nothing to unmerge")
    check_kept(layers)
    for layer in layers:
        unmerge_layer(layer)
    return model


@contextmanager
def merged(model: Model, untie: bool = False) -> Iterator[Model]:
    """Context manager: ``with merged(model): …`` merges, and unmerges after, also after an error.

    The weights come back as the same bits. Raises what ``merge`` raises.
    """
    merge(model, untie=untie)
    try:
        yield model
    finally:
        if any(layer.merged for layer in lora_layers(model).values()):
            unmerge(model)


def unmerge_layer(layer: LoRALayer) -> None:
    """Put back what ``merge`` kept of one layer."""
    assert layer.aside.unmerged is not None
    layer.exchange(layer.aside.unmerged)
    layer.aside.unmerged, layer.merged = None, False


def check_kept(layers: list[LoRALayer], original: bool = False) -> None:
    """Raise ValueError where the weights before merging, or the ``original`` ones, are gone."""
    if any(
        (layer.merged or layer.aside.original is not None) and is_sharded(layer.weight)
        for layer in layers
    ):
        raise ValueError(
            "the weights were sharded after the adapter had changed them, so the originals cannot "
            "take their place; save the adapter and load it onto a model that is not sharded"
        )
    if any(
        layer.merged
        and layer.aside.unmerged is None
        and not (original and layer.aside.original is not None)
        for layer in layers
    ):
        raise ValueError(
            "the model was merged with keep_base=False, so the original weights are gone; "
            "load the base model again"
        )
