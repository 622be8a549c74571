"""Single digits, turned or with dots exchanged, and the rank that brings their reader back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora import LoRAConfig
from minilora.experiments.families import (
    AdapterRun,
    Change,
    Family,
    Recipe,
    Task,
    untrained,
)
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.tuning import Tuning
from minilora.lab import data
from minilora.lab.pretrained import pretrained_digits
from minilora.lab.sweep import Cell, Data
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

#: The middle of the rates for adapters on shifted digits.
MIDDLE = 1e-2


@dataclass(frozen=True)
class Reader:
    """A base that reads one printed digit: its sizes, and how it is taught."""

    model: TransformerConfig
    pictures: int
    steps: int
    lr: float


@dataclass(frozen=True)
class Shift:
    """The changes of the pictures, and the adapters that learn to read them again."""

    reader: Reader
    angles: tuple[int, ...]
    shares: tuple[float, ...]
    labels: int
    validation: int
    test: int
    steps: int
    batch_size: int
    ranks: tuple[int, ...]
    alpha: float
    tuning: Tuning


def turn(degrees: float, x: Tensor) -> Tensor:
    """Digits turned to the left about their middle: (N, 1, H, H) → the same."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # For each dot of the result, where in the picture it is taken from; y points down.
    source = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=x.dtype, device=x.device)
    places = F.affine_grid(source.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, align_corners=False)


def exchange(share: float, x: Tensor) -> Tensor:
    """A share of the dots dealt out anew, by one rule for all pictures: (N, 1, H, W) → the same."""
    dots = x[0].numel()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(dots, generator=generator)[: round(dots * share)]
    # One step along a circle moves every chosen dot, which a random reordering would not.
    order = torch.arange(dots)
    order[chosen] = chosen.roll(1)
    return x.flatten(1)[:, order.to(x.device)].reshape(x.shape)


def shifts(shift: Shift, part: str) -> dict[str, Change]:
    """The changes to the pictures, by the words that name them."""
    if part == "turned":
        return {f"turned {angle}°": partial(turn, angle) for angle in shift.angles}
    return {f"exchanged {100 * share:g}%": partial(exchange, share) for share in shift.shares}


@lru_cache(maxsize=16)
def printed(count: int, seed: int) -> Data:
    """Single printed digits."""
    digits = data.printed_digits(count, seed)
    return digits.x, digits.y


def drawn(
    make: Callable[[int, int], Data], labels: int, validation: int, test: int, change: Change | None
) -> Task:
    """The task on examples that ``make(count, seed)`` draws, in these numbers."""
    return Task(
        labels, partial(_seeded, make, labels), make(validation, 9001), make(test, 9002), change
    )


def _seeded(make: Callable[[int, int], Data], count: int, seed: int) -> Data:
    return make(count, 5000 + seed)


def task(shift: Shift, change: Change | None = None) -> Task:
    """Single printed digits, with a change."""
    return drawn(printed, shift.labels, shift.validation, shift.test, change)


def reader(taught: Reader, device: torch.device | str = "cpu") -> TransformerClassifier:
    """A transformer that reads one printed digit, upright and with all dots in their places."""
    return pretrained_digits(
        config=taught.model,
        pictures=taught.pictures,
        steps=taught.steps,
        lr=taught.lr,
        device=device,
        progress=False,
    ).to(device)


def run_shifts(shift: Shift, part: str, machine: Machine) -> list[Row]:
    """The base as it is and an adapter of every rank, for every shift of the part."""
    base, recipe = reader(shift.reader, machine.device), Recipe(shift.steps, shift.batch_size)
    rows: list[Row] = []
    for name, change in shifts(shift, part).items():
        pictures = task(shift, change)
        for_file = name.replace(" ", "-").replace("°", "").replace("%", "")
        rows.append(untrained(f"base, {name}", base, pictures))
        arms = [
            AdapterRun(
                f"r={r}, {name}",
                Cell(LoRAConfig(r=r, alpha=shift.alpha, targets=list(BLOCK_LINEARS)), MIDDLE),
            )
            for r in shift.ranks
        ]
        rows += Family(for_file, base, pictures, recipe, machine).compare(arms, shift.tuning)
    return rows
