"""Where to put an adapter, and how much rank a shift of the task needs.

The first parts take the task of the rank experiment, handwritten sums for a base that adds printed
digits. They put adapters on one kind of matrix at a time, at the same number of trained parameters
and at the same rank; into one block or into all; and train small parts of the model itself instead.
Part "answers" asks about the blocks once more, with the old pictures and new answers. The last two
parts leave sums aside. A base that reads single printed digits gets them turned by an angle, or
with a share of their dots exchanged, and the question is which rank brings it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minilora import LoRAConfig
from minilora.experiments import rank
from minilora.experiments.recording import Recording, Row
from minilora.experiments.sweeps import (
    Change,
    Named,
    Pictures,
    Place,
    Recipe,
    Whole,
    adapters,
    best_rate,
    run_parts,
    untrained,
    whole_models,
)
from minilora.lab import data
from minilora.lab.sweep import Cell, Data
from minilora.lab.training import fit, one_thread, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

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
    "Q, V": ("q_proj", "v_proj"),
    "Q, K, V, O": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "up, down": ("up_proj", "down_proj"),
    "all six": BLOCK_LINEARS,
}

#: Small parts of the model itself, each with the middle of the learning rates that it starts with.
OWN = {"embeddings": 2.2e-2, "norms": 2.2e-2, "biases": 0.1, "head": 1e-3}

#: And for the head where the answers are new.
NEW_HEAD = 5e-3

#: The kind of their rows, where it is not "full".
KINDS = {"biases": "biases", "head": "head"}

#: The middle of the rates for adapters: on sums, and on shifted digits.
MIDDLE, SHIFT_MIDDLE = 2.2e-2, 1e-2

#: Arm → the learning rates to try.
Ladders = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Profile:
    """The size of a run; ``base`` says which adder and which handwritten pictures.

    ``budget`` is the most that a placement may train in each block, and ``r`` the rank of part
    "rank". An arm begins with ``rungs`` learning rates on either side of a middle one, and is
    tested with all ``seeds`` at its best. Rates are tuned with the first ``tuning`` of the seeds in
    the parts "places" and "blocks", whose arms lie close, and with the first ``few`` in the others.
    Names that begin with ``shift_`` are for the last two parts, whose base is the ``reader``.
    """

    name: str
    base: rank.Profile
    labels: int
    steps: int
    alpha: float
    budget: int
    r: int
    rungs: int
    seeds: tuple[int, ...]
    tuning: int
    few: int
    reader: TransformerConfig
    reader_pictures: int
    reader_steps: int
    reader_lr: float
    angles: tuple[int, ...]
    shares: tuple[float, ...]
    shift_labels: int
    shift_steps: int
    shift_batch: int
    shift_ranks: tuple[int, ...]
    shift_seeds: tuple[int, ...]


PROFILES = {
    "cpu": Profile(
        name="cpu",
        base=rank.PROFILES["cpu"],
        labels=500,
        steps=200,
        alpha=8.0,
        budget=1920,
        r=8,
        rungs=1,
        seeds=(0, 1, 2, 3, 4),
        tuning=3,
        few=1,
        reader=TransformerConfig(patch_size=4),
        reader_pictures=20_000,
        reader_steps=1200,
        reader_lr=3e-3,
        angles=(15, 45, 90, 180),
        shares=(0.125, 0.5, 1.0),
        shift_labels=1000,
        shift_steps=150,
        shift_batch=16,
        shift_ranks=(1, 2, 4, 48),
        shift_seeds=(0, 1, 2),
    ),
    "gpu": Profile(
        name="gpu",
        base=rank.PROFILES["gpu"],
        labels=500,
        steps=300,
        alpha=8.0,
        budget=10240,
        r=8,
        rungs=2,
        seeds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        tuning=3,
        few=2,
        reader=TransformerConfig(patch_size=4, width=256, layers=4, heads=8),
        reader_pictures=30_000,
        reader_steps=3000,
        reader_lr=1e-3,
        angles=(15, 45, 90, 135, 180),
        shares=(0.125, 0.25, 0.5, 1.0),
        shift_labels=4000,
        shift_steps=300,
        shift_batch=32,
        shift_ranks=(1, 2, 4, 16, 256),
        shift_seeds=(0, 1, 2, 3, 4),
    ),
    "smoke": Profile(
        name="smoke",
        base=rank.PROFILES["smoke"],
        labels=40,
        steps=4,
        alpha=8.0,
        budget=440,
        r=4,
        rungs=1,
        seeds=(0, 1, 2),
        tuning=2,
        few=1,
        reader=TransformerConfig(patch_size=4, width=8, layers=1, heads=2),
        reader_pictures=40,
        reader_steps=4,
        reader_lr=3e-3,
        angles=(90,),
        shares=(0.5,),
        shift_labels=40,
        shift_steps=4,
        shift_batch=16,
        shift_ranks=(1, 2),
        shift_seeds=(0, 1, 2),
    ),
}


def rank_within(budget: int, width: int, ffn_factor: int, place: str) -> int:
    """The largest rank at which a place trains at most ``budget`` numbers in a block."""
    hidden = ffn_factor * width
    for_one = sum(
        width + hidden if name in ("up_proj", "down_proj") else 2 * width for name in PLACES[place]
    )
    return budget // for_one


def placements(size: Profile, part: str) -> dict[str, LoRAConfig]:
    """The adapters that a part compares, by the names of their arms."""
    model = size.base.model
    config = partial(LoRAConfig, alpha=size.alpha)
    ranks = {
        place: rank_within(size.budget, model.width, model.ffn_factor, place) for place in PLACES
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
            f"{place}, r={size.r}": config(r=size.r, targets=list(layers))
            for place, layers in PLACES.items()
            if place in ("V", "O", "up", "down") and ranks[place] != size.r
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


def turn(degrees: float, x: Tensor) -> Tensor:
    """Digits turned to the left about their middle: (N, 1, H, H) → the same."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # For each dot of the result, where in the picture it is taken from; y points down.
    source = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=x.dtype, device=x.device)
    places = F.affine_grid(source.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, align_corners=False)


