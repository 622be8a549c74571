"""More facts than a matrix has room for: random vectors, each with an answer that is random too.

One matrix turns a question x (width,) into a score for each of as many answers. It begins at zero
and is trained as a product of rank r, or whole, on all facts in each step, until little changes.
There is no rule in the facts, so that what was learnt can be counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from minilora import LoRAConfig
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.sweep import Cell, Data, sweep
from minilora.lab.training import Diverged, evaluate, fit, one_thread


@dataclass(frozen=True)
class Capacity:
    """The size of the part. ``lr`` are the middles of the rates for products and for the whole."""

    width: int
    counts: tuple[int, ...]
    ranks: tuple[int, ...]
    steps: int
    alpha: float
    lr: dict[str, float]
    tuning: Tuning


class OneMatrix(nn.Module):
    """Scores of all answers: (N, width) → (N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.matrix.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) → (N, width)."""
        scores: Tensor = self.matrix(x)
        return scores


def table(width: int, count: int, seed: int) -> Data:
    """So many facts: questions (count, width), normal numbers, and their answers (count,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    return x, torch.randint(0, width, (count,), generator=generator)


def stored(log_loss: float, count: int, width: int) -> float:
    """The bits that somebody who guesses would pay more for all answers."""
    return max(0.0, count * (math.log2(width) - log_loss / math.log(2)))


def run_capacity(of: Capacity, machine: Machine) -> list[Row]:
    """Tune every rank at every count, and test it; the rows."""
    rows: list[Row] = []
    for count in of.counts:
        ranks: dict[str, int | None] = {f"{count} facts, r={r}": r for r in of.ranks}
        ranks[f"{count} facts, whole"] = None
        middles = {arm: of.lr["whole" if r is None else "product"] for arm, r in ranks.items()}

        def train(
            runs: Runs,
            stage: str = "tune",
            count: int = count,
            ranks: Mapping[str, int | None] = ranks,
        ) -> list[Row]:
            with one_thread():
                return _train(of, count, ranks, runs, stage, machine)

        found = tune(train, middles, dict.fromkeys(ranks, of.tuning))
        best = {a: [(best_rate(found, a), seed) for seed in of.tuning.tested] for a in ranks}
        rows += found + train(best, "final")
    return rows


def _train(
    of: Capacity,
    count: int,
    ranks: Mapping[str, int | None],
    runs: Runs,
    stage: str,
    machine: Machine,
) -> list[Row]:
    """The rows of some runs: products in one sweep for each table of facts, the whole by itself."""
    rows = []
    for seed in sorted({seed for pairs in runs.values() for _, seed in pairs}):
        facts = table(of.width, count, seed)
        asked = [(arm, lr) for arm, pairs in runs.items() for lr, one in pairs if one == seed]
        for arm, lr, (accuracy, log_loss, numbers) in _learnt(of, ranks, asked, seed, facts):
            r = ranks[arm]
            rows.append(
                Row(
                    stage=stage,
                    arm=arm,
                    kind="full" if r is None else "lora",
                    labels=count,
                    seed=seed,
                    r=r,
                    lr=lr,
                    parameters=numbers,
                    accuracy=accuracy,
                    # Facts that cost a hundredth of a nat are known: no rate is better than that.
                    log_loss=None if log_loss is None else round(log_loss, 2),
                    diverged=log_loss is None,
                )
            )
        machine.say(f"capacity: {count} facts, seed {seed}, {len(asked)} runs")
    return rows


Learnt = tuple[float | None, float | None, int]


def _learnt(
    of: Capacity,
    ranks: Mapping[str, int | None],
    asked: list[tuple[str, float]],
    seed: int,
    facts: Data,
) -> list[tuple[str, float, Learnt]]:
    """For each run that is asked for: accuracy, log loss and trained numbers."""
    found: dict[tuple[str, float], Learnt] = {}
    cells = {}
    for arm, lr in asked:
        r = ranks[arm]
        if r is None:
            found[arm, lr] = whole(of, facts, lr)
        else:
            config = LoRAConfig(r=r, alpha=of.alpha, targets=["matrix"])
            cells[arm, lr] = Cell(config, lr, seed)
    if cells:
        results = sweep(
            OneMatrix(of.width),
            list(cells.values()),
            facts,
            steps=of.steps,
            batch_size=len(facts[1]),
            evaluate={"facts": facts},
            at_once=32,
            progress=False,
        )
        for key, result in zip(cells, results, strict=True):
            score = result.scores.get("facts")
            numbers = (score.accuracy, score.log_loss) if score else (None, None)
            found[key] = (*numbers, result.parameters)
    return [(arm, lr, found[arm, lr]) for arm, lr in asked]


def whole(of: Capacity, facts: Data, lr: float) -> Learnt:
    """The matrix trained as it is: accuracy, log loss (None where it diverged) and numbers."""
    model = OneMatrix(of.width)
    try:
        fit(model, *facts, steps=of.steps, lr=lr, batch_size=len(facts[1]), progress=False)
    except Diverged:
        return None, None, of.width**2
    score = evaluate(model, *facts)
    if not np.isfinite(score.log_loss):
        return None, None, of.width**2
    return score.accuracy, score.log_loss, of.width**2
