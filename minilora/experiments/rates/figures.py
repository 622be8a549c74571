"""The figures of chapter 9, drawn from the raw rows of the rates experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minilora.experiments.rates.experiment import RULES, RatesProfile, arm_of, sgd_arm_of
from minilora.experiments.rates.sound import broken, highest_sound
from minilora.experiments.recording import Recording, Row
from minilora.experiments.tuning import best_rate, by_rate, mean_loss
from minilora.lab.plotting import COLORS, MARKERS, LineStyle, label_line

#: The ranks' line styles, from the smallest on.
STYLES: tuple[LineStyle, ...] = (":", "--", "-.", "-")
LOSS = "validation log loss (nats)"


def draw_u(
    ax: Axes, rows: Iterable[Row], arm: str, start: float, style: LineStyle = "-", **look: Any
) -> tuple[tuple[float, float], tuple[float, float]]:
    """An arm's validation loss (nats) against its learning rate, both logarithmic.

    The thin line is the first draw, which tried every rung. Small marks are the other draws, and
    crosses runs that ended above the ``start``, the training loss without any training. Large marks
    are means of all draws, where all were tried and none is broken; the best rate's is filled.
    Returns the ends of the thin line, where a name can stand.
    """
    rows = list(rows)
    tried, best = by_rate(rows, arm), best_rate(rows, arm)
    kind, most = tried[best][0].kind, max(map(len, tried.values()))
    look = {"color": COLORS[kind]} | look
    for rate, runs in tried.items():
        for row in runs:
            mark = "x" if broken(row, start) else "."
            if row.log_loss is not None:
                ax.plot(rate, row.log_loss, mark, alpha=0.6, ms=5 if mark == "x" else 4, **look)
    lost = {rate for rate, runs in tried.items() if any(broken(row, start) for row in runs)}
    first = [(rate, runs[0].log_loss) for rate, runs in tried.items() if rate not in lost]
    ax.loglog(*zip(*first, strict=True), linestyle=style, linewidth=0.9, alpha=0.7, **look)
    whole = [rate for rate, runs in tried.items() if len(runs) == most and rate not in lost]
    means = [mean_loss(tried[rate]) for rate in whole]
    ax.loglog(whole, means, MARKERS[kind], linestyle=style, ms=5, mfc="white", **look)
    ax.loglog(best, mean_loss(tried[best]), MARKERS[kind], ms=6, **look)
    left, right = ((rate, float(loss or np.nan)) for rate, loss in (first[0], first[-1]))
    return left, right


def set_axes(ax: Axes, ylabel: str = LOSS, low: float = 0.4) -> None:
    """The two axes of a curve of ``draw_u``."""
    ax.set(xlabel="learning rate", ylabel=ylabel, ylim=(low, 3.3))
    ax.set_yticks([0.5, 1, 2], labels=["0.5", "1", "2"])
    ax.minorticks_off()


def draw_scalings(
    axes: Sequence[Axes], recording: Recording, profile: RatesProfile, start: float
) -> None:
    """Curves of all ranks: three rules for the scale under AdamW, two under plain SGD.

    A line from each best rate down to the axis carries the rank. The sixth of the ``axes`` holds
    the highest sound rates, see `draw_sound`.
    """
    panels = [(rule, arm_of, profile.ranks, "AdamW") for rule in RULES]
    panels += [(rule, sgd_arm_of, profile.sgd_ranks, "SGD") for rule in list(RULES)[:2]]
    for ax, (rule, name, ranks, optimizer) in zip(axes, panels, strict=False):
        lowest: dict[float, list[str]] = {}
        for r in ranks:
            style = STYLES[profile.ranks.index(r)]
            arm = name(profile.alpha, rule, r)
            draw_u(ax, recording.rows, arm, start, style)
            best = best_rate(recording.rows, arm)
            lowest.setdefault(best, []).append(str(r))
            loss = mean_loss(by_rate(recording.rows, arm)[best])
            ax.vlines(best, 0.3, loss, color=COLORS["lora"], linestyle=style, linewidth=1)
        for best, names in lowest.items():
            label_line(ax, (best, 0.335), ", ".join(names), offset=(4, 0))
        set_axes(ax, LOSS if ax in (axes[0], axes[3]) else "", low=0.3)
        ax.set_title(f"{optimizer}, {rule}")
    draw_sound(axes[5], recording, profile, start)


def draw_sound(ax: Axes, recording: Recording, profile: RatesProfile, start: float) -> None:
    """The highest rate without a broken run against the rank, for each rule under AdamW."""
    rows, places = recording.rows, ((8, 0), (8, 8), (8, -8))
    for rule, mark, style, offset in zip(RULES, "o^D", ("-", "--", ":"), places, strict=True):
        arms = [arm_of(profile.alpha, rule, r) for r in profile.ranks]
        rates = [highest_sound(rows, arm, start) for arm in arms]
        ax.loglog(profile.ranks, rates, mark, linestyle=style, color=COLORS["lora"], ms=5)
        end = profile.ranks[-1], rates[-1]
        label_line(ax, end, rule, color=COLORS["lora"], offset=offset)
    ax.set_xticks(profile.ranks, labels=[str(r) for r in profile.ranks])
    ticks = sorted({float(y) for line in ax.lines for y in np.asarray(line.get_ydata())})
    ax.set_yticks(ticks, labels=[f"{y:g}" for y in ticks])
    ax.set(xlabel="rank", ylabel="learning rate", title="AdamW, highest sound rate")
    ax.minorticks_off()


def draw_ratios(
    ax: Axes, recording: Recording, profile: RatesProfile, arms: Mapping[float, str], start: float
) -> None:
    """Validation loss by the two rates: their geometric mean across, B's over A's down.

    ``arms`` gives the arm of each ratio. A cell in which a run is broken says so, and a loss in
    brackets is that of fewer draws than the others. Framed is the best rate of each row.
    """
    tried = {ratio: by_rate(recording.rows, arm) for ratio, arm in arms.items()}
    middle = {
        ratio: {round(rate * ratio**0.5, 6): runs for rate, runs in of.items()}
        for ratio, of in tried.items()
    }
    columns = sorted({rate for of in middle.values() for rate in of})
    most = max(len(runs) for of in tried.values() for runs in of.values())
    for i, (ratio, arm) in enumerate(arms.items()):
        chosen = round(best_rate(recording.rows, arm) * ratio**0.5, 6)
        for rate, runs in middle[ratio].items():
            j, lost = columns.index(rate), sum(broken(row, start) for row in runs)
            loss = mean_loss(runs)
            shade = np.clip((np.log(loss) - np.log(0.5)) / (np.log(1.3) - np.log(0.5)), 0, 1)
            color = "#333333" if lost else (1 - 0.75 * shade, 1 - 0.45 * shade, 1 - 0.2 * shade)
            edge = {"edgecolor": "white", "linewidth": 1.5}
            ax.add_patch(_cell(i, j, facecolor=color, **edge))
            words = f"{loss:.2f}" if len(runs) == most else f"({loss:.2f})"
            words = f"{lost} of {len(runs)}\nbroken" if lost else words
            ax.text(j, i, words, ha="center", va="center", fontsize=9 if lost else 11,
                    color="white" if lost else "black")  # fmt: skip
            if rate == chosen:
                frame = {"edgecolor": COLORS["full"], "linewidth": 2.5, "zorder": 3}
                ax.add_patch(_cell(i, j, fill=False, **frame))
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(arms) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), labels=[f"{rate:g}" for rate in columns])
    rows = [f"{ratio:g}   (α = {profile.alpha * ratio:g})" for ratio in arms]
    ax.set_yticks(range(len(arms)), labels=rows)
    ax.set(xlabel="√(rate of A × rate of B)", ylabel="ratio of B's rate to A's")
    ax.grid(False)


def _cell(i: int, j: int, **look: Any) -> Rectangle:
    return Rectangle((j - 0.5, i - 0.5), 1, 1, **look)
