"""Choosing learning rates, on valleys that are known."""

import random
from itertools import pairwise

import pytest
from experiment_help import tuned

from minilora.experiments.tuning import (
    DOUBLES,
    FINE,
    LADDERS,
    RATES,
    Runs,
    Tuning,
    best_rate,
    by_rate,
    mean_loss,
    nearest,
    rate_curve,
    runner_up,
    single_choices,
    tune,
)


def climb(middles, wanted, tuning):
    """Tune arms whose losses fall towards a rung; what was tried with all seeds, and all rounds."""
    ladder = LADDERS[tuning.ladder]
    rounds: list[Runs] = []

    def train(runs):
        rounds.append(runs)
        return [
            tuned(lr, 1 + abs(ladder.index(lr) - wanted[arm]), seed, arm=arm)
            for arm, pairs in runs.items()
            for lr, seed in pairs
        ]

    rows = tune(train, middles, dict.fromkeys(middles, tuning))
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
    tried, rounds = climb(middles, wanted, Tuning(1, 1, (0,), (0,)))
    assert tried["low"] == [0, 1, 2, 3, 4, 5]
    assert tried["high"] == list(range(last - 5, last + 1))
    assert tried["inside"] == [4, 5, 6]
    assert [len(runs) for runs in rounds] == [3, 2, 2, 2]  # more only where they must be
    assert all(len(pairs) == 1 for runs in rounds[1:] for pairs in runs.values())


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("glance", [None, 1])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_best_rate_at_an_end_of_the_ladder_is_refused(name, glance, end):
    ladder = LADDERS[name]
    best = 0 if end == "first" else len(ladder) - 1
    near = ladder[4] if end == "first" else ladder[-5]
    with pytest.raises(ValueError, match=f"'a' is {ladder[best]:g}, where the ladder ends"):
        climb({"a": near}, {"a": best}, Tuning(1, 1, (0, 1, 2), (0,), glance, name))


def test_an_arm_that_is_best_left_untrained_ends_at_the_lowest_rate():
    def train(runs):
        return [tuned(lr, 2 + lr, seed, arm=arm) for arm in runs for lr, seed in runs[arm]]

    for glance, name in ((None, "coarse"), (1, "fine")):
        rows = tune(train, {"a": 1e-3}, {"a": Tuning(1, 1, (0, 1), (), glance, name)})
        assert best_rate(rows, "a") == FINE[0]


def test_a_middle_that_is_no_rung_is_refused():
    with pytest.raises(ValueError, match=r"0\.0123 is no rung"):
        climb({"a": 0.0123}, {"a": 5}, Tuning(1, 1, (0,), (0,)))
    with pytest.raises(ValueError, match=r"0\.0032 is no rung"):  # of the coarse ladder
        climb({"a": 3.2e-3}, {"a": 5}, Tuning(1, 1, (0,), (0,)))


def test_an_arm_begins_as_far_below_and_above_its_middle_as_it_is_told():
    middle = RATES.index(2.2e-2)
    for below, above, best in ((2, 2, 0), (2, 0, -1), (5, 1, -3)):
        tried, _ = climb({"a": 2.2e-2}, {"a": middle + best}, Tuning(below, above, (0, 1), ()))
        assert tried["a"] == list(range(middle - below, middle + above + 1))


def test_a_glance_finds_the_place_and_all_draws_choose():
    at = FINE.index(2.2e-2)
    for best in (at, at + 1, at - 5, at + 6):
        tuning = Tuning(1, 1, (7, 8, 9), (), glance=1, ladder="fine", stride=2)
        tried, rounds = climb({"a": 2.2e-2}, {"a": best}, tuning)
        assert rounds[0] == {"a": [(FINE[at + k], 7) for k in (-2, 0, 2)]}
        assert set(tried["a"]) >= {best - 1, best, best + 1}
        assert len(tried["a"]) <= 3 + abs(best - at)
    # What has been seen at a glance is only completed.
    _, rounds = climb({"a": 2.2e-2}, {"a": at}, tuning)
    near = [(FINE[at + k], seed) for k in (-1, 0, 1) for seed in (7, 8, 9)]
    assert rounds[1:] == [{"a": [run for run in near if run != (FINE[at], 7)]}]


# ---------------------------------------------------------------- the doubling ladder


def rung(rate):
    return DOUBLES.index(nearest(rate, DOUBLES))


