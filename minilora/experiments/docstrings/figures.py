"""The figures of chapter 12, drawn from the raw rows of the docstrings experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from minilora.experiments.recording import Recording
from minilora.experiments.summaries import final_rows, summarise
from minilora.experiments.tuning import best_rate, by_rate, mean_loss
from minilora.lab.anatomy import Reach
from minilora.lab.plotting import COLORS, LINESTYLES, MARKERS, label_line

#: A number of labels, and the ending of the arms' names.
Panel: TypeAlias = tuple[int, str]
#: Kinds of arms from left to right, and those of them that train no transformer.
KINDS = ("logistic", "head", "lora", "full")
STILL = KINDS[:2]


def draw_arms(axes: Sequence[Axes], recording: Recording, asked: Mapping[str, Panel]) -> None:
    """Test accuracy (%) of every arm; a panel for each question, all of the same height in points.

    ``asked`` is {title: (number of labels, ending of the arms' names)}; arms with another ending
    are left out. Small marks are draws, large ones their means; a line goes across from those that
    train no transformer.
    """
    panels = []
    for ax, (title, (labels, ending)) in zip(axes, asked.items(), strict=True):
        named = [one for one in summarise(recording, labels) if (", 35" in one.arm) == bool(ending)]
        named.sort(key=lambda one: (KINDS.index(one.kind), one.r or 0))
        for x, one in enumerate(named):
            color, mark = COLORS[one.kind], MARKERS[one.kind]
            values = [100 * value for value in one.values]
            if one.kind in STILL:
                across = [x, len(named) - 0.6], [100 * one.accuracy] * 2
                ax.plot(*across, color=color, linewidth=1, linestyle=LINESTYLES[one.kind])
            ax.plot([x] * len(values), values, mark, color=color, ms=3, alpha=0.5)
            ax.plot(x, 100 * one.accuracy, mark, color=color, ms=9)
        ax.set_xticks(range(len(named)), labels=[_short(one.arm, one.r) for one in named])
        ax.tick_params(axis="x", length=0, labelsize=9, labelrotation=35)
        ax.grid(axis="x", visible=False)
        ax.set(title=title, xlim=(-0.6, len(named) - 0.4))
        every = [100 * value for one in named for value in one.values]
        panels.append((ax, min(every), max(every)))
    height = 1.08 * max(high - low for _, low, high in panels)
    for ax, low, high in panels:
        ax.set_ylim((low + high - height) / 2, (low + high + height) / 2)
        ax.yaxis.set_major_locator(MultipleLocator(2))
    axes[0].set_ylabel("test accuracy (%)")


def _short(arm: str, r: int | None) -> str:
    if r is not None:
        return f"r={r}"
    return {"full fine-tuning": "full", "linear probe": "probe"}.get(arm.split(",")[0], "TF-IDF")


def draw_tuning(
    ax: Axes,
    recording: Recording,
    arms: Sequence[str],
    labels: int,
    offsets: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Validation log loss (nats) against the learning rate, which is logarithmic.

    Small marks are tuning draws; lines join the means of the rates that all draws have tried, and
    the best is filled. ``offsets`` are those of the arms' names from the last point, in points.
    """
    for name in arms:
        tried = by_rate(recording.rows, name, labels)
        first = next(iter(tried.values()))[0]
        color, style = COLORS[first.kind], ":" if first.r == 1 else LINESTYLES[first.kind]
        most = max(map(len, tried.values()))
        for rate, runs in tried.items():
            losses = [run.log_loss for run in runs if run.log_loss is not None]
            ax.plot([rate] * len(losses), losses, ".", color=color, ms=4, alpha=0.6)
        sure = {rate: mean_loss(runs) for rate, runs in tried.items() if len(runs) == most}
        mark, best = MARKERS[first.kind], best_rate(recording.rows, name, labels)
        points = list(sure), list(sure.values())
        (line,) = ax.plot(*points, mark, color=color, linestyle=style, mfc="white")
        ax.plot(best, sure[best], mark, color=color)
        label_line(ax, line, name, offset=(offsets or {}).get(name, (7, 0)))
    ax.set(xscale="log", xlabel="learning rate, in thousandths")
    ax.set_ylabel("validation log loss (nats)")
    rates = sorted({rate for name in arms for rate in by_rate(recording.rows, name, labels)})
    ax.set_xticks(rates, labels=[f"{1000 * rate:.3g}" for rate in rates])
    ax.minorticks_off()


def spread_of(recording: Recording, arm: str, labels: int) -> tuple[float, float]:
    """The lowest and the highest accuracy of an arm's draws."""
    values = [row.accuracy or 0.0 for row in final_rows(recording, arm, labels)]
    return min(values), max(values)


#: What of a model adapters reach: the field of `Reach`, its name, its colour, its hatching.
PARTS = (
    ("acted", "reached", COLORS["lora"], ""),
    ("idle", "never called", COLORS["full"], "////"),
    ("experts", "experts", COLORS["neighbours"], "..."),
    ("rest", "embeddings, heads, norms …", "#C4C9CF", ""),
)


def draw_reach(ax: Axes, reached: Mapping[str, Reach]) -> None:
    """A bar for each model: the shares of its numbers (%) by what an adapter does to them."""
    names = list(reached)
    shares = {
        field: [100 * getattr(one, field) / sum(vars(one).values()) for one in reached.values()]
        for field, *_ in PARTS
    }
    left = [0.0] * len(names)
    for field, label, color, hatch in PARTS:
        ax.barh(
            names,
            shares[field],
            left=left,
            color=color,
            hatch=hatch,
            height=0.72,
            edgecolor="white",
            linewidth=0.6,
            label=label,
        )
        left = [a + b for a, b in zip(left, shares[field], strict=True)]
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="share of the model's numbers (%)")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=9.5)
