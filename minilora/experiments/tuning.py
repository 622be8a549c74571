"""Choosing learning rates: one ladder for all arms, climbed until the best rung lies inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.experiments.recording import Row

#: The ladder. Neighbours are a factor of about 2.2 apart.
RATES = (1e-4, 2.2e-4, 5e-4, 1e-3, 2.2e-3, 5e-3, 1e-2, 2.2e-2, 5e-2, 0.1, 0.22, 0.5)

#: The learning rates to try for each arm.
Ladders = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Tuning:
    """How the arms of a comparison come by their rates, and how often they are tested.

    An arm begins with ``rungs`` rates on either side of a middle one, ``lower`` steps below it for
    a wider model. Each rate is tried with all ``seeds``; the best is tested with all ``tested``.
    """

    rungs: int
    seeds: tuple[int, ...]
    tested: tuple[int, ...]
    lower: int = 0


def rate_curve(rows: Iterable[Row], arm: str, labels: int | None = None) -> dict[float, float]:
    """For each learning rate tried, lowest first, the mean log loss on validation data (nats).

    A rate at which a run diverged has an infinite loss. ``labels`` picks one number of labels.

    Raises:
        ValueError: No such rows.
    """
    losses: dict[float, list[float]] = {}
    for row in rows:
        fits = (row.stage, row.arm) == ("tune", arm) and labels in (None, row.labels)
        if fits and row.lr is not None:
            loss = float("inf") if row.log_loss is None else row.log_loss
            losses.setdefault(row.lr, []).append(loss)
    if not losses:
        with_labels = "" if labels is None else f" with {labels} labels"
        raise ValueError(f"no tuning runs of {arm!r}{with_labels}")
    return {rate: float(np.mean(losses[rate])) for rate in sorted(losses)}


def best_rate(rows: Iterable[Row], arm: str, labels: int | None = None) -> float:
    """The rate with the lowest mean log loss on validation data; the lower of two that tie."""
    curve = rate_curve(rows, arm, labels)
    return min(curve, key=lambda rate: (curve[rate], rate))


def tune(
    train: Callable[[Ladders], list[Row]], middles: Mapping[str, float], tuning: Tuning
) -> list[Row]:
    """Try rates for every arm until its best lies between two others; the rows of all.

    ``train`` takes the rates to try for each arm: those at the start, then one at a time on the
    side where the best is last. ``middles`` are rungs of ``RATES``.
    """
    spans: dict[str, tuple[int, int]] = {}  # the first rung tried, and the one past the last
    for arm, middle in middles.items():
        at = RATES.index(middle) - tuning.lower
        spans[arm] = max(0, at - tuning.rungs), min(at + tuning.rungs + 1, len(RATES))
    todo: dict[str, Sequence[float]] = {
        arm: RATES[first:end] for arm, (first, end) in spans.items()
    }
    rows: list[Row] = []
    while todo:
        rows += train(todo)
        todo = {}
        for arm, (first, end) in spans.items():
            best = RATES.index(best_rate(rows, arm))
            if best == first > 0:
                spans[arm], todo[arm] = (first - 1, end), RATES[first - 1 : first]
            elif best == end - 1 < len(RATES) - 1:
                spans[arm], todo[arm] = (first, end + 1), RATES[end : end + 1]
    return rows
