"""Adding LoRA to a model, and taking it off again: everything happens in place.

Every function either does the whole of what it says or raises and leaves the model as it was.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from minilora.checks import (
    base_was_loaded,
    check_init,
    check_own_base,
    check_start,
    note_base,
    warn_of_training,
)
from minilora.config import LoRAConfig
from minilora.dora import DoRA
from minilora.encoders import allow_fast_path, leave_fast_path
from minilora.initializers import initialize
from minilora.layers import Aside, LoRALayer, TrainedCopy, is_sharded, layer_type
from minilora.merging import check_kept, merge
from minilora.state import (
    Adaptation,
    Model,
    adaptation,
    bias_of,
    check_enabled,
    check_unmerged,
    is_adapted,
    lora_layers,
    trained_copies,
    wrappers,
)
from minilora.targets import Plan, exactly, plan

# --- adding ---------------------------------------------------------------------------------


@torch.inference_mode(False)  # tensors made in inference mode cannot train later
def add_lora(model: Model, config: LoRAConfig) -> Model:
    """Freeze ``model`` and put an adapter on every layer that ``config.targets`` names.

    A and B are float32 on a half-precision base; a copied module keeps its type. Resize or tie a
    Hugging Face model's embeddings before. With several processes, add the adapter before
    DistributedDataParallel or ``fully_shard`` is called: what they do not know of, they do not
    keep equal. Buffers are not frozen: a batch norm in training mode moves its running averages,
    which are neither saved nor put back, and ``save`` warns of it; put such modules into
    ``eval()``, or name them in ``modules_to_save``.

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
    found = plan(model, config)
    check_init(config, found)
    copies = {path: make_copy(found.modules[path]) for path in found.copies}
    layers = {path: make_layer(found.modules[path], path, config) for path in found.targets}
    for path, layer in layers.items():
        initialize(layer, config.init)
        check_start(path, layer, config)
        add_magnitudes(layer, config)
    warn_of_training(found)
    # What is noted on the model must pickle and fit into a file; a type or a lambda does not.
    if callable(config.targets) or callable(config.exclude):
        config = replace(config, targets=exactly(found.targets, found.modules), exclude=None)
    if callable(config.init):
        config = replace(config, init="default")
    attach(model, config, found, layers, copies)
    return model


def attach(
    model: nn.Module,
    config: LoRAConfig,
    found: Plan,
    layers: dict[str, LoRALayer],
    copies: dict[str, TrainedCopy],
) -> None:
    """Swap finished ``layers`` and ``copies`` in and freeze the rest. Nothing here can fail."""
    before = [
        (module, name, p.requires_grad)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None
    ]
    model.requires_grad_(False)
    originals = {
        name: (found.modules[name.rpartition(".")[0]], bias.detach().clone())
        for name, bias in found.biases.items()
    }
    for bias in found.biases.values():
        bias.requires_grad_(True)
    new: list[LoRALayer | TrainedCopy] = [*layers.values(), *copies.values()]
    for wrapper in new:
        wrapper.training = wrapper.base.training
    for layer in layers.values():
        _exchange_original(layer)  # PiSSA and OLoRA have prepared what their base is to hold
    replace_modules(model, [(wrapper.base, wrapper) for wrapper in new])
    nested = leave_fast_path(found.modules.values())
    model.__dict__["_minilora"] = noted = Adaptation(config, before, originals, nested, {})
    noted.base = note_base(model)
    model.register_load_state_dict_post_hook(base_was_loaded)


def make_layer(module: nn.Module, path: str, config: LoRAConfig) -> LoRALayer:
    """The adapted form of one module: A and B allocated, not yet initialized."""
    kind = layer_type(module)
    assert kind is not None  # find_targets let it through
    return kind(
        module,
        config.rank_for(path),
        config.alpha_for(path),
        config.scale_for(path),
        config.dropout,
    )


def add_magnitudes(layer: LoRALayer, config: LoRAConfig) -> None:
    """Give the layer DoRA's magnitudes, where the config asks for them."""
    if config.use_dora:
        _exchange_original(layer)  # with PiSSA the norm is that of what the base is to hold
        try:
            layer.dora = DoRA(layer)
        finally:
            _exchange_original(layer)


def make_copy(module: nn.Module) -> TrainedCopy:
    """The module with a trainable copy beside it."""
    tuned = copy.deepcopy(module)
    tuned.requires_grad_(True)
    return TrainedCopy(module, tuned)


_SWITCHING = threading.Lock()

