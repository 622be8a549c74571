"""Adapters that teach a small image generator a style: at which rank, where, and how strong.

Every arm of a comparison is tuned on the loss of held-out pictures in its style, and tested on
what it draws. In the rows of this experiment ``accuracy`` is a share of generated pictures: of
those with the right digit in most rows, of those in the style that was meant in rows of the kind
"style"; in rows of the kind "ink" it is the mean ink. ``log_loss`` is no number of nats here: where
``stage`` is "tune" it is the mean squared error of the velocities on held-out pictures, and where
it is "final" the energy distance to real pictures. ``labels`` is the number of pictures that were
trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count

import numpy as np

import minilora
from minilora.experiments.images.measures import ceiling
from minilora.experiments.images.sheets import (
    drawn_rows,
    label_rows,
    new_row,
    strength_rows,
    together_rows,
)
from minilora.experiments.images.training import Size, StyleRun, base, trained
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.experiments.tuning import LADDERS, Runs, Tuning, best_rate, nearest, tune
from minilora.lab import styles
from minilora.lab.flow import held_out_loss
from minilora.lab.training import Diverged

#: What can be run by itself.
PARTS = ("strength", "together", "labels", "styles", "places")
VALIDATION = 5000  # the seed of the held-out pictures that choose rates
GLANCE = 50  # pictures drawn by a run that only tunes
TUNING = Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="doubles")


@dataclass(frozen=True)
class ImagesProfile(Profile):
    """The size of a run.

    ``peak`` is a guess at LoRA's best rate and ``full`` at that of the whole model: the ladders
    begin there. ``lr`` is the rate of the parts without a ladder, at rank ``r``; ``seeds`` are
    theirs. ``place_style`` is that of the part "places".
    """

    size: Size = field(default_factory=Size)
    styles: tuple[str, ...] = ("bold", "slanted", "handwritten", "outline")
    ranks: tuple[int, ...] = (1, 4, 16)
    r: int = 4
    lr: float = 0.016
    peak: float = 0.016
    full: float = 0.001
    place_style: str = "outline"
    strengths: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    strong_styles: tuple[str, ...] = ("bold", "slanted", "outline")
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    guided_style: str = "bold"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning: Tuning = TUNING


PROFILES = {
    "laptop": ImagesProfile(name="laptop"),
    "cpu": ImagesProfile(
        name="cpu",
        styles=("bold", "outline"),
        seeds=(0, 1),
        tuning=Tuning(1, 1, (100, 101, 102), (0, 1), glance=1, ladder="doubles"),
    ),
    "smoke": ImagesProfile(
        name="smoke",
        size=Size(pictures=20, steps=4, batch_size=4, drawn=10, held=10),
        styles=("bold",),
        ranks=(1, 2),
        r=2,
        strengths=(-1.0, 1.0),
        strong_styles=("bold",),
        guidances=(1.0, 3.0),
        seeds=(0,),
        tuning=Tuning(1, 1, (100,), (0,), glance=1, ladder="doubles"),
    ),
}


def arms(profile: ImagesProfile, part: str) -> list[StyleRun]:
    """The arms that a part tunes and compares, each at the rate in the middle of its ladder."""
    ladder = LADDERS[profile.tuning.ladder]
    lora, whole = nearest(profile.peak, ladder), nearest(profile.full, ladder)
    if part == "styles":
        return [
            StyleRun(f"{style}, {name_of(r)}", style, r, whole if r is None else lora)
            for style in profile.styles
            for r in (*profile.ranks, None)
        ]
    r, style = profile.r, profile.place_style
    # About the same number of parameters each: a layer's rank costs r · (in + out).
    made = {
        "attention": StyleRun("", style, 3 * r, lora, place="attention"),
        "feed-forward": StyleRun("", style, 5 * r // 2, lora, place="feed-forward"),
        "modulation": StyleRun("", style, 13 * r // 4, lora, place="modulation"),
        "blocks 1 and 2": StyleRun("", style, 2 * r, lora, blocks=(0, 1)),
        "blocks 3 and 4": StyleRun("", style, 2 * r, lora, blocks=(2, 3)),
    }
    return [replace(run, arm=f"{style}, {name}") for name, run in made.items()]


def name_of(r: int | None) -> str:
    """An arm's rank in words."""
    return "whole model" if r is None else f"r={r}"


