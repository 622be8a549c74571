"""Adapters with few labels, looked at on their way: what they overfit, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from minilora import LoRAConfig
from minilora.experiments.families import scored_row
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.sums import Sums, task
from minilora.lab.sweep import Result, grid, sweep
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier

LOOKS = 10  # in a run


@dataclass(frozen=True)
class Watching:
    """The grid in which adapters are looked at on their way, every tenth part of it."""

    labels: int
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    steps: int
    batch_size: int
    seeds: tuple[int, ...]


def watched(
    watching: Watching, sums: Sums, alpha: float, base: TransformerClassifier, machine: Machine
) -> list[Row]:
    """One row for every look, on validation data, with "step N" for its setting.

    And one on test data for the rate and the step that validation chose for the rank (setting
    "tuned"), and for the middle rate at the last step ("untuned").
    """
    config = LoRAConfig(r=1, alpha=alpha, targets=list(BLOCK_LINEARS))
    cells = grid(config, r=watching.ranks, lr=watching.rates, seed=watching.seeds)
    every = max(1, watching.steps // LOOKS)
    pictures = task(sums, watching.labels)
    results = sweep(
        base,
        cells,
        pictures.labelled,
        steps=watching.steps,
        schedule="constant",
        batch_size=watching.batch_size,
        evaluate=pictures.scored,
        every=every,
        jobs=machine.jobs if machine.device.type == "cpu" else 1,
        path=machine.file("watched"),
        progress=False,
    )
    found = {(c.config.r, c.lr, c.seed): r for c, r in zip(cells, results, strict=True)}
    rows = []
    for (r, lr, seed), result in found.items():
        row = _row(watching, r, lr, seed, result)
        for k, look in enumerate(result.along.get("validation", []), start=1):
            rows.append(scored_row(replace(row, setting=f"step {k * every}"), "tune", look))
    middle = watching.rates[len(watching.rates) // 2]
    for r in watching.ranks:
        # (rates, looks): the mean over seeds, infinite for a rate at which one diverged
        curves = np.array(
            [
                np.mean(
                    [
                        _curve(found[r, lr, seed], watching.steps // every)
                        for seed in watching.seeds
                    ],
                    0,
                )
                for lr in watching.rates
            ]
        )
        best, step = np.unravel_index(int(curves.argmin()), curves.shape)
        ways = (("tuned", watching.rates[int(best)], int(step)), ("untuned", middle, -1))
        for (how, lr, at), seed in product(ways, watching.seeds):
            result = found[r, lr, seed]
            seen = result.along["test"][at] if result.along else None
            row = _row(watching, r, lr, seed, result)
            row = replace(row, arm=f"{row.arm}, {how}", setting=how, diverged=seen is None)
            rows.append(scored_row(row, "final", seen))
    return rows


def _curve(result: Result, looks: int) -> list[float]:
    if result.along:
        return [look.log_loss for look in result.along["validation"]]
    return [float("inf")] * looks


def _row(watching: Watching, r: int, lr: float, seed: int, result: Result) -> Row:
    return Row(
        stage="tune",
        arm=f"watched r={r}",
        kind="lora",
        r=r,
        labels=watching.labels,
        seed=seed,
        lr=lr,
        parameters=result.parameters,
    )
