"""Ways to share out the training of the language model, and what a step of each sends."""

from __future__ import annotations

from dataclasses import dataclass

from minilora.lab import distributed, traffic
from minilora.lab.distributed import RunSettings
from minilora.lab.language import LanguageModel
from minilora.lab.traffic import Traffic


@dataclass(frozen=True)
class Sharing:
    """One way: "ddp" or "fsdp", with an adapter of rank ``r``, or with everything trained.

    ``reshard`` is that of `minilora.lab.distributed.share`.
    """

    name: str
    how: str
    r: int | None = None
    reshard: bool = True

    @property
    def kind(self) -> str:
        return "full" if self.r is None else "lora"

    def settings(self, batch: int) -> RunSettings:
        """Those of the training script."""
        return RunSettings(full=self.r is None, r=self.r or 1, batch=batch)


ARMS = (
    Sharing("DDP, everything", "ddp"),
    Sharing("DDP, LoRA r=16", "ddp", 16),
    Sharing("DDP, LoRA r=4", "ddp", 4),
    Sharing("FSDP, everything", "fsdp"),
    Sharing("FSDP, LoRA r=16", "fsdp", 16),
    Sharing("FSDP, LoRA r=16, kept", "fsdp", 16, reshard=False),
)


def predicted(arm: Sharing, model: LanguageModel) -> Traffic:
    """What goes into the exchanges of one step, from the model alone."""
    if arm.how == "ddp":
        return traffic.data_parallel(model)
    return traffic.fully_sharded(model, list(model.blocks), again=arm.reshard)


def build(arm: Sharing, batch: int) -> LanguageModel:
    """The model that the arm trains, before it is shared out."""
    return distributed.build(arm.settings(batch))
