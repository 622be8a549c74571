"""Learning rate, α and the start: what each of them does to the training of an adapter.

The task is that of the rank experiment, a printed-digit adder that is to add handwritten digits.
Every part is a grid of short trainings. Learning rates are judged by the log loss on validation
data; arms are compared on test data, each at its own best rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minilora import LoRAConfig
from minilora.experiments import rank
from minilora.experiments.recording import Recording, Row
from minilora.experiments.sweeps import (
    Named,
    Pictures,
    Place,
    Recipe,
    Whole,
    adapters,
    run_parts,
    whole_models,
)
from minilora.lab.sweep import Cell, Data
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.layers import LoRALayer

#: What can be run by itself: a section of the chapter each.
PARTS = ("adam", "scaling", "plus", "starts", "inverted", "batch")


@dataclass(frozen=True)
class Profile:
    """The size of a run; ``base`` says which model, and which pictures.

    ``r`` is the rank of the parts that look at one rank only. Rates are peak learning rates.
    ``seeds`` are those of the tuning; arms that are compared get ``more_seeds`` at their best rate,
    on test data alone.
    """

    name: str
    base: rank.Profile
    labels: int
    steps: int
    alpha: float
    ranks: tuple[int, ...]
    r: int
    rates: tuple[float, ...]
    full_rates: tuple[float, ...]
    sgd_rates: tuple[float, ...]
    plus_rates: tuple[float, ...]
    plus_ratios: tuple[float, ...]
    batches: tuple[int, ...]
    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]


PROFILES = {
    "cpu": Profile(
        name="cpu",
        base=rank.PROFILES["cpu"],
        labels=500,
        steps=200,
        alpha=8.0,
        ranks=(1, 4, 16),
        r=4,
        rates=(1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2),
        full_rates=(1e-4, 2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2),
        sgd_rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        plus_rates=(2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2, 0.1),
        plus_ratios=(0.25, 1.0, 4.0, 16.0),
        batches=(4, 16, 64),
        seeds=(0, 1),
        more_seeds=(2, 3, 4),
    ),
    "gpu": Profile(
        name="gpu",
        base=rank.PROFILES["gpu"],
        labels=2000,
        steps=300,
        alpha=8.0,
        ranks=(1, 4, 16, 64),
        r=8,
        rates=(2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2),
        full_rates=(2.2e-5, 5e-5, 1e-4, 2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3),
        sgd_rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        plus_rates=(2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2),
        plus_ratios=(0.25, 1.0, 4.0, 16.0),
        batches=(8, 32, 128),
        seeds=(0, 1, 2),
        more_seeds=(3, 4, 5, 6, 7, 8, 9),
    ),
    "smoke": Profile(
        name="smoke",
        base=rank.PROFILES["smoke"],
        labels=40,
        steps=4,
        alpha=8.0,
        ranks=(1, 2),
        r=2,
        rates=(1e-3, 1e-2),
        full_rates=(1e-4, 1e-3),
        sgd_rates=(0.03, 0.3),
        plus_rates=(1e-3, 1e-2),
        plus_ratios=(1.0, 4.0),
        batches=(4, 16),
        seeds=(0,),
        more_seeds=(1,),
    ),
}


def zero_a(layer: LoRALayer) -> None:
    """The other start: A at zero, and B uniform in ±1/√r, as a linear layer from r would be."""
    layer.A.zero_()
    bound = layer.r**-0.5
    layer.B.uniform_(-bound, bound)


def invert(x: Tensor) -> Tensor:
    """White ink on black paper: (N, 1, H, W) → the same, 1 − x."""
    return 1 - x


def labelled(size: Profile, seed: int) -> Data:
    """The labelled pictures of a seed: x (labels, 1, 8, 16), y (labels,)."""
    train, _, _ = rank.pictures(size.base, size.labels, seed)
    return train.x, train.y


def task(size: Profile, part: str) -> Pictures:
    """The pictures of a part: handwritten pairs, their ink and paper exchanged in "inverted"."""
    _, validation, test = rank.pictures(size.base, size.labels, seed=0)
    return Pictures(
        labels=size.labels,
        train=partial(labelled, size),
        validation=(validation.x, validation.y),
        test=(test.x, test.y),
        change=invert if part == "inverted" else None,
    )


def sweeps(size: Profile, part: str) -> list[tuple[str, list[Named], Recipe]]:
    """The sweeps of a part, each with its name and its recipe."""
    config = partial(LoRAConfig, alpha=size.alpha, targets=list(BLOCK_LINEARS))
    recipe = Recipe(size.steps)

    def cells(arm: str, rates: Sequence[float], config: LoRAConfig, **more: object) -> list[Named]:
        return [
            Named(arm, Cell(config, lr, seed, **more))  # type: ignore[arg-type]
            for lr in rates
            for seed in size.seeds
        ]

    if part == "adam":
        named = [one for r in size.ranks for one in cells(f"LoRA r={r}", size.rates, config(r=r))]
        return [("adam", named, recipe)]
    if part == "scaling":
        # α/r under AdamW is the part "adam", and at rank 1 the two scalings are the same.
        adamw, sgd = [], []
        for r in size.ranks:
            if r > 1:
                root = config(r=r, scaling="rslora")
                adamw += cells(f"α/√r, AdamW, r={r}", size.rates, root)
                sgd += cells(f"α/√r, SGD, r={r}", size.sgd_rates, root)
            sgd += cells(f"α/r, SGD, r={r}", size.sgd_rates, config(r=r))
        with_sgd = replace(recipe, optimizer="sgd")
        return [("scaling-adamw", adamw, recipe), ("scaling-sgd", sgd, with_sgd)]
    if part == "plus":
        named = []
        for ratio in size.plus_ratios:
            arm = f"LoRA+ ratio {ratio:g}"
            named += cells(arm, size.plus_rates, config(r=size.r), lr_ratio=ratio)
        return [("plus", named, recipe)]
    if part == "starts":
        plain, other = config(r=size.r), config(r=size.r, init=zero_a)
        named = cells("A at zero", size.rates, other)
        named += cells("only B trains", size.rates, plain, trained="B")
        named += cells("only A trains", size.rates, other, trained="A")
        return [("starts", named, recipe)]
    if part == "inverted":
        return [("inverted", cells("LoRA, inverted", size.rates, config(r=size.r)), recipe)]
    if part == "batch":
        return [
            (
                f"batch-{batch}",
                cells(f"batch {batch}", size.rates, config(r=size.r)),
                replace(recipe, batch_size=batch),
            )
            for batch in size.batches
        ]
    raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")


def whole(size: Profile, part: str) -> list[Whole]:
    """The full fine-tunings of a part."""
    arms = {"adam": "full fine-tuning", "inverted": "full fine-tuning, inverted"}
    if part not in arms:
        return []
    return [Whole(arms[part], "full", lr, seed) for lr in size.full_rates for seed in size.seeds]


def compared(size: Profile, part: str, arms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The further seeds of the arms that the part compares on test data."""
    if part == "scaling":
        arms = [arm for arm in arms if arm == f"α/√r, AdamW, r={size.ranks[-1]}"]
    elif part not in ("adam", "plus", "starts"):
        arms = []
    return dict.fromkeys(arms, size.more_seeds)


def run(
    profile: str | Profile = "cpu",
    *,
    parts: Sequence[str] = PARTS,
    jobs: int | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Recording:
    """Run the parts; with ``out``, which takes all of them, leave ``rates.PROFILE.json`` there.

    Raises:
        ValueError: A part that there is not, or ``out`` with some of the parts only.
    """
    size = PROFILES[profile] if isinstance(profile, str) else profile
    return run_parts("rates", size, parts, PARTS, _part, jobs, device, out, progress)


def _part(size: Profile, part: str, place: Place) -> list[Row]:
    base = rank.adder(size.base, place.device, place.progress).to(place.device)
    pictures = task(size, part)
    rows: list[Row] = []
    for name, cells, recipe in sweeps(size, part):
        more = compared(size, part, [one.arm for one in cells])
        rows += adapters(name, cells, base, pictures, recipe, place=place, more=more)
    full = whole(size, part)
    if full:
        more = compared(size, part, [one.arm for one in full])
        recipe = Recipe(size.steps)
        rows += whole_models(part, full, base, pictures, recipe, place=place, more=more)
    return rows
