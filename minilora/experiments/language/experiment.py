"""From code to prose: what a rank can learn of it, and what is forgotten on the way.

The base is a small GPT that has read the standard library's code. Part "ranks" adapts it to prose,
with adapters of several ranks on the matrices of its blocks, with these matrices trained whole, its
head alone, or everything, each arm at a rate of its own. Beside the loss on prose stand what every
run has lost of the code, how far the model has moved, and what random moves would have done. Part
"steps" follows some arms for longer, at rates that are fixed beforehand. Part "facts" asks how many
facts a rank can hold.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from minilora.experiments.language.arms import LanguageArm, prepare, updates
from minilora.experiments.language.facts import run_facts
from minilora.experiments.language.forgetting import (
    divergence,
    log_probabilities,
    mean_loss,
    moved,
    relative_size,
    strength_of,
    turned,
)
from minilora.experiments.language.judging import Texts, judged, score_on, some
from minilora.experiments.language.profiles import PROFILES, LanguageProfile, arms, base_of
from minilora.experiments.recording import Quantity, Row
from minilora.experiments.running import Experiment, Machine
from minilora.experiments.tuning import Runs, best_rate, tune
from minilora.lab.language import LanguageModel, text
from minilora.lab.sweep import fingerprint
from minilora.lab.training import Diverged, fit, one_thread
from minilora.lab.work import Journal, spread

#: What can be run by itself.
PARTS = ("ranks", "steps", "facts")

BASE = "the base as it is"

Found = list[Row | Quantity]


def train(
    arm: LanguageArm,
    base: LanguageModel,
    profile: LanguageProfile,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """Adapt a copy of the base to prose, as part "ranks" does.

    Raises:
        Diverged: The loss is no longer a number.
    """
    model, _ = _trained(arm, base, profile, device)
    return model


def _trained(
    arm: LanguageArm, base: LanguageModel, profile: LanguageProfile, device: torch.device | str
) -> tuple[LanguageModel, float]:
    """The adapted model, and the mean loss of its last ten batches."""
    model = prepare(arm, base, profile.alpha)
    history = fit(
        model,
        *text("prose").windows(profile.model.context),
        steps=profile.steps,
        lr=arm.lr,
        batch_size=profile.batch_size,
        seed=arm.seed,
        device=device,
        progress=False,
    )
    return model, float(np.mean(history.loss[-10:]))


def _row(arm: LanguageArm, profile: LanguageProfile, model: LanguageModel) -> Row:
    """The row of a run without its results."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Row(
        stage="tune",
        arm=arm.name,
        kind=arm.kind,
        labels=profile.labels,
        seed=arm.seed,
        r=arm.r,
        lr=arm.lr,
        parameters=count,
    )


def _one(arm: LanguageArm, *, profile: LanguageProfile, base: LanguageModel, device: str) -> Found:
    """Train one model for part "ranks", and judge it."""
    started = time.perf_counter()
    texts, base = Texts.of(profile, device), copy.deepcopy(base).to(device)
    row = _row(arm, profile, prepare(arm, base, profile.alpha))
    try:
        model, last = _trained(arm, base, profile, device)
        prose = score_on(model, texts.prose)
    except Diverged:
        return [replace(row, diverged=True)]
    if not np.isfinite([last, prose.log_loss]).all():
        return [replace(row, diverged=True)]
    row = replace(row, train_loss=last, seconds=time.perf_counter() - started)
    found: Found = []
    tested = arm.seed in profile.tuning.tested
    if not tested:
        found.append(replace(row, accuracy=prose.accuracy, log_loss=prose.log_loss))
    else:
        found += _tested(row, model, texts)
    note = partial(_quantity, arm, profile)
    found.append(note("prose", prose.log_loss))
    return found + _forgotten(arm, model, base, profile, texts, note, tested)


def _quantity(
    arm: LanguageArm, profile: LanguageProfile, what: str, measured: float, **other: int
) -> Quantity:
    size = other.get("size", profile.steps)
    name = f"{arm.name} at {arm.lr:g}"
    unit = "share" if what in ("size", "random's strength") else "nats"
    return Quantity(name, arm.kind, what, size, arm.seed, unit, measured)


def _tested(row: Row, model: LanguageModel, texts: Texts) -> list[Row]:
    """The rows of a run on test data: prose, its topics one by one, and code."""
    losses, right = judged(model, texts.prose_test)
    final = replace(row, stage="final")
    found = [replace(final, accuracy=float(right.mean()), log_loss=float(losses.mean()))]
    for topic in dict.fromkeys(texts.topics):
        rows = torch.tensor([one == topic for one in texts.topics])
        found.append(
            replace(
                final,
                arm=f"{row.arm}, topic {topic}",
                kind="aside",
                accuracy=float(right[rows].mean()),
                log_loss=float(losses[rows].mean()),
            )
        )
    code = score_on(model, texts.code_test)
    name = f"{row.arm}, code"
    aside = replace(final, arm=name, kind="aside", accuracy=code.accuracy, log_loss=code.log_loss)
    return [*found, aside]


