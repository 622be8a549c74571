"""Which layers of a model a config means, and what it trains beside them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from minilora.config import LoRAConfig, Targets, endings, key_fits
from minilora.fitting import (
    adaptable,
    check_adaptable,
    check_copied,
    fits,
    inside_attention,
)
from minilora.layers import (
    LoRALayer,
    TrainedCopy,
    is_hf_conv1d,
)

# Where a model does not say which layer is its output head, these names do.
HEAD_NAMES = ("head", "lm_head", "classifier", "score", "output_projection")


# What PyTorch's wrappers call the module inside them: torch.compile and activation checkpointing.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


def unwrapped(path: str) -> str:
    """The path as it would be without PyTorch's wrappers, so that files fit either way."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def original_modules(model: nn.Module) -> dict[str, nn.Module]:
    """{path: module} of the model as it was before ``add_lora``; each module once.

    PyTorch's wrappers do not show in the paths; the module inside stands for its wrapper.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(path: str, module: nn.Module) -> None:
        if isinstance(module, (LoRALayer, TrainedCopy)):
            module = module.base
        if id(module) not in seen:
            seen.add(id(module))
            found[path] = module
            for name, child in module.named_children():
                if name in WRAPPERS:
                    walk(path, child)
                else:
                    walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return found


class Plan(NamedTuple):
    """What a config means on a model: all modules by path, the paths it adapts and copies, and the
    biases it trains by name."""

    modules: dict[str, nn.Module]
    targets: list[str]
    copies: list[str]
    biases: dict[str, nn.Parameter]


def plan(
    model: nn.Module,
    config: LoRAConfig,
    strict: bool = True,
) -> Plan:
    """Find what ``config`` adapts and trains whole, and refuse what is not there.

    PEFT's files may name what a model has not: not ``strict``, that is passed over.

    Raises:
        ValueError: As in ``add_lora``.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"DistributedDataParallel{f' around {path!r}' if path else ''} has taken note of "
                "the parameters already and would leave new ones out; add the adapter to the model "
                "before wrapping it"
            )
        if type(module).__module__.startswith("peft.tuners."):
            raise ValueError(
                f"the model has an adapter of PEFT's{f' at {path!r}' if path else ''}; take it off "
                "with its merge_and_unload() or unload(), and pass the plain model that it returns"
            )
    modules = original_modules(model)
    targets = _targets(modules, config, strict)
    if strict:
        _check_patterns(config, targets)
        _check_named("modules_to_save", config.modules_to_save, modules)
        if config.exclude is not None:
            _check_exclude(modules, config)
    copies = find_copies(modules, config, targets)
    return Plan(modules, targets, copies, find_biases(modules, config, targets, copies))


def _check_exclude(modules: dict[str, nn.Module], config: LoRAConfig) -> None:
    """Refuse an ``exclude``, or a name in its list, that takes nothing out."""
    assert config.exclude is not None
    whole, exclude = config.modules_to_save, config.exclude
    parts: list[Any] = [exclude]
    if isinstance(exclude, tuple):
        _check_named("exclude", exclude, modules)
        parts = [(name,) for name in exclude]
    chosen = set(_select(modules, config.targets, "targets", whole))
    for part in parts:
        hits = _select(modules, part, "exclude", whole)
        if chosen.isdisjoint(hits):
            inside = [path for path in chosen if any(path.startswith(f"{h}.") for h in hits)]
            hint = f"; it names what contains {min(inside)!r}: list that" if inside else ""
            if inside and isinstance(exclude, tuple):
                pattern = rf"(.*\.)?{re.escape(part[0])}(\..*)?"
                hint += f", or, for all in it, give exclude={pattern!r}"
            raise ValueError(
                f"exclude={_shown(part)} takes nothing out of "
                f"targets={_shown(config.targets)}{hint}"
            )


def _shown(names: Any) -> str:
    return repr(list(names) if isinstance(names, tuple) else names)


