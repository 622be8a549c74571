"""Two adapters in one, by several rules, each with its best setting, against training on both.

One adapter takes the small language model to prose, the other to the names of characters. Each rule
makes one adapter of the two. Its setting is chosen on validation documents by some draws (the order
of the text and the random start), and other draws are tested on other documents. Beside the rules
stand each adapter alone, and one that was trained on both texts for as many steps as one of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import minilora
from minilora import LoRAConfig
from minilora.experiments.mixing.rules import RULES, Rule, described, mixed
from minilora.experiments.mixing.texts import text_of
from minilora.experiments.recording import Recording, Row
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.language import GPT, LanguageModel, pretrained_gpt
from minilora.lab.sweep import Data
from minilora.lab.training import Diverged, Evaluation, evaluate, fit, set_seed
from minilora.lab.transformer import BLOCK_LINEARS

TASKS = ("prose", "names")
BOTH = "trained on both"


@dataclass(frozen=True)
class MixingProfile(Profile):
    """The size of a run.

    Attributes:
        r, alpha: Of each adapter; the one for both texts has twice the rank, as the sum has.
        rates: The middles of the rates that are tried, for "names" and ``BOTH``; and ``prose_lr``
            the rate for prose, which the language experiment has chosen for this rank.
        windows: How many windows of each text a model is judged by where it is not tested, and
            ``tested`` where it is.
    """

    r: int
    alpha: float
    steps: int
    batch_size: int
    prose_lr: float
    rates: dict[str, float]
    tuning: Tuning
    rules: tuple[Rule, ...]
    windows: int
    tested: int

    @property
    def labels(self) -> int:
        """Tokens in a step."""
        return self.batch_size * GPT.context


LAPTOP = MixingProfile(
    name="laptop",
    r=16,
    alpha=8.0,
    steps=150,
    batch_size=4,
    prose_lr=1.6e-2,
    rates={"names": 1.6e-2, BOTH: 1.6e-2},
    tuning=Tuning(1, 1, (100, 101, 102), (0, 1, 2, 3, 4), glance=1, ladder="doubles"),
    rules=RULES,
    windows=32,
    tested=96,
)

PROFILES = {
    "laptop": LAPTOP,
    "smoke": replace(
        LAPTOP,
        name="smoke",
        r=1,
        steps=3,
        batch_size=1,
        tuning=Tuning(1, 1, (100,), (0, 1), ladder="doubles"),
        rules=tuple(replace(rule, strengths=rule.strengths[:1]) for rule in RULES),
        windows=2,
        tested=3,
    ),
}


@dataclass(frozen=True)
class MixingRun:
    """One adapter to be trained: on a task of ``TASKS``, or on ``BOTH``."""

    task: str
    lr: float
    seed: int
    stage: str = "tune"


@dataclass(frozen=True)
class Draw:
    """A pair of adapters to be made one in every way; ``chosen`` has one setting for each rule."""

    seed: int
    rates: tuple[tuple[str, float], ...]
    chosen: tuple[tuple[str, tuple[float, float]], ...] = ()


def windows(task: str, which: str, count: int | None = None) -> Data:
    """Windows of a task's text, evenly spread where not all are asked for."""
    x, y = text_of(task, which).windows()
    rows = torch.linspace(0, len(y) - 1, min(count or len(y), len(y))).long()
    return x[rows], y[rows]


def training_data(task: str) -> Data:
    """What an adapter learns from: as many windows of either text for ``BOTH``."""
    if task != BOTH:
        return windows(task, "train")
    parts = [windows(one, "train") for one in TASKS]
    least = min(len(y) for _, y in parts)
    return (
        torch.cat([x[:least] for x, _ in parts]),
        torch.cat([y[:least] for _, y in parts]),
    )


def train(
    task: str, lr: float, seed: int, profile: MixingProfile = LAPTOP, r: int | None = None
) -> LanguageModel:
    """A copy of the base with an adapter that was trained on a task, or on ``BOTH``.

    Adapters for different tasks start at different A, as those of two people do.

    Raises:
        Diverged: The loss is no longer a number.
    """
    model = pretrained_gpt()
    set_seed(seed + 1000 * (task == "names"))
    r = r or profile.r * (2 if task == BOTH else 1)
    config = LoRAConfig(r=r, alpha=profile.alpha, targets=list(BLOCK_LINEARS))
    minilora.add_lora(model, config)
    fit(
        model,
        *training_data(task),
        steps=profile.steps,
        lr=lr,
        batch_size=profile.batch_size,
        seed=seed,
        progress=False,
    )
    return model


def judge(model: LanguageModel, task: str, which: str, count: int) -> Evaluation:
    """How well a model knows a text; its log loss is in nats a byte, and not a token."""
    of = text_of(task, which)
    found = evaluate(model, *windows(task, which, count))
    return replace(found, log_loss=found.log_loss * of.tokens / of.bytes)


