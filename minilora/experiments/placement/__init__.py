"""Where to put an adapter, and how much rank a shift of the task needs."""

from minilora.experiments.placement.experiment import (
    EXPERIMENT,
    PARTS,
    PLACES,
    PROFILES,
    placements,
    rank_within,
    run,
    task,
)
from minilora.experiments.placement.shifts import exchange, printed, reader, shifts, turn

__all__ = [
    "EXPERIMENT",
    "PARTS",
    "PLACES",
    "PROFILES",
    "exchange",
    "placements",
    "printed",
    "rank_within",
    "reader",
    "run",
    "shifts",
    "task",
    "turn",
]
