"""One training run of MiniLM on docstrings, and the texts as token ids."""

from __future__ import annotations

import copy
import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilora import LoRAConfig, add_lora, lora_parameters
from minilora.experiments.docstrings.results import bundle_rows
from minilora.experiments.recording import STAGES, Row
from minilora.lab import minilm
from minilora.lab.docstrings import Question, by_library, by_module
from minilora.lab.training import Diverged, fit, predict, score, set_seed

#: Texts that share a pass where nothing is trained.
AT_ONCE = 16


@dataclass(frozen=True)
class Trained:
    """A run: which question, on how many labels, what is trained, at which rate, from which draw.

    With r it is an adapter on all six linear layers of every block, with a new head; without, all
    of the encoder is trained with the head.
    """

    arm: str
    kind: str
    part: str
    labels: int
    steps: int
    batch_size: int
    most: int
    layers: int
    alpha: float
    r: int | None = None
    lr: float = 0.0
    seed: int = 0
    stage: str = "final"


@functools.lru_cache(maxsize=4)
def question(part: str, most: int) -> Question:
    """The question of a part."""
    return (by_module if part == "modules" else by_library)(most)


@functools.lru_cache(maxsize=8)
def token_ids(part: str, most: int, split: str) -> Tensor:
    """(N, 32) ids of a split, made once in a process."""
    return minilm.token_ids(question(part, most).texts[split])


@functools.lru_cache(maxsize=1)
def encoder(layers: int) -> Any:
    """The official encoder; its first ``layers`` blocks, where fewer than six are asked for."""
    found = minilm.encoder()
    found.encoder.layer = found.encoder.layer[:layers]
    return found


def prepare(run: Trained, classes: int) -> minilm.SentenceClassifier:
    """The classifier, ready to be trained the run's way; the seed draws the adapter.

    Nothing else than what the run trains requires a gradient.
    """
    base = copy.deepcopy(encoder(run.layers))  # before the seed: reading it draws numbers
    set_seed(run.seed)
    model = minilm.SentenceClassifier(base, classes)
    if run.r is None:
        model.encoder.pooler.requires_grad_(False)  # it is never called
        return model
    config = LoRAConfig(
        r=run.r,
        alpha=run.alpha,
        targets=minilm.TARGETS,
        exclude=minilm.EXCLUDE,
        modules_to_save=["head"],
    )
    return add_lora(model, config)


def train_one(run: Trained, *, device: str) -> list[Row]:
    """Train a run; its row, and where it is tested a row for every bundle of test files."""
    started = time.perf_counter()
    asked = question(run.part, run.most)
    chosen = asked.draw(run.labels, run.seed)
    model = prepare(run, len(asked.classes))
    trained = (
        lora_parameters(model)
        if run.r is not None
        else [p for p in model.parameters() if p.requires_grad]
    )
    row = Row(
        stage=run.stage,
        arm=run.arm,
        kind=run.kind,
        r=run.r,
        labels=run.labels,
        seed=run.seed,
        lr=run.lr,
        setting=run.part,
        parameters=sum(p.numel() for p in trained),
    )
    split = STAGES[run.stage]
    right = torch.from_numpy(asked.labels[split])
    try:
        history = fit(
            model,
            token_ids(run.part, run.most, "train")[chosen],
            torch.from_numpy(asked.labels["train"][chosen]),
            steps=run.steps,
            lr=run.lr,
            parameters=trained,
            batch_size=run.batch_size,
            seed=run.seed,
            device=device,
            progress=False,
        )
        scores = predict(model, token_ids(run.part, run.most, split), AT_ONCE).log_softmax(1)
        if not scores.isfinite().all():
            raise Diverged("the last step has left no numbers")
    except Diverged:
        return [replace(row, diverged=True, seconds=time.perf_counter() - started)]
    found = score(scores, right)
    row = replace(
        row,
        accuracy=found.accuracy,
        log_loss=found.log_loss,
        train_loss=float(np.mean(history.loss[-10:])),
        seconds=time.perf_counter() - started,
    )
    if run.stage == "tune":
        return [row]
    hits = (scores.argmax(1) == right).numpy()
    return [row, *bundle_rows(row, hits, asked.files["test"])]
