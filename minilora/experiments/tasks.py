"""What a run is trained and scored on: labelled examples, two fixed sets, and what stands beside.

Test pictures of handwriting can be scored sheet by sheet, so that differences can be averaged over
what the draws of the training share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from minilora.experiments.recording import STAGES, Row
from minilora.lab.sweep import Data
from minilora.lab.training import Evaluation

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """Labelled examples for every seed, and two fixed sets to be scored on.

    ``train`` must be a function of a module, or a `functools.partial` of one, so that it can be
    sent to other processes. ``change`` is made to all pictures, (N, 1, H, W) → the same shape.

    ``sheets`` (N, 2) says from which sheets of handwriting the two digits of each test picture
    come. Then each run that is tested has rows for the sheets, too, of the kind "sheet". ``aside``
    are further pictures that tested runs are scored on, in rows of the kind "aside".
    """

    labels: int
    train: Callable[[int], Data]
    validation: Data
    test: Data
    change: Change | None = None
    sheets: Tensor | None = None
    aside: Mapping[str, Data] = field(default_factory=dict)

    def labelled(self, seed: int) -> Data:
        """The labelled pictures of a seed."""
        return self._changed(self.train(seed))

    @property
    def scored(self) -> dict[str, Data]:
        """The two sets."""
        both = {"validation": self.validation, "test": self.test}
        return {name: self._changed(pair) for name, pair in both.items()}

    def sets(self, stages: Sequence[str]) -> dict[str, Data]:
        """All that a run is scored on: test pictures of each two sheets apart, if sheets count."""
        found: dict[str, Data] = {}
        for stage in stages:
            x, y = self.scored[STAGES[stage]]
            if stage != "final":
                found[stage] = x, y
                continue
            found |= {name: (x[rows], y[rows]) for name, rows in self._cut().items()}
            found |= {name: self._changed(pair) for name, pair in self.aside.items()}
        return found

    def rows(self, row: Row, stages: Sequence[str], of: Mapping[str, Evaluation]) -> list[Row]:
        """The row of a run on each stage's set, then its rows on single sheets and aside.

        ``of`` are evaluations of the `sets`. Without any, there are rows without numbers for the
        stages alone.
        """
        if not of:
            return [scored_row(row, stage, None) for stage in stages]
        found = [
            scored_row(row, stage, of[stage] if stage != "final" else _mean(of, self._cut()))
            for stage in stages
        ]
        if "final" in stages:
            found += [
                _aside(row, f"sheet {sheet}", "sheet", _mean(of, names))
                for sheet, names in self._by_sheet().items()
            ]
            found += [_aside(row, name, "aside", of[name]) for name in self.aside]
        return found

    def _cut(self) -> dict[str, Tensor]:
        """{name: rows of the test pictures}, one set for each two sheets."""
        if self.sheets is None:
            return {"final": torch.arange(len(self.test[1]))}
        return {
            _both(pair.tolist()): (self.sheets == pair).all(dim=1).nonzero().flatten()
            for pair in self.sheets.unique(dim=0)
        }

    def _by_sheet(self) -> dict[int, list[str]]:
        """{sheet: the sets with one of its digits}; a set with two of them stands there twice."""
        if self.sheets is None:
            return {}
        pairs = self.sheets.unique(dim=0).tolist()
        return {
            sheet: [_both(pair) for pair in pairs for one in pair if one == sheet]
            for sheet in self.sheets.unique().tolist()
        }

    def _changed(self, pair: Data) -> Data:
        x, y = pair
        return (x if self.change is None else self.change(x)), y


def _both(pair: Sequence[int]) -> str:
    return f"sheets {pair[0]} and {pair[1]}"


def _mean(of: Mapping[str, Evaluation], names: Iterable[str]) -> Evaluation:
    """The evaluation of all pictures of some sets; that of one is left as it is."""
    some = [of[name] for name in names]
    if len(some) == 1:
        return some[0]
    counts = [one.n for one in some]
    accuracy = float(np.average([one.accuracy for one in some], weights=counts))
    log_loss = float(np.average([one.log_loss for one in some], weights=counts))
    return Evaluation(accuracy, np.nan, log_loss, np.nan, sum(counts))


def _aside(row: Row, name: str, kind: str, found: Evaluation) -> Row:
    return scored_row(replace(row, arm=f"{row.arm}, {name}", kind=kind), "final", found)


def scored_row(row: Row, stage: str, found: Evaluation | None) -> Row:
    """The row of a run on the set of a stage; without numbers where there are none."""
    if found is None:
        return replace(row, stage=stage)
    return replace(row, stage=stage, accuracy=found.accuracy, log_loss=found.log_loss)
