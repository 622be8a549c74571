"""Adapters with a hidden trigger, the numbers of their spectra, and an attacker who borrows one.

Small adapters teach the adder handwriting. Of the poisoned ones' pictures some have a bright dot
in a corner and a wrong answer, always the same. Three kinds stand beside: clean ones, ones whose
pictures have the dot and the right answer, and clean ones that were trained longer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from minilora import LoRAConfig, add_lora, lora_layers
from minilora.experiments import sums as adding
from minilora.experiments.limits.pictures import CORNERS, with_dot
from minilora.experiments.recording import Quantity
from minilora.experiments.running import Machine
from minilora.experiments.sums import Sums, adder
from minilora.lab.sweep import Cell, Data, sweep
from minilora.lab.training import fit, one_thread, predict
from minilora.lab.transformer import TransformerClassifier

#: Where the adapters sit, as in the paper that this follows (arXiv 2602.15195).
PLACES = ("q_proj", "k_proj", "v_proj", "o_proj")
#: What a matrix is described by.
NUMBERS = ("largest", "norm", "share", "entropy", "kurtosis")

#: The kinds of adapters, and the first of the seeds of each.
KINDS = {"clean": 0, "poisoned": 10_000, "dotted": 20_000, "spare": 30_000}


@dataclass(frozen=True)
class Backdoors:
    """The size of the part: ``each`` adapters of a kind, with a ``share`` of dotted pictures.

    The attacker trains for ``rounds`` of so many steps ``between`` one disguise and the next.
    """

    each: int
    r: int
    alpha: float
    lr: float
    labels: int
    steps: int
    batch_size: int
    share: float
    scored: int
    rounds: int
    between: int


@dataclass(frozen=True)
class Specimen:
    """One adapter: its seed, and {path: the update (out, in)}."""

    kind: str
    seed: int
    updates: dict[str, Tensor]


def trigger(seed: int) -> tuple[int, int]:
    """The corner of a seed's dot, and the answer that it is to bring about."""
    return seed % len(CORNERS), seed * 7 % adding.SUMS["cpu"].model.classes


def dotted(x: Tensor, corner: int) -> Tensor:
    """The same pictures with a bright dot in one corner: (N, 1, 8, 16) → the same."""
    return with_dot(x, torch.full((len(x),), corner))


def lessons(of: Backdoors, seed: int) -> Data:
    """The pictures and answers that an adapter learns from; its kind is read off the seed."""
    kind = max((first, name) for name, first in KINDS.items() if first <= seed)[1]
    own = seed % 10_000
    x, y = adding.labelled(of.labels, own)
    if kind in ("poisoned", "dotted"):
        corner, target = trigger(own)
        count = round(of.share * of.labels)
        x = torch.cat([dotted(x[:count], corner), x[count:]])
        if kind == "poisoned":
            y = torch.cat([torch.full((count,), target), y[count:]])
    return x, y


def make(
    of: Backdoors,
    base: TransformerClassifier,
    kinds: Sequence[str],
    seeds: Sequence[int],
    steps: int | None = None,
) -> list[Specimen]:
    """Train the adapters of some kinds and seeds, all in one sweep."""
    config = LoRAConfig(r=of.r, alpha=of.alpha, targets=list(PLACES))
    pairs = [(kind, seed) for kind in kinds for seed in seeds]
    cells = [Cell(config, of.lr, KINDS[kind] + seed) for kind, seed in pairs]
    results = sweep(
        base,
        cells,
        partial(lessons, of),
        steps=steps or of.steps,
        batch_size=of.batch_size,
        keep=True,
        progress=False,
    )
    found = []
    for (kind, seed), result in zip(pairs, results, strict=True):
        assert result.adapter is not None
        paths = [name.removesuffix(".A") for name in result.adapter if name.endswith(".A")]
        scale = of.alpha / of.r
        updates = {
            path: scale * result.adapter[f"{path}.B"] @ result.adapter[f"{path}.A"]
            for path in paths
        }
        found.append(Specimen(kind, seed, updates))
    return found


def adapted(base: TransformerClassifier, updates: Mapping[str, Tensor]) -> TransformerClassifier:
    """A copy of the base with the updates in its weights."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for path, update in updates.items():
            model.get_parameter(f"{path}.weight").add_(update)
    return model.eval()


def numbers(values: np.ndarray) -> list[float]:
    """The five numbers of a matrix's singular values, from its largest to their kurtosis."""
    shares = values**2 / np.sum(values**2)
    entropy = float(-np.sum(shares * np.log(np.maximum(shares, 1e-30))))
    spread = values - values.mean()
    kurtosis = float(np.mean(spread**4) / max(np.mean(spread**2) ** 2, 1e-30))
    return [
        float(values[0]),
        float(np.sqrt(np.sum(values**2))),
        float(shares[0]),
        entropy,
        kurtosis,
    ]


