"""The figures of the traffic experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.recording import Quantity, Recording
from minilora.lab.plotting import COLORS, INK, PALE, label_line
from minilora.lab.traffic import Traffic, step_seconds

EXCHANGES = ("summed", "gathered", "scattered")

#: Rates of links in bytes a second, one way, by what people call them.
LINKS = {
    "1 Gbit/s": 1e9 / 8,
    "10 Gbit/s": 10e9 / 8,
    "100 Gbit/s": 100e9 / 8,
    "400 Gbit/s": 400e9 / 8,
    "NVLink": 450e9,
}


#: Where the lines of `draw_links` have their names.
LABELS = (
    ("FSDP, everything", 3e8, (9, 7), "left"),
    ("DDP, everything", 3e8, (-9, -7), "right"),
    ("FSDP, adapter", 1.2e9, (-9, -7), "right"),
    ("DDP, adapter", 2.5e9, (0, 11), "left"),
)


def _color(arm: str) -> str:
    return COLORS["full" if "everything" in arm else "lora"]


def draw_curves(axes: Sequence[Axes], losses: Mapping[str, Sequence[float]]) -> None:
    """Left: the losses of one process and of two that share the work. Right: what is between."""
    alone = np.array(losses["alone"])
    steps = np.arange(1, len(alone) + 1)
    axes[0].plot(steps, alone, color=COLORS["lora"], linewidth=1.4)
    looks = {"ddp": ("o", COLORS["lora"], 8.0), "fsdp": ("x", INK, 5.0)}
    for how, (marker, color, size) in looks.items():
        gap = np.abs(np.array(losses[how]) - alone)
        for ax, values in ((axes[0], losses[how]), (axes[1], np.where(gap > 0, gap, np.nan))):
            ax.plot(steps, values, marker, color=color, markersize=size, mfc="none")
    axes[0].set(xlabel="step", ylabel="training loss (nats a token)")
    axes[1].set(yscale="log", xlabel="step", ylabel="distance from one process (nats)")
    axes[1].set(xlim=axes[0].get_xlim(), ylim=(1e-8, 1e-3))


def sent(recording: Recording, arm: str, n: int) -> list[Quantity]:
    """The looks at the loopback device for an arm with ``n`` processes; none where it has none."""
    return [
        one for one in recording.quantities if (one.what, one.arm, one.size) == ("sent", arm, n)
    ]


def draw_sent(
    ax: Axes, recording: Recording, arms: Sequence[str], predictions: Mapping[str, Traffic], n: int
) -> None:
    """A bar for what a process sends in a step, a line for gloo's way, dots for what was counted.

    Bar and line are predictions.
    """
    for place, arm in enumerate(arms):
        color = _color(arm)
        size, by_gloo = (predictions[arm].sent(n, gloo) for gloo in (False, True))
        hatch = "" if arm.startswith("DDP") else "///"
        ax.barh(place, size, 0.56, color="white", edgecolor=color, hatch=hatch, linewidth=1.4)
        ax.plot([by_gloo] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=1.2)
        looks = [one.measured for one in sent(recording, arm, n)]
        ax.plot(looks, [place] * len(looks), "D", color=INK, markersize=4.5, zorder=5)
        end = max([size, by_gloo, *looks])
        label_line(ax, (end, place), f"{size / 1e6:.3g} MB", color=color, offset=(9, 0))
    ax.set_yticks(range(len(arms)), labels=list(arms))
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="bytes that a process sends in a step")
    ax.grid(axis="y", visible=False)


def draw_links(ax: Axes, arms: Mapping[str, tuple[float, float]]) -> None:
    """Seconds of a step against the link: from ``{arm: (seconds of work, bytes sent)}``.

    The upper end of a band is a step that sends after its work, the lower one a step that sends
    during it.
    """
    links = np.logspace(7.5, 12, 200)
    for arm, (work, size) in arms.items():
        color = _color(arm)
        style = "-" if arm.startswith("DDP") else "--"
        late = [step_seconds(work, size, link) for link in links]
        early = [step_seconds(work, size, link, overlap=True) for link in links]
        ax.fill_between(links, early, late, color=color, alpha=0.13, linewidth=0)
        ax.plot(links, late, color=color, linestyle=style)
    for arm, at, offset, ha in LABELS:
        place = at, step_seconds(*arms[arm], at)
        words = label_line(ax, place, arm, color=_color(arm), offset=offset, ha=ha)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    for name, link in LINKS.items():
        ax.axvline(link, color=PALE, linewidth=0.8, linestyle=":")
        ax.annotate(
            name,
            (link, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )
    ax.set(xscale="log", yscale="log", xlabel="bytes a second, one way", ylabel="seconds a step")
