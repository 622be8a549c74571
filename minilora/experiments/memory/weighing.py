"""Bytes, operations and calls of a training step, predicted and measured."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from minilora.experiments.memory.arms import Training, arms, make
from minilora.experiments.memory.profile import PROFILES, MemoryProfile
from minilora.experiments.recording import Quantity
from minilora.lab.measuring import peak_bytes, saved_bytes, watch
from minilora.lab.predicting import model_bytes


def weigh(training: Training, start: int) -> dict[str, tuple[str, float, float | None]]:
    """{what: (unit, measured, predicted)} of one training step.

    ``start`` are the bytes that the card held before the model was made.
    """
    model, step = training.model, training.predicted
    expected, cuda = step.bytes(), training.device == "cuda"
    for _ in range(2 if cuda else 1):  # the optimizer makes its state in the first step
        training.step()
    weights, state = model_bytes(model).weights, training.optimizer_bytes()
    seen = watch(training.step)
    peak = weights + state + seen.peak
    if cuda:
        peak = torch.cuda.memory_allocated() - start + peak_bytes(training.step, "cuda")
    kept = saved_bytes(training.loss, model)
    training.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return {
        "weights": ("bytes", weights, expected.weights),
        "gradients": ("bytes", gradients, expected.gradients),
        "optimizer": ("bytes", state, expected.optimizer),
        "activations": ("bytes", kept, expected.activations + expected.logits),
        "peak": ("bytes", peak, step.peak()),
        "flops": ("flops", seen.flops, None if step.checkpointing else step.flops()),
        "calls": ("calls", seen.calls, None),
    }


def bytes_of_arms(profile: MemoryProfile, device: str) -> list[Quantity]:
    """What every arm holds, and how much arithmetic and how many calls a step is."""
    if device == "cuda":  # libraries take their workspace at the first product, and keep it
        small = PROFILES["smoke"]
        for arm in arms(replace(small, dtype=profile.dtype)):
            make(arm, replace(small, dtype=profile.dtype), device).step()
    found = []
    for arm in arms(profile):
        start = held_on_card(device)
        seen = weigh(make(arm, profile, device), start)
        for what, (unit, measured, predicted) in seen.items():
            width = profile.model.width
            found.append(Quantity(arm.name, arm.kind, what, width, 0, unit, measured, predicted))
    return found


def held_on_card(device: str) -> int:
    """Bytes allocated on the card once everything that can be freed is."""
    gc.collect()
    return torch.cuda.memory_allocated() if device == "cuda" else 0
