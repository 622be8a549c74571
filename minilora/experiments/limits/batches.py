"""Larger batches at an equal number of examples: a reader of digits gets them turned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from minilora import LoRAConfig
from minilora.experiments.families import AdapterRun, Family, Recipe, Run, WholeRun
from minilora.experiments.limits.pictures import turned
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.tasks import Task
from minilora.experiments.tuning import LADDERS, Tuning, nearest
from minilora.lab.sweep import Cell, Data
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier


@dataclass(frozen=True)
class BatchSizes:
    """The size of the part.

    ``lr`` are guesses at the best rates of LoRA and of full fine-tuning in batches of ``at``;
    ladders begin at these times the root of how many times a batch is larger.
    """

    examples: int
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    alpha: float
    lr: dict[str, float]
    at: int
    tuning: Tuning
    scored: int


def pictures(count: int, seed: int) -> Data:
    """Turned digits to learn from."""
    return turned("train", count, seed)


def task(of: BatchSizes) -> Task:
    """The pictures of all arms."""
    validation, test = (turned(which, of.scored, seed=1) for which in ("validation", "test"))
    return Task(of.examples, partial(pictures, of.examples), validation, test)


def arms(of: BatchSizes, size: int) -> list[Run]:
    """What is compared at one batch size."""
    ladder = LADDERS[of.tuning.ladder]
    larger = (size / of.at) ** 0.5
    found: list[Run] = []
    for r in of.ranks:
        config = LoRAConfig(r=r, alpha=of.alpha, targets=list(BLOCK_LINEARS))
        lr = nearest(of.lr["LoRA"] * larger, ladder)
        found.append(AdapterRun(f"batch {size}, r={r}", Cell(config, lr)))
    lr = nearest(of.lr["full"] * larger, ladder)
    return [*found, WholeRun(f"batch {size}, full", "full", lr)]


def run_batches(of: BatchSizes, base: TransformerClassifier, machine: Machine) -> list[Row]:
    """Tune every arm at every batch size, and test it; the rows. ``base`` reads upright digits."""
    learnt, rows = task(of), []
    for size in of.sizes:
        recipe = Recipe(of.examples // size, size)
        family = Family(f"batch-{size}", base, learnt, recipe, machine)
        rows += family.compare(arms(of, size), of.tuning)
        machine.say(f"batches: {size} done")
    return rows
