"""What the baselines share: everything is frozen but a few parameters, and later put back.

The functions work on a plain model. ``restore`` undoes ``add_bitfit`` and ``train_head_only``;
``remove_adapters`` undoes ``add_adapters``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minilora.state import Model, is_adapted
from minilora.targets import matching

_NOTE = "_minilora_frozen"


@dataclass
class Frozen:
    """What was noted on the model: every parameter's flag, and the trained ones' old values."""

    requires_grad: list[tuple[nn.Parameter, bool]]
    values: list[tuple[nn.Parameter, Tensor]]
    undo: str  # the function that undoes it


def train_only(
    model: nn.Module, chosen: list[nn.Parameter], undo: str = "freezing.restore"
) -> list[nn.Parameter]:
    """Freeze every parameter of ``model`` but ``chosen``, and keep a copy of these.

    Args:
        model: A plain model; changed in place.
        chosen: Its parameters that are to train.
        undo: The name of the function that will undo it, for the messages.

    Returns:
        The chosen parameters.

    Raises:
        ValueError: The model has an adapter or another baseline on it. It is unchanged.
    """
    check_plain(model)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.__dict__[_NOTE] = Frozen(flags, [(p, p.detach().clone()) for p in chosen], undo)
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def restore(model: Model, keep_update: bool = False) -> Model:
    """Undo ``add_bitfit`` or ``train_head_only``: the old requires_grad and the old values.

    Args:
        model: The module that was given to the baseline; changed in place.
        keep_update: Leave the trained values.

    Raises:
        ValueError: There is nothing to undo, or something that another function undoes.
    """
    put_back(model, keep_update, "freezing.restore")
    return model


def put_back(model: nn.Module, keep_update: bool, undo: str) -> None:
    """Undo ``train_only``, for the function of the name ``undo``."""
    noted = model.__dict__.get(_NOTE)
    if noted is None or noted.undo != undo:
        found = "no baseline is on this module" if noted is None else f"call {noted.undo}(model)"
        raise ValueError(f"{undo} finds nothing to undo: {found}")
    del model.__dict__[_NOTE]
    for parameter, flag in noted.requires_grad:
        parameter.requires_grad_(flag)
    if not keep_update:
        with torch.no_grad():
            for parameter, value in noted.values:
                parameter.copy_(value)


def check_plain(model: nn.Module) -> None:
    """Raise ValueError where something is on the model already."""
    if is_adapted(model):
        raise ValueError("the model has an adapter; call minilora.remove_lora(model) first")
    if _NOTE in model.__dict__:
        raise ValueError(
            "a baseline is on the model already; undo it first, with "
            f"minilora.variants.{model.__dict__[_NOTE].undo}(model)"
        )


def find_modules(model: nn.Module, names: Sequence[str], setting: str) -> dict[str, nn.Module]:
    """{path: module} of the modules with these paths or endings of paths (``"head"``).

    Raises:
        TypeError: ``names`` is not a list of names.
        ValueError: A name matches nothing; the message tells what is close to it.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{setting} must be a list of module names, such as ['head'], not {names!r}"
        )
    modules = {path: module for path, module in model.named_modules() if path}
    for name in names:
        if not matching(modules, [name]):
            known = {path.rsplit(".", 1)[-1] for path in modules} | set(modules)
            close = difflib.get_close_matches(name, known, n=3) or sorted(known)[:6]
            raise ValueError(
                f"{setting} names {name!r}, but no module has that path or ends with it; "
                f"there are {', '.join(map(repr, close))}"
            )
    return {path: modules[path] for path in matching(modules, names)}


def whole_modules(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """All parameters of the named modules.

    Raises:
        ValueError: As ``find_modules``, the modules have no parameters, or one of these is tied
            to a module that is not named, which would be trained along.
    """
    found = find_modules(model, names, "modules")
    chosen = {p for module in found.values() for p in module.parameters()}
    if found and not chosen:
        raise ValueError(f"modules names {', '.join(map(repr, found))}, without any parameter")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in chosen and not any(name.startswith(path + ".") for path in found):
            raise ValueError(
                f"{name!r} is shared with a module that is to be trained, so that it would change "
                "too; name its module as well, or untie the two"
            )
    return [p for p in model.parameters() if p in chosen]
