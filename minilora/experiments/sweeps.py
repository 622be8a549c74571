"""What the experiments with many adapters share: families of runs, and the rows that they leave.

Every run is scored on validation data and on test data. All of the first become rows (stage
"tune"). Of the second only those at the rate that validation has chosen for their arm do (stage
"final"); the others are never looked at.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from minilora.experiments.cells import Journal, run_cells, trained
from minilora.experiments.recording import (
    Recording,
    Row,
    keep_run,
    source_of,
    write_recording,
)
from minilora.lab.provenance import commit, device_name, now, peak_memory, versions
from minilora.lab.sweep import Cell, Data, sweep
from minilora.lab.training import Evaluation, evaluate, set_seed
from minilora.lab.transformer import TransformerClassifier
from minilora.lab.work import cores

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pictures:
    """The examples of a task: labelled ones for every seed, and two fixed sets to be scored on.

    ``train`` must be a function of a module, or a `functools.partial` of one, so that it can be
    sent to other processes. ``change`` is made to all pictures, (N, 1, H, W) → the same shape.
    """

    labels: int
    train: Callable[[int], Data]
    validation: Data
    test: Data
    change: Change | None = None

    def labelled(self, seed: int) -> Data:
        """The labelled pictures of a seed."""
        return self._changed(self.train(seed))

    @property
    def scored(self) -> dict[str, Data]:
        """The two sets."""
        both = {"validation": self.validation, "test": self.test}
        return {name: self._changed(pair) for name, pair in both.items()}

    def _changed(self, pair: Data) -> Data:
        x, y = pair
        return (x if self.change is None else self.change(x)), y


@dataclass(frozen=True)
class Place:
    """Where a run takes place: device, processes, the folder of its unfinished work, its code."""

    device: torch.device
    jobs: int
    folder: Path | None
    source: str
    progress: bool

    def file(self, name: str) -> Path | None:
        """The file for finished work of that name, if it is to be kept at all."""
        return None if self.folder is None else self.folder / f"{name}.jsonl"


@dataclass(frozen=True)
class Named:
    """A cell, and the arm that it is a run of."""

    arm: str
    cell: Cell
    kind: str = "lora"


@dataclass(frozen=True)
class Recipe:
    """How the runs of a family are trained."""

    steps: int
    batch_size: int = 32
    optimizer: str = "adamw"


def adapters(
    name: str,
    cells: Sequence[Named],
    base: TransformerClassifier,
    task: Pictures,
    recipe: Recipe,
    *,
    place: Place,
    more: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
    """Train the cells in one sweep; their rows. Finished passes are kept in the place's folder.

    ``more`` names arms that are trained again at their best rate, with further seeds, for the test
    data alone.
    """
    rows = judged(_swept(name, cells, base, task, recipe, place))
    again = []
    for arm, seeds in (more or {}).items():
        first = next(one for one in cells if one.arm == arm)
        rate = best_rate(rows, arm)
        again += [replace(first, cell=replace(first.cell, lr=rate, seed=seed)) for seed in seeds]
    if again:
        pairs = _swept(f"{name}-more", again, base, task, recipe, place)
        rows += [replace(row, setting=name) for _, row in pairs]
    return rows


def _swept(
    name: str,
    cells: Sequence[Named],
    base: TransformerClassifier,
    task: Pictures,
    recipe: Recipe,
    place: Place,
) -> list[tuple[Row, Row]]:
    """The rows of every cell on validation data, and on test data."""
    started = time.perf_counter()
    results = sweep(
        base,
        [one.cell for one in cells],
        task.labelled,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        optimizer=recipe.optimizer,
        evaluate=task.scored,
        jobs=place.jobs if place.device.type == "cpu" else 1,
        path=place.file(name),
        progress=None if place.progress else False,
    )
    each = (time.perf_counter() - started) / len(cells)
    pairs = []
    for one, result in zip(cells, results, strict=True):
        row = Row(
            stage="tune",
            arm=one.arm,
            kind=one.kind,
            r=one.cell.config.r,
            labels=task.labels,
            seed=one.cell.seed,
            lr=one.cell.lr,
            setting=name,
            parameters=result.parameters,
            accuracy=None,
            log_loss=None,
            train_loss=None if result.diverged else float(np.mean(result.loss[-10:])),
            seconds=each,
            diverged=result.diverged,
        )
        pairs.append(_both(row, result.scores))
    return pairs


def untrained(arm: str, base: TransformerClassifier, task: Pictures) -> Row:
    """The base as it is, on the test data of the task."""
    found = evaluate(base, *task.scored["test"])
    return Row(
        stage="final",
        arm=arm,
        kind="base",
        r=None,
        labels=task.labels,
        seed=0,
        lr=None,
        setting=None,
        parameters=None,
        accuracy=found.accuracy,
        log_loss=found.log_loss,
        train_loss=None,
        seconds=0.0,
    )


def judged(pairs: Sequence[tuple[Row, Row]]) -> list[Row]:
    """All the rows on validation data, then those on test data at each arm's best rate."""
    tuned = [row for row, _ in pairs]
    best = {arm: best_rate(tuned, arm) for arm in dict.fromkeys(row.arm for row in tuned)}
    return tuned + [row for _, row in pairs if row.lr == best[row.arm]]


