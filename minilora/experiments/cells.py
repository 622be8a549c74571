"""One training run and its row; many of them, and never one of them twice.

A *cell* is one training run. Cells are spread over processes with one torch thread each: on a
CPU that is faster than one process with many threads, and it gives the same numbers. Each finished
cell is appended to a file, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from minilora.experiments.recording import Row
from minilora.lab import work as work_module
from minilora.lab.training import Diverged, evaluate, fit, one_thread
from minilora.lab.work import spread

Cell = TypeVar("Cell")


class Journal(work_module.Journal):
    """Finished rows, kept in a file beside the recording until that is written.

    ``header`` says what the rows belong to: with another header (changed code or settings), the
    file is begun afresh. With ``path=None`` nothing is written.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        super().__init__(path, header, replace=True)
        self.rows = {key: Row(**entry) for key, entry in self.entries.items()}

    def add(self, key: str, row: Row) -> None:
        """Keep one finished row."""
        self.rows[key] = row
        super().add(key, asdict(row))


def run_cells(
    cells: Sequence[Cell],
    work: Callable[[Cell], Row],
    finished: Journal,
    *,
    jobs: int,
    say: str | None = None,
) -> list[Row]:
    """The row of every cell, in the cells' order; those that the journal has are not run again.

    ``finished`` is their journal. ``work`` must be importable (a function of a module, or
    `functools.partial` of one): it is sent to other processes when ``jobs`` is more than 1. A
    cell's repr is its key. ``say`` is the word that progress lines begin with; None keeps quiet.
    """
    missing = [cell for cell in cells if repr(cell) not in finished.rows]
    started, shown = time.perf_counter(), 0.0
    found = spread(partial(_on_one_thread, work), missing, jobs)
    for done, (cell, row) in enumerate(zip(missing, found, strict=True), 1):
        finished.add(repr(cell), row)
        elapsed = time.perf_counter() - started
        if say and (elapsed - shown > 5 or done == len(missing)):
            shown = elapsed
            line = f"{say}: {done} of {len(missing)} in {elapsed:.0f} s"
            print(line, file=sys.stderr, flush=True)
    return [finished.rows[repr(cell)] for cell in cells]


def trained(
    row: Row,
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    device: str,
) -> Row:
    """Train what requires a gradient of ``model``, at the row's rate and seed, and score it.

    ``train`` and ``seen`` are examples (N, …) with their labels (N,). Returns the row with what was
    found on ``seen``, or marked as diverged.
    """
    if row.lr is None:
        raise ValueError(f"the row of {row.arm!r} has no learning rate to train at")
    started = time.perf_counter()
    try:
        history = fit(
            model,
            *train,
            steps=steps,
            lr=row.lr,
            batch_size=batch_size,
            seed=row.seed,
            device=device,
            progress=False,
        )
    except Diverged:
        return replace(row, diverged=True, seconds=time.perf_counter() - started)
    found = evaluate(model, *seen)
    # `fit` looks at the loss now and then, and never at what its last step has made of the model.
    if not np.isfinite([*history.loss, found.log_loss]).all():
        return replace(row, diverged=True, seconds=time.perf_counter() - started)
    return replace(
        row,
        accuracy=found.accuracy,
        log_loss=found.log_loss,
        train_loss=float(np.mean(history.loss[-10:])),
        seconds=time.perf_counter() - started,
    )


def _on_one_thread(work: Callable[[Cell], Row], cell: Cell) -> Row:
    with one_thread():
        return work(cell)
