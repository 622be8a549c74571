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
from minilora.lab.work import keep_to_time


def weigh(training: Training, start: int) -> dict[str, tuple[str, float, float | None]]:
    """{what: (unit, measured, predicted)} of one training step.

    ``start`` are the bytes that the card held before the model was made.

    Raises:
        RuntimeError: The operations that were seen are not those of the step, as where a part of
            it is run out of sight of `watch`.
    """
    model, step, device = training.model, training.predicted, training.device
    expected, cuda = step.bytes(), device.type == "cuda"
    for _ in range(2 if cuda else 1):  # the optimizer makes its state in the first step
        training.step()
    weights, state = model_bytes(model).weights, training.optimizer_bytes()
    seen = watch(training.step)
    peak = weights + state + seen.peak
    if cuda:
        peak = torch.cuda.memory_allocated(device) - start + peak_bytes(training.step, device)
    kept = saved_bytes(training.loss, model)
    training.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    flops = None if step.checkpointing else step.flops()
    if flops and abs(seen.flops / flops - 1) > 0.05:
        raise RuntimeError(
            f"{training.arm.name}: a step must make {flops:,} operations, but {seen.flops:,} were "
            "seen: is its backward pass run where it is not watched?"
        )
    return {
        "weights": ("bytes", weights, expected.weights),
        "gradients": ("bytes", gradients, expected.gradients),
        "optimizer": ("bytes", state, expected.optimizer),
        "activations": ("bytes", kept, expected.activations + expected.logits),
        "peak": ("bytes", peak, step.peak()),
        "flops": ("flops", seen.flops, flops),
        "calls": ("calls", seen.calls, None),
    }


def bytes_of_arms(profile: MemoryProfile, device: torch.device) -> list[Quantity]:
    """What every arm holds, and how much arithmetic and how many calls a step is."""
    if device.type == "cuda":
        warm_up(profile, device)
    found = []
    for arm in arms(profile):
        keep_to_time()
        start = held_on_card(device)
        seen = weigh(make(arm, profile, device), start)
        for what, (unit, measured, predicted) in seen.items():
            width = profile.model.width
            found.append(Quantity(arm.name, arm.kind, what, width, 0, unit, measured, predicted))
    return found


def warm_up(profile: MemoryProfile, device: torch.device) -> None:
    """Let the card's libraries take the workspace that they keep, so that no arm pays for it.

    They take it at the first product of a kind, and products of the full size can be of another
    kind than small ones.
    """
    small = replace(PROFILES["smoke"], dtype=profile.dtype)
    for arm in arms(small):
        make(arm, small, device).step()
    (floor,) = [arm for arm in arms(profile) if arm.kind == "floor"]
    make(floor, profile, device).step()


def held_on_card(device: torch.device) -> int:
    """Bytes allocated on the card once everything that can be freed is."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)
