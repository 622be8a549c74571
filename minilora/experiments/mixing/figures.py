"""The figures of the chapter on shipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.mixing.experiment import BOTH, TASKS
from minilora.experiments.mixing.rounding import Layer
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows
from minilora.lab.plotting import COLORS, INK, MARKERS, label_line

#: What each way of serving, or rule, looks like: the key of a colour and of a marker.
WAYS = {"load": "scratch", "groups": "head", "copies": "full", "bank": "lora"}
RULES = {
    "sum": "lora",
    "TIES": "head",
    "DARE": "random",
    "mean of the factors": "scratch",
    BOTH: "full",
}
#: Each text served with its own adapter, as a bank does that is told which text it is.
ROUTED = "each with its own"
#: Where the label of a rule stands, so that none lies on another.
PLACES = {"sum": (-10, -9), "DARE": (-10, 9)}


def draw_ranks(ax: Axes, curves: Mapping[str, tuple[str, Mapping[int, float]]]) -> None:
    """Bits a byte against the rank: {name: (key of its colour, {rank: bits})}."""
    for name, (key, curve) in curves.items():
        look: dict[str, Any] = {"color": COLORS[key], "marker": MARKERS[key]}
        style = "--" if name.startswith("cut") else "-"
        (line,) = ax.plot(list(curve), list(curve.values()), linestyle=style, **look)
        if name.startswith("cut"):  # it ends on another line
            where, color = next(iter(curve.items())), COLORS[key]
            label_line(ax, where, name, color=color, offset=(6, 17))
        else:
            label_line(ax, line, name)
    ranks = sorted({rank for _, curve in curves.values() for rank in curve})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, labels=[str(rank) for rank in ranks])
    ax.set(xlabel="rank of the adapter", ylabel="bits a byte of held-out prose")


def draw_latency(
    ax: Axes, ratios: Mapping[int, Mapping[int, Sequence[float]]], predicted: Mapping[int, float]
) -> None:
    """Time beside the weights over time merged, against the rank, for several numbers of tokens."""
    ranks = list(predicted)
    (line,) = ax.plot(ranks, list(predicted.values()), "--", color=COLORS["theory"])
    label_line(ax, line, "by the numbers", offset=(8, -7))
    for (tokens, of), marker, shade in zip(ratios.items(), "ov^s", (1.0, 0.75, 0.5, 0.3)):
        middle = [float(np.median(of[r])) for r in ranks]
        low = [m - float(np.quantile(of[r], 0.25)) for m, r in zip(middle, ranks, strict=True)]
        high = [float(np.quantile(of[r], 0.75)) - m for m, r in zip(middle, ranks, strict=True)]
        look: dict[str, Any] = {"color": COLORS["lora"], "alpha": shade, "marker": marker}
        bars = ax.errorbar(ranks, middle, yerr=[low, high], capsize=3, **look)
        label_line(ax, bars.lines[0], f"{tokens} token{'s' * (tokens > 1)}", offset=(8, 6))
    ax.axhline(1, color=COLORS["base"], linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, labels=[str(r) for r in ranks])
    ax.set(xlabel="rank of the adapter", ylabel="time unmerged / time merged")


def draw_rounding(
    axes: Sequence[Axes],
    layers: Mapping[str, Sequence[Layer]],
    shares: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Left: the error of the move, layer by layer. Right: share of the gain that arrives.

    ``layers`` are {way: layers at all strengths}, ``shares`` {way: (relative size, share)}.
    """
    looks = {"rounded before": ("full", "s"), "rounded once": ("lora", "o")}
    for way, (key, marker) in looks.items():
        x = [layer.relative for layer in layers[way]]
        y = [layer.lost for layer in layers[way]]
        look: dict[str, Any] = {"color": COLORS[key], "marker": marker}
        axes[0].plot(x, y, linestyle="none", markersize=4, mfc="none", alpha=0.7, **look)
        sizes, arrived = zip(*shares[way], strict=True)
        axes[1].plot(sizes, arrived, **look)
        label_line(axes[1], (sizes[-1], arrived[-1]), way, color=COLORS[key], offset=(11, -3))
    axes[0].set(
        xscale="log", yscale="log", xlabel="size of the update / size of the weight",
        ylabel="error of the move / size of the update",
    )  # fmt: skip
    axes[1].axhline(1, color=INK, linewidth=0.8)
    axes[1].set(
        xscale="log", xlabel="size of the update / size of the weights",
        ylabel="share of the gain that arrives",
    )  # fmt: skip


