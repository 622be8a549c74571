"""Processes that stay open: what they return, print and raise, and that none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from minilora.lab.processes import Processes, Waiting


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as group:
        yield group


def test_they_know_each_other_and_answer_in_order(two: Processes) -> None:
    def add(factor: float) -> tuple[int, list[float]]:
        mine = torch.tensor([1.0, 2.0]) * (dist.get_rank() + 1)
        dist.all_reduce(mine)
        return dist.get_rank(), (factor * mine).tolist()

    assert two.run(add, 10.0) == [(0, [30.0, 60.0]), (1, [30.0, 60.0])]


def test_what_they_print_is_printed_here(
    two: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    two.run(lambda: print("one\ntwo"))
    assert capsys.readouterr().out == "".join(
        f"process {n}: {word}\n" for n in (0, 1) for word in ("one", "two")
    )


def test_they_are_two_processes_with_one_thread_each_that_stay(two: Processes) -> None:
    found = two.run(lambda: (os.getpid(), torch.get_num_threads()))
    assert two.run(lambda: (os.getpid(), torch.get_num_threads())) == found
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    assert [threads for _, threads in found] == [1, 1]


def fail_in_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second one has failed")
    dist.barrier()  # for which the other never comes


def wait_in_one() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


def die_in_one() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "seconds", "error", "words"),
    [
        (fail_in_one, 30, RuntimeError, "process 1: .*the second one has failed"),
        (wait_in_one, 1, Waiting, "process 0 had not returned after 1 seconds"),
        (die_in_one, 30, RuntimeError, "process 1 has ended"),
    ],
)
def test_after_an_error_all_are_ended_and_new_ones_come(
    function: object, seconds: float, error: type[Exception], words: str
) -> None:
    with Processes(2) as group:
        before = group.run(os.getpid)
        begun = time.monotonic()
        with pytest.raises(error, match=f"(?s){words}"):
            group.run(function, seconds=seconds)  # type: ignore[arg-type]
        assert time.monotonic() - begun < 15
        for pid in before:
            assert not alive(pid)
        assert set(group.run(os.getpid)).isdisjoint(before)
    assert group._children == []


def alive(pid: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
