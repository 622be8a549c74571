"""What can be trained of a language model that knows code, when it is to learn prose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from minilora import LoRAConfig, add_lora, lora_layers
from minilora.lab.language import LanguageModel
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS

MATRICES = "the matrices"

#: What a run can train of the model's own parameters, by their paths.
OWN: dict[str, Callable[[str], bool]] = {
    MATRICES: lambda path: path.startswith("blocks.") and path.endswith("_proj.weight"),
    "the head": lambda path: path == "head.weight",
    "everything": lambda path: True,
}

KINDS = {MATRICES: "full", "the head": "head", "everything": "full"}


@dataclass(frozen=True)
class LanguageArm:
    """One way to train: an adapter of rank ``r`` on the blocks' matrices, or what ``OWN`` names.

    ``lr`` is its learning rate; for an arm that is to be tuned, the middle of those tried at first.
    """

    name: str
    lr: float
    r: int | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        return "lora" if self.r is not None else KINDS[self.name]

    def at(self, lr: float, seed: int) -> LanguageArm:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


def adapter(r: int, lr: float) -> LanguageArm:
    """The arm of an adapter."""
    return LanguageArm(f"LoRA r={r}", lr, r)


def prepare(arm: LanguageArm, base: LanguageModel, alpha: float = 8.0) -> LanguageModel:
    """A copy of the base in which nothing requires a gradient but what the arm trains.

    The seed draws the adapter.
    """
    model = copy.deepcopy(base)
    if arm.r is not None:
        set_seed(arm.seed)
        return add_lora(model, LoRAConfig(r=arm.r, alpha=alpha, targets=list(BLOCK_LINEARS)))
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(OWN[arm.name](path))
    return model


def updates(model: LanguageModel, base: LanguageModel) -> dict[str, Tensor]:
    """{path of a weight: what training has added to it}, of all that has changed."""
    layers = lora_layers(model)
    if layers:
        return {f"{path}.weight": layer.delta().detach() for path, layer in layers.items()}
    before = base.state_dict()
    found = {path: now - before[path] for path, now in model.state_dict().items()}
    return {path: update for path, update in found.items() if update.any()}