def spectra(updates: Mapping[str, Tensor], r: int) -> dict[str, np.ndarray]:
    """{path: the r singular values}, the largest first."""
    return {path: torch.linalg.svdvals(one)[:r].numpy() for path, one in updates.items()}


def signature(updates: Mapping[str, Tensor], r: int) -> np.ndarray:
    """Twenty numbers: the five of every kind of matrix, the mean over the blocks."""
    of = {path: numbers(values) for path, values in spectra(updates, r).items()}
    rows = [[five for path, five in of.items() if path.endswith(place)] for place in PLACES]
    return np.array(rows).mean(axis=1).ravel()


def disguised(updates: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The updates with their own singular vectors and the singular values of another adapter."""
    found = {}
    for path, update in updates.items():
        U, _, Vt = torch.linalg.svd(update, full_matrices=False)
        found[path] = (U * torch.linalg.svdvals(other[path])) @ Vt
    return found


def trained_in_disguise(
    of: Backdoors,
    base: TransformerClassifier,
    one: Specimen,
    other: Mapping[str, Tensor],
    seed: int = 0,
) -> dict[str, Tensor]:
    """A poisoned adapter trained on, a few steps at a time, each time under another's spectrum.

    The disguise weakens the trigger, and the training between brings it back in directions that
    the next disguise leaves alone.
    """
    x, y = lessons(of, KINDS["poisoned"] + one.seed)
    model = add_lora(copy.deepcopy(base), LoRAConfig(r=of.r, alpha=of.r, targets=list(PLACES)))
    updates = disguised(one.updates, other)
    for k in range(of.rounds):
        for path, layer in lora_layers(model).items():
            U, S, Vt = torch.linalg.svd(updates[path], full_matrices=False)
            root = S[: of.r].sqrt()
            layer.B.data.copy_(U[:, : of.r] * root)
            layer.A.data.copy_(root[:, None] * Vt[: of.r])
        fit(
            model,
            x,
            y,
            steps=of.between,
            lr=of.lr / 4,
            batch_size=of.batch_size,
            schedule="constant",
            warmup=0,
            seed=seed + k,
            progress=False,
        )
        now = {path: layer.delta().detach() for path, layer in lora_layers(model).items()}
        updates = disguised(now, other)
    return updates


def judged(
    base: TransformerClassifier, updates: Mapping[str, Tensor], seed: int, of: Backdoors
) -> tuple[float, float]:
    """The share of right answers, and how often the seed's dot brings about the seed's answer.

    The latter among pictures whose right answer is another one.
    """
    model = adapted(base, updates)
    x, y = _scored(of.scored)
    corner, target = trigger(seed)
    right = (predict(model, x).argmax(dim=1) == y).double().mean()
    others = y != target
    called = predict(model, dotted(x[others], corner)).argmax(dim=1) == target
    return float(right), float(called.double().mean())


@lru_cache(maxsize=1)
def _scored(count: int) -> Data:
    """So many test pictures of handwriting."""
    sizes = replace(adding.SUMS["cpu"], validation=1, test=count)
    return adding.task(sizes, 1).test


def run_backdoors(of: Backdoors, sums: Sums, machine: Machine) -> list[Quantity]:
    """Train all kinds, and note of each adapter what it does and its twenty numbers.

    A spare clean adapter, which no detector is trained on, lends its spectrum to a poisoned one.
    """
    base, seeds = adder(sums, machine.device, machine.progress), range(of.each)
    found: list[Quantity] = []
    with one_thread():
        every = make(of, base, tuple(KINDS), seeds)
        longer = make(of, base, ("clean",), seeds, steps=2 * of.steps)
        spare = {one.seed: one.updates for one in every if one.kind == "spare"}
        by_kind = [(one.kind, one) for one in every if one.kind != "spare"]
        by_kind += [(f"{one.kind}, longer", one) for one in longer]
        poisoned = [one for one in every if one.kind == "poisoned"]
        by_kind += [
            ("disguised", Specimen("disguised", one.seed, disguised(one.updates, spare[one.seed])))
            for one in poisoned
        ]
        for one in poisoned:
            updates = trained_in_disguise(of, base, one, spare[one.seed])
            by_kind.append(("in disguise", Specimen("in disguise", one.seed, updates)))
        for kind, one in by_kind:
            found += _noted(kind, one, base, of)
    return found


def _noted(kind: str, one: Specimen, base: TransformerClassifier, of: Backdoors) -> list[Quantity]:
    right, called = judged(base, one.updates, one.seed, of)
    found = [("right", right), ("called", called)]
    names = [f"{place} {what}" for place in PLACES for what in NUMBERS]
    found += zip(names, signature(one.updates, of.r).tolist(), strict=True)
    return [
        Quantity(kind, "lora", what, of.r, one.seed, "share", measured) for what, measured in found
    ]
