"""Contact sheets, and the curves of content and style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from minilora.experiments.images.measures import judge
from minilora.experiments.images.reading import shares
from minilora.experiments.recording import Recording
from minilora.lab.flowbase import verdicts
from minilora.lab.plotting import COLORS, label_line

#: Content and style: colour, marker and line.
CONTENT, STYLE = (COLORS["base"], "s", "-"), (COLORS["lora"], "o", "--")


def tiles(x: Tensor) -> NDArray[np.float32]:
    """Pictures side by side, with a dot between: (N, 1, H, W) → (H, N · (W + 1) − 1), ink."""
    high = x.shape[2]
    parts = [part for one in x[:, 0].numpy() for part in (one, np.zeros((high, 1)))]
    return np.concatenate(parts[:-1], axis=1).astype(np.float32)


def contact_sheet(
    rows: Mapping[str, Tensor], y: Tensor | None = None, *, columns: int = 20, wide: float = 9.0
) -> Figure:
    """A row of pictures for each name, ink on paper.

    Where ``y`` says which digits were meant, a cross stands under those that the judge reads as
    another digit.
    """
    high = 1.45 * wide / columns if y is not None else 1.2 * wide / columns
    figure, axes = plt.subplots(len(rows), 1, figsize=(wide, high * len(rows)), squeeze=False)
    for ax, (name, x) in zip(axes[:, 0], rows.items(), strict=True):
        shown = x[:columns]
        ax.imshow(1 - tiles(shown), cmap="gray", vmin=0, vmax=1)
        ax.set_xlim(-0.5, 17 * columns - 1.5)
        ax.set_axis_off()
        ax.text(-4, 8, name, ha="right", va="center")
        if y is None:
            continue
        ax.set_ylim(21.5, -0.5)
        read, _ = verdicts(judge(), shown)
        for place in (read != y[:columns]).nonzero().flatten().tolist():
            ax.plot(17 * place + 7.5, 18.7, "x", color=COLORS["full"], ms=5, mew=1.6)
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0, hspace=0.06)
    return figure


def draw_shares(
    ax: Axes, recording: Recording, arms: Sequence[str], at: Sequence[float], names: bool = True
) -> None:
    """Content and style of some arms, one at each place of ``at``: means, and every seed."""
    for what, word, (color, mark, line) in (("", "content", CONTENT), ("style", "style", STYLE)):
        found = [shares(recording, arm, what) for arm in arms]
        for place, values in zip(at, found, strict=True):
            ax.plot([place] * len(values), values, mark, color=color, ms=3, alpha=0.4)
        means = [float(np.mean(values)) for values in found]
        ax.plot(at, means, mark, color=color, linestyle=line, ms=5.5)
        if names:
            label_line(ax, (at[-1], means[-1]), word, color=color)
    ax.set(ylim=(-0.04, 1.06))


def draw_strengths(axes: Sequence[Axes], recording: Recording, styles: Sequence[str]) -> None:
    """A panel for each style: content and style against the adapter's strength."""
    strengths = recording.settings["strengths"]
    for ax, style in zip(axes, styles, strict=True):
        arms = [f"{style}, strength {one:g}" for one in strengths]
        draw_shares(ax, recording, arms, strengths, names=False)
        ax.axvline(1, color=COLORS["base"], linewidth=0.8, linestyle=":")
        ax.set(title=style, xlabel="strength", xticks=[-1, 0, 1, 2, 3])
    axes[0].set_ylabel("share of the pictures")


def draw_ranks(axes: Sequence[Axes], recording: Recording, styles: Sequence[str]) -> None:
    """A panel for each style: content and style at each rank, of the whole model, of real ones."""
    ranks = [f"r={r}" for r in recording.settings["ranks"]]
    for ax, style in zip(axes, styles, strict=True):
        arms = [f"{style}, {name}" for name in (*ranks, "whole model")]
        draw_shares(ax, recording, arms, range(len(arms)), names=False)
        for what, (color, mark, _) in (("", CONTENT), ("style", STYLE)):
            real = float(np.mean(shares(recording, f"{style}, real", what)))
            ax.plot(len(arms), real, mark, color=color, mfc="white", ms=6)
        labels = [name.removeprefix("r=") for name in ranks] + ["all", "real"]
        ax.set_xticks(range(len(labels)), labels=labels)
        ax.set(title=style, xlabel="rank")
    axes[0].set_ylabel("share of the pictures")


def draw_guidance(axes: Sequence[Axes], recording: Recording) -> None:
    """Content and style against guidance, of adapters trained with and without labels."""
    guidances, style = recording.settings["guidances"], recording.settings["guided_style"]
    for ax, how in zip(axes, ("with", "without"), strict=True):
        arms = [f"{style}, {how} labels, guidance {one:g}" for one in guidances]
        draw_shares(ax, recording, arms, guidances, names=ax is axes[-1])
        ax.set(title=f"trained {how} labels", xlabel="guidance w", xticks=guidances)
    axes[0].set_ylabel("share of the pictures")