def bits(model: LanguageModel, which: str = "test", count: int = LAPTOP.tested) -> dict[str, float]:
    """{task: bits a byte}, judged by so many windows of each text."""
    return {task: judge(model, task, which, count).log_loss / np.log(2) for task in TASKS}


def _judged(
    row: Row, model: LanguageModel, tasks: Sequence[str], profile: MixingProfile
) -> list[Row]:
    """The row with the means over texts, and on test data beside it one for each text."""
    final = row.stage == "final"
    which, count = ("test", profile.tested) if final else ("validation", profile.windows)
    found = {task: judge(model, task, which, count) for task in tasks}
    rows = [("", row.kind, list(found.values()))]
    if final:
        rows += [(f" on {task}", "aside", [one]) for task, one in found.items()]
    return [
        replace(
            row,
            arm=row.arm + ending,
            kind=kind,
            accuracy=float(np.mean([one.accuracy for one in of])),
            log_loss=float(np.mean([one.log_loss for one in of])),
        )
        for ending, kind, of in rows
    ]


def _trained(run: MixingRun, *, profile: MixingProfile) -> list[Row]:
    """Train one adapter, and judge it on its own text, or on both."""
    r = profile.r * (2 if run.task == BOTH else 1)
    row = Row(run.stage, run.task, "lora", profile.labels, run.seed, r, run.lr)
    try:
        model = train(run.task, run.lr, run.seed, profile)
    except Diverged:
        return [replace(row, diverged=True)]
    row = replace(row, parameters=minilora.count_parameters(model, trainable_only=True))
    tasks = TASKS if run.task == BOTH else (run.task,)
    return _judged(row, model, tasks, profile)


def _mixed(draw: Draw, *, profile: MixingProfile) -> list[Row]:
    """Train two adapters, and judge what every rule makes of them."""
    base, found = pretrained_gpt(), []
    stage = "final" if draw.chosen else "tune"
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for task, lr in draw.rates:
            model = train(task, lr, draw.seed, profile)
            paths.append(Path(folder) / task)
            minilora.save(model, paths[-1])
            if draw.chosen:
                alone = Row(stage, f"{task} alone", "lora", profile.labels, draw.seed, profile.r)
                found += _judged(alone, model, TASKS, profile)
        for rule in profile.rules:
            settings = [dict(draw.chosen)[rule.name]] if draw.chosen else rule.settings
            for setting in settings:
                model = mixed(base, paths, Path(folder) / "both", rule, setting, draw.seed)
                words = described(*setting)
                row = Row(stage, rule.name, "lora", profile.labels, draw.seed, setting=words)
                found += _judged(row, model, TASKS, profile)
    return found


def chosen(rows: Sequence[Row], rule: Rule) -> tuple[float, float]:
    """The setting with the lowest mean loss of both texts on validation data."""
    means = {
        setting: np.mean(
            [
                row.log_loss
                for row in rows
                if (row.stage, row.arm, row.setting) == ("tune", rule.name, described(*setting))
            ]
        )
        for setting in rule.settings
    }
    return min(means, key=lambda setting: means[setting])


def _part(profile: MixingProfile, part: str, machine: Machine) -> list[Row]:
    work = partial(_trained, profile=profile)

    def tuned(runs: Runs) -> list[Row]:
        asked = [MixingRun(task, lr, seed) for task, pairs in runs.items() for lr, seed in pairs]
        return [row for rows in rows_of(asked, work, "rates", {}, machine) for row in rows]

    rows = tune(tuned, profile.rates, dict.fromkeys(profile.rates, profile.tuning))
    best = {task: best_rate(rows, task) for task in profile.rates} | {"prose": profile.prose_lr}
    pair = tuple((task, best[task]) for task in TASKS)
    draws = [Draw(seed, pair) for seed in profile.tuning.seeds]
    of_draw = partial(_mixed, profile=profile)
    rows += [row for found in rows_of(draws, of_draw, "tuning", {}, machine) for row in found]
    settings = tuple((rule.name, chosen(rows, rule)) for rule in profile.rules)
    tests = [Draw(seed, pair, settings) for seed in profile.tuning.tested]
    rows += [row for found in rows_of(tests, of_draw, "tests", {}, machine) for row in found]
    both = [MixingRun(BOTH, best[BOTH], seed, "final") for seed in profile.tuning.tested]
    rows += [row for found in rows_of(both, work, "both", {}, machine) for row in found]
    untouched = Row("final", "the base", "base", profile.labels, 0)
    return rows + _judged(untouched, pretrained_gpt(), TASKS, profile)


EXPERIMENT = Experiment("mixing", PROFILES, ("rules",), _part, on_card=())
run = EXPERIMENT.run


def best_settings(recording: Recording) -> dict[str, tuple[float, float]]:
    """{rule: the setting that the recording has chosen for it}."""
    return {rule.name: chosen(recording.rows, rule) for rule in RULES}


def rates(recording: Recording) -> dict[str, float]:
    """{task: the rate of its adapter}."""
    prose = float(recording.settings["prose_lr"])
    return {"prose": prose, "names": best_rate(recording.rows, "names")}