def draw_serving(
    axes: Sequence[Axes], found: Mapping[int, Mapping[int, Mapping[str, Sequence[float]]]]
) -> None:
    """Milliseconds for a batch against the different adapters in it, a panel for each length."""
    for ax, (length, seconds) in zip(axes, found.items(), strict=True):
        for way, key in WAYS.items():
            middle = [1e3 * float(np.median(of[way])) for of in seconds.values()]
            look: dict[str, Any] = {"color": COLORS[key], "marker": MARKERS[key]}
            (line,) = ax.plot(list(seconds), middle, **look)
            label_line(ax, line, way)
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(seconds), labels=[str(n) for n in seconds])
        ax.set(
            yscale="log", xlabel="different adapters in a batch of 16", ylabel="milliseconds",
            title=f"{length} token{'s' * (length > 1)} a row",
        )  # fmt: skip
        low, high = ax.get_ylim()
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low < t < high]
        ax.set_yticks(ticks, labels=[str(t) for t in ticks])
        ax.set_yticks([], minor=True)


def on_texts(recording: Recording, arm: str) -> np.ndarray:
    """Bits a byte of an arm on each text, for each draw: (draws, 2)."""
    labels = recording.rows[0].labels
    rows = [final_rows(recording, f"{arm} on {task}", labels) for task in TASKS]
    return np.array([[row.log_loss / np.log(2) for row in of] for of in rows]).T


def routed(recording: Recording) -> np.ndarray:
    """Each text with the adapter that was trained on it, for each draw: (draws, 2)."""
    return np.stack([on_texts(recording, f"{task} alone")[:, i] for i, task in enumerate(TASKS)], 1)


def draw_plane(axes: Sequence[Axes], recording: Recording) -> None:
    """Bits a byte on one text against those on the other; small marks are draws.

    Left: everything, the base and each adapter alone too. Right: what serves both texts.
    """
    found = {arm: on_texts(recording, arm) for arm in RULES} | {ROUTED: routed(recording)}
    for arm, of in found.items():
        key = {**RULES, ROUTED: "logistic"}[arm]
        look: dict[str, Any] = {"color": COLORS[key], "marker": MARKERS[key], "linestyle": "none"}
        axes[0].plot(*of.mean(0), markersize=6, **look)
        axes[1].plot(*of.T, markersize=4, alpha=0.5, **look)
        axes[1].plot(*of.mean(0), markersize=9, **look)
        x, y = PLACES.get(arm, (10, 0))
        side = "right" if x < 0 else "left"
        label_line(axes[1], tuple(of.mean(0)), arm, color=COLORS[key], offset=(x, y), ha=side)
    for arm in ("the base", *(f"{task} alone" for task in TASKS)):
        middle = tuple(on_texts(recording, arm).mean(0))
        axes[0].plot(*middle, "o", color=COLORS["base"], mfc="none", markersize=8)
        x, side = (-10, "right") if arm.startswith(TASKS[1]) else (10, "left")  # inside the panel
        label_line(axes[0], middle, arm, color=COLORS["base"], offset=(x, 0), ha=side)
    for ax in axes:
        ax.margins(x=0.18, y=0.12)
        ax.set(xlabel=f"bits a byte of {TASKS[0]}", ylabel=f"bits a byte of {TASKS[1]}")
