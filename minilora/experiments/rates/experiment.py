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

from torch import Tensor

from minilora import LoRAConfig
from minilora.experiments import sums
from minilora.experiments.families import AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder
from minilora.experiments.tasks import Task
from minilora.experiments.tuning import LADDERS, Tuning, nearest
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
    around them. ``tuning`` is that of most arms; see `groups` for the others.
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
    tuning: Tuning


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
        tuning=Tuning(3, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="doubles"),
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
        tuning=Tuning(4, 1, (100, 101, 102), (0, 1, 2, 3, 4, 5, 6, 7), ladder="doubles"),
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
        tuning=Tuning(3, 1, (100, 101), (0,), glance=1, ladder="doubles"),
    ),
}


@dataclass(frozen=True)
class Group:
    """Arms that share a recipe, each with its tuning; ``name`` is the setting of their rows."""

    name: str
    arms: list[tuple[Run, Tuning]]
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
    alpha, r, usual = profile.alpha, profile.r, profile.tuning
    only_tuned, shorter = replace(usual, tested=()), replace(usual, below=usual.below - 1)
    # Where a curve as a whole matters, all draws try all of it.
    sure = replace(only_tuned, below=usual.below - 1, glance=None)
    at_rank = partial(LoRAConfig, targets=list(BLOCK_LINEARS))
    plain = at_rank(r=r, alpha=alpha)

    def adapter(
        arm: str, config: LoRAConfig, peak: float = profile.peak, **cell: float | str
    ) -> Run:
        lr = nearest(peak, LADDERS[usual.ladder])
        return AdapterRun(arm, Cell(config, lr, **cell))  # type: ignore[arg-type]

    def full(arm: str) -> Run:
        return WholeRun(arm, "full", nearest(profile.full, LADDERS[usual.ladder]))

    recipe = Recipe(profile.steps)
    if part == "adam":
        ranks = [adapter(f"LoRA r={one}", at_rank(r=one, alpha=alpha)) for one in profile.ranks]
        arms = [(ranks[0], only_tuned), *((run, usual) for run in ranks[1:])]
        return [Group(part, [*arms, (full("full fine-tuning"), replace(sure, above=3))], recipe)]
    if part == "scaling":
        return _scalings(profile, adapter, recipe)
    if part == "plus":
        runs = [
            adapter(f"LoRA+ ratio {q:g}", plain, profile.peak * q**-0.5, lr_ratio=q)
            for q in profile.ratios
        ]
        return [Group(part, [(run, usual) for run in runs], recipe)]
    if part == "starts":
        other = at_rank(r=r, alpha=alpha, init=zero_a)
        runs = [
            adapter("A at zero", other),
            adapter("only B trains", plain, 2 * profile.peak, trained="B"),
            adapter("only A trains", other, trained="A"),
        ]
        return [Group(part, [(run, shorter) for run in runs], recipe)]
    if part == "inverted":
        arms = [
            (adapter("LoRA, inverted", plain, profile.peak / 2), sure),
            (full("full fine-tuning, inverted"), replace(sure, below=sure.below - 1)),
        ]
        return [Group(part, arms, recipe)]
    if part == "batch":
        return [
            Group(
                f"batch-{size}",
                [(adapter(f"batch {size}", plain, profile.peak / 2), only_tuned)],
                replace(recipe, batch_size=size),
            )
            for size in profile.batches
        ]
    if part == "short":
        runs = [adapter("LoRA, few steps", plain), full("full fine-tuning, few steps")]
        return [Group(part, [(run, only_tuned) for run in runs], Recipe(profile.short_steps))]
    raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")


def _scalings(
    profile: RatesProfile, adapter: Callable[[str, LoRAConfig, float], Run], recipe: Recipe
) -> list[Group]:
    """Other scales than α/r under AdamW, and two of the rules under plain gradient descent."""
    alpha, usual = profile.alpha, profile.tuning
    adamw: dict[str, tuple[Run, Tuning]] = {}
    sgd: dict[str, tuple[Run, Tuning]] = {}
    for rule, scale_of in RULES.items():
        for r in profile.ranks:
            scale, arm = scale_of(alpha, r), arm_of(alpha, rule, r)
            config = LoRAConfig(r=r, alpha=scale * r, targets=list(BLOCK_LINEARS))
            if arm != f"LoRA r={r}":  # that one is in the part "adam"
                # Where α is four times as large, half the rate is right, to begin with.
                run = adapter(arm, config, profile.peak * (alpha / config.alpha) ** 0.5)
                root = arm == arm_of(alpha, "α fixed, α/√r", r)
                tested = usual.tested if root and r in profile.ranks[-2:] else ()
                adamw[arm] = run, replace(usual, below=usual.below - 1, tested=tested)
            if r in profile.sgd_ranks and rule != "α = 2r, α/r":
                arm = sgd_arm_of(alpha, rule, r)
                run = adapter(arm, config, profile.peak * (alpha / scale) ** 1.25)
                sgd[arm] = run, replace(usual, tested=())
    return [
        Group("scaling-adamw", list(adamw.values()), recipe),
        Group("scaling-sgd", list(sgd.values()), replace(recipe, optimizer="sgd")),
    ]


def _part(profile: RatesProfile, part: str, machine: Machine) -> list[Row]:
    base, pictures = adder(profile.sums, machine.device, machine.progress), task(profile, part)
    rows: list[Row] = []
    for group in groups(profile, part):
        family = Family(group.name, base, pictures, group.recipe, machine)
        tunings = {run.arm: tuning for run, tuning in group.arms}
        rows += family.compare([run for run, _ in group.arms], tunings)
    return rows


EXPERIMENT = Experiment("rates", PROFILES, PARTS, _part)
run = EXPERIMENT.run
