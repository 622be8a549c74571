"""The figures of the memory experiment: bytes in piles, and seconds beside full fine-tuning's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from minilora.experiments.recording import Recording
from minilora.experiments.summaries import quantities, ratios, t_interval
from minilora.lab.plotting import COLORS, INK, LINESTYLES, MARKERS, PALE, label_line, word_color
from minilora.lab.predicting import Step

#: Colour and hatching of what a step holds. Logits are drawn with the activations.
PILES = {
    "weights": (COLORS["W0"], ""),
    "gradients": (COLORS["full"], "///"),
    "optimizer": (COLORS["neighbours"], "\\\\\\"),
    "activations": (COLORS["random"], "..."),
}
PILE_NAMES = {"optimizer": "optimizer state"}
#: What a block keeps, in the order in which it is made, with its width in units of n × width.
TENSORS = {
    "norm1 in": 1,
    "q, k, v in": 1,
    "q": 1,
    "k": 1,
    "v": 1,
    "o in": 1,
    "norm2 in": 1,
    "up in": 1,
    "GELU in": 4,
    "down in": 4,
}
BYTES_IN = {"MiB": 2**20, "GiB": 2**30}
#: Behind words that a line runs behind.
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


class Share(NamedTuple):
    """The mean of ratios, taken over their logarithms, with its 95% t-interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def share(ratios: Sequence[float]) -> Share:
    """What two rounds or more say of the ratio of two times."""
    return Share(*map(math.exp, t_interval([math.log(one) for one in ratios])))


def draw_block(ax: Axes, steps: Mapping[str, Step]) -> None:
    """One row a method, one tile for each tensor that a block could keep, filled where it does."""
    for row, step in enumerate(steps.values()):
        kept, left, count = step.block(), 0.0, 0
        for tensor, width in TENSORS.items():
            filled = tensor in kept
            count += width * filled
            color = COLORS["random"] if filled else "white"
            size = width - 0.08
            ax.barh(row, size, 0.62, left, color=color, edgecolor=PALE, linewidth=0.8)
            if not filled:
                ax.plot([left, left + size], [row + 0.31, row - 0.31], color=PALE, lw=0.8)
            left += width
        ax.text(left + 0.2, row, f"{count} of {sum(TENSORS.values())}", va="center")
    left = 0.0
    for tensor, width in TENSORS.items():
        place = left + width / 2
        turn, ha = (40, "left") if width == 1 else (0, "center")
        ax.text(place, -0.45, tensor, fontsize=10, rotation=turn, ha=ha, va="bottom")
        left += width
    ax.set_yticks(range(len(steps)), labels=list(steps))
    ax.set(ylim=(len(steps) - 0.5, -1.5), xlim=(-0.1, left + 2.2), xticks=[])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def draw_bytes(ax: Axes, recording: Recording, arms: Sequence[str], unit: str = "MiB") -> None:
    """What each arm holds, in piles: predicted above, measured below; a mark for a step's peak."""
    for place, arm in enumerate(arms):
        found = {what: quantities(recording, what, arm)[0] for what in (*PILES, "peak")}
        for shift, which, fill in ((-0.19, "predicted", "white"), (0.19, "measured", INK)):
            sizes = {name: (getattr(found[name], which) or 0) / BYTES_IN[unit] for name in PILES}
            _stack(ax, place + shift, sizes, 0.34, names=place == 0 and which == "predicted")
            peak = (getattr(found["peak"], which) or 0) / BYTES_IN[unit]
            ax.plot(peak, place + shift, "D", color=INK, mfc=fill, markersize=5.5, zorder=5)
            end = max(sum(sizes.values()), peak)
            words = f"{which}, peak {peak:.3g}"
            label_line(ax, (end, place + shift), words, offset=(9, 0))
    _finish(ax, list(arms), unit)


