"""Saving and loading adapters in PEFT's format: its keys, its settings, and what they mean here.

PEFT reads what ``save`` writes, and ``load`` reads what PEFT writes.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minilora.adapt import (
    add_magnitudes,
    attach,
    disabled,
    make_copy,
    make_layer,
    remove_lora,
)
from minilora.checks import (
    check_init,
    check_own_base,
    check_present,
    check_start,
    warn_of_bypassed,
    warn_of_moves,
    warn_of_training,
)
from minilora.config import LoRAConfig
from minilora.folder import (
    CONFIG_FILE,
    FLOATS,
    AdapterError,
    check_home,
    check_shape,
    checked,
    read_folder,
    write_folder,
)
from minilora.initializers import initialize, plain_config
from minilora.keys import PREFIX, Parts, fit, group
from minilora.layers import LoRAEmbedding, LoRALayer, is_sharded, layer_type, whole
from minilora.settings import from_peft, to_peft, transformed
from minilora.state import (
    Model,
    adaptation,
    bias_of,
    check_enabled,
    check_unmerged,
    is_adapted,
    lora_layers,
    take_over,
    trained_copies,
)
from minilora.targets import Plan, exactly, original_modules, plan

# --- saving ---------------------------------------------------------------------------------


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the adapter into the folder ``path``, which is made if need be.

    With PiSSA, OLoRA and MiLoRA it is the plain LoRA of rank 2r that makes the same update to W₀;
    VeRA and AdaLoRA are written as plain LoRA too.

    Killed at any moment, the folder loads as the adapter it held before or as the new one. Other
    files in it stay. Where several processes train one model, let one of them save; where the model
    is sharded (FSDP), call it in all of them, and the first writes.

    Raises:
        ValueError: No adapter; merged, disabled or at a strength other than 1; NaN or infinity.
        OSError: The folder cannot be written. It loads as before, or as the new adapter.
    """
    check_home(Path(path))
    noted = adaptation(model)
    check_unmerged(model, "save")
    check_enabled(model, "save")
    if any(layer.strength != 1 for layer in lora_layers(model).values()):
        raise ValueError(
            "the adapter's strength is not 1, and files do not hold it; "
            "call minilora.set_strength(model, 1) before save"
        )
    check_own_base(model, "save")
    check_present(model, "save")
    warn_of_moves(model)
    warn_of_bypassed(model)
    config = noted.config
    if any(layer.start is not None for layer in lora_layers(model).values()):
        config = plain_config(config)
    tensors = _tensors(model)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterError(f"{key} holds NaN or infinity: training diverged; not saved")
    if any(map(is_sharded, model.parameters())) and torch.distributed.get_rank() > 0:
        return
    write_folder(Path(path), to_peft(model, config), tensors)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    layers = lora_layers(model)
    named: dict[str, Tensor] = {}
    for path, layer in layers.items():
        a, b = _factor_names(layer)
        named[f"{path}.{a}"], named[f"{path}.{b}"] = layer.factors()
        if layer.dora is not None:
            named[f"{path}.lora_magnitude_vector"] = layer.dora.magnitude
    for name, (module, _) in adaptation(model).biases.items():
        named[_bias_key(name, layers)] = bias_of(module)
    for path, wrapper in trained_copies(model).items():
        for name, tensor in wrapper.tuned.state_dict().items():
            named[f"{path}.{name}"] = tensor
    # Clones, because safetensors refuses tensors that share memory.
    return {PREFIX + k: whole(t.detach()).cpu().contiguous().clone() for k, t in named.items()}


def _factor_names(layer: LoRALayer) -> tuple[str, str]:
    if isinstance(layer, LoRAEmbedding):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def _bias_key(name: str, layers: Mapping[str, object]) -> str:
    path = name.rpartition(".")[0]
    return f"{path}.base_layer.bias" if path in layers else name


# --- loading --------------------------------------------------------------------------------


