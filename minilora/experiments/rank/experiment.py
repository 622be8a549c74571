"""Every way to adapt the adder, at one number of labels and steps; some of them at others.

Every arm starts from the same base and is trained for the same number of steps on the same labelled
pictures ("from scratch" starts from nothing and gets more steps). Its learning rate is tuned with
draws of the pictures that are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from minilora import LoRAConfig
from minilora.experiments.families import FINAL, AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.rank.baselines import baselines
from minilora.experiments.rank.watched import Watching, watched
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder, printed, sheets, task
from minilora.experiments.tuning import Tuning, best_rate, runner_up
from minilora.lab.sweep import Cell
from minilora.lab.transformer import BLOCK_LINEARS

#: What can be run by itself.
PARTS = ("arms", "elsewhere", "baselines", "watched")

FULL = "full fine-tuning"


@dataclass(frozen=True)
class Elsewhere:
    """Another number of labels or of steps, and the arms that are asked about it.

    ``middles`` are the middles of the rates that they start with.
    """

    labels: int
    steps: int
    middles: Mapping[str, float]


@dataclass(frozen=True)
class RankProfile(Profile):
    """The size of a run.

    ``labels`` and ``steps`` are those of the main figure, in which every arm has a part; "from
    scratch" gets ``patience`` times the steps. The arms named in ``again`` are also tested at the
    rate that came second, and those in ``slower`` at the rates given there.
    """

    sums: Sums
    labels: int
    steps: int
    patience: int
    batch_size: int
    alpha: float
    ranks: tuple[int, ...]
    random_rank: int
    tuning: Tuning
    again: tuple[str, ...]
    slower: Mapping[str, tuple[float, ...]]
    elsewhere: tuple[Elsewhere, ...]
    watch: Watching


PROFILES = {
    "cpu": RankProfile(
        name="cpu",
        sums=SUMS["cpu"],
        labels=500,
        steps=200,
        patience=2,
        batch_size=32,
        alpha=8.0,
        ranks=(1, 2, 4, 8, 32),
        random_rank=8,
        tuning=Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="fine", stride=2),
        again=("LoRA r=1", "LoRA r=2", "LoRA r=4", "LoRA r=8", "LoRA r=32", FULL),
        slower={"LoRA r=8": (3.2e-3, 7e-3), FULL: (7e-4,)},
        elsewhere=(
            Elsewhere(100, 200, {"LoRA r=8": 7e-4, FULL: 2.2e-4}),
            Elsewhere(500, 50, {"LoRA r=1": 2.2e-2, "LoRA r=8": 2.2e-2, FULL: 2.2e-3}),
        ),
        watch=Watching(
            labels=100,
            ranks=(1, 32),
            lr=1e-2,
            full_lr=1.5e-3,
            steps=400,
            batch_size=32,
            seeds=(0, 1, 2),
        ),
    ),
    "gpu": RankProfile(
        name="gpu",
        sums=SUMS["gpu"],
        labels=500,
        steps=300,
        patience=3,
        batch_size=32,
        alpha=8.0,
        ranks=(1, 2, 4, 8, 32, 64),
        random_rank=8,
        tuning=Tuning(3, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="fine", stride=2),
        again=("LoRA r=1", "LoRA r=2", "LoRA r=4", "LoRA r=8", "LoRA r=32", "LoRA r=64", FULL),
        slower={"LoRA r=8": (7e-4, 1.5e-3, 3.2e-3), FULL: (1.5e-4, 3.2e-4)},
        elsewhere=(
            Elsewhere(100, 300, {"LoRA r=1": 2.2e-3, "LoRA r=8": 2.2e-3, FULL: 5e-4}),
            Elsewhere(2000, 300, {"LoRA r=1": 2.2e-2, "LoRA r=8": 2.2e-2, FULL: 5e-3}),
            Elsewhere(500, 75, {"LoRA r=1": 5e-2, "LoRA r=8": 5e-2, FULL: 5e-3}),
            Elsewhere(500, 800, {"LoRA r=1": 2.2e-2, "LoRA r=8": 2.2e-2, FULL: 2.2e-3}),
        ),
        watch=Watching(
            labels=100,
            ranks=(1, 4, 16, 64),
            lr=5e-3,
            full_lr=7e-4,
            steps=400,
            batch_size=32,
            seeds=(0, 1, 2, 3, 4),
        ),
    ),
    "smoke": RankProfile(
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        steps=4,
        patience=3,
        batch_size=16,
        alpha=8.0,
        ranks=(1, 2),
        random_rank=2,
        tuning=Tuning(1, 1, (100, 101), (0, 1), glance=1, ladder="fine", stride=2),
        again=("LoRA r=1", FULL),
        slower={"LoRA r=2": (1e-3,), FULL: (1e-4,)},
        elsewhere=(
            Elsewhere(30, 4, {"LoRA r=1": 1e-2, FULL: 2.2e-3}),
            Elsewhere(40, 2, {"LoRA r=1": 1e-2, FULL: 2.2e-3}),
        ),
        watch=Watching(
            labels=40, ranks=(1, 2), lr=1e-2, full_lr=1e-3, steps=20, batch_size=16, seeds=(0, 1)
        ),
    ),
}


def arms(profile: RankProfile) -> list[Run]:
    """Every way to adapt that is compared, each with the middle of the rates it starts with."""
    config = partial(LoRAConfig, alpha=profile.alpha, targets=list(BLOCK_LINEARS))
    r = profile.random_rank
    return [
        WholeRun("head only", "head", 2.2e-3, trains="head"),
        WholeRun("biases only", "biases", 0.22, trains="biases of the blocks"),
        *(AdapterRun(f"LoRA r={r}", Cell(config(r=r), 2.2e-2)) for r in profile.ranks),
        AdapterRun(f"random A, r={r}", Cell(config(r=r), 5e-2, trained="B"), "random"),
        WholeRun(FULL, "full", 2.2e-3),
        WholeRun("from scratch", "scratch", 5e-4, scratch=True, patience=profile.patience),
    ]


def _family(profile: RankProfile, where: Elsewhere, machine: Machine) -> Family:
    pictures = replace(
        task(profile.sums, where.labels),
        sheets=sheets(profile.sums),
        aside={"printed": printed()},
    )
    return Family(
        f"{where.labels} labels, {where.steps} steps",
        adder(profile.sums, machine.device, machine.progress),
        pictures,
        Recipe(where.steps, profile.batch_size),
        machine,
        at_once=16,  # few passes, each with many cells: the rounds of the tuning are small
    )


def _in_order(rows: Iterable[Row], names: list[str]) -> list[Row]:
    """The rows by their arms, and by their stage within an arm: an arm's own come first."""

    def place(row: Row) -> tuple[int, bool, bool]:
        of = [row.arm == name or row.arm.startswith(f"{name}, ") for name in names]
        return of.index(True), row.stage == "final", row.arm != names[of.index(True)]

    return sorted(rows, key=place)