def draw_predicted(ax: Axes, steps: Mapping[str, Step], unit: str = "GiB") -> None:
    """What each step would hold, in piles, by prediction alone, and its peak marked."""
    for place, step in enumerate(steps.values()):
        held = step.bytes()
        sizes = {name: getattr(held, name) / BYTES_IN[unit] for name in PILES}
        sizes["activations"] += held.logits / BYTES_IN[unit]
        _stack(ax, place, sizes, 0.5, names=place == 0)
        peak = step.peak() / BYTES_IN[unit]
        ax.plot(peak, place, "D", color=INK, mfc="white", markersize=6, zorder=5)
        end = max(peak, sum(sizes.values()))
        words = label_line(ax, (end, place), f"peak {peak:.3g}", color=INK, offset=(9, 0))
        words.set_bbox(ON_WHITE)
    _finish(ax, list(steps), unit)


def _stack(ax: Axes, place: float, sizes: Mapping[str, float], height: float, names: bool) -> None:
    left = 0.0
    for name, size in sizes.items():
        color, hatch = PILES[name]
        ax.barh(
            place, size, height, left, color=color, hatch=hatch, edgecolor="white", linewidth=0.6
        )
        if names:
            x, text = left + size / 2, PILE_NAMES.get(name, name)
            above = place - 0.6 * height - 0.04
            words = ax.text(x, above, text, ha="center", va="bottom", fontsize=10)
            words.set_bbox(ON_WHITE)
        left += size


def _finish(ax: Axes, names: list[str], unit: str) -> None:
    ax.set_yticks(range(len(names)), labels=names)
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(names) - 0.5, -0.75), xlabel=unit)
    ax.grid(False, axis="y")


def draw_times(ax: Axes, recording: Recording, arms: Sequence[str]) -> None:
    """The time of a step, divided by that of full fine-tuning in the same round.

    Small marks are rounds; the large mark and the bar are their `share`, also in words.
    """
    width = int(recording.settings["model"]["width"])
    for place, arm in enumerate(arms):
        kind = quantities(recording, "step", arm)[0].kind
        color, marker = COLORS[kind], MARKERS[kind] or "|"
        found = ratios(recording, "step", arm, "full", width)
        ax.plot(found, [place] * len(found), ".", color=color, alpha=0.4)
        middle = share(found)
        ax.plot(middle[1:], [place] * 2, color=color, linewidth=2.5, solid_capstyle="butt")
        ax.plot(middle.mean, place, marker, color=color, markersize=9, mew=2)
        # In a column beside the axes, where no line comes.
        words = str(middle) if arm != "full" else "1"
        side = ax.get_yaxis_transform()
        ax.text(1.02, place, words, color=word_color(color), transform=side, va="center")
    ax.axvline(2 / 3, color=COLORS["theory"], linestyle="--", linewidth=1)
    label_line(ax, (2 / 3, -0.5), "2/3", offset=(0, 8), ha="center")
    ax.axvline(1, color=COLORS["full"], linewidth=1)
    ax.set_yticks(range(len(arms)), labels=list(arms))
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(arms) - 0.5, -0.5), xlabel="time of a step ÷ that of full fine-tuning")