def compare(profile: ImagesProfile, part: str, machine: Machine) -> list[Row]:
    """Tune every arm of a part, and test it at its best rate."""
    of = {run.arm: run for run in arms(profile, part)}
    header, number = {"size": asdict(profile.size)}, count(1)

    def rows(runs: Sequence[StyleRun], work: Callable[..., list[Row]], name: str) -> list[Row]:
        found = rows_of(runs, partial(work, profile.size), f"{part}-{name}", header, machine)
        return [row for of_run in found for row in of_run]

    def train(runs: Runs) -> list[Row]:
        asked = [of[arm].at(lr, seed) for arm, pairs in runs.items() for lr, seed in pairs]
        return rows(asked, tuning_rows, str(next(number)))

    middles = {arm: run.lr for arm, run in of.items()}
    tuned = tune(train, middles, dict.fromkeys(of, profile.tuning))
    tests = [
        run.at(best_rate(tuned, arm), seed)
        for arm, run in of.items()
        for seed in profile.tuning.tested
    ]
    return tuned + rows(tests, tested_rows, "final")


def tuning_rows(size: Size, run: StyleRun) -> list[Row]:
    """The row of a run that helps to choose a rate."""
    started = time.perf_counter()
    row = replace(new_row(run, run.arm, run.kind, 0, size), stage="tune")
    try:
        model, losses = trained(run, size)
    except Diverged:
        return [replace(row, diverged=True)]
    held = styles.styled(run.style, size.held, VALIDATION)
    content = drawn_rows(model, row, run.style, replace(size, drawn=min(GLANCE, size.drawn)))[
        0
    ].accuracy
    return [
        replace(
            row,
            parameters=minilora.count_parameters(model, trainable_only=True),
            accuracy=content,
            log_loss=held_out_loss(model, held.x, held.y),
            train_loss=float(np.mean(losses[-20:])),
            seconds=time.perf_counter() - started,
        )
    ]


def tested_rows(size: Size, run: StyleRun) -> list[Row]:
    """The rows of a run that is tested: content, style, ink."""
    started = time.perf_counter()
    model, losses = trained(run, size)
    parameters = minilora.count_parameters(model, trainable_only=True)
    row = replace(
        new_row(run, run.arm, run.kind, parameters, size),
        train_loss=float(np.mean(losses[-20:])),
        seconds=time.perf_counter() - started,
    )
    return drawn_rows(model, row, run.style, size)


def reference_rows(profile: ImagesProfile) -> list[Row]:
    """What the untouched base would get in each style, and what other real pictures get."""
    rows = []
    for style in profile.styles:
        empty = Row("final", f"{style}, base", "base", profile.size.pictures, 0)
        rows += drawn_rows(base(), empty, style, profile.size)
        real = ceiling(style, profile.size.drawn)
        first = replace(
            empty, arm=f"{style}, real", kind="real", accuracy=real.content, log_loss=real.distance
        )
        rows += [
            first,
            replace(first, arm=f"{first.arm}, style", kind="style", accuracy=real.style),
            replace(first, arm=f"{first.arm}, ink", kind="ink", accuracy=real.ink),
        ]
    return rows


def run_part(profile: ImagesProfile, part: str, machine: Machine) -> list[Row]:
    """The rows of one part."""
    if part == "styles":
        return compare(profile, part, machine) + reference_rows(profile)
    if part == "places":
        return compare(profile, part, machine)
    strong = profile.strong_styles if part == "strength" else (profile.guided_style,)
    runs = [
        StyleRun(part, style, profile.r, profile.lr, seed)
        for style in strong
        for seed in profile.seeds
    ]
    works: dict[str, Callable[[StyleRun], list[Row]]] = {
        "strength": partial(strength_rows, profile.size, profile.strengths),
        "together": partial(together_rows, profile.size),
        "labels": partial(label_rows, profile.size, profile.guidances),
    }
    found = rows_of(runs, works[part], part, {"size": asdict(profile.size)}, machine)
    return [row for of_run in found for row in of_run]


EXPERIMENT = Experiment("images", PROFILES, PARTS, run_part, on_card=())
run = EXPERIMENT.run
