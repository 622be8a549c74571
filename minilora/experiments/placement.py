"""Where to put an adapter, and how much rank a shift of the task needs.

The first parts take the task of the rank experiment, handwritten sums for a base that adds printed
digits, and put adapters on one kind of matrix at a time, at the same rank and at the same number of
trained parameters; into one block or into all; and train small parts of the model itself instead.
The last part leaves the handwriting aside. The base gets its own printed digits, turned by an angle
or with a share of their dots exchanged, and the question is which rank brings it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora import LoRAConfig, data
from minilora.experiments import rank
from minilora.experiments.recording import Recording, Row
from minilora.experiments.sweeps import (
    Change,
    Named,
    Pictures,
    Place,
    Recipe,
    Whole,
    adapters,
    run_parts,
    untrained,
    whole_models,
)
from minilora.sweep import Cell, Data
from minilora.transformer import BLOCK_LINEARS

#: The files whose code settles the numbers.
SOURCES = [*rank.SOURCES, "experiments/placement.py", "experiments/sweeps.py"]

#: What can be run by itself: a section of the chapter each.
PARTS = ("places", "rank", "blocks", "own", "turned", "exchanged")

#: Each place's layers.
PLACES: dict[str, tuple[str, ...]] = {
    "Q": ("q_proj",),
    "K": ("k_proj",),
    "V": ("v_proj",),
    "O": ("o_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
    "Q, V": ("q_proj", "v_proj"),
    "Q, K, V, O": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "up, down": ("up_proj", "down_proj"),
    "all six": BLOCK_LINEARS,
}


@dataclass(frozen=True)
class Profile:
    """The size of a run; ``base`` says which model and which handwritten pictures.

    ``budget`` is the most that a placement may train in each block. ``r`` is the rank of part
    "rank", and ``shift_labels`` the number of labelled printed pictures of the last two parts.
    """

    name: str
    base: rank.Profile
    labels: int
    steps: int
    alpha: float
    budget: int
    r: int
    rates: tuple[float, ...]
    own_rates: tuple[float, ...]
    full_rates: tuple[float, ...]
    shift_labels: int
    shift_ranks: tuple[int, ...]
    shift_rates: tuple[float, ...]
    angles: tuple[int, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    few_seeds: tuple[int, ...]


PROFILES = {
    "cpu": Profile(
        name="cpu",
        base=rank.PROFILES["cpu"],
        labels=500,
        steps=200,
        alpha=8.0,
        budget=1920,
        r=4,
        rates=(5e-3, 1e-2, 2.2e-2, 5e-2),
        own_rates=(2.2e-3, 5e-3, 1e-2, 2.2e-2),
        full_rates=(1e-3, 2.2e-3, 5e-3),
        shift_labels=1000,
        shift_ranks=(1, 4, 16),
        shift_rates=(5e-3, 1e-2, 2.2e-2),
        angles=(30, 60, 90),
        shares=(0.25, 0.5, 1.0),
        seeds=(0, 1, 2),
        few_seeds=(0, 1),
    ),
    "gpu": Profile(
        name="gpu",
        base=rank.PROFILES["gpu"],
        labels=2000,
        steps=300,
        alpha=8.0,
        budget=10240,
        r=4,
        rates=(1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2),
        own_rates=(1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2),
        full_rates=(2.2e-4, 5e-4, 1e-3, 2.2e-3),
        shift_labels=4000,
        shift_ranks=(1, 4, 16, 64),
        shift_rates=(1e-3, 2.2e-3, 5e-3, 1e-2),
        angles=(15, 30, 45, 60, 90, 180),
        shares=(0.125, 0.25, 0.5, 1.0),
        seeds=(0, 1, 2, 3, 4),
        few_seeds=(0, 1, 2),
    ),
    "smoke": Profile(
        name="smoke",
        base=rank.PROFILES["smoke"],
        labels=40,
        steps=4,
        alpha=8.0,
        budget=320,
        r=2,
        rates=(1e-3, 1e-2),
        own_rates=(1e-3, 1e-2),
        full_rates=(1e-3,),
        shift_labels=40,
        shift_ranks=(1, 2),
        shift_rates=(1e-2,),
        angles=(90,),
        shares=(1.0,),
        seeds=(0, 1),
        few_seeds=(0,),
    ),
}


def rank_within(budget: int, width: int, ffn_factor: int, place: str) -> int:
    """The largest rank at which a place trains at most ``budget`` numbers in a block."""
    hidden = ffn_factor * width
    for_one = sum(
        width + hidden if name in ("up_proj", "down_proj") else 2 * width for name in PLACES[place]
    )
    return budget // for_one


def turn(degrees: float, x: Tensor) -> Tensor:
    """Each digit of a pair turned about its middle, to the left: (N, 1, 8, 16) → the same."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    halves = torch.cat(x.split(8, dim=3))  # (2N, 1, 8, 8)
    bend = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=x.dtype, device=x.device)
    places = F.affine_grid(bend.expand(len(halves), 2, 3), list(halves.shape), align_corners=False)
    turned = F.grid_sample(halves, places, align_corners=False)
    return torch.cat(turned.chunk(2), dim=3)


