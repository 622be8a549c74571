"""The sentences of Part III that say what was found, held against the runs that the pages made.

`make book` leaves each experiment's run in build/runs. A conclusion is a fragment of a page's text,
which must still stand there, and a predicate on the run, with its tolerance. So neither the prose
nor the numbers can move on alone. Recordings of larger machines are held to the conclusions that
the pages draw from them.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import minilora
from minilora.experiments import family, language, load_recording, mixing, rates
from minilora.experiments.bases.reading import differences
from minilora.experiments.docstrings import over_files
from minilora.experiments.family import reading as family_reading
from minilora.experiments.family.experiment import alpha_arm
from minilora.experiments.images.reading import ahead as picture_lead
from minilora.experiments.images.reading import mean_distance, mean_share
from minilora.experiments.language import MATRICES
from minilora.experiments.language import PROFILES as LANGUAGE_PROFILES
from minilora.experiments.language import bits as stored_bits
from minilora.experiments.language import results as language_results
from minilora.experiments.limits import PROFILES as LIMITS
from minilora.experiments.limits import reading as limits_reading
from minilora.experiments.limits import relabelling
from minilora.experiments.limits.capacity import stored, table
from minilora.experiments.limits.pictures import TASKS
from minilora.experiments.mixing import agreement, collusion, rounding
from minilora.experiments.mixing import figures as mixing_figures
from minilora.experiments.mixing.uncut import uncut
from minilora.experiments.recording import Recording, Row, read_recording
from minilora.experiments.summaries import (
    Paired,
    paired,
    paired_by_sheet,
    quantities,
    summarise,
    t_interval,
    tuning_curve,
)
from minilora.experiments.traffic import ARMS
from minilora.experiments.traffic.figures import soonest
from minilora.experiments.tuning import best_rate, by_rate, mean_loss, single_choices
from minilora.lab import anatomy, distributed
from minilora.lab import language as lm
from minilora.lab.counting import Counted
from minilora.lab.predicting import training_flops
from minilora.lab.traffic import Traffic

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "build" / "runs"
#: Log loss of the untouched base on the validation pictures of chapters 8 and 9, rounded down.
UNTOUCHED = 1.6


@dataclass(frozen=True)
class Conclusion:
    """A fragment of a chapter's prose, and what must hold of the run for it to be true."""

    notebook: str
    fragment: str
    runs: tuple[str, ...]
    holds: Callable[..., bool]


def loss_at(run: Recording, arm: str, lr: float) -> float:
    return tuning_curve(run, arm)[lr]


def difference(run: Recording, a: str, b: str, metric: str = "log_loss"):
    return paired(run, a, b, metric)


def together(*runs: Recording) -> Recording:
    """The first run with the rows of all."""
    first = runs[0]
    return Recording(
        **{**vars(first), "rows": [row for run in runs for row in run.rows]},
    )


FULL = "full fine-tuning"
#: The arms of chapter 8 that are also tested at the rate that came second.
TUNED = (*(f"LoRA r={r}" for r in (1, 2, 4, 8, 32)), FULL)
RANKS = (1, 4, 16, 48)
FULL = "full fine-tuning"
#: The arms of chapter 9's map of two rates.
RATIOS = {0.25: "LoRA+ ratio 0.25", 1.0: "LoRA r=4", 4.0: "LoRA+ ratio 4", 16.0: "LoRA+ ratio 16"}
PILES = ("weights", "gradients", "optimizer", "activations")


def accuracy(run: Recording, arm: str, labels: int | None = None) -> float:
    (found,) = [one for one in summarise(run, labels) if one.arm == arm]
    return found.accuracy


def better(run: Recording, a: str, b: str, labels: int | None = None):
    """a − b in accuracy, from 0 to 1."""
    return paired(run, a, b, labels=labels)


def sheets(run: Recording, a: str, b: str):
    """a − b in accuracy over the sheets of the test pictures."""
    return paired_by_sheet(run, a, b)


def apart(found) -> bool:
    """Whether an interval leaves out zero by more than a hair."""
    return found.low > 0.004 or found.high < -0.004


def chosen(run: Recording, arm: str) -> float:
    """The rate of an arm of chapter 8, with 500 labels."""
    return best_rate(run.rows, arm, 500)


def at_any_rung(run: Recording, arm: str) -> list[float]:
    """Accuracies at the chosen rate and at the one that came second."""
    return [accuracy(run, arm), accuracy(run, f"{arm}, runner-up")]


def on_bases(run: Recording, r: int):
    """LoRA − full fine-tuning on the base of the page and on those of the recording."""
    others = differences(load_recording("bases", "laptop"), f"LoRA r={r}")
    return [better(run, f"LoRA r={r}", FULL), *others.values()]


def over_bases(run: Recording, r: int) -> tuple[float, float, float]:
    """The mean of these differences, and the ends of its 95% interval."""
    return t_interval([one.mean for one in on_bases(run, r)])


def watched(run: Recording, arm: str, field: str = "log_loss") -> np.ndarray:
    """(draws, looks) of what was watched on its way."""
    rows = [row for row in run.rows if row.arm == f"watched {arm}"]
    values = [np.nan if getattr(row, field) is None else getattr(row, field) for row in rows]
    return np.reshape(values, (len({row.seed for row in rows}), -1))


def t_value(differences: np.ndarray) -> float:
    """The mean in standard errors."""
    return float(differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences))))


def printed(run: Recording, a: str, b: str):
    """a − b in accuracy on printed pairs."""
    return paired(run, f"{a}, printed", f"{b}, printed")


def ladders(run: Recording, *arms: str) -> dict[str, dict[float, list[Row]]]:
    """The tuning runs of some arms, by rate."""
    return {arm: rates.by_rate(run.rows, arm) for arm in arms}


def full_loss(run: Recording, lr: float) -> float:
    return rates.mean_loss(rates.by_rate(run.rows, FULL)[lr])


def last_sound(run: Recording, arm: str) -> float:
    """The highest rate without a broken run."""
    return rates.highest_sound(run.rows, arm, UNTOUCHED)


def chosen_rate(run: Recording, arm: str) -> float:
    return rates.best_rate(run.rows, arm)


def scaled(rule: str, r: int) -> str:
    return rates.arm_of(8.0, rule, r)


def products(run: Recording) -> list[float]:
    """α × rate of A × rate of B at the highest sound rate of every arm that AdamW trains."""
    found = [8 * q * last_sound(run, arm) ** 2 for q, arm in RATIOS.items()]
    for rule, scale_of in rates.RULES.items():
        found += [r * scale_of(8.0, r) * last_sound(run, scaled(rule, r)) ** 2 for r in RANKS]
    return found


