"""What a recording of the family experiment says: orders, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.experiments.family.experiment import borrowed, low, second
from minilora.experiments.family.methods import kind_of
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows, t_interval
from minilora.experiments.tuning import best_rate, by_rate


@dataclass(frozen=True)
class Standing:
    """A method's place: what its draws reached, in the order of the draws; nan for a lost run."""

    method: str
    kind: str
    rate: float
    parameters: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """nan if a run was lost."""
        return float(np.mean(self.values))


def arm_at(method: str, at: str) -> str:
    """The name of a method's rows at its "own", the "borrowed", the "low" or its "second" rate."""
    names: dict[str, Callable[[str], str]] = {
        "own": str,
        "borrowed": borrowed,
        "low": low,
        "second": second,
    }
    if at not in names:
        raise ValueError(f"at must be one of {', '.join(names)}, but is {at!r}")
    return names[at](method)


def standing(
    recording: Recording, method: str, at: str = "own", metric: str = "accuracy", labels: int = 500
) -> Standing:
    """A method at its "own" rate, at the "borrowed" or "low" one, or at its own "second" one."""
    rows = final_rows(recording, arm_at(method, at), labels)
    values = [getattr(row, metric) for row in rows]
    return Standing(
        method,
        kind_of(method),
        rows[0].lr or 0.0,
        rows[0].parameters or 0,
        tuple(float("nan") if value is None else value for value in values),
    )


def order(
    recording: Recording,
    methods: Sequence[str],
    at: str = "own",
    metric: str = "accuracy",
    labels: int = 500,
) -> list[Standing]:
    """The methods, the best first: the highest accuracy, or the lowest log loss."""
    sign = -1 if metric == "accuracy" else 1
    found = [standing(recording, name, at, metric, labels) for name in methods]
    return sorted(found, key=lambda one: (np.isnan(one.mean), sign * one.mean))


def while_tuning(
    recording: Recording, a: str, b: str, metric: str = "accuracy", labels: int = 500
) -> tuple[float, float, float]:
    """a − b on the validation pictures, over the draws that tuned: mean and 95% t-interval.

    Each at its best rate, which these draws and pictures have chosen.
    """
    found = []
    for name in (a, b):
        best = best_rate(recording.rows, name, labels)
        rows = by_rate(recording.rows, name, labels)[best]
        found.append({row.seed: getattr(row, metric) for row in rows})
    if found[0].keys() != found[1].keys():
        raise ValueError(f"{a!r} and {b!r} were not tuned with the same draws")
    return t_interval([found[0][seed] - found[1][seed] for seed in found[0]])


def over_topics(
    recording: Recording, a: str, b: str, labels: int, metric: str = "log_loss"
) -> tuple[float, float, float]:
    """a − b over the test topics, each averaged over the draws: mean and 95% t-interval."""
    of: list[dict[str, float]] = []
    for arm in (a, b):
        rows: dict[str, list[float]] = {}
        for row in recording.rows:
            name, _, topic = row.arm.rpartition(", topic ")
            if (name, row.labels, row.kind) == (arm, labels, "aside"):
                rows.setdefault(topic, []).append(getattr(row, metric))
        of.append({topic: float(np.mean(values)) for topic, values in rows.items()})
    if not of[0] or of[0].keys() != of[1].keys():
        raise ValueError(f"{a!r} and {b!r} have no topics in common with {labels} labels")
    return t_interval([of[0][topic] - of[1][topic] for topic in of[0]])
