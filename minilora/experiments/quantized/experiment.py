"""Adapters on a base of four, three or two bits: two starts, two ranks, and merging back.

The task is that of the rank experiment, a printed-digit adder that is to add handwritten digits.
The six matrices of every block are rounded to a normal float in blocks of 64, once, and stay so;
the rest of the base keeps its 32 bits. In float32 an ordinary layer with rounded weights computes
what a `LinearNF4` without double quantization does, and many such trainings can share a pass.

Part "default" begins each adapter with B = 0, part "LoftQ" where it makes up for the rounding as
well as its rank can. Part "short" has a quarter of the steps, at two bits. In part "default" the
fewest bits have a rival as well, as many evenly spaced levels; its other adapters are merged: into
the weights as they were before rounding, and into the rounded ones, with the sum rounded again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from minilora import LoRAConfig, add_lora
from minilora.experiments import sums
from minilora.experiments.families import AdapterRun, Family, Recipe, WholeRun, untrained
from minilora.experiments.quantized.arms import (
    EVEN,
    EXACT,
    LEVELS,
    arm_of,
    config_of,
    rounded_base,
    rounding,
    with_update,
)
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.experiments.sums import SUMS, Sums, adder
from minilora.experiments.tasks import Task, scored_row
from minilora.experiments.tuning import Tuning, best_rate, runner_up
from minilora.lab.sweep import Cell, sweep
from minilora.lab.training import evaluate
from minilora.lab.transformer import TransformerClassifier

#: What can be run by itself: a section of the chapter each.
PARTS = ("default", "LoftQ", "short")


@dataclass(frozen=True)
class QuantizedProfile(Profile):
    """The size of a run.

    ``loftq_steps`` are LoftQ's turns of rounding and cutting. ``peak`` and ``full`` are the middles
    of the rates that LoRA and full fine-tuning begin with. Where a base has lost much, at the
    fewest bits, ``wide`` is the tuning, so that a curve as a whole can be drawn.
    """

    sums: Sums
    labels: int
    steps: int
    short_steps: int
    batch_size: int
    alpha: float
    ranks: tuple[int, ...]
    loftq_steps: int
    peak: float
    full: float
    tuning: Tuning
    wide: Tuning


PROFILES = {
    "cpu": QuantizedProfile(
        name="cpu",
        sums=SUMS["cpu"],
        labels=500,
        steps=100,
        short_steps=25,
        batch_size=32,
        alpha=8.0,
        ranks=(4, 16),
        loftq_steps=5,
        peak=2.2e-2,
        full=5e-3,
        tuning=Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4)),
        wide=Tuning(3, 1, (100, 101, 102), (0, 1, 2, 3, 4)),
    ),
    "smoke": QuantizedProfile(
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        steps=4,
        short_steps=2,
        batch_size=16,
        alpha=8.0,
        ranks=(1, 2),
        loftq_steps=2,
        peak=2.2e-2,
        full=2.2e-3,
        tuning=Tuning(1, 1, (100, 101), (0, 1)),
        wide=Tuning(2, 1, (100, 101), (0, 1)),
    ),
}


@dataclass(frozen=True)
class Finished:
    """An arm whose rate is chosen: what is trained again for the test, and perhaps merged."""

    arm: str
    bits: int
    start: str
    cell: Cell
    steps: int
    merges: bool = False


def task(profile: QuantizedProfile) -> Task:
    """Handwritten pairs with their sums."""
    return sums.task(profile.sums, profile.labels)


def _part(profile: QuantizedProfile, part: str, machine: Machine) -> list[Row]:
    base, pictures = adder(profile.sums, machine.device, machine.progress), task(profile)
    few, rows = min(LEVELS), list[Row]()
    if part == "default":
        found = [(bits, r, part) for bits in (EXACT, *LEVELS) for r in profile.ranks]
        found += [(few, r, EVEN) for r in profile.ranks]
        rows += _full(profile, base, pictures, machine)
    elif part == "LoftQ":
        found = [(bits, r, part) for bits in LEVELS for r in profile.ranks]
    else:
        found = [(few, max(profile.ranks), start) for start in ("default", "LoftQ")]
    steps = profile.short_steps if part == "short" else profile.steps
    finished = []
    for bits, r, start in found:
        config = config_of(r, profile.alpha)
        model, config = rounded_base(base, bits, config, start, profile.loftq_steps)
        arm = arm_of(bits, r, start) + (f", {steps} steps" if part == "short" else "")
        if part != "short":
            rows += _unused(bits, arm, start, model, config, pictures, seen=rows)
        name = f"{part}-{bits}-{r}-{start}"
        family = Family(name, model, pictures, Recipe(steps, profile.batch_size), machine)
        tuning = profile.wide if bits == few and start != EVEN else profile.tuning
        run = AdapterRun(arm, Cell(config, profile.peak))
        tuned = family.compare([run], replace(tuning, tested=()))
        rows += [replace(row, setting=part) for row in tuned]
        cell = replace(run.cell, lr=best_rate(tuned, arm))
        merges = start == "default" and part != "short"
        finished.append(Finished(arm, bits, start, cell, steps, merges))
        if bits == few and part != "short":  # where the valley is flat, the next rate as well
            cell = replace(cell, lr=runner_up(tuned, arm))
            finished.append(Finished(f"{arm}, runner-up", bits, start, cell, steps, merges))
    work = partial(_final, base=base, profile=profile, pictures=pictures, setting=part)
    header = {"profile": repr(profile)}
    for found_rows in rows_of(finished, work, f"{part}-final", header, machine):
        rows += found_rows
    return rows


def _full(
    profile: QuantizedProfile, base: TransformerClassifier, pictures: Task, machine: Machine
) -> list[Row]:
    """Full fine-tuning of the base as it is, beside the adapters."""
    recipe = Recipe(profile.steps, profile.batch_size)
    family = Family("full", base, pictures, recipe, machine)
    run = WholeRun("full fine-tuning", "full", profile.full)
    return family.compare([run], profile.tuning)


def _unused(
    bits: int,
    arm: str,
    start: str,
    model: TransformerClassifier,
    config: LoRAConfig,
    pictures: Task,
    seen: Sequence[Row],
) -> list[Row]:
    """The model before any training: the rounded base, or with LoftQ's start in its weights."""
    name = {
        "default": f"{bits} bits, untrained",
        EVEN: f"{bits} bits, {EVEN}, untrained",
    }.get(start, f"{arm}, untrained")
    if any(row.arm == name for row in seen):
        return []
    if start == "LoftQ":
        model = add_lora(copy.deepcopy(model), config)
    return [replace(untrained(name, model, pictures), setting=start)]