def losses(curve):
    """A training whose loss depends on the rung, with draw 7 a little worse and draw 9 better."""

    def train(runs):
        train.asked.append(runs)
        rows = []
        for arm, pairs in runs.items():
            for rate, draw in pairs:
                loss = curve.get(rung(rate), 5.0)
                if loss is not None:
                    loss += {7: 0.2, 9: -0.1}.get(draw, 0.0) * rung(rate)
                rows.append(tuned(rate, loss, draw, arm=arm))
        return rows

    train.asked = []
    return train


def doubled(train, starts, draws, glance=1):
    """Tune arms that begin with all rungs from the first to the second that ``starts`` gives."""
    middles = {arm: DOUBLES[low] for arm, (low, _) in starts.items()}
    tunings = {
        arm: Tuning(0, high - low, draws, (), glance, "doubles")
        for arm, (low, high) in starts.items()
    }
    return tune(train, middles, tunings)


def by_draws(rows):
    """How many draws each rung was tried with."""
    return {rung(lr): len(runs) for lr, runs in by_rate(rows, "a").items()}


def test_the_rungs_are_powers_of_two_and_the_nearest_is_found():
    assert all(high == 2 * low for low, high in pairwise(DOUBLES))
    assert 0.001 in DOUBLES and 0.032 in DOUBLES
    for i, rate in enumerate(DOUBLES):
        assert rung(rate) == rung(1.3 * rate) == rung(rate / 1.3) == i


def test_an_inner_best_costs_all_draws_at_three_rungs():
    train = losses({3: 3.0, 4: 1.0, 5: 2.0})
    rows = doubled(train, {"a": (2, 6)}, (0, 1, 2))
    assert by_draws(rows) == {2: 1, 3: 3, 4: 3, 5: 3, 6: 1}
    assert len(rows) == len({(row.lr, row.seed) for row in rows})  # nothing twice
    assert best_rate(rows, "a") == DOUBLES[4]


@pytest.mark.parametrize("best", [1, 9])
def test_a_ladder_is_lengthened_on_either_side(best):
    train = losses({i: 1.0 + abs(i - best) for i in range(22)})
    rows = doubled(train, {"a": (4, 6)}, (0, 1))
    assert best_rate(rows, "a") == DOUBLES[best]
    tried = by_draws(rows)
    assert all(tried[best + i] == 2 for i in (-1, 0, 1))
    assert set(tried) == set(range(min(tried), max(tried) + 1))  # without a gap


def test_all_draws_decide_and_not_the_first():
    """Draw 0 alone likes rung 5 best; with draw 7, which punishes high rungs, it is rung 4."""
    curve = {3: 1.4, 4: 1.05, 5: 1.0, 6: 2.0}
    first = doubled(losses(curve), {"a": (3, 6)}, (0,))
    assert best_rate(first, "a") == DOUBLES[5]
    both = doubled(losses(curve), {"a": (3, 6)}, (0, 7))
    assert best_rate(both, "a") == DOUBLES[4]
    assert by_draws(both) == {3: 2, 4: 2, 5: 2, 6: 2}


def test_a_rate_with_fewer_draws_is_not_chosen():
    rows = [tuned(0.004, 1.0, 0), tuned(0.004, 1.0, 1), tuned(0.008, 0.5, 0)]
    assert best_rate(rows, "a") == 0.004


def test_a_diverged_run_is_a_worse_neighbour():
    train = losses({3: 1.5, 4: 1.0, 5: None})
    rows = doubled(train, {"a": (3, 4)}, (0,))
    assert best_rate(rows, "a") == DOUBLES[4]
    assert mean_loss(by_rate(rows, "a")[DOUBLES[5]]) == float("inf")


@pytest.mark.parametrize("falls", [1, -1])
def test_a_best_rate_at_the_end_of_the_whole_ladder_is_refused(falls):
    train = losses({i: 50.0 + falls * i for i in range(22)})
    with pytest.raises(ValueError, match="'a' is .* where the ladder ends: lengthen it"):
        doubled(train, {"a": (8, 12)}, (0,))


def test_arms_are_tried_together_and_each_as_far_as_it_needs():
    train = losses({i: 1.0 + abs(i - 5) for i in range(22)})
    rows = doubled(train, {"a": (4, 6), "b": (7, 9)}, (0, 1), glance=2)
    assert train.asked[0].keys() == {"a", "b"}
    assert all("a" not in later for later in train.asked[1:])
    assert best_rate(rows, "b") == DOUBLES[5]


# ---------------------------------------------------------------- what the rows say


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
