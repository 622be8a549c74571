"""What a recording of the language experiment says, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minilora.experiments.language.experiment import BASE
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import quantities
from minilora.lab.language import Text


@dataclass(frozen=True)
class RunResult:
    """One run of part "ranks", with all that was measured of it on held-out texts.

    ``values`` are by name, such as "prose", "code" (nats a token), "KL" and "size".
    """

    arm: str
    kind: str
    lr: float
    seed: int
    values: dict[str, float] = field(default_factory=dict)


def measured(recording: Recording) -> list[RunResult]:
    """All runs of part "ranks", those that tuned as well; not what was measured turned down."""
    found: dict[tuple[str, int], RunResult] = {}
    for one in recording.quantities:
        name, at, rate = one.arm.rpartition(" at ")
        if at and one.what.split(" ")[-1] not in ("after", "turned"):
            run = RunResult(name, one.kind, float(rate), one.repeat)
            found.setdefault((one.arm, one.repeat), run).values[one.what] = one.measured
    return list(found.values())


def untouched(recording: Recording, what: str) -> float:
    """A loss of the base as it is (nats a token)."""
    return quantities(recording, what, BASE)[0].measured


def turned_down(recording: Recording, arm: str, lr: float) -> dict[int, list[tuple[float, float]]]:
    """{hundredths of the update: (prose, code) of each draw}, in nats a token."""
    found: dict[int, list[tuple[float, float]]] = {}
    name = f"{arm} at {lr:g}"
    prose = quantities(recording, "prose, turned", name)
    code = quantities(recording, "code, turned", name)
    for one, other in zip(prose, code, strict=True):
        found.setdefault(one.size, []).append((one.measured, other.measured))
    return found


def watched(
    recording: Recording, arm: str, lr: float, what: str = "prose after"
) -> dict[int, list[float]]:
    """{steps: the loss of each draw after so many}, in nats a token."""
    found: dict[int, list[float]] = {}
    for one in quantities(recording, what, f"{arm} at {lr:g}"):
        found.setdefault(one.size, []).append(one.measured)
    return dict(sorted(found.items()))


def by_topic(recording: Recording, of: Text, a: str, b: str) -> list[float]:
    """a − b for each topic of the test text (nats a token), the mean over the draws."""
    rows: dict[str, list[float]] = {}
    for row in recording.rows:
        if row.stage == "final" and row.log_loss is not None:
            rows.setdefault(row.arm, []).append(row.log_loss)
    found = []
    for name in of.names:
        one, other = rows.get(f"{a}, topic {name}"), rows.get(f"{b}, topic {name}")
        if one and other:  # a topic that is shorter than a window has no rows
            found.append(sum(one) / len(one) - sum(other) / len(other))
    return found


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The rank correlation of two lists: 1 where they are in the same order."""
    from scipy.stats import spearmanr  # scikit-learn brings it

    return float(spearmanr(x, y).statistic)
