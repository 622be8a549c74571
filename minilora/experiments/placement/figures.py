"""The figures of chapter 10, drawn from the raw rows of the placement experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows, paired, summarise
from minilora.lab.plotting import (
    COLORS,
    INK,
    LINESTYLES,
    MARKERS,
    LineStyle,
    label_line,
    word_color,
)

AXES = {"accuracy": "test accuracy (%)", "log_loss": "test log loss (nats)"}
DIFFERENCES = {"accuracy": "points of accuracy", "log_loss": "nats of log loss"}
STYLES: tuple[LineStyle, ...] = (":", "--", "-.", "-")


def draw_comparison(
    axes: Sequence[Axes],
    recording: Recording,
    arms: Sequence[str],
    reference: str,
    metric: str = "log_loss",
    limit: float = float("inf"),
) -> None:
    """Arms one below the other: their runs, and their paired differences from ``reference``.

    In the first of two ``axes`` small marks are single runs and large ones their means. In the
    second, a mark stands at the mean difference, with its 95% t-interval, and is hollow where the
    interval holds zero; a difference larger than ``limit`` is written at the edge. Accuracy is in
    per cent, log loss in nats.
    """
    left, right = axes
    unit = 100 if metric == "accuracy" else 1
    for place, arm in enumerate(arms):
        rows = final_rows(recording, arm)
        runs = [unit * getattr(row, metric) for row in rows]
        color, marker = COLORS[rows[0].kind], MARKERS[rows[0].kind]
        left.plot(runs, [place] * len(runs), ".", color=color, alpha=0.5)
        left.plot(np.mean(runs), place, marker, color=color, markersize=8)
        if arm == reference:
            right.text(0, place, "  compared with this", va="center", fontsize=9)
            continue
        p = paired(recording, arm, reference, metric, rows[0].labels)
        if abs(unit * p.mean) > limit:
            text = f"{unit * p.mean:+.2f}, from {unit * p.low:+.2f} to {unit * p.high:+.2f} →"
            text = text.replace("-", "−")
            right.text(0.98, place, text, ha="right", va="center", color=word_color(color),
                       fontsize=9, transform=right.get_yaxis_transform())  # fmt: skip
            continue
        right.plot([unit * p.low, unit * p.high], [place, place], color=color, linewidth=1.5)
        face = color if p.detectable else "white"
        right.plot(unit * p.mean, place, marker, color=color, markerfacecolor=face, markersize=8)
    right.axvline(0, color=COLORS["theory"], linestyle="--", linewidth=1)
    left.set_yticks(range(len(arms)), labels=arms)
    right.set_yticks(range(len(arms)), labels=[])
    for ax in axes:
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
    left.set_xlabel(AXES[metric])
    right.set_xlabel(f"{DIFFERENCES[metric]}, minus those of {reference}")


def draw_sizes(
    ax: Axes, recording: Recording, arms: Mapping[str, tuple[float, float, str]]
) -> None:
    """Test accuracy (%) against trained parameters, logarithmic.

    ``arms`` says where each arm's name stands: offset in points, and the side of the text that
    faces the mark. Small marks are single runs, large ones their means.
    """
    found = {one.arm: one for one in summarise(recording)}
    for arm, (dx, dy, ha) in arms.items():
        one = found[arm]
        runs = [100 * value for value in one.values]
        color, size = COLORS[one.kind], float(one.parameters or 0)
        ax.plot([size] * len(runs), runs, ".", color=color, alpha=0.5)
        ax.plot(size, 100 * one.accuracy, MARKERS[one.kind], color=color, markersize=9)
        place = size, 100 * one.accuracy
        label_line(ax, place, arm, color=color, offset=(dx, dy), ha=ha)
    ax.set_xscale("log")
    ax.set(xlabel="trained parameters", ylabel=AXES["accuracy"])


def draw_shift(
    axes: Sequence[Axes],
    recording: Recording,
    shifts: Mapping[str, str],
    ranks: Sequence[int],
    names: bool = False,
) -> None:
    """What a shift of the pictures costs, and what each rank lacks of the largest of ``ranks``.

    ``shifts`` gives each shift's name in the recording the number under its place on the axis, with
    its unit, "45°" or "12.5%"; the places are to scale. The first of two ``axes`` holds test
    accuracy, of the base as it is and of the smallest and the largest rank; the second the paired
    difference in log loss, with its 95% t-interval, of each rank from the largest. With
    ``names`` the curves are named where they end.
    """
    places = np.array([float(number.rstrip("°%")) for number in shifts.values()])
    span = float(np.ptp(places)) or 1.0
    top = max(ranks)
    labels = next(row.labels for row in recording.rows if row.arm.endswith(next(iter(shifts))))
    found = {one.arm: 100 * one.accuracy for one in summarise(recording, labels)}
    for who, kind, style in (
        ("base", "base", LINESTYLES["base"]),
        (f"r={min(ranks)}", "lora", ":"),
        (f"r={top}", "lora", "-"),
    ):
        y = [found[f"{who}, {name}"] for name in shifts]
        color = COLORS[kind]
        axes[0].plot(places, y, MARKERS[kind], linestyle=style, color=color)
        if names:
            name = "untrained" if who == "base" else who.replace("=", " = ")
            label_line(axes[0], (places[-1], y[-1]), name, color=color, offset=(10, 0))
    for r, style in zip([r for r in ranks if r != top], STYLES, strict=False):
        all_of_r = [
            paired(recording, f"r={r}, {name}", f"r={top}, {name}", "log_loss", labels)
            for name in shifts
        ]
        means = [p.mean for p in all_of_r]
        at = places + 0.015 * span * (ranks.index(r) - 1)
        axes[1].plot(at, means, "o", linestyle=style, color=COLORS["lora"], markersize=5)
        lows, highs = [p.low for p in all_of_r], [p.high for p in all_of_r]
        axes[1].vlines(at, lows, highs, color=COLORS["lora"], linewidth=1)
        if names:
            end = float(places[-1]), means[-1]
            label_line(axes[1], end, f"r = {r}", color=COLORS["lora"], offset=(12, 0))
    axes[1].axhline(0, color=INK, linewidth=1)
    axes[0].set(ylabel=AXES["accuracy"], ylim=(0, 100))
    axes[1].set(ylabel=f"nats above r = {top}")
    for ax in axes:
        ax.set_xticks(places, labels=list(shifts.values()))
        ax.set_xlim(places[0] - 0.1 * span, places[-1] + 0.1 * span)