# --- switching ------------------------------------------------------------------------------


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Context manager: inside ``with disabled(model): …`` the model is the original one.

    No update, original biases and heads. Nests; restores after an error. Threads share a model: as
    long as one of them is inside, it is the original one for all.

    Raises:
        ValueError: There is no adapter, or it is merged and the originals were not kept.
    """
    noted = adaptation(model)
    parts, layers = wrappers(model), list(lora_layers(model).values())
    with _SWITCHING:
        if not any(part.off for part in parts):
            check_own_base(model, "disabled")
            check_kept(layers, original=True)
            _show_other(noted, layers)
        for part in parts:
            part.off += 1
    try:
        yield model
    finally:
        with _SWITCHING:
            for part in parts:
                part.off -= 1
            if not any(part.off for part in parts):  # the last to leave, who need not be the first
                _show_other(noted, layers)


def _show_other(noted: Adaptation, layers: list[LoRALayer]) -> None:
    """Exchange what is there and what is kept aside, of biases and of weights."""
    _swap_biases(noted)
    for layer in layers:
        _exchange_original(layer)


def _exchange_original(layer: LoRALayer) -> None:
    """Exchange ``base.weight`` and W₀ where that was put aside: a second call takes it back."""
    aside = layer.aside
    if aside.original is not None:
        aside.original = layer.exchange(aside.original)
    elif aside.unmerged is not None:
        aside.unmerged = layer.exchange(aside.unmerged)


def _swap_biases(noted: Adaptation) -> None:
    if any(is_sharded(bias_of(module)) for module, _ in noted.biases.values()):
        raise ValueError(
            "the trained biases are sharded, so the originals cannot take their place; save the "
            "adapter and load it onto a model that is not sharded"
        )
    # Exchanging the tensors behind a parameter keeps the optimizer's and autograd's hold on it.
    for name, (module, other) in noted.biases.items():
        bias = bias_of(module)
        noted.biases[name] = (module, bias.data)
        bias.data = other.to(bias.device, bias.dtype)
    torch.clear_autocast_cache()  # it may hold a bias in lower precision, as it was


def set_strength(model: Model, strength: float) -> Model:
    """Multiply every scale by ``strength``: 1 is as trained, 0 takes B A out, between them a blend.

    For inference; a second call replaces the first. Trained biases, copies and the magnitudes of
    DoRA do not change; for the base itself, use ``disabled``.

    Raises:
        ValueError: No adapter, ``strength`` is not finite, the adapter is merged, or it began as
            a part of the weights (PiSSA, OLoRA, MiLoRA).
    """
    adaptation(model)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(f"strength must be a number, but is {strength!r}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be finite, but is {strength}")
    check_unmerged(model, "set_strength")
    if strength != 1 and any(la.start is not None for la in lora_layers(model).values()):
        raise ValueError(
            f"init={adaptation(model).config.init!r} made A and B a part of the weights, so "
            "scaling them does not lead back to the base; save the adapter and load it again, "
            "which makes it a plain one"
        )
    for layer in lora_layers(model).values():
        layer.strength = float(strength)
    return model


# --- removing -------------------------------------------------------------------------------


def remove_lora(model: Model, keep_update: bool = False, untie: bool = False) -> Model:
    """Take the adapter off: the original modules come back, with the requires_grad they had.

    Merged or not: without ``keep_update`` the original weights come back also from a merged model,
    unless it was merged with ``keep_base=False``.

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
        check_own_base(model, "remove_lora")
        check_kept(layers, original=True)
        _show_other(noted, layers)
        for layer in layers:
            layer.aside, layer.merged = Aside(), False
    copies = list(trained_copies(model).values())
    back: list[tuple[nn.Module, nn.Module]] = [(layer, layer.base) for layer in layers]
    back += [(w, w.tuned if keep_update else w.base) for w in copies]
    replace_modules(model, back)
    # New parameters that stay take the flags of those whose place they took.
    took_place: list[tuple[Tensor, Tensor]] = []
    for w in copies:
        took_place += zip(w.base.parameters(), w.tuned.parameters(), strict=True)
    for layer in layers:
        if isinstance(layer.aside.unmerged, nn.Parameter):  # it was shared, and merge untied it
            took_place.append((layer.aside.unmerged, layer.weight))
    for module, name, flag in noted.requires_grad:
        parameter = module._parameters.get(name)
        if parameter is not None:
            parameter.requires_grad_(flag)
    for old, new in took_place:
        new.requires_grad_(old.requires_grad)
    allow_fast_path(model, noted.nested)
    del model.__dict__["_minilora"]
    hooks = model._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is base_was_loaded]:
        del hooks[key]
    return model


def replace_modules(model: nn.Module, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Put ``new`` wherever ``old`` stands; a module may stand in several places."""
    new_of: dict[int, nn.Module | None] = {id(old): new for old, new in pairs}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = new_of.get(id(child), child)
