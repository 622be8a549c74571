"""Nothing silent: what is asked before an adapter is added, saved or merged.

Each of these is something that would otherwise go on without a word and come out wrong: a weight
that is not used as a linear layer uses it, a base that has moved beside its adapter, numbers that
are elsewhere, parameters that cannot learn in their type.
"""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from minilora.base import Note, is_other, moved, notes
from minilora.config import LoRAConfig
from minilora.fitting import is_offloaded
from minilora.layers import LoRALayer, is_coarse, is_sharded
from minilora.state import adaptation, bias_of, lora_layers, trained_copies
from minilora.targets import Plan, original_modules, tied_copies, tied_weights

# --- before adding --------------------------------------------------------------------------


def check_init(config: LoRAConfig, found: Plan) -> None:
    """Refuse an init that would change a weight which another layer uses too."""
    if config.init in ("pissa", "olora", "milora"):
        for path, others in tied_weights(found.modules, found.targets).items():
            raise ValueError(
                f"init={config.init!r} would change the weight of {path!r}, which "
                f"{', '.join(map(repr, others))} uses too; list it in exclude or use "
                "init='default'"
            )


def check_start(path: str, layer: LoRALayer, config: LoRAConfig) -> None:
    """Refuse a start that takes a part out of a weight which the layer uses in another way."""
    if layer.start is not None and (why := not_linear(layer)):
        raise ValueError(
            f"init={config.init!r} would change what {path!r} computes, since {why}; list it in "
            "exclude or use init='default'"
        )


def warn_of_training(found: Plan) -> None:
    """Warn of what will train and cannot learn as it should."""
    for path, others in tied_copies(found.modules, found.copies).items():
        warnings.warn(
            f"modules_to_save copies {path!r}, whose weight {', '.join(map(repr, others))} shares: "
            "the copy trains by itself, and the two are no longer tied. For a tied pair, give "
            f"{path!r} an adapter instead, or untie the two in the base model first",
            stacklevel=4,  # past the decorator of add_lora or load
        )
    coarse: dict[torch.dtype, list[str]] = {}
    for path in found.copies:
        for name, parameter in found.modules[path].named_parameters():
            if is_coarse(parameter.dtype):
                coarse.setdefault(parameter.dtype, []).append(f"{path}.{name}")
    for name, bias in found.biases.items():
        if is_coarse(bias.dtype):
            coarse.setdefault(bias.dtype, []).append(name)
    for dtype, names in coarse.items():
        warnings.warn(
            f"{', '.join(map(repr, names[:4]))}{' …' * (len(names) > 4)} will train in {dtype}, "
            "where a step much smaller than the number itself is lost, and which a GradScaler "
            "refuses if it is float16. A and B are float32; biases and modules_to_save keep the "
            "base's type: use a float32 base for them, or larger steps",
            stacklevel=4,
        )


def not_linear(layer: LoRALayer) -> str | None:
    """Why the base's output does not follow its weight as that of ``nn.Linear`` does, if so.

    A linear layer whose forward is its own is tried on a copy in float32: with something added to
    the weight, the output must change by that times the input.
    """
    base = layer.base
    if not isinstance(base, nn.Linear) or not isinstance(base.weight, nn.Parameter):
        return None
    if type(base).forward is nn.Linear.forward or base.weight.is_meta or is_sharded(base.weight):
        return None
    name = f"its {type(base).__name__} has a forward of its own"
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(False), torch.no_grad():
            twin = copy.deepcopy(base).float().eval()
            x = torch.randn(4, base.in_features, generator=generator).to(twin.weight.device)
            change = torch.randn(twin.weight.shape, generator=generator).to(x.device)
            change *= max(float(twin.weight.abs().mean()), 1e-3)
            before = twin(x)
            twin.weight += change
            expected, found = F.linear(x, change), twin(x) - before
    except Exception as error:  # whatever a stranger's forward may raise
        return f"{name}, which cannot be tried ({type(error).__name__}: {error})"
    slack = 1e-4 * (expected.abs().max() + before.abs().max())
    if found.shape == expected.shape and bool((found - expected).abs().max() <= slack):
        return None
    return f"{name}, and computes something else with the weight"


# --- before saving and merging --------------------------------------------------------------


def warn_of_bypassed(model: nn.Module) -> None:
    for path, layer in lora_layers(model).items():
        if layer.bypassed:
            warnings.warn(
                f"the adapter of {path!r} does not act where {layer.bypassed} reads the layer's "
                "weight instead of calling the layer; leave it out of targets",
                stacklevel=3,
            )


def check_present(model: nn.Module, what: str) -> None:
    """Raise ValueError where the numbers of an adapted layer are elsewhere, or nowhere."""
    for path, part in {**lora_layers(model), **trained_copies(model)}.items():
        for module in part.modules():
            if any(p.is_meta for p in module.parameters(recurse=False)):
                why = "is on the meta device and holds none; load the base model's weights first"
                if is_offloaded(module):
                    why = (
                        "accelerate has offloaded; bring them back with "
                        "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
                    )
                raise ValueError(f"{what} needs the numbers of {path!r}, which {why}")


def note_base(model: nn.Module) -> dict[str, Note]:
    """The notes of everything that the adapter does not train."""
    trained = [bias_of(module) for module, _ in adaptation(model).biases.values()]
    return notes(original_modules(model), trained)


def warn_of_moves(model: nn.Module) -> None:
    """Warn where something beside the adapter is no longer what it was at ``add_lora``."""
    paths = moved(adaptation(model).base, note_base(model))
    if paths:
        shown = ", ".join(map(repr, paths[:8])) + f" and {len(paths) - 8} more" * (len(paths) > 8)
        warnings.warn(
            f"{shown} changed since the adapter was added, in parameters or buffers that an "
            "adapter's files do not hold, so it will not load as it is; name such modules in "
            "modules_to_save, or freeze them and put them into eval() before training",
            stacklevel=3,
        )


def base_was_loaded(model: nn.Module, _: object) -> None:
    """A hook: ``load_state_dict`` has brought the base that counts from now on."""
    noted = adaptation(model)
    if any(layer.merged for layer in lora_layers(model).values()):
        return  # what the base holds are sums, which unmerge takes back
    now = note_base(model)
    if is_other(noted.base, now):
        aside = [f"init={noted.config.init!r}"] * any(
            layer.start is not None for layer in lora_layers(model).values()
        )
        aside += [f"bias={noted.config.bias!r}"] * bool(noted.biases)
        if aside:
            noted.foreign = " and ".join(aside)
            warnings.warn(_foreign(noted.foreign), stacklevel=3)
    noted.base = now


def check_own_base(model: nn.Module, what: str) -> None:
    """Raise ValueError where originals are needed that are those of another base."""
    foreign = adaptation(model).foreign
    if foreign:
        raise ValueError(f"{what} is not possible: {_foreign(foreign)}")


def _foreign(settings: str) -> str:
    return (
        f"load_state_dict brought another base than the one that the adapter was added to, and "
        f"{settings} keeps originals aside which a state_dict does not hold; make the model, load "
        "the base's weights, call add_lora, and load the state_dict then"
    )
