"""Families of runs from one base on one task: adapters in sweeps, and whole models one by one.

A run is scored on validation data, where it helps to tune (stage "tune"), or on test data (stage
"final"). Where the runs that tune are tested as well, their rows on test data are kept only at the
rate that validation has chosen for their arm; the others are never looked at.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np

from minilora import add_lora, lora_layers
from minilora.experiments.recording import STAGES, Row
from minilora.experiments.running import Machine, rows_of
from minilora.experiments.tasks import Change as Change
from minilora.experiments.tasks import Task as Task
from minilora.experiments.tasks import scored_row
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.sweep import Cell, fingerprint, sweep
from minilora.lab.training import Diverged, evaluate, fit, set_seed
from minilora.lab.transformer import TransformerClassifier

BOTH = tuple(STAGES)
TUNE, FINAL = ("tune",), ("final",)


@dataclass(frozen=True)
class Recipe:
    """How the runs of a family are trained."""

    steps: int
    batch_size: int = 32
    optimizer: str = "adamw"


@dataclass(frozen=True)
class AdapterRun:
    """A run of a sweep, and the arm that it belongs to."""

    arm: str
    cell: Cell
    kind: str = "lora"

    @property
    def lr(self) -> float:
        return self.cell.lr

    def at(self, lr: float, seed: int) -> AdapterRun:
        """The same arm at another rate, with another seed."""
        return replace(self, cell=replace(self.cell, lr=lr, seed=seed))


@dataclass(frozen=True)
class WholeRun:
    """A run that trains parameters of the model itself; ``trains`` is a key of ``TRAINED``.

    From ``scratch`` it starts from nothing, and gets ``patience`` times the steps.
    """

    arm: str
    kind: str
    lr: float
    seed: int = 0
    trains: str = "everything"
    scratch: bool = False
    patience: int = 1

    def at(self, lr: float, seed: int) -> WholeRun:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


Run = AdapterRun | WholeRun


def _embeds(path: str) -> bool:
    return path in ("class_token", "positions") or path.startswith("patch_embedding.")


#: What a run can train of the model's own parameters, by their paths.
TRAINED: dict[str, Callable[[str], bool]] = {
    "everything": lambda path: True,
    "biases": lambda path: path.endswith(".bias"),
    "biases of the blocks": lambda path: path.startswith("blocks.") and path.endswith(".bias"),
    "norms": lambda path: ".norm" in path or path.startswith("norm."),
    "embeddings": _embeds,
    "head": lambda path: path.startswith("head."),
}


def prepare(run: Run, model: TransformerClassifier) -> TransformerClassifier:
    """Make a copy of the base ready to be trained the run's way, in place; the same object.

    The seed draws the adapter. Nothing else than what the run trains requires a gradient then.
    """
    if isinstance(run, WholeRun):
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(TRAINED[run.trains](path))
        return model
    set_seed(run.cell.seed)
    add_lora(model, run.cell.config)
    for layer in lora_layers(model).values():
        layer.A.requires_grad_("A" in run.cell.trained)
        layer.B.requires_grad_("B" in run.cell.trained)
    return model


@dataclass(frozen=True)
class Family:
    """What a family of runs shares. ``name`` is that of its files, and the setting of its rows.

    ``at_once`` adapters share a pass on a CPU, where it is given.
    """

    name: str
    base: TransformerClassifier
    task: Task
    recipe: Recipe
    machine: Machine
    at_once: int | None = None

    def compare(self, arms: Iterable[Run], tuning: Tuning | Mapping[str, Tuning]) -> list[Row]:
        """Tune every arm and test it at its best rate; the rows.

        A run stands for its arm, and its rate is the middle of those that are tried at first.
        """
        of = {run.arm: run for run in arms}
        tunings = dict.fromkeys(of, tuning) if isinstance(tuning, Tuning) else tuning
        both = any(set(one.seeds) & set(one.tested) for one in tunings.values())
        number = count(1)

        def train(runs: Runs) -> list[Row]:
            # Each round has pictures of its own, and therefore files of its own.
            family = replace(self, name=f"{self.name}-{next(number)}")
            asked = [of[arm].at(lr, seed) for arm, pairs in runs.items() for lr, seed in pairs]
            rows = family.train(asked, BOTH if both else TUNE)
            return [replace(row, setting=self.name) for row in rows]

        rows = tune(train, {arm: run.lr for arm, run in of.items()}, tunings)
        return self.tested(rows, of, {arm: one.tested for arm, one in tunings.items()})

    def tested(
        self, rows: list[Row], arms: Mapping[str, Run], seeds: Mapping[str, Sequence[int]]
    ) -> list[Row]:
        """The rows that tuned, and one on test data for each arm and each of its ``seeds``.

        Those that ``rows`` has already, from the runs that tuned, are not made again.
        """
        tuned = [row for row in rows if row.stage == "tune"]
        best = {arm: best_rate(tuned, arm) for arm in arms}
        done = {
            (row.arm, row.seed): row
            for row in rows
            if (row.stage, row.lr) == ("final", best.get(row.arm)) and row.seed in seeds[row.arm]
        }
        missing = [
            run.at(best[arm], seed)
            for arm, run in arms.items()
            for seed in seeds[arm]
            if (arm, seed) not in done
        ]
        return tuned + list(done.values()) + self.train(missing, FINAL)

    def train(self, runs: Sequence[Run], stages: Sequence[str]) -> list[Row]:
        """Train the runs; a row for each stage and run: the first stage and the adapters first.

        After them come the rows on single sheets and aside, where the task asks for them.

        Raises:
            ValueError: Whole models with another optimizer than AdamW, the one that `fit` has.
        """
        if not runs:
            return []
        file = self.name if tuple(stages) == BOTH else f"{self.name}-{stages[0]}"
        adapters = [run for run in runs if isinstance(run, AdapterRun)]
        wholes = [run for run in runs if isinstance(run, WholeRun)]
        found = self._swept(adapters, file, stages) if adapters else []
        if wholes:
            if self.recipe.optimizer != "adamw":
                raise ValueError(
                    f"whole models are trained with 'adamw', not {self.recipe.optimizer!r}"
                )
            work = partial(
                _whole,
                name=self.name,
                base=copy.deepcopy(self.base).cpu(),
                task=self.task,
                recipe=self.recipe,
                device=str(self.machine.device),
                stages=tuple(stages),
            )
            header = {"recipe": repr(self.recipe), "labels": self.task.labels}
            header |= {"base": fingerprint(self.base.state_dict().items())}
            found += rows_of(wholes, work, f"{file}-whole", header, self.machine)
        by_stage = [rows[at] for at in range(len(stages)) for rows in found]
        return by_stage + [row for rows in found for row in rows[len(stages) :]]

    def _swept(
        self, runs: Sequence[AdapterRun], file: str, stages: Sequence[str]
    ) -> list[list[Row]]:
        """Train the runs in one sweep; for each its row of every stage."""
        machine = self.machine
        started = time.perf_counter()
        on_cpu = machine.device.type == "cpu"
        results = sweep(
            self.base,
            [run.cell for run in runs],
            self.task.labelled,
            steps=self.recipe.steps,
            batch_size=self.recipe.batch_size,
            optimizer=self.recipe.optimizer,
            evaluate=self.task.sets(stages),
            at_once=self.at_once if on_cpu else None,
            jobs=machine.jobs if on_cpu else 1,
            path=machine.file(file),
            progress=None if machine.progress else False,
        )
        each = (time.perf_counter() - started) / len(runs)
        found = []
        for run, result in zip(runs, results, strict=True):
            row = Row(
                stage="",
                arm=run.arm,
                kind=run.kind,
                r=run.cell.config.r,
                labels=self.task.labels,
                seed=run.cell.seed,
                lr=run.lr,
                setting=self.name,
                parameters=result.parameters,
                train_loss=None if result.diverged else float(np.mean(result.loss[-10:])),
                seconds=each,
                diverged=result.diverged,
            )
            found.append(self.task.rows(row, stages, result.scores))
        return found


def untrained(arm: str, base: TransformerClassifier, task: Task) -> Row:
    """The base as it is, on the test data of the task."""
    row = Row(stage="final", arm=arm, kind="base", labels=task.labels, seed=0)
    return scored_row(row, "final", evaluate(base, *task.scored["test"]))


def _whole(
    run: WholeRun,
    *,
    name: str,
    base: TransformerClassifier,
    task: Task,
    recipe: Recipe,
    device: str,
    stages: Sequence[str],
) -> list[Row]:
    """Train one whole model; its row of every stage."""
    started = time.perf_counter()
    set_seed(run.seed)
    model = TransformerClassifier(base.config) if run.scratch else copy.deepcopy(base)
    prepare(run, model)
    row = Row(
        stage="",
        arm=run.arm,
        kind=run.kind,
        labels=task.labels,
        seed=run.seed,
        lr=run.lr,
        setting=name,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    losses, scores = [], {}
    try:
        losses = fit(
            model,
            *task.labelled(run.seed),
            steps=recipe.steps * run.patience,
            lr=run.lr,
            batch_size=recipe.batch_size,
            seed=run.seed,
            device=device,
            progress=False,
        ).loss
        scores = {name: evaluate(model, *pair) for name, pair in task.sets(stages).items()}
    except Diverged:
        pass
    # `fit` looks at the loss now and then, and never at what its last step has made of the model.
    if not scores or not np.isfinite([*losses, *(s.log_loss for s in scores.values())]).all():
        row, scores = replace(row, diverged=True), {}
    else:
        row = replace(row, train_loss=float(np.mean(losses[-10:])))
    row = replace(row, seconds=time.perf_counter() - started)
    return task.rows(row, stages, scores)
