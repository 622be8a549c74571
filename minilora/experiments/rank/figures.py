"""The figures of chapter 8, drawn from the raw rows of the rank experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.recording import Recording, Row
from minilora.experiments.summaries import ArmResult, final_rows, summarise
from minilora.experiments.tuning import best_rate, rate_curve
from minilora.lab.plotting import COLORS, LINESTYLES, MARKERS, label_line

#: Where an arm's name stands: offset in points, and the side of the text that faces the mark.
NAME_SIDES = {
    "lora": (0, 12, "center"),  # beyond the best run
    "random": (0, -12, "center"),  # beyond the worst
    "full": (12, 0, "left"),
    "head": (10, -8, "left"),
    "biases": (10, -8, "left"),
    "scratch": (-10, 0, "right"),
}
METHODS = {
    "the base as it is": "the base as it is",
    "nearest neighbours": "nearest neighbours",
    "logistic regression": "logistic regression",
    "digits labelled singly": "1-NN, every\ndigit labelled",
}
Offset = tuple[float, float]


def draw_tuning(
    ax: Axes, recording: Recording, names: Sequence[str], offsets: Mapping[str, Offset]
) -> None:
    """Validation log loss (nats) against learning rate, logarithmic; the chosen rate is filled.

    Small marks are tuning draws, and lines join their means. ``offsets`` are those of the arms'
    names from the first point of their line, in points.
    """
    labels = recording.settings["labels"]
    for name in names:
        rows = [row for row in recording.rows if (row.arm, row.labels) == (name, labels)]
        tuned = [row for row in rows if row.stage == "tune" and row.log_loss is not None]
        kind, r = tuned[0].kind, tuned[0].r
        color, marker = COLORS[kind], MARKERS[kind]
        style = {1: ":", 2: "--"}.get(r or 0, LINESTYLES[kind])
        ax.plot(
            [row.lr or 0 for row in tuned],
            [row.log_loss or 0 for row in tuned],
            ".",
            color=color,
            alpha=0.45,
        )
        curve, best = rate_curve(rows, name), best_rate(rows, name)
        rates, losses = list(curve), list(curve.values())
        ax.loglog(rates, losses, marker, color=color, linestyle=style, mfc="white")
        ax.plot(best, curve[best], marker, color=color)
        dx, dy = offsets.get(name, (-8, 0))
        ha = "right" if dx < 0 else "left"
        label_line(ax, (rates[0], losses[0]), name, color=color, offset=(dx, dy), ha=ha)
    ax.set(xlabel="learning rate", ylabel="validation log loss (nats)")
    ax.set_yticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    ax.minorticks_off()


def draw_arms(
    axes: Sequence[Axes], recording: Recording, metric: str = "accuracy", cut: float = 0.0
) -> None:
    """Every trained arm: ``metric`` on test data against trainable parameters (logarithmic).

    Small marks are runs and large marks their means; LoRA's are joined. Accuracy is in per cent,
    log loss in nats. With two ``axes``, an arm whose mean is above ``cut`` goes into the first.
    """
    unit = 100 if metric == "accuracy" else 1
    trained = [one for one in summarise(recording) if one.kind in NAME_SIDES]
    for arm in trained:
        runs = _runs(recording, arm, metric, unit)
        mean, color = float(np.mean(runs)), COLORS[arm.kind]
        ax = axes[0] if mean > cut or len(axes) == 1 else axes[-1]
        size = float(arm.parameters or 0)
        ax.plot([size] * len(runs), runs, ".", color=color, alpha=0.5)
        ax.plot(size, mean, MARKERS[arm.kind], color=color, markersize=9)
        dx, dy, ha = NAME_SIDES[arm.kind]
        up = 1 if metric == "accuracy" else -1  # which way is better
        ends = {"lora": max(runs, key=lambda y: up * y), "random": min(runs, key=lambda y: up * y)}
        where = size, ends.get(arm.kind, mean)
        dy *= up if arm.kind in ends else 1
        if arm is [one for one in trained if one.kind == "lora"][-1]:  # a line stands there
            where, dx, dy, ha = (size, mean), -9, 9 * up, "right"
        name = f"r = {arm.r}" if arm.kind == "lora" else arm.arm.replace(" fine", "\nfine")
        label_line(ax, where, name, color=color, ha=ha, offset=(dx, dy))
    low_rank = [one for one in trained if one.kind == "lora"]
    means = [float(np.mean(_runs(recording, one, metric, unit))) for one in low_rank]
    ax = axes[0] if means[0] > cut or len(axes) == 1 else axes[-1]
    ax.plot([float(one.parameters or 0) for one in low_rank], means, color=COLORS["lora"])
    for ax in axes:
        ax.set_xscale("log")
    names = {"accuracy": "test accuracy (%)", "log_loss": "test log loss (nats)"}
    axes[-1].set(xlabel="trainable parameters")
    for ax in axes:
        ax.set(ylabel=names[metric])


def draw_methods(axes: Sequence[Axes], recording: Recording, x: float, cut: float = 0.0) -> None:
    """A line across, in per cent of test accuracy, for each method that trains no transformer.

    Its name stands at ``x``. With two ``axes``, a line above ``cut`` goes into the first.
    """
    for one in summarise(recording):
        if one.arm in METHODS:
            y = 100 * one.accuracy
            ax = axes[0] if y > cut else axes[-1]
            kind = "neighbours" if one.kind == "halves" else one.kind
            ax.axhline(y, color=COLORS[kind], linewidth=1.3, linestyle=LINESTYLES[kind])
            label_line(ax, (x, y), METHODS[one.arm], color=COLORS[kind])


def draw_by_labels(ax: Axes, recording: Recording, names: Sequence[str]) -> None:
    """Test accuracy (%) of some arms against the number of labelled pictures (logarithmic).

    Small marks are runs and large marks their means.
    """
    found = {labels: summarise(recording, labels) for labels in _counts(recording, names[0])}
    for name in names:
        arms = [one for some in found.values() for one in some if one.arm == name]
        kind = "neighbours" if arms[0].kind == "halves" else arms[0].kind
        color, means = COLORS[kind], [100 * one.accuracy for one in arms]
        labels = [one.labels for one in arms]
        for one in arms:
            runs = [100 * value for value in one.values]
            ax.plot([one.labels] * len(runs), runs, ".", color=color, alpha=0.5)
        ax.plot(labels, means, MARKERS[kind], linestyle=LINESTYLES[kind], color=color)
        up = {"lora": 5, "full": -9, "halves": 12}.get(arms[0].kind, 0)
        place = labels[-1], means[-1]
        label_line(ax, place, METHODS.get(name, name), color=color, offset=(9, up))
    ax.set_xscale("log")
    ax.set_xticks(list(found), labels=[f"{count:,}" for count in found])
    ax.minorticks_off()
    ax.set(xlabel="labelled pictures", ylabel="test accuracy (%)")


def draw_watched(
    ax: Axes, recording: Recording, field: str, offsets: Mapping[str, Offset] | None = None
) -> None:
    """The log loss (nats) of what was watched against the step, at a constant rate.

    ``field`` is "log_loss", for that on validation data, or "train_loss". Thin lines are runs and
    thick ones their means; ``offsets`` are those of the names where the lines end.
    """
    runs: dict[str, dict[int, list[Row]]] = {}
    for row in recording.rows:
        if row.arm.startswith("watched"):
            runs.setdefault(row.arm, {}).setdefault(row.seed, []).append(row)
    for arm, of in runs.items():
        first = next(iter(of.values()))[0]
        color = COLORS[first.kind]
        style = ":" if first.r == 1 else LINESTYLES[first.kind]
        curves = []
        for rows in of.values():
            seen = [row for row in rows if getattr(row, field) is not None]
            steps = [_step(row) for row in seen]
            curves.append([getattr(row, field) for row in seen])
            ax.plot(steps, curves[-1], color=color, linestyle=style, linewidth=0.7, alpha=0.6)
        means = np.mean(curves, axis=0)
        ax.plot(steps, means, color=color, linestyle=style)
        if offsets is not None:
            name = "full" if first.r is None else f"r = {first.r}"
            offset = offsets.get(arm, (7, 0))
            label_line(ax, (steps[-1], means[-1]), name, color=color, offset=offset)
    ax.set(xlabel="step")


def draw_forgetting(ax: Axes, recording: Recording, names: Sequence[str]) -> None:
    """Accuracy on printed pairs against that on written ones (%), one mark for each rate.

    Small marks are runs and large ones their means. An arm's rates are joined and written beside
    their marks: to the right for LoRA, to the left for others but the name.
    """
    for name in names:
        points: dict[float, tuple[float, float]] = {}
        for arm in summarise(recording):
            if arm.arm not in (name, f"{name}, runner-up", f"{name}, at {arm.lr or 0:g}"):
                continue
            kept = [100 * value for value in aside(recording, arm.arm, "printed")]
            written = [100 * value for value in arm.values]
            kind = "lora" if arm.r else "full"
            ax.plot(written, kept, ".", color=COLORS[kind], alpha=0.35)
            points[arm.lr or 0] = float(np.mean(written)), float(np.mean(kept))
        color = COLORS[kind]
        rates = sorted(points)
        x, y = zip(*(points[rate] for rate in rates), strict=True)
        ax.plot(x, y, MARKERS[kind], color=color, linestyle="-", markersize=8)
        for rate in rates:
            first = rate == rates[0]
            right = first or kind == "lora"
            words = f"{name}, rate {rate:g}" if first else f"{rate:g}"
            offset = (9, 7) if right else (-9, -5)
            ha = "left" if right else "right"
            label_line(ax, points[rate], words, color=color, offset=offset, ha=ha)
    ax.set(xlabel="written sums right (%)", ylabel="printed sums right (%)")


def aside(recording: Recording, arm: str, name: str) -> list[float]:
    """The arm's accuracy on the further pictures of that name, one for each seed."""
    labels = recording.settings["labels"]
    rows = [row for row in recording.rows if (row.arm, row.labels) == (f"{arm}, {name}", labels)]
    return [row.accuracy or 0.0 for row in sorted(rows, key=lambda row: row.seed)]


def _counts(recording: Recording, arm: str) -> list[int]:
    return sorted({row.labels for row in recording.rows if row.arm == arm})


def _step(row: Row) -> int:
    return int((row.setting or "").removeprefix("step "))


def _runs(recording: Recording, arm: ArmResult, metric: str, unit: float) -> list[float]:
    """The arm's test results, one for each seed."""
    rows = final_rows(recording, arm.arm, arm.labels)
    return [unit * getattr(row, metric) for row in rows]
