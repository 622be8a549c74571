"""Learning rate, α and the start: what each of them does to the training of an adapter.

The task is that of the rank experiment, a printed-digit adder that is to add handwritten digits.
Every part is a grid of short trainings. Learning rates are judged by the log loss on validation
data; arms are compared on test data, each at its own best rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from minilora import LoRAConfig
from minilora.experiments import sums
from minilora.experiments.families import BOTH, AdapterRun, Family, Recipe, Run, Task, WholeRun
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder
from minilora.lab.sweep import Cell
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.layers import LoRALayer

#: What can be run by itself: a section of the chapter each.
PARTS = ("adam", "scaling", "plus", "starts", "inverted", "batch")


@dataclass(frozen=True)
class RatesProfile(Profile):
    """The size of a run.

    ``r`` is the rank of the parts that look at one rank only. Rates are peak learning rates.
    ``seeds`` are those of the tuning; arms that are compared get ``more_seeds`` at their best rate,
    on test data alone.
    """

    sums: Sums
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
    "cpu": RatesProfile(
        name="cpu",
        sums=SUMS["cpu"],
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
    "gpu": RatesProfile(
        name="gpu",
        sums=SUMS["gpu"],
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
    "smoke": RatesProfile(
        name="smoke",
        sums=SUMS["smoke"],
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


def task(profile: RatesProfile, part: str) -> Task:
    """The pictures of a part: handwritten pairs, their ink and paper exchanged in "inverted"."""
    return sums.task(profile.sums, profile.labels, invert if part == "inverted" else None)


def sweeps(profile: RatesProfile, part: str) -> list[tuple[str, list[AdapterRun], Recipe]]:
    """The sweeps of a part, each with its name and its recipe."""
    config = partial(LoRAConfig, alpha=profile.alpha, targets=list(BLOCK_LINEARS))
    recipe = Recipe(profile.steps)

    def runs(
        arm: str,
        rates: Sequence[float],
        config: LoRAConfig,
        lr_ratio: float = 1.0,
        trained: str = "AB",
    ) -> list[AdapterRun]:
        return [
            AdapterRun(arm, Cell(config, lr, seed, lr_ratio, trained))
            for lr in rates
            for seed in profile.seeds
        ]

    if part == "adam":
        named = [
            one for r in profile.ranks for one in runs(f"LoRA r={r}", profile.rates, config(r=r))
        ]
        return [("adam", named, recipe)]
    if part == "scaling":
        # α/r under AdamW is the part "adam", and at rank 1 the two scalings are the same.
        adamw, sgd = [], []
        for r in profile.ranks:
            if r > 1:
                root = config(r=r, scaling="rslora")
                adamw += runs(f"α/√r, AdamW, r={r}", profile.rates, root)
                sgd += runs(f"α/√r, SGD, r={r}", profile.sgd_rates, root)
            sgd += runs(f"α/r, SGD, r={r}", profile.sgd_rates, config(r=r))
        with_sgd = replace(recipe, optimizer="sgd")
        return [("scaling-adamw", adamw, recipe), ("scaling-sgd", sgd, with_sgd)]
    if part == "plus":
        named = []
        for ratio in profile.plus_ratios:
            arm = f"LoRA+ ratio {ratio:g}"
            named += runs(arm, profile.plus_rates, config(r=profile.r), lr_ratio=ratio)
        return [("plus", named, recipe)]
    if part == "starts":
        plain, other = config(r=profile.r), config(r=profile.r, init=zero_a)
        named = runs("A at zero", profile.rates, other)
        named += runs("only B trains", profile.rates, plain, trained="B")
        named += runs("only A trains", profile.rates, other, trained="A")
        return [("starts", named, recipe)]
    if part == "inverted":
        return [("inverted", runs("LoRA, inverted", profile.rates, config(r=profile.r)), recipe)]
    if part == "batch":
        return [
            (
                f"batch-{batch}",
                runs(f"batch {batch}", profile.rates, config(r=profile.r)),
                replace(recipe, batch_size=batch),
            )
            for batch in profile.batches
        ]
    raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")


def full_fine_tunings(profile: RatesProfile, part: str) -> list[WholeRun]:
    """The full fine-tunings of a part."""
    arms = {"adam": "full fine-tuning", "inverted": "full fine-tuning, inverted"}
    if part not in arms:
        return []
    return [
        WholeRun(arms[part], "full", lr, seed)
        for lr in profile.full_rates
        for seed in profile.seeds
    ]


def tested_seeds(profile: RatesProfile, part: str, arm: str) -> tuple[int, ...]:
    """The seeds that an arm is tested with: more where the part compares it on test data."""
    compared = part in ("adam", "plus", "starts")
    if part == "scaling":
        compared = arm == f"α/√r, AdamW, r={profile.ranks[-1]}"
    return profile.seeds + profile.more_seeds * compared


def _part(profile: RatesProfile, part: str, machine: Machine) -> list[Row]:
    base, pictures = adder(profile.sums, machine.device, machine.progress), task(profile, part)
    groups: list[tuple[str, Sequence[Run], Recipe]] = [
        *sweeps(profile, part),
        (part, full_fine_tunings(profile, part), Recipe(profile.steps)),
    ]
    rows: list[Row] = []
    for name, runs, recipe in groups:
        family = Family(name, base, pictures, recipe, machine)
        arms = {run.arm: run for run in runs}
        seeds = {arm: tested_seeds(profile, part, arm) for arm in arms}
        rows += family.tested(family.train(runs, BOTH), arms, seeds)
    return rows


EXPERIMENT = Experiment("rates", PROFILES, PARTS, _part)
run = EXPERIMENT.run
