"""The house style of the book's figures.

``use_style()`` is called once in a notebook. One thing has one colour (``COLORS``), one marker and
one line style in the whole book, so that a figure can be read without its colours. Lines are
labelled where they end (``label_line``) and not in a box.

This module needs matplotlib; ``import minilora`` does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from numpy.typing import ArrayLike

LineStyle: TypeAlias = str | tuple[int, tuple[float, ...]]

# Okabe and Ito's colours, which the colour-blind can tell apart (jfly.uni-koeln.de/color).
COLORS: dict[str, str] = {
    "lora": "#0072B2",
    "full": "#D55E00",
    "head": "#009E73",
    "scratch": "#7F7F7F",
    "random": "#56B4E9",
    "biases": "#6A3D9A",
    "logistic": "#CC79A7",
    "neighbours": "#E69F00",
    "theory": "#000000",
    "floor": "#000000",
    "base": "#4D4D4D",
    "W0": "#4D4D4D",
}
# The second cue: every thing keeps its marker and its line style, too.
MARKERS: dict[str, str] = {
    "lora": "o",
    "full": "s",
    "head": "^",
    "scratch": "X",
    "random": "v",
    "biases": "p",
    "logistic": "D",
    "neighbours": "P",
    "theory": "",
    "floor": "",
    "base": "h",
    "W0": "h",
}
LINESTYLES: dict[str, LineStyle] = {
    "lora": "-",
    "full": "-",
    "head": "-.",
    "scratch": ":",
    "random": (0, (4, 1.5, 1, 1.5, 1, 1.5)),
    "biases": (0, (1, 1.5)),
    "logistic": (0, (6, 2)),
    "neighbours": (0, (2, 1.5)),
    "theory": "--",
    "floor": "--",
    "base": "-",
    "W0": "-",
}
INK = "#1F2328"
PALE = "#8C959F"
READABLE = 4.6  # the contrast that words need to white is 4.5 (WCAG 2.1, success criterion 1.4.3)

# Positive is LoRA's blue, nothing is white, negative is the vermilion of full fine-tuning.
SIGNED = LinearSegmentedColormap.from_list(
    "minilora_signed", ["#7A3600", COLORS["full"], "#FFFFFF", COLORS["lora"], "#00324F"]
)


def use_style() -> None:
    """Set matplotlib's rcParams to the book's style. Call it once, before the first figure."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.4, 4.2),
            "figure.dpi": 150,
            "savefig.dpi": 150,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "font.family": "DejaVu Sans",
            "font.size": 11,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": PALE,
            "axes.linewidth": 0.9,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelsize": 11,
            "axes.labelpad": 6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=list(dict.fromkeys(COLORS.values()))),
            "grid.color": "#E6E8EB",
            "grid.linewidth": 0.8,
            "xtick.color": PALE,
            "ytick.color": PALE,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "lines.linewidth": 2.2,
            "lines.markersize": 6.5,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "savefig.bbox": "tight",
        }
    )


