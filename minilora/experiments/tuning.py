"""Choosing learning rates: a ladder for each arm, climbed until its best rung lies inside.

The first rates may be tried with few of the draws. Then the best rate and its two neighbours are
tried with all of them. So a rate is chosen by all draws, and a rate that is far from the best costs
few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.experiments.recording import Row

#: Neighbours are a factor of about 1.5 apart, and every second rung one of about 2.2.
FINE = (
    *(1e-5, 1.5e-5, 2.2e-5, 3.2e-5, 5e-5, 7e-5),
    *(1e-4, 1.5e-4, 2.2e-4, 3.2e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2.2e-3, 3.2e-3, 5e-3, 7e-3),
    *(1e-2, 1.5e-2, 2.2e-2, 3.2e-2, 5e-2, 7e-2, 0.1, 0.15, 0.22, 0.32, 0.5, 0.7),
    *(1.0, 1.5, 2.2, 3.2, 5.0),
)

#: Every second rung of the fine ladder.
RATES = FINE[::2]

#: Each rung twice the one below.
DOUBLES = tuple(0.001 * 2.0**k for k in range(-8, 14))

LADDERS = {"coarse": RATES, "fine": FINE, "doubles": DOUBLES}

#: Where the lowest two rates differ in their loss by less than this share, they change next to
#: nothing: the arm is best left untrained, and no lower rate would be better.
IDLE = 1e-3

#: What is to be run, (rate, seed) by (rate, seed), for each arm.
Runs = Mapping[str, Sequence[tuple[float, int]]]


@dataclass(frozen=True)
class Tuning:
    """How an arm comes by its rate, and how often it is tested.

    It begins with a middle rate, ``below`` lower and ``above`` higher ones on one of the
    ``LADDERS``, ``stride`` rungs apart, and tries them with all ``seeds``, or at a ``glance`` with
    so many of them. The best and its two neighbours are tried with all seeds, until the best of
    those that were has two such neighbours. There the arm is tested with all ``tested``.
    """

    below: int
    above: int
    seeds: tuple[int, ...]
    tested: tuple[int, ...]
    glance: int | None = None
    ladder: str = "coarse"
    stride: int = 1


def nearest(rate: float, ladder: Sequence[float]) -> float:
    """The rung that is nearest to a rate."""
    return ladder[int(np.argmin(np.abs(np.log(ladder) - np.log(rate))))]


def by_rate(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, list[Row]]:
    """The arm's tuning runs at each learning rate, lowest first.

    ``labels`` picks one number of labels.

    Raises:
        ValueError: There are none.
    """
    found: dict[float, list[Row]] = {}
    for row in rows:
        fits = (row.stage, row.arm) == ("tune", arm) and labels in (None, row.labels)
        if fits and row.lr is not None:
            found.setdefault(row.lr, []).append(row)
    if not found:
        with_labels = "" if labels is None else f" with {labels} labels"
        raise ValueError(f"no tuning runs of {arm!r}{with_labels}")
    return dict(sorted(found.items()))


def mean_loss(rows: Iterable[Row]) -> float:
    """The mean log loss of some runs (nats); infinite if one of them diverged."""
    return float(np.mean([_loss(row) for row in rows]))


def _loss(row: Row) -> float:
    return float("inf") if row.log_loss is None else row.log_loss


def rate_curve(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, float]:
    """For each learning rate tried, lowest first, the mean log loss on validation data (nats).

    A rate at which a run diverged has an infinite loss. ``labels`` picks one number of labels.

    Raises:
        ValueError: No such rows.
    """
    return {rate: mean_loss(runs) for rate, runs in by_rate(rows, arm, labels).items()}


def judged(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, float]:
    """`rate_curve` of the rates that were tried with the most draws; the others have no say."""
    tried = by_rate(rows, arm, labels)
    most = max(map(len, tried.values()))
    return {rate: mean_loss(runs) for rate, runs in tried.items() if len(runs) == most}


def best_rate(rows: Iterable[Row], arm: str, labels: int | None = None) -> float:
    """The rate with the lowest mean log loss on validation data; the lower of two that tie.

    Of the rates that were tried with the most draws.
    """
    return _ranked(judged(rows, arm, labels))[0]


def runner_up(rows: Iterable[Row], arm: str, labels: int | None = None) -> float:
    """The rate that came second."""
    return _ranked(judged(rows, arm, labels))[1]


def single_choices(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[int, float]:
    """{draw: the rate that this tuning draw would have chosen, had it been the only one}."""
    rows = list(rows)
    tried = by_rate(rows, arm, labels)
    losses = {
        rate: {row.seed: _loss(row) for row in tried[rate]} for rate in judged(rows, arm, labels)
    }
    return {
        seed: min(losses, key=lambda rate: (losses[rate][seed], rate))
        for seed in sorted(losses[next(iter(losses))])
    }


def _ranked(curve: Mapping[float, float]) -> list[float]:
    return sorted(curve, key=lambda rate: (curve[rate], rate))


def tune(
    train: Callable[[Runs], list[Row]],
    middles: Mapping[str, float],
    tunings: Mapping[str, Tuning],
) -> list[Row]:
    """Try rates for every arm until its best lies between two others; the rows of all.

    ``train`` makes the runs of a round. ``middles`` are rungs of the arms' ladders.

    Raises:
        ValueError: An arm's best rate is at an end of its ladder, or a middle is no rung.
    """
    rows: list[Row] = []
    todo = {arm: _first(middles[arm], tuning) for arm, tuning in tunings.items()}
    while todo:
        rows += train(todo)
        lacking = {arm: _lacking(rows, arm, tuning) for arm, tuning in tunings.items()}
        todo = {arm: runs for arm, runs in lacking.items() if runs}
    return rows


def _first(middle: float, tuning: Tuning) -> list[tuple[float, int]]:
    """What an arm begins with."""
    ladder = LADDERS[tuning.ladder]
    if middle not in ladder:
        raise ValueError(f"{middle:g} is no rung of the ladder {ladder}")
    at = ladder.index(middle)
    rungs = [at + tuning.stride * k for k in range(-tuning.below, tuning.above + 1)]
    seeds = tuning.seeds[: tuning.glance]
    return [(ladder[k], seed) for k in rungs if 0 <= k < len(ladder) for seed in seeds]


def _lacking(rows: list[Row], arm: str, tuning: Tuning) -> list[tuple[float, int]]:
    """What has to be run before the arm's best rate can be trusted."""
    ladder, curve = LADDERS[tuning.ladder], judged(rows, arm)
    best = ladder.index(best_rate(rows, arm))
    if best == 0 and curve.get(ladder[1], np.inf) < curve[ladder[0]] * (1 + IDLE):
        return []
    if best in (0, len(ladder) - 1):
        raise ValueError(
            f"the best rate of {arm!r} is {ladder[best]:g}, where the ladder ends: lengthen it"
        )
    done = {(rate, row.seed) for rate, runs in by_rate(rows, arm).items() for row in runs}
    near = [(rate, seed) for rate in ladder[best - 1 : best + 2] for seed in tuning.seeds]
    return [run for run in near if run not in done]
