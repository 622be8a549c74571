"""The figures of chapter 13, drawn from the raw rows of the language experiment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minilora.experiments.language.arms import MATRICES
from minilora.experiments.language.facts import bits
from minilora.experiments.language.results import (
    RunResult,
    measured,
    turned_down,
    untouched,
    watched,
)
from minilora.experiments.recording import Recording, Row
from minilora.experiments.tuning import best_rate
from minilora.lab.language import Text
from minilora.lab.plotting import COLORS, MARKERS, LineStyle, label_line

#: The second cue where several arms have the colour of LoRA.
STYLES: dict[str, LineStyle] = {"LoRA r=1": ":", "LoRA r=16": "-", MATRICES: "-"}


def finals(recording: Recording, arm: str) -> list[Row]:
    """The rows of an arm on test data, by draw."""
    found = [row for row in recording.rows if (row.stage, row.arm) == ("final", arm)]
    return sorted(found, key=lambda row: row.seed)


def draw_ranks(ax: Axes, recording: Recording, ranks: Sequence[int], of: Text) -> None:
    """Bits a byte of prose, on test data, against the numbers that are trained."""

    def values(arm: str) -> list[float]:
        return [of.bits_per_byte(row.log_loss or math.nan) for row in finals(recording, arm)]

    counts, means = [], []
    for r in ranks:
        rows = finals(recording, f"LoRA r={r}")
        counts.append(rows[0].parameters or 0)
        means.append(float(np.mean(values(f"LoRA r={r}"))))
        _dots(ax, counts[-1], values(f"LoRA r={r}"), "lora")
        label_line(ax, (counts[-1], means[-1]), f"r = {r}", color=COLORS["lora"], offset=(7, 7))
    ax.semilogx(counts, means, MARKERS["lora"], linestyle="-", color=COLORS["lora"])
    for arm, kind, offset in (
        (MATRICES, "full", (4, -14)),
        ("the head", "head", (-9, -2)),
        ("everything", "full", (-9, 0)),
    ):
        count = finals(recording, arm)[0].parameters or 0
        mean = float(np.mean(values(arm)))
        _dots(ax, count, values(arm), kind)
        face = "white" if arm == "everything" else COLORS[kind]
        ax.plot(count, mean, MARKERS[kind], color=COLORS[kind], mfc=face)
        label_line(ax, (count, mean), f"{arm}", color=COLORS[kind], offset=offset, ha="right")
    level = float(np.mean(values(MATRICES)))
    ax.axhline(level, color=COLORS["full"], linestyle=":", linewidth=1)
    ax.set(xlabel="trained numbers", ylabel="prose, bits a byte")


def _dots(ax: Axes, x: float, values: Iterable[float], kind: str) -> None:
    for value in values:
        ax.plot(x, value, ".", color=COLORS[kind], ms=5, alpha=0.6)


def draw_fan(
    axes: Sequence[Axes], recording: Recording, rates: dict[str, tuple[float, ...]], of: Text
) -> None:
    """Loss on held-out prose against steps; and how far the ranks are behind the whole matrices.

    Each arm's first rate is solid or dotted as its arm is, and its second one thinner.
    """
    for arm, of_arm in rates.items():
        kind = "full" if arm == MATRICES else "lora"
        for i, rate in enumerate(of_arm):
            curve = watched(recording, arm, rate)
            means = [of.bits_per_byte(float(np.mean(one))) for one in curve.values()]
            look = {"color": COLORS[kind], "linestyle": STYLES[arm], "linewidth": 2.2 - 1.2 * i}
            (line,) = axes[0].semilogx(list(curve), means, **look)
            if i == 0:
                up = 8 if arm == "LoRA r=1" else -6
                label_line(axes[0], line, arm.removeprefix("LoRA "), offset=(5, up))
            if arm == MATRICES:
                continue
            whole = watched(recording, MATRICES, rates[MATRICES][i])
            gaps = np.array([np.subtract(curve[step], whole[step]) for step in curve])
            gaps = np.vectorize(of.bits_per_byte)(gaps)
            (line,) = axes[1].semilogx(list(curve), gaps.mean(axis=1), **look)
            for draw in gaps.T:
                axes[1].plot(list(curve), draw, ".", color=COLORS[kind], ms=3, alpha=0.6)
            if i == 0:
                label_line(axes[1], line, arm.removeprefix("LoRA "), offset=(5, 0))
    axes[1].axhline(0, color=COLORS["full"], linewidth=1)
    ticks = [one for one in (15, 30, 60, 120, 240) if one in curve]
    for ax, words in zip(axes, ("prose, bits a byte", "behind the matrices, bits a byte")):
        ax.set(xlabel="steps", ylabel=words)
        ax.set_xticks(ticks, labels=[str(one) for one in ticks])
        ax.minorticks_off()


def draw_plane(
    ax: Axes,
    recording: Recording,
    runs: Sequence[RunResult],
    arms: Sequence[str],
    prose: Text,
    code: Text,
) -> None:
    """What every run has gained on prose and lost on code, in bits a byte; rates are joined."""
    start = {what: untouched(recording, what) for what in ("prose", "code")}
    for arm in arms:
        mine = [one for one in runs if one.arm == arm]
        kind = mine[0].kind
        middle = []
        for rate in sorted({one.lr for one in mine}):
            at = [one for one in mine if one.lr == rate]
            gain = [prose.bits_per_byte(start["prose"] - one.values["prose"]) for one in at]
            loss = [code.bits_per_byte(one.values["code"] - start["code"]) for one in at]
            ax.plot(gain, loss, ".", color=COLORS[kind], ms=5, alpha=0.6)
            middle.append((float(np.mean(gain)), float(np.mean(loss))))
        style = STYLES.get(arm, "-")
        look: dict[str, Any] = {"ls": style, "color": COLORS[kind], "ms": 5}
        if arm == "everything":
            look["mfc"] = "white"
        (line,) = ax.plot(*np.transpose(middle), MARKERS[kind], **look)
        label_line(ax, line, arm.removeprefix("LoRA "), offset=(6, 6))
    ax.set(xlabel="gained on prose, bits a byte", ylabel="lost on code, bits a byte")


def draw_turned_down(
    ax: Axes, recording: Recording, arm: str, prose: Text, code: Text, labelled: Sequence[int] = ()
) -> None:
    """An arm's finished updates at other strengths: gained on prose, lost on code.

    ``labelled`` are the strengths, in hundredths, that are written beside their points.
    """
    start = {what: untouched(recording, what) for what in ("prose", "code")}
    lr = best_rate(recording.rows, arm)
    curve = {k: list(draws.values()) for k, draws in turned_down(recording, arm, lr).items()}
    seeds = {row.seed for row in finals(recording, arm)}
    curve[100] = [
        (one.values["prose"], one.values["code"])
        for one in measured(recording)
        if (one.arm, one.lr) == (arm, lr) and one.seed in seeds
    ]
    points = {}
    for percent, draws in sorted(curve.items()):
        gain, loss = np.mean(draws, axis=0)
        points[percent] = (
            prose.bits_per_byte(start["prose"] - gain),
            code.bits_per_byte(loss - start["code"]),
        )
    ax.plot(*zip(*points.values(), strict=True), "D--", color=COLORS["theory"], ms=4, linewidth=1.3)
    for percent in labelled:
        label_line(ax, points[percent], f"× {percent / 100:g}", offset=(6, -9))


def draw_divergence(ax: Axes, recording: Recording, runs: Sequence[RunResult], code: Text) -> None:
    """Lost on code against KL on prose, both logarithmic: trained runs, and random moves."""
    start = untouched(recording, "code")
    found: dict[str, list[tuple[float, float]]] = {}
    looks: dict[str, dict[str, Any]] = {}
    for one in runs:
        name = "LoRA" if one.kind == "lora" else one.arm
        found.setdefault(name, []).append((one.values["KL"], one.values["code"]))
        looks[name] = {"color": COLORS[one.kind], "marker": MARKERS[one.kind]}
        if "KL, random of equal KL" in one.values:
            random = one.values["KL, random of equal KL"], one.values["code, random of equal KL"]
            found.setdefault("random", []).append(random)
    looks["random"] = {"color": COLORS["random"], "marker": MARKERS["random"]}
    for name, pairs in found.items():
        points = sorted((kl, code.bits_per_byte(loss - start)) for kl, loss in pairs)
        face = "white" if name == "everything" else looks[name]["color"]
        ax.plot(*np.transpose(points), ls="", ms=4, alpha=0.8, mfc=face, **looks[name])
        at, offset = (points[0], (6, -7)) if name == "random" else (points[-1], (-12, 12))
        ha = "left" if name == "random" else "right"
        label_line(ax, at, name, color=looks[name]["color"], offset=offset, ha=ha)
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="KL to the base on prose, nats a token", ylabel="lost on code, bits a byte")
    _plain_ticks(ax, (0.5, 0.7, 1, 1.5, 2), (0.2, 0.3, 0.5, 0.7, 1, 1.5))


def _plain_ticks(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Numbers such as 0.5 on logarithmic axes, where matplotlib writes powers of ten."""
    ax.set_xticks(list(x), labels=[f"{one:g}" for one in x])
    ax.set_yticks(list(y), labels=[f"{one:g}" for one in y])
    ax.minorticks_off()