def draw_widths(ax: Axes, recording: Recording) -> None:
    """LoRA's time and the floor's, divided by full fine-tuning's, against the width of the stack.

    Small marks are rounds, large marks and bars their `share`; dashed is the ratio of operations.
    What lies above 2 is not shown.
    """
    widths = sorted({one.size for one in quantities(recording, "narrow step", "full")})
    for arm in ("LoRA", "floor"):
        middles, counted = [], []
        kind = quantities(recording, "narrow step", arm)[0].kind
        for width in widths:
            found = ratios(recording, "narrow step", arm, "full", width)
            middles.append(_with_interval(ax, width, found, COLORS[kind]))
            flops = [quantities(recording, "narrow flops", one, width)[0] for one in (arm, "full")]
            counted.append(flops[0].measured / flops[1].measured)
        marker, style = MARKERS[kind] or "v", LINESTYLES[kind] if kind == "lora" else ":"
        ax.plot(widths, middles, marker=marker, ls=style, color=COLORS[kind])
        rise = 4 if arm == "LoRA" else -9
        end = widths[-1], middles[-1]
        label_line(ax, end, f"{arm}, by the clock", color=COLORS[kind], offset=(10, rise))
        if arm == "LoRA":
            ax.plot(widths, counted, "--", color=COLORS[kind], linewidth=1.2)
            place = widths[1], counted[1]
            label_line(ax, place, "LoRA, by count", color=COLORS[kind], offset=(8, 7))
    ax.axhline(1, color=COLORS["full"], linewidth=1.2)
    label_line(ax, (widths[-1], 1), "full fine-tuning", color=COLORS["full"], offset=(10, 10))
    ax.axhline(2 / 3, color=COLORS["theory"], linestyle="--", linewidth=1)
    label_line(ax, (widths[0], 2 / 3), "2/3", offset=(14, 8))
    ax.set_xscale("log")
    ax.set_xticks(widths, labels=[f"{width:,}" for width in widths])
    ax.minorticks_off()
    ax.set(ylim=(0.4, 2), xlabel="width of the stack", ylabel="time of a step ÷ that of full")


def draw_cells(ax: Axes, recording: Recording) -> None:
    """Time of one small run in a pass that many share, divided by its time alone.

    Against the number of runs in the pass, for each number of pictures in a step. Small marks are
    rounds, large marks and bars their `share`.
    """
    whats = sorted(
        {one.what for one in recording.quantities if one.what.startswith("runs of ")},
        key=lambda what: int(what.split()[2]),
    )
    for what, style, marker in zip(whats, ("-", ":"), ("o", "D"), strict=False):
        counts = sorted({one.size for one in quantities(recording, what)})
        middles = []
        for count in counts:
            found = ratios(recording, what, "in one pass", "one by one", count)
            middles.append(_with_interval(ax, count, found, COLORS["lora"]))
        ax.plot(counts, middles, marker=marker, ls=style, color=COLORS["lora"])
        pictures = what.removeprefix("runs of ").removesuffix(" a step")
        label_line(
            ax, (counts[-1], middles[-1]), f"{pictures} pictures a step", color=COLORS["lora"]
        )
    ax.axhline(1, color=COLORS["theory"], linestyle="--", linewidth=1)
    label_line(ax, (counts[-1], 1), "one by one", offset=(7, 6))
    ax.set_xscale("log")
    ax.set_xticks(counts, labels=[f"{count}" for count in counts])
    ax.minorticks_off()
    ax.set(xlabel="runs in one pass", ylabel="time of a run ÷ its time alone", ylim=(0, None))


def _with_interval(ax: Axes, size: int, found: Sequence[float], color: str) -> float:
    """Draw the rounds at one size and the interval of their mean; the mean."""
    ax.plot([size] * len(found), found, ".", color=color, alpha=0.3)
    middle = share(found)
    ax.plot([size] * 2, middle[1:], color=color, linewidth=1.5)
    return middle.mean


def step_table(recording: Recording) -> str:
    """A line for each arm: the peak, predicted and measured, in GiB, and the time of a step.

    The last column is its `share` of full fine-tuning's time.
    """
    width = int(recording.settings["model"]["width"])
    names = list(dict.fromkeys(one.arm for one in quantities(recording, "peak")))
    lines = [f"{'':<22}{'predicted':>11}{'measured':>10}  GiB {'seconds':>10}   ÷ full"]
    for name in names:
        (peak,) = quantities(recording, "peak", name)
        seconds = [one.measured for one in quantities(recording, "step", name)]
        of_full = share(ratios(recording, "step", name, "full", width))
        lines.append(
            f"{name:<22}{(peak.predicted or 0) / 2**30:>11.3f}{peak.measured / 2**30:>10.3f}"
            f"{statistics.median(seconds):>15.3f}   {'1' if name == 'full' else of_full}"
        )
    return "\n".join(lines)
