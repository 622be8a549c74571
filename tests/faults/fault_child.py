"""Work done in a forked copy of this process, which may hang, crash or be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from forking import fork


class Child(NamedTuple):
    pid: int
    pipe: int
    deadline: float


def start(work: Callable[[], dict[str, Any]], seconds: float) -> Child:
    """Begin ``work`` in a child; what it returns comes back as JSON."""
    reader, writer = os.pipe()

    def report() -> None:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:  # before the work, which may spoil `open`
            try:
                result = work()
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                result = {"died": f"{type(error).__name__}: {error} ({where.name})"}
            json.dump(result, pipe)

    pid = fork(report)
    os.close(writer)
    return Child(pid, reader, time.monotonic() + seconds)


def finish(child: Child) -> dict[str, Any]:
    """What the child returned, or {"died": why}."""
    wait = max(0.0, child.deadline - time.monotonic())
    hung = not select.select([child.pipe], [], [], wait)[0]
    if hung:
        os.kill(child.pid, signal.SIGKILL)
    with os.fdopen(child.pipe) as pipe:
        text = pipe.read()
    status = os.waitpid(child.pid, 0)[1]
    if hung:
        return {"died": "it did not end in time"}
    if os.WIFSIGNALED(status):
        return {"died": f"it died of {signal.Signals(os.WTERMSIG(status)).name}"}
    return json.loads(text) if text else {"died": "it ended without a result"}


def result_of(work: Callable[[], dict[str, Any]], seconds: float = 60) -> dict[str, Any]:
    return finish(start(work, seconds))


def all_results(
    works: Iterator[tuple[Any, Callable[[], dict[str, Any]]]], jobs: int, seconds: float
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(name, result) of each piece of work, ``jobs`` of them at a time, in the order of ending."""
    running: dict[int, tuple[Any, Child]] = {}
    more = True
    while more or running:
        while more and len(running) < jobs:
            name, work = next(works, (None, None))
            if work is None:
                more = False
            else:
                child = start(work, seconds)
                running[child.pipe] = (name, child)
        if running:
            first = min(child.deadline for _, child in running.values())
            wait = max(0.0, first - time.monotonic())
            ready = select.select(list(running), [], [], wait)[0]
            late = [p for p, (_, child) in running.items() if child.deadline == first]
            for pipe in ready or late:
                name, child = running.pop(pipe)
                yield name, finish(child)
