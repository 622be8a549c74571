"""One run: a method on a base, trained at one rate with one draw, and its rows."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora
from minilora.experiments.family.methods import Ready, Sizes, kind_of, prepare, trained_numbers
from minilora.experiments.recording import Row
from minilora.experiments.tasks import Task
from minilora.lab.training import (
    Diverged,
    Evaluation,
    batches,
    evaluate,
    flush_denormals,
    learning_rate,
)


@dataclass(frozen=True)
class MethodRun:
    """A run, and the arm that it belongs to.

    ``method`` is a key of ``METHODS``. ``alpha`` and ``ratio`` take the places of those that the
    task has for all, and ``patience`` multiplies its steps. ``eps`` is Adam's.
    """

    arm: str
    method: str
    lr: float
    seed: int = 0
    alpha: float | None = None
    ratio: float | None = None
    eps: float = 1e-8
    patience: int = 1

    def at(self, lr: float, seed: int) -> MethodRun:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


@dataclass(frozen=True)
class Bench:
    """What all runs of a comparison share. ``name`` is the setting of their rows."""

    name: str
    base: nn.Module
    task: Task
    sizes: Sizes
    steps: int
    batch_size: int


@flush_denormals()
def train(
    ready: Ready,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int = 0,
    eps: float = 1e-8,
) -> list[float]:
    """Train in place, with AdamW and the schedule of `minilora.lab.training.fit`; the losses.

    Beyond `fit` it knows groups with rates of their own, a penalty, and a call after each step.

    Raises:
        Diverged: The loss is no longer a number.
    """
    device = next(ready.model.parameters()).device
    x, y = x.to(device), y.to(device)
    groups = [dict(group) for group in ready.groups]
    multiples = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=eps, fused=True)
    losses: list[float] = []
    ready.model.train()
    for step, rows in enumerate(batches(len(y), batch_size, steps, seed)):
        now = learning_rate(step, steps, lr, "cosine", steps // 10)
        for group, multiple in zip(optimizer.param_groups, multiples, strict=True):
            group["lr"] = now * multiple
        loss = F.cross_entropy(ready.model(x[rows]), y[rows])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise Diverged(f"the loss is {losses[-1]} at step {step + 1} of {steps}")
        optimizer.zero_grad(set_to_none=True)
        (loss if ready.penalty is None else loss + ready.penalty()).backward()
        optimizer.step()
        if ready.after is not None:
            ready.after(step)
    if not all(p.isfinite().all() for group in groups for p in group["params"]):
        raise Diverged("the last step has left numbers that are not finite")
    ready.model.eval()
    return losses


def stepper(ready: Ready, x: Tensor, y: Tensor, lr: float = 1e-4) -> Callable[[], None]:
    """One training step on these examples, to be called again and again: what a step costs."""
    groups = [group | {"lr": lr * group["lr"]} for group in ready.groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    steps = count()

    def step() -> None:
        loss = F.cross_entropy(ready.model(x), y)
        optimizer.zero_grad(set_to_none=True)
        (loss if ready.penalty is None else loss + ready.penalty()).backward()
        optimizer.step()
        if ready.after is not None:
            ready.after(next(steps))

    return step


def one_run(
    run: MethodRun, *, bench: Bench, stages: Sequence[str], device: str = "cpu"
) -> list[Row]:
    """Train one run and score it; its row of every stage."""
    started = time.perf_counter()
    sizes = replace(
        bench.sizes, alpha=run.alpha or bench.sizes.alpha, ratio=run.ratio or bench.sizes.ratio
    )
    steps = bench.steps * run.patience
    x, y = (part.to(device) for part in bench.task.labelled(run.seed))
    base = copy.deepcopy(bench.base).to(device)
    ready = prepare(run.method, base, sizes, (x, y), steps=steps, seed=run.seed)
    row = Row(
        stage="",
        arm=run.arm,
        kind=kind_of(run.method),
        labels=bench.task.labels,
        seed=run.seed,
        lr=run.lr,
        setting=bench.name,
        parameters=trained_numbers(ready),
    )
    losses: list[float] = []
    scores: dict[str, Evaluation] = {}
    how: dict[str, Any] = {"steps": steps, "batch_size": bench.batch_size}
    try:
        losses = train(ready, x, y, lr=run.lr, seed=run.seed, eps=run.eps, **how)
        with _as_plain(ready.model) as model:
            sets = bench.task.sets(stages)
            scores = {name: evaluate(model, *pair) for name, pair in sets.items()}
    except Diverged:
        pass
    if not scores or not np.isfinite([s.log_loss for s in scores.values()]).all():
        row, scores = replace(row, diverged=True), {}
    else:
        row = replace(row, train_loss=float(np.mean(losses[-10:])))
    row = replace(row, seconds=time.perf_counter() - started)
    return bench.task.rows(row, stages, scores)


def _as_plain(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """The model with its adapter merged, if it has one that can be: it is scored faster so."""
    return minilora.merged(model) if minilora.lora_layers(model) else nullcontext(model)
