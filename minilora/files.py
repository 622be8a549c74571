"""Saving and loading adapters in PEFT's format: a JSON config and a safetensors file.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. PEFT reads what ``save``
writes, and ``load`` reads what PEFT writes. No pickle is read, ever.

The safetensors file also carries the config, and an id that both files share. So a save that was
killed between the two files can be told from a config that somebody edited by hand: equal ids,
the config file holds; different ids, the config inside the safetensors file does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from minilora.adapt import (
    adaptation,
    attach,
    check_enabled,
    check_unmerged,
    disabled,
    is_adapted,
    lora_layers,
    make_copy,
    make_layer,
    remove_lora,
    trained_copies,
)
from minilora.config import LoRAConfig
from minilora.layers import LoRAEmbedding, LoRALayer
from minilora.targets import (
    exactly,
    find_biases,
    find_copies,
    find_targets,
    layer_type,
    original_modules,
)

Model = TypeVar("Model", bound=nn.Module)

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Settings of PEFT's config that say nothing about what the adapter computes.
HARMLESS = {
    *("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "megatron_core", "qalora_group_size", "eva_config", "corda_config"),
    *("lora_ga_config", "loftq_config", "layers_pattern", "runtime_config", "fan_in_fan_out"),
    "ensure_weight_tying",
}
# Initialisations that leave the base weights alone, so that the tensors say everything.
KNOWN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterError(ValueError):
    """A folder that cannot be loaded, or an adapter that cannot be saved, and why."""


# --- saving ---------------------------------------------------------------------------------


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the adapter into the folder ``path``, which is made if need be.

    Killed at any moment, the folder loads as the adapter it held before or as the new one. Other
    files in it stay. Where several processes train one model, let one of them save.

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
    tensors = _tensors(model)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterError(f"{key} holds NaN or infinity: training diverged; not saved")
    config = _to_peft(model, noted.config)
    content = json.dumps(config, sort_keys=True).encode() + safetensors.torch.save(tensors)
    config["auto_mapping"]["minilora_id"] = hashlib.sha256(content).hexdigest()[:16]
    text = json.dumps(config, indent=2, sort_keys=True)
    metadata = {"format": "pt", CONFIG_FILE: text}

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TENSOR_FILE, CONFIG_FILE):
        for left_over in folder.glob(f".{name}.*.tmp"):  # of a save that was killed
            left_over.unlink(missing_ok=True)
    _write(folder / TENSOR_FILE, safetensors.torch.save(tensors, metadata=metadata))
    _write(folder / CONFIG_FILE, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that it is never seen half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    layers = lora_layers(model)
    named: dict[str, Tensor] = {}
    for path, layer in layers.items():
        a, b = _factor_names(layer)
        named[f"{path}.{a}"], named[f"{path}.{b}"] = layer.A, layer.B
    for name, (bias, _) in adaptation(model).biases.items():
        named[_bias_key(name, layers)] = bias
    for path, wrapper in trained_copies(model).items():
        for name, tensor in wrapper.tuned.state_dict().items():
            named[f"{path}.{name}"] = tensor
    # Clones, because safetensors refuses tensors that share memory.
    return {PREFIX + k: t.detach().cpu().contiguous().clone() for k, t in named.items()}


def _factor_names(layer: LoRALayer) -> tuple[str, str]:
    if isinstance(layer, LoRAEmbedding):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def _bias_key(name: str, layers: Mapping[str, object]) -> str:
    path = name.removesuffix("bias").removesuffix(".")
    return f"{path}.base_layer.bias" if path in layers else name


def _to_peft(model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
    targets, exclude = config.targets, config.exclude
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
        "fan_in_fan_out": False,
        "use_rslora": config.scaling == "rslora",
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "modules_to_save": list(config.modules_to_save) or None,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
    }


def _names(targets: Any) -> list[str] | str | None:
    return targets if targets is None or isinstance(targets, str) else sorted(targets)


# --- loading --------------------------------------------------------------------------------


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
    settings, tensors = _read(Path(path))
    modules = original_modules(model)
    parts, rest = _group(tensors)
    for key in parts:
        if key not in modules:
            raise AdapterError(
                f"the file has factors for {key!r}, but the model has no such module; "
                "is it the base model that the adapter was trained on?"
            )
    config = _from_peft(settings, exactly(list(parts), modules))
    layers = _fitted_layers(model, modules, config, parts)
    try:
        copied = find_copies(modules, config, layers)
    except ValueError as error:
        raise AdapterError(f"{CONFIG_FILE}: {error}") from None
    copies = {name: make_copy(modules[name]) for name in copied}
    for name, wrapper in copies.items():
        _fill_copy(name, wrapper.tuned, rest)
    values: dict[str, Tensor] = {}
    for name, bias in find_biases(modules, config, layers, copies).items():
        found = [k for k in (_bias_key(name, layers), name) if k in rest]
        if not found:
            raise AdapterError(f"bias={config.bias!r}, but the file has no tensor for {name!r}")
        values[name] = _checked(found[0], rest.pop(found[0]), bias)
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
    attach(model, config, layers, copies)
    for name, (bias, _) in adaptation(model).biases.items():
        bias.data = values[name]
    return model


def _repeats_base(key: str, tensor: Tensor, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor only repeats the base, as PEFT writes some weights of adapted embeddings."""
    path, _, name = re.sub(r"\.(base_layer|original_module)\.", ".", key).rpartition(".")
    own = modules[path]._parameters.get(name) if path in modules else None
    return own is not None and torch.equal(own.cpu(), tensor.to(own.dtype))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of one and the same state of the folder."""
    tensor_file, config_file = folder / TENSOR_FILE, folder / CONFIG_FILE
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; give the one that holds {CONFIG_FILE}")
    if not tensor_file.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which can run code, and is not read" * pickled
        raise AdapterError(f"{folder} holds no {TENSOR_FILE}{hint}")
    try:
        with safetensors.safe_open(tensor_file, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys}
    except Exception as error:  # the library raises several kinds for damaged files
        raise AdapterError(f"{tensor_file} is damaged or cannot be read: {error}") from error
    inside = metadata.get(CONFIG_FILE)
    if config_file.is_file():
        settings = _json(config_file.read_bytes(), str(config_file))
        if inside is not None:
            own = _json(inside.encode(), f"the config inside {tensor_file}")
            if _identity(own) != _identity(settings):  # a save was killed between the two files
                settings = own
    elif inside is not None:
        settings = _json(inside.encode(), f"the config inside {tensor_file}")
    else:
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}")
    return settings, tensors


def _json(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{name} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def _identity(settings: dict[str, Any]) -> object:
    mapping = settings.get("auto_mapping")
    return mapping.get("minilora_id") if isinstance(mapping, dict) else None


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
            f"{CONFIG_FILE}: init_lora_weights={init!r} changes the base weights, so the tensors "
            "alone do not tell the update; convert the adapter to plain LoRA with PEFT first"
        )
    rslora = settings.pop("use_rslora", None) or False
    if not isinstance(rslora, bool):
        raise AdapterError(f"{CONFIG_FILE}: use_rslora must be true or false, but is {rslora!r}")
    try:
        config = LoRAConfig(
            r=settings.pop("r"),
            alpha=settings.pop("lora_alpha"),
            targets=settings.pop("target_modules", None) or found,
            exclude=settings.pop("exclude_modules", None) or None,
            dropout=settings.pop("lora_dropout", 0.0),
            scaling="rslora" if rslora else "standard",
            init="gaussian" if init == "gaussian" else "default",
            bias=settings.pop("bias", "none"),
            rank_pattern=settings.pop("rank_pattern", None) or {},
            alpha_pattern=settings.pop("alpha_pattern", None) or {},
            modules_to_save=settings.pop("modules_to_save", None) or (),
        )
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{CONFIG_FILE}: {error}") from None
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
    factor = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B)(?:\.default)?(?:\.weight)?")
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        hit = factor.fullmatch(name)
        pair = parts.setdefault(hit[1], {}) if hit else rest
        short = hit[2] if hit else re.sub(r"\.modules_to_save\.(default\.)?", ".", name)
        if short in pair and not torch.equal(pair[short], tensor):
            raise AdapterError(f"the file has two tensors for {name!r}")
        pair[short] = tensor
    if not parts:
        raise AdapterError(f"{TENSOR_FILE} holds no LoRA factors")
    return parts, rest


def _fitted_layers(
    model: nn.Module,
    modules: dict[str, nn.Module],
    config: LoRAConfig,
    parts: dict[str, dict[str, Tensor]],
) -> dict[str, LoRALayer]:
    """A finished layer for each target, or an error that names what is missing or too much."""
    try:
        expected = find_targets(model, config)
    except ValueError as error:
        raise AdapterError(f"{CONFIG_FILE} does not fit the model: {error}") from None
    for path in parts:
        if path not in expected:
            raise AdapterError(
                f"the file has factors for {path!r}, which target_modules does not name"
            )
    layers = {}
    for path in expected:
        found = parts.get(path, {})
        shapes = layer_type(modules[path]).shapes(modules[path], config.rank_for(path))
        for name, shape in zip("AB", shapes, strict=True):
            if name not in found:
                raise AdapterError(
                    f"target_modules names {path!r}, but the file has no {name} for it"
                )
            _check_shape(f"{path}: {name}", found[name], shape)  # before anything is allocated
        layer = make_layer(modules[path], path, config)
        layer.A.data = _checked(f"{path}: A", found["A"], layer.A)
        layer.B.data = _checked(f"{path}: B", found["B"], layer.B)
        layers[path] = layer
    return layers


def _fill_copy(path: str, module: nn.Module, rest: dict[str, Tensor]) -> None:
    own = module.state_dict()
    values = {}
    for name, tensor in own.items():
        key = f"{path}.{name}"
        if key not in rest:
            raise AdapterError(f"modules_to_save names {path!r}, but the file has no {key!r}")
        values[name] = _checked(key, rest.pop(key), tensor)
    module.load_state_dict(values)


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise AdapterError(
            f"{name} has shape {tuple(tensor.shape)} in the file, but the model and the rank in "
            f"{CONFIG_FILE} ask for {tuple(shape)}"
        )


def _checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the type and place of ``like``; refused where it cannot stand for it."""
    _check_shape(name, tensor, like.shape)
    if like.is_floating_point():
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise AdapterError(f"{name} holds {tensor.dtype}, where floating point is needed")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} holds NaN or infinity")
        if not torch.isfinite(tensor.to(like.dtype)).all():
            raise AdapterError(f"{name} holds numbers too large for {like.dtype}")
    elif tensor.dtype != like.dtype:
        raise AdapterError(f"{name} holds {tensor.dtype}, where {like.dtype} is needed")
    return tensor.to(device=like.device, dtype=like.dtype, copy=True)
