"""Choosing learning rates, on valleys that are known."""

import random
from itertools import pairwise

import pytest
from experiment_help import tuned

from minilora.experiments.tuning import (
    FINE,
    RATES,
    Tuning,
    best_rate,
    rate_curve,
    runner_up,
    single_choices,
    tune,
)

Rounds = list[tuple[dict, tuple[int, ...]]]


def climb(middles, wanted, tuning):
    """Tune arms whose losses fall towards a rung; what was tried with all seeds, and all rounds."""
    ladder = FINE if tuning.glance else RATES
    rounds: Rounds = []

    def train(ladders, seeds):
        rounds.append(({arm: list(rates) for arm, rates in ladders.items()}, tuple(seeds)))
        return [
            tuned(lr, 1 + abs(ladder.index(lr) - wanted[arm]), seed, arm=arm)
            for arm, rates in ladders.items()
            for lr in rates
            for seed in seeds
        ]

    rows = tune(train, middles, tuning)
    seeds_at = {}
    for row in rows:
        seeds_at.setdefault((row.arm, ladder.index(row.lr)), set()).add(row.seed)
    whole = [key for key, seeds in seeds_at.items() if seeds == set(tuning.seeds)]
    tried = {arm: sorted(rung for name, rung in whole if name == arm) for arm in wanted}
    assert {arm: ladder.index(best_rate(rows, arm)) for arm in wanted} == wanted
    assert len({(row.arm, row.lr, row.seed) for row in rows}) == len(rows)  # none twice
    return tried, rounds


def test_a_rung_of_the_coarse_ladder_is_every_second_of_the_fine_one():
    assert FINE[::2] == RATES and list(FINE) == sorted(FINE)
    steps = [high / low for low, high in pairwise(FINE)]
    assert min(steps) > 1.35 and max(steps) < 1.6


def test_tuning_goes_on_until_the_best_rate_lies_inside():
    last = len(RATES) - 1
    wanted = {"low": 1, "high": last - 1, "inside": 5}
    middles = {arm: RATES[at] for arm, at in {"low": 4, "high": last - 4, "inside": 5}.items()}
    tried, rounds = climb(middles, wanted, Tuning(1, (0,), (0,)))
    assert tried["low"] == [0, 1, 2, 3, 4, 5]
    assert tried["high"] == list(range(last - 5, last + 1))
    assert tried["inside"] == [4, 5, 6]
    assert [len(ladders) for ladders, _ in rounds] == [3, 2, 2, 2]  # more only where they must be
    assert all(len(rates) == 1 for ladders, _ in rounds[1:] for rates in ladders.values())


@pytest.mark.parametrize("glance", [0, 1])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_best_rate_at_an_end_of_the_ladder_is_refused(glance, end):
    ladder = FINE if glance else RATES
    best = 0 if end == "first" else len(ladder) - 1
    near = ladder[4] if end == "first" else ladder[-5]
    with pytest.raises(ValueError, match=f"'a' is {ladder[best]:g}, where the ladder ends"):
        climb({"a": near}, {"a": best}, Tuning(1, (0, 1, 2), (0,), glance=glance))


def test_an_arm_that_is_best_left_untrained_ends_at_the_lowest_rate():
    def train(ladders, seeds):
        losses = {arm: [(lr, 2 + lr) for lr in rates] for arm, rates in ladders.items()}
        return [
            tuned(lr, loss, seed, arm=arm)
            for arm, of in losses.items()
            for lr, loss in of
            for seed in seeds
        ]

    for glance in (0, 1):
        rows = tune(train, {"a": 1e-3}, Tuning(1, (0, 1), (), glance=glance))
        assert best_rate(rows, "a") == FINE[0]


def test_a_middle_that_is_no_rung_is_refused():
    with pytest.raises(ValueError, match=r"0\.0123 is no rung"):
        climb({"a": 0.0123}, {"a": 5}, Tuning(1, (0,), (0,)))
    with pytest.raises(ValueError, match=r"0\.0032 is no rung"):  # of the coarse ladder
        climb({"a": 3.2e-3}, {"a": 5}, Tuning(1, (0,), (0,)))


def test_a_wider_model_starts_lower_and_more_rungs_are_tried():
    middle = RATES.index(2.2e-2)
    for rungs, lower in ((2, 0), (1, 1), (2, 3)):
        best = middle - lower
        tried, _ = climb({"a": 2.2e-2}, {"a": best}, Tuning(rungs, (0, 1), (), lower))
        assert tried["a"] == list(range(best - rungs, best + rungs + 1))


def test_a_glance_finds_the_place_and_all_draws_choose():
    at = FINE.index(2.2e-2)
    for best in (at, at + 1, at - 5, at + 6):
        tuning = Tuning(1, (7, 8, 9), (), glance=1)
        tried, rounds = climb({"a": 2.2e-2}, {"a": best}, tuning)
        assert rounds[0] == ({"a": [FINE[at - 2], FINE[at], FINE[at + 2]]}, (7,))
        assert set(tried["a"]) >= {best - 1, best, best + 1}
        assert len(tried["a"]) <= 3 + abs(best - at)
    # What has been seen at a glance is only completed.
    _, rounds = climb({"a": 2.2e-2}, {"a": at}, Tuning(1, (7, 8, 9), (), glance=1))
    assert rounds[1:] == [
        ({"a": [FINE[at - 1], FINE[at + 1]]}, (7, 8, 9)),
        ({"a": [FINE[at]]}, (8, 9)),
    ]


def test_rates_that_few_draws_have_tried_have_no_say():
    rows = [tuned(lr, loss, s) for lr, loss in ((0.1, 1.0), (0.2, 0.9), (0.3, 1.1)) for s in (0, 1)]
    rows.append(tuned(0.4, 0.1, 0))
    assert best_rate(rows, "a") == 0.2 and runner_up(rows, "a") == 0.1
    assert list(rate_curve(rows, "a")) == [0.1, 0.2, 0.3, 0.4]
    assert single_choices(rows, "a") == {0: 0.2, 1: 0.2}


def test_what_single_draws_would_have_chosen():
    losses = {0.1: (1.0, 3.0, 2.0), 0.2: (2.0, 1.0, 1.5), 0.3: (3.0, 2.0, None)}
    rows = [tuned(lr, loss, s) for lr, of in losses.items() for s, loss in enumerate(of)]
    random.Random(0).shuffle(rows)
    assert single_choices(rows, "a") == {0: 0.1, 1: 0.2, 2: 0.2}
    assert (best_rate(rows, "a"), runner_up(rows, "a")) == (0.2, 0.1)


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
