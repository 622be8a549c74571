"""Which runs broke, and up to which learning rate none did."""

from __future__ import annotations

from collections.abc import Iterable

from minilora.experiments.recording import Row
from minilora.experiments.tuning import by_rate


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
