"""Where to put an adapter, and how much rank a shift of the task needs.

The first parts take the task of the rank experiment, handwritten sums for a base that adds printed
digits. They put adapters on one kind of matrix at a time, at the same number of trained parameters
and at the same rank; into one block or into all; and train small parts of the model itself instead.
Part "answers" asks about the blocks once more, with the old pictures and new answers. The last two
parts leave sums aside. A base that reads single printed digits gets them turned by an angle, or
with a share of their dots exchanged, and the question is which rank brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

from minilora import LoRAConfig
from minilora.experiments import sums
from minilora.experiments.families import AdapterRun, Family, Recipe, Task, WholeRun
from minilora.experiments.placement import shifts
from minilora.experiments.placement.shifts import Reader, Shift, drawn, run_shifts
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.sums import SUMS, Sums, adder
from minilora.experiments.tuning import Tuning
from minilora.lab import data
from minilora.lab.sweep import Cell, Data
from minilora.lab.transformer import BLOCK_LINEARS, TransformerConfig

#: What can be run by itself: a section of the chapter each.
PARTS = ("places", "rank", "blocks", "answers", "own", "turned", "exchanged")

#: Each place's layers.
PLACES: dict[str, tuple[str, ...]] = {
    "Q": ("q_proj",),
    "K": ("k_proj",),
    "V": ("v_proj",),
    "O": ("o_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
    "Q, K": ("q_proj", "k_proj"),
    "Q, V": ("q_proj", "v_proj"),
    "Q, K, V, O": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "up, down": ("up_proj", "down_proj"),
    "all six": BLOCK_LINEARS,
}

#: Small parts of the model itself: the kind of their rows, and the middle of the learning rates
#: that each starts with.
OWN = {
    "embeddings": ("full", 2.2e-2),
    "norms": ("full", 2.2e-2),
    "biases": ("biases", 0.1),
    "head": ("head", 1e-3),
}

#: And for the head where the answers are new.
NEW_HEAD = 5e-3

#: The middle of the rates for adapters on sums.
MIDDLE = 2.2e-2


@dataclass(frozen=True)
class PlacementProfile(Profile):
    """The size of a run.

    ``budget`` is the most that a placement may train in each block, and ``r`` the rank of part
    "rank". ``shift`` is for the last two parts.
    """

    sums: Sums
    labels: int
    steps: int
    alpha: float
    budget: int
    r: int
    tuning: Tuning
    shift: Shift


PROFILES = {
    "cpu": PlacementProfile(
        name="cpu",
        sums=SUMS["cpu"],
        labels=500,
        steps=200,
        alpha=8.0,
        budget=1920,
        r=8,
        tuning=Tuning(below=1, above=1, seeds=(100, 101, 102), tested=(0, 1, 2, 3, 4)),
        shift=Shift(
            reader=Reader(TransformerConfig(patch_size=4), pictures=20_000, steps=1200, lr=3e-3),
            angles=(15, 45, 90, 180),
            shares=(0.125, 0.5, 1.0),
            labels=1000,
            validation=764,
            test=1536,
            steps=150,
            batch_size=16,
            ranks=(1, 2, 4, 48),
            alpha=8.0,
            tuning=Tuning(below=1, above=1, seeds=(100, 101, 102), tested=(0, 1, 2)),
        ),
    ),
    "gpu": PlacementProfile(
        name="gpu",
        sums=SUMS["gpu"],
        labels=500,
        steps=300,
        alpha=8.0,
        budget=10240,
        r=8,
        tuning=Tuning(
            below=3, above=1, seeds=(100, 101, 102), tested=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
        ),
        shift=Shift(
            reader=Reader(
                TransformerConfig(patch_size=4, width=256, layers=4, heads=8),
                pictures=30_000,
                steps=3000,
                lr=1e-3,
            ),
            angles=(15, 45, 90, 180),
            shares=(0.125, 0.5, 1.0),
            labels=4000,
            validation=764,
            test=1536,
            steps=200,
            batch_size=32,
            ranks=(1, 2, 4, 256),
            alpha=8.0,
            tuning=Tuning(below=1, above=1, seeds=(100, 101, 102), tested=(0, 1, 2, 3, 4)),
        ),
    ),
    "smoke": PlacementProfile(
        name="smoke",
        sums=SUMS["smoke"],
        labels=40,
        steps=4,
        alpha=8.0,
        budget=440,
        r=4,
        tuning=Tuning(below=1, above=1, seeds=(100, 101), tested=(0, 1, 2)),
        shift=Shift(
            reader=Reader(
                TransformerConfig(patch_size=4, width=8, layers=1, heads=2),
                pictures=40,
                steps=4,
                lr=3e-3,
            ),
            angles=(90,),
            shares=(0.5,),
            labels=40,
            validation=60,
            test=60,
            steps=4,
            batch_size=16,
            ranks=(1, 2),
            alpha=8.0,
            tuning=Tuning(below=1, above=1, seeds=(100,), tested=(0, 1, 2)),
        ),
    ),
}


def rank_within(budget: int, width: int, ffn_factor: int, place: str) -> int:
    """The largest rank at which a place trains at most ``budget`` numbers in a block."""
    hidden = ffn_factor * width
    for_one = sum(
        width + hidden if name in ("up_proj", "down_proj") else 2 * width for name in PLACES[place]
    )
    return budget // for_one


def placements(profile: PlacementProfile, part: str) -> dict[str, LoRAConfig]:
    """The adapters that a part compares, by the names of their arms."""
    model = profile.sums.model
    config = partial(LoRAConfig, alpha=profile.alpha)
    ranks = {
        place: rank_within(profile.budget, model.width, model.ffn_factor, place) for place in PLACES
    }
    if part == "places":
        return {
            f"{place}, r={ranks[place]}": config(r=ranks[place], targets=list(layers))
            for place, layers in PLACES.items()
        }
    if part == "rank":
        # A place whose budget pays for this very rank is in "places" already; and Q and K, which
        # can do little at the budget's rank, are not asked again at a lower one.
        return {
            f"{place}, r={profile.r}": config(r=profile.r, targets=list(layers))
            for place, layers in PLACES.items()
            if place in ("V", "O", "up", "down") and ranks[place] != profile.r
        }
    if part in ("blocks", "answers"):
        # In one block as many numbers as "all six" has in all of them.
        r = ranks["all six"] * model.layers
        blocks = {
            f"block {block + 1}, r={r}": config(r=r, targets=rf"blocks\.{block}\..*_proj")
            for block in range(model.layers)
        }
        if part == "blocks":
            return blocks
        name = f"all six, r={ranks['all six']}"
        everywhere = {name: config(r=ranks["all six"], targets=list(BLOCK_LINEARS))}
        return {f"{arm}, new answers": one for arm, one in (everywhere | blocks).items()}
    if part == "own":
        return {
            "all six, r=1": config(r=1, targets=list(BLOCK_LINEARS)),
            "block 1, r=2": config(r=2, targets=r"blocks\.0\..*_proj"),
            "patch layer, r=4": config(r=4, targets=["patch_embedding"]),
        }
    raise ValueError(f"no placements in part {part!r}")


@lru_cache(maxsize=16)
def renamed(count: int, seed: int) -> Data:
    """Printed pairs, labelled with what is missing from their sum to 18."""
    pairs = data.pairs(data.printed_digits(2 * count, seed), count, seed)
    return pairs.x, 18 - pairs.y


def task(profile: PlacementProfile, part: str) -> Task:
    """The pictures of a part: handwritten pairs, printed ones, or single digits as they are."""
    if part in ("turned", "exchanged"):
        return shifts.task(profile.shift)
    if part == "answers":
        of = profile.sums
        return drawn(renamed, profile.labels, of.validation, of.test, None)
    return sums.task(profile.sums, profile.labels)


def _part(profile: PlacementProfile, part: str, machine: Machine) -> list[Row]:
    if part in ("turned", "exchanged"):
        return run_shifts(profile.shift, part, machine)
    base = adder(profile.sums, machine.device, machine.progress)
    family = Family(part, base, task(profile, part), Recipe(profile.steps), machine)
    configs = placements(profile, part)
    adapters = [AdapterRun(arm, Cell(config, MIDDLE)) for arm, config in configs.items()]
    wholes: list[WholeRun] = []
    if part == "own":
        wholes = [
            WholeRun(f"the {what}", kind, lr, trains=what) for what, (kind, lr) in OWN.items()
        ]
    if part == "answers":
        wholes = [WholeRun("the head, new answers", "head", NEW_HEAD, trains="head")]
    return family.compare([*adapters, *wholes], profile.tuning)


EXPERIMENT = Experiment("placement", PROFILES, PARTS, _part)
run = EXPERIMENT.run
