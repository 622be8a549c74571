"""The figures of chapter 15: levels on a bell curve, errors, accuracy by bits, and merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from minilora.experiments.quantized.arms import EXACT, LEVELS, arm_of
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows
from minilora.experiments.tuning import best_rate, by_rate, mean_loss
from minilora.lab.plotting import COLORS, INK, PALE, LineStyle, label_line
from minilora.quantize import nearest_levels

#: The bits from many to few, and where they stand on an axis.
PLACES = {bits: place for place, bits in enumerate((EXACT, *LEVELS))}
#: Each rank's line and marker, from the smallest on.
RANKS: tuple[tuple[LineStyle, str], ...] = ((":", "o"), ("-", "s"))

#: What can become of a trained update: its colour's name and its mark.
WAYS = {
    "kept apart": ("lora", "o"),
    "into the exact weights": ("head", "^"),
    "rounded again": ("full", "s"),
    "trained at 32 bits, then rounded": ("base", "D"),
}


def usage(values: Tensor, levels: Tensor, block: int = 64) -> np.ndarray:
    """The share of the values that each level is the nearest to: (levels,)."""
    codes, _ = nearest_levels(values.flatten(), levels, block)
    return torch.bincount(codes.int(), minlength=len(levels)).numpy() / len(codes)


def draw_bell(ax: Axes, levels: Tensor, offset: float) -> None:
    """The bell curve that the levels were taken from, with a stem at each and their regions."""
    normal = torch.distributions.Normal(0, 1)
    largest = float(normal.icdf(torch.tensor(offset)))
    x = torch.linspace(-1.45, 1.45, 801)
    density = (normal.log_prob(x * largest).exp() * largest).numpy()
    middles = ((levels[1:] + levels[:-1]) / 2).tolist()
    edges = [-1.45, *middles, 1.45]
    for number, (left, right) in enumerate(pairwise(edges)):
        inside = (x >= left) & (x <= right)
        color = COLORS["random"] if number % 2 else "#FFFFFF"
        ax.fill_between(x[inside], density[inside], color=color, alpha=0.45, lw=0)
    ax.plot(x, density, color=INK, lw=1.4)
    heights = normal.log_prob(levels * largest).exp() * largest
    ax.vlines(levels, 0, heights, color=COLORS["lora"], lw=1.6)
    ax.set(ylabel="density", ylim=(0, None), xlim=(-1.45, 1.45))
    ax.set_xlabel("number ÷ largest level")


def draw_usage(ax: Axes, levels: Tensor, shares: Mapping[str, np.ndarray]) -> None:
    """How often each level is used (per cent), for several populations."""
    looks = (("floor", "--", "D"), ("random", ":", "v"), ("lora", "-", "o"))
    for (name, share), (kind, style, mark) in zip(shares.items(), looks, strict=True):
        color = COLORS[kind]
        ax.plot(levels, 100 * share, mark, linestyle=style, color=color, ms=4, lw=1.2, label=name)
    ax.set(xlabel="level", ylabel="share of numbers, %", xlim=(-1.45, 1.45), ylim=(0, None))
    ax.legend(loc="upper left", fontsize=9)


def draw_errors(ax: Axes, errors: Mapping[str, Mapping[int, float]], title: str) -> None:
    """Relative error against the size of a block, both logarithmic, a line for each format."""
    looks: dict[str, tuple[str, LineStyle, str]] = {
        "NF4": (COLORS["lora"], "-", "o"),
        "even-16": (COLORS["full"], "--", "s"),
        "FP4": (COLORS["head"], "-.", "^"),
        "NF3": (COLORS["lora"], "-", "o"),
        "even-8": (COLORS["full"], "--", "s"),
        "NF2": (COLORS["lora"], "-", "o"),
        "even-4": (COLORS["full"], "--", "s"),
    }
    for name, of in errors.items():
        color, style, mark = looks[name]
        ax.loglog(list(of), list(of.values()), mark, linestyle=style, color=color, ms=4, lw=1.4)
    blocks = list(next(iter(errors.values())))
    ax.set_xticks(blocks, labels=[str(block) for block in blocks])
    ticks = (0.1, 0.2, 0.4, 0.8)
    ax.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="weights in a block", title=title, ylim=(0.07, 1.6))


def draw_bits(ax: Axes, recording: Recording, ranks: Sequence[int], start: str) -> None:
    """Accuracy on test pictures against the bits of the base, a line for each rank."""
    for r, (style, mark) in zip(ranks, RANKS, strict=False):
        bits = [one for one in PLACES if start == "default" or one != EXACT]
        means = []
        for one in bits:
            values = [_accuracy(row) for row in final_rows(recording, arm_of(one, r, start))]
            shift = 0.05 * (1 if r == max(ranks) else -1)
            places = [PLACES[one] + shift] * len(values)
            ax.plot(places, values, ".", color=COLORS["lora"], ms=4, alpha=0.5)
            means.append(float(np.mean(values)))
        places = [PLACES[one] + shift for one in bits]
        ax.plot(places, means, mark, linestyle=style, color=COLORS["lora"], ms=6, mfc="white")
    ax.set_xticks(list(PLACES.values()), labels=[f"{bits}" for bits in PLACES])
    ax.set(xlabel="bits of a weight in the base", ylabel="test accuracy, %")


def draw_untrained(ax: Axes, recording: Recording, names: Mapping[int, str]) -> None:
    """The bases as they are, by their bits."""
    places = [PLACES[bits] for bits in names]
    values = [_accuracy(final_rows(recording, name)[0]) for name in names.values()]
    ax.plot(places, values, "h", linestyle="-", color=COLORS["base"], ms=6, lw=1.2)


def draw_starts(ax: Axes, recording: Recording, arms: Mapping[str, str]) -> None:
    """Validation loss against the learning rate: {what to write: arm}, the second one dashed."""
    for (name, arm), style, color in zip(
        arms.items(), ("-", "--"), (COLORS["lora"], COLORS["head"]), strict=True
    ):
        tried = by_rate(recording.rows, arm)
        for rate, runs in tried.items():
            losses = [row.log_loss for row in runs if row.log_loss is not None]
            ax.plot([rate] * len(losses), losses, ".", color=color, ms=4, alpha=0.5)
        means = {rate: mean_loss(runs) for rate, runs in tried.items()}
        ax.loglog(list(means), list(means.values()), "o", linestyle=style, color=color, mfc="white")
        best = best_rate(recording.rows, arm)
        ax.plot(best, means[best], "o", color=color)
        first = min(means)
        label_line(ax, (first, means[first]), name, color=color, offset=(-8, 0), ha="right")
    ax.set(xlabel="learning rate", ylabel="validation log loss (nats)")
    ticks = (0.6, 0.8, 1.0, 1.4, 2.0)
    ax.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    rates = sorted({rate for arm in arms.values() for rate in by_rate(recording.rows, arm)})
    ax.set_xticks(rates, labels=[f"{rate:g}" for rate in rates], fontsize=8)
    ax.set_xlim(0.45 * rates[0], 1.3 * rates[-1])
    ax.minorticks_off()


def draw_merged(ax: Axes, recording: Recording, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Test accuracy as points and means: {row: {way: arm}}, each way with its own mark."""
    names = list(rows)
    for place, of in enumerate(rows.values()):
        for number, (way, arm) in enumerate(of.items()):
            kind, mark = WAYS[way]
            y = place + 0.18 * (number - (len(of) - 1) / 2)
            values = [_accuracy(row) for row in final_rows(recording, arm)]
            ax.plot(values, [y] * len(values), ".", color=COLORS[kind], ms=4, alpha=0.5)
            label = way if place == 0 else None
            ax.plot(float(np.mean(values)), y, mark, color=COLORS[kind], ms=7, label=label)
    ax.set_yticks(range(len(names)), labels=names)
    ax.set(xlabel="test accuracy, %", ylim=(len(names) - 0.5, -0.5))
    for edge in range(len(names) - 1):
        ax.axhline(edge + 0.5, color=PALE, lw=0.6)


def _accuracy(row: object) -> float:
    value = getattr(row, "accuracy", None)
    return float("nan") if value is None else 100 * float(value)
