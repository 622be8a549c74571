"""Tokens that exchange their numbers: a shift whose exact answer is known.

Some tokens of a language model move on by one place in a ring, in what it reads and in what it is
to say. The exact answer moves their rows of the embedding and of the head likewise, and nothing
else: the loss is then that of the base on the old text. A ring of n tokens asks for a change of
rank n − 1 in both matrices.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from minilora import LoRAConfig, add_lora
from minilora.experiments.recording import Row
from minilora.experiments.running import Machine, rows_of
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.language import LanguageModel, pretrained_gpt, text
from minilora.lab.sweep import Data
from minilora.lab.training import Diverged, Evaluation, evaluate, fit, set_seed

#: What the arms train: an adapter on both, or both matrices whole.
PLACES = ("embedding", "head")


@dataclass(frozen=True)
class Relabelling:
    """The size of the part: rings of so many tokens, and the ranks that are tried on each."""

    ranks: dict[int, tuple[int, ...]]
    steps: int
    batch_size: int
    alpha: float
    windows: int
    lr: dict[str, float]
    tuning: Tuning


@dataclass(frozen=True)
class RingArm:
    """One way to train on one ring; without ``r``, the two matrices whole."""

    tokens: int
    r: int | None
    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        way = "whole" if self.r is None else f"r={self.r}"
        return f"{self.tokens} tokens, {way}"

    def at(self, lr: float, seed: int) -> RingArm:
        """The same arm at another rate, with another seed."""
        return replace(self, lr=lr, seed=seed)


def ring(tokens: int, vocab: int = 1024, seed: int = 0) -> Tensor:
    """The new number of every token (vocab,): the most frequent ones move on in a ring."""
    counts = torch.bincount(torch.cat(text("code").documents), minlength=vocab)
    members = counts.topk(tokens).indices
    members = members[torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))]
    new = torch.arange(vocab)
    new[members] = members.roll(1)
    return new


def moved_rows(weight: Tensor, new: Tensor) -> Tensor:
    """The exact change of a matrix with a row for each token: (vocab, width) → the same."""
    answer = torch.empty_like(weight)
    answer[new] = weight
    return answer - weight


@torch.no_grad()
def cut_to(model: LanguageModel, new: Tensor, r: int) -> LanguageModel:
    """A copy of the model with the best change of rank r to its two matrices: not trained."""
    changed = copy.deepcopy(model)
    for name in PLACES:
        weight = changed.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        U, S, Vt = torch.linalg.svd(moved_rows(weight, new), full_matrices=False)
        weight += (U[:, :r] * S[:r]) @ Vt[:r]
    return changed


def prepare(arm: RingArm, base: LanguageModel, alpha: float) -> LanguageModel:
    """A copy of the base in which nothing requires a gradient but what the arm trains."""
    model = copy.deepcopy(base)
    if arm.r is not None:
        set_seed(arm.seed)
        return add_lora(model, LoRAConfig(r=arm.r, alpha=alpha, targets=list(PLACES)))
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path.removesuffix(".weight") in PLACES)
    return model


def code(which: str, context: int, count: int | None = None) -> Data:
    """Windows of code, so many of them evenly spread over all."""
    x, y = text("code", which).windows(context)
    rows = torch.linspace(0, len(x) - 1, min(count or len(x), len(x))).long()
    return x[rows], y[rows]


def train(arm: RingArm, base: LanguageModel, of: Relabelling) -> tuple[LanguageModel, list[float]]:
    """Train the arm on the ring's code; the model, and its loss in every step (nats a token)."""
    new = ring(arm.tokens, base.config.vocab)
    x, y = code("train", base.config.context)
    model = prepare(arm, base, of.alpha)
    history = fit(
        model,
        new[x],
        new[y],
        steps=of.steps,
        lr=arm.lr,
        batch_size=of.batch_size,
        seed=arm.seed,
        progress=False,
    )
    return model, history.loss


def judge(model: LanguageModel, of: Relabelling, new: Tensor, which: str = "test") -> Evaluation:
    """The model on held-out code, with the tokens' new numbers; its log loss is nats a token."""
    x, y = code(which, model.config.context, of.windows)
    return evaluate(model, new[x], new[y])


@lru_cache(maxsize=1)
def coder() -> LanguageModel:
    """The shipped model, which has read code."""
    return pretrained_gpt()


def run_relabelling(of: Relabelling, machine: Machine) -> list[Row]:
    """Tune every arm and test it; the rows."""
    lora, whole = of.lr["LoRA"], of.lr["whole"]
    arms = [RingArm(n, r, lora) for n, ranks in of.ranks.items() for r in ranks]
    by_name = {arm.name: arm for arm in [*arms, *(RingArm(n, None, whole) for n in of.ranks)]}

    def trained(runs: Runs) -> list[Row]:
        asked = [by_name[name].at(lr, seed) for name, pairs in runs.items() for lr, seed in pairs]
        return _rows(asked, of, machine)

    rows = tune(
        trained, {n: arm.lr for n, arm in by_name.items()}, dict.fromkeys(by_name, of.tuning)
    )
    best = {name: [(best_rate(rows, name), seed) for seed in of.tuning.tested] for name in by_name}
    return rows + trained(best)


def _rows(asked: Sequence[RingArm], of: Relabelling, machine: Machine) -> list[Row]:
    work = partial(_one, of=of)
    found = rows_of(asked, work, "relabelling", {"of": repr(replace(of, ranks={}))}, machine)
    return [row for rows in found for row in rows]


def _one(arm: RingArm, *, of: Relabelling) -> list[Row]:
    started = time.perf_counter()
    base = coder()
    model = prepare(arm, base, of.alpha)
    row = Row(
        stage="final" if arm.seed in of.tuning.tested else "tune",
        arm=arm.name,
        kind="full" if arm.r is None else "lora",
        labels=of.batch_size * base.config.context,
        seed=arm.seed,
        r=arm.r,
        lr=arm.lr,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    new = ring(arm.tokens, base.config.vocab)
    try:
        model, losses = train(arm, base, of)
    except Diverged:
        return [replace(row, diverged=True)]
    found = judge(model, of, new, "test" if row.stage == "final" else "validation")
    last = float(np.mean(losses[-10:]))
    if not np.isfinite([found.log_loss, last]).all():
        return [replace(row, diverged=True)]
    row = replace(row, accuracy=found.accuracy, log_loss=found.log_loss, train_loss=last)
    return [replace(row, seconds=time.perf_counter() - started)]
