"""The family: what each method adds to a model, and what of it trains.

A method is a name in ``METHODS``. All are put on the six matrices of every block, and made of about
as many trained numbers as the method allows; see `Sizes`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora
from minilora import LoRAConfig
from minilora.lab.sweep import Data
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.variants.adalora import RankAllocator, add_adalora, orthogonal_penalty
from minilora.variants.adapters import add_adapters
from minilora.variants.bitfit import add_bitfit
from minilora.variants.gradient_start import gradient_start
from minilora.variants.head import train_head_only
from minilora.variants.lora_fa import freeze_A
from minilora.variants.loraplus import loraplus_groups
from minilora.variants.vera import add_vera


@dataclass(frozen=True)
class Sizes:
    """How large each method is made.

    Attributes:
        r: Rank of LoRA and of those that share its shape. ``alpha``: theirs.
        only_B: Rank of LoRA-FA, which trains one factor of the two.
        vectors: Rank of VeRA, which trains one number for each, and one for each output.
        bottleneck: Width of a serial adapter.
        first: Rank at which AdaLoRA begins; it ends at ``r`` on average.
        ratio: Of B's rate to A's in LoRA+.
        penalty: Weight of AdaLoRA's orthogonality.
        asked: How many examples the first gradient is taken from.
    """

    r: int
    alpha: float
    only_B: int
    vectors: int
    bottleneck: int
    first: int
    ratio: float = 16.0
    penalty: float = 0.1
    asked: int = 500

    @property
    def config(self) -> LoRAConfig:
        """That of plain LoRA."""
        return LoRAConfig(r=self.r, alpha=self.alpha, targets=list(BLOCK_LINEARS))


@dataclass(frozen=True)
class Ready:
    """A model that can be trained.

    Attributes:
        model: It trains what requires a gradient, and nothing else.
        groups: Parameter groups; ``lr`` is a multiple of the rate that is tuned.
        penalty: What is added to the loss, or None.
        after: What is called after each step of the optimizer, with the step's number, or None.
    """

    model: nn.Module
    groups: list[dict[str, Any]]
    penalty: Callable[[], Tensor] | None = None
    after: Callable[[int], object] | None = None


@dataclass(frozen=True)
class Making:
    """What a method is made from: a copy of the base to change, the examples, the steps to come."""

    model: nn.Module
    sizes: Sizes
    examples: Data
    steps: int

    def ready(self, parameters: list[nn.Parameter] | None = None) -> Ready:
        """All that trains, in one group at the rate that is tuned."""
        if parameters is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
        return Ready(self.model, [{"params": parameters, "lr": 1.0}])

    def adapted(self, config: LoRAConfig) -> Ready:
        """With such an adapter."""
        minilora.add_lora(self.model, config)
        return self.ready()


def _lora_plus(making: Making) -> Ready:
    minilora.add_lora(making.model, making.sizes.config)
    return Ready(making.model, loraplus_groups(making.model, 1.0, making.sizes.ratio))


def _lora_fa(making: Making) -> Ready:
    config = replace(making.sizes.config, r=making.sizes.only_B)
    freeze_A(minilora.add_lora(making.model, config))
    return making.ready()


def _vera(making: Making) -> Ready:
    add_vera(making.model, replace(making.sizes.config, r=making.sizes.vectors))
    return making.ready()


def _from_gradient(making: Making) -> Ready:
    config, model = making.sizes.config, making.model
    x, y = (part[: making.sizes.asked] for part in making.examples)
    start = gradient_start(model, config, lambda: F.cross_entropy(model(x), y))
    return making.adapted(replace(config, init=start))


def _adalora(making: Making) -> Ready:
    sizes, steps, model = making.sizes, making.steps, making.model
    alpha = sizes.alpha * sizes.first / sizes.r  # so that the scale is LoRA's
    add_adalora(model, replace(sizes.config, r=sizes.first, alpha=alpha))
    allocator = RankAllocator(
        model,
        final_rank=sizes.r,
        total_steps=steps,
        warmup=steps // 10,
        final_steps=max(1, 3 * steps // 10),
        interval=max(1, steps // 20),
    )
    return replace(
        making.ready(),
        penalty=lambda: sizes.penalty * orthogonal_penalty(model),
        after=allocator.update_and_allocate,
    )


def _matrices(making: Making) -> Ready:
    for path, parameter in making.model.named_parameters():
        whole = path.startswith("blocks.") and path.endswith("_proj.weight")
        parameter.requires_grad_(whole)
    return making.ready()


def _everything(making: Making) -> Ready:
    making.model.requires_grad_(True)
    return making.ready()


def _adapters(making: Making) -> Ready:
    places = ["o_proj", "down_proj"]
    return making.ready(add_adapters(making.model, places, making.sizes.bottleneck))


#: How each method is put on a model.
METHODS: dict[str, Callable[[Making], Ready]] = {
    "LoRA": lambda making: making.adapted(making.sizes.config),
    "rsLoRA": lambda making: making.adapted(replace(making.sizes.config, scaling="rslora")),
    "LoRA+": _lora_plus,
    "DoRA": lambda making: making.adapted(replace(making.sizes.config, use_dora=True)),
    "PiSSA": lambda making: making.adapted(replace(making.sizes.config, init="pissa")),
    "OLoRA": lambda making: making.adapted(replace(making.sizes.config, init="olora")),
    "gradient start": _from_gradient,
    "LoRA-FA": _lora_fa,
    "VeRA": _vera,
    "AdaLoRA": _adalora,
    "serial adapters": _adapters,
    "BitFit": lambda making: making.ready(add_bitfit(making.model)),
    "head only": lambda making: making.ready(train_head_only(making.model, ["head"])),
    "the matrices": _matrices,
    "full": _everything,
}

#: What a method is drawn as; the others are of LoRA's kind.
KINDS = {
    "head only": "head",
    "the matrices": "full",
    "full": "full",
    "BitFit": "biases",
}


def kind_of(method: str) -> str:
    """The kind of a method's rows."""
    return KINDS.get(method, "lora")


def prepare(
    method: str, base: nn.Module, sizes: Sizes, examples: Data, *, steps: int = 100, seed: int = 0
) -> Ready:
    """A copy of ``base``, ready to be trained by a method of ``METHODS``.

    The seed draws what is random in it. ``examples`` are those of the training, of which the
    gradient start asks some, and ``steps`` its length, on which AdaLoRA's schedule depends.

    Raises:
        ValueError: No such method.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    set_seed(seed)
    with torch.enable_grad():
        return METHODS[method](Making(copy.deepcopy(base), sizes, examples, steps))


def trained_numbers(ready: Ready) -> int:
    """How many numbers train: counted in the parameters that the optimizer gets."""
    return sum(p.numel() for group in ready.groups for p in group["params"])
