"""One ladder of learning rates for all arms, climbed until each best rate has worse neighbours.

The whole of an arm's ladder is tried with few draws of the pictures, and only the best rate and its
two neighbours with all of them. So a rate is chosen by all draws, and a rate that is far from the
best costs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minilora.experiments.recording import Row

#: The rungs, each twice the one below.
LADDER = tuple(0.001 * 2.0**k for k in range(-8, 14))

#: What is to be run: (rate, draw) for each arm.
Runs = Mapping[str, Sequence[tuple[float, int]]]


def rung(rate: float) -> int:
    """The number of the rung that is nearest to a rate."""
    return int(np.argmin(np.abs(np.log(LADDER) - np.log(rate))))


def by_rate(rows: Iterable[Row], arm: str) -> dict[float, list[Row]]:
    """The arm's tuning runs at each learning rate, lowest first.

    Raises:
        ValueError: There are none.
    """
    found: dict[float, list[Row]] = {}
    for row in rows:
        if (row.stage, row.arm) == ("tune", arm) and row.lr is not None:
            found.setdefault(row.lr, []).append(row)
    if not found:
        raise ValueError(f"no tuning runs of {arm!r}")
    return dict(sorted(found.items()))


def mean_loss(rows: Iterable[Row]) -> float:
    """The mean validation loss of some runs (nats); infinite if one of them diverged."""
    return float(np.mean([np.inf if row.log_loss is None else row.log_loss for row in rows]))


def broken(row: Row, start: float) -> bool:
    """Whether a run ended with a higher training loss than ``start``, that of no training."""
    return row.train_loss is None or row.train_loss > start


def highest_sound(rows: Iterable[Row], arm: str, start: float) -> float:
    """The highest rate up to which none of the arm's runs is broken; see `broken`.

    Raises:
        ValueError: A run is broken at the lowest rate that was tried.
    """
    found = None
    for rate, runs in by_rate(rows, arm).items():
        if any(broken(row, start) for row in runs):
            break
        found = rate
    if found is None:
        raise ValueError(f"{arm!r} is broken at the lowest rate that was tried")
    return found


def best_rate(rows: Iterable[Row], arm: str) -> float:
    """The rate with the lowest mean loss, among those that were tried with the most draws."""
    tried = by_rate(rows, arm)
    most = max(map(len, tried.values()))
    whole = {rate: mean_loss(of) for rate, of in tried.items() if len(of) == most}
    return min(whole, key=lambda rate: (whole[rate], rate))


class Start(NamedTuple):
    """The first and the last rung that an arm begins with, and how many draws try them."""

    low: int
    high: int
    draws: int


def climb(
    train: Callable[[Runs], list[Row]], starts: Mapping[str, Start], draws: Sequence[int]
) -> list[Row]:
    """Tune every arm; the rows of all runs.

    After its start, an arm's best rung and the two neighbours are tried with all draws, until the
    best of the rungs that were has two such neighbours.

    Raises:
        ValueError: An arm's best rate is at an end of the ladder.
    """
    rows = train(
        {
            arm: [
                (LADDER[i], draw)
                for i in range(start.low, start.high + 1)
                for draw in draws[: start.draws]
            ]
            for arm, start in starts.items()
        }
    )
    while todo := {arm: runs for arm in starts if (runs := _missing(rows, arm, draws))}:
        rows += train(todo)
    return rows


def _missing(rows: list[Row], arm: str, draws: Sequence[int]) -> list[tuple[float, int]]:
    """What has to be run before the arm's best rate can be trusted."""
    best = rung(best_rate(rows, arm))
    if best in (0, len(LADDER) - 1):
        raise ValueError(f"{arm!r} is best at {LADDER[best]:g}, where the ladder ends: lengthen it")
    done = {(row.lr, row.seed) for of in by_rate(rows, arm).values() for row in of}
    near = [(LADDER[best + i], draw) for i in (-1, 0, 1) for draw in draws]
    return [run for run in near if run not in done]
