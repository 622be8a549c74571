"""Where the panels of a figure are: the photographs and digits in it, apart from its words.

A panel is a filled rectangle, with or without a frame, on the white of the figure. In the dark
the figure around its panels is turned around, and the panels are shown as they are (pictures.py).
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

WHITE = 246  # a dot whose darkest channel is lighter is the figure's ground
SMALLEST = 0.002  # of the figure's area; letters are smaller
FULL = 0.97  # share of a panel's rectangle that it fills


def panels(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in dots of each panel that is to stay as it is.

    A coloured table on white, as of positive and negative numbers, is no such panel: it turns
    around as the lines of a plot do.
    """
    dots = np.asarray(image.convert("RGB"), int)
    marks, _ = ndimage.label(ndimage.binary_fill_holes(dots.min(axis=2) < WHITE))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(marks), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height * width < SMALLEST * marks.size or min(height, width) < 20:
            continue
        if (marks[rows, columns] == number).mean() < FULL:
            continue
        inside = dots[rows, columns]
        coloured = (np.ptp(inside, axis=2) > 40).mean() > 0.02
        if not (coloured and inside.mean() > 150):
            found.append((columns.start, rows.start, columns.stop, rows.stop))
    return found


def mask(boxes: list[tuple[int, int, int, int]], size: tuple[int, int]) -> str:
    """The rectangles as a value of CSS's `mask`, in shares of the figure's size."""

    def place(start: int, stop: int, whole: int) -> tuple[str, str]:
        # CSS puts the point at x % of a layer on the point at x % of the box.
        room = whole - (stop - start)
        at = 100 * start / room if room else 0.0
        return f"{at:.3f}%", f"{100 * (stop - start) / whole:.3f}%"

    layers = []
    for left, top, right, bottom in boxes:
        x, width = place(left, right, size[0])
        y, height = place(top, bottom, size[1])
        layers.append(f"linear-gradient(#000 0 0) {x} {y} / {width} {height} no-repeat")
    return ", ".join(layers)
