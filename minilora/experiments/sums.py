"""The task that several experiments share: an adder of printed digits meets handwriting.

The base adds two printed digits. It is to add two handwritten ones, from pictures that are labelled
with their sum alone. Validation pictures come from sheets of handwriting that are used for nothing
else, and test pictures from yet other sheets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from minilora.experiments.tasks import Change, Task
from minilora.lab import data
from minilora.lab.pretrained import ADDER, pretrained_adder
from minilora.lab.sweep import Data
from minilora.lab.transformer import TransformerClassifier, TransformerConfig


@dataclass(frozen=True)
class Sums:
    """The base and the pictures of a profile.

    ``steps`` and ``lr`` are those of the pretraining, ``validation`` and ``test`` numbers of
    pictures.
    """

    model: TransformerConfig
    steps: int
    lr: float
    validation: int
    test: int


SUMS = {
    "cpu": Sums(ADDER, steps=1600, lr=3e-3, validation=764, test=1536),
    "gpu": Sums(
        replace(ADDER, width=256, layers=4, heads=8),
        steps=3000,
        lr=1e-3,
        validation=764,
        test=1536,
    ),
    "smoke": Sums(
        replace(ADDER, width=8, layers=1, heads=2), steps=8, lr=3e-3, validation=60, test=60
    ),
}


def adder(
    sums: Sums, device: torch.device | str = "cpu", progress: bool = False, seed: int = 0
) -> TransformerClassifier:
    """The base of that seed, from the cache or made now, on the device."""
    made = pretrained_adder(
        seed,
        config=sums.model,
        steps=sums.steps,
        lr=sums.lr,
        device=device,
        progress=None if progress else False,
    )
    return made.to(device)


def labelled(labels: int, seed: int) -> Data:
    """A seed's labelled pictures: x (labels, 1, 8, 16), y (labels,)."""
    return _tensors(data.pairs(_handwriting().train, labels, seed))


def task(sums: Sums, labels: int, change: Change | None = None) -> Task:
    """Handwritten pairs with their sums."""
    hand = _handwriting()
    return Task(
        labels=labels,
        train=partial(labelled, labels),
        validation=_tensors(data.pairs(hand.validation, sums.validation, seed=1001)),
        test=_tensors(data.pairs(hand.test, sums.test, seed=1002)),
        change=change,
    )


def sheets(sums: Sums) -> torch.Tensor:
    """From which sheets the two digits of each test picture come: (N, 2)."""
    test = _handwriting().test
    first = int(test.sheet.min())
    # Dealt as the pictures are, with the sheet's number in the place of the digit.
    numbered = replace(test, y=test.sheet - first)
    both = data.pairs(numbered, sums.test, seed=1002, label="number").y
    return torch.stack([both // 10, both % 10], dim=1) + first


def printed(count: int = 1000) -> Data:
    """Printed pairs with their sums, which the base has not seen."""
    return _tensors(data.pairs(data.printed_digits(2 * count, seed=1), count, seed=1))


@lru_cache(maxsize=1)
def _handwriting() -> data.Digits:
    return data.digits()


def _tensors(split: data.Split) -> Data:
    return split.x, split.y
