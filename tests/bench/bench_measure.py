"""How the benchmark measures: alternated runs, paired ratios, and bytes by storage."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
Times = dict[str, list[float]]
Clock = Callable[[], float]
MIB = 2**20


def alternate(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str,
    warm_ups: int = 2,
    calls: int = 1,
    clock: Clock = time.perf_counter,
) -> Times:
    """Seconds per call of every run: each once a round, in an order drawn anew every round.

    A machine that slows down for a while then slows all of them, and the ratios within a round
    stay fair.
    """
    order = random.Random(0)
    names = list(runs)
    times: Times = {name: [] for name in names}
    for turn in range(warm_ups + repeats):
        order.shuffle(names)
        for name in names:
            seconds, _ = timed(runs[name], device, calls, clock)
            if turn >= warm_ups:
                times[name].append(seconds)
    return times


def timed(
    run: Callable[[], T], device: str = "cpu", calls: int = 1, clock: Clock = time.perf_counter
) -> tuple[float, T]:
    """Seconds per call, the work of a GPU included, and what the last call returned."""
    synchronize(device)
    start = clock()
    for _ in range(calls):
        result = run()
    synchronize(device)
    return (clock() - start) / calls, result


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(times: Times, name: str, other: str) -> list[float]:
    """name / other, round by round; empty where ``other`` was not measured."""
    return [a / b for a, b in zip(times[name], times[other])] if other in times else []


def spread(values: Sequence[float]) -> str:
    """The median, and the range from the first quartile to the third."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def milliseconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values) * 1e3:.2f}"


# --- bytes ----------------------------------------------------------------------------------


def peak_bytes(run: Callable[[], object]) -> int:
    """CUDA only: by how much the allocated memory rises above what is there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# --- tables ---------------------------------------------------------------------------------


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *rest])

    print(f"\n{title}")
    print(line(header))
    print("  ".join("-" * width for width in widths))
    for row in rows:
        print(line(row))


def aim(what: str, value: float, limit: float) -> None:
    """Print whether a figure is within what the package aims at."""
    verdict = "reached" if value <= limit else "missed"
    print(f"  {what}: {value:.3g}, aim at most {limit:.3g}: {verdict}")
