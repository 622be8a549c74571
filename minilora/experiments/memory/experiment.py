"""Memory and time of a training step: full fine-tuning, LoRA, PEFT's LoRA and QLoRA.

A randomly initialised stack of transformer blocks takes training steps on random tokens. Bytes and
operations are predicted by `minilora.lab.predicting` and measured; seconds are measured alone. On a
card an arm is weighed while no other is there. Arms that are timed take turns, on a card as far as
it holds them all beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minilora.experiments.memory.arms import HAS_PEFT
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
PARTS: dict[str, Callable[[MemoryProfile, torch.device], list[Quantity]]] = {
    "bytes": bytes_of_arms,
    "arms": seconds_of_arms,
    "inference": seconds_of_inference,
    "widths": seconds_of_widths,
    "sweeps": seconds_of_sweeps,
}


def attention_without_tables(device: torch.device) -> AbstractContextManager[Any]:
    """Keep CUDA to the two forms of attention that save no table of T × T, and what they save."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


def _part(profile: MemoryProfile, part: str, machine: Machine) -> list[Quantity]:
    if profile.peft and not HAS_PEFT:
        machine.say("memory: PEFT is not installed here, so that its arm is left out")
    with attention_without_tables(machine.device):
        return PARTS[part](profile, machine.device)


# Runs that are timed do not share the machine, and only the gpu profile is for a card.
EXPERIMENT = Experiment("memory", PROFILES, tuple(PARTS), _part, on_card=("gpu",))
run = EXPERIMENT.run