def exchange(share: float, x: Tensor) -> Tensor:
    """A share of the dots dealt out anew, by one rule for all pictures: (N, 1, H, W) → the same."""
    dots = x[0].numel()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(dots, generator=generator)[: round(dots * share)]
    # One step along a circle moves every chosen dot, which a random reordering would not.
    order = torch.arange(dots)
    order[chosen] = chosen.roll(1)
    return x.flatten(1)[:, order.to(x.device)].reshape(x.shape)


def shifts(size: Profile, part: str) -> dict[str, Change]:
    """The changes to the pictures, by the words that name them."""
    if part == "turned":
        return {f"turned {angle}°": partial(turn, angle) for angle in size.angles}
    return {f"exchanged {100 * share:g}%": partial(exchange, share) for share in size.shares}


def handwritten(size: Profile, seed: int) -> Data:
    """The labelled handwritten pairs of a seed."""
    train, _, _ = rank.pictures(size.base, size.labels, seed)
    return train.x, train.y


@lru_cache(maxsize=16)
def renamed(count: int, seed: int) -> Data:
    """Printed pairs, labelled with what is missing from their sum to 18."""
    pairs = data.pairs(data.printed_digits(2 * count, seed), count, seed)
    return pairs.x, 18 - pairs.y


@lru_cache(maxsize=16)
def printed(count: int, seed: int) -> Data:
    """Single printed digits."""
    digits = data.printed_digits(count, seed)
    return digits.x, digits.y


def task(size: Profile, part: str, change: Change | None = None) -> Pictures:
    """The pictures of a part: handwritten pairs, printed ones, or single digits with a change."""
    if part not in ("answers", "turned", "exchanged"):
        _, validation, test = rank.pictures(size.base, size.labels, seed=0)
        return Pictures(
            size.labels,
            partial(handwritten, size),
            (validation.x, validation.y),
            (test.x, test.y),
        )
    make, labels = (renamed, size.labels) if part == "answers" else (printed, size.shift_labels)
    return Pictures(
        labels,
        partial(_drawn, make, labels),
        make(size.base.validation_pictures, 9001),
        make(size.base.test_pictures, 9002),
        change,
    )


def _drawn(make: Callable[[int, int], Data], count: int, seed: int) -> Data:
    return make(count, 5000 + seed)


@lru_cache(maxsize=2)
def reader(size: Profile, device: torch.device | str = "cpu") -> TransformerClassifier:
    """A transformer that reads one printed digit, upright and with all dots in their places."""
    set_seed(0)
    model = TransformerClassifier(size.reader)
    x, y = printed(size.reader_pictures, 0)
    with one_thread():
        fit(
            model,
            x,
            y,
            steps=size.reader_steps,
            lr=size.reader_lr,
            weight_decay=0.05,
            device=device,
            progress=False,
        )
    return model.eval()


