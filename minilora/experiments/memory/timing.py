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
from minilora.experiments.memory.arms import Arm, Training, arms, make
from minilora.experiments.memory.profile import MemoryProfile
from minilora.experiments.memory.weighing import held_on_card
from minilora.experiments.recording import Quantity
from minilora.lab.measuring import take_turns, watch
from minilora.lab.predicting import FLOOR
from minilora.lab.sweep import Cell, grid, sweep
from minilora.lab.training import fit, one_thread, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig


def seconds_of_arms(profile: MemoryProfile, device: torch.device) -> list[Quantity]:
    """Seconds of a step of every arm."""
    found = []
    for group in side_by_side(arms(profile), profile, device):
        held_on_card(device)
        trainings = [make(arm, profile, device) for arm in group]
        found += timed(trainings, "step", profile.model.width, profile.rounds, device)
        del trainings  # before the next are made
    return found


def side_by_side(
    compared: list[Arm], profile: MemoryProfile, device: torch.device
) -> list[list[Arm]]:
    """The arms in groups that take turns: all, unless a card is too small to hold them all.

    Each keeps its weights and its optimizer's state, and one at a time the rest of a step.
    """
    if device.type != "cuda":
        return [compared]
    held_on_card(device)
    steps = [arm.at(profile, device) for arm in compared]
    kept = [step.bytes().weights + step.bytes().optimizer for step in steps]
    passing = max(step.peak() - there for step, there in zip(steps, kept, strict=True))
    free, _ = torch.cuda.mem_get_info(device)
    if sum(kept) + passing < 0.9 * free:
        return [compared]
    return [[arm] for arm in compared]


def timed(
    trainings: list[Training], what: str, size: int, rounds: int, device: torch.device
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
    device: torch.device,
    warm_ups: int | None = None,
) -> list[Quantity]:
    """The seconds of some runs that take turns, on a card after three rounds that do not count."""
    if warm_ups is None:
        warm_ups = 3 if device.type == "cuda" else 1
    spent = take_turns(runs, rounds, device, warm_ups)
    return [
        Quantity(name, kinds[name], what, size, repeat, "seconds", seconds)
        for name, values in spent.items()
        for repeat, seconds in enumerate(values)
    ]


def seconds_of_widths(profile: MemoryProfile, device: torch.device) -> list[Quantity]:
    """Full fine-tuning, LoRA and the floor, on stacks from narrow to wide."""
    dtype = getattr(torch, profile.dtype)
    work = profile.narrow.sequences, profile.narrow.model.context, dtype, device
    compared = [arm for arm in arms(profile) if arm.name in ("full", "LoRA", "floor")]
    found = []
    for width in profile.narrow.widths:
        size = replace(profile.narrow.model, width=width, heads=max(1, width // 64))
        held_on_card(device)
        trainings = [Training(arm, arm.step(size, *work)) for arm in compared]
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


def seconds_of_inference(profile: MemoryProfile, device: torch.device) -> list[Quantity]:
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


def seconds_of_sweeps(profile: MemoryProfile, device: torch.device) -> list[Quantity]:
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
            what = f"runs of {batch} a step"
            found += in_turn(runs, kinds, what, count, 3, device, warm_ups=1)
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
