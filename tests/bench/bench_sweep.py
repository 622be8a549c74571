"""The sweep engine against the same cells one by one: cells per second, in ``make bench``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from bench_measure import alternate, ratios, show, spread

from minilora import LoRAConfig
from minilora.experiments.memory.timing import one_by_one
from minilora.lab.sweep import grid, sweep
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

#: The transformer of chapter 8, on pictures made of noise: the time does not depend on them.
MODEL = TransformerConfig(image_size=(8, 16), patch_size=4, classes=19)
TOY = TransformerConfig(image_size=(8, 8), width=8, layers=1, heads=2)


def sweeps(device: str, repeats: int, threads: int, quick: bool) -> None:
    """Cells per second: `fit` for each cell, and `sweep` for all of them."""
    steps, count = (2, 4) if quick else (20, 64 if device == "cuda" else 16)
    model = TransformerClassifier(TOY if quick else MODEL).to(device)
    shape = (320, 1, *model.config.image_size)
    data = torch.rand(shape), torch.randint(model.config.classes, (320,))
    config = LoRAConfig(r=8, alpha=8, targets=list(BLOCK_LINEARS))
    cells = grid(config, lr=[1e-3, 2e-3, 5e-3, 1e-2], seed=range(count // 4))
    settings = {"steps": steps, "batch_size": 32, "progress": False}

    ways: dict[str, Callable[[], object]] = {}
    counts = (1,) if device == "cuda" or threads == 1 else (1, threads)
    for number in counts:
        name = "one by one" + ("" if device == "cuda" else f", threads {number}")
        ways[name] = partial(in_threads, number, one_by_one, model, cells, data, **settings)
    for number in counts:
        name = "sweep" + ("" if device == "cuda" else f", processes {number}")
        ways[name] = partial(in_threads, 1, sweep, model, cells, data, jobs=number, **settings)
    times = alternate(ways, repeats, device, warm_ups=1)
    first = next(iter(ways))
    best = min((w for w in ways if w.startswith("one")), key=lambda w: statistics.median(times[w]))
    rows = [
        [
            way,
            f"{len(cells) / statistics.median(times[way]):.2f}",
            spread(ratios(times, first, way)),
            spread(ratios(times, best, way)),
        ]
        for way in ways
    ]
    header = ["how", "cells a second", "speed-up", "over the best one by one"]
    show(f"sweep on {device}: {len(cells)} cells of {steps} steps", header, rows)


def in_threads(
    number: int, run: Callable[..., object], *arguments: object, **named: object
) -> None:
    """Call ``run`` with that many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        run(*arguments, **named)
    finally:
        torch.set_num_threads(before)
