"""A handful of numbers, taught by rewards or by answers.

The base reads a digit, adds one of four numbers to it and says the last figure of the sum. A dot in
a corner tells it which; without a dot it draws one of the four. Task "pick" is to add always the
same without a dot: two bits. Task "table" is to answer pictures with a dot by a table that has no
rule: forty answers. Either task is taught by the right answers, or by drawing one answer and being
told whether it was right (REINFORCE).

Source: Williams 1992, Simple statistical gradient-following algorithms for connectionist
reinforcement learning.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minilora import LoRAConfig, add_lora, lora_parameters
from minilora.experiments.limits.pictures import TASKS, undecided
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine, rows_of
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.pretrained import pretrained_digits
from minilora.lab.training import batches, evaluate, fit, flush_denormals, learning_rate, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig
from minilora.variants.tiny_lora import add_tiny_lora

TEACHERS = ("reward", "answers")


@dataclass(frozen=True)
class Handful:
    """The size of the part.

    Attributes:
        model, pictures, pretraining: The reader, as `pretrained_digits` makes it.
        undecided: Steps in which it becomes undecided.
        r: The rank that the shared numbers work in, and ``alpha`` of the plain adapter.
        numbers: How many are trained; 0 is a plain adapter of rank r.
        lr: The middles of the rates, by how many numbers are trained.
        scored: How many pictures a run is judged by.
    """

    model: TransformerConfig
    pictures: int
    pretraining: int
    undecided: int
    r: int
    alpha: float
    numbers: tuple[int, ...]
    lr: dict[int, float]
    steps: int
    batch_size: int
    scored: int
    tuning: Tuning


@dataclass(frozen=True)
class Lesson:
    """One run: what is taught, how, and how many numbers learn it."""

    task: str
    teacher: str
    numbers: int
    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        how_many = f"{self.numbers} numbers" if self.numbers else "LoRA"
        return f"{self.task} by {self.teacher}, {how_many}"

    def at(self, lr: float, seed: int) -> Lesson:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


def reader(of: Handful) -> TransformerClassifier:
    """A transformer that reads one printed digit."""
    return pretrained_digits(
        config=of.model, pictures=of.pictures, steps=of.pretraining, progress=False
    )


@lru_cache(maxsize=2)
def _undecided(
    config: TransformerConfig, printed: int, pretraining: int, steps: int
) -> TransformerClassifier:
    model = pretrained_digits(config=config, pictures=printed, steps=pretraining, progress=False)
    x, y = undecided(64 * steps, seed=0)
    fit(model, x, y, steps=steps, lr=3e-3, batch_size=64, progress=False)
    return model


def base_of(of: Handful) -> TransformerClassifier:
    """The reader, trained on until it follows the dot, and without one has no preference.

    It is shared: copy it before you change it.
    """
    return _undecided(of.model, of.pictures, of.pretraining, of.undecided)


def loss_of(scores: Tensor, y: Tensor, teacher: str, generator: torch.Generator) -> Tensor:
    """What is made small in a step: scores (N, classes), right answers (N,) → one number.

    By ``answers`` it is the cross-entropy. By ``reward`` an answer is drawn for each picture; its
    log-probability is multiplied by the reward, 1 or 0, less the mean reward of the batch.
    """
    if teacher == "answers":
        return F.cross_entropy(scores, y)
    log_chances = scores.log_softmax(dim=1)
    drawn = torch.multinomial(log_chances.detach().exp(), 1, generator=generator)[:, 0]
    reward = (drawn == y).to(scores.dtype)
    said = log_chances.gather(1, drawn[:, None])[:, 0]
    return -((reward - reward.mean()) * said).mean()


def prepare(lesson: Lesson, base: TransformerClassifier, of: Handful) -> TransformerClassifier:
    """A copy of the base with what the lesson trains on it. The seed draws it."""
    model, targets = copy.deepcopy(base), list(BLOCK_LINEARS)
    if lesson.numbers:
        config = LoRAConfig(r=of.r, targets=targets)
        return add_tiny_lora(model, config, lesson.numbers, seed=lesson.seed)
    set_seed(lesson.seed)
    return add_lora(model, LoRAConfig(r=of.r, alpha=of.alpha, targets=targets))


@flush_denormals()
def teach(
    lesson: Lesson, base: TransformerClassifier, of: Handful
) -> tuple[TransformerClassifier, list[float]]:
    """The taught model, and the share of right answers that it would have drawn in every step."""
    model = prepare(lesson, base, of)
    x, y = TASKS[lesson.task]("train", of.steps * of.batch_size, lesson.seed)
    optimizer = torch.optim.Adam(lora_parameters(model), lr=lesson.lr)
    generator = torch.Generator().manual_seed(lesson.seed)
    shares = []
    for step, rows in enumerate(batches(len(y), of.batch_size, of.steps, lesson.seed)):
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, of.steps, lesson.lr, "cosine", of.steps // 10
        )
        scores = model(x[rows])
        optimizer.zero_grad()
        loss_of(scores, y[rows], lesson.teacher, generator).backward()
        optimizer.step()
        chances = scores.detach().softmax(dim=1)
        shares.append(float(chances[torch.arange(len(rows)), y[rows]].mean()))
    return model.eval(), shares


def run_handful(of: Handful, machine: Machine) -> list[Row]:
    """Tune every arm and test it; the rows, and that of the base for each task."""
    base = base_of(of)
    lessons = [
        Lesson(task, teacher, numbers, of.lr[numbers])
        for task in TASKS
        for teacher in TEACHERS
        for numbers in of.numbers
    ]
    by_name = {one.name: one for one in lessons}

    def train(runs: Runs) -> list[Row]:
        todo = [by_name[name].at(lr, seed) for name, pairs in runs.items() for lr, seed in pairs]
        return _rows(todo, base, of, machine)

    rows = tune(
        train, {name: one.lr for name, one in by_name.items()}, dict.fromkeys(by_name, of.tuning)
    )
    best = {name: [(best_rate(rows, name), seed) for seed in of.tuning.tested] for name in by_name}
    untaught = []
    for task in TASKS:
        found = evaluate(base, *TASKS[task]("test", of.scored, 1))
        row = Row("final", f"{task}, untaught", "base", of.steps * of.batch_size, 0)
        untaught.append(replace(row, accuracy=found.accuracy, log_loss=found.log_loss))
    return rows + train(best) + untaught


def _rows(
    todo: Sequence[Lesson], base: TransformerClassifier, of: Handful, machine: Machine
) -> list[Row]:
    work = partial(_one, base=base, of=of)
    found = rows_of(todo, work, "handful", {"of": repr(of)}, machine)
    return [row for rows in found for row in rows]


def _one(lesson: Lesson, *, base: TransformerClassifier, of: Handful) -> list[Row]:
    started = time.perf_counter()
    stage = "final" if lesson.seed in of.tuning.tested else "tune"
    model, shares = teach(lesson, base, of)
    which = "test" if stage == "final" else "validation"
    found = evaluate(model, *TASKS[lesson.task](which, of.scored, 1))
    row = Row(
        stage=stage,
        arm=lesson.name,
        kind="lora",
        labels=of.steps * of.batch_size,
        seed=lesson.seed,
        r=of.r,
        lr=lesson.lr,
        parameters=sum(p.numel() for p in lora_parameters(model)),
        seconds=time.perf_counter() - started,
    )
    if not np.isfinite([found.log_loss, *shares]).all():
        return [replace(row, diverged=True)]
    # Where a reward teaches there is no loss to go by, so both are told in one measure.
    last = -math.log(max(1e-12, float(np.mean(shares[-10:]))))
    return [replace(row, accuracy=found.accuracy, log_loss=found.log_loss, train_loss=last)]