def best_rate(rows: Iterable[Row], arm: str) -> float:
    """The rate of an arm with the lowest mean log loss on validation data; the lower of two ties.

    A rate at which a run diverged counts as infinitely bad.

    Raises:
        ValueError: No rows of that arm on validation data.
    """
    losses: dict[float, list[float]] = {}
    for row in rows:
        if (row.stage, row.arm) == ("tune", arm) and row.lr is not None:
            loss = float("inf") if row.log_loss is None else row.log_loss
            losses.setdefault(row.lr, []).append(loss)
    if not losses:
        raise ValueError(f"no tuning runs of {arm!r}")
    return min(losses, key=lambda rate: (float(np.mean(losses[rate])), rate))


def _both(row: Row, scores: dict[str, Evaluation]) -> tuple[Row, Row]:
    """The row of a run on validation data, and on test data; without numbers if it diverged."""
    rows = []
    for stage, name in (("tune", "validation"), ("final", "test")):
        found = scores.get(name)
        rows.append(
            replace(
                row,
                stage=stage,
                accuracy=found.accuracy if found else None,
                log_loss=found.log_loss if found else None,
            )
        )
    return rows[0], rows[1]


def _embeds(path: str) -> bool:
    return path in ("class_token", "positions") or path.startswith("patch_embedding.")


#: What a run can train of the model's own parameters, by their paths.
TRAINED: dict[str, Callable[[str], bool]] = {
    "everything": lambda path: True,
    "biases": lambda path: path.endswith(".bias"),
    "norms": lambda path: ".norm" in path or path.startswith("norm."),
    "embeddings": _embeds,
    "head": lambda path: path.startswith("head."),
}


@dataclass(frozen=True)
class Whole:
    """A run that trains parameters of the model itself; ``trains`` is a key of ``TRAINED``."""

    arm: str
    kind: str
    lr: float
    seed: int
    trains: str = "everything"
    stage: str = "tune"


def whole_models(
    name: str,
    cells: Sequence[Whole],
    base: TransformerClassifier,
    task: Pictures,
    recipe: Recipe,
    *,
    place: Place,
    more: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
    """Train the cells one by one, then each arm again at its best rate, for the test data; rows.

    ``more`` names arms that are then trained with further seeds as well.

    Raises:
        ValueError: A recipe with another optimizer than AdamW, which is the one that `fit` has.
    """
    if recipe.optimizer != "adamw":
        raise ValueError(f"whole models are trained with 'adamw', found {recipe.optimizer!r}")
    start = copy.deepcopy(base).cpu()
    work = partial(
        _one_whole, name=name, base=start, task=task, recipe=recipe, device=str(place.device)
    )
    header = {"source": place.source, "recipe": repr(recipe), "labels": task.labels}
    journal = Journal(place.file(f"{name}-whole"), header)
    say = name if place.progress else None
    tuned = run_cells(cells, work, journal, jobs=place.jobs, say=say)
    chosen = [
        replace(cell, stage="final") for cell in cells if cell.lr == best_rate(tuned, cell.arm)
    ]
    for arm, seeds in (more or {}).items():
        first = next(cell for cell in chosen if cell.arm == arm)
        chosen += [replace(first, seed=seed) for seed in seeds]
    return tuned + run_cells(chosen, work, journal, jobs=place.jobs, say=say)


def _one_whole(
    cell: Whole,
    *,
    name: str,
    base: TransformerClassifier,
    task: Pictures,
    recipe: Recipe,
    device: str,
) -> Row:
    set_seed(cell.seed)
    model = copy.deepcopy(base)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(TRAINED[cell.trains](path))
    row = Row(
        stage=cell.stage,
        arm=cell.arm,
        kind=cell.kind,
        r=None,
        labels=task.labels,
        seed=cell.seed,
        lr=cell.lr,
        setting=name,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        accuracy=None,
        log_loss=None,
        train_loss=None,
        seconds=0.0,
    )
    return trained(
        row,
        model,
        task.labelled(cell.seed),
        task.scored["validation" if cell.stage == "tune" else "test"],
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        device=device,
    )


class Profile(Protocol):
    """The size of an experiment: a frozen dataclass with a name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


Size = TypeVar("Size", bound=Profile)


def run_parts(
    name: str,
    size: Size,
    parts: Sequence[str],
    all_parts: Sequence[str],
    run_part: Callable[[Size, str, Place], list[Row]],
    jobs: int | None,
    device: torch.device | str | None,
    out: Path | str | None,
    progress: bool,
) -> Recording:
    """Run an experiment of several parts; with ``out``, leave its recording in that folder.

    Until that is written, finished work is kept in a folder beside it, so that a second call goes
    on where the first was stopped. It runs on CUDA where there is a card, else on the CPU, in as
    many processes as there are cores, six at most.

    Raises:
        ValueError: A part that there is not, or ``out`` with some of the parts only.
    """
    if unknown := [part for part in parts if part not in all_parts]:
        raise ValueError(f"no part {unknown[0]!r}; there are {', '.join(all_parts)}")
    if out is not None and set(parts) != set(all_parts):
        raise ValueError("a recording holds all parts: leave either parts or out away")
    found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = source_of(name)
    folder = None if out is None else Path(out) / f"{name}.{size.name}.{source[:12]}.parts"
    place = Place(found, jobs or min(cores(), 6), folder, source, progress)
    started = time.perf_counter()
    rows = [row for part in parts for row in run_part(size, part, place)]
    recording = Recording(
        name=name,
        profile=size.name,
        settings=asdict(size),
        rows=rows,
        source=source,
        device=device_name(found),
        versions=versions(),
        date=now(),
        commit=commit(),
        seconds=time.perf_counter() - started,
        peak_bytes=peak_memory(found),
    )
    if out is not None:
        write_recording(recording, out)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    keep_run(recording, None if set(parts) == set(all_parts) else "-".join(parts))
    return recording