def find_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Paths of the layers that ``config`` adapts, in the model's order.

    Raises:
        ValueError: As in ``add_lora``.
    """
    return _targets(original_modules(model), config)


def _targets(modules: dict[str, nn.Module], config: LoRAConfig, strict: bool = True) -> list[str]:
    if any(hasattr(type(module), "is_served") for module in modules.values()):
        raise ValueError("an AdapterBank serves this model; call its close() first")
    whole = config.modules_to_save
    chosen = _select(modules, config.targets, "targets", whole, strict)
    if not strict:  # PEFT gives nothing an adapter that is trained whole
        copied = matching(modules, whole)
        chosen = [path for path in chosen if not is_within(path, copied)]
    if config.exclude is not None:
        excluded = set(_select(modules, config.exclude, "exclude", whole))
        chosen = [path for path in chosen if path not in excluded]
    if not chosen:
        takes = [] if strict else [f"modules_to_save={list(whole)}"]
        takes += [f"exclude={config.exclude!r}"] * (config.exclude is not None)
        raise ValueError(
            f"nothing is left to adapt: {' and '.join(takes)} takes out every layer that "
            f"targets={config.targets!r} matches"
        )
    for path in chosen:
        check_adaptable(modules, path)
    _check_not_compiled(modules, chosen)
    return chosen


def _select(
    modules: dict[str, nn.Module],
    targets: Targets,
    setting: str,
    trained_whole: Sequence[str],
    strict: bool = True,
) -> list[str]:
    paths = [path for path in modules if path]
    if targets == "all-linear":
        hits = _all_linear(modules, trained_whole)
    elif isinstance(targets, str):
        hits = [path for path in paths if re.fullmatch(targets, path)]
    elif isinstance(targets, type):
        hits = [path for path in paths if isinstance(modules[path], targets)]
    elif callable(targets):
        hits = [path for path in paths if targets(path, modules[path])]
    else:
        if setting == "targets" and strict:
            _check_named(setting, targets, modules)
        hits = matching(paths, targets)
    if not hits and setting == "targets":
        hint = ""
        if isinstance(targets, str) and matching(paths, [targets]):
            hint = (
                f"a string must match a whole path; for layers of that name, write [{targets!r}]; "
            )
        elif isinstance(targets, str) and targets.lower().replace("_", "-") == "all-linear":
            hint = "did you mean 'all-linear'? "
        elif isinstance(targets, tuple):
            raise ValueError(
                f"targets names {targets[0]!r}, {_near_misses(targets[0], modules, setting)}"
            )
        raise ValueError(f"targets={targets!r} matches nothing; {hint}{adaptable(modules)}")
    return hits


def _all_linear(modules: dict[str, nn.Module], trained_whole: Sequence[str]) -> list[str]:
    find_head = getattr(modules[""], "get_output_embeddings", None)  # Hugging Face models have it
    head = find_head() if callable(find_head) else None
    if isinstance(head, (LoRALayer, TrainedCopy)):
        head = head.base
    copied = matching(modules, trained_whole)

    def is_head(path: str, module: nn.Module) -> bool:
        return path.rsplit(".", 1)[-1] in HEAD_NAMES if head is None else module is head

    def wanted(path: str, module: nn.Module) -> bool:
        left = is_head(path, module) or inside_attention(modules, path)
        return not (left or is_within(path, copied))

    return [
        path
        for path, m in modules.items()
        if path and (isinstance(m, nn.Linear) or is_hf_conv1d(m)) and wanted(path, m)
    ]


def _check_not_compiled(modules: dict[str, nn.Module], paths: Iterable[str]) -> None:
    """A wrapper of torch.compile goes on calling the module that it was made for."""
    compiled = {
        id(m._modules["_orig_mod"]) for m in modules[""].modules() if "_orig_mod" in m._modules
    }
    for path in paths:
        if id(modules[path]) in compiled:
            raise ValueError(
                f"{path!r} was compiled by itself, and would go on running without the adapter; "
                "compile the model, or the blocks around such layers, after adding it"
            )


def _near_misses(name: str, modules: dict[str, nn.Module], setting: str) -> str:
    for second, first in second_names(modules).items():
        if name in endings(second):
            return f"which is a second name of {first!r}: give that"
    for path, module in modules.items():
        for own, parameter in module._parameters.items():
            if parameter is not None and name in endings(f"{path}.{own}"):
                return (
                    f"which is a parameter of {path!r}, of shape {tuple(parameter.shape)}, and no "
                    f"module; {adaptable(modules)}"
                )
    fitting = [path for path in modules if path and (setting != "targets" or fits(modules, path))]
    known = {path.rsplit(".", 1)[-1] for path in fitting} | set(fitting)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"close to it: {', '.join(map(repr, close))}. " if close else ""
    return f"but no module has that path or ends with it; {hint}{adaptable(modules)}"


def second_names(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """{path: the path in ``modules``} of modules that stand in the model in several places."""
    firsts = {id(module): path for path, module in modules.items()}
    found = {}
    for path, module in modules[""].named_modules(remove_duplicate=False):
        module = module.base if isinstance(module, (LoRALayer, TrainedCopy)) else module
        name = unwrapped(path)
        if name not in modules and id(module) in firsts:
            found[name] = firsts[id(module)]
    return found


def matching(paths: Iterable[str], names: Collection[str]) -> list[str]:
    """Those of ``paths`` that are one of ``names``, or end with one of them after a dot."""
    wanted = set(names)
    return [path for path in paths if not wanted.isdisjoint(endings(path))]


def is_within(path: str, others: Iterable[str]) -> bool:
    """Whether the module is one of the ``others`` or lies in one of them."""
    return any(f"{path}.".startswith(f"{other}.") for other in others)


def exactly(paths: list[str], modules: Mapping[str, nn.Module]) -> list[str] | str:
    """Targets that match these paths and no others: the paths, or where one of them is also the
    end of another module's path, a regular expression."""
    also = set(matching(modules, paths)) - set(paths)
    return "|".join(map(re.escape, paths)) if also else paths


