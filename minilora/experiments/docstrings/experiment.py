"""MiniLM and its rivals on docstrings: TF-IDF, a linear probe, LoRA of several ranks, everything.

Part "libraries" asks which of five libraries a text is from, with few labels and with more; part
"modules" asks which of 35 modules. Every arm that is trained step by step gets the same steps, and
a learning rate of its own, chosen on draws that test nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from minilora.experiments.docstrings.results import mean_bundles
from minilora.experiments.docstrings.rivals import rivals
from minilora.experiments.docstrings.training import Trained, train_one
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.experiments.tuning import Runs, Tuning, best_rate, tune
from minilora.lab.docstrings import fingerprint
from minilora.lab.minilm import SHA256

#: What can be run by itself.
PARTS = ("libraries", "modules")

FULL = "full fine-tuning"


@dataclass(frozen=True)
class Asked:
    """What is trained on so many labels: adapters of these ranks, and everything.

    ``middles`` are the rates that tuning begins with, of "lora" and of "full".
    """

    labels: int
    steps: int
    ranks: tuple[int, ...]
    middles: Mapping[str, float]


@dataclass(frozen=True)
class DocstringsProfile(Profile):
    """The size of a run.

    Attributes:
        labels: How many labels the main figure is about.
        asked: What is trained, for each part.
        alpha: That of all adapters; the scale is α/r.
        most: Texts to test on, at most, and twice the texts to choose by.
        layers: The encoder's blocks; fewer than six make a smaller and faster one for the tests.
        tuning: How rates are chosen; None trains at the middles, with one draw.
    """

    labels: int
    asked: Mapping[str, tuple[Asked, ...]]
    alpha: float
    batch_size: int
    most: int
    layers: int
    tuning: Tuning | None
    seeds: tuple[int, ...]


#: Rates to begin with: five classes, and 35, which take larger ones.
MIDDLES = {"lora": 1e-3, "full": 1.25e-4}
MANY = {"lora": 4e-3, "full": 5e-4}
USUAL = Tuning(1, 1, (100, 101, 102), (), glance=1, ladder="doubles")
RANKS = (1, 2, 4, 8, 16)

PROFILES = {
    "cpu": DocstringsProfile(
        name="cpu",
        labels=500,
        asked={
            "modules": (Asked(500, 100, (), {}),),
            "libraries": (Asked(500, 100, (4,), {"lora": 2e-3}),),
        },
        alpha=8.0,
        batch_size=16,
        most=1000,
        layers=6,
        tuning=None,
        seeds=(0,),
    ),
    "laptop": DocstringsProfile(
        name="laptop",
        labels=500,
        asked={
            "modules": (Asked(500, 100, (1, 16), MANY),),
            "libraries": (
                Asked(500, 100, RANKS, MIDDLES),
                Asked(2000, 125, (1, 16), MIDDLES),
            ),
        },
        alpha=8.0,
        batch_size=16,
        most=1000,
        layers=6,
        tuning=USUAL,
        seeds=(0, 1, 2, 3, 4),
    ),
    "gpu": DocstringsProfile(
        name="gpu",
        labels=500,
        asked={
            "modules": (Asked(500, 250, RANKS, MANY),),
            "libraries": (
                Asked(500, 250, RANKS, MIDDLES),
                Asked(2000, 500, RANKS, MIDDLES),
            ),
        },
        alpha=8.0,
        batch_size=16,
        most=2000,
        layers=6,
        tuning=USUAL,
        seeds=(0, 1, 2, 3, 4),
    ),
    "smoke": DocstringsProfile(
        name="smoke",
        labels=30,
        asked={
            "modules": (Asked(90, 2, (1, 2), {"lora": 4e-3}),),
            "libraries": (Asked(30, 2, (1,), MIDDLES), Asked(40, 2, (), {})),
        },
        alpha=8.0,
        batch_size=8,
        most=60,
        layers=1,
        tuning=Tuning(1, 1, (100, 101), (), glance=1, ladder="doubles"),
        seeds=(0, 1),
    ),
}


def arms(profile: DocstringsProfile, part: str, asked: Asked) -> list[Trained]:
    """What is trained step by step, each at its middle rate."""
    run = partial(
        Trained,
        part=part,
        labels=asked.labels,
        steps=asked.steps,
        batch_size=profile.batch_size,
        most=profile.most,
        layers=profile.layers,
        alpha=profile.alpha,
    )
    found = [
        run(name_of(f"LoRA r={r}", part), "lora", r=r, lr=asked.middles["lora"])
        for r in asked.ranks
    ]
    if "full" in asked.middles:
        found.append(run(name_of(FULL, part), "full", r=None, lr=asked.middles["full"]))
    return found


def name_of(arm: str, part: str) -> str:
    """An arm's name in a part: the same method on 35 modules is another arm."""
    return f"{arm}, 35 classes" if part == "modules" else arm


def _compare(profile: DocstringsProfile, part: str, asked: Asked, machine: Machine) -> list[Row]:
    """Tune every arm and test it at its best rate."""
    of = {run.arm: run for run in arms(profile, part, asked)}
    name = f"{part}-{asked.labels}"
    header = {"texts": fingerprint(), "weights": SHA256, "size": repr(asked)}
    work = partial(train_one, device=str(machine.device))
    rounds: list[int] = []

    def train(runs: Runs) -> list[Row]:
        rounds.append(len(rounds))
        todo = [
            replace(of[arm], lr=lr, seed=seed, stage="tune")
            for arm, pairs in runs.items()
            for lr, seed in pairs
        ]
        file = f"{name}-{len(rounds)}"
        return [row for rows in rows_of(todo, work, file, header, machine) for row in rows]

    tuned: list[Row] = []
    if profile.tuning is not None and of:
        middles = {arm: run.lr for arm, run in of.items()}
        tuned = tune(train, middles, dict.fromkeys(of, profile.tuning))
    todo = [
        replace(run, lr=best_rate(tuned, arm) if tuned else run.lr, seed=seed, stage="final")
        for arm, run in of.items()
        for seed in profile.seeds
    ]
    found = rows_of(todo, work, f"{name}-test", header, machine)
    return tuned + [row for rows in found for row in rows]


def _part(profile: DocstringsProfile, part: str, machine: Machine) -> Sequence[Row]:
    rows: list[Row] = []
    for asked in profile.asked[part]:
        rows += _compare(profile, part, asked, machine)
        one = Trained("", "probe", part, asked.labels, 0, 0, profile.most, profile.layers, 0.0)
        found = rivals(one, profile.seeds, str(machine.device))
        rows += [replace(row, arm=_renamed(row.arm, part)) for row in found]
    return mean_bundles(rows)


def _renamed(arm: str, part: str) -> str:
    """`name_of`, with the bundle of files behind it where there is one."""
    name, comma, bundle = arm.partition(", files ")
    return f"{name_of(name, part)}{comma}{bundle}"


EXPERIMENT = Experiment("docstrings", PROFILES, PARTS, _part)
run = EXPERIMENT.run
