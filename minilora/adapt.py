"""Adding LoRA to a model, and taking it off again: everything happens in place.

Every function either does the whole of what it says or raises and leaves the model as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from minilora.config import LoRAConfig
from minilora.layers import LoRALayer, TrainedCopy
from minilora.targets import (
    exactly,
    find_biases,
    layer_type,
    original_modules,
    plan,
    tied_weights,
)

Model = TypeVar("Model", bound=nn.Module)
ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


@dataclass
class Adaptation:
    """What ``add_lora`` notes on the model, so that ``remove_lora`` can undo it to the letter."""

    config: LoRAConfig
    requires_grad: list[tuple[nn.Parameter, bool]]  # as it was before
    biases: dict[str, tuple[nn.Parameter, Tensor]]  # the trained ones, with the original values
    nested: list[nn.TransformerEncoder]  # those whose use of nested tensors was turned off


# --- adding ---------------------------------------------------------------------------------


def add_lora(model: Model, config: LoRAConfig) -> Model:
    """Freeze ``model`` and put an adapter on every layer that ``config.targets`` names.

    Args:
        model: Any module; changed in place. Paths and ``isinstance(model, …)`` stay as they are.
        config: What to adapt and how.

    Returns:
        The same object, for chaining.

    Raises:
        ValueError: Nothing matches, a named target matches nothing, a match cannot be adapted,
            or the model has an adapter already. The model is unchanged.
    """
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"add_lora needs a LoRAConfig, but got {type(config).__name__}")
    if is_adapted(model):
        raise ValueError(
            "the model has an adapter already; call minilora.remove_lora(model) first "
            "(keep_update=True keeps what it learnt)"
        )
    modules, targets, copied = plan(model, config)
    copies = {path: make_copy(modules[path]) for path in copied}
    layers = {path: make_layer(modules[path], path, config) for path in targets}
    for layer in layers.values():
        layer.initialize(config.init)
    # What is noted on the model must pickle and fit into a file; a type or a lambda does not.
    if callable(config.targets) or callable(config.exclude):
        config = replace(config, targets=exactly(targets, modules), exclude=None)
    if callable(config.init):
        config = replace(config, init="default")
    attach(model, config, layers, copies)
    return model


def attach(
    model: nn.Module,
    config: LoRAConfig,
    layers: dict[str, LoRALayer],
    copies: dict[str, TrainedCopy],
) -> None:
    """Swap finished ``layers`` and ``copies`` in and freeze the rest. Nothing here can fail."""
    modules = original_modules(model)
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    biases = find_biases(modules, config, layers, copies)
    originals = {name: (p, p.detach().clone()) for name, p in biases.items()}
    for bias in biases.values():
        bias.requires_grad_(True)
    wrappers: list[LoRALayer | TrainedCopy] = [*layers.values(), *copies.values()]
    for wrapper in wrappers:
        wrapper.training = wrapper.base.training
    _replace(model, [(wrapper.base, wrapper) for wrapper in wrappers])
    encoders = [m for m in modules.values() if isinstance(m, ENCODERS) and is_adapted(m)]
    nested = []
    for encoder in encoders:
        if isinstance(encoder, nn.TransformerEncoderLayer):
            encoder.register_forward_pre_hook(_no_fast_path)
        elif getattr(encoder, "use_nested_tensor", False):  # only the fast path can read them
            encoder.use_nested_tensor = False
            nested.append(encoder)
    model.__dict__["_minilora"] = Adaptation(config, before, originals, nested)


def make_layer(module: nn.Module, path: str, config: LoRAConfig) -> LoRALayer:
    """The adapted form of one module: A and B allocated, not yet initialized."""
    sizes = config.rank_for(path), config.alpha_for(path), config.scale_for(path), config.dropout
    return layer_type(module)(module, *sizes)


def make_copy(module: nn.Module) -> TrainedCopy:
    """The module with a trainable copy beside it."""
    tuned = copy.deepcopy(module)
    tuned.requires_grad_(True)
    return TrainedCopy(module, tuned)


def _no_fast_path(module: nn.Module, args: tuple[object, ...]) -> None:
    """A hook that does nothing: its presence keeps PyTorch's encoder layers off their fast path.

    In eval mode that path reads ``linear1.weight`` itself and so passes an adapter by.
    """


# --- looking --------------------------------------------------------------------------------


def adaptation(model: nn.Module) -> Adaptation:
    """What ``add_lora`` noted.

    Raises:
        ValueError: The model has no adapter.
    """
    noted = model.__dict__.get("_minilora")
    if noted is None:
        if is_adapted(model):
            raise ValueError("this is not the module that add_lora was given; pass that one")
        raise ValueError("the model has no adapter; call minilora.add_lora first")
    return noted


def is_adapted(model: nn.Module) -> bool:
    """Whether there is an adapter anywhere in the model."""
    return any(isinstance(m, (LoRALayer, TrainedCopy)) for m in model.modules())


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """{path: layer} of the adapted layers, in the model's order; empty without an adapter."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALayer)}


