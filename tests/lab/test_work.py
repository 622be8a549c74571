"""Work that is spread, and stopped in time."""

import math

import pytest

from minilora.lab.measuring import take_turns
from minilora.lab.work import OutOfTime, keep_to_time, spread, time_left, time_limit


class Clock:
    """It moves on by what each piece of work takes."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def worker(clock, done, takes):
    def work(item):
        clock.now += takes[item]
        done.append(item)
        return 10 * item

    return work


def double(item):
    return 2 * item


def test_without_a_limit_there_is_time_for_everything():
    assert time_left() == math.inf
    keep_to_time(1e12)
    assert list(spread(double, [1, 2, 3], 1)) == [2, 4, 6]


def test_no_item_is_begun_that_would_not_be_done_in_time():
    clock, done = Clock(), []
    work = worker(clock, done, {1: 3.0, 2: 1.0, 3: 1.0, 4: 1.0})
    found = []
    with pytest.raises(OutOfTime), time_limit(7.5, clock):
        found.extend(spread(work, [1, 2, 3, 4], 1))
    # After two items there are 3.5 s left, more than the longest took; after three, 2.5 s.
    assert found == [10, 20, 30] and done == [1, 2, 3]
    assert time_left() == math.inf


def test_the_last_item_ends_in_time_and_is_not_held_against_it():
    clock, done = Clock(), []
    with time_limit(6.0, clock):
        assert list(spread(worker(clock, done, {1: 5.0}), [1], 1)) == [10]
        assert time_left() == 1.0
        clock.now += 1.0
        with pytest.raises(OutOfTime):
            list(spread(worker(clock, done, {1: 5.0}), [1], 1))
        assert list(spread(double, [], 1)) == []  # nothing is left to be done
    assert done == [1]


def test_what_the_reader_of_the_results_takes_is_not_the_work_s():
    clock, done = Clock(), []
    with time_limit(10.0, clock):
        for _ in spread(worker(clock, done, {1: 1.0, 2: 1.0}), [1, 2], 1):
            clock.now += 4.0
    assert done == [1, 2]


def test_limits_nest_and_the_outer_comes_back():
    clock = Clock()
    with time_limit(50.0, clock):
        with time_limit(5.0, clock):
            assert time_left() == 5.0
        assert time_left() == 50.0


def test_processes_are_stopped_too():
    clock = Clock()
    with time_limit(5.0, clock):
        results = spread(double, list(range(8)), 2)
        assert next(results) == 0
        clock.now += 5.0
        with pytest.raises(OutOfTime):
            next(results)
    assert list(spread(double, [1, 2, 3], 2)) == [2, 4, 6]  # and there are processes again


def test_rounds_that_are_timed_keep_to_the_time(monkeypatch):
    clock, done = Clock(), []
    monkeypatch.setattr("minilora.lab.measuring.time.perf_counter", clock)
    runs = {name: lambda name=name: worker(clock, done, {name: 1.0})(name) for name in "ab"}
    with pytest.raises(OutOfTime), time_limit(7.0, clock):
        take_turns(runs, rounds=5)
    assert len(done) == 6  # three rounds of two seconds; one second is left
