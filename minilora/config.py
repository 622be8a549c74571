"""LoRAConfig: what an adapter is made of, and the settings that are refused."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from torch import nn

Targets = str | Sequence[str] | type[nn.Module] | Callable[[str, nn.Module], bool]

INITS = ("default", "gaussian", "pissa", "olora", "milora")
SCALINGS = ("standard", "rslora")
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoRAConfig:
    """How to adapt a model: which layers, at which rank, at which scale.

    Args:
        r: Rank of every update; the number of columns of B and of rows of A. At least 1.
        alpha: Numerator of the scaling factor. Positive and finite.
        targets: Which layers get an adapter. A list names module paths, whole
            (``"blocks.0.attention.q_proj"``) or by their last parts (``"q_proj"``,
            ``"attention.q_proj"``); a name takes whatever can be adapted, be it linear, an
            embedding or a convolution. A string is a regular expression that must match a whole
            path, or ``"all-linear"``: every linear layer but those named head, lm_head,
            classifier, score or output_projection (in a Hugging Face model, but its output
            embeddings) and those inside ``nn.MultiheadAttention``; an output layer of another
            name goes into ``exclude``. A module type takes every module of that type. A callable
            ``(path, module) -> bool`` decides for itself; an adapted model and its files keep
            the paths that it chose.
        exclude: Layers to leave out of what ``targets`` matches, in the same forms.
        dropout: Probability with which an entry of the adapter's input is zeroed in training.
            Embeddings have no such input and ignore it.
        scaling: ``"standard"`` multiplies BA by alpha / r [1], ``"rslora"`` by
            alpha / sqrt(r) [2].
        init: ``"default"``: A uniform in ±1/sqrt(d_in) and B zero, in an embedding A zero and B
            normal; ``"gaussian"``: A normal with standard deviation 1/r. One factor is zero, so
            an adapter changes nothing before it is trained. ``"pissa"``, ``"olora"``,
            ``"milora"``: see :mod:`minilora.initializers`. A callable
            gets the new layer and fills ``layer.A`` and ``layer.B`` in place.
        bias: ``"none"`` trains no bias, ``"all"`` every parameter of the model that is called
            ``bias`` (not those of an LSTM, nor ``in_proj_bias``), ``"lora_only"`` those of the
            adapted layers.
        rank_pattern: Rank of particular layers, ``{"q_proj": 16}``. A key is a regular
            expression for the end of a path: ``(.*\\.)?(KEY)$``; the first that fits is used, and
            ``"^head"`` fits ``head`` but not ``decoder.head``. A higher rank by itself makes the
            scale smaller, since alpha is divided by it.
        alpha_pattern: The same for alpha; ``{"q_proj": 32}`` beside ``alpha=16`` keeps the scale of
            a layer that has twice the rank.
        modules_to_save: Names of modules that are trained whole beside the adapters, as a new
            output head is. The originals are kept.
        use_dora: Weight-decomposed updates: see :mod:`minilora.dora`.

    Raises:
        TypeError, ValueError: A setting makes no sense. The message names it, says what was
            found and what to give instead.

    PEFT's names: target_modules is ``targets``, exclude_modules ``exclude``, lora_alpha ``alpha``,
    lora_dropout ``dropout``, use_rslora=True ``scaling="rslora"``, init_lora_weights ``init``.

    Sources:
        [1] Hu et al. 2021, arXiv 2106.09685. [2] Kalajdzievski 2023, arXiv 2312.03732.
    """

    r: int = 8
    alpha: float = 8
    targets: Targets = "all-linear"
    exclude: Targets | None = None
    dropout: float = 0.0
    scaling: str = "standard"
    init: str | Callable[[Any], None] = "default"
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: Sequence[str] = ()
    use_dora: bool = False

    def __post_init__(self) -> None:
        for name in ("r", "alpha", "dropout"):
            object.__setattr__(self, name, _python_number(getattr(self, name)))
        _check_rank("r", self.r)
        _check_alpha("alpha", self.alpha)
        _check_targets("targets", self.targets)
        if _is_list(self.exclude) and not self.exclude:
            object.__setattr__(self, "exclude", None)
        if self.exclude is not None:
            _check_targets("exclude", self.exclude)
        dropout = self.dropout
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise TypeError(f"dropout must be a number, but is {dropout!r}")
        if not 0 <= dropout < 1:
            raise ValueError(
                f"dropout must be at least 0 and below 1, but is {dropout}: it is the share of "
                "the adapter's inputs that is zeroed, so 0.1 drops a tenth"
            )
        _check_choice("scaling", self.scaling, SCALINGS)
        _check_choice("bias", self.bias, BIASES)
        if not callable(self.init):
            _check_choice("init", self.init, INITS)
        if not isinstance(self.use_dora, bool):
            raise TypeError(f"use_dora must be True or False, but is {self.use_dora!r}")
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(self, name)
            if not isinstance(pattern, Mapping):
                raise TypeError(
                    f"{name} must be a dict such as {{'q_proj': 16}}, but is {pattern!r}"
                )
            # A private copy: a frozen config must not change when the caller's dict does.
            own = {key: _python_number(value) for key, value in pattern.items()}
            for key, value in own.items():
                _check_regex(f"{name}'s key", key, _PATTERN)
                check = _check_rank if name == "rank_pattern" else _check_alpha
                check(f"{name}[{key!r}]", value)
            object.__setattr__(self, name, own)
        saved = self.modules_to_save
        if not _is_list(saved) or not all(isinstance(n, str) and n for n in saved):
            raise TypeError(
                f"modules_to_save must be a list of module names, but is {saved!r}; "
                "one name is written as ['head']"
            )
        object.__setattr__(self, "modules_to_save", tuple(saved))
        for name in ("targets", "exclude"):
            if _is_list(value := getattr(self, name)):
                object.__setattr__(self, name, tuple(value))

    def rank_for(self, path: str) -> int:
        """The rank of the layer at ``path``: from ``rank_pattern`` where a key fits, else ``r``."""
        return next((n for key, n in self.rank_pattern.items() if key_fits(key, path)), self.r)

    def alpha_for(self, path: str) -> float:
        """The alpha of the layer at ``path``, as ``rank_for`` gives its rank."""
        return next((a for key, a in self.alpha_pattern.items() if key_fits(key, path)), self.alpha)

    def scale_for(self, path: str) -> float:
        """The scaling factor of the layer at ``path``: alpha / r, or alpha / sqrt(r)."""
        r = self.rank_for(path)
        return self.alpha_for(path) / (math.sqrt(r) if self.scaling == "rslora" else r)


def endings(path: str) -> set[str]:
    """The names that mean ``path`` in a list: ``{"a.b.c", "b.c", "c"}`` for ``"a.b.c"``."""
    parts = path.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


_PATTERN = r"(.*\.)?({})$"  # PEFT's grammar for the keys of rank_pattern and alpha_pattern


def key_fits(key: str, path: str) -> bool:
    """Whether ``path`` ends with the regular expression ``key``, at a dot or as a whole."""
    return _ending(key).match(path) is not None


@functools.cache  # re's own cache holds 512, and a pattern for each layer can be more
def _ending(key: str) -> re.Pattern[str]:
    return re.compile(_PATTERN.format(key))


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _python_number(value: Any) -> Any:
    """A NumPy number as Python's own, which alone JSON and PEFT know."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value


