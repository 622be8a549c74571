"""The figures of the traffic experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.recording import Quantity, Recording
from minilora.lab.plotting import COLORS, INK, PALE, label_line
from minilora.lab.traffic import Traffic

EXCHANGES = ("summed", "gathered", "scattered")

#: Rates of links in bytes a second, one way: between machines, and inside one.
NETWORKS = {
    "1 Gbit/s": 1e9 / 8,
    "10 Gbit/s": 10e9 / 8,
    "100 Gbit/s": 100e9 / 8,
    "400 Gbit/s": 400e9 / 8,
}
INSIDE = {"PCIe 4": 32e9, "NVLink": 450e9}


def soonest(work: float, sent: float, link: float, share: float) -> float:
    """Seconds of a step that can send during a ``share`` of its ``work``, and the rest after it.

    ``work`` is in seconds, ``link`` in bytes a second. DDP has nothing to sum before the backward
    pass, which is half of the work for an adapter and two thirds for everything; FSDP gathers in
    both passes, so that its share is 1. With 0 everything is sent after the work.
    """
    return work + max(0.0, sent / link - share * work)


#: Where the lines of `draw_links` have their names: Gbit/s, and points from there.
LABELS = (
    ("FSDP, everything", 1.5, (8, 6), "left"),
    ("DDP, everything", 9, (-9, -8), "right"),
    ("FSDP, adapter", 1.5, (8, 6), "left"),
    ("DDP, adapter", 1.5, (7, 7), "left"),
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
    """Bars for what a process sends in a step, lines for gloo's way, diamonds for what was counted.

    Bars, lines and the numbers beside them are predictions.
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
        words = f"{size / 1e6:.3g} MB"
        if by_gloo > size:
            words += f", gloo {by_gloo / 1e6:.3g} MB"
        label_line(ax, (end, place), words, color=color, offset=(9, 0))
    ax.set_yticks(range(len(arms)), labels=list(arms))
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="bytes that a process sends in a step")
    ax.grid(visible=False)


def draw_links(
    axes: Sequence[Axes], arms: Mapping[str, tuple[float, float, float]], n: int
) -> None:
    """Seconds of a step against the link: left for everything, right for an adapter.

    ``arms`` are ``{arm: (seconds of work, bytes sent, share of the work that hides sending)}``. A
    line is a step that sends after its work; the lower end of the band under it is `soonest`. The
    dash-dotted line is one processor that does the parts of all ``n``.
    """
    links = np.logspace(7.5, 12, 200)
    gbits = 8 * links / 1e9
    for ax, of in zip(axes, ("everything", "adapter"), strict=True):
        color = _color(of)
        for how, style, alpha in (("FSDP", "--", 0.1), ("DDP", "-", 0.25)):
            work, size, share = arms[f"{how}, {of}"]
            late = [soonest(work, size, link, 0) for link in links]
            early = [soonest(work, size, link, share) for link in links]
            ax.fill_between(gbits, early, late, color=color, alpha=alpha, linewidth=0)
            ax.plot(gbits, late, color=color, linestyle=style)
        alone = n * arms[f"DDP, {of}"][0]
        ax.axhline(alone, color=INK, linewidth=1.0, linestyle="-.")
        words = label_line(ax, (3e3, alone), "one GPU alone", color=INK, offset=(0, 9), ha="right")
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
        for links_of, y in ((NETWORKS, 4), (INSIDE, 18)):
            for name, link in links_of.items():
                gbit = 8 * link / 1e9
                ax.axvline(gbit, color=PALE, linewidth=0.8, linestyle=":")
                ax.annotate(
                    name.removesuffix(" Gbit/s"),
                    (gbit, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, y),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=INK,
                )
        ax.set(xscale="log", yscale="log", xlabel="link, one way (Gbit/s)")
        ax.set_title(of, pad=36)
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("seconds a step")
    for arm, gbit, offset, ha in LABELS:
        how, of = arm.split(", ")
        place = gbit, soonest(*arms[arm][:2], gbit * 1e9 / 8, 0)
        ax = axes[int(of == "adapter")]
        label_line(ax, place, how, color=_color(of), offset=offset, ha=ha)
