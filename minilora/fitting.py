"""What an adapter fits, and what can be trained whole: each refused with its reason."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from minilora.layers import LoRAConv, LoRAEmbedding, LoRALayer, is_sharded, layer_type


def check_adaptable(modules: dict[str, nn.Module], path: str) -> None:
    module: Any = modules[path]
    kind = layer_type(module)
    if kind is None:
        raise ValueError(
            f"targets matches {path!r}, a {type(module).__name__}; adapters fit linear layers, "
            "embeddings and 1-d or 2-d convolutions. Narrow targets or list it in exclude; "
            f"{adaptable(modules)}"
        )
    if inside_attention(modules, path):
        raise ValueError(
            f"{path!r} belongs to an nn.MultiheadAttention, which reads its weight and would "
            "pass the adapter by; adapt other layers, or use an attention whose projections are "
            "nn.Linear modules that are called. exclude takes it out of targets"
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ValueError(
            f"{path!r} is an nn.Embedding with max_norm={module.max_norm}, which rewrites its "
            "own weight in every forward, so it cannot stay frozen; set max_norm to None"
        )
    if kind in (LoRAConv, LoRAEmbedding):
        types: list[Any] = list(type(module).__mro__)
        torchs = next(t for t in types if t.__module__.startswith("torch.nn.modules"))
        if type(module).forward is not torchs.forward:
            raise ValueError(
                f"{path!r} is a {type(module).__name__}, an nn.{torchs.__name__} with a forward of "
                "its own, which the update would not follow; list it in exclude"
            )
    if kind is LoRAConv:
        _check_convolution(path, module)
    if hidden := sorted(_own_names(module) & _NAMES):
        raise ValueError(
            f"{path!r}, a {type(module).__name__}, has an attribute {hidden[0]!r} of its own, "
            "which the adapted layer would hide; rename it, or list the layer in exclude"
        )
    if is_sharded(module.weight):
        raise ValueError(
            f"{path!r} is sharded already, and nothing would keep new factors equal on all "
            "processes; add the adapter before fully_shard"
        )
    if is_offloaded(module):
        raise ValueError(
            f"{path!r} is offloaded by accelerate, so that its weight is not here; put the adapter "
            "on the model first and offload it then"
        )
    if is_lazy(module.weight):
        raise ValueError(f"{path!r} has no shape yet; call the model once before adding adapters")
    if not module.weight.is_floating_point():
        raise ValueError(f"{path!r} has weights of {module.weight.dtype}; adapters need floats")


# What an adapted layer answers for itself and not for its base.
_NAMES = {name for name in vars(LoRALayer) if not name.startswith("_")} - set(dir(nn.Module))
_NAMES |= {"A", "B", "r", "alpha", "scaling", "dropout", "strength", "off", "merged", "start"}
_NAMES |= {"base", "dora", "aside", "bypassed"}


def _own_names(module: nn.Module) -> set[str]:
    """The attributes of a module that PyTorch's own classes have not given it."""
    names = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    for kind in type(module).__mro__:
        if not kind.__module__.startswith(("torch.", "minilora.")):
            names |= set(vars(kind))
    return names


def check_copied(path: str, module: nn.Module) -> None:
    """Refuse what cannot be trained whole by way of a copy."""
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    if isinstance(module, containers):
        raise ValueError(
            f"{path!r} is in modules_to_save and is an nn.{type(module).__name__}, which is not "
            "called; name the modules in it"
        )
    if hidden := sorted(_own_names(module) & {"base", "tuned", "off"}):
        raise ValueError(
            f"{path!r} is in modules_to_save and has an attribute {hidden[0]!r} of its own, which "
            "the copy would hide from the model; rename it"
        )
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        raise ValueError(
            f"{path!r} is in modules_to_save, and its forward was replaced on the object: a copy "
            "would call that of the original"
        )
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path!r} is in modules_to_save, and {name!r} in its state_dict is a "
                f"{type(value).__name__}, which an adapter's files cannot hold"
            )


def _check_convolution(path: str, module: nn.Module) -> None:
    """PEFT's format says nothing of these settings, so PEFT would compute another update."""
    for setting, usual in [("groups", 1), ("dilation", (1,)), ("padding_mode", "zeros")]:
        found = getattr(module, setting)
        if (set(found) != {1}) if setting == "dilation" else (found != usual):
            raise ValueError(
                f"{path!r} is a convolution with {setting}={found!r}, which adapters do not "
                "support; leave it out of targets, or list it in exclude"
            )


def inside_attention(modules: dict[str, nn.Module], path: str) -> bool:
    return isinstance(modules.get(path.rpartition(".")[0]), nn.MultiheadAttention)


def fits(modules: dict[str, nn.Module], path: str) -> bool:
    """Whether an adapter may be put there."""
    if layer_type(modules[path]) is None:
        return False  # the reason below would look through the whole model once more
    try:
        check_adaptable(modules, path)
    except ValueError:
        return False
    return True


def adaptable(modules: dict[str, nn.Module]) -> str:
    names = dict.fromkeys(p.rsplit(".", 1)[-1] for p in modules if p and fits(modules, p))
    if names:
        return f"layers that can be adapted end with {', '.join(map(repr, list(names)[:12]))}"
    if layer_type(modules[""]):
        return "the model itself is a single layer; put it into an nn.Sequential first"
    return "the model has no linear layer, embedding or convolution"


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the module's parameters elsewhere and brings them for a forward."""
    meta = any(p.is_meta for p in module.parameters(recurse=False))
    return meta and hasattr(module, "_hf_hook")
