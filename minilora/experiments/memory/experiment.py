"""Memory and time of a training step: full fine-tuning, LoRA, PEFT's LoRA and QLoRA.

A randomly initialised stack of transformer blocks takes training steps on random tokens. Bytes and
operations are predicted by `minilora.lab.predicting` and measured; seconds are measured alone. On a
card the arms are run one after the other, so that each has the memory for itself; on the CPU they
take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from minilora.experiments.memory.profile import PROFILES, MemoryProfile
from minilora.experiments.memory.timing import (
    seconds_of_arms,
    seconds_of_inference,
    seconds_of_sweeps,
    seconds_of_widths,
)
from minilora.experiments.memory.weighing import bytes_of_arms
from minilora.experiments.recording import Quantity
from minilora.experiments.running import Experiment, Machine

#: What can be run by itself.
PARTS: dict[str, Callable[[MemoryProfile, str], list[Quantity]]] = {
    "bytes": bytes_of_arms,
    "arms": seconds_of_arms,
    "widths": seconds_of_widths,
    "inference": seconds_of_inference,
    "sweeps": seconds_of_sweeps,
}


def attention_without_tables(device: str) -> AbstractContextManager[Any]:
    """Keep CUDA to the two forms of attention that save no table of T × T, and what they save."""
    if device != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


def _part(profile: MemoryProfile, part: str, machine: Machine) -> list[Quantity]:
    device = machine.device.type
    with attention_without_tables(device):
        return PARTS[part](profile, device)


# Runs that are timed do not share the machine, and only the gpu profile is for a card.
EXPERIMENT = Experiment("memory", PROFILES, tuple(PARTS), _part, on_card=("gpu",))
run = EXPERIMENT.run