def trained_copies(model: nn.Module) -> dict[str, TrainedCopy]:
    """{path: wrapper} of the modules that ``modules_to_save`` named."""
    return {path: m for path, m in model.named_modules() if isinstance(m, TrainedCopy)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Everything that the adapter trains: A and B, and the biases and copies of the config.

    Returns:
        A list for an optimizer, without duplicates, in the model's order.

    Raises:
        ValueError: The model has no adapter.
    """
    noted = adaptation(model)
    parameters = [p for layer in lora_layers(model).values() for p in (layer.A, layer.B)]
    parameters += [bias for bias, _ in noted.biases.values()]
    for wrapper in trained_copies(model).values():
        parameters += wrapper.tuned.parameters()
    return list(dict.fromkeys(parameters))


# --- switching ------------------------------------------------------------------------------


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Context manager: inside ``with disabled(model): …`` the model is the original one.

    No update, original biases and heads. Nests; restores after an error.

    Raises:
        ValueError: There is no adapter, or it is merged and the originals were not kept.
    """
    noted = adaptation(model)
    layers, wrappers = list(lora_layers(model).values()), _all_wrappers(model)
    outermost = not any(w.off for w in wrappers)
    merged_now = [layer for layer in layers if layer.merged]
    if outermost:
        _check_kept(layers)
        for layer in merged_now:
            _swap_weight(layer)
        _swap_biases(noted)
    for w in wrappers:
        w.off += 1
    try:
        yield model
    finally:
        for w in wrappers:
            w.off -= 1
        if outermost:
            _swap_biases(noted)
            for layer in merged_now:
                _swap_weight(layer)


def _all_wrappers(model: nn.Module) -> list[LoRALayer | TrainedCopy]:
    return [m for m in model.modules() if isinstance(m, (LoRALayer, TrainedCopy))]


def _swap_biases(noted: Adaptation) -> None:
    # Exchanging the tensors behind a parameter keeps the optimizer's and autograd's hold on it.
    for name, (bias, other) in noted.biases.items():
        other = other.to(bias.device, bias.dtype)
        noted.biases[name] = (bias, bias.data)
        bias.data = other


def set_strength(model: Model, strength: float) -> Model:
    """Multiply every scale by ``strength``: 1 is as trained, 0 the base, between them a blend.

    For inference; a second call replaces the first. Trained biases and copies do not change.

    Raises:
        ValueError: No adapter, ``strength`` is not finite, or the adapter is merged.
    """
    adaptation(model)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(f"strength must be a number, but is {strength!r}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be finite, but is {strength}")
    check_unmerged(model, "set_strength")
    for layer in lora_layers(model).values():
        layer.strength = float(strength)
    return model


# --- merging --------------------------------------------------------------------------------


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
        untie: Give a weight that is shared with another layer a copy of its own first.

    Raises:
        ValueError: No adapter, merged already, a shared weight without ``untie``, or an update
            that is not finite. The model is unchanged.
    """
    adaptation(model)
    check_unmerged(model, "merge")
    check_enabled(model, "merge")
    layers = lora_layers(model)
    for path, layer in layers.items():
        if not isinstance(layer.weight, nn.Parameter):
            raise ValueError(
                f"the weight of {path!r} is computed, by a parametrization or a hook, so nothing "
                "can be merged into it; take that off before add_lora"
            )
    tied = tied_weights(model, layers)
    if tied and not untie:
        path, others = next(iter(tied.items()))
        raise ValueError(
            f"the weight of {path!r} is shared with {', '.join(map(repr, others))}: merging would "
            "change that too. merge(model, untie=True) gives the adapted layer a weight of its own"
        )
    for path, layer in layers.items():
        if not torch.isfinite(_merged_weight(layer)).all():
            raise ValueError(
                f"merging {path!r} would give NaN or infinity in {layer.weight.dtype}; "
                "training diverged: lower the learning rate and train again"
            )
    done: list[LoRALayer] = []
    try:
        for path, layer in layers.items():
            weight, new = layer.weight, _merged_weight(layer)
            if path in tied:
                layer._kept = [weight]
                layer.base.weight = nn.Parameter(new, requires_grad=False)
            else:
                layer._kept = [weight.data] if keep_base else []
                weight.data = new
            layer.merged = True
            done.append(layer)
    except BaseException:  # out of memory, or a key pressed: back to where it was, if it was kept
        if keep_base:
            for layer in done:
                _unmerge_layer(layer)
        raise
    return model


def _merged_weight(layer: LoRALayer) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return (layer.weight + layer.delta()).to(layer.weight.dtype)


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
    _check_kept(layers)
    for layer in layers:
        _unmerge_layer(layer)
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


def _unmerge_layer(layer: LoRALayer) -> None:
    _swap_weight(layer)
    layer._kept = []
    layer.merged = False


def _swap_weight(layer: LoRALayer) -> None:
    weight, kept = layer.weight, layer._kept[0]
    if isinstance(kept, nn.Parameter):  # untied: the whole parameter was exchanged
        layer.base.weight, layer._kept = kept, [weight]
    else:
        layer._kept = [weight.data]
        weight.data = kept.to(weight.device, weight.dtype)


def _check_kept(layers: list[LoRALayer]) -> None:
    if any(layer.merged and not layer._kept for layer in layers):
        raise ValueError(
            "the model was merged with keep_base=False, so the original weights are gone; "
            "load the base model again"
        )


def check_unmerged(model: nn.Module, what: str) -> None:
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError(f"{what} needs an adapter that is not merged; call minilora.unmerge first")


def check_enabled(model: nn.Module, what: str) -> None:
    if any(w.off for w in _all_wrappers(model)):
        raise ValueError(f"{what} was called inside disabled(model); call it outside")


# --- removing -------------------------------------------------------------------------------


def remove_lora(model: Model, keep_update: bool = False, untie: bool = False) -> Model:
    """Take the adapter off: the original modules come back, with the requires_grad they had.

    Args:
        model: The adapted model; changed in place.
        keep_update: Leave plain layers with the update merged in, trained biases and copies.
        untie: As in ``merge``, for ``keep_update=True``.

    Raises:
        ValueError: No adapter; merged without the originals kept; or what ``merge`` refuses.
    """
    noted = adaptation(model)
    check_enabled(model, "remove_lora")
    layers = list(lora_layers(model).values())
    if keep_update:
        if not any(layer.merged for layer in layers):
            merge(model, untie=untie)
    else:
        _check_kept(layers)
        for layer in layers:
            if layer.merged:
                _unmerge_layer(layer)
        _swap_biases(noted)
    copies = list(trained_copies(model).values())
    back: list[tuple[nn.Module, nn.Module]] = [(layer, layer.base) for layer in layers]
    back += [(w, w.tuned if keep_update else w.base) for w in copies]
    _replace(model, back)
    # New parameters that stay take the flags of those whose place they took.
    took_place: list[tuple[Tensor, Tensor]] = []
    for w in copies:
        took_place += zip(w.base.parameters(), w.tuned.parameters(), strict=True)
    for layer in layers:
        # Only an untied weight is kept as a parameter.
        took_place += [(k, layer.weight) for k in layer._kept if isinstance(k, nn.Parameter)]
    for parameter, flag in noted.requires_grad:
        parameter.requires_grad_(flag)
    for old, new in took_place:
        new.requires_grad_(old.requires_grad)
    for encoder in noted.nested:
        encoder.use_nested_tensor = True
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _no_fast_path:
                del module._forward_pre_hooks[key]
    del model.__dict__["_minilora"]
    return model


def _replace(model: nn.Module, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Put ``new`` wherever ``old`` stands; a module may stand in several places."""
    new_of: dict[int, nn.Module | None] = {id(old): new for old, new in pairs}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = new_of.get(id(child), child)