def draw_facts(
    axes: Sequence[Axes], rows: Iterable[Row], ranks: Sequence[int], count: int, vocab: int
) -> None:
    """The share of facts that is answered right, and the bits stored, against the rank."""
    means: list[tuple[float, float]] = []
    for r in ranks:
        found = [row for row in rows if (row.stage, row.arm) == ("final", f"{count} facts, r={r}")]
        shares, stored = [row.accuracy or 0.0 for row in found], [bits(row, vocab) for row in found]
        for ax, values in zip(axes, (shares, stored), strict=True):
            _dots(ax, r, values, "lora")
        means.append((float(np.mean(shares)), float(np.mean(stored))))
    for ax, values, words in zip(axes, np.transpose(means), ("facts answered", "bits stored")):
        ax.plot(ranks, values, MARKERS["lora"], linestyle="-", color=COLORS["lora"])
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(ranks), labels=[str(r) for r in ranks])
        ax.set(xlabel="rank", ylabel=words)
        ax.minorticks_off()
    every = count * math.log2(vocab)
    axes[0].set_ylim(0, 1.02)
    axes[1].set_ylim(0, 1.08 * every)
    axes[1].axhline(every, color=COLORS["floor"], linestyle="--", linewidth=1)
    label_line(axes[1], (ranks[0], every), f"all {every:,.0f} bits", offset=(0, -10))
