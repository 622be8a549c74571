"""What the benchmark compares: one base model, and the ways in which it can be trained."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.lab.decoder import DecoderBlock

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
ALPHA = 16
DROPOUT = 0.1

FLOOR, FULL, LORALIB = "floor", "full", "loralib"
PEFT, PEFT_DROPOUT = "PEFT", f"PEFT, dropout {DROPOUT}"
MINI, MINI_TEXTBOOK = "minilora", "minilora, textbook"
MINI_DROPOUT = f"minilora, dropout {DROPOUT}"
ARMS = [FLOOR, FULL, PEFT, LORALIB, MINI_TEXTBOOK, MINI]
DROPOUT_ARMS = [FLOOR, PEFT_DROPOUT, MINI_DROPOUT]

HAS_PEFT = importlib.util.find_spec("peft") is not None
HAS_LORALIB = importlib.util.find_spec("loralib") is not None


@dataclass(frozen=True)
class Size:
    """How large the work is: the model, its input (batch, tokens, width), and the rank."""

    width: int = 512
    blocks: int = 4
    heads: int = 8
    batch: int = 8
    tokens: int = 128
    r: int = 8
    wrap_width: int = 32
    wrap_blocks: int = 200


TOY = Size(width=16, blocks=1, heads=2, batch=2, tokens=4, r=2, wrap_width=4, wrap_blocks=2)


def available(arms: list[str]) -> list[str]:
    """Those of ``arms`` whose library is installed."""
    absent = [name for name, there in ((PEFT, HAS_PEFT), (LORALIB, HAS_LORALIB)) if not there]
    return [arm for arm in arms if not arm.startswith(tuple(absent))]


# --- models ---------------------------------------------------------------------------------


class Side(nn.Module):
    """Linear layers side by side on one shared x, as the projections of an attention are."""

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [linear(x) for linear in self.children()]


def stack(size: Size) -> nn.Module:
    """The transformer blocks that the sections on time use."""
    return nn.Sequential(*[DecoderBlock(size.width, size.heads) for _ in range(size.blocks)])


def many_linears(size: Size) -> nn.Module:
    """``wrap_blocks`` groups of six linear layers, for the time that wrapping takes."""
    return nn.Sequential(*[Side(size.wrap_width, NAMES) for _ in range(size.wrap_blocks)])


# --- ways to adapt one ----------------------------------------------------------------------


def add_minilora(
    model: nn.Module, size: Size, names: Sequence[str] = NAMES, dropout: float = 0.0
) -> nn.Module:
    config = LoRAConfig(r=size.r, alpha=ALPHA, targets=names, dropout=dropout)
    return minilora.add_lora(model, config)


def add_peft(
    model: nn.Module, size: Size, names: Sequence[str] = NAMES, dropout: float = 0.0
) -> nn.Module:
    import peft

    settings = peft.LoraConfig(
        r=size.r, lora_alpha=ALPHA, target_modules=list(names), lora_dropout=dropout
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, settings)


def unload_peft(model: Any) -> nn.Module:
    return model.unload()


def merge_peft(model: Any) -> nn.Module:
    model.merge_adapter()
    return model


def save_peft(model: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


def load_peft(model: nn.Module, folder: Path) -> nn.Module:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder)


def add_loralib(model: nn.Module, size: Size) -> nn.Module:
    """Every linear layer becomes a ``loralib.Linear`` with its weights.

    loralib makes A and B in the type of the weight, so on a bfloat16 base they are bfloat16.
    """
    import loralib  # type: ignore[import-untyped]

    def swap(linear: nn.Linear) -> nn.Module:
        shape = linear.in_features, linear.out_features
        weight = linear.weight
        new = loralib.Linear(
            *shape, r=size.r, lora_alpha=ALPHA, device=weight.device, dtype=weight.dtype
        )
        new.load_state_dict(linear.state_dict(), strict=False)
        return new

    replace_linears(model, swap)
    loralib.mark_only_lora_as_trainable(model)
    return model


class BareLoRA(nn.Module):
    """The least that an adapted layer can be: what wrapping costs in any case."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base = base
        bound = base.in_features**-0.5
        self.A = nn.Parameter(torch.empty(r, base.in_features).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(base.out_features, r))


def replace_linears(model: nn.Module, swap: Callable[[nn.Linear], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, swap(child))


def add_bare(model: nn.Module, size: Size) -> nn.Module:
    model.requires_grad_(False)

    def swap(linear: nn.Linear) -> nn.Module:
        return BareLoRA(linear, size.r)

    replace_linears(model, swap)
    return model


def build(arm: str, base: nn.Module, size: Size, names: Sequence[str] = NAMES) -> nn.Module:
    """A copy of ``base``, ready to be trained in the way that ``arm`` names."""
    model = copy.deepcopy(base)
    if arm == FLOOR:
        return model.requires_grad_(False)
    if arm == FULL:
        return model
    if arm == LORALIB:
        return add_loralib(model, size)
    dropout = DROPOUT if arm in (PEFT_DROPOUT, MINI_DROPOUT) else 0.0
    if arm in (PEFT, PEFT_DROPOUT):
        return add_peft(model, size, names, dropout)
    return add_minilora(model, size, names, dropout)


def forward(arm: str, model: nn.Module, x: Tensor) -> Any:
    """``model(x)``, by the formula that ``arm`` names."""
    with minilora.textbook() if arm == MINI_TEXTBOOK else nullcontext():
        return model(x)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def training_step(arm: str, model: nn.Module, x: Tensor, fused: bool) -> Callable[[], None]:
    """Forward, backward and AdamW. The input's gradient is computed in every arm.

    The floor trains nothing: forward and input gradient are all that it does.
    """
    x = x.detach().clone().requires_grad_()
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=fused or None) if parameters else None

    def step() -> None:
        x.grad = None
        forward(arm, model, x).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step
