"""The figures of chapter 8, drawn from the raw rows of the rank experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.recording import Recording
from minilora.experiments.summaries import ArmResult, summarise, tuning_curve
from minilora.lab.plotting import COLORS, LINESTYLES, MARKERS, LineStyle, label_line

#: Where an arm's name stands: offset in points, and the side of the text that faces the mark.
NAME_SIDES = {
    "lora": (0, 12, "center"),  # beyond the best run
    "random": (0, -12, "center"),  # beyond the worst
    "full": (-10, -2, "right"),
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


def draw_tuning(ax: Axes, recording: Recording, names: Sequence[str]) -> None:
    """Validation log loss (nats) against learning rate, logarithmic; the chosen rate is filled."""
    of = {one.arm: one for one in summarise(recording)}
    for arm in (of[name] for name in names):
        curve = tuning_curve(recording, arm.arm)
        rates, losses = list(curve), list(curve.values())
        color, marker = COLORS[arm.kind], MARKERS[arm.kind]
        style = ":" if arm.r == 1 else LINESTYLES[arm.kind]
        ax.loglog(rates, losses, marker, color=color, linestyle=style, mfc="white")
        if arm.lr in curve:
            ax.plot(arm.lr, curve[arm.lr], marker, color=color)
        label_line(ax, (rates[0], losses[0]), arm.arm, color=color, offset=(-8, 0), ha="right")
    ax.set(xlabel="learning rate", ylabel="validation log loss (nats)")
    ax.set_yticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    ax.minorticks_off()
    ax.margins(x=0.42)  # room for the names


def draw_arms(
    axes: Sequence[Axes], recording: Recording, metric: str = "accuracy", cut: float = 0.0
) -> None:
    """Every trained arm: ``metric`` on test data against trainable parameters (logarithmic).

    Small marks are runs and large marks their means; LoRA's are joined. Accuracy is in per cent,
    log loss in nats. With two ``axes``, an arm whose mean is above ``cut`` goes into the first.
    """
    unit = 100 if metric == "accuracy" else 1
    trained = [one for one in summarise(recording) if one.parameters is not None]
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
        name = f"r = {arm.r}" if arm.kind == "lora" else arm.arm
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
    counts = sorted({row.labels for row in recording.rows if row.arm == names[0]})
    for name in names:
        found = [summarise(recording, labels) for labels in counts]
        arms = [one for some in found for one in some if one.arm == name]
        kind = "neighbours" if arms[0].kind == "halves" else arms[0].kind
        color, means = COLORS[kind], [100 * one.accuracy for one in arms]
        labels = [one.labels for one in arms]
        style = ":" if arms[0].r == 1 else LINESTYLES[kind]
        for one in arms:
            runs = [100 * value for value in one.values]
            ax.plot([one.labels] * len(runs), runs, ".", color=color, alpha=0.5)
        ax.plot(labels, means, MARKERS[kind], linestyle=style, color=color)
        up = {"lora": 1, "full": -9, "halves": 12}.get(arms[0].kind, 0)
        place = labels[-1], means[-1]
        label_line(ax, place, METHODS.get(name, name), color=color, offset=(8, up))
    ax.set_xscale("log")
    ax.set_xticks(counts, labels=[f"{count:,}" for count in counts])
    ax.minorticks_off()
    ax.set(xlabel="labelled pictures", ylabel="test accuracy (%)")


def draw_watched(
    ax: Axes, recording: Recording, r: int, lr: float, style: LineStyle = "-", name: str = ""
) -> None:
    """Mean validation log loss (nats) of an adapter against the step, at one constant rate.

    A curve has a gap where one of its runs diverged. ``name`` stands where it ends.
    """
    looks: dict[int, list[float]] = {}
    for row in recording.rows:
        if (row.stage, row.arm, row.lr) == ("tune", f"watched r={r}", lr):
            step = int((row.setting or "").removeprefix("step "))
            looks.setdefault(step, []).append(np.nan if row.log_loss is None else row.log_loss)
    steps = sorted(looks)
    means = [float(np.mean(looks[step])) for step in steps]
    ax.plot(steps, means, color=COLORS["lora"], ls=style)
    if name:
        label_line(ax, (steps[-1], means[-1]), name, color=COLORS["lora"])
    ax.set(xlabel="step", ylabel="validation log loss (nats)")


def _runs(recording: Recording, arm: ArmResult, metric: str, unit: float) -> list[float]:
    """The arm's test results, one for each seed."""
    return [
        unit * getattr(row, metric)
        for row in recording.rows
        if (row.stage, row.arm, row.labels) == ("final", arm.arm, arm.labels)
    ]