def _check_rank(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, but is {value!r}")
    if value < 1:
        raise ValueError(
            f"{name} must be at least 1, but is {value}; "
            "to leave a layer alone, take it out of targets"
        )


def _check_alpha(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    if not 0 < value <= sys.float_info.max:  # NaN fails it too
        raise ValueError(
            f"{name} must be positive and finite, but is {value}; "
            "to switch an adapter off, use minilora.disabled(model)"
        )


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        given = ", ".join(repr(c) for c in choices)
        or_callable = ", or a callable" if name == "init" else ""
        raise ValueError(f"{name} must be one of {given}{or_callable}, but is {value!r}")


def _check_regex(name: str, value: object, around: str = "{}") -> None:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be a regular expression as a string, but is {value!r}")
    try:
        re.compile(around.format(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} {value!r} is not a regular expression: {error}") from None


def _check_targets(name: str, value: object) -> None:
    if isinstance(value, str):
        if value != "all-linear":
            _check_regex(name, value)
    elif _is_list(value):
        if not value or not all(isinstance(n, str) and n for n in value):
            raise TypeError(
                f"{name} must list module names, such as ['q_proj', 'v_proj'], but is {value!r}"
            )
    elif isinstance(value, type):
        if not issubclass(value, nn.Module):
            raise TypeError(f"{name} must be a type of module, such as nn.Linear, not {value!r}")
    elif not callable(value):
        raise TypeError(
            f"{name} must be a list of names, a regular expression, 'all-linear', a module type "
            f"or a callable (path, module) -> bool, but is {value!r}"
        )
