"""LoRA's ranks and full fine-tuning on several bases, of which a comparison on one sees one.

The bases are pretrained by one recipe from different seeds: other first weights, other printed
digits, other orders. On each of them every arm is tuned anew, with the draws of the labelled
pictures that chapter 8 tunes with, and tested with those that it tests with. So between the bases
nothing differs but the base and what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minilora import LoRAConfig
from minilora.experiments.families import AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder, task
from minilora.experiments.tuning import Tuning
from minilora.lab.sweep import Cell
from minilora.lab.transformer import BLOCK_LINEARS

FULL = "full fine-tuning"


@dataclass(frozen=True)
class BasesProfile(Profile):
    """The size of a run. ``bases`` are the seeds of the pretrainings."""

    sums: Sums
    bases: tuple[int, ...]
    labels: int
    steps: int
    batch_size: int
    alpha: float
    ranks: tuple[int, ...]
    tuning: Tuning


PROFILES = {
    "laptop": BasesProfile(
        name="laptop",
        sums=SUMS["cpu"],
        bases=(1, 2, 3, 4),
        labels=500,
        steps=200,
        batch_size=32,
        alpha=8.0,
        ranks=(1, 2, 4, 8, 32),
        tuning=Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="fine", stride=2),
    ),
    "smoke": BasesProfile(
        name="smoke",
        sums=SUMS["smoke"],
        bases=(1, 2),
        labels=40,
        steps=4,
        batch_size=16,
        alpha=8.0,
        ranks=(1, 2),
        tuning=Tuning(1, 1, (100, 101), (0, 1), glance=1, ladder="fine", stride=2),
    ),
}


def _part(profile: BasesProfile, part: str, machine: Machine) -> list[Row]:
    targets = list(BLOCK_LINEARS)
    arms: list[Run] = [WholeRun(FULL, "full", 2.2e-3)]
    for r in profile.ranks:
        config = LoRAConfig(r=r, alpha=profile.alpha, targets=targets)
        arms.append(AdapterRun(f"LoRA r={r}", Cell(config, 2.2e-2)))
    rows = []
    for seed in profile.bases:
        family = Family(
            f"base {seed}",
            adder(profile.sums, machine.device, machine.progress, seed),
            task(profile.sums, profile.labels),
            Recipe(profile.steps, profile.batch_size),
            machine,
            at_once=16,
        )
        rows += family.compare(arms, profile.tuning)
        machine.say(f"base {seed} of {len(profile.bases)}")
    return rows


EXPERIMENT = Experiment("bases", PROFILES, ("bases",), _part, on_card=())
run = EXPERIMENT.run
