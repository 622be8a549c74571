"""Runs with few labels at a constant rate, looked at on their way: what overfits, and when."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from minilora import LoRAConfig
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine
from minilora.experiments.sums import Sums, task
from minilora.experiments.tasks import scored_row
from minilora.lab.sweep import grid, sweep
from minilora.lab.training import Evaluation, evaluate, fit
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier

LOOKS = 10  # in a run


@dataclass(frozen=True)
class Watching:
    """What is looked at on its way, every tenth part of it.

    Adapters of some ranks are trained at the rate ``lr``, and the whole model at ``full_lr``.
    """

    labels: int
    ranks: tuple[int, ...]
    lr: float
    full_lr: float
    steps: int
    batch_size: int
    seeds: tuple[int, ...]


def watched(
    watching: Watching, sums: Sums, alpha: float, base: TransformerClassifier, machine: Machine
) -> list[Row]:
    """A row for every look, on validation data, with "step N" for its setting.

    The training loss is the mean since the look before. At step 0 every run is the base.
    """
    pictures = task(sums, watching.labels)
    start = evaluate(base, *pictures.validation)
    every = max(1, watching.steps // LOOKS)
    config = LoRAConfig(r=1, alpha=alpha, targets=list(BLOCK_LINEARS))
    cells = grid(config, r=watching.ranks, lr=[watching.lr], seed=watching.seeds)
    results = sweep(
        base,
        cells,
        pictures.labelled,
        steps=watching.steps,
        schedule="constant",
        batch_size=watching.batch_size,
        evaluate={"validation": pictures.validation},
        every=every,
        jobs=machine.jobs if machine.device.type == "cpu" else 1,
        path=machine.file("watched"),
        progress=False,
    )
    rows = []
    for cell, result in zip(cells, results, strict=True):
        row = Row(
            stage="tune",
            arm=f"watched r={cell.config.r}",
            kind="lora",
            r=cell.config.r,
            labels=watching.labels,
            seed=cell.seed,
            lr=cell.lr,
            parameters=result.parameters,
        )
        looks = result.along.get("validation", [])
        rows += _looks(row, every, [start, *looks], result.loss)
    for seed in watching.seeds:
        model = copy.deepcopy(base)
        row = Row(
            stage="tune",
            arm="watched full",
            kind="full",
            labels=watching.labels,
            seed=seed,
            lr=watching.full_lr,
            parameters=sum(p.numel() for p in model.parameters()),
        )
        found = fit(
            model,
            *pictures.labelled(seed),
            steps=watching.steps,
            lr=watching.full_lr,
            schedule="constant",
            batch_size=watching.batch_size,
            seed=seed,
            look_at=pictures.validation,
            every=every,
            progress=False,
        )
        rows += _looks(row, every, [start, *found.looks], found.loss)
    return rows


def _looks(row: Row, every: int, looks: list[Evaluation], losses: list[float]) -> list[Row]:
    rows = []
    for k, look in enumerate(looks):
        since = losses[max(0, k - 1) * every : k * every]
        seen = replace(row, setting=f"step {k * every}")
        seen = replace(seen, train_loss=float(np.mean(since)) if since else None)
        rows.append(scored_row(seen, "tune", look))
    return rows