CONCLUSIONS = [
    # Chapter 8
    Conclusion(
        "08_lora_transformer",
        "Most of the way up is covered by the first rank",
        ("rank",),
        lambda run: (
            accuracy(run, "LoRA r=1") - accuracy(run, "the base as it is")
            > 0.6 * (accuracy(run, FULL) - accuracy(run, "the base as it is"))
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "They seldom agree, and the choice among two or three rungs is partly luck",
        ("rank",),
        lambda run: (
            sum(len(set(single_choices(run.rows, arm, 500).values())) > 1 for arm in TUNED) >= 4
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "it is not a constant",
        ("rank",),
        lambda run: len({chosen(run, arm) / chosen(run, FULL) for arm in TUNED if arm != FULL}) > 1,
    ),
    Conclusion(
        "08_lora_transformer",
        "At 0.05, one to four rungs above the best, the loss jumps",
        ("rank",),
        lambda run: all(
            loss_at(run, f"LoRA r={r}", 0.05) > 2 and 0.01 <= chosen(run, f"LoRA r={r}") < 0.05
            for r in (1, 2, 8)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Above it the accuracy still rises by two or three points, and none of the ranks tried is "
        "too large",
        ("rank",),
        lambda run: (
            0.015
            < np.mean([accuracy(run, f"LoRA r={r}") for r in (4, 8, 32)])
            - accuracy(run, "LoRA r=1")
            < 0.05
            and better(run, "LoRA r=32", FULL).high > 0
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Rank 1 is behind full fine-tuning by about three points, and the interval over the draws "
        "leaves out zero. Rank 2 is behind in the mean, by less",
        ("rank",),
        lambda run: (
            -0.045 < better(run, "LoRA r=1", FULL).mean < -0.015
            and better(run, "LoRA r=1", FULL).high < 0.005
            and better(run, "LoRA r=1", FULL).mean < better(run, "LoRA r=2", FULL).mean < 0.003
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Ranks 4, 8 and 32 are not behind by any interval that leaves out zero",
        ("rank",),
        lambda run: all(
            of(run, f"LoRA r={r}", FULL).high > -0.004
            for of in (better, sheets)
            for r in (4, 8, 32)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Over the draws rank 4 is ahead of rank 1, and few of the steps from one rank to the next "
        "can be told from nothing",
        ("rank",),
        lambda run: (
            better(run, "LoRA r=4", "LoRA r=1").low > -0.005
            and sum(
                apart(better(run, f"LoRA r={b}", f"LoRA r={a}"))
                for a, b in pairwise((1, 2, 4, 8, 32))
            )
            <= 2
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "At rank 2 there are both",
        ("rank",),
        lambda run: {one.mean > 0 for one in on_bases(run, 2) if one.detectable} == {True, False},
    ),
    Conclusion(
        "08_lora_transformer",
        "rank 1 is behind, by a point to five, and for every higher rank they hold zero",
        ("rank",),
        lambda run: (
            -0.06 < over_bases(run, 1)[1] < -0.04
            and -0.02 < over_bases(run, 1)[2] < -0.005
            and all(over_bases(run, r)[1] < 0 < over_bases(run, r)[2] for r in (2, 4, 8, 32))
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "In the mean the ranks from 4 on are level with full fine-tuning or a point ahead",
        ("rank",),
        lambda run: all(-0.005 < over_bases(run, r)[0] < 0.015 for r in (4, 8, 32)),
    ),
    Conclusion(
        "08_lora_transformer",
        "rank 1 covers most of the way, and in the mean it is behind full fine-tuning and"
        " behind ranks 4 to 32",
        ("rank",),
        lambda run: (
            max(at_any_rung(run, "LoRA r=1"))
            < min(min(at_any_rung(run, arm)) for arm in (FULL, "LoRA r=4", "LoRA r=8", "LoRA r=32"))
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "rank 1 is behind by about three points, and rank 8 cannot be told from full fine-tuning",
        ("rank",),
        lambda run: (
            -0.045 < better(run, "LoRA r=1, 50 steps", f"{FULL}, 50 steps").mean < -0.015
            and not apart(better(run, "LoRA r=8, 50 steps", f"{FULL}, 50 steps"))
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "Training the *head only* barely improves on the base as it is",
        ("rank",),
        lambda run: 0 < accuracy(run, "head only") - accuracy(run, "the base as it is") < 0.04,
    ),
    Conclusion(
        "08_lora_transformer",
        "but in the mean of these draws both factors together do better",
        ("rank",),
        lambda run: (
            better(run, "random A, r=8", "LoRA r=8").mean < 0
            and better(run, "random A, r=8", "LoRA r=8").high < 0.015
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "would read the two digits, add them, and beat every transformer on this page",
        ("rank",),
        lambda run: (
            accuracy(run, "digits labelled singly")
            > max(one.accuracy for one in summarise(run) if one.parameters)
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "With 100 labels rank 8 cannot be told from full fine-tuning, and the interval leaves room "
        "for a point or two",
        ("rank",),
        lambda run: (
            not apart(better(run, "LoRA r=8", FULL, 100))
            and better(run, "LoRA r=8", FULL, 100).low > -0.02
            and better(run, "LoRA r=8", FULL, 100).high < 0.02
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "rank 32 is not behind rank 8 beyond chance",
        ("rank",),
        lambda run: better(run, "LoRA r=32", "LoRA r=8").high > 0,
    ),
    Conclusion(
        "08_lora_transformer",
        "it spares neither rank 1 nor rank 32 nor full fine-tuning",
        ("rank",),
        lambda run: all(
            (watched(run, arm)[:, -1] > watched(run, arm).min(axis=1) + 0.1).all()
            and watched(run, arm, "train_loss")[:, -1].max() < 0.1
            for arm in ("r=1", "r=32", "full")
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "its lowest point is lower, and at the end three draws do not set the two apart",
        ("rank",),
        lambda run: (
            watched(run, "r=32").min(axis=1).mean() < watched(run, "r=1").min(axis=1).mean()
            and abs(t_value(watched(run, "r=32")[:, -1] - watched(run, "r=1")[:, -1])) < 4.3
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "gives away about a tenth of the way from the base",
        ("rank",),
        lambda run: (
            0.05
            < (accuracy(run, "LoRA r=8") - accuracy(run, "LoRA r=8, at 0.0032"))
            / (accuracy(run, "LoRA r=8") - accuracy(run, "the base as it is"))
            < 0.2
        ),
    ),
    Conclusion(
        "08_lora_transformer",
        "LoRA of rank 8 has kept a point more than full fine-tuning, which the interval "
        "does not tell from nothing",
        ("rank",),
        lambda run: (
            abs(better(run, "LoRA r=8, at 0.007", f"{FULL}, runner-up").mean) < 0.01
            and -0.005 < printed(run, "LoRA r=8, at 0.007", f"{FULL}, runner-up").mean < 0.025
            and not apart(printed(run, "LoRA r=8, at 0.007", f"{FULL}, runner-up"))
        ),
    ),
    # Chapter 9
    Conclusion(
        "09_learning_rate",
        "the best rate is the same rung of the ladder or the next one",
        ("rates-adam",),
        # Another processor rounds otherwise: a neighbour may be ahead by a hair.
        lambda run: all(
            min(rates.mean_loss(ladder[lr]) for lr in (0.016, 0.032))
            < rates.mean_loss(ladder[rates.best_rate(run.rows, arm)]) + 0.08
            for arm, ladder in ladders(run, *(f"LoRA r={r}" for r in RANKS)).items()
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "LoRA ends far above the dotted line",
        ("rates-adam",),
        lambda run: all(
            row.log_loss is None or row.log_loss > UNTOUCHED + 0.5
            for ladder in ladders(run, *(f"LoRA r={r}" for r in RANKS)).values()
            for row in ladder[0.064]
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "over three rungs its training loss stays within a few hundredths, while the loss on other "
        "pictures grows",
        ("rates-adam",),
        lambda run: (
            rates.best_rate(run.rows, FULL) in (0.002, 0.004)
            and all(
                row.train_loss < 0.1
                for lr in (0.004, 0.008, 0.016)
                for row in rates.by_rate(run.rows, FULL)[lr]
            )
            and full_loss(run, 0.002) + 0.05 < full_loss(run, 0.008) < full_loss(run, 0.016) - 0.05
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "at its last rung, the training loss of most runs has gone to pieces as well",
        ("rates-adam",),
        lambda run: (
            sum(row.train_loss > 0.5 for row in rates.by_rate(run.rows, FULL)[0.032]) >= 2
            and full_loss(run, 0.032) > UNTOUCHED
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "is one rung or two for LoRA, and four for full fine-tuning",
        ("rates-adam",),
        lambda run: (
            max(
                last_sound(run, arm) / chosen_rate(run, arm)
                for arm in (f"LoRA r={r}" for r in RANKS)
            )
            <= 2
            < 4
            <= last_sound(run, FULL) / chosen_rate(run, FULL)
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "all ranks break at the same rung",
        ("rates-adam",),
        lambda run: len({last_sound(run, f"LoRA r={r}") for r in RANKS}) == 1,
    ),
    Conclusion(
        "09_learning_rate",
        "Under these two rules a rate that was right at rank 1 breaks training at rank 48",
        ("rates-adam", "rates-scaling"),
        lambda *runs: all(
            last_sound(together(*runs), scaled(rule, 48))
            < rates.best_rate(together(*runs).rows, scaled(rule, 1))
            for rule in list(rates.RULES)[1:]
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Here it fell with about the root of the rank",
        ("rates-adam", "rates-scaling"),
        lambda *runs: (
            4
            <= last_sound(together(*runs), scaled("α = 2r, α/r", 1))
            / last_sound(together(*runs), scaled("α = 2r, α/r", 48))
            <= 16
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Under plain SGD neither rule is level",
        ("rates-scaling",),
        lambda run: (
            rates.best_rate(run.rows, "SGD, r=16, scale 0.5")
            > rates.best_rate(run.rows, "SGD, r=16, scale 2")
            > rates.best_rate(run.rows, "SGD, r=1, scale 8")
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "The two cannot be told apart, at rank 16 or at the largest rank that fits",
        ("rates-adam", "rates-scaling"),
        lambda *runs: (
            not any(
                difference(together(*runs), scaled("α fixed, α/√r", r), f"LoRA r={r}").detectable
                for r in (16, 48)
            )
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "All four rows break in the same column",
        ("rates-plus", "rates-adam"),
        lambda *runs: (
            len({round(last_sound(together(*runs), arm) * q**0.5, 6) for q, arm in RATIOS.items()})
            == 1
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "runs are sound below one value of $\\alpha\\,\\eta_A\\,\\eta_B$ and broken above it",
        ("rates-adam", "rates-scaling", "rates-plus"),
        # A sound rate and the broken one above it are a factor of four apart in the product.
        lambda *runs: max(products(together(*runs))) < 4 * min(products(together(*runs))),
    ),
    Conclusion(
        "09_learning_rate",
        "no ratio is ahead of plain LoRA, and in the mean the loss at a ratio of 16 is not lower "
        "but a little higher",
        ("rates-plus", "rates-adam"),
        lambda *runs: (
            all(
                difference(together(*runs), arm, "LoRA r=4").high > -0.01
                for q, arm in RATIOS.items()
                if q != 1
            )
            and difference(together(*runs), RATIOS[16.0], "LoRA r=4").mean > 0
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "Which factor starts at zero makes no difference here that five draws could show",
        ("rates-starts", "rates-adam"),
        lambda *runs: not difference(together(*runs), "A at zero", "LoRA r=4").detectable,
    ),
    Conclusion(
        "09_learning_rate",
        "both starts are sound up to the same rung",
        ("rates-starts", "rates-adam"),
        lambda *runs: (
            last_sound(together(*runs), "A at zero") == last_sound(together(*runs), "LoRA r=4")
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "What costs something is to freeze one of them",
        ("rates-starts", "rates-adam"),
        lambda *runs: all(
            difference(together(*runs), f"only {factor} trains", "LoRA r=4").low > 0
            for factor in "AB"
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "on this task that does not show up beyond the scatter",
        ("rates-starts",),
        lambda run: not difference(run, "only A trains", "only B trains").detectable,
    ),
    Conclusion(
        "09_learning_rate",
        "with a batch a quarter as large the highest sound rate is half as high",
        ("rates-batch", "rates-adam"),
        lambda batch, adam: (
            4 * last_sound(batch, "batch 2")
            == 2 * last_sound(batch, "batch 8")
            == last_sound(adam, "LoRA r=4")
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "The ratio has changed, and in the other direction",
        ("rates-short", "rates-adam"),
        lambda short, adam: (
            rates.best_rate(short.rows, "LoRA, few steps")
            / rates.best_rate(short.rows, f"{FULL}, few steps")
            < rates.best_rate(adam.rows, "LoRA r=4") / rates.best_rate(adam.rows, FULL)
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "which is near that of somebody who looks at no picture",
        ("rates-inverted",),
        lambda run: all(
            row.log_loss is None or row.log_loss > 2.79 - 0.3
            for row in rates.by_rate(run.rows, "LoRA, inverted")[0.032]
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "At its own best rate, a rung or two lower",
        ("rates-inverted", "rates-adam"),
        lambda inverted, adam: (
            2
            <= rates.best_rate(adam.rows, "LoRA r=4")
            / rates.best_rate(inverted.rows, "LoRA, inverted")
            <= 4
        ),
    ),
    Conclusion(
        "09_learning_rate",
        "full fine-tuning's best rate is no lower than before",
        ("rates-inverted", "rates-adam"),
        lambda inverted, adam: (
            rates.best_rate(inverted.rows, f"{FULL}, inverted") >= rates.best_rate(adam.rows, FULL)
        ),
    ),
]


def held(run: Recording, what: str, arm: str) -> float:
    """Bytes that chapter 11 measured."""
    (found,) = quantities(run, what, arm)
    return found.measured


CONCLUSIONS += [
    # Chapter 11: bytes and counts, never the clock.
    Conclusion(
        "11_memory_time",
        "So 'more than half' was the right guess here",
        ("memory",),
        lambda run: 0.5 < held(run, "peak", "LoRA") / held(run, "peak", "full") < 0.9,
    ),
    Conclusion(
        "11_memory_time",
        "For LoRA the peak lies *above* the sum",
        ("memory",),
        lambda run: (
            held(run, "peak", "LoRA") > sum(held(run, pile, "LoRA") for pile in PILES)
            and held(run, "peak", "full") < sum(held(run, pile, "full") for pile in PILES)
        ),
    ),
    Conclusion(
        "11_memory_time",
        "Not two per cent, and not a tenth",
        ("memory",),
        lambda run: 0.6 < held(run, "flops", "LoRA") / held(run, "flops", "full") < 0.75,
    ),
]


ALL_SIX = "all six, r=2"
BLOCKS = [f"block {k}, r=6" for k in (1, 2, 3)]
NEW = ", new answers"
LOOKING = ("Q, r=20", "K, r=20", "Q, K, r=10")
TURNED = ("turned 15°", "turned 45°", "turned 90°", "turned 180°")
EXCHANGED = ("exchanged 12.5%", "exchanged 50%", "exchanged 100%")


def lack(run: Recording, r: int, shift: str):
    """Log loss of a rank above that of rank 48, on one shift of the pictures."""
    return difference(run, f"r={r}, {shift}", f"r=48, {shift}")


CONCLUSIONS += [
    # Chapter 10
    Conclusion(
        "10_placement",
        "Q alone, K alone, and the two together stay about twenty points behind everybody else",
        ("placement-places",),
        lambda run: all(
            better(run, place, one.arm).high < -0.12
            for place in LOOKING
            for one in summarise(run)
            if one.arm not in LOOKING
        ),
    ),
    Conclusion(
        "10_placement",
        "O is ahead of V by three or four points",
        ("placement-places",),
        lambda run: better(run, "O, r=20", "V, r=20").low > 0.01,
    ),
    Conclusion(
        "10_placement",
        "Between attention and feed-forward there is no detectable difference",
        ("placement-places",),
        lambda run: not better(run, "Q, K, V, O, r=5", "up, down, r=4").detectable,
    ),
    Conclusion(
        "10_placement",
        "for V the step is worth a point or two, and for O it brings nothing that five draws could "
        "show",
        ("placement-places", "placement-rank"),
        lambda *runs: (
            0.005 < better(together(*runs), "V, r=20", "V, r=8").mean < 0.025
            and not better(together(*runs), "O, r=20", "O, r=8").detectable
        ),
    ),
    Conclusion(
        "10_placement",
        "equal rank and equal parameters put these places in the same order",
        ("placement-places", "placement-rank"),
        lambda *runs: all(
            better(together(*runs), f"{large}, r=8", f"{square}, r={r}").mean * sign > 0
            for large in ("up", "down")
            for square, sign in (("V", 1), ("O", -1))
            for r in (8, 20)
        ),
    ),
    Conclusion(
        "10_placement",
        "`down`, V, and Q with V are behind 'all six' in the log loss of the figure, and in the "
        "mean of the table by two to four points of accuracy",
        ("placement-places",),
        lambda run: all(
            paired(run, place, ALL_SIX, "log_loss").low > -0.005
            and -0.045 < better(run, place, ALL_SIX).mean < -0.015
            for place in ("down, r=8", "V, r=20", "Q, V, r=10")
        ),
    ),
    Conclusion(
        "10_placement",
        "O, all four of attention, and `up` with `down` are not told apart from 'all six' by "
        "either measure",
        ("placement-places",),
        lambda run: (
            not any(
                paired(run, place, ALL_SIX, metric).detectable
                for place in ("O, r=20", "Q, K, V, O, r=5", "up, down, r=4")
                for metric in ("accuracy", "log_loss")
            )
        ),
    ),
    Conclusion(
        "10_placement",
        "The first block by itself is level with the whole model or ahead of it, with the same "
        "number of parameters; the second is behind, and the third is far behind",
        ("placement-places", "placement-blocks"),
        lambda *runs: (
            better(together(*runs), BLOCKS[0], ALL_SIX).low > -0.02
            and better(together(*runs), BLOCKS[1], ALL_SIX).high < -0.03
            and better(together(*runs), BLOCKS[2], BLOCKS[1]).high < -0.03
        ),
    ),
    Conclusion(
        "10_placement",
        "The block that won on handwriting is now the last, the block that lost is now the first, "
        "and 'all six' stands between them in both",
        ("placement-answers",),
        lambda run: (
            better(run, BLOCKS[0] + NEW, ALL_SIX + NEW).high < 0
            and better(run, BLOCKS[2] + NEW, ALL_SIX + NEW).low > 0.1
            and better(run, BLOCKS[2] + NEW, BLOCKS[1] + NEW).low > 0
        ),
    ),
    Conclusion(
        "10_placement",
        "Training the head alone, on the same 500 pairs, gets",
        ("placement-answers",),
        lambda run: better(run, "the head" + NEW, BLOCKS[2] + NEW).low > 0.03,
    ),
    Conclusion(
        "10_placement",
        "None of the four comes up to rank 1 on all six",
        ("placement-own",),
        lambda run: all(
            better(run, f"the {what}", "all six, r=1").high < 0
            for what in ("embeddings", "norms", "biases", "head")
        ),
    ),
    Conclusion(
        "10_placement",
        "Among them the embeddings are the best, with fewer numbers than the biases",
        ("placement-own",),
        lambda run: all(
            better(run, "the embeddings", f"the {what}").mean > 0.01
            for what in ("norms", "biases", "head")
        ),
    ),
    Conclusion(
        "10_placement",
        "Rank 2 in the first block is ahead of everything else here",
        ("placement-own",),
        lambda run: better(run, "block 1, r=2", "all six, r=1").low > 0,
    ),
    Conclusion(
        "10_placement",
        "the head does next to nothing",
        ("placement-own",),
        lambda run: accuracy(run, "the head") < accuracy(run, "the norms") - 0.08,
    ),
    Conclusion(
        "10_placement",
        "Within each kind of shift the order is the one that the line at a quarter gave",
        ("placement-turned", "placement-exchanged"),
        # The half turn and a turn of 45 degrees lie close: their places may change.
        lambda turned, exchanged: (
            lack(turned, 1, "turned 15°").mean
            < min(lack(turned, 1, shift).mean for shift in ("turned 45°", "turned 180°"))
            and max(lack(turned, 1, shift).mean for shift in ("turned 45°", "turned 180°"))
            < lack(turned, 1, "turned 90°").mean
            and lack(exchanged, 1, EXCHANGED[0]).mean
            < lack(exchanged, 1, EXCHANGED[1]).mean
            < lack(exchanged, 1, EXCHANGED[2]).mean
        ),
    ),
    Conclusion(
        "10_placement",
        "where its interval lies far above that of the weakest shift",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: all(
            lack(run, 1, strong).low > lack(run, 1, weak).high + 0.05
            for run, weak, strong in (
                (turned, "turned 15°", "turned 90°"),
                (exchanged, "exchanged 12.5%", "exchanged 100%"),
            )
        ),
    ),
    Conclusion(
        "10_placement",
        "rank 4 in eighteen matrices comes close, by its log loss, to what no bound at all would "
        "give",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: all(
            lack(run, 4, shift).mean < 0.15
            for run, shifts in ((turned, TURNED), (exchanged, EXCHANGED))
            for shift in shifts
        ),
    ),
    Conclusion(
        "10_placement",
        "even rank 48 is far below",
        ("placement-turned", "placement-exchanged"),
        lambda turned, exchanged: (
            max(accuracy(turned, "r=48, turned 90°"), accuracy(exchanged, "r=48, exchanged 100%"))
            < 0.8
        ),
    ),
    Conclusion(
        "10_placement",
        "Of the three pairs Q with K has fallen as well, and the other two have not",
        ("placement-places",),
        lambda run: (
            min(loss_at(run, arm, 5e-2) for arm in (ALL_SIX, "Q, K, V, O, r=5", "Q, K, r=10"))
            > UNTOUCHED + 0.5
            and max(loss_at(run, arm, 5e-2) for arm in ("Q, V, r=10", "up, down, r=4")) < UNTOUCHED
        ),
    ),
]


# Chapter 14: what the page says is in its recording.
def pictures(arm: str, what: str = "") -> float:
    """A mean share of chapter 14's recording; see `minilora.experiments.images.reading`."""
    return mean_share(load_recording("images", "laptop"), arm, what)


def lead(a: str, b: str, what: str = "") -> tuple[float, float, float]:
    """a − b in such a share: mean, low, high."""
    return picture_lead(load_recording("images", "laptop"), a, b, what)


def tied(a: str, b: str, what: str = "") -> bool:
    """Whether the interval of a − b leaves zero in."""
    _, low, high = lead(a, b, what)
    return low <= 0 <= high


def far(arm: str) -> float:
    """The mean distance to real pictures of the style."""
    return mean_distance(load_recording("images", "laptop"), arm)


def ink_per_unit(style: str, strength: float) -> float:
    """What an adapter adds to the ink, divided by its strength."""
    at, off = (pictures(f"{style}, strength {s:g}", "ink") for s in (strength, 0))
    return (at - off) / strength


CONCLUSIONS += [
    Conclusion(
        "14_images",
        "A disturbance of that size does not make strokes heavier",
        (),
        lambda: pictures("bold, shuffled") > 0.9 and pictures("bold, shuffled", "style") < 0.1,
    ),
    Conclusion(
        "14_images",
        "points of ink for each unit of strength, up to twice the strength of the training",
        (),
        lambda: (
            all(0.115 < ink_per_unit("bold", s) < 0.14 for s in (0.25, 0.5, 0.75, 1, 1.5, 2))
            and ink_per_unit("bold", -1) < 0.09
        ),
    ),
    Conclusion(
        "14_images",
        "it changes its mind about most of them between 0.25 and 0.75",
        (),
        lambda: (
            pictures("bold, strength 0.25", "style") < 0.2
            and pictures("bold, strength 0.75", "style") > 0.85
        ),
    ),
    Conclusion(
        "14_images",
        "So minus an adapter is in the direction of the opposite style for both",
        (),
        lambda: (
            pictures("bold, strength -1, as thin", "style") > 0.9
            and pictures("slanted, strength -1, as left", "style") < 0.15
        ),
    ),
    Conclusion(
        "14_images",
        "At 2 each of them has lost content, and at 3 most of the digits are gone",
        (),
        lambda: all(
            pictures(f"{style}, strength 2") < pictures(f"{style}, strength 1") - 0.1
            and pictures(f"{style}, strength 3") < 0.5
            for style in ("bold", "slanted", "outline")
        ),
    ),
    Conclusion(
        "14_images",
        "content and style stay within the noise of five seeds",
        (),
        lambda: all(
            tied(f"bold, {a}", f"bold, {b}", what)
            for a, b in (("r=16", "r=1"), ("whole model", "r=16"), ("whole model", "r=1"))
            for what in ("", "style")
        ),
    ),
    Conclusion(
        "14_images",
        "The *slant* is the one style of which a small rank loses the look as well",
        (),
        lambda: (
            lead("slanted, r=16", "slanted, r=1")[1] > 0
            and lead("slanted, r=16", "slanted, r=1", "style")[1] > 0
            and all(
                pictures(f"{style}, r=1", "style") > 0.94
                for style in ("bold", "handwritten", "outline")
            )
        ),
    ),
    Conclusion(
        "14_images",
        "at a content that cannot be told from rank 16's",
        (),
        lambda: (
            tied("slanted, whole model", "slanted, r=16")
            and lead("slanted, whole model", "slanted, r=16", "style")[1] > 0
        ),
    ),
    Conclusion(
        "14_images",
        "at rank 1, which cannot be told from the",
        (),
        lambda: (
            tied("handwritten, r=16", "handwritten, r=1")
            and pictures("handwritten, whole model") > pictures("handwritten, r=16")
            and pictures("handwritten, r=1") > pictures("handwritten, real") - 0.08
        ),
    ),
    Conclusion(
        "14_images",
        "cannot be told from rank 16, and both are far from the",
        (),
        lambda: (
            tied("outline, whole model", "outline, r=16")
            and lead("outline, r=16", "outline, r=1")[1] > 0.05
            and lead("outline, r=16", "outline, r=4")[1] > 0
            and pictures("outline, r=16") < pictures("outline, real") - 0.2
        ),
    ),
    Conclusion(
        "14_images",
        "and bold, the farthest, asked for the least",
        (),
        lambda: all(
            far("bold, base") > far(f"{style}, base") + 0.05
            for style in ("slanted", "handwritten", "outline")
        ),
    ),
    Conclusion(
        "14_images",
        "alone could not be told from rank 4 on all layers",
        (),
        lambda: all(
            tied(f"outline, {place}", "outline, r=4", what)
            for place in ("feed-forward", "blocks 3 and 4")
            for what in ("", "style")
        ),
    ),
    Conclusion(
        "14_images",
        "Attention alone and the modulations alone are behind",
        (),
        lambda: all(
            lead(f"outline, {place}", "outline, r=4")[2] < -0.02
            for place in ("attention", "modulation", "blocks 1 and 2")
        ),
    ),
    Conclusion(
        "14_images",
        "where one is lower, the other is not higher",
        (),
        lambda: all(
            lead(f"outline, {place}", "outline, r=4")[0] < 0.01
            and lead(f"outline, {place}", "outline, r=4", "style")[0] < 0.01
            for place in ("attention", "feed-forward", "modulation")
        ),
    ),
    Conclusion(
        "14_images",
        "In content the two cannot be told apart",
        (),
        lambda: (
            tied("trained on both", "sum")
            and max(pictures("sum"), pictures("trained on both"))
            < min(pictures("bold alone"), pictures("slanted alone")) - 0.03
        ),
    ),
    Conclusion(
        "14_images",
        "Yet the sum has less of both styles than joint training gives",
        (),
        lambda: lead("trained on both", "sum", "style")[1] > 0.05,
    ),
    Conclusion(
        "14_images",
        "half a slant is seldom called slanted",
        (),
        lambda: (
            pictures("mean of the updates", "style") < 0.3
            and pictures("mean of the factors", "style") < 0.1
        ),
    ),
    Conclusion(
        "14_images",
        "Without guidance the claim holds in part",
        (),
        lambda: (
            0.5 < pictures("bold, without labels, guidance 1", "style") < 0.95
            and pictures("bold, without labels, guidance 1") > 0.95
            and pictures("bold, without labels, guidance 3", "style") < 0.15
            and pictures("bold, with labels, guidance 5", "style") > 0.85
        ),
    ),
]


# Chapter 15
def undone(run: Recording, r: int) -> float:
    """The share of what training gained at two bits that is lost when the sum is rounded again."""
    kept, again = (accuracy(run, f"2 bits, r={r}{how}") for how in ("", ", rounded again"))
    return (kept - again) / (kept - accuracy(run, "2 bits, untrained"))


def leads_at(default: Recording, second: Recording, lr: float) -> list:
    """By how much LoftQ is ahead at two bits, rank by rank, where both starts took this rate."""
    both = together(default, second)
    of = {one.arm: one.lr for one in summarise(both)}
    found = []
    for r in (4, 16):
        pair = [
            [name for name in (start, f"{start}, runner-up") if of[name] == lr]
            for start in (f"2 bits, r={r}, LoftQ", f"2 bits, r={r}")
        ]
        if all(pair):
            found.append(better(both, pair[0][0], pair[1][0]))
    assert found, f"at no rank were both starts tested with the rate {lr}"
    return found


def kept_at(run: Recording, r: int, larger: bool) -> float:
    """Accuracy after rounding again, at the larger or the smaller of the two tested rates."""
    arms = [f"2 bits, r={r}", f"2 bits, r={r}, runner-up"]
    of = {one.arm: one.lr for one in summarise(run)}
    arm = max(arms, key=of.__getitem__) if larger else min(arms, key=of.__getitem__)
    return accuracy(run, f"{arm}, rounded again")


def starts(default: Recording, second: Recording, bits: int, r: int, more: str = ""):
    """LoftQ − the usual start in accuracy, each at its own rate."""
    arm = f"{bits} bits, r={r}"
    return better(together(default, second), f"{arm}, LoftQ{more}", f"{arm}{more}")


CONCLUSIONS += [
    Conclusion(
        "15_quantized",
        "With four bits nothing that five draws could show is lost",
        ("quantized-default",),
        lambda run: all(
            not apart(better(run, f"4 bits, r={r}", f"32 bits, r={r}")) for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "Three bits cost about a point",
        ("quantized-default",),
        lambda run: all(
            -0.03 < better(run, f"3 bits, r={r}", f"32 bits, r={r}").mean < 0.003 for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "Two bits cost four to five",
        ("quantized-default",),
        lambda run: all(
            -0.07 < better(run, f"2 bits, r={r}", f"32 bits, r={r}").mean < -0.02
            and accuracy(run, f"2 bits, r={r}") > accuracy(run, "2 bits, untrained") + 0.4
            for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "so that nothing is known about the ranks here",
        ("quantized-default",),
        lambda run: (
            abs(better(run, "2 bits, r=16, runner-up", "2 bits, r=4").mean) < 0.04
            and abs(better(run, "2 bits, r=16, runner-up", "2 bits, r=16").mean) < 0.04
        ),
    ),
    Conclusion(
        "15_quantized",
        "With four even levels the adder starts from",
        ("quantized-default",),
        lambda run: (
            accuracy(run, "2 bits, even levels, untrained")
            > accuracy(run, "2 bits, untrained") + 0.1
            and all(
                better(run, f"2 bits, r={r}, even levels", f"2 bits, r={r}").mean > 0.005
                and better(run, f"2 bits, r={r}, even levels", f"32 bits, r={r}").mean > -0.035
                for r in (4, 16)
            )
        ),
    ),
    Conclusion(
        "15_quantized",
        "At four and three bits there was no lead before and there is none after",
        ("quantized-default", "quantized-LoftQ"),
        lambda default, second: all(
            starts(default, second, bits, r).low < 0.004 for bits in (4, 3) for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "At a rate below the best, LoftQ is far ahead",
        ("quantized-default", "quantized-LoftQ"),
        lambda default, second: all(
            rates.mean_loss(rates.by_rate(second.rows, f"2 bits, r={r}, LoftQ")[0.0022]) + 0.1
            < rates.mean_loss(rates.by_rate(default.rows, f"2 bits, r={r}")[0.0022])
            for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "With 0.01 LoftQ is ahead in the mean; with 0.022 no lead is left that its interval tells "
        "from nothing",
        ("quantized-default", "quantized-LoftQ"),
        lambda default, second: (
            all(one.mean > 0 for one in leads_at(default, second, 0.01))
            and all(one.low <= 0 for one in leads_at(default, second, 0.022))
        ),
    ),
    Conclusion(
        "15_quantized",
        "most of the lead of",
        ("quantized-default", "quantized-LoftQ"),
        lambda default, second: all(
            abs(starts(default, second, 2, r, more).mean) < 0.04
            for r in (4, 16)
            for more in ("", ", runner-up")
        ),
    ),
    Conclusion(
        "15_quantized",
        "No difference in accuracy could be detected",
        ("quantized-short",),
        lambda run: (
            not apart(better(run, "2 bits, r=16, LoftQ, 25 steps", "2 bits, r=16, 25 steps"))
        ),
    ),
    Conclusion(
        "15_quantized",
        "At four bits each way costs about a point at most",
        ("quantized-default",),
        lambda run: all(
            better(run, f"4 bits, r={r}, {how}", f"4 bits, r={r}").mean > -0.018
            for r in (4, 16)
            for how in ("into the exact weights", "rounded again")
        ),
    ),
    Conclusion(
        "15_quantized",
        "At two bits the update is worth much less in the *exact* weights",
        ("quantized-default",),
        lambda run: all(
            better(run, f"2 bits, r={r}, into the exact weights", f"2 bits, r={r}").high < -0.03
            for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "between a third and three quarters of what training had gained",
        ("quantized-default",),
        lambda run: all(0.28 < undone(run, r) < 0.8 for r in (4, 16)),
    ),
    Conclusion(
        "15_quantized",
        "of its two best rates each rank keeps more with the larger one",
        ("quantized-default",),
        lambda run: all(
            kept_at(run, r, larger=True) > kept_at(run, r, larger=False) + 0.05 for r in (4, 16)
        ),
    ),
    Conclusion(
        "15_quantized",
        "could not be told from QLoRA at four bits",
        ("quantized-default",),
        lambda run: all(
            not apart(better(run, f"4 bits, r={r}", f"32 bits, r={r}, rounded to 4"))
            for r in (4, 16)
        ),
    ),
]


# ---------------------------------------------------------------- chapter 13, from its recording


def on_prose() -> Recording:
    return load_recording("language", "laptop")


def of_rank(r: int) -> str:
    return f"LoRA r={r}"


PROSE_TEST, PROSE, CODE = (
    lm.text(kind, which)
    for kind, which in (("prose", "test"), ("prose", "validation"), ("code", "validation"))
)
LANGUAGE = LANGUAGE_PROFILES["laptop"]
LEARNERS = (*(of_rank(r) for r in (1, 4, 16, 64)), MATRICES, "the head", "everything")


def bits_behind(a: str, b: str):
    """a − b on test prose over the draws, in bits a byte: mean, low, high."""
    found = paired(on_prose(), a, b, "log_loss", LANGUAGE.labels)
    return [PROSE_TEST.bits_per_byte(v) for v in (found.mean, found.low, found.high)]


def bits_behind_by_topic(a: str, b: str):
    nats = language_results.by_topic(on_prose(), PROSE_TEST, a, b)
    return t_interval([PROSE_TEST.bits_per_byte(d) for d in nats])


def gap_after(r: int, steps: int, i: int) -> float:
    """How far a rank is behind the matrices on the way, at the i-th pair of rates."""
    losses = [
        np.mean(language_results.watched(on_prose(), arm, LANGUAGE.watched[arm][i])[steps])
        for arm in (of_rank(r), MATRICES)
    ]
    return PROSE.bits_per_byte(losses[0] - losses[1])


def pays(arm: str, gain: float) -> float:
    """What is lost on code for a gain on prose, at the rate that brings it."""
    return language_results.price(
        language_results.paths_by_rate(on_prose(), arm, PROSE, CODE)[100], gain
    )


def pays_turned_down(arm: str, gain: float) -> float:
    paths = language_results.paths_by_strength(on_prose(), arm, PROSE, CODE)
    return float(np.mean([language_results.price(path, gain) for path in paths.values()]))


def gaining():
    """The runs that gained on prose."""
    run = on_prose()
    start = language_results.untouched(run, "prose")
    return [one for one in language_results.measured(run) if one.values["prose"] < start]


def goes_with(what: str) -> float:
    return language_results.correlation(gaining(), what)


def goes_with_inside(what: str) -> float:
    parts = [[one for one in gaining() if one.arm == arm] for arm in LEARNERS]
    return float(np.mean([language_results.correlation(part, what) for part in parts]))


def null_shares(null: str) -> dict[str, list[float]]:
    """{arm: what random changes lose over what training has lost, rate by rate}."""
    return {
        arm: [
            language_results.share_of_loss(on_prose(), arm, lr, null)
            for lr in sorted({one.lr for one in gaining() if one.arm == arm})
        ]
        for arm in LANGUAGE.nulls
    }


def lost_at_kl(kl: float, kind: str, within: float = 0.06) -> list[float]:
    """What runs of a kind have lost on code whose KL is about this (bits a byte)."""
    start = language_results.untouched(on_prose(), "code")
    return [
        CODE.bits_per_byte(one.values["code"] - start)
        for one in gaining()
        if one.kind == kind and abs(one.values["KL"] - kl) < within
    ]


def facts_of(r: int) -> tuple[float, float]:
    """The share of 128 facts that a rank knows, and its bits a number."""
    rows = [
        row for row in on_prose().rows if row.stage == "final" and row.arm == f"128 facts, r={r}"
    ]
    bits = np.mean([stored_bits(row, 1024) for row in rows])
    return float(np.mean([row.accuracy for row in rows])), float(bits / rows[0].parameters)


def counted_bits() -> float:
    learn, test = (
        torch.cat(lm.text("prose", which).documents).tolist() for which in ("train", "test")
    )
    return Counted(learn, 1024).bits(test) / PROSE_TEST.bytes


CONCLUSIONS += [
    Conclusion(
        "13_language_model",
        "every fourfold step brings something, less each time",
        (),
        lambda: all(
            -one[0] > -other[0] > 0.01 and other[2] < -0.004
            for one, other in pairwise(bits_behind(of_rank(4 * r), of_rank(r)) for r in (1, 4, 16))
        ),
    ),
    Conclusion(
        "13_language_model",
        "half of the largest that fits, still",
        (),
        lambda: bits_behind(of_rank(64), MATRICES)[1] > 0.02,
    ),
    Conclusion(
        "13_language_model",
        "which has fewer numbers than rank 16, the difference is",
        (),
        lambda: abs(bits_behind(of_rank(16), "the head")[0]) < 0.015,
    ),
    Conclusion(
        "13_language_model",
        "Rank 16 and the head alone could not be told apart in either way",
        (),
        lambda: all(
            low < 0.01 and high > -0.01
            for _, low, high in (
                bits_behind(of_rank(16), "the head"),
                bits_behind_by_topic(of_rank(16), "the head"),
            )
        ),
    ),
    Conclusion(
        "13_language_model",
        "come from what no adapter was put on, the embedding and the head above all",
        (),
        lambda: bits_behind(MATRICES, "everything")[0] > bits_behind(of_rank(16), MATRICES)[0],
    ),
    Conclusion(
        "13_language_model",
        "Every rank stays behind the matrices by this measure as well",
        (),
        lambda: all(bits_behind_by_topic(of_rank(r), MATRICES)[1] > 0.02 for r in (1, 4, 16, 64)),
    ),
    Conclusion(
        "13_language_model",
        "on this text a table of counts is better than every network of the page",
        (),
        lambda: (
            counted_bits() + 0.1
            < min(
                PROSE_TEST.bits_per_byte(row.log_loss)
                for row in on_prose().rows
                if row.stage == "final" and row.arm in LEARNERS
            )
        ),
    ),
    Conclusion(
        "13_language_model",
        "at a half and a quarter of those that the falling schedule chose",
        (),
        lambda: all(
            rates_of == pytest.approx([best_rate(on_prose().rows, arm) / k for k in (2, 4)])
            for arm, rates_of in LANGUAGE.watched.items()
        ),
    ),
    Conclusion(
        "13_language_model",
        "So early the rank makes little difference",
        (),
        lambda: all(
            gap_after(16, 15, i) > 0.05 and 0 < gap_after(1, 15, i) - gap_after(16, 15, i) < 0.05
            for i in (0, 1)
        ),
    ),
    Conclusion(
        "13_language_model",
        "little more than at first",
        (),
        lambda: all(0.8 < gap_after(16, 240, i) / gap_after(16, 15, i) < 1.5 for i in (0, 1)),
    ),
    Conclusion(
        "13_language_model",
        "Rank 1 leaves rank 16 within the first 60 steps",
        (),
        lambda: all(
            gap_after(1, 60, i) - gap_after(16, 60, i)
            > 2 * (gap_after(1, 15, i) - gap_after(16, 15, i))
            and gap_after(1, 240, i) > 1.4 * gap_after(1, 60, i)
            for i in (0, 1)
        ),
    ),
    Conclusion(
        "13_language_model",
        "This is the contrary of 'LoRA forgets less'",
        (),
        lambda: pays(of_rank(16), 0.57) > pays(MATRICES, 0.57) + 0.1,
    ),
    Conclusion(
        "13_language_model",
        "Lower ranks pay more for the same gain",
        (),
        lambda: (
            pays(of_rank(4), 0.5) > pays(of_rank(16), 0.5) + 0.03
            and pays(of_rank(64), 0.5) < pays(of_rank(16), 0.5) + 0.02
        ),
    ),
    Conclusion(
        "13_language_model",
        "Over all runs what is lost on code goes with KL",
        (),
        lambda: (
            goes_with("KL") > 0.7
            and goes_with("KL") > goes_with("gain") + 0.05
            and max(goes_with("size"), goes_with("rate")) < 0.4
        ),
    ),
    Conclusion(
        "13_language_model",
        "Within an arm size and rate are as good as KL",
        (),
        lambda: all(
            abs(goes_with_inside(what) - goes_with_inside("KL")) < 0.08 for what in ("size", "rate")
        ),
    ),
    Conclusion(
        "13_language_model",
        "At all rates but the highest a random change of the same *size* loses less than a third",
        (),
        lambda: all(share < 0.34 for found in null_shares("size").values() for share in found[:-1]),
    ),
    Conclusion(
        "13_language_model",
        "At the same *KL* a random change loses more than half",
        (),
        lambda: all(
            0.5 < found[-1] <= min(found) + 0.02 and max(found) < 1.05
            for found in null_shares("KL").values()
        ),
    ),
    Conclusion(
        "13_language_model",
        "at one KL the head has lost less than LoRA has",
        (),
        lambda: max(lost_at_kl(0.8, "head")) + 0.1 < min(lost_at_kl(0.8, "lora")),
    ),
    Conclusion(
        "13_language_model",
        "which kept more of the gain than of the loss",
        (),
        lambda: all(
            pays_turned_down(arm, 0.8 * gain) < 0.5 * loss
            for arm in (of_rank(16), MATRICES)
            for paths in [language_results.paths_by_strength(on_prose(), arm, PROSE, CODE)]
            for gain, loss in [np.mean([path[-1] for path in paths.values()], axis=0)]
        ),
    ),
    Conclusion(
        "13_language_model",
        "It is also better than training at a lower rate",
        (),
        lambda: pays_turned_down(of_rank(16), 0.5) < pays(of_rank(16), 0.5) - 0.1,
    ),
    Conclusion(
        "13_language_model",
        "less than the adapter still, in every draw, by a smaller distance than before",
        (),
        lambda: 0.01 < pays_turned_down(of_rank(16), 0.5) - pays_turned_down(MATRICES, 0.5) < 0.08,
    ),
    Conclusion(
        "13_language_model",
        "None of them does: rank 8 knows",
        (),
        lambda: facts_of(8)[0] < 0.9 and facts_of(4)[0] < 0.5,
    ),
    Conclusion(
        "13_language_model",
        "a small part of the two bits",
        (),
        lambda: all(0.1 < facts_of(r)[1] < 0.4 for r in (1, 2, 4, 8)),
    ),
]


# Chapter 12
def docstrings_run() -> Recording:
    run = load_recording("docstrings", "laptop")
    assert run is not None
    return run


def ahead_of(b: str, labels: int = 500, ending: str = ""):
    """LoRA r=16 − another arm on docstrings: over the draws, and over bundles of test files."""
    run, a, b = docstrings_run(), f"LoRA r=16{ending}", f"{b}{ending}"
    return paired(run, a, b, labels=labels), over_files(run, a, b, labels)


def docstring_accuracy(arm: str, labels: int = 500) -> float:
    return next(one.accuracy for one in summarise(docstrings_run(), labels) if one.arm == arm)


def docstring_rate(arm: str, labels: int = 500) -> float:
    return best_rate(docstrings_run().rows, arm, labels)


def reached(name: str, part: str) -> float:
    """A part of a small model's numbers, as a share: see `anatomy.Reach`."""
    pytest.importorskip("transformers")
    found = vars(anatomy.reach(name))
    return found[part] / sum(found.values())


CONCLUSIONS += [
    Conclusion(
        "12_real_transformer",
        "about two points more than the linear probe",
        (),
        lambda: all(
            one.low > 0.004 and 0.012 < one.mean < 0.035 for one in ahead_of("linear probe")
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "Counting words is some eight points behind",
        (),
        lambda: all(one.low > 0.04 and 0.065 < one.mean < 0.1 for one in ahead_of("TF-IDF")),
    ),
    Conclusion(
        "12_real_transformer",
        "cannot be told from the probe",
        (),
        lambda: not apart(better(docstrings_run(), FULL, "linear probe")),
    ),
    Conclusion(
        "12_real_transformer",
        "that does not leave out zero",
        (),
        lambda: (
            ahead_of(FULL)[0].low > 0.002
            and ahead_of(FULL)[0].mean > 0.01
            and not ahead_of(FULL)[1].detectable
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "Ranks make no difference in accuracy that five draws could show",
        (),
        lambda: all(
            not apart(one) and abs(one.mean) < 0.01
            for r in (1, 2, 4, 8)
            for one in ahead_of(f"LoRA r={r}")
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "in the other two the linear probe, which takes seconds, cannot be told from it",
        (),
        lambda: all(
            not ahead_of("linear probe", *question)[1].detectable
            for question in ((2000, ""), (500, ", 35 classes"))
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "By its probabilities the adapter is better in all three",
        (),
        lambda: all(
            paired(docstrings_run(), f"LoRA r=16{e}", f"linear probe{e}", "log_loss", labels).high
            < 0
            for labels, e in ((500, ""), (2000, ""), (500, ", 35 classes"))
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "Its draws scatter widely, and one of them collapsed",
        (),
        lambda: all(one.low > 0.02 for one in ahead_of(FULL, 500, ", 35 classes")),
    ),
    Conclusion(
        "12_real_transformer",
        "Counting words gains most from the labels, some eight points",
        (),
        lambda: (
            0.06 < docstring_accuracy("TF-IDF", 2000) - docstring_accuracy("TF-IDF") < 0.1
            and docstring_accuracy("LoRA r=16", 2000) - docstring_accuracy("LoRA r=16") < 0.03
            and ahead_of("TF-IDF", 2000)[0].low > 0
            and not ahead_of("TF-IDF", 2000)[1].detectable
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "Full fine-tuning's best is",
        (),
        lambda: all(
            3 < docstring_rate(f"LoRA r={r}") / docstring_rate(FULL) < 10 for r in (1, 2, 4, 8, 16)
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "In Mixtral they reach",
        (),
        lambda: (
            0.05 < reached("Mixtral", "acted") < 0.15
            and all(
                reached(name, "acted") > 0.8
                for name in ("BERT", "GPT-2", "T5", "LLaMA", "Mistral", "Qwen3", "Phi-3")
            )
        ),
    ),
    Conclusion(
        "12_real_transformer",
        "lie in layers that are never called",
        (),
        lambda: 0.25 < reached("WavLM", "idle") < 0.45,
    ),
]


# Chapter 17
def mixing_run() -> Recording:
    run = load_recording("mixing", "laptop")
    assert run is not None
    return run


def bits_behind_sum(arm: str):
    """An arm − the plain sum of two adapters, in nats a byte, over the draws."""
    run = mixing_run()
    return paired(run, arm, "sum", "log_loss", run.rows[0].labels)


def of_strength(words: str) -> float:
    """Bits a byte of validation text with the sum at a strength."""
    rows = [r for r in mixing_run().rows if (r.stage, r.arm, r.setting) == ("tune", "sum", words)]
    return float(np.mean([row.log_loss for row in rows])) / np.log(2)


@functools.cache
def collusion_chances() -> list[float]:
    """Of the word, with the base, each adapter of the toy, and their sum."""
    halves = collusion.collude()
    both = lm.pretrained_gpt()
    with torch.no_grad():
        for half in halves:
            for path, update in rounding.updates(half).items():
                both.get_parameter(path).add_(update)
    ids = collusion.prompts("validation", 64)
    return [collusion.check(model, ids) for model in (lm.pretrained_gpt(), *halves, both)]


@functools.cache
def sums_of_halves() -> dict[str, float]:
    """Of the word, with the other sums of adapters that the page tries."""
    one, two = (rounding.updates(half) for half in collusion.collude())
    apart = rounding.updates(collusion.collude(seed=1)[1])
    ids, found = collusion.prompts("validation", 64), {}
    for name, parts in {
        "half 1 twice": [(one, 2)],
        "half 2 twice": [(two, 2)],
        "random": [(one, 1), (language.turned(two, 0), 1)],
        "lower": [(one, 0.6), (two, 0.6)],
        "apart": [(one, 1), (apart, 1)],
    }.items():
        model = lm.pretrained_gpt()
        for update, strength in parts:
            model = language.moved(model, update, strength)
        found[name] = collusion.check(model, ids)
    return found


@functools.cache
def of_the_page(task: str) -> lm.LanguageModel:
    """Chapter 17's adapter for a text."""
    return mixing.train(task, mixing.rates(mixing_run())[task], 0)


def page_text() -> tuple[torch.Tensor, torch.Tensor]:
    return language.some(lm.text("prose", "test").windows(), 24)


@functools.cache
def small_update_merged(strength: float = 0.002, nudge: int | None = None) -> dict[str, float]:
    """{way: share of the gain that arrives}, of the page's adapter at a small strength.

    With ``nudge``, weights that were moved at random, by half a step of bfloat16 at most.
    """
    base, change = lm.pretrained_gpt(), rounding.updates(of_the_page("prose"))
    if nudge is not None:
        base = rounding.nudged(base, change, nudge)
    gain = rounding.gains(base, change, [strength], page_text())[strength]
    return {way: gain[way] / gain["beside"] for way in rounding.WAYS}


def routed_ahead(of: str) -> float:
    """Bits a byte by which each text with its own adapter is ahead of an arm; the least lead."""
    run = mixing_run()
    return float((mixing_figures.on_texts(run, of) - mixing_figures.routed(run)).mean(1).min())


def gained_without_a_cut(rule) -> float:
    """Bits a byte that the first draw of a rule is better without the cut to rank 32."""
    changes = [rounding.updates(of_the_page(task)) for task in mixing.TASKS]
    setting = mixing.best_settings(mixing_run())[rule.name]
    whole = mixing.bits(uncut(lm.pretrained_gpt(), changes, rule, setting))
    cut = mixing_figures.on_texts(mixing_run(), rule.name)[0]
    return float(np.mean(cut) - np.mean(list(whole.values())))


def cosines() -> tuple[float, list[float]]:
    """Of the page's two updates, and of one with ten random turns of the other."""
    one, two = (rounding.updates(of_the_page(task)) for task in mixing.TASKS)

    def cosine(other) -> float:
        dot = sum(float((one[path] * other[path]).sum()) for path in one)
        return dot / (language.size(one) * language.size(other))

    return cosine(two), [cosine(language.turned(two, seed)) for seed in range(10)]


@functools.cache
def answers_apart(factor: float) -> float:
    """Mean nats between the page's adapter and a server that multiplies it by a factor."""
    mine, asked = of_the_page("prose"), page_text()[0][:20, :64]
    served = agreement.first_tokens(agreement.served(mine, factor), asked)
    return float(agreement.apart(agreement.first_tokens(mine, asked), served).mean())


def lost_by_halving() -> float:
    """Bits a byte that the page's adapter for prose loses when its factors are in bfloat16."""
    text, of = lm.text("prose", "test"), copy.deepcopy(of_the_page("prose"))
    before = language.mean_loss(of, text.windows())
    with torch.no_grad():
        for factor in minilora.lora_parameters(of):
            factor.copy_(factor.bfloat16())
    return text.bits_per_byte(language.mean_loss(of, text.windows()) - before)


CONCLUSIONS += [
    Conclusion(
        "17_shipping",
        "The plain sum comes first",
        (),
        lambda: all(
            bits_behind_sum(arm).low > 0 for arm in ("TIES", "DARE", "mean of the factors")
        ),
    ),
    Conclusion(
        "17_shipping",
        "both chose the largest share of entries that was offered",
        (),
        lambda: all(
            mixing.best_settings(mixing_run())[rule.name][1] == max(rule.densities)
            for rule in mixing.RULES
            if len(rule.densities) > 1
        ),
    ),
    Conclusion(
        "17_shipping",
        "Training on both is",
        (),
        lambda: bits_behind_sum("trained on both").high < -0.1,
    ),
    Conclusion(
        "17_shipping",
        "Larger than the distances between the rules is that between weights",
        (),
        lambda: (
            of_strength("× 1") - of_strength("× 0.6")
            > bits_behind_sum("mean of the factors").high / np.log(2)
        ),
    ),
    Conclusion(
        "17_shipping",
        "a margin on single adapters is of little help",
        (),
        lambda: max(collusion_chances()[:3]) < collusion.LIMIT / 2 and collusion_chances()[3] > 0.5,
    ),
    Conclusion(
        "17_shipping",
        "By this measure rounding once is the worse way. The model says the contrary",
        (),
        lambda: (
            small_update_merged()["rounded once"] > 0.85
            and small_update_merged()["rounded before"] < 0.8
        ),
    ),
    Conclusion(
        "17_shipping",
        "its gain arrives, to within a few per cent, where only the sum is",
        (),
        lambda: all(
            0.9 < small_update_merged(0.001, seed)["rounded once"] < 1.1
            and small_update_merged(0.001, seed)["rounded before"] < 0.5
            for seed in range(3)
        ),
    ),
    Conclusion(
        "17_shipping",
        "an eighth of its weights lie exactly halfway",
        (),
        lambda: (
            abs(
                np.mean(
                    [
                        rounding.halfway(lm.pretrained_gpt().get_parameter(path))
                        for path in rounding.updates(of_the_page("prose"))
                    ]
                )
                - 1 / 8
            )
            < 0.005
        ),
    ),
    Conclusion(
        "17_shipping",
        "To the digits that are printed nothing is lost",
        (),
        lambda: abs(lost_by_halving()) < 0.0005,
    ),
    Conclusion(
        "17_shipping",
        "And each text with its own adapter is",
        (),
        lambda: routed_ahead("sum") > 0.2 and routed_ahead("trained on both") > 0.05,
    ),
    Conclusion(
        "17_shipping",
        "The cut to rank 32 does not hold them back",
        (),
        lambda: all(gained_without_a_cut(rule) < 0.01 for rule in mixing.RULES[1:3]),
    ),
    Conclusion(
        "17_shipping",
        "as orthogonal as if one had random singular vectors",
        (),
        lambda: abs(cosines()[0]) < 2 * max(map(abs, cosines()[1])),
    ),
    Conclusion(
        "17_shipping",
        "The first four stay below the limit. The pair at lower weights does not",
        (),
        lambda: (
            max(sums_of_halves()[name] for name in ("half 1 twice", "half 2 twice", "random"))
            < collusion.LIMIT
            < min(sums_of_halves()[name] for name in ("lower", "apart")) / 3
        ),
    ),
    Conclusion(
        "17_shipping",
        "Yours must agree as well, to a hundredth or two",
        (),
        lambda: (
            answers_apart(1) < 0.02
            and answers_apart(0.95) > 1.5 * answers_apart(1)
            and answers_apart(0.25) > 0.3
            and answers_apart(0) > 1
        ),
    ),
]


def sent(run: Recording, arm: str, n: int = 2) -> list[float]:
    """Counted over predicted, for each look at what a process sends; none where Linux is not."""
    looks = [q for q in run.quantities if (q.what, q.arm, q.size) == ("sent", arm, n)]
    return [q.measured / (q.predicted or 0) for q in looks]


def exchanged(run: Recording, arm: str) -> dict[str, float]:
    """The bytes that PyTorch hands over in a step, by exchange."""
    wanted = ("summed", "gathered", "scattered")
    return {what: quantities(run, what, arm, 2)[0].measured for what in wanted}


def sent_in_a_ring(run: Recording, arm: str) -> float:
    """What each of two processes sends, from the bytes that were handed over."""
    return Traffic(**{what: int(size) for what, size in exchanged(run, arm).items()}).sent(2)


def sent_bytes(run: Recording, arm: str) -> float:
    """What each of two processes was seen to send in a step."""
    looks = [q for q in run.quantities if (q.what, q.arm, q.size) == ("sent", arm, 2)]
    return float(np.mean([q.measured for q in looks]))


def two_over_one(parts: int) -> float:
    """Seconds of two GPUs over 1 Gbit/s, at best, over those of one that does the parts of both.

    With the sizes of chapter 18's page, for an adapter, and a step of so many parts.
    """
    work = training_flops(6_740_000_000, 8192, 40_000_000) / 4e14
    summed = Traffic(summed=160_000_000).sent(2)
    return soonest(parts * work, summed, 1e9 / 8, 0.5 / parts) / (2 * parts * work)


@functools.cache
def last_windows(batch: int, lr: float) -> tuple[float, ...]:
    """The last 32 of 160 windows of text, in three draws, as on chapter 18's page."""
    found = []
    for seed in range(3):
        settings = distributed.RunSettings(batch=batch, lr=lr, steps=160 // batch, seed=seed)
        _, one = distributed.train(settings, torch.device("cpu"))
        found.append(float(np.mean(one["losses"][-32 // batch :])))
    return tuple(found)


def accelerate_takes(setting: str, line: str) -> str:
    """What `accelerate launch` makes of a setting, from a file with this line for FSDP."""
    pytest.importorskip("accelerate")
    from accelerate.commands import launch

    first = "distributed_type: FSDP\nnum_machines: 2\nnum_processes: 16\nrdzv_backend: c10d\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(f"{first}mixed_precision: bf16\nfsdp_config:\n  {line}\n")
        arguments = ["--config_file", str(path), "train.py"]
        given = launch.launch_command_parser().parse_args(arguments)
        return str(getattr(launch._validate_launch_command(given)[0], setting))


CONCLUSIONS += [
    Conclusion(
        "18_many_gpus",
        "What is handed over is what was predicted, to the byte",
        ("traffic",),
        lambda run: all(
            q.measured == q.predicted
            for q in run.quantities
            if q.what in ("summed", "gathered", "scattered")
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "the diamonds lie where the vertical lines are",
        ("traffic",),
        lambda run: all(0.98 < one < 1.05 for arm in ARMS for one in sent(run, arm.name)),
    ),
    Conclusion(
        "18_many_gpus",
        "With DDP an adapter of rank 16 sends a seventh of what everything sends",
        ("traffic",),
        lambda run: (
            6.5
            < exchanged(run, "DDP, everything")["summed"]
            / exchanged(run, "DDP, LoRA r=16")["summed"]
            < 7.5
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "the adapter still sends",
        ("traffic",),
        lambda run: (
            2 / 3
            < sent_in_a_ring(run, "FSDP, LoRA r=16") / sent_in_a_ring(run, "FSDP, everything")
            < 0.85
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "With FSDP gloo sent",
        ("traffic",),
        lambda run: (
            not sent(run, "FSDP, LoRA r=16")
            or 0.5
            < sent_bytes(run, "FSDP, LoRA r=16") / sent_bytes(run, "FSDP, everything")
            < 2 / 3
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "over this cable the second GPU makes the step slower",
        (),
        lambda: two_over_one(parts=1) > 1.3 and two_over_one(parts=4) < 1,
    ),
    Conclusion(
        "18_many_gpus",
        "nats higher in the three draws",
        (),
        lambda: all(
            same > small + 0.05 and twice > small + 0.15
            for small, same, twice in zip(
                last_windows(8, 0.016),
                last_windows(16, 0.016),
                last_windows(16, 0.032),
                strict=True,
            )
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "here Accelerate would run version 1 of FSDP, without an error",
        (),
        lambda: (
            accelerate_takes("fsdp_version", "fsdp_version: 2") == "2"
            and accelerate_takes("fsdp_version", "fsdp_versoin: 2") == "1"
        ),
    ),
    Conclusion(
        "18_many_gpus",
        "is read from the file and replaced by the default",
        (),
        lambda: accelerate_takes("rdzv_backend", "fsdp_version: 2") == "static",
    ),
    Conclusion(
        "18_many_gpus",
        "From two to eight processes what each sends grows as the ring's factor does",
        (),
        lambda: all(
            0.98 < one < 1.05
            for arm in ("DDP, LoRA r=16", "FSDP, LoRA r=16")
            for n in (2, 4, 8)
            for one in sent(load_recording("traffic", "laptop"), arm, n)
        ),
    ),
]


def on_limits(arm: str, field: str = "log_loss") -> float:
    """A mean over the tested draws of chapter 19's recording."""
    return limits_reading.mean(load_recording("limits", "laptop"), arm, field)


def facts_known(count: int, way: str) -> float:
    return on_limits(f"{count} facts, {way}", "accuracy")


def facts_stored(count: int, r: int) -> float:
    """Bits a number."""
    return stored(on_limits(f"{count} facts, r={r}"), count, 32) / (64 * r)


def taught(task: str, teacher: str, numbers: str) -> float:
    return on_limits(f"{task} by {teacher}, {numbers}", "accuracy")


def limits_gap(a: str, b: str, field: str = "log_loss") -> tuple[float, float, float]:
    """a − b in log loss: mean, low, high."""
    return limits_reading.behind(load_recording("limits", "laptop"), a, b, field)


def alarms(kind: str, longer: bool = False, what: str | None = None) -> float:
    """The share of a kind of adapters at which chapter 19's detector raises an alarm.

    With ``longer`` it has seen clean ones that were trained for longer, too; with ``what`` it sees
    only that, such as "four norms".
    """
    run = load_recording("limits", "laptop")

    def seen(name: str) -> limits_reading.Noted:
        one = limits_reading.noted(run, name)
        return one if what is None else limits_reading.narrowed(one, what)

    clean, poisoned, asked = seen("clean"), seen("poisoned"), seen(kind)
    also = [seen("clean, longer")] if longer else []
    odds = limits_reading.left_out(clean, poisoned, [asked], also)
    return float((odds[kind] > 0).mean())


def always_the_same(task: str) -> float:
    """What the best answer gets that is given to every picture of a task of chapter 19."""
    answers = TASKS[task]("test", 1000, 1)[1]
    return float(torch.bincount(answers).max()) / 1000


def two_commonest(draw: int) -> float:
    """The share of 32 facts that have one of their two commonest answers."""
    answers = table(32, 32, draw)[1]
    return float(torch.bincount(answers).sort(descending=True).values[:2].sum()) / 32


def ring_spectrum(tokens: int) -> tuple[int, float]:
    """The rank of a ring's exact change of the head, and its first piece's share of the squares."""
    change = relabelling.moved_rows(
        relabelling.coder().head.weight.detach(), relabelling.ring(tokens)
    )
    values = torch.linalg.svdvals(change)
    return int((values > 1e-4 * values[0]).sum()), float(values[0] ** 2 / (values**2).sum())


def ring_cut(tokens: int, r: int) -> float:
    """The loss of the exact change of a ring, cut to a rank and not trained."""
    new, base = relabelling.ring(tokens), relabelling.coder()
    of = LIMITS["laptop"].relabelling
    return relabelling.judge(relabelling.cut_to(base, new, r), of, new).log_loss


def trigger_works(kind: str) -> float:
    return float(limits_reading.noted(load_recording("limits", "laptop"), kind).called.mean())


CONCLUSIONS += [
    Conclusion(
        "19_limits",
        "The limit lies between, where",
        (),
        lambda: (
            facts_known(32, "r=2") > 0.98
            and facts_known(128, "r=8") > 0.98
            and facts_known(32, "r=1") < 0.4
            and facts_known(128, "r=4") < 0.9
            and facts_known(512, "whole") < 0.5
        ),
    ),
    Conclusion(
        "19_limits",
        "the facts spoil each other",
        (),
        lambda: facts_stored(128, 4) > 1.5 * facts_stored(512, 4),
    ),
    Conclusion(
        "19_limits",
        "That failure is not LoRA's",
        (),
        lambda: 0 < facts_known(512, "whole") - facts_known(512, "r=16") < 0.1,
    ),
    Conclusion(
        "19_limits",
        "The report is confirmed at this size: the spectra do tell",
        (),
        lambda: alarms("poisoned") > 0.9 and alarms("clean") < 0.1,
    ),
    Conclusion(
        "19_limits",
        "And a harmless dot, beside right answers, raises an alarm at",
        (),
        lambda: alarms("dotted") < 0.1,
    ),
    Conclusion(
        "19_limits",
        "What it had found is that poisoned adapters have *moved further*",
        (),
        lambda: alarms("clean, longer") > 0.9,
    ),
    Conclusion(
        "19_limits",
        "by these twenty of each, the spectra hold more than the size",
        (),
        lambda: (
            alarms("poisoned", longer=True) > 0.7
            and alarms("clean, longer", longer=True) < 0.2
            and alarms("poisoned", True, "four norms") < alarms("poisoned", longer=True) - 0.2
            and alarms("clean, longer", True, "four norms") > 0.15
        ),
    ),
    Conclusion(
        "19_limits",
        "just as the twenty numbers do",
        (),
        lambda: all(
            abs(alarms(kind, what="four norms") - alarms(kind)) < 0.06
            for kind in ("clean", "poisoned", "clean, longer")
        ),
    ),
    Conclusion(
        "19_limits",
        "it is as good a detector, for whoever can run the adapter",
        (),
        lambda: (
            alarms("poisoned", what="right answers") > 0.8
            and max(alarms(k, what="right answers") for k in ("clean", "clean, longer")) < 0.1
        ),
    ),
    Conclusion(
        "19_limits",
        "Counting right answers still finds",
        (),
        lambda: alarms("in disguise", what="right answers") > 0.5,
    ),
    Conclusion(
        "19_limits",
        "more than before any disguise, since it was trained on",
        (),
        lambda: (
            trigger_works("in disguise") > trigger_works("poisoned")
            and alarms("in disguise") == alarms("disguised") < 0.1
            and trigger_works("disguised") < 0.5 * trigger_works("poisoned")
        ),
    ),
    Conclusion(
        "19_limits",
        "A handful moves a choice, a hundred numbers make most of it",
        (),
        lambda: all(
            taught("pick", teacher, "13 numbers") > on_limits("pick, untaught", "accuracy") + 0.15
            and taught("pick", teacher, "128 numbers") > 0.85 * taught("pick", teacher, "LoRA")
            for teacher in ("reward", "answers")
        ),
    ),
    Conclusion(
        "19_limits",
        "the *teacher makes little difference*",
        (),
        lambda: all(
            abs(taught("pick", "reward", n) - taught("pick", "answers", n)) < 0.035
            for n in ("13 numbers", "128 numbers", "LoRA")
        ),
    ),
    Conclusion(
        "19_limits",
        "with 128, where answers are ahead",
        (),
        lambda: (
            limits_gap("pick by reward, 128 numbers", "pick by answers, 128 numbers", "accuracy")[2]
            < 0
        ),
    ),
    Conclusion(
        "19_limits",
        "Thirteen numbers stay below that by either teacher",
        (),
        lambda: all(
            taught("table", teacher, "13 numbers") < always_the_same("table")
            and taught("table", teacher, "128 numbers") < always_the_same("table") + 0.07
            and taught("pick", teacher, "13 numbers") > always_the_same("pick") + 0.2
            for teacher in ("reward", "answers")
        ),
    ),
    Conclusion(
        "19_limits",
        "Here the teacher matters",
        (),
        lambda: taught("table", "answers", "LoRA") > taught("table", "reward", "LoRA") + 0.1,
    ),
    Conclusion(
        "19_limits",
        "thirteen random directions leave more than half of the way to go",
        (),
        lambda: all(
            taught("pick", teacher, "LoRA") - taught("pick", teacher, "13 numbers")
            > taught("pick", teacher, "13 numbers") - on_limits("pick, untaught", "accuracy")
            for teacher in ("reward", "answers")
        ),
    ),
    Conclusion(
        "19_limits",
        "But the distance between LoRA and full fine-tuning was not seen to grow",
        (),
        lambda: all(
            limits_gap(f"batch 16, r={r}", "batch 16, full")[0] > 0.04
            and limits_gap(f"batch 256, r={r}", "batch 256, full")[0]
            < limits_gap(f"batch 16, r={r}", "batch 16, full")[0]
            for r in (4, 48)
        ),
    ),
    Conclusion(
        "19_limits",
        "three draws do not tell whether that distance shrinks, stays or grows",
        (),
        lambda: (
            limits_gap("batch 256, r=4", "batch 256, full")[1]
            < 0
            < limits_gap("batch 16, r=4", "batch 16, full")[2]
            < limits_gap("batch 256, r=4", "batch 256, full")[2]
        ),
    ),
    Conclusion(
        "19_limits",
        "The higher rank is nearer in the mean at every size",
        (),
        lambda: all(
            on_limits(f"batch {size}, r=48") < on_limits(f"batch {size}, r=4") - 0.03
            for size in (16, 64, 256)
        ),
    ),
    Conclusion(
        "19_limits",
        "Each step in rank brings something",
        (),
        lambda: (
            limits_gap("16 tokens, r=4", "16 tokens, r=1")[2] < 0
            and limits_gap("16 tokens, r=16", "16 tokens, r=4")[2] < 0
            and on_limits("16 tokens, whole") < on_limits("16 tokens, r=16") - 0.05
        ),
    ),
    Conclusion(
        "19_limits",
        "Its spectrum is long and not flat",
        (),
        lambda: all(
            rank == needed and share > 2 / rank
            for needed, (rank, share) in ((15, ring_spectrum(16)), (128, ring_spectrum(1024)))
        ),
    ),
    Conclusion(
        "19_limits",
        "Nor is the grey line a floor",
        (),
        lambda: (
            on_limits("16 tokens, r=1") < ring_cut(16, 1) - 0.3
            and on_limits("1024 tokens, r=16") < ring_cut(1024, 16) - 0.2
        ),
    ),
    Conclusion(
        "19_limits",
        "rank 1 knows exactly the facts that have the two commonest",
        (),
        lambda: all(
            abs(row.accuracy - two_commonest(row.seed)) < 1e-6
            for row in limits_reading.finals(load_recording("limits", "laptop"), "32 facts, r=1")
        ),
    ),
    Conclusion(
        "19_limits",
        "With all tokens in the ring training whole fails as well",
        (),
        lambda: (
            on_limits("1024 tokens, whole") > 4.5
            and abs(limits_gap("1024 tokens, r=16", "1024 tokens, whole")[0]) < 0.3
        ),
    ),
]


FAMILY = family.PROFILES["laptop"]
RELATIVES = [name for name in FAMILY.methods if name not in ("LoRA", "full", "head only")]
AT_THE_END = {"OLoRA", "serial adapters", "BitFit"}
TOKENS = FAMILY.prose.labels


def of_family() -> Recording:
    found = load_recording("family", "laptop")
    assert found is not None
    return found


def best_of(method: str) -> float:
    return best_rate(of_family().rows, method, FAMILY.labels)


def scored(method: str, at: str = "own") -> float:
    """Right answers, in points."""
    return 100 * family_reading.standing(of_family(), method, at).mean


def ahead_of_lora(method: str, at: str = "own") -> tuple[float, float, float]:
    """Points, over the draws: mean, low, high."""
    p = paired(of_family(), *(family_reading.arm_at(name, at) for name in (method, "LoRA")))
    return 100 * p.mean, 100 * p.low, 100 * p.high


def by_sheets(method: str) -> Paired:
    return paired_by_sheet(of_family(), method, "LoRA")


def ladder_of(method: str) -> list[float]:
    """The validation loss at each rate that was tried, from the lowest on."""
    tried = by_rate(of_family().rows, method, FAMILY.labels)
    return [mean_loss(tried[rate]) for rate in sorted(tried)]


def by_alpha(eps: float, what: str) -> list[float]:
    rows = of_family().rows
    arms = [alpha_arm(what, k, eps) for k in FAMILY.factors]
    return [mean_loss(next(iter(by_rate(rows, arm).values()))) for arm in arms]


def at_batch(method: str, size: int) -> str:
    return method if size == FAMILY.batch_size else f"{method}, batch {size}"


def lead_on_prose(method: str, at: str) -> float:
    """How far a method is ahead of LoRA, nats a token."""
    means = [
        family_reading.standing(of_family(), name, at, "log_loss", TOKENS).mean
        for name in ("LoRA", method)
    ]
    return means[0] - means[1]


def fine_lead(method: str, times: int = 1) -> tuple[float, float, float]:
    """Nats a token ahead of LoRA on the fine ladder: mean, low, high."""
    p = paired(of_family(), *(family.finer(m, times) for m in ("LoRA", method)), "log_loss", TOKENS)
    return p.mean, p.low, p.high


def level_with_lora() -> list[str]:
    return [m for m in RELATIVES if not paired(of_family(), m, "LoRA").detectable]


CONCLUSIONS += [
    Conclusion(
        "16_family",
        "PiSSA and OLoRA, whose steps are longer, want half of LoRA's rate, but rsLoRA does not",
        (),
        lambda: (
            best_of("PiSSA") == best_of("OLoRA") == best_of("LoRA") / 2
            and best_of("rsLoRA") == best_of("LoRA") == best_of("gradient start") / 2
        ),
    ),
    Conclusion(
        "16_family",
        "Four rows end in a cliff",
        (),
        lambda: sum(ladder_of(method)[-1] > 2.5 for method in FAMILY.methods) == 4,
    ),
    Conclusion(
        "16_family",
        "LoRA's own valley is flat",
        (),
        lambda: max(ladder_of("LoRA")) - min(ladder_of("LoRA")) < 0.03,
    ),
    Conclusion(
        "16_family",
        "One rate for both makes a table in which either wins",
        (),
        lambda: ahead_of_lora("PiSSA", "low")[1] > 0 > ahead_of_lora("PiSSA", "borrowed")[2],
    ),
    Conclusion(
        "16_family",
        "there, what guessing has, as its $B$ has sixteen times the rate",
        (),
        lambda: scored("LoRA+", "borrowed") < 13 and scored("LoRA+") > 80,
    ),
    Conclusion(
        "16_family",
        "Serial adapters, the gradient start and DoRA lose a little",
        (),
        lambda: all(
            -1.5 < scored(m) - scored(m, "borrowed") < 0
            for m in ("serial adapters", "gradient start", "DoRA")
        ),
    ),
    Conclusion(
        "16_family",
        "None of the eleven is ahead of tuned LoRA by an interval without zero",
        (),
        lambda: not any(ahead_of_lora(m)[1] > 0 or by_sheets(m).low > 0 for m in RELATIVES),
    ),
    Conclusion(
        "16_family",
        "Over the draws six are behind, and four of these over the six sheets",
        (),
        lambda: (
            {m for m in RELATIVES if ahead_of_lora(m)[2] < 0}
            == AT_THE_END | {"LoRA+", "LoRA-FA", "PiSSA"}
            and {m for m in RELATIVES if by_sheets(m).high < 0} == AT_THE_END | {"LoRA+"}
        ),
    ),
    Conclusion(
        "16_family",
        "at the next, level with LoRA",
        (),
        lambda: abs(scored("full", "second") - scored("LoRA")) < 0.5,
    ),
    Conclusion(
        "16_family",
        "OLoRA, serial adapters and BitFit lie beyond it",
        (),
        lambda: all(ahead_of_lora(m)[0] < -2.5 for m in AT_THE_END),
    ),
    Conclusion(
        "16_family",
        "closer together than two rungs of one method",
        (),
        lambda: (
            len(level_with_lora()) == 5
            and np.ptp([scored(m) for m in ("LoRA", *level_with_lora())])
            < np.sqrt(
                np.mean([(scored(m) - scored(m, "second")) ** 2 for m in (*RELATIVES, "full")])
            )
        ),
    ),
    Conclusion(
        "16_family",
        "The gradient start and PiSSA have such intervals, too",
        (),
        lambda: (
            {m for m in RELATIVES if family_reading.while_tuning(of_family(), m, "LoRA")[1] > 0}
            == {"VeRA", "gradient start", "PiSSA"}
        ),
    ),
    Conclusion(
        "16_family",
        "circles and crosses lie on each other for every factor",
        (),
        lambda: (
            np.allclose(by_alpha(1e-8, "α"), by_alpha(1e-8, "B's rate"), atol=1e-3)
            and by_alpha(1e-2, "α")[0] > by_alpha(1e-2, "B's rate")[0] + 0.03
        ),
    ),
    Conclusion(
        "16_family",
        "It is not: AdaLoRA goes from",
        (),
        lambda: paired(of_family(), "AdaLoRA, twice the steps", "LoRA, twice the steps").mean < 0,
    ),
    Conclusion(
        "16_family",
        "LoRA is first at each size, and PiSSA less than a point behind",
        (),
        lambda: all(
            -0.0105 < paired(of_family(), at_batch("PiSSA", n), at_batch("LoRA", n)).mean < 0
            and paired(of_family(), at_batch("full", n), at_batch("LoRA", n)).mean < 0
            for n in (8, 32, 128)
        ),
    ),
    Conclusion(
        "16_family",
        "more than training the matrices whole brings at its best",
        (),
        lambda: all(
            1 < lead_on_prose(m, "low") / lead_on_prose("the matrices", "own") < 1.3
            for m in ("rsLoRA", "PiSSA")
        ),
    ),
    Conclusion(
        "16_family",
        "by intervals without zero, over the draws and over the topics of the text",
        (),
        lambda: (
            {
                m
                for m in FAMILY.prose.methods[1:-1]
                if paired(of_family(), m, "LoRA", "log_loss", TOKENS).high < 0
                and family_reading.over_topics(of_family(), m, "LoRA", TOKENS)[2] < 0
            }
            == {"LoRA+", "rsLoRA", "PiSSA"}
        ),
    ),
    Conclusion(
        "16_family",
        "They do not vanish",
        (),
        lambda: (
            all(
                fine_lead(m)[1] > 0 for m in ("rsLoRA", "LoRA+", "PiSSA", "OLoRA", "gradient start")
            )
            and fine_lead("DoRA")[1] < 0
            and all(fine_lead(m)[0] < lead_on_prose(m, "own") for m in ("rsLoRA", "LoRA+"))
        ),
    ),
    Conclusion(
        "16_family",
        "After four times the training PiSSA is ahead",
        (),
        lambda: (
            fine_lead("PiSSA", 4)[1] > fine_lead("LoRA+", 4)[2] > fine_lead("LoRA+", 4)[1] > 0
            and abs(fine_lead("rsLoRA", 4)[1]) < 0.001
        ),
    ),
    Conclusion(
        "16_family",
        "by a tenth to a fifth of what training the matrices whole brings",
        (),
        lambda: all(
            0.09 < fine_lead(m)[0] / fine_lead("the matrices")[0] < 0.22
            for m in ("rsLoRA", "LoRA+", "PiSSA", "OLoRA", "gradient start")
        ),
    ),
]


def prose(notebook: str) -> str:
    """The markdown of a chapter as one line, so that a fragment may run over a break."""
    content = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown"]
    return re.sub(r"\s+", " ", "\n".join(cells))


def run_of_the_page(name: str) -> Recording:
    path = RUNS / f"{name}.cpu.json"
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing: `make book` must come before this test")
        pytest.skip("no run of this page: `make book` makes it")
    return read_recording(path)


def name_of(one: Conclusion) -> str:
    return f"{one.notebook[:2]}: {one.fragment[:50]}"


@pytest.mark.parametrize("one", CONCLUSIONS, ids=name_of)
def test_the_sentence_stands_on_the_page(one: Conclusion) -> None:
    assert one.fragment in prose(one.notebook)


@pytest.mark.parametrize("one", CONCLUSIONS, ids=name_of)
def test_the_run_says_the_same(one: Conclusion) -> None:
    assert one.holds(*(run_of_the_page(name) for name in one.runs))


def test_every_recording_is_sound() -> None:
    for path in (ROOT / "minilora" / "experiments" / "recorded").glob("*.json"):
        recording = read_recording(path)
        assert path.name == f"{recording.name}.{recording.profile}.json"
        if recording.name in ("rank", "rates", "placement"):
            assert summarise(recording)
