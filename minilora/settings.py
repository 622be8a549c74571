"""PEFT's settings, as ``adapter_config.json`` has them, and what they are here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from minilora.config import LoRAConfig, key_fits
from minilora.folder import CONFIG_FILE, AdapterError, is_quick
from minilora.layers import LoRAEmbedding
from minilora.state import lora_layers
from minilora.targets import exactly, original_modules, plan

# Settings of PEFT's config that say nothing about what the adapter computes.
HARMLESS = {
    *("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "megatron_core", "qalora_group_size", "eva_config", "corda_config"),
    *("lora_ga_config", "loftq_config", "layers_pattern", "runtime_config", "fan_in_fan_out"),
    "layers_to_transform",
}
# Initialisations that leave the base weights alone, so that the tensors say everything, and
# those that change them in a way that can be repeated.
KNOWN_INITS = (True, False, None, "gaussian", "pissa", "olora", "eva", "orthogonal")


def to_peft(model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
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
        "rank_pattern": _lasting(config.rank_pattern, lora_layers(model)),
        "alpha_pattern": _lasting(config.alpha_pattern, lora_layers(model)),
        "modules_to_save": list(config.modules_to_save) or None,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
    }


def _lasting(pattern: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """The pattern, or where its order matters one that says the same in any order.

    The first key that fits counts, and the JSON of other programs is sorted by its keys.
    """

    def value(keys: Iterable[str], path: str) -> Any:
        return next((pattern[key] for key in keys if key_fits(key, path)), None)

    found = {path: value(pattern, path) for path in paths}
    if all(value(sorted(pattern), path) == number for path, number in found.items()):
        return dict(pattern)
    return {f"^{re.escape(path)}": n for path, n in found.items() if n is not None}


def _names(targets: Any) -> list[str] | str | None:
    return targets if targets is None or isinstance(targets, str) else sorted(targets)


def from_peft(settings: dict[str, Any]) -> tuple[LoRAConfig, bool]:
    """The config of PEFT's settings, and whether its targets are theirs.

    They are not where none are named, or as an expression that cannot be matched in time.
    """
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
            targets=settings.get("target_modules") or "all-linear",
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
    named = bool(settings.pop("target_modules", None)) and all(
        is_quick(x) for x in (config.targets, config.exclude) if isinstance(x, str)
    )
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
    return config, named


def transformed(
    model: nn.Module, config: LoRAConfig, settings: dict[str, Any], parts: Collection[str]
) -> list[str]:
    """The targets, where PEFT's layers_to_transform picks some by the number of their layer."""
    numbers = settings["layers_to_transform"]
    patterns = settings.get("layers_pattern") or r"[^.]*"
    numbers = [numbers] if isinstance(numbers, int) else numbers
    if not isinstance(numbers, list) or not all(isinstance(n, int) for n in numbers):
        raise AdapterError(
            f"{CONFIG_FILE}: 'layers_to_transform' must be a number or a list of them, but is "
            f"{numbers!r}"
        )
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not all(isinstance(name, str) and is_quick(name) for name in patterns):
        raise AdapterError(
            f"{CONFIG_FILE}: 'layers_pattern' must be a name or a list of them, but is {patterns!r}"
        )
    try:
        targets = plan(model, config, strict=False).targets
    except ValueError as error:
        raise AdapterError(f"{CONFIG_FILE} does not fit the model: {error}") from None

    def picked(path: str) -> bool:
        if path in (config.targets if isinstance(config.targets, tuple) else ()):
            return True
        # PEFT takes the first number in a path, and older versions took the last.
        first, last = (
            {int(n) for name in patterns for n in re.findall(rf"^{some}{name}\.(\d+)\.", path)}
            for some in (r"(?:.*?\.)?", r"(?:.*\.)?")
        )
        return bool(first & set(numbers) or (last & set(numbers) and path in parts))

    return [path for path in targets if picked(path)] if numbers else targets
