"""Saving and loading adapters in PEFT's format: its keys, its settings, and what they mean here.

PEFT reads what ``save`` writes, and ``load`` reads what PEFT writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilora.adapt import (
    add_magnitudes,
    attach,
    check_init,
    disabled,
    make_copy,
    make_layer,
    remove_lora,
)
from minilora.config import LoRAConfig
from minilora.folder import (
    CONFIG_FILE,
    FLOATS,
    TENSOR_FILE,
    AdapterError,
    check_shape,
    checked,
    is_quick,
    read_folder,
    write_folder,
)
from minilora.initializers import initialize, plain_config
from minilora.layers import LoRAEmbedding, LoRALayer, is_sharded, layer_type, whole
from minilora.state import (
    Model,
    adaptation,
    bias_of,
    check_enabled,
    check_unmerged,
    is_adapted,
    lora_layers,
    trained_copies,
    warn_of_averages,
)
from minilora.targets import Plan, exactly, original_modules, plan

PREFIX = "base_model.model."

# Settings of PEFT's config that say nothing about what the adapter computes.
HARMLESS = {
    *("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "megatron_core", "qalora_group_size", "eva_config", "corda_config"),
    *("lora_ga_config", "loftq_config", "layers_pattern", "runtime_config", "fan_in_fan_out"),
    "ensure_weight_tying",
}
# Initialisations that leave the base weights alone, so that the tensors say everything, and
# those that change them in a way that can be repeated.
KNOWN_INITS = (True, False, None, "gaussian", "pissa", "olora", "eva", "orthogonal")


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
    noted = adaptation(model)
    check_unmerged(model, "save")
    check_enabled(model, "save")
    if any(layer.strength != 1 for layer in lora_layers(model).values()):
        raise ValueError(
            "the adapter's strength is not 1, and files do not hold it; "
            "call minilora.set_strength(model, 1) before save"
        )
    warn_of_averages(model)
    config = noted.config
    if any(layer.start is not None for layer in lora_layers(model).values()):
        config = plain_config(config)
    tensors = _tensors(model)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterError(f"{key} holds NaN or infinity: training diverged; not saved")
    if any(map(is_sharded, model.parameters())) and torch.distributed.get_rank() > 0:
        return
    write_folder(Path(path), _to_peft(model, config), tensors)


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
    path = name.removesuffix("bias").removesuffix(".")
    return f"{path}.base_layer.bias" if path in layers else name


def _to_peft(model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
    targets, exclude = config.targets, config.exclude
    adapted = [la for la in lora_layers(model).values() if not isinstance(la, LoRAEmbedding)]
    if targets == "all-linear" or exclude == "all-linear":
        targets, exclude = exactly(list(lora_layers(model)), original_modules(model)), None
    return {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "task_type": None,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _names(targets),
        "exclude_modules": _names(exclude),
        "bias": config.bias,
        # PEFT wants it so where weights are (in, out), and corrects it layer by layer.
        "fan_in_fan_out": bool(adapted) and all(la.out_axis for la in adapted),
        "use_rslora": config.scaling == "rslora",
        "use_dora": config.use_dora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "modules_to_save": list(config.modules_to_save) or None,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
    }


def _names(targets: Any) -> list[str] | str | None:
    return targets if targets is None or isinstance(targets, str) else sorted(targets)


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
    settings, tensors = read_folder(Path(path))
    modules = original_modules(model)
    parts, rest = _group(tensors)
    for key in parts:
        if key not in modules:
            raise AdapterError(
                f"the file has factors for {key!r}, but the model has no such module; "
                "is it the base model that the adapter was trained on?"
            )
    config = _from_peft(settings, exactly(list(parts), modules))
    try:
        found = plan(model, config, strict=False, modules=modules)
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
    with disabled(model) if is_adapted(model) else nullcontext():  # the base has its own biases
        too_much = [key for key, tensor in rest.items() if not _repeats_base(key, tensor, modules)]
    if too_much:
        raise AdapterError(
            f"the file has {len(too_much)} tensor(s) that fit nothing in the model, such as "
            f"{too_much[0]!r}; {CONFIG_FILE} must name them in target_modules, "
            "modules_to_save or bias"
        )
    if is_adapted(model):
        remove_lora(model)
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


def _from_peft(settings: dict[str, Any], found: list[str] | str) -> LoRAConfig:
    """The config of PEFT's settings; where they name no targets, those ``found`` in the file."""
    settings = dict(settings)
    kind = settings.pop("peft_type", None)
    if kind != "LORA":
        raise AdapterError(f"{CONFIG_FILE}: peft_type must be 'LORA', but is {kind!r}")
    missing = {"r", "lora_alpha"} - settings.keys()
    if missing:
        raise AdapterError(
            f"{CONFIG_FILE} lacks {' and '.join(map(repr, sorted(missing)))}, without which the "
            "scale of the update is unknown"
        )
    init = settings.pop("init_lora_weights", True)
    if init not in KNOWN_INITS:
        raise AdapterError(
            f"{CONFIG_FILE}: init_lora_weights={init!r} changes the base weights in a way that "
            "cannot be repeated from the file; convert the adapter to plain LoRA with PEFT first"
        )
    flags = {name: settings.pop(name, None) or False for name in ("use_rslora", "use_dora")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise AdapterError(f"{CONFIG_FILE}: {name} must be true or false, but is {flag!r}")
    try:
        config = LoRAConfig(
            r=settings.pop("r"),
            alpha=settings.pop("lora_alpha"),
            targets=settings.pop("target_modules", None) or found,
            exclude=settings.pop("exclude_modules", None) or None,
            dropout=settings.pop("lora_dropout", 0.0),
            scaling="rslora" if flags["use_rslora"] else "standard",
            init=init if init in ("gaussian", "pissa", "olora") else "default",
            use_dora=flags["use_dora"],
            bias=settings.pop("bias", "none"),
            rank_pattern=settings.pop("rank_pattern", None) or {},
            alpha_pattern=settings.pop("alpha_pattern", None) or {},
            modules_to_save=settings.pop("modules_to_save", None) or (),
        )
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{CONFIG_FILE}: {error}") from None
    if not all(is_quick(x) for x in (config.targets, config.exclude) if isinstance(x, str)):
        config = replace(config, targets=found, exclude=None)  # the keys say it as well
    for name in ("rank_pattern", "alpha_pattern"):
        if slow := [key for key in getattr(config, name) if not is_quick(key)]:
            raise AdapterError(
                f"{CONFIG_FILE}: {name} has the key {slow[0]!r}, which repeats too much to be "
                "matched in reasonable time; write out the names"
            )
    for name, value in settings.items():
        if value and name not in HARMLESS:
            raise AdapterError(
                f"{CONFIG_FILE} sets {name!r} to {value!r}, which minilora does not support"
            )
    return config


def _group(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({module path: {"A": …, "B": …}}, everything else), names as the model has them."""
    factor = re.compile(
        r"(.+)\.lora_((?:embedding_)?[AB]|magnitude_vector)(?:\.default)?(?:\.weight)?"
    )
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        hit = factor.fullmatch(name)
        pair = parts.setdefault(hit[1], {}) if hit else rest
        short = hit[2] if hit else re.sub(r"\.modules_to_save\.(default\.)?", ".", name)
        other = pair.get(short)
        if other is not None and (other.dtype != tensor.dtype or not torch.equal(other, tensor)):
            raise AdapterError(f"the file has two tensors for {name!r}")
        pair[short] = tensor
    if not parts:
        raise AdapterError(f"{TENSOR_FILE} holds no LoRA factors")
    return parts, rest


def _fitted_layers(
    plan: Plan, config: LoRAConfig, parts: dict[str, dict[str, Tensor]]
) -> dict[str, LoRALayer]:
    """A finished layer for each target, or an error that names what is missing or too much."""
    modules, expected = plan.modules, plan.targets
    for path in parts:
        if path not in expected:
            raise AdapterError(
                f"the file has factors for {path!r}, which target_modules does not name"
            )
    layers = {}
    for path in expected:
        found = parts.get(path, {})
        kind = layer_type(modules[path])
        assert kind is not None  # find_targets let it through
        shapes = kind.shapes(modules[path], config.rank_for(path))
        names = ["embedding_A", "embedding_B"] if kind is LoRAEmbedding else ["A", "B"]
        names += ["magnitude_vector"] * config.use_dora
        for name in dict.fromkeys([*names, *found]):
            if name not in found:
                raise AdapterError(
                    f"target_modules names {path!r}, but the file has no {name} for it"
                )
            if name not in names:
                raise AdapterError(
                    f"the file has a lora_{name} for {path!r}, but {kind.__name__} has none"
                    + " unless use_dora is set" * (name == "magnitude_vector")
                )
        for name, shape in zip(names, shapes, strict=False):
            check_shape(f"{path}: {name}", found[name], shape)  # before anything is allocated
        try:
            layers[path] = _filled(modules[path], path, config, [found[name] for name in names])
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