def run(
    profile: str | Profile = "cpu",
    *,
    parts: Sequence[str] = PARTS,
    jobs: int | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Recording:
    """Run the parts; with ``out``, which takes all, leave ``placement.PROFILE.json`` there.

    Raises:
        ValueError: A part that there is not, or ``out`` with some of the parts only.
    """
    size = PROFILES[profile] if isinstance(profile, str) else profile
    return run_parts("placement", size, parts, PARTS, _part, jobs, device, out, progress)


def _part(size: Profile, part: str, place: Place) -> list[Row]:
    with _keeping(place) as keeping:
        if part in ("turned", "exchanged"):
            return _shifted(size, part, keeping)
        base = rank.adder(size.base, place.device, place.progress).to(place.device)
        first = size.tuning if part in ("places", "blocks") else size.few
        recipe = Recipe(size.steps)
        work = _Work(size, part, base, task(size, part), recipe, keeping, size.seeds, first)
        rows = work.adapters(placements(size, part), MIDDLE)
        if part == "own":
            arms = {f"the {what}": what for what in OWN}
            rows += work.whole_models(arms, {f"the {what}": lr for what, lr in OWN.items()})
        if part == "answers":
            arm = "the head, new answers"
            rows += work.whole_models({arm: "head"}, {arm: NEW_HEAD})
        return rows


def _shifted(size: Profile, part: str, place: Place) -> list[Row]:
    base = reader(size, place.device)
    recipe = Recipe(size.shift_steps, size.shift_batch)
    rows: list[Row] = []
    for name, change in shifts(size, part).items():
        pictures = task(size, part, change)
        for_file = name.replace(" ", "-").replace("°", "").replace("%", "")
        work = _Work(size, for_file, base, pictures, recipe, place, size.shift_seeds, size.few)
        configs = {
            f"r={r}, {name}": LoRAConfig(r=r, alpha=size.alpha, targets=list(BLOCK_LINEARS))
            for r in size.shift_ranks
        }
        rows.append(untrained(f"base, {name}", base, pictures))
        rows += work.adapters(configs, SHIFT_MIDDLE)
    return rows


@contextmanager
def _keeping(place: Place) -> Iterator[Place]:
    """The place, with a folder for finished work, since tuning comes back to it with more rates."""
    if place.folder is not None:
        yield place
        return
    with TemporaryDirectory() as folder:
        yield replace(place, folder=Path(folder))


@dataclass(frozen=True)
class _Work:
    """What the arms of a part share; ``name`` is that of their files.

    Each arm gets its own rate, tuned with the ``first`` seeds, and is tested with all.
    """

    size: Profile
    name: str
    base: TransformerClassifier
    task: Pictures
    recipe: Recipe
    place: Place
    seeds: Sequence[int]
    first: int

    def adapters(self, configs: Mapping[str, LoRAConfig], middle: float) -> list[Row]:
        def cell(arm: str, lr: float, seed: int) -> Named:
            return Named(arm, Cell(configs[arm], lr, seed))

        return self._tuned(cell, adapters, dict.fromkeys(configs, middle))

    def whole_models(self, trains: Mapping[str, str], middles: Mapping[str, float]) -> list[Row]:
        def cell(arm: str, lr: float, seed: int) -> Whole:
            return Whole(arm, KINDS.get(trains[arm], "full"), lr, seed, trains[arm])

        return self._tuned(cell, whole_models, middles)

    def _tuned(
        self,
        cell: Callable[[str, float, int], Any],
        run: Callable[..., list[Row]],
        middles: Mapping[str, float],
    ) -> list[Row]:
        """Tune the arms with the first seeds, each from its middle rate; test them with all."""

        def train(ladders: Ladders, last: bool) -> list[Row]:
            cells = [
                cell(arm, lr, seed)
                for arm, rates in ladders.items()
                for lr in rates
                for seed in self.seeds[: self.first]
            ]
            more = dict.fromkeys(ladders, self.seeds[self.first :] if last else ())
            return run(
                self.name, cells, self.base, self.task, self.recipe, place=self.place, more=more
            )

        return tuned(train, self._starts(middles), self.size.rungs)

    def _starts(self, middles: Mapping[str, float]) -> dict[str, int]:
        """Where on the ladder each arm begins: lower for a wider model."""
        shift = self.size.base.rate_shift
        return {arm: rank.RATES.index(middle) - shift for arm, middle in middles.items()}


def tuned(
    train: Callable[[Ladders, bool], list[Row]], starts: Mapping[str, int], rungs: int
) -> list[Row]:
    """Try rates for every arm until its best lies between two others; the rows of the last round.

    ``train`` takes the rates of every arm, and whether they are final. It must keep what it has
    done. An arm begins with ``rungs`` rates of `rank.RATES` on either side of its start.
    """
    end_of_all = len(rank.RATES)
    spans = {
        arm: (max(0, start - rungs), min(start + rungs + 1, end_of_all))
        for arm, start in starts.items()
    }
    while True:
        ladders = {arm: rank.RATES[first:end] for arm, (first, end) in spans.items()}
        rows = train(ladders, False)
        wider = {}
        for arm, (first, end) in spans.items():
            best = rank.RATES.index(best_rate(rows, arm))
            if best == first > 0:
                wider[arm] = first - 1, end
            elif best == end - 1 < end_of_all - 1:
                wider[arm] = first, end + 1
        if not wider:
            return train(ladders, True)
        spans |= wider
