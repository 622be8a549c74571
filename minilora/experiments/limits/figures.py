"""The figures of chapter 19."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.limits.capacity import Capacity
from minilora.experiments.limits.reading import behind, mean, values
from minilora.experiments.recording import Recording
from minilora.lab.plotting import COLORS, MARKERS, PALE, LineStyle, label_line

#: The second cue where several lines have the colour of LoRA.
STYLES: tuple[LineStyle, ...] = (":", "--", "-.", "-", (0, (4, 1.5, 1, 1.5, 1, 1.5)))


def _dots(ax: Axes, x: float, found: Sequence[float], kind: str) -> None:
    for value in found:
        ax.plot(x, value, ".", color=COLORS[kind], ms=5, alpha=0.6)


def draw_flat(
    ax: Axes, floors: Mapping[str, np.ndarray], trained: Mapping[str, Mapping[int, float]]
) -> None:
    """Relative error against the rank: the floors of two spectra, and what training reached."""
    for style, (name, floor) in zip(("-", "--"), floors.items(), strict=True):
        ranks = np.arange(len(floor))
        ax.plot(ranks, floor, linestyle=style, color=COLORS["floor"], linewidth=1.3)
        at = len(floor) // 2
        label_line(ax, (at, floor[at]), name, offset=(8, 10))
        for r, error in trained[name].items():
            ax.plot(r, error, MARKERS["lora"], color=COLORS["lora"])
    ax.set(xlabel="rank r", ylabel="relative error", ylim=(-0.03, 1.05))


def draw_ring(
    ax: Axes,
    recording: Recording,
    tokens: int,
    ranks: Sequence[int],
    cut: Mapping[int, float],
    exact: float,
) -> None:
    """Loss (nats a token) against the rank: trained, the exact change cut, whole, and exact.

    The axis of ranks is linear from 0 to 1 and logarithmic beyond, so that rank 0 has a place.
    """
    ax.set_xscale("symlog", linthresh=1, linscale=0.35)
    ax.plot(list(cut), list(cut.values()), "-", color=PALE, linewidth=1.5)
    for r in ranks:
        _dots(ax, r, values(recording, f"{tokens} tokens, r={r}"), "lora")
    means = [mean(recording, f"{tokens} tokens, r={r}") for r in ranks]
    ax.plot(ranks, means, MARKERS["lora"], color=COLORS["lora"], ls="-")
    whole = f"{tokens} tokens, whole"
    level = mean(recording, whole)
    ax.axhline(level, color=COLORS["full"], linestyle=":", linewidth=1.3)
    ax.axhline(exact, color=COLORS["floor"], linestyle="--", linewidth=1.3)
    label_line(ax, (0, level), "trained whole", color=COLORS["full"], offset=(0, 8))
    label_line(ax, (0, exact), "exact", offset=(0, 8))
    label_line(ax, (0, cut[0]), "exact, cut to r", color=PALE, offset=(14, 2))
    look = {"ha": "right", "offset": (-8, 3)} if len(ranks) == 1 else {"offset": (-4, 12)}
    label_line(ax, (ranks[-1], means[-1]), "trained", color=COLORS["lora"], **look)
    ticks = [0, 1, 4, 16, *([127] if tokens > 17 else [])]
    ax.set_xticks(ticks, labels=[str(r) for r in ticks])
    ax.minorticks_off()
    ax.set(xlabel="rank r", title=f"{tokens:,} tokens in a ring")


def draw_capacity(
    axes: Sequence[Axes], recording: Recording, of: Capacity, field: str = "accuracy"
) -> None:
    """The share of the facts that is known: against their number, and against bits a number.

    Left a line for each rank; right every rank and number of facts is one point.
    """
    left, right = axes
    ups = (-10, -2, 0, 0, -1)  # points, so that no two labels touch
    for style, r, up in zip(STYLES, of.ranks, ups, strict=True):
        arms = [f"{count} facts, r={r}" for count in of.counts]
        for count, arm in zip(of.counts, arms, strict=True):
            _dots(left, count, values(recording, arm, field), "lora")
        means = [mean(recording, arm, field) for arm in arms]
        (line,) = left.semilogx(of.counts, means, ls=style, color=COLORS["lora"], linewidth=1.6)
        label_line(left, line, f"r = {r}", offset=(7, up))
        asked = [count * np.log2(of.width) / (2 * of.width * r) for count in of.counts]
        right.semilogx(asked, means, MARKERS["lora"], color=COLORS["lora"], mfc="white")
    arms = [f"{count} facts, whole" for count in of.counts]
    for count, arm in zip(of.counts, arms, strict=True):
        _dots(left, count, values(recording, arm, field), "full")
    means = [mean(recording, arm, field) for arm in arms]
    (line,) = left.semilogx(of.counts, means, MARKERS["full"], ls="-", color=COLORS["full"])
    label_line(left, line, "whole", offset=(7, 9))
    asked = [count * np.log2(of.width) / of.width**2 for count in of.counts]
    right.semilogx(asked, means, MARKERS["full"], color=COLORS["full"], mfc="none", ms=9)
    right.axvline(2, color=COLORS["theory"], linestyle="--", linewidth=1)
    label_line(right, (2, 0.9), "two bits", offset=(6, 0))
    left.set_xticks(of.counts, labels=[str(one) for one in of.counts])
    right.set_xticks([0.25, 1, 4, 16], labels=["¼", "1", "4", "16"])
    left.set(xlabel="facts", ylabel="share known", ylim=(-0.03, 1.08))
    right.set(xlabel="bits asked of each number", ylim=(-0.03, 1.08))
    for ax in axes:
        ax.minorticks_off()


def draw_batches(
    axes: Sequence[Axes], recording: Recording, sizes: Sequence[int], ranks: Sequence[int]
) -> None:
    """Log loss of each arm against the batch size, and how far LoRA is behind."""
    for style, way in zip((":", "--", "-"), [*(f"r={r}" for r in ranks), "full"], strict=True):
        kind = "full" if way == "full" else "lora"
        means = [mean(recording, f"batch {size}, {way}") for size in sizes]
        for size in sizes:
            _dots(axes[0], size, values(recording, f"batch {size}, {way}"), kind)
        (line,) = axes[0].semilogx(sizes, means, MARKERS[kind], ls=style, color=COLORS[kind])
        up = 7 if way == f"r={ranks[0]}" else -4
        label_line(axes[0], line, way.replace("=", " = "), offset=(9, up))
        if way == "full":
            continue
        gaps = [behind(recording, f"batch {size}, {way}", f"batch {size}, full") for size in sizes]
        place = np.array(sizes) * (0.94 if way == f"r={ranks[0]}" else 1.06)
        middles, lows, highs = np.array(gaps).T
        axes[1].errorbar(
            place,
            middles,
            [middles - lows, highs - middles],
            fmt=MARKERS[kind],
            linestyle=style,
            color=COLORS[kind],
            linewidth=1.2,
        )
        label_line(axes[1], (place[-1], middles[-1]), way.replace("=", " = "), offset=(9, 0))
    axes[1].set_xscale("log")
    axes[1].axhline(0, color=COLORS["full"], linewidth=1)
    for ax, words in zip(axes, ("test log loss (nats)", "behind full fine-tuning (nats)")):
        ax.set_xticks(sizes, labels=[str(one) for one in sizes])
        ax.minorticks_off()
        ax.set(xlabel="pictures in a batch", ylabel=words)


def draw_handful(axes: Sequence[Axes], recording: Recording, numbers: Sequence[int]) -> None:
    """Accuracy against how many numbers are trained, a panel for each task, a line a teacher."""
    places = range(len(numbers))
    names = ["LoRA" if n == 0 else f"{n} numbers" for n in numbers]
    for ax, task in zip(axes, ("pick", "table"), strict=True):
        for teacher, kind, style in (("reward", "lora", "-"), ("answers", "logistic", "--")):
            arms = [f"{task} by {teacher}, {name}" for name in names]
            means = [mean(recording, arm, "accuracy") for arm in arms]
            for place, arm in zip(places, arms, strict=True):
                _dots(ax, place, values(recording, arm, "accuracy"), kind)
            ax.plot(places, means, MARKERS[kind], ls=style, color=COLORS[kind])
            end, up = (places[-1], means[-1]), 7 if teacher == "answers" else -7
            label_line(ax, end, f"by {teacher}", color=COLORS[kind], offset=(8, up))
        level = mean(recording, f"{task}, untaught", "accuracy")
        ax.axhline(level, color=COLORS["base"], linestyle=":", linewidth=1)
        ax.set_xticks(places, labels=["LoRA" if n == 0 else str(n) for n in numbers])
        ax.set(xlabel="trained numbers", ylim=(-0.03, 1.03))
    axes[0].set(ylabel="right answers (share)", title="pick one of four")
    axes[1].set(title="learn a table")


def draw_suspects(ax: Axes, odds: Mapping[str, np.ndarray]) -> None:
    """The detector's log-odds of every adapter, one column for each kind."""
    rng = np.random.default_rng(0)
    for k, (kind, found) in enumerate(odds.items()):
        bad = kind in ("poisoned", "disguised", "in disguise")
        color, mark = (COLORS["full"], "D") if bad else (COLORS["lora"], "o")
        places = k + rng.uniform(-0.18, 0.18, len(found))
        ax.plot(places, found, mark, color=color, ms=4, alpha=0.7, mfc=color if bad else "white")
    ax.axhline(0, color=COLORS["floor"], linewidth=1)
    ax.set_xticks(range(len(odds)), labels=[kind.replace(", ", ",\n") for kind in odds])
    ax.set(ylabel="log-odds of 'poisoned'")


def draw_failures(ax: Axes, lines: Mapping[str, Mapping[int, float]]) -> None:
    """The share of what training whole gains that a rank gains, a line for each task."""
    ups = {"1,024 tokens in a ring": -3, "16 tokens in a ring": -9, "code to prose": -13}
    for style, (name, shares) in zip((*STYLES, "-"), lines.items(), strict=False):
        ranks = list(shares)
        look = {"color": COLORS["lora"], "linestyle": style, "linewidth": 1.7}
        mark = "s" if len(ranks) == 1 else MARKERS["lora"]  # a single rank was tried
        ax.semilogx(ranks, list(shares.values()), mark, ms=5, **look)
        if name == "512 facts":  # ends where another line does: the label stands before
            label_line(ax, (8, shares[8]), name, offset=(9, -8))
            continue
        label_line(ax, (ranks[-1], shares[ranks[-1]]), name, offset=(9, ups.get(name, 0)))
    ax.axhline(1, color=COLORS["full"], linewidth=1.3)
    label_line(ax, (1, 1), "trained whole", color=COLORS["full"], offset=(0, -8))
    ax.set_xticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
    ax.minorticks_off()
    ax.set(xlabel="rank r", ylabel="share of the whole's gain", ylim=(-0.05, 1.2))
