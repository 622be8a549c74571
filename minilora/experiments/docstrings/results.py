"""Differences over what the draws share: the files that the test texts are from.

Texts of one file resemble each other, so that a thousand texts of three hundred files say less than
a thousand texts would. The files are dealt into ten bundles, and a difference that is computed for
each bundle scatters as it would over other files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minilora.experiments.recording import Recording, Row
from minilora.experiments.summaries import Paired, t_interval

BUNDLES = 10


def bundle_rows(row: Row, hits: np.ndarray, files: Sequence[str]) -> list[Row]:
    """A row for each bundle of files: the share of its texts that were right.

    ``hits`` (N,) says which texts were right, and ``files`` from which file each is.
    """
    names = sorted(set(files))
    order = np.random.default_rng(0).permutation(len(names))
    bundle = {names[i]: at % BUNDLES for at, i in enumerate(order)}
    of = np.array([bundle[file] for file in files])
    return [
        replace(
            row,
            arm=f"{row.arm}, files {k}",
            kind="sheet",
            accuracy=float(hits[of == k].mean()),
            log_loss=None,
            train_loss=None,
            seconds=0.0,
        )
        for k in range(BUNDLES)
        if (of == k).any()
    ]


def mean_bundles(rows: Sequence[Row]) -> list[Row]:
    """The same rows, those of a bundle as their mean over the draws."""
    kept = [row for row in rows if row.kind != "sheet"]
    of: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind == "sheet":
            of[row.arm, row.labels].append(row)
    for same in of.values():
        accuracy = float(np.mean([row.accuracy for row in same]))
        kept.append(replace(same[0], seed=0, accuracy=accuracy))
    return kept


def by_bundle(recording: Recording, a: str, b: str, labels: int) -> list[float]:
    """a − b in accuracy for each bundle of test files that both have, means over the draws."""
    found: list[dict[str, float]] = []
    for arm in (a, b):
        found.append(
            {
                row.arm.removeprefix(f"{arm}, files "): float(row.accuracy or 0.0)
                for row in recording.rows
                if row.kind == "sheet" and row.labels == labels
                if row.arm.startswith(f"{arm}, files ")
            }
        )
    if not found[0] or found[0].keys() != found[1].keys():
        raise ValueError(f"{a!r} and {b!r} with {labels} labels have no bundles in common")
    return [found[0][k] - found[1][k] for k in sorted(found[0])]


def over_files(recording: Recording, a: str, b: str, labels: int) -> Paired:
    """The difference with a 95% interval over the bundles: it covers other files like these."""
    values = by_bundle(recording, a, b, labels)
    return Paired(a, b, "accuracy", *t_interval(values), len(values))
