"""What a page reads out of a recording of this experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minilora.experiments.recording import Recording, Row
from minilora.experiments.summaries import t_interval

#: What is measured of an arm: the right digit, the style that was meant, the mean ink.
WHAT = ("", "style", "ink")


def rows_of_arm(recording: Recording, arm: str, what: str = "") -> list[Row]:
    """The tested rows of an arm, by seed; ``what`` is one of ``WHAT``, empty for content.

    Raises:
        ValueError: There are none.
    """
    if what not in WHAT:
        raise ValueError(f"what must be one of {WHAT}, but is {what!r}")
    name = f"{arm}, {what}" if what else arm
    found = [row for row in recording.rows if (row.stage, row.arm) == ("final", name)]
    if not found:
        raise ValueError(f"no tested rows of {name!r} in the recording")
    return sorted(found, key=lambda row: row.seed)


def shares(recording: Recording, arm: str, what: str = "") -> list[float]:
    """Of each seed, the share of pictures: with the right digit, in the style, or the ink."""
    return [float(row.accuracy or 0) for row in rows_of_arm(recording, arm, what)]


def mean_share(recording: Recording, arm: str, what: str = "") -> float:
    """Their mean."""
    return float(np.mean(shares(recording, arm, what)))


def mean_distance(recording: Recording, arm: str) -> float:
    """The mean energy distance to real pictures of the style."""
    return float(np.mean([row.log_loss for row in rows_of_arm(recording, arm)]))


def ahead(recording: Recording, a: str, b: str, what: str = "") -> tuple[float, float, float]:
    """a − b in such a share, seed by seed: the mean and the ends of its 95% t-interval."""
    of_a, of_b = ({row.seed: row for row in rows_of_arm(recording, arm, what)} for arm in (a, b))
    both = sorted(of_a.keys() & of_b.keys())
    return t_interval([float(of_a[s].accuracy or 0) - float(of_b[s].accuracy or 0) for s in both])


def table(recording: Recording, arms: Sequence[str]) -> str:
    """Lines of text: parameters, rate, and content, style and distance, means over the seeds."""
    lines = [f"{'':24}{'trained':>9}{'rate':>8}{'content':>9}{'style':>7}{'distance':>10}"]
    for arm in arms:
        first = rows_of_arm(recording, arm)[0]
        trained = "" if first.parameters is None else f"{first.parameters:,}"
        rate = "" if first.lr is None else f"{first.lr:g}"
        content, style = (mean_share(recording, arm, what) for what in ("", "style"))
        distance = mean_distance(recording, arm)
        lines.append(f"{arm:24}{trained:>9}{rate:>8}{content:>9.1%}{style:>7.0%}{distance:>10.2f}")
    return "\n".join(lines)