def _forgotten(
    arm: LanguageArm,
    model: LanguageModel,
    base: LanguageModel,
    profile: LanguageProfile,
    texts: Texts,
    note: Callable[..., Quantity],
    tested: bool,
) -> list[Quantity]:
    """How far a run has moved and what it has forgotten; and so for random moves, where asked."""
    x = some(texts.prose, 32)[0]
    expected = log_probabilities(base, x)
    kl, _ = divergence(expected, model, x)
    change = updates(model, base)
    found = [note("code", mean_loss(model, texts.code)), note("KL", kl)]
    found.append(note("size", relative_size(change, base)))
    if arm.name not in profile.nulls:
        return found
    random = turned(change, arm.seed)
    rival = moved(base, random)
    found.append(note("code, random of equal size", mean_loss(rival, texts.code)))
    found.append(note("KL, random of equal size", divergence(expected, rival, x)[0]))
    strength = strength_of(kl, base, random, expected, x)
    rival = moved(base, random, strength)
    found.append(note("random's strength", strength))
    found.append(note("code, random of equal KL", mean_loss(rival, texts.code)))
    found.append(note("KL, random of equal KL", divergence(expected, rival, x)[0]))
    if tested:
        for percent in profile.strengths:
            weaker = moved(base, change, percent / 100)
            for what, pair in (("prose, turned", texts.prose), ("code, turned", texts.code)):
                found.append(note(what, mean_loss(weaker, pair), size=percent))
    return found


def _watched(
    arm: LanguageArm, *, profile: LanguageProfile, base: LanguageModel, device: str
) -> Found:
    """Train one model at a constant rate, and look at it on the way."""
    texts = Texts.of(profile, device)
    model = prepare(arm, base, profile.alpha).to(device)
    note = partial(_quantity, arm, profile)
    history = fit(
        model,
        *texts.train,
        steps=profile.watched_steps,
        lr=arm.lr,
        batch_size=profile.batch_size,
        schedule="constant",
        warmup=min(20, profile.watched_steps // 2),
        seed=arm.seed,
        device=device,
        look_at=texts.prose,
        every=profile.every,
        progress=False,
    )
    found: Found = []
    for k, look in enumerate(history.looks, 1):
        step = k * profile.every
        found.append(note("prose after", look.log_loss, size=step))
        found.append(
            note(
                "training after",
                float(np.mean(history.loss[step - profile.every : step])),
                size=step,
            )
        )
    return found


def _found(
    runs: Sequence[LanguageArm],
    work: Callable[[LanguageArm], Found],
    name: str,
    base: LanguageModel,
    machine: Machine,
) -> list[Found]:
    """What came of every run; those in the machine's folder are not run again."""
    header = {"source": machine.source, "base": fingerprint(base.state_dict().items())}
    journal = Journal(machine.file(name), header, replace=True)
    missing = [run for run in runs if repr(run) not in journal.entries]
    kinds = {"rows": Row, "quantities": Quantity}
    with one_thread():
        for done, (run, found) in enumerate(zip(missing, spread(work, missing, machine.jobs)), 1):
            parts = {k: [asdict(one) for one in found if isinstance(one, kinds[k])] for k in kinds}
            journal.add(repr(run), parts)
            machine.say(f"{name}: {done} of {len(missing)}, {run.name} at {run.lr:g}")
    entries = [journal.entries[repr(run)] for run in runs]
    return [
        [Row(**row) for row in entry["rows"]] + [Quantity(**one) for one in entry["quantities"]]
        for entry in entries
    ]


def _ranks(profile: LanguageProfile, base: LanguageModel, machine: Machine) -> Found:
    """Tune every arm, and test it at its best rate."""
    of = {arm.name: arm for arm in arms(profile)}
    beside: list[Quantity] = []
    work = partial(_one, profile=profile, base=base, device=str(machine.device))

    def train(runs: Runs) -> list[Row]:
        asked = [of[name].at(lr, seed) for name, pairs in runs.items() for lr, seed in pairs]
        rows = []
        for found in _found(asked, work, "ranks", base, machine):
            rows += [one for one in found if isinstance(one, Row)]
            beside.extend(one for one in found if isinstance(one, Quantity))
        return rows

    rows = tune(
        train, {name: arm.lr for name, arm in of.items()}, dict.fromkeys(of, profile.tuning)
    )
    best = {name: [(best_rate(rows, name), seed) for seed in profile.tuning.tested] for name in of}
    rows += train(best)
    texts = Texts.of(profile)
    untouched = Row("tune", BASE, "base", profile.labels, 0)
    rows += _tested(untouched, base, texts)
    for what, pair in (("prose", texts.prose), ("code", texts.code)):
        loss = mean_loss(base, pair)
        beside.append(Quantity(BASE, "base", what, profile.steps, 0, "nats", loss))
    return [*rows, *beside]


def _part(profile: LanguageProfile, part: str, machine: Machine) -> Found:
    base = base_of(profile, str(machine.device))
    if part == "ranks":
        return _ranks(profile, base, machine)
    if part == "facts":
        with one_thread():
            return list(run_facts(profile.facts, base, machine))
    of = {arm.name: arm for arm in arms(profile)}
    runs = [
        of[name].at(lr, seed)
        for name, rates in profile.watched.items()
        for lr in rates
        for seed in profile.tuning.tested
    ]
    work = partial(_watched, profile=profile, base=base, device=str(machine.device))
    return [one for found in _found(runs, work, "steps", base, machine) for one in found]


EXPERIMENT = Experiment("language", PROFILES, PARTS, _part)
run = EXPERIMENT.run
