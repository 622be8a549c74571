"""From raw rows to the few numbers of a figure: means, standard errors, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minilora.experiments.recording import Quantity, Recording, Row
from minilora.experiments.tuning import rate_curve

METRICS = ("accuracy", "log_loss")

#: Kinds of rows beside an arm's own, which are its runs on one sheet and on other pictures.
BESIDE = ("sheet", "aside")


@dataclass(frozen=True)
class ArmResult:
    """One arm at one number of labels: the mean over seeds and its standard error (nan for one).

    ``values`` are the seeds' own accuracies, in the order of the seeds. ``log_loss`` is in nats,
    nan for methods that give no probabilities, and ``train_loss`` is its mean on the last batches
    of the training, nan where nothing is trained step by step.
    """

    arm: str
    kind: str
    r: int | None
    labels: int
    parameters: int | None
    lr: float | None
    seeds: int
    accuracy: float
    accuracy_se: float
    log_loss: float
    log_loss_se: float
    values: tuple[float, ...]
    train_loss: float = float("nan")


@dataclass(frozen=True)
class Paired:
    """How much better arm ``a`` is than arm ``b``, one by one, with a 95% t-interval.

    ``mean`` is a − b, and ``seeds`` is how many differences there are: one for each draw, or one
    for each sheet. ``detectable`` is whether the interval leaves out zero.
    """

    a: str
    b: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: int

    @property
    def detectable(self) -> bool:
        """Whether the 95% interval leaves out zero."""
        return not self.low <= 0 <= self.high


def summarise(recording: Recording, labels: int | None = None) -> list[ArmResult]:
    """The test results of every arm, in the order in which they were run.

    ``labels`` picks one number of labels; left out, the one of the main figure.
    """
    labels = _labels(recording, labels)
    names = dict.fromkeys(
        row.arm
        for row in recording.rows
        if row.stage == "final" and row.labels == labels and row.kind not in BESIDE
    )
    return [_summary(final_rows(recording, name, labels)) for name in names]


def final_rows(recording: Recording, arm: str, labels: int | None = None) -> list[Row]:
    """The arm's rows on test data, by seed; ``labels`` as in `summarise`.

    Raises:
        ValueError: There are none.
    """
    labels = _labels(recording, labels)
    rows = [
        row for row in recording.rows if (row.stage, row.arm, row.labels) == ("final", arm, labels)
    ]
    if not rows:
        known = dict.fromkeys(row.arm for row in recording.rows if row.kind not in BESIDE)
        raise ValueError(f"no test rows of {arm!r} with {labels} labels; arms: {list(known)}")
    return sorted(rows, key=lambda row: row.seed)


def paired(
    recording: Recording, a: str, b: str, metric: str = "accuracy", labels: int | None = None
) -> Paired:
    """The difference of two arms over the seeds that both have. Needs two seeds at least."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, but is {metric!r}")
    labels = _labels(recording, labels)
    of_a, of_b = (
        {row.seed: getattr(row, metric) for row in final_rows(recording, name, labels)}
        for name in (a, b)
    )
    both = [seed for seed in of_a if of_a[seed] is not None and of_b.get(seed) is not None]
    if len(both) < 2:
        raise ValueError(f"{a!r} and {b!r} share {len(both)} seeds with a {metric}: need 2")
    return _interval(a, b, metric, [of_a[seed] - of_b[seed] for seed in both])


def by_sheet(recording: Recording, a: str, b: str, metric: str = "accuracy") -> dict[int, float]:
    """{sheet: a − b for its writing}, the mean over the seeds; their mean is about that of all.

    A picture has its two digits from two sheets, as a rule. What a sheet is ahead or behind by, on
    the pictures with one of its digits, therefore counts twice.
    """
    labels = _labels(recording, None)
    whole = paired(recording, a, b, metric, labels).mean
    of: list[dict[int, float]] = []
    for arm in (a, b):
        rows: dict[int, list[float]] = {}
        for row in recording.rows:
            name, _, sheet = row.arm.rpartition(", sheet ")
            if (name, row.labels, row.kind) == (arm, labels, "sheet"):
                rows.setdefault(int(sheet), []).append(getattr(row, metric))
        of.append({sheet: float(np.mean(values)) for sheet, values in sorted(rows.items())})
    return {sheet: whole + 2 * (of[0][sheet] - of[1][sheet] - whole) for sheet in of[0]}


def paired_by_sheet(recording: Recording, a: str, b: str, metric: str = "accuracy") -> Paired:
    """The difference of two arms over the sheets of handwriting that the test pictures are from."""
    return _interval(a, b, metric, list(by_sheet(recording, a, b, metric).values()))