def exchange(share: float, x: Tensor) -> Tensor:
    """A share of each digit's 64 dots dealt out anew, by one fixed rule: (N, 1, 8, 16) → same."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(64, generator=generator)[: round(64 * share)]
    # One step along a circle moves every chosen dot, which a random reordering would not.
    order = torch.arange(64)
    order[chosen] = chosen.roll(1)
    halves = torch.cat(x.split(8, dim=3)).flatten(1)[:, order.to(x.device)]
    return torch.cat(halves.reshape(-1, 1, 8, 8).chunk(2), dim=3)


def shifts(size: Profile, part: str) -> dict[str, Change]:
    """The changes to the pictures, by the words that name them."""
    if part == "turned":
        return {f"turned {angle}°": partial(turn, angle) for angle in size.angles}
    return {f"exchanged {100 * share:g}%": partial(exchange, share) for share in size.shares}


def handwritten(size: Profile, seed: int) -> Data:
    """The labelled handwritten pairs of a seed."""
    train, _, _ = rank.pictures(size.base, size.labels, seed)
    return train.x, train.y


def printed(size: Profile, seed: int) -> Data:
    """Labelled pairs of new printed digits."""
    return _printed(size.shift_labels, 5000 + seed)


@lru_cache(maxsize=8)
def _printed(count: int, seed: int) -> Data:
    pairs = data.pairs(data.printed_digits(2 * count, seed), count, seed)
    return pairs.x, pairs.y


def task(size: Profile, change: Change | None = None) -> Pictures:
    """Handwritten pairs, or, with a change, changed printed ones."""
    if change is None:
        _, validation, test = rank.pictures(size.base, size.labels, seed=0)
        return Pictures(
            size.labels,
            partial(handwritten, size),
            (validation.x, validation.y),
            (test.x, test.y),
        )
    return Pictures(
        size.shift_labels,
        partial(printed, size),
        _printed(size.base.validation_pictures, 9001),
        _printed(size.base.test_pictures, 9002),
        change,
    )


def run(
    profile: str | Profile = "cpu",
    *,
    parts: Sequence[str] = PARTS,
    jobs: int | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Recording:
    """Run the parts; with ``out``, which takes all, leave ``placement.PROFILE.json`` there.

    Raises:
        ValueError: A part that there is not, or ``out`` with some of the parts only.
    """
    size = PROFILES[profile] if isinstance(profile, str) else profile
    return run_parts("placement", size, parts, PARTS, SOURCES, _part, jobs, device, out, progress)


def _part(size: Profile, part: str, place: Place) -> list[Row]:
    base = rank.adder(size.base, place.device, place.progress).to(place.device)
    recipe = Recipe(size.steps)
    if part == "own":
        own = [
            Whole(f"the {what}", "head" if what == "head" else "full", lr, seed, what)
            for what in ("embeddings", "norms", "biases", "head")
            for lr in size.own_rates
            for seed in size.seeds
        ]
        return whole_models(part, own, base, task(size), recipe, place=place)
    if part in ("places", "rank", "blocks"):
        return adapters(part, cells(size, part), base, task(size), recipe, place=place)
    rows: list[Row] = []
    for name, change in shifts(size, part).items():
        pictures = task(size, change)
        safe = name.replace(" ", "-").replace("°", "").replace("%", "")
        low_rank = [
            Named(
                f"LoRA r={r}, {name}",
                Cell(LoRAConfig(r=r, alpha=size.alpha, targets=list(BLOCK_LINEARS)), lr, seed),
            )
            for r in size.shift_ranks
            for lr in size.shift_rates
            for seed in size.few_seeds
        ]
        full = [
            Whole(f"full, {name}", "full", lr, seed)
            for lr in size.full_rates
            for seed in size.few_seeds
        ]
        rows.append(untrained(f"base, {name}", base, pictures))
        rows += adapters(safe, low_rank, base, pictures, recipe, place=place)
        rows += whole_models(safe, full, base, pictures, recipe, place=place)
    return rows


def cells(size: Profile, part: str) -> list[Named]:
    """The adapters of the parts on handwriting."""
    model = size.base.model
    named: list[Named] = []

    def add(arm: str, r: int, targets: Sequence[str] | str) -> None:
        chosen = targets if isinstance(targets, str) else list(targets)
        config = LoRAConfig(r=r, alpha=size.alpha, targets=chosen)
        named.extend(
            Named(arm, Cell(config, lr, seed))
            for lr in size.rates
            for seed in (size.few_seeds if part == "rank" else size.seeds)
        )

    if part == "places":
        for place, layers in PLACES.items():
            r = rank_within(size.budget, model.width, model.ffn_factor, place)
            add(f"{place}, r={r}", r, layers)
    elif part == "rank":
        for place, layers in PLACES.items():
            if len(layers) == 1:
                add(f"{place}, r={size.r}", size.r, layers)
    else:
        # In one block as many numbers as "all six" has in all of them.
        r = rank_within(size.budget, model.width, model.ffn_factor, "all six") * model.layers
        for block in range(model.layers):
            add(f"block {block + 1} only, r={r}", r, rf"blocks\.{block}\..*_proj")
    return named
