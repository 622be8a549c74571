"""The figure of the bases: what every rank gains or loses against full fine-tuning on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.summaries import Paired
from minilora.lab.plotting import COLORS, MARKERS, label_line


def draw_differences(ax: Axes, found: Mapping[str, Sequence[Paired]], own: int = 0) -> None:
    """Differences from full fine-tuning in points of accuracy, a column for each arm.

    ``found`` holds for each arm one difference on every base, in the same order. Lines are 95%
    intervals over the draws; a mark is hollow where its interval holds zero. The base at place
    ``own`` is drawn larger and darker than the others.
    """
    width = max(len(ones) for ones in found.values())
    for column, ones in enumerate(found.values()):
        for place, one in enumerate(ones):
            x = column + 0.6 * (place - (width - 1) / 2) / width
            color, is_own = COLORS["lora"], place == own
            ax.plot(
                [x, x],
                [100 * one.low, 100 * one.high],
                color=color,
                linewidth=2 if is_own else 1,
                alpha=1 if is_own else 0.6,
            )
            face = color if one.detectable else "white"
            ax.plot(x, 100 * one.mean, MARKERS["lora"], color=color, markerfacecolor=face,
                    markersize=9 if is_own else 6)  # fmt: skip
        mean = 100 * float(np.mean([one.mean for one in ones]))
        ax.plot([column - 0.36, column + 0.36], [mean, mean], color=COLORS["theory"], linewidth=1.5)
    ax.axhline(0, color=COLORS["full"], linewidth=1.5)
    ax.set_xlim(-0.6, len(found) - 0.4)
    label_line(ax, (len(found) - 0.4, 0), "full\nfine-tuning", color=COLORS["full"])
    ax.set_xticks(range(len(found)), labels=list(found))
    ax.set(ylabel="points of accuracy\nabove full fine-tuning")