def _interval(a: str, b: str, metric: str, values: list[float]) -> Paired:
    return Paired(a, b, metric, *t_interval(values), len(values))


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two values or more, and the ends of its 95% t-interval."""
    from scipy.stats import t  # scikit-learn brings it

    mean, count = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return mean, mean - half, mean + half


def tuning_curve(recording: Recording, arm: str, labels: int | None = None) -> dict[float, float]:
    """For each learning rate tried, lowest first, the mean log loss on validation data (nats).

    A rate at which a run diverged has an infinite loss. ``labels`` picks one number of labels;
    left out, the one of the main figure.
    """
    return rate_curve(recording.rows, arm, _labels(recording, labels))


def quantities(
    recording: Recording, what: str, arm: str | None = None, size: int | None = None
) -> list[Quantity]:
    """The measurements of one thing; ValueError where there is none."""
    found = [
        one
        for one in recording.quantities
        if one.what == what and arm in (None, one.arm) and size in (None, one.size)
    ]
    if not found:
        known = sorted({(one.what, one.arm) for one in recording.quantities})
        raise ValueError(f"no {what!r} of {arm!r} at {size}; there are {known}")
    return found


def ratios(recording: Recording, what: str, arm: str, other: str, size: int) -> list[float]:
    """Measured of ``arm`` ÷ measured of ``other``, round by round, at one size."""
    pair = [quantities(recording, what, one, size) for one in (arm, other)]
    return [a.measured / b.measured for a, b in zip(*pair, strict=True)]


def table(
    recording: Recording, labels: int | None = None, arms: Sequence[str] | None = None
) -> str:
    """The summaries as lines of text, of all arms or of some.

    Arm, trainable parameters, accuracy and log loss ± SE, training loss, and learning rate.
    """
    lines = [
        f"{'':<22}{'trainable':>10}  {'accuracy, %':>12}  {'log loss, nats':>14}"
        f"  {'in training':>11}  {'rate':>7}"
    ]
    for one in summarise(recording, labels):
        if arms is not None and one.arm not in arms:
            continue
        count = "" if one.parameters is None else f"{one.parameters:,}"
        accuracy = f"{100 * one.accuracy:.1f}" + _plus_minus(100 * one.accuracy_se, 1)
        loss = "" if np.isnan(one.log_loss) else f"{one.log_loss:.3f}"
        loss += _plus_minus(one.log_loss_se, 3) if loss else ""
        train = "" if np.isnan(one.train_loss) else f"{one.train_loss:.3f}"
        rate = "" if one.lr is None else f"{one.lr:g}"
        lines.append(
            f"{one.arm:<22}{count:>10}  {accuracy:>12}  {loss:>14}  {train:>11}  {rate:>7}"
        )
    return "\n".join(lines)


def _plus_minus(se: float, digits: int) -> str:
    return "" if np.isnan(se) else f" ± {se:.{digits}f}"


def _labels(recording: Recording, labels: int | None) -> int:
    """The number of labels asked for, or that of the main figure, or the first that was run."""
    offered = list(dict.fromkeys(row.labels for row in recording.rows))
    if labels is None:
        main = recording.settings["labels"]
        first = int(main[0] if isinstance(main, list | tuple) else main)
        return first if first in offered else offered[0]
    if labels not in offered:
        raise ValueError(f"no run with {labels} labels; there are {offered}")
    return labels


def _summary(rows: list[Row]) -> ArmResult:
    accuracy, accuracy_se = _mean([row.accuracy for row in rows])
    log_loss, log_loss_se = _mean([row.log_loss for row in rows])
    train_loss, _ = _mean([row.train_loss for row in rows])
    first = rows[0]
    return ArmResult(
        arm=first.arm,
        kind=first.kind,
        r=first.r,
        labels=first.labels,
        parameters=first.parameters,
        lr=first.lr,
        seeds=len(rows),
        accuracy=accuracy,
        accuracy_se=accuracy_se,
        log_loss=log_loss,
        log_loss_se=log_loss_se,
        values=tuple(float("nan") if row.accuracy is None else row.accuracy for row in rows),
        train_loss=train_loss,
    )


def _mean(values: list[float | None]) -> tuple[float, float]:
    """The mean and its standard error; nan where a value is missing, or where there is one."""
    if any(value is None for value in values):
        return float("nan"), float("nan")
    numbers = np.array(values, dtype=float)
    if len(numbers) < 2:
        return float(numbers[0]), float("nan")
    return float(numbers.mean()), float(numbers.std(ddof=1) / len(numbers) ** 0.5)
