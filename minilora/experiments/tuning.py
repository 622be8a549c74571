"""Choosing learning rates: one ladder for all arms, climbed until the best rung lies inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.experiments.recording import Row

#: The ladder. Neighbours are a factor of about 1.5 apart, and every second rung one of about 2.2.
FINE = (
    *(1e-5, 1.5e-5, 2.2e-5, 3.2e-5, 5e-5, 7e-5),
    *(1e-4, 1.5e-4, 2.2e-4, 3.2e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2.2e-3, 3.2e-3, 5e-3, 7e-3),
    *(1e-2, 1.5e-2, 2.2e-2, 3.2e-2, 5e-2, 7e-2, 0.1, 0.15, 0.22, 0.32, 0.5, 0.7),
    *(1.0, 1.5, 2.2, 3.2, 5.0),
)

#: The coarse ladder, every second rung of the fine one.
RATES = FINE[::2]

#: Where the lowest two rates differ in their loss by less than this share, they change next to
#: nothing: the arm is best left untrained, and no lower rate would be better.
IDLE = 1e-3

#: The learning rates to try for each arm.
Ladders = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Tuning:
    """How the arms of a comparison come by their rates, and how often they are tested.

    An arm begins with ``rungs`` rates on either side of a middle one, ``lower`` steps below it for
    a wider model. Each rate is tried with all ``seeds``; the best is tested with all ``tested``.

    With ``glance``, these first rates are tried with so many of the seeds only. Then the best and
    its two neighbours on the fine ladder are tried with all seeds, until the best of those that
    were has two such neighbours.
    """

    rungs: int
    seeds: tuple[int, ...]
    tested: tuple[int, ...]
    lower: int = 0
    glance: int = 0


def _losses(rows: Iterable[Row], arm: str, labels: int | None) -> dict[float, dict[int, float]]:
    """{rate: {seed: log loss on validation data}}, lowest rate first; infinite where it diverged.

    Raises:
        ValueError: There are none.
    """
    losses: dict[float, dict[int, float]] = {}
    for row in rows:
        fits = (row.stage, row.arm) == ("tune", arm) and labels in (None, row.labels)
        if fits and row.lr is not None:
            loss = float("inf") if row.log_loss is None else row.log_loss
            losses.setdefault(row.lr, {})[row.seed] = loss
    if not losses:
        with_labels = "" if labels is None else f" with {labels} labels"
        raise ValueError(f"no tuning runs of {arm!r}{with_labels}")
    return {rate: losses[rate] for rate in sorted(losses)}


def rate_curve(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, float]:
    """For each learning rate tried, lowest first, the mean log loss on validation data (nats).

    A rate at which a run diverged has an infinite loss. ``labels`` picks one number of labels.

    Raises:
        ValueError: No such rows.
    """
    losses = _losses(rows, arm, labels)
    return {rate: float(np.mean(list(of.values()))) for rate, of in losses.items()}


def judged(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, float]:
    """`rate_curve` of the rates that were tried with the most draws; the others have no say."""
    rows = list(rows)
    losses = _losses(rows, arm, labels)
    most = max(map(len, losses.values()))
    curve = rate_curve(rows, arm, labels)
    return {rate: curve[rate] for rate, of in losses.items() if len(of) == most}


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
    losses = _losses(rows, arm, labels)
    rates = judged(rows, arm, labels)
    return {
        seed: min(rates, key=lambda rate: (losses[rate][seed], rate))
        for seed in sorted(losses[next(iter(rates))])
    }


def _ranked(curve: Mapping[float, float]) -> list[float]:
    return sorted(curve, key=lambda rate: (curve[rate], rate))


def tune(
    train: Callable[[Ladders, Sequence[int]], list[Row]],
    middles: Mapping[str, float],
    tuning: Tuning,
) -> list[Row]:
    """Try rates for every arm until its best lies between two others; the rows of all.

    ``train`` takes the rates to try for each arm, and the seeds to try them with. ``middles`` are
    rungs of the ladder.

    Raises:
        ValueError: An arm's best rate is at an end of the ladder, or a middle is no rung.
    """
    ladder = FINE if tuning.glance else RATES
    stride = 2 if tuning.glance else 1
    starts = {arm: _rung(ladder, middle) - tuning.lower for arm, middle in middles.items()}
    offsets = [stride * k for k in range(-tuning.rungs, tuning.rungs + 1)]
    first: Ladders = {
        arm: [ladder[at + k] for k in offsets if 0 <= at + k < len(ladder)]
        for arm, at in starts.items()
    }
    rows = train(first, tuning.seeds[: tuning.glance or None])
    while todo := _missing(rows, middles, ladder, tuning.seeds):
        for seeds in dict.fromkeys(todo.values()):
            some: dict[str, list[float]] = {}
            for (arm, rate), lacking in todo.items():
                if lacking == seeds:
                    some.setdefault(arm, []).append(rate)
            rows += train(some, seeds)
    return rows


def _rung(ladder: Sequence[float], rate: float) -> int:
    if rate not in ladder:
        raise ValueError(f"{rate:g} is no rung of the ladder {ladder}")
    return ladder.index(rate)


def _missing(
    rows: list[Row], arms: Iterable[str], ladder: Sequence[float], seeds: Sequence[int]
) -> dict[tuple[str, float], tuple[int, ...]]:
    """{(arm, rate): seeds} that are lacking before the arms' best rates can be trusted."""
    todo = {}
    for arm in arms:
        tried = _losses(rows, arm, None)
        curve = judged(rows, arm)
        best = ladder.index(best_rate(rows, arm))
        if best == 0 and curve.get(ladder[1], np.inf) < curve[ladder[0]] * (1 + IDLE):
            continue
        if best in (0, len(ladder) - 1):
            raise ValueError(
                f"the best rate of {arm!r} is {ladder[best]:g}, where the ladder ends: lengthen it"
            )
        for rate in ladder[best - 1 : best + 2]:
            lacking = tuple(seed for seed in seeds if seed not in tried.get(rate, {}))
            if lacking:
                todo[arm, rate] = lacking
    return todo