@torch.inference_mode(False)  # tensors made in inference mode cannot train later
def load(model: Model, path: str | os.PathLike[str]) -> Model:
    """Put the adapter of the folder ``path`` on ``model``; one that is there is replaced whole.

    Args:
        model: The base model, adapted or not; changed in place.
        path: A folder that ``save`` or PEFT wrote.

    Returns:
        The same model. The adapter is trainable and computes in float32 or the base's own type.

    Raises:
        AdapterError: The folder is not an adapter, is damaged, or does not fit the model: the
            message names the file, key or shape. The model is unchanged, to the bit. Names and
            shapes are checked, the weights of the base are not.
        ValueError: The model is merged or disabled at the moment.
    """
    if is_adapted(model):
        adaptation(model)
        check_unmerged(model, "load")
        check_enabled(model, "load")
        check_own_base(model, "load")
    settings, tensors = read_folder(Path(path))
    config, named = from_peft(settings)
    modules = original_modules(model)
    parts, rest = group(tensors)
    parts, rest, renamed = fit(parts, rest, modules)
    if renamed or not named or settings.get("layers_to_transform") is not None:
        expected = parts if renamed or not named else transformed(model, config, settings, parts)
        config = replace(config, targets=exactly(list(expected), modules), exclude=None)
    try:
        found = plan(model, config, strict=False)
        check_init(config, found)
    except ValueError as error:
        raise AdapterError(f"{CONFIG_FILE} does not fit the model: {error}") from None
    with disabled(model) if is_adapted(model) else nullcontext():  # the base with its own weights
        layers = _fitted_layers(found, config, parts)
        copies = {name: make_copy(modules[name]) for name in found.copies}
        for name, wrapper in copies.items():
            _fill_copy(name, wrapper.tuned, rest)
        values: dict[str, Tensor] = {}
        for name, bias in found.biases.items():
            keys = [k for k in (_bias_key(name, layers), name) if k in rest]
            if not keys:
                raise AdapterError(f"bias={config.bias!r}, but the file has no tensor for {name!r}")
            values[name] = checked(keys[0], rest.pop(keys[0]), bias)
        too_much = [key for key, tensor in rest.items() if not _repeats_base(key, tensor, modules)]
    if too_much:
        own = modules.get(too_much[0].rpartition(".")[0])
        if own is not None and too_much[0].rpartition(".")[2] in own._parameters:
            raise AdapterError(
                f"the file holds {too_much[0]!r} itself, of shape "
                f"{tuple(rest[too_much[0]].shape)}, "
                "which the model has with other numbers or another shape, and which is neither in "
                "modules_to_save nor a trained bias. PEFT writes it where the vocabulary was "
                "resized: give the base model that weight before loading the adapter"
            )
        raise AdapterError(
            f"the file has {len(too_much)} tensor(s) that fit nothing in the model, such as "
            f"{too_much[0]!r}; {CONFIG_FILE} must name them in target_modules, "
            "modules_to_save or bias"
        )
    warn_of_training(found)
    if is_adapted(model):
        replaced = take_over(model, layers, copies, found.biases)
        remove_lora(model)
        if replaced:
            warnings.warn(
                f"load has replaced parameters of {', '.join(map(repr, replaced[:4]))}"
                f"{' …' * (len(replaced) > 4)}, since the adapter that was there has other ones; "
                "optimizers and wrappers such as DistributedDataParallel that were made before "
                "still hold those: make them anew",
                stacklevel=3,  # past the decorator
            )
    attach(model, config, found, layers, copies)
    for name, (module, _) in adaptation(model).biases.items():
        bias_of(module).data = values[name]
    return model


def _repeats_base(key: str, tensor: Tensor, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor only repeats the base, as PEFT writes some weights of adapted embeddings."""
    path, _, name = re.sub(r"\.(base_layer|original_module)\.", ".", key).rpartition(".")
    own = modules[path]._parameters.get(name) if path in modules else None
    if own is None or own.shape != tensor.shape or tensor.dtype not in FLOATS:
        return False  # before anything of the tensor's size is allocated
    return torch.equal(own.cpu(), tensor.to(own.dtype))


def _fitted_layers(found: Plan, config: LoRAConfig, parts: Parts) -> dict[str, LoRALayer]:
    """A finished layer for each target, or an error that names what is missing or too much."""
    modules, expected = found.modules, found.targets
    for path in parts:
        if path not in expected:
            whole = [copied for copied in found.copies if f"{path}.".startswith(f"{copied}.")]
            why = "target_modules does not name"
            if whole:
                why = f"modules_to_save has trained whole, as {whole[0]!r}"
            raise AdapterError(f"the file has factors for {path!r}, which {why}")
    layers = {}
    for path in expected:
        pair = parts.get(path, {})
        kind = layer_type(modules[path])
        assert kind is not None  # find_targets let it through
        shapes = kind.shapes(modules[path], config.rank_for(path))
        names = ["embedding_A", "embedding_B"] if kind is LoRAEmbedding else ["A", "B"]
        names += ["magnitude_vector"] * config.use_dora
        for name in dict.fromkeys([*names, *pair]):
            if name not in pair:
                raise AdapterError(
                    f"target_modules names {path!r}, but the file has no {name} for it"
                )
            if name not in names:
                raise AdapterError(
                    f"the file has a lora_{name} for {path!r}, but {kind.__name__} has none"
                    + " unless use_dora is set" * (name == "magnitude_vector")
                )
        for name, shape in zip(names, shapes, strict=False):
            check_shape(f"{path}: {name}", pair[name], shape)  # before anything is allocated
        try:
            layers[path] = _filled(modules[path], path, config, [pair[name] for name in names])
        except (ValueError, RuntimeError, MemoryError) as error:  # torch's own for a full memory
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(f"the adapter of {path!r} cannot be made: {error}") from None
    return layers


def _filled(
    module: nn.Module, path: str, config: LoRAConfig, values: Sequence[Tensor]
) -> LoRALayer:
    layer = make_layer(module, path, config)
    if config.init in ("pissa", "olora"):  # the file says what A and B became, not the rest
        initialize(layer, config.init)
        check_start(path, layer, config)
    add_magnitudes(layer, config)
    names = ("A", "B", "lora_magnitude_vector")
    for name, parameter, value in zip(names, layer.trained(), values, strict=False):
        parameter.data = checked(f"{path}: {name}", value, parameter)
    return layer


def _fill_copy(path: str, module: nn.Module, rest: dict[str, Tensor]) -> None:
    own = module.state_dict()
    values = {}
    for name, tensor in own.items():
        key = f"{path}.{name}"
        if key not in rest:
            raise AdapterError(f"modules_to_save names {path!r}, but the file has no {key!r}")
        values[name] = checked(key, rest.pop(key), tensor)
    module.load_state_dict(values)
