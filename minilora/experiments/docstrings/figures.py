"""The figures of chapter 12, drawn from the raw rows of the docstrings experiment."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows, summarise
from minilora.experiments.tuning import by_rate, mean_loss
from minilora.lab.plotting import COLORS, LINESTYLES, MARKERS, label_line


def draw_arms(ax: Axes, recording: Recording, labels: int, ending: str = "") -> None:
    """Test accuracy (%) against what is trained, logarithmic; the rivals are lines across.

    Small marks are draws, large ones their means. ``ending`` is that of the arms' names, as in
    ", 35 classes"; arms without it are left out.
    """
    named = [one for one in summarise(recording, labels) if (", 35" in one.arm) == bool(ending)]
    adapters = [one for one in named if one.kind == "lora"]
    ax.plot(
        [float(one.parameters or 1) for one in adapters],
        [100 * one.accuracy for one in adapters],
        color=COLORS["lora"],
        linewidth=1,
    )
    for one in named:
        color, name = COLORS[one.kind], one.arm.removesuffix(ending)
        if one.kind in ("lora", "full"):
            mark = MARKERS[one.kind]
            x = float(one.parameters or 1)
            size = [x] * len(one.values)
            ax.plot(size, [100 * v for v in one.values], mark, color=color, ms=3, alpha=0.5)
            ax.plot(x, 100 * one.accuracy, mark, color=color, ms=9)
            side = (-10, "right") if one.kind == "full" else (10, "left")
            text = "full" if one.kind == "full" else name.removeprefix("LoRA ")
            point = (x, 100 * one.accuracy)
            label_line(ax, point, text, color=color, offset=(side[0], -12), ha=side[1])
        else:
            style = LINESTYLES[one.kind]
            ax.axhline(100 * one.accuracy, color=color, linestyle=style, linewidth=1.2)
            end = (1.0, 100 * one.accuracy)
            ax.annotate(
                name,
                end,
                (6, 0),
                ("axes fraction", "data"),
                "offset points",
                color=color,
                va="center",
            )
    ax.set(xscale="log", xlabel="numbers trained", ylabel="test accuracy (%)")


def draw_tuning(ax: Axes, recording: Recording, arms: Sequence[str], labels: int) -> None:
    """Validation log loss (nats) against the learning rate, which is logarithmic.

    Small marks are tuning draws; lines join the means of the rates that all draws have tried.
    """
    for name in arms:
        tried = by_rate(recording.rows, name, labels)
        kind = next(iter(tried.values()))[0].kind
        most = max(map(len, tried.values()))
        for rate, runs in tried.items():
            losses = [run.log_loss for run in runs if run.log_loss is not None]
            ax.plot([rate] * len(losses), losses, ".", color=COLORS[kind], ms=4, alpha=0.6)
        sure = [(rate, mean_loss(runs)) for rate, runs in tried.items() if len(runs) == most]
        (line,) = ax.plot(*zip(*sure, strict=True), MARKERS[kind] + "-", color=COLORS[kind], ms=5)
        label_line(ax, line, name)
    ax.set(xscale="log", xlabel="learning rate", ylabel="validation log loss (nats)")
    rates = {rate for name in arms for rate in by_rate(recording.rows, name, labels)}
    ticks = sorted(rates)[::2]
    ax.set_xticks(ticks, labels=[f"{rate:g}" for rate in ticks])
    ax.minorticks_off()


def spread_of(recording: Recording, arm: str, labels: int) -> tuple[float, float]:
    """The lowest and the highest accuracy of an arm's draws."""
    values = [row.accuracy or 0.0 for row in final_rows(recording, arm, labels)]
    return min(values), max(values)