def contrast(color: str) -> float:
    """How far a colour stands out from white: 1 for white, 21 for black (WCAG 2.1)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in to_rgb(color)
    ]
    return 1.05 / (float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05)


def word_color(color: str) -> str:
    """The colour in which words about a line of this colour are written.

    Thin strokes need more contrast than lines do. The hue stays, and the colour is darkened until
    it stands out from white by 4.6 to 1; a colour that does so already is returned as it is.
    """
    if contrast(color) >= READABLE:
        return color
    red, green, blue = to_rgb(color)
    lights = (1 - step / 100 for step in range(1, 101))
    shades = (to_hex((red * light, green * light, blue * light)) for light in lights)
    return next(shade for shade in shades if contrast(shade) >= READABLE)


def label_line(
    ax: Axes,
    where: Line2D | tuple[float, float],
    text: str,
    *,
    color: str | None = None,
    offset: tuple[float, float] = (7, 0),
    ha: str = "left",
    va: str = "center",
) -> Annotation:
    """Write ``text`` beside a line's last point, or beside the point ``(x, y)``.

    ``where`` is a line that ``ax.plot`` returned, whose colour the label takes, or a pair in data
    coordinates. The label's colour is darkened where it would be hard to read (``word_color``).
    ``offset`` is in points. The label may stand outside the axes: saving with a tight
    bounding box, as notebooks do, makes room for it.

    Raises ValueError for a line without a finite point.
    """
    if isinstance(where, Line2D):
        points = np.column_stack([np.asarray(values, float) for values in where.get_data()])
        points = points[np.isfinite(points).all(axis=1)]
        if not len(points):
            raise ValueError("the line has no finite point to write beside; give (x, y) instead.")
        x, y = points[-1]
        color = color or str(where.get_color())
    else:
        x, y = where
    return ax.annotate(
        text,
        (float(x), float(y)),
        xytext=offset,
        textcoords="offset points",
        color=word_color(color or INK),
        ha=ha,
        va=va,
        annotation_clip=False,
    )


def show_picture(ax: Axes, picture: ArrayLike, title: str = "", *, signed: bool = False) -> None:
    """A picture in a thin frame: (h, w) or (h, w, 3), grey from 0 to 1, or signed around 0.

    Signed pictures are blue above zero and orange below; their scale is their own, and a few
    extreme entries may lie beyond it.
    """
    picture = np.asarray(picture)
    if signed:
        size = np.abs(picture)
        # Half-way to the darkest shade lies an entry that few exceed, so that faint ones show, too.
        limit = 2 * max(float(np.percentile(size, 99.5)), 0.25 * float(size.max()), 1e-12)
        ax.imshow(picture, cmap=SIGNED, vmin=-limit, vmax=limit)
    else:
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255 if picture.dtype == np.uint8 else 1)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.set_title(title, pad=5)


def written(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """A number as prose has it: a true minus, no −0, and with ``sign`` a plus as well."""
    rounded = round(value, digits) + 0.0  # adding 0.0 turns −0 into 0
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(mean: float, low: float, high: float, digits: int = 1) -> str:
    """A difference and the ends of its interval, as prose has them: +1.2 (−0.3 to +2.7)."""
    middle, *ends = (written(x, digits, sign=True) for x in (mean, low, high))
    return f"{middle} ({' to '.join(ends)})"


def show_table(
    ax: Axes,
    table: ArrayLike,
    title: str = "",
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    digits: int = 0,
    limit: float | None = None,
) -> None:
    """A matrix (m, n) as coloured cells with their numbers written in; orange is negative.

    ``limit`` is the number that gets the full colour (the largest, unless told), so that several
    tables can share one scale. ``rows`` and ``columns`` name the edges.
    """
    table = np.asarray(table, float)
    limit = limit or max(float(np.abs(table).max()), 1e-12)
    ax.imshow(table, cmap=SIGNED, vmin=-1.25 * limit, vmax=1.25 * limit, aspect="equal")
    for (i, j), value in np.ndenumerate(table):
        text = written(value, digits)
        dark = abs(value) > 0.55 * limit
        ax.text(j, i, text, ha="center", va="center", color="white" if dark else INK, fontsize=10)
    m, n = table.shape
    ax.set_xticks(range(n), labels=columns if columns is not None else [""] * n)
    ax.set_yticks(range(m), labels=rows if rows is not None else [""] * m)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def show_product(
    column: ArrayLike, row: ArrayLike, *, digits: int = 0, figsize: tuple[float, float] = (6.4, 4.4)
) -> Figure:
    """An outer product as it is computed: (m,) at the left, (n,) on top, (m, n) between them."""
    column, row = np.asarray(column, float), np.asarray(row, float)
    figure, axes = plt.subplots(
        2,
        2,
        figsize=figsize,
        width_ratios=[1, len(row)],
        height_ratios=[1, len(column)],
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, "×", ha="center", va="center", transform=axes[0, 0].transAxes)
    for ax, table in (
        (axes[0, 1], row[None, :]),
        (axes[1, 0], column[:, None]),
        (axes[1, 1], np.outer(column, row)),
    ):
        show_table(ax, table, digits=digits)
    axes[0, 1].set_anchor("SW")
    axes[1, 0].set_anchor("NE")
    axes[1, 1].set_anchor("NW")
    return figure


def glue(name: str, value: Any) -> None:
    """Keep ``value`` for the page's prose where the book is built; elsewhere do nothing."""
    if isinstance(value, np.generic):
        value = value.item()  # so that prose reads 0.5, not np.float64(0.5)
    try:
        from myst_nb import glue as keep
    except ImportError:  # Colab and a reader's own Jupyter have no myst_nb
        return
    keep(name, value, display=False)