def _final(
    finished: Finished,
    *,
    base: TransformerClassifier,
    profile: QuantizedProfile,
    pictures: Task,
    setting: str,
) -> list[Row]:
    """Train an arm with the draws that test; its rows on test data, unmerged and merged."""
    started = time.perf_counter()
    bits, cell = finished.bits, finished.cell
    plain = config_of(cell.config.r, profile.alpha)
    model, config = rounded_base(base, bits, plain, finished.start, profile.loftq_steps)
    seeds = (profile.wide if bits == min(LEVELS) else profile.tuning).tested
    results = sweep(
        model,
        [replace(cell, config=config, seed=seed) for seed in seeds],
        pictures.labelled,
        steps=finished.steps,
        batch_size=profile.batch_size,
        evaluate=pictures.sets(("final",)),
        keep=True,
        progress=False,
    )
    each = (time.perf_counter() - started) / len(results)
    rows = []
    for result in results:
        row = Row(
            stage="final",
            arm=finished.arm,
            kind="lora",
            labels=pictures.labels,
            seed=result.cell.seed,
            r=config.r,
            lr=cell.lr,
            setting=setting,
            parameters=result.parameters,
            train_loss=None if result.diverged else float(np.mean(result.loss[-10:])),
            seconds=each,
            diverged=result.diverged,
        )
        rows += pictures.rows(row, ("final",), result.scores)
        if finished.merges and not result.diverged and result.adapter is not None:
            rows += _merged(row, finished, result.adapter, base, model, pictures)
    return rows


def _merged(
    row: Row,
    finished: Finished,
    adapter: dict[str, Tensor],
    base: TransformerClassifier,
    model: TransformerClassifier,
    pictures: Task,
) -> list[Row]:
    """The trained update in other weights: the exact ones, and rounded ones."""
    config = finished.cell.config
    scale, bits = config.alpha / config.r, finished.bits
    models = {}
    if bits == EXACT:
        for fewer in LEVELS:
            models[f"rounded to {fewer}"] = with_update(base, adapter, scale, rounding(fewer))
    else:
        models["into the exact weights"] = with_update(base, adapter, scale)
        models["rounded again"] = with_update(model, adapter, scale, rounding(bits))
    found = []
    for how, merged in models.items():
        aside = replace(row, arm=f"{finished.arm}, {how}", kind="merged", seconds=0.0)
        scored = evaluate(merged, *pictures.scored["test"])
        found.append(scored_row(aside, "final", scored))
    return found


EXPERIMENT = Experiment("quantized", PROFILES, PARTS, _part)
run = EXPERIMENT.run
