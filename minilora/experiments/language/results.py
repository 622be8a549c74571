"""What a recording of the language experiment says, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from minilora.experiments.language.experiment import BASE
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import quantities
from minilora.experiments.tuning import best_rate
from minilora.lab.language import Text

#: {draw: [(gained on prose, lost on code) …]}, in bits a byte, from the smallest change on.
Paths = dict[int, list[tuple[float, float]]]


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


def turned_down(
    recording: Recording, arm: str, lr: float
) -> dict[int, dict[int, tuple[float, float]]]:
    """{hundredths of the update: {draw: (prose, code)}}, in nats a token."""
    found: dict[int, dict[int, tuple[float, float]]] = {}
    name = f"{arm} at {lr:g}"
    prose = quantities(recording, "prose, turned", name)
    code = quantities(recording, "code, turned", name)
    for one, other in zip(prose, code, strict=True):
        found.setdefault(one.size, {})[one.repeat] = (one.measured, other.measured)
    return found


def paths_by_rate(recording: Recording, arm: str, prose: Text, code: Text) -> Paths:
    """What each tuning draw of an arm has gained and lost, rate by rate, the lowest first."""
    start = {what: untouched(recording, what) for what in ("prose", "code")}
    tested = {row.seed for row in recording.rows if (row.stage, row.arm) == ("final", arm)}
    found: Paths = {}
    for one in sorted(measured(recording), key=lambda run: run.lr):
        if one.arm == arm and one.seed not in tested:
            gained = prose.bits_per_byte(start["prose"] - one.values["prose"])
            lost = code.bits_per_byte(one.values["code"] - start["code"])
            found.setdefault(one.seed, []).append((gained, lost))
    return found


def paths_by_strength(recording: Recording, arm: str, prose: Text, code: Text) -> Paths:
    """What each tested draw of an arm has gained and lost at one strength after the other.

    From 0, where nothing is gained or lost, to 1, at the arm's best rate.
    """
    start = {what: untouched(recording, what) for what in ("prose", "code")}
    lr = best_rate(recording.rows, arm)
    at: dict[int, list[tuple[int, float, float]]] = {}
    for percent, draws in turned_down(recording, arm, lr).items():
        for draw, (on_prose, on_code) in draws.items():
            at.setdefault(draw, []).append((percent, on_prose, on_code))
    for one in measured(recording):
        if (one.arm, one.lr) == (arm, lr) and one.seed in at:
            at[one.seed].append((100, one.values["prose"], one.values["code"]))
    return {
        draw: [(0.0, 0.0)]
        + [
            (prose.bits_per_byte(start["prose"] - a), code.bits_per_byte(b - start["code"]))
            for percent, a, b in sorted(found)
            if percent <= 100
        ]
        for draw, found in sorted(at.items())
    }


def price(path: Sequence[tuple[float, float]], gained: float) -> float:
    """What is lost where so much is gained, on the straight line between two points of a path.

    Where a step of the path brings no further gain it is left out; nan where the gain is smaller
    than the first or larger than any.
    """
    rising = [path[0]]
    for point in path[1:]:
        if point[0] > rising[-1][0]:
            rising.append(point)
    gains, losses = zip(*rising, strict=True)
    if not gains[0] <= gained <= gains[-1]:
        return float("nan")
    return float(np.interp(gained, gains, losses))


def share_of_loss(recording: Recording, arm: str, lr: float, null: str) -> float:
    """What random changes lose on code, over what training has lost; the mean over the draws.

    ``null`` says what they have in common with the trained ones beside the spectrum: "size" or
    "KL".
    """
    start = untouched(recording, "code")
    mine = [one.values for one in measured(recording) if (one.arm, one.lr) == (arm, lr)]
    random = f"code, random of equal {null}"
    return float(np.mean([(one[random] - start) / (one["code"] - start) for one in mine]))


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


def correlation(runs: Sequence[RunResult], what: str) -> float:
    """The rank correlation, over some runs, of what is lost on code with something else.

    ``what`` is "rate", "gain" (on prose) or the name of a value, such as "KL".
    """
    lost = [one.values["code"] for one in runs]
    if what == "rate":
        return spearman([one.lr for one in runs], lost)
    if what == "gain":
        return spearman([-one.values["prose"] for one in runs], lost)
    return spearman([one.values[what] for one in runs], lost)
