"""Learning rate, α and the start: what each of them does to the training of an adapter.

The task is that of the rank experiment, a printed-digit adder that is to add handwritten digits.
Every part is a comparison of arms, each tuned on the same ladder of learning rates. Rates are
judged by the log loss on validation data; some arms are then tested, each at its own best rate, on
test data and with draws of the pictures that had no part in the tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from torch import Tensor

from minilora import LoRAConfig
from minilora.experiments import sums
from minilora.experiments.families import FINAL, TUNE, AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.rates.ladder import LADDER, Runs, Start, best_rate, climb, rung
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder
from minilora.experiments.tasks import Task
from minilora.lab.sweep import Cell
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.layers import LoRALayer

#: What can be run by itself: a section of the chapter each.
PARTS = ("adam", "scaling", "plus", "starts", "inverted", "batch", "short")

#: How the scale in front of BA may depend on the rank: (α, r) → scale.
RULES: dict[str, Callable[[float, int], float]] = {
    "α fixed, α/r": lambda alpha, r: alpha / r,
    "α fixed, α/√r": lambda alpha, r: alpha / r**0.5,
    "α = 2r, α/r": lambda alpha, r: 2.0,
}


@dataclass(frozen=True)
class RatesProfile(Profile):
    """The size of a run.

    ``r`` is the rank of the parts that look at one rank only, ``peak`` a guess at the best rate of
    LoRA with ``alpha`` over the rank, and ``full`` at that of full fine-tuning: ladders begin
    around them, ``lower`` rungs longer. ``draws`` are those of the tuning, of which the ``first``
    try whole ladders; ``tested`` are those of the tests.
    """

    sums: Sums
    labels: int
    steps: int
    short_steps: int
    alpha: float
    ranks: tuple[int, ...]
    sgd_ranks: tuple[int, ...]
    r: int
    peak: float
    full: float
    ratios: tuple[float, ...]
    batches: tuple[int, ...]
    draws: tuple[int, ...]
    first: int
    tested: tuple[int, ...]
    lower: int = 0


PROFILES = {
    "cpu": RatesProfile(
        name="cpu",
        sums=SUMS["cpu"],
        labels=500,
        steps=200,
        short_steps=50,
        alpha=8.0,
        ranks=(1, 4, 16, 48),
        sgd_ranks=(1, 16),
        r=4,
        peak=0.032,
        full=0.004,
        ratios=(0.25, 4.0, 16.0),
        batches=(2, 8),
        draws=(100, 101, 102),
        first=1,
        tested=(0, 1, 2, 3, 4),
    ),
    "gpu": RatesProfile(
        name="gpu",
        sums=SUMS["gpu"],
        labels=2000,
        steps=300,
        short_steps=75,
        alpha=8.0,
        ranks=(1, 4, 16, 64),
        sgd_ranks=(1, 16),
        r=4,
        peak=0.016,
        full=0.001,
        ratios=(0.25, 4.0, 16.0),
        batches=(2, 8),
        draws=(100, 101, 102),
        first=3,
        tested=(0, 1, 2, 3, 4, 5, 6, 7),
        lower=1,
    ),
    "smoke": RatesProfile(
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        steps=4,
        short_steps=2,
        alpha=8.0,
        ranks=(1, 2),
        sgd_ranks=(1, 2),
        r=2,
        peak=0.032,
        full=0.004,
        ratios=(4.0,),
        batches=(4,),
        draws=(100, 101),
        first=1,
        tested=(0,),
    ),
}


@dataclass(frozen=True)
class Compared:
    """What is compared: a run at the middle of its ladder, with so many rungs on either side.

    Where a curve as a whole matters, ``sure`` asks for all draws at all of these rungs.
    """

    run: Run
    below: int = 3
    above: int = 1
    tested: bool = False
    sure: bool = False


@dataclass(frozen=True)
class Group:
    """Arms that share a recipe; ``name`` is the setting of their rows."""

    name: str
    arms: list[Compared]
    recipe: Recipe


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


def arm_of(alpha: float, rule: str, r: int) -> str:
    """The arm that has the scale of one of the ``RULES``; arms that are the same share a name."""
    scale = RULES[rule](alpha, r)
    return f"LoRA r={r}" if scale == alpha / r else f"LoRA r={r}, scale {scale:.3g}"


def sgd_arm_of(alpha: float, rule: str, r: int) -> str:
    """Likewise, under plain gradient descent."""
    return f"SGD, r={r}, scale {RULES[rule](alpha, r):.3g}"


def groups(profile: RatesProfile, part: str) -> list[Group]:
    """What a part compares."""
    alpha, r = profile.alpha, profile.r
    at_rank = partial(LoRAConfig, targets=list(BLOCK_LINEARS))
    plain = at_rank(r=r, alpha=alpha)

    def adapter(
        arm: str, config: LoRAConfig, peak: float = profile.peak, **cell: float | str
    ) -> Run:
        return AdapterRun(arm, Cell(config, LADDER[rung(peak)], **cell))  # type: ignore[arg-type]

    def full(arm: str) -> Run:
        return WholeRun(arm, "full", LADDER[rung(profile.full)])

    recipe = Recipe(profile.steps)
    if part == "adam":
        arms = [
            Compared(adapter(f"LoRA r={one}", at_rank(r=one, alpha=alpha)), tested=one > 1)
            for one in profile.ranks
        ]
        whole = Compared(full("full fine-tuning"), 2, 3, sure=True)
        return [Group(part, [*arms, whole], recipe)]
    if part == "scaling":
        return _scalings(profile, at_rank, recipe)
    if part == "plus":
        arms = [
            Compared(
                adapter(f"LoRA+ ratio {q:g}", plain, profile.peak * q**-0.5, lr_ratio=q),
                tested=True,
            )
            for q in profile.ratios
        ]
        return [Group(part, arms, recipe)]
    if part == "starts":
        other = at_rank(r=r, alpha=alpha, init=zero_a)
        runs = [
            adapter("A at zero", other),
            adapter("only B trains", plain, 2 * profile.peak, trained="B"),
            adapter("only A trains", other, trained="A"),
        ]
        return [Group(part, [Compared(run, 2, tested=True) for run in runs], recipe)]
    if part == "inverted":
        arms = [
            Compared(adapter("LoRA, inverted", plain, profile.peak / 2), 2, 1, sure=True),
            Compared(full("full fine-tuning, inverted"), 1, 1, sure=True),
        ]
        return [Group(part, arms, recipe)]
    if part == "batch":
        return [
            Group(
                f"batch-{size}",
                [Compared(adapter(f"batch {size}", plain, profile.peak / 2))],
                replace(recipe, batch_size=size),
            )
            for size in profile.batches
        ]
    if part == "short":
        runs = [adapter("LoRA, few steps", plain), full("full fine-tuning, few steps")]
        return [Group(part, [Compared(run) for run in runs], Recipe(profile.short_steps))]
    raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")


def _scalings(
    profile: RatesProfile, at_rank: Callable[..., LoRAConfig], recipe: Recipe
) -> list[Group]:
    """Other scales than α/r under AdamW, and two of the rules under plain gradient descent."""
    adamw: dict[str, Compared] = {}
    sgd: dict[str, Compared] = {}
    for rule, scale_of in RULES.items():
        for r in profile.ranks:
            scale, arm = scale_of(profile.alpha, r), arm_of(profile.alpha, rule, r)
            config = at_rank(r=r, alpha=scale * r)
            if arm != f"LoRA r={r}":  # that one is in the part "adam"
                # Where α is four times as large, half the rate is right, to begin with.
                middle = LADDER[rung(profile.peak * (profile.alpha / config.alpha) ** 0.5)]
                run = AdapterRun(arm, Cell(config, middle))
                root = arm == arm_of(profile.alpha, "α fixed, α/√r", r)
                adamw[arm] = Compared(run, 2, tested=root and r in profile.ranks[-2:])
            if r in profile.sgd_ranks and rule != "α = 2r, α/r":
                arm = sgd_arm_of(profile.alpha, rule, r)
                middle = LADDER[rung(profile.peak * (profile.alpha / scale) ** 1.25)]
                sgd[arm] = Compared(AdapterRun(arm, Cell(config, middle)))
    return [
        Group("scaling-adamw", list(adamw.values()), recipe),
        Group("scaling-sgd", list(sgd.values()), replace(recipe, optimizer="sgd")),
    ]


def _compared(profile: RatesProfile, group: Group, part: str, machine: Machine) -> list[Row]:
    """Tune the arms of a group, and test those that are to be tested; the rows of both."""
    base, pictures = adder(profile.sums, machine.device, machine.progress), task(profile, part)
    of = {arm.run.arm: arm for arm in group.arms}
    number = count(1)

    def train(runs: Runs, stages: tuple[str, ...] = TUNE) -> list[Row]:
        # Each call has draws of its own, and therefore files of its own.
        family = Family(f"{group.name}-{next(number)}", base, pictures, group.recipe, machine)
        asked = [of[arm].run.at(lr, draw) for arm, pairs in runs.items() for lr, draw in pairs]
        return [replace(row, setting=group.name) for row in family.train(asked, stages)]

    starts = {}
    for name, arm in of.items():
        middle, draws = rung(arm.run.lr), len(profile.draws) if arm.sure else profile.first
        starts[name] = Start(middle - arm.below - profile.lower, middle + arm.above, draws)
    rows = climb(train, starts, profile.draws)
    best = {name: best_rate(rows, name) for name, arm in of.items() if arm.tested}
    tests = {name: [(lr, draw) for draw in profile.tested] for name, lr in best.items()}
    return rows + train(tests, FINAL) if tests else rows


def _part(profile: RatesProfile, part: str, machine: Machine) -> list[Row]:
    return [
        row for group in groups(profile, part) for row in _compared(profile, group, part, machine)
    ]


EXPERIMENT = Experiment("rates", PROFILES, PARTS, _part)
run = EXPERIMENT.run
