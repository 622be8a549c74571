"""The sizes of the limits experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minilora.experiments.limits.backdoors import Backdoors
from minilora.experiments.limits.batches import BatchSizes
from minilora.experiments.limits.capacity import Capacity
from minilora.experiments.limits.handful import Handful
from minilora.experiments.limits.relabelling import Relabelling
from minilora.experiments.running import Profile
from minilora.experiments.sums import SUMS, Sums
from minilora.experiments.tuning import Tuning
from minilora.lab.transformer import TransformerConfig


@dataclass(frozen=True)
class LimitsProfile(Profile):
    """The size of a run: of the adder, and of each part."""

    sums: Sums
    relabelling: Relabelling
    capacity: Capacity
    batches: BatchSizes
    handful: Handful
    backdoors: Backdoors


USUAL = Tuning(1, 1, (100, 101, 102), (0, 1, 2), glance=1, ladder="doubles")
QUICK = Tuning(1, 1, (100,), (0,), ladder="doubles")

LAPTOP = LimitsProfile(
    name="laptop",
    sums=SUMS["cpu"],
    relabelling=Relabelling(
        ranks={16: (1, 4, 16), 1024: (16,)},
        steps=240,
        batch_size=1,
        alpha=8.0,
        windows=32,
        lr={"LoRA": 0.016, "whole": 0.004},
        tuning=USUAL,
    ),
    capacity=Capacity(
        width=32,
        counts=(32, 128, 512),
        ranks=(1, 2, 4, 8, 16),
        steps=800,
        alpha=8.0,
        lr={"product": 0.064, "whole": 0.064},
        tuning=USUAL,
    ),
    batches=BatchSizes(
        examples=8192,
        sizes=(16, 64, 256),
        ranks=(4, 48),
        alpha=8.0,
        lr={"LoRA": 0.016, "full": 0.002},
        at=32,
        tuning=USUAL,
        scored=1000,
    ),
    handful=Handful(
        model=TransformerConfig(patch_size=4),
        pictures=20_000,
        pretraining=1200,
        undecided=800,
        r=8,
        alpha=8.0,
        numbers=(13, 128, 0),
        lr={13: 0.064, 128: 0.032, 0: 0.016},
        steps=100,
        batch_size=32,
        scored=1000,
        tuning=replace(USUAL, tested=(0, 1, 2, 3, 4)),
    ),
    backdoors=Backdoors(
        each=20,
        r=8,
        alpha=8.0,
        lr=0.016,
        labels=500,
        steps=100,
        batch_size=32,
        share=0.1,
        scored=500,
        rounds=8,
        between=15,
    ),
)

PROFILES = {
    "cpu": replace(
        LAPTOP,
        name="cpu",
        relabelling=replace(LAPTOP.relabelling, ranks={16: (1,)}, steps=40, tuning=QUICK),
        capacity=replace(LAPTOP.capacity, counts=(32, 128), ranks=(1, 4), steps=300, tuning=QUICK),
        batches=replace(LAPTOP.batches, examples=2048, sizes=(64,), ranks=(4,), tuning=QUICK),
        handful=replace(LAPTOP.handful, numbers=(13,), steps=60, tuning=QUICK),
        backdoors=replace(LAPTOP.backdoors, each=4),
    ),
    "laptop": LAPTOP,
    "smoke": replace(
        LAPTOP,
        name="smoke",
        sums=SUMS["smoke"],
        relabelling=replace(
            LAPTOP.relabelling, ranks={4: (1,)}, steps=2, batch_size=1, windows=2, tuning=QUICK
        ),
        capacity=replace(
            LAPTOP.capacity, width=4, counts=(4, 8), ranks=(1, 2), steps=30, tuning=QUICK
        ),
        batches=replace(
            LAPTOP.batches, examples=16, sizes=(4, 8), ranks=(1,), scored=20, tuning=QUICK
        ),
        handful=replace(
            LAPTOP.handful,
            model=TransformerConfig(patch_size=4, width=8, layers=1, heads=2),
            pictures=40,
            pretraining=4,
            undecided=2,
            r=2,
            numbers=(3, 0),
            lr={3: 0.032, 0: 0.016},
            steps=3,
            batch_size=4,
            scored=20,
            tuning=QUICK,
        ),
        backdoors=replace(
            LAPTOP.backdoors,
            each=2,
            r=2,
            labels=40,
            steps=3,
            batch_size=4,
            scored=20,
            rounds=1,
            between=2,
        ),
    ),
}
