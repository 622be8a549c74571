"""Every way to adapt the adder, at one number of labels; some of them at others.

Every arm starts from the same base and is trained for the same number of steps on the same labelled
pictures ("from scratch" starts from nothing and gets three times the steps). Its learning rate is
tuned with seeds that are used for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from minilora import LoRAConfig
from minilora.experiments.families import AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.rank.baselines import baselines
from minilora.experiments.rank.watched import Watching, watched
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder, task
from minilora.experiments.tuning import Tuning, best_rate
from minilora.lab.sweep import Cell
from minilora.lab.transformer import BLOCK_LINEARS

#: What can be run by itself.
PARTS = ("arms", "baselines", "watched")


@dataclass(frozen=True)
class Curve:
    """Other numbers of labels, the arms that are asked about them, and their seeds."""

    labels: tuple[int, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RankProfile(Profile):
    """The size of a run.

    ``labels`` is the number of labelled pictures of the main figure, in which every arm has a part.
    """

    sums: Sums
    labels: int
    ranks: tuple[int, ...]
    random_rank: int
    alpha: float
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    curve: Curve
    watch: Watching


PROFILES = {
    "cpu": RankProfile(
        name="cpu",
        sums=SUMS["cpu"],
        labels=500,
        ranks=(1, 2, 4, 8, 16, 32),
        random_rank=8,
        alpha=8.0,
        steps=200,
        batch_size=32,
        seeds=(0, 1, 2, 3, 4),
        tuning_seeds=(100,),
        curve=Curve(
            labels=(100, 250, 2000),
            arms=("LoRA r=1", "LoRA r=8", "full fine-tuning"),
            seeds=(0, 1, 2),
        ),
        watch=Watching(
            labels=100,
            ranks=(1, 32),
            rates=(5e-3, 1e-2, 2.2e-2),
            steps=400,
            batch_size=32,
            seeds=(0, 1, 2),
        ),
    ),
    "gpu": RankProfile(
        name="gpu",
        sums=SUMS["gpu"],
        labels=500,
        ranks=(1, 2, 4, 8, 16, 32, 64),
        random_rank=8,
        alpha=8.0,
        steps=300,
        batch_size=32,
        seeds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        tuning_seeds=(100,),
        curve=Curve(
            labels=(100, 250, 1000, 2000, 4000),
            arms=("LoRA r=1", "LoRA r=8", "LoRA r=64", "full fine-tuning"),
            seeds=(0, 1, 2, 3, 4),
        ),
        watch=Watching(
            labels=100,
            ranks=(1, 4, 16, 64),
            rates=(5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2),
            steps=400,
            batch_size=32,
            seeds=(0, 1, 2, 3, 4),
        ),
    ),
    "smoke": RankProfile(
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        ranks=(1, 2),
        random_rank=2,
        alpha=8.0,
        steps=4,
        batch_size=16,
        seeds=(0, 1),
        tuning_seeds=(100,),
        curve=Curve(labels=(30,), arms=("LoRA r=1", "full fine-tuning"), seeds=(0,)),
        watch=Watching(
            labels=40, ranks=(1, 2), rates=(1e-3, 1e-2), steps=20, batch_size=16, seeds=(0,)
        ),
    ),
}


def arms(profile: RankProfile) -> list[Run]:
    """Every way to adapt that is compared, each with the middle of the rates it starts with."""
    config = partial(LoRAConfig, alpha=profile.alpha, targets=list(BLOCK_LINEARS))
    r = profile.random_rank
    return [
        WholeRun("head only", "head", 5e-3, trains="head"),
        WholeRun("biases only", "biases", 1e-2, trains="biases of the blocks"),
        *(AdapterRun(f"LoRA r={r}", Cell(config(r=r), 1e-2)) for r in profile.ranks),
        AdapterRun(f"random A, r={r}", Cell(config(r=r), 5e-2, trained="B"), "random"),
        WholeRun("full fine-tuning", "full", 2.2e-3),
        WholeRun("from scratch", "scratch", 1e-3, scratch=True, patience=3),
    ]


def compare(
    profile: RankProfile, labels: int, chosen: list[Run], tuning: Tuning, machine: Machine
) -> list[Row]:
    """Tune and test some arms with so many labels; their rows in the order of the arms."""
    family = Family(
        f"{labels} labels",
        adder(profile.sums, machine.device, machine.progress),
        task(profile.sums, labels),
        Recipe(profile.steps, profile.batch_size),
        machine,
    )
    order = [arm.arm for arm in chosen]
    return sorted(family.compare(chosen, tuning), key=lambda row: order.index(row.arm))


def _arms(profile: RankProfile, machine: Machine) -> list[Row]:
    compared, curve = arms(profile), profile.curve
    first = Tuning(2, profile.tuning_seeds, profile.seeds, profile.sums.lower)
    rows = compare(profile, profile.labels, compared, first, machine)
    # With other numbers of labels an arm starts from the rate that it had with this one.
    again = Tuning(1, profile.tuning_seeds, curve.seeds)
    chosen = [arm.at(best_rate(rows, arm.arm), 0) for arm in compared if arm.arm in curve.arms]
    for labels in curve.labels:
        rows += compare(profile, labels, chosen, again, machine)
    return rows


def _part(profile: RankProfile, part: str, machine: Machine) -> list[Row]:
    if part == "arms":
        return _arms(profile, machine)
    base = adder(profile.sums, machine.device, machine.progress)
    if part == "watched":
        return watched(profile.watch, profile.sums, profile.alpha, base, machine)
    everywhere = dict.fromkeys(profile.curve.labels, profile.curve.seeds)
    return baselines(profile.sums, base, {profile.labels: profile.seeds} | everywhere)


EXPERIMENT = Experiment("rank", PROFILES, PARTS, _part)
run = EXPERIMENT.run
