"""Choosing learning rates, on valleys that are known."""

import random

import pytest
from experiment_help import tuned

from minilora.experiments.tuning import RATES, Tuning, best_rate, tune


def climb(middles, wanted, tuning):
    """Tune arms whose losses fall towards a rung; the rungs that were tried, and all the rounds."""
    rounds = []

    def train(ladders):
        rounds.append(dict(ladders))
        return [
            tuned(lr, 1 + abs(RATES.index(lr) - wanted[arm]), seed, arm=arm)
            for arm, rates in ladders.items()
            for lr in rates
            for seed in tuning.seeds
        ]

    rows = tune(train, middles, tuning)
    tried = {arm: sorted({RATES.index(row.lr) for row in rows if row.arm == arm}) for arm in wanted}
    assert {arm: RATES.index(best_rate(rows, arm)) for arm in wanted} == wanted
    assert len({(row.arm, row.lr, row.seed) for row in rows}) == len(rows)  # none twice
    return tried, rounds


def test_tuning_goes_on_until_the_best_rate_lies_inside():
    last = len(RATES) - 1
    wanted = {"low": 1, "high": 9, "first": 0, "last": last, "inside": 5}
    middles = {"low": 4, "high": 6, "first": 0, "last": 10, "inside": 5}
    middles = {arm: RATES[at] for arm, at in middles.items()}
    tried, rounds = climb(middles, wanted, Tuning(1, (0,), (0,)))
    assert tried["low"] == [0, 1, 2, 3, 4, 5]
    assert tried["high"] == [5, 6, 7, 8, 9, 10]
    assert tried["first"] == [0, 1]  # nothing lies below
    assert tried["last"] == [9, 10, 11]  # and nothing above
    assert tried["inside"] == [4, 5, 6]
    assert [len(ladders) for ladders in rounds] == [5, 2, 2, 2]  # more only where they must be
    assert all(len(rates) == 1 for ladders in rounds[1:] for rates in ladders.values())


def test_a_wider_model_starts_lower_and_more_rungs_are_tried():
    for rungs, lower in ((2, 0), (1, 1), (2, 3)):
        tried, _ = climb({"a": 2.2e-2}, {"a": 7 - lower}, Tuning(rungs, (0, 1), (), lower))
        assert tried["a"] == list(range(7 - lower - rungs, 7 - lower + rungs + 1))


def test_the_best_rate_is_that_of_the_lowest_mean():
    rows = [
        *(tuned(0.1, loss, seed) for seed, loss in enumerate((0.1, 3.0))),  # the best single run
        *(tuned(0.03, loss, seed) for seed, loss in enumerate((1.0, 1.2))),
        *(tuned(0.01, loss, seed) for seed, loss in enumerate((1.3, 1.1))),
        tuned(0.3, 0.2, stage="final"),  # test data have no say
        tuned(0.3, 0.2, arm="b"),
        tuned(0.2, 0.2, labels=80),
    ]
    random.Random(0).shuffle(rows)
    assert best_rate(rows, "a", 40) == 0.03 and best_rate(rows, "a", 80) == 0.2
    assert best_rate([row for row in rows if row.labels == 40], "a") == 0.03
    with pytest.raises(ValueError, match="no tuning runs of 'c'"):
        best_rate(rows, "c")


def test_the_lower_of_two_tied_rates_is_taken():
    rows = [tuned(lr, 1.0) for lr in (0.03, 0.01, 0.1)]
    assert best_rate(rows, "a") == best_rate(rows[::-1], "a") == 0.01


def test_a_rate_that_diverged_once_is_never_taken():
    rows = [tuned(0.1, 0.1), tuned(0.1, None, 1), tuned(0.01, 5.0), tuned(0.01, 6.0, 1)]
    assert best_rate(rows, "a") == best_rate(rows[::-1], "a") == 0.01
