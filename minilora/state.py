"""What ``add_lora`` notes on a model, and how the adapter on a model is found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from minilora.base import Note
from minilora.config import LoRAConfig
from minilora.layers import LoRALayer, TrainedCopy, is_sharded
from minilora.targets import unwrapped

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Adaptation:
    """What ``add_lora`` notes on the model, so that ``remove_lora`` can undo it to the letter.

    Parameters are noted by module and name: FSDP and ``load_state_dict(assign=True)`` put others
    in their place.
    """

    config: LoRAConfig
    requires_grad: list[tuple[nn.Module, str, bool]]  # as it was before
    biases: dict[str, tuple[nn.Module, Tensor]]  # whose bias trains, with its original value
    nested: list[nn.TransformerEncoder]  # those whose use of nested tensors was turned off
    base: dict[str, Note]  # what the base held
    foreign: str | None = None  # settings whose originals are those of another base


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
    return {unwrapped(path): m for path, m in model.named_modules() if isinstance(m, LoRALayer)}


def trained_copies(model: nn.Module) -> dict[str, TrainedCopy]:
    """{path: wrapper} of the modules that ``modules_to_save`` named."""
    return {unwrapped(path): m for path, m in model.named_modules() if isinstance(m, TrainedCopy)}


def wrappers(model: nn.Module) -> list[LoRALayer | TrainedCopy]:
    """The adapted layers and the copies, each once."""
    return [m for m in model.modules() if isinstance(m, (LoRALayer, TrainedCopy))]


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Everything that the adapter trains: A and B, and the biases and copies of the config.

    Returns:
        A list for an optimizer, without duplicates, in the model's order.

    Raises:
        ValueError: The model has no adapter.
    """
    noted = adaptation(model)
    parameters = [p for layer in lora_layers(model).values() for p in layer.trained()]
    parameters += [bias_of(module) for module, _ in noted.biases.values()]
    for wrapper in trained_copies(model).values():
        parameters += wrapper.tuned.parameters()
    return list(dict.fromkeys(parameters))


def bias_of(module: nn.Module) -> nn.Parameter:
    """The bias that the module has now."""
    bias = module.bias
    assert isinstance(bias, nn.Parameter)
    return bias


def check_unmerged(model: nn.Module, what: str) -> None:
    """Raise ValueError where the adapter is merged, naming ``what`` was called."""
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError(f"{what} needs an adapter that is not merged; call minilora.unmerge first")


def check_enabled(model: nn.Module, what: str) -> None:
    """Raise ValueError inside ``disabled(model)``, naming ``what`` was called."""
    if any(w.off for w in wrappers(model)):
        raise ValueError(f"{what} was called inside disabled(model); call it outside")


def take_over(
    model: nn.Module,
    layers: Mapping[str, LoRALayer],
    copies: Mapping[str, TrainedCopy],
    biases: Collection[str],
) -> list[str]:
    """Give what was loaded the parameters that are there, so that an optimizer goes on with them.

    Returns:
        The names of the parameters, old and new, to which that could not be done.
    """
    old = _trained(lora_layers(model), trained_copies(model))
    new = _trained(layers, copies)
    for name in [name for name in new if name in old]:
        was, (module, own, now) = old[name][2], new[name]
        same = (was.shape, was.dtype, was.device) == (now.shape, now.dtype, now.device)
        if same and not is_sharded(was):
            was.data, was.grad = now.data, None
            was.requires_grad_(True)
            module._parameters[own] = was
            del old[name], new[name]
    return [*(new | old), *(adaptation(model).biases.keys() ^ set(biases))]


def _trained(
    layers: Mapping[str, LoRALayer], copies: Mapping[str, TrainedCopy]
) -> dict[str, tuple[nn.Module, str, nn.Parameter]]:
    """{path and name: (module, its name there, parameter)} of what adapters and copies train."""
    owners: dict[str, nn.Module] = dict(layers)
    for path, layer in layers.items():
        if isinstance(layer.dora, nn.Module):
            owners[f"{path}.dora"] = layer.dora
    for path, copied in copies.items():
        owners |= dict(copied.tuned.named_modules(prefix=path))
    return {
        f"{path}.{name}": (owner, name, p)
        for path, owner in owners.items()
        for name, p in owner._parameters.items()
        if p is not None
    }