def _check_named(setting: str, names: Sequence[str], modules: dict[str, nn.Module]) -> None:
    known = {name for path in modules for name in endings(path)}
    for name in names:
        if not name or name not in known:
            raise ValueError(f"{setting} names {name!r}, {_near_misses(name, modules, setting)}")


def _check_patterns(config: LoRAConfig, targets: list[str]) -> None:
    for setting in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, setting):
            if not any(key_fits(key, path) for path in targets):
                some = ", ".join(targets[:6]) + (", …" if len(targets) > 6 else "")
                raise ValueError(
                    f"{setting} has the key {key!r}, which fits no adapted layer; "
                    f"these are adapted: {some}"
                )


def find_copies(
    modules: dict[str, nn.Module], config: LoRAConfig, targets: Collection[str]
) -> list[str]:
    """Paths of the modules that ``modules_to_save`` names and the model has.

    Raises:
        ValueError: One of them holds, or is, another one or an adapted layer.
    """
    paths = matching((path for path in modules if path), config.modules_to_save)
    _check_not_compiled(modules, paths)
    for path in paths:
        if any(hasattr(type(part), "packed_parameters") for part in modules[path].modules()):
            raise ValueError(
                f"{path!r} is in modules_to_save, but is quantized and cannot be trained whole; "
                "leave it out of quantize_linears"
            )
        for other in [*targets, *(p for p in paths if p != path)]:
            if other == path:
                raise ValueError(
                    f"{path!r} is in both targets and modules_to_save; it has an adapter or is "
                    "trained whole, so take it out of one of them"
                )
            if other.startswith(path + "."):
                raise ValueError(
                    f"{path!r} is in modules_to_save and so trained whole, but targets or "
                    f"modules_to_save name {other!r} too. To train it whole, list it in exclude; "
                    f"to give it an adapter, take {path!r} out of modules_to_save"
                )
        check_copied(path, modules[path])
    return paths


def find_biases(
    modules: dict[str, nn.Module],
    config: LoRAConfig,
    targets: Collection[str],
    copies: Collection[str],
) -> dict[str, nn.Parameter]:
    """{name: bias} that ``config.bias`` trains, those inside copied modules left out; each once."""
    if config.bias == "none":
        return {}
    chosen = set(targets)
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in modules.items():
        bias = module._parameters.get("bias")
        if (
            bias is not None
            and not is_within(path, copies)
            and (config.bias == "all" or path in chosen)
        ):
            found.setdefault(id(bias), (f"{path}.bias" if path else "bias", bias))
    return dict(found.values())


def tied_copies(modules: Mapping[str, nn.Module], copies: Collection[str]) -> dict[str, list[str]]:
    """{copied path: paths outside it whose modules use one of its parameters}."""
    return _tied(modules, {path: [*modules[path].parameters()] for path in copies})


def tied_weights(
    modules: Mapping[str, nn.Module], adapted: Collection[str]
) -> dict[str, list[str]]:
    """{adapted path: other paths whose modules use the very same weight}."""
    return _tied(modules, {path: [modules[path]._parameters.get("weight")] for path in adapted})


def _tied(
    modules: Mapping[str, nn.Module], held: Mapping[str, Sequence[Tensor | None]]
) -> dict[str, list[str]]:
    users: dict[int, list[str]] = {}
    for path, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(path)
    tied = {}
    for path, tensors in held.items():
        using = dict.fromkeys(user for t in tensors for user in users.get(id(t), ()))
        if others := [user for user in using if not is_within(user, [path])]:
            tied[path] = others
    return tied
