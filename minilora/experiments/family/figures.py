"""The figures of chapter 16, drawn from the raw rows of the family experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle

from minilora.experiments.family.alignment import Turning
from minilora.experiments.family.experiment import LENDER, alpha_arm
from minilora.experiments.family.methods import kind_of
from minilora.experiments.family.reading import Standing
from minilora.experiments.recording import Recording, Row
from minilora.experiments.summaries import final_rows
from minilora.experiments.tuning import best_rate, by_rate, mean_loss
from minilora.lab.plotting import COLORS, MARKERS, PALE, LineStyle, label_line


def draw_ladders(
    ax: Axes, rows: Sequence[Row], methods: Sequence[str], labels: int, worst: float
) -> None:
    """Validation loss by method (down) and rate (across); the darker, the lower.

    Framed is the best rate of each method, and the line is at the lender's. A loss above ``worst``
    is white, and so is a run that was lost. Loss in brackets is that of fewer draws.
    """
    tried = {name: by_rate(rows, name, labels) for name in methods}
    rates = sorted({rate for of in tried.values() for rate in of})
    means = {
        name: {rate: mean_loss(runs) for rate, runs in of.items()} for name, of in tried.items()
    }
    low = min(loss for of in means.values() for loss in of.values())
    for i, name in enumerate(methods):
        best, most = best_rate(rows, name, labels), max(map(len, tried[name].values()))
        for rate, loss in means[name].items():
            j = rates.index(rate)
            shade = np.clip(np.log(loss / low) / np.log(worst / low), 0, 1)
            color = (1 - 0.85 * (1 - shade), 1 - 0.5 * (1 - shade), 1 - 0.25 * (1 - shade))
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=color, edgecolor="white"))
            words = "–" if not np.isfinite(loss) else f"{loss:.2f}"
            words = words if len(tried[name][rate]) == most else f"({words})"
            ax.text(j, i, words, ha="center", va="center", fontsize=8)
            if rate == best:
                ax.add_patch(
                    Rectangle(
                        (j - 0.46, i - 0.46), 0.92, 0.92, fill=False, lw=2.2, ec=COLORS["full"]
                    )
                )
    lent = rates.index(best_rate(rows, LENDER, labels))
    ax.axvline(lent - 0.5, color=PALE, linewidth=1)
    ax.axvline(lent + 0.5, color=PALE, linewidth=1)
    ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(len(methods) - 0.5, -0.5), xlabel="learning rate")
    ax.set_xticks(range(len(rates)), labels=[f"{rate:.3g}" for rate in rates], rotation=45)
    ax.set_yticks(range(len(methods)), labels=methods)
    ax.grid(False)


def draw_orders(
    axes: Sequence[Axes],
    orders: Sequence[Sequence[Standing]],
    floor: float,
    seconds: Mapping[str, float],
    unit: float = 100,
) -> None:
    """Orders side by side, best on top, with a line from a method's place to its next place.

    Small marks are draws, large ones their means. On the last axes ticks are the means in
    ``seconds``, {method: mean at the rate that came second}. A mean below ``floor`` is written at
    the edge, where it lies off the axis (accuracy).
    """
    for ax, standings in zip(axes, orders, strict=True):
        for i, one in enumerate(standings):
            color, marker = COLORS[one.kind], MARKERS[one.kind]
            values = [unit * v for v in one.values if np.isfinite(v) and v >= floor]
            ax.plot(values, [i] * len(values), ".", color=color, alpha=0.5, ms=4)
            if np.isfinite(one.mean) and one.mean >= floor:
                filled = color if one.method == LENDER else "white"
                ax.plot(unit * one.mean, i, marker, color=color, mfc=filled, ms=6.5)
            else:
                words = "lost" if np.isnan(one.mean) else f"{unit * one.mean:.0f}"
                label_line(ax, (unit * floor, i), f"◂ {words}", color=color, offset=(4, 0))
        ax.set(ylim=(len(standings) - 0.5, -0.5))
        ax.set_yticks(range(len(standings)), labels=[])
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(orders[0])), labels=[one.method for one in orders[0]])
    axes[-1].set_yticks(range(len(orders[-1])), labels=[one.method for one in orders[-1]])
    axes[-1].yaxis.tick_right()
    axes[-1].tick_params(axis="y", length=0)
    for i, one in enumerate(orders[-1]):
        if seconds.get(one.method, np.nan) >= floor:
            mean = unit * seconds[one.method]
            axes[-1].plot(mean, i, "|", color=COLORS[one.kind], ms=13, mew=1.8)
    for (left, before), (right, after) in pairwise(zip(axes, orders, strict=True)):
        places = {one.method: j for j, one in enumerate(after)}
        for i, one in enumerate(before):
            strong = one.method == LENDER
            line = ConnectionPatch(
                (1.0, i),
                (0.0, places[one.method]),
                coordsA=left.get_yaxis_transform(),
                coordsB=right.get_yaxis_transform(),
                color=COLORS[one.kind],
                linewidth=2.4 if strong else 1.0,
                alpha=1.0 if strong else 0.7,
            )
            left.figure.add_artist(line)


def draw_batches(
    ax: Axes, recording: Recording, arms: Mapping[str, Mapping[int, str]], unit: float = 100
) -> None:
    """Test accuracy against the batch size, of {method: {size: arm}}; each at its own rate."""
    styles: dict[str, LineStyle] = {"PiSSA": "--"}
    for k, (method, of) in enumerate(arms.items()):
        color, marker = COLORS[kind_of(method)], MARKERS[kind_of(method)]
        spread = 1.06 ** (k - 1)  # beside each other, not on each other
        sizes = sorted(of)
        means = []
        for size in sizes:
            values = [unit * (row.accuracy or np.nan) for row in final_rows(recording, of[size])]
            mark, inside = ("o", "white") if method == "PiSSA" else (".", color)
            at = [size * spread] * len(values)
            ax.plot(at, values, mark, color=color, mfc=inside, alpha=0.5, ms=4)
            means.append(np.mean(values))
        (line,) = ax.plot(
            [size * spread for size in sizes],
            means,
            marker,
            color=color,
            linestyle=styles.get(method, "-"),
            mfc="white" if method == "PiSSA" else color,
        )
        label_line(ax, line, method, offset=(7, -7 if method == "PiSSA" else 4))
    ax.set_xscale("log")
    sizes = sorted({size for of in arms.values() for size in of})
    ax.set_xticks(sizes, labels=[str(size) for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="pictures in a batch", ylabel="test accuracy (%)")


def draw_alpha(
    axes: Sequence[Axes], recording: Recording, factors: Sequence[float], epsilons: Sequence[float]
) -> None:
    """Validation loss against the factor on α (circles) and on B's rate (crosses); an ε each."""
    for ax, eps in zip(axes, epsilons, strict=True):
        for what, marker, color, offset in (
            ("α", "o", COLORS["lora"], (10, 6)),
            ("B's rate", "x", COLORS["full"], (-26, -30)),
        ):
            means = []
            for k in factors:
                (runs,) = by_rate(recording.rows, alpha_arm(what, k, eps)).values()
                means.append(mean_loss(runs))
            ax.plot(factors, means, marker, linestyle="-", color=color, mfc="none")
            if eps == max(epsilons):  # where the two part
                place = factors[len(factors) // 4], means[len(factors) // 4]
                label_line(ax, place, what, color=color, offset=offset)
        ax.set_xscale("log", base=4)
        ax.set_xticks(factors, labels=[f"{k:g}" if k >= 1 else f"1/{1 / k:g}" for k in factors])
        ax.minorticks_off()
        ax.set(title=f"ε = {eps:g}", xlabel="α, or B's rate, times")
    axes[0].set_ylabel("validation log loss (nats)")


def draw_turning(
    axes: Sequence[Axes], seen: Mapping[str, Turning], gradient: float, chance: float
) -> None:
    """The shares of B and of what A learnt in the gradient's leading directions, and the loss.

    ``gradient`` is the share of the gradient itself, and ``chance`` that of a random matrix.
    """
    styles: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
    titles = {"B": "factor B", "learnt": "what A has learnt", "loss": "training loss"}
    for ax, (what, title) in zip(axes, titles.items(), strict=True):
        scale = 1 if what == "loss" else 100
        for (name, one), style in zip(seen.items(), styles, strict=False):
            values = [scale * value for value in getattr(one, what)]
            (line,) = ax.plot(one.steps, values, linestyle=style, color=COLORS["lora"])
            label_line(ax, line, name, color=COLORS["lora"])
        ax.set(xlabel="steps of gradient descent", title=title)
        ax.set_ylim(0, 105 if what != "loss" else None)
    axes[0].set_ylabel("in the leading directions (%)")
    axes[2].set_ylabel("nats")
    last = max(one.steps[-1] for one in seen.values())
    for ax, level in ((axes[0], gradient), (axes[1], chance)):
        ax.axhline(100 * level, color=PALE, linewidth=1)
    label_line(axes[0], (last, 100 * gradient), "G itself")
    label_line(axes[1], (last / 2, 100 * chance), "by chance", offset=(0, -9))