def _arms(profile: RankProfile, machine: Machine) -> list[Row]:
    of = {arm.arm: arm for arm in arms(profile)}
    family = _family(profile, Elsewhere(profile.labels, profile.steps, {}), machine)
    rows = family.compare(of.values(), profile.tuning)
    more = [
        replace(of[name], arm=f"{name}, {how}", kind="other rate").at(lr, seed)
        for how, name, lr in _other_rates(profile, rows)
        for seed in profile.tuning.tested
    ]
    rows += replace(family, name=f"{family.name}, other rates").train(more, FINAL)
    return _in_order(rows, list(of))


def _other_rates(profile: RankProfile, rows: list[Row]) -> list[tuple[str, str, float]]:
    """(how it is named, arm, rate) of the tests at other rates than the best."""
    seconds = [("runner-up", name, runner_up(rows, name)) for name in profile.again]
    slower = [
        (f"at {lr:g}", name, lr)
        for name, rates in profile.slower.items()
        for lr in rates
        if lr != best_rate(rows, name)
    ]
    return seconds + slower


def _elsewhere(profile: RankProfile, machine: Machine) -> list[Row]:
    of = {arm.arm: arm for arm in arms(profile)}
    rows: list[Row] = []
    for where in profile.elsewhere:
        chosen = [of[name].at(lr, 0) for name, lr in where.middles.items()]
        rows_of_arms = _family(profile, where, machine).compare(chosen, profile.tuning)
        found = _in_order(rows_of_arms, list(where.middles))
        if where.steps != profile.steps:
            found = [_with_steps(row, where.steps, list(where.middles)) for row in found]
        rows += found
    return rows


def _with_steps(row: Row, steps: int, names: list[str]) -> Row:
    """The row of an arm with another number of steps, which is another arm."""
    name = next(name for name in names if row.arm == name or row.arm.startswith(f"{name}, "))
    kind = "steps" if row.arm == name else row.kind
    return replace(row, arm=f"{name}, {steps} steps{row.arm.removeprefix(name)}", kind=kind)


def _part(profile: RankProfile, part: str, machine: Machine) -> list[Row]:
    if part == "arms":
        return _arms(profile, machine)
    if part == "elsewhere":
        return _elsewhere(profile, machine)
    base = adder(profile.sums, machine.device, machine.progress)
    if part == "watched":
        return watched(profile.watch, profile.sums, profile.alpha, base, machine)
    labels = dict.fromkeys([profile.labels, *(where.labels for where in profile.elsewhere)])
    return baselines(profile.sums, base, dict.fromkeys(labels, profile.tuning.tested))


EXPERIMENT = Experiment("rank", PROFILES, PARTS, _part)
run = EXPERIMENT.run
