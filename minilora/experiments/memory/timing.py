"""Seconds: of training steps, of forward passes, of many small runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.experiments.memory.arms import Training, arms, make
from minilora.experiments.memory.profile import MemoryProfile
from minilora.experiments.memory.weighing import held_on_card
from minilora.experiments.recording import Quantity
from minilora.lab.measuring import take_turns, watch
from minilora.lab.predicting import FLOOR
from minilora.lab.sweep import Cell, grid, sweep
from minilora.lab.training import fit, one_thread, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig


def seconds_of_arms(profile: MemoryProfile, device: str) -> list[Quantity]:
    """Seconds of a step of every arm."""
    compared, width = arms(profile), profile.model.width
    groups = [[arm] for arm in compared] if device == "cuda" else [compared]
    found = []
    for group in groups:
        held_on_card(device)
        trainings = [make(arm, profile, device) for arm in group]
        found += timed(trainings, "step", width, profile.rounds, device)
        del trainings  # before the next are made
    return found


def timed(
    trainings: list[Training], what: str, size: int, rounds: int, device: str
) -> list[Quantity]:
    """The seconds of the steps of some trainings that take turns."""
    runs = {one.arm.name: one.step for one in trainings}
    kinds = {one.arm.name: one.arm.kind for one in trainings}
    return in_turn(runs, kinds, what, size, rounds, device)


def in_turn(
    runs: dict[str, Callable[[], Any]],
    kinds: dict[str, str],
    what: str,
    size: int,
    rounds: int,
    device: str,
) -> list[Quantity]:
    """The seconds of some runs that take turns."""
    spent = take_turns(runs, rounds, device, warm_ups=1 if device == "cpu" else 3)
    return [
        Quantity(name, kinds[name], what, size, repeat, "seconds", seconds)
        for name, values in spent.items()
        for repeat, seconds in enumerate(values)
    ]


def seconds_of_widths(profile: MemoryProfile, device: str) -> list[Quantity]:
    """Full fine-tuning, LoRA and the floor, on stacks from narrow to wide."""
    dtype = getattr(torch, profile.dtype)
    work = profile.narrow.sequences, profile.narrow.model.context, dtype, device
    compared = [arm for arm in arms(profile) if arm.name in ("full", "LoRA", "floor")]
    found = []
    for width in profile.narrow.widths:
        size = replace(profile.narrow.model, width=width, heads=max(1, width // 64))
        held_on_card(device)
        trainings = [Training(arm, size, *work) for arm in compared]
        # A step of a narrow stack is over at once, and a disturbance shows.
        rounds = profile.narrow.rounds * max(1, 128 // width)
        found += timed(trainings, "narrow step", width, rounds, device)
        for one in trainings:
            seen, arm = watch(one.step), one.arm
            for unit, measured, predicted in (
                ("flops", seen.flops, one.predicted.flops()),
                ("calls", seen.calls, None),
            ):
                what = f"narrow {unit}"
                found.append(
                    Quantity(arm.name, arm.kind, what, width, 0, unit, measured, predicted)
                )
        del trainings, one
    return found


def seconds_of_inference(profile: MemoryProfile, device: str) -> list[Quantity]:
    """The forward pass of the base, of the adapted model and of the merged one."""
    arm = next(arm for arm in arms(profile) if arm.name == "LoRA")
    held_on_card(device)
    adapted = make(arm, profile, device).model
    base = make(replace(arm, kind="floor", method=FLOOR), profile, device).model
    merged = minilora.merge(make(arm, profile, device).model, keep_base=False)
    models = {"base": base, "LoRA": adapted, "LoRA, merged": merged}
    kinds = {"base": "base", "LoRA": "lora", "LoRA, merged": "lora"}
    found = []
    for ids in (torch.zeros(1, 1), torch.zeros(profile.sequences, profile.tokens)):
        ids = ids.long().to(device)
        runs = {name: forward_of(model.eval(), ids) for name, model in models.items()}
        found += in_turn(runs, kinds, "forward", ids.numel(), profile.narrow.rounds, device)
    return found


def forward_of(model: nn.Module, ids: Tensor) -> Callable[[], Any]:
    """A forward pass without gradients."""

    def forward() -> None:
        with torch.inference_mode():
            model(ids)

    return forward


def seconds_of_sweeps(profile: MemoryProfile, device: str) -> list[Quantity]:
    """Several small runs over one base: one after the other, and in one pass of a sweep."""
    held_on_card(device)
    # The size of the transformers that the other experiments adapt; time does not depend on data.
    base = TransformerClassifier(TransformerConfig(image_size=(8, 16), patch_size=4)).to(device)
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(320, 1, 8, 16, generator=generator), torch.arange(320) % 10
    config = LoRAConfig(r=profile.r, alpha=8, targets=list(BLOCK_LINEARS))
    found = []
    for batch, count in product(profile.sweeps.batches, profile.sweeps.counts):
        cells = grid(config, lr=[1e-3], seed=range(count))
        settings: dict[str, Any] = {
            "steps": profile.sweeps.steps,
            "batch_size": batch,
            "progress": False,
        }
        runs: dict[str, Callable[[], Any]] = {
            "one by one": partial(one_by_one, base, cells, data, **settings),
            "in one pass": partial(sweep, base, cells, data, at_once=count, **settings),
        }
        with one_thread():
            kinds = dict.fromkeys(runs, "lora")
            found += in_turn(runs, kinds, f"runs of {batch} a step", count, 3, device)
    return found


def one_by_one(
    base: TransformerClassifier,
    cells: Sequence[Cell],
    data: tuple[Tensor, Tensor],
    **settings: Any,
) -> None:
    """Train each cell by itself, as one would without `minilora.lab.sweep`."""
    for cell in cells:
        model = copy.deepcopy(base)
        set_seed(cell.seed)
        minilora.add_lora(model, cell.config)
        device = next(base.parameters()).device
        fit(model, *data, lr=cell.lr, seed=cell.seed, device=device, **settings)
