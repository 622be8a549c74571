"""What needs no training of a transformer, on the same labelled pictures and test pictures.

The base as it is; logistic regression and nearest neighbours on the pixels, their own knob set on
validation data; and, for comparison only, what nearest neighbours do when every single digit is
labelled, so that the sum can be worked out from two readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from minilora.experiments.families import untrained
from minilora.experiments.recording import Row
from minilora.experiments.sums import Sums, task
from minilora.lab import data
from minilora.lab.sweep import Data
from minilora.lab.transformer import TransformerClassifier

Pairs = tuple[np.ndarray, np.ndarray]


def baselines(
    sums: Sums, base: TransformerClassifier, seeds: Mapping[int, Sequence[int]]
) -> list[Row]:
    """The rows of all, for each number of labels and its seeds."""
    # scikit-learn brings it; it carries no types of its own.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = []
    for labels, of_labels in seeds.items():
        pictures = task(sums, labels)
        validation, test = _flat(pictures.validation), _flat(pictures.test)
        for seed in of_labels:
            train = _flat(pictures.labelled(seed))
            with threadpool_limits(1):  # on problems this small, threads wait for each other
                rows += [
                    _neighbours(train, validation, test, seed),
                    _logistic(train, validation, test, seed),
                    _digit_by_digit(sums, labels, seed),
                ]
        rows.append(untrained("the base as it is", base, pictures))
    return rows


def _flat(pair: Data) -> Pairs:
    # In double precision, so that the number of BLAS threads does not show in the result.
    x, y = pair
    return x.flatten(1).double().numpy(), y.numpy()


def _neighbours(train: Pairs, validation: Pairs, test: Pairs, seed: int) -> Row:
    from sklearn.neighbors import KNeighborsClassifier

    labels = len(train[1])
    tried = [(k, KNeighborsClassifier(k).fit(*train)) for k in (1, 3, 5, 9, 15) if k <= labels]
    k, best = max(tried, key=lambda pair: pair[1].score(*validation))
    score = best.score(*test)
    return _row("nearest neighbours", "neighbours", labels, seed, f"k={k}", score)


def _logistic(train: Pairs, validation: Pairs, test: Pairs, seed: int) -> Row:
    from sklearn.linear_model import LogisticRegression

    tried = [
        (strength, LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(*train))
        for strength in (0.001, 0.01, 0.1, 1.0, 10.0)
    ]
    strength, best = max(tried, key=lambda pair: pair[1].score(*validation))
    score, labels = best.score(*test), len(train[1])
    return _row("logistic regression", "logistic", labels, seed, f"C={strength:g}", score)


def _digit_by_digit(sums: Sums, labels: int, seed: int) -> Row:
    """One nearest neighbour for each half of the picture, had its own digit been labelled."""
    from sklearn.neighbors import KNeighborsClassifier

    hand = data.digits()
    train = data.pairs(hand.train, labels, seed, label="number")
    test = data.pairs(hand.test, sums.test, seed=1002)

    def halves(part: data.Split) -> np.ndarray:
        return torch.cat(part.x.split(8, dim=3)).flatten(1).numpy()  # all left, then all right

    digit = torch.cat([train.y // 10, train.y % 10]).numpy()
    reader = KNeighborsClassifier(1).fit(halves(train), digit)
    left, right = np.split(reader.predict(halves(test)), 2)
    score = float(np.mean(left + right == test.y.numpy()))
    return _row("digits labelled singly", "halves", labels, seed, "k=1", score)


def _row(arm: str, kind: str, labels: int, seed: int, setting: str, accuracy: float) -> Row:
    return Row(
        stage="final",
        arm=arm,
        kind=kind,
        labels=labels,
        seed=seed,
        setting=setting,
        accuracy=float(accuracy),
    )
