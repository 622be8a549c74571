"""Training a model, and saying how good it is.

``fit`` is one plain loop for every model of the book. It counts steps, not passes over the data,
so that two runs that differ in the number of labels still cost the same.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Item = TypeVar("_Item")


class Diverged(RuntimeError):
    """The loss is no longer a finite number, so that there is nothing left to train."""


@dataclass
class History:
    """What happened in a run of :func:`fit`: ``loss[i]`` and ``lr[i]`` are those of step i.

    ``looks`` are evaluations on the way, where they were asked for.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    looks: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """How good a classifier is on ``n`` examples.

    ``log_loss`` is the mean of −log(probability given to the right class), in nats. Each mean comes
    with the standard error that n independent examples leave it with.
    """

    accuracy: float
    accuracy_se: float
    log_loss: float
    log_loss_se: float
    n: int


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Numbers too small for the normal float format count as zero inside, and as before outside.

    They slow some CPUs down twenty-fold, and zero does as well.
    """
    tiny = torch.finfo(torch.float32).tiny
    before = (torch.tensor(tiny) / 2).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before outside.

    The number of threads changes the order of sums, and so the last digits of every result; and
    models as small as this book's gain next to nothing from a second thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: int) -> float:
    """The learning rate of one step (counted from 0): a line up to the peak, then the schedule.

    ``"constant"`` stays at the peak; ``"cosine"`` falls from it to zero along half a cosine.
    """
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule must be 'constant' or 'cosine', but is {schedule!r}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2


def batches(n: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers for each step: shuffled passes over ``n`` examples, cut into equal batches.

    A pass ends where fewer than ``size`` rows are left. With n ≤ size each batch is everything.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, n)
    order, start = torch.randperm(n, generator=generator), 0
    for _ in range(steps):
        if start + size > n:
            order, start = torch.randperm(n, generator=generator), 0
        yield order[start : start + size]
        start += size


@flush_denormals()
def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    parameters: Iterable[nn.Parameter] | None = None,
    batch_size: int = 64,
    schedule: str = "cosine",
    warmup: int | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    look_at: tuple[Tensor, Tensor] | None = None,
    every: int = 1,
    progress: bool | None = None,
) -> History:
    """Train a classifier in place with AdamW on pictures ``x`` (N, C, H, W) and labels ``y`` (N,).

    ``parameters`` are what is trained; left out, everything that requires a gradient. ``lr`` is the
    peak learning rate, reached after ``warmup`` steps (a tenth of all, unless given). ``seed``
    settles the order of the examples, nothing else. The model ends on ``device`` (where it is
    already, unless given). ``look_at`` is another pair like ``x`` and ``y``, on which the model is
    evaluated after ``every`` so many steps. ``progress`` draws a bar; left out, it is drawn in a
    terminal or a notebook, and not where the environment variable ``CI`` is set. Raises
    :class:`Diverged` when the loss stops being finite.
    """
    if device is not None:  # first of all: a move may put new parameters in the old ones' places
        model.to(device)
    candidates = model.parameters() if parameters is None else parameters
    trained = [p for p in candidates if p.requires_grad]
    if not trained:
        raise ValueError("nothing to train: no parameter requires a gradient")
    device = trained[0].device
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    warmup = steps // 10 if warmup is None else warmup
    history, started = History(), time.perf_counter()
    losses: list[Tensor] = []
    model.train()
    order = batches(len(y), batch_size, steps, seed)
    for step, rows in enumerate(progress_bar(order, steps, progress)):
        now = learning_rate(step, steps, lr, schedule, warmup)
        for group in optimizer.param_groups:
            group["lr"] = now
        rows = rows.to(device)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        history.lr.append(now)
        # Reading the loss makes a GPU wait, so look only now and then.
        if (step % 20 == 19 or step == steps - 1) and not math.isfinite(losses[-1].item()):
            raise Diverged(
                f"the loss is {losses[-1].item()} at step {step + 1} of {steps} "
                f"with a learning rate of {lr:g}: try a third of it"
            )
        if look_at is not None and (step + 1) % every == 0:
            history.looks.append(evaluate(model, *look_at))
    model.eval()
    history.loss = torch.stack(losses).tolist() if losses else []
    history.seconds = time.perf_counter() - started
    return history


@torch.no_grad()
@flush_denormals()
def predict(model: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """The model's scores for pictures (N, C, H, W), on the CPU: (N, classes)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    scores = [model(part.to(device)).cpu() for part in x.split(batch_size)]
    model.train(was_training)
    return torch.cat(scores)


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> Evaluation:
    """Accuracy and log loss of a classifier on pictures ``x`` (N, C, H, W), labels ``y`` (N,)."""
    return score(predict(model, x).log_softmax(dim=1), y)


def score(log_probabilities: Tensor, y: Tensor) -> Evaluation:
    """Accuracy and log loss of given log-probabilities (N, classes) for labels ``y`` (N,)."""
    y = y.cpu()
    right = (log_probabilities.argmax(dim=1) == y).double()
    loss = F.nll_loss(log_probabilities.double(), y, reduction="none")
    n = len(y)
    se = max(n - 1, 1) ** 0.5  # of a mean, from the population's standard deviation
    return Evaluation(
        accuracy=right.mean().item(),
        accuracy_se=right.std(correction=0).item() / se,
        log_loss=loss.mean().item(),
        log_loss_se=loss.std(correction=0).item() / se,
        n=n,
    )


def progress_bar(items: Iterator[_Item], total: int, progress: bool | None) -> Iterable[_Item]:
    """The same items, with a progress bar around them where one is wanted and tqdm is there.

    With None it is drawn in a terminal or a notebook, and not where ``CI`` is set.
    """
    if progress is None:
        progress = not os.environ.get("CI") and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not progress:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    return tqdm(items, total=total, leave=False)
