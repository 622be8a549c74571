"""What ``add_lora`` notes on a model, and how the adapter on a model is found."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from minilora.config import LoRAConfig
from minilora.layers import LoRALayer, TrainedCopy
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
    averages: dict[str, int]  # how many batches each batch norm had seen


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


def averages_seen(model: nn.Module) -> dict[str, int]:
    """{path: batches that went into its running averages} of the batch norms of the base."""
    found = {}
    for path, module in model.named_modules():
        seen = module._buffers.get("num_batches_tracked")
        if seen is not None and ".tuned" not in f".{path}" and not seen.is_meta:
            found[path] = int(seen)
    return found


def warn_of_averages(model: nn.Module) -> None:
    """Warn where a batch norm of the base has moved its averages since ``add_lora``."""
    before = adaptation(model).averages
    moved = [path for path, n in averages_seen(model).items() if n != before.get(path, n)]
    if moved:
        warnings.warn(
            f"training moved the running averages of {', '.join(map(repr, moved))}, which an "
            "adapter's files do not hold, so it will not load as it is; name such modules in "
            "modules_to_save, or put them into eval() before training",
            stacklevel=3,
        )


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
