"""Much work: spread over processes, kept on disk as it is done, and stopped in time.

Processes have one torch thread each. On a CPU that is faster than one process with many threads,
and it gives the same numbers.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from minilora.lab.training import one_thread

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OutOfTime(Exception):
    """What comes next would not be done within the `time_limit`."""


class OtherWork(ValueError):
    """A file holds the finished entries of other work than this."""


#: When the time is over, and the clock that says so.
_LIMIT: ContextVar[tuple[float, Callable[[], float]] | None] = ContextVar("limit", default=None)


@contextmanager
def time_limit(seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Inside, whoever asks `keep_to_time` is stopped by OutOfTime once so many seconds are over.

    `spread` asks before each item, so that an item is done whole or not at all.
    """
    token = _LIMIT.set((clock() + seconds, clock))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def time_left() -> float:
    """Seconds until the `time_limit`; infinite where there is none."""
    limit = _LIMIT.get()
    if limit is None:
        return math.inf
    end, clock = limit
    return end - clock()


def keep_to_time(needed: float = 0.0) -> None:
    """Raise OutOfTime unless more seconds are left than are ``needed``."""
    if time_left() <= needed:
        raise OutOfTime


def spread(work: Callable[[_Item], _Found], items: Sequence[_Item], jobs: int) -> Iterator[_Found]:
    """``work`` of every item, in their order, as it comes.

    With ``jobs`` above 1, in so many processes, or on the cluster of a `joblib.parallel_config`.
    ``work`` and the items are sent there, so that ``work`` must be importable: a function of a
    module, or a `functools.partial` of one. Under a `time_limit` no item is begun for which the
    time left is too short, judged by the longest so far.

    Raises:
        OutOfTime: There are items left, and no time.
    """
    if jobs == 1 or len(items) < 2:
        yield from _in_time(map(work, items), len(items))
        return
    from joblib import Parallel, delayed  # scikit-learn brings it

    # It starts a worker anew once its memory has grown, which is no concern of the reader.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
    # And it says so when what was under way is dropped, as at a time limit.
    warnings.filterwarnings("ignore", message=".* tasks which were still being processed")
    parallel = Parallel(n_jobs=min(jobs, len(items)), return_as="generator")
    yield from _in_time(parallel(delayed(_alone)(work, item) for item in items), len(items))


def _in_time(found: Iterator[_Found], count: int) -> Iterator[_Found]:
    """The same ``count`` things, each begun only where there is time for it."""
    longest = 0.0
    for _ in range(count):
        keep_to_time(longest)
        left = time_left()
        one = next(found)
        if left < math.inf:
            longest = max(longest, left - time_left())
        yield one


def _alone(work: Callable[[_Item], _Found], item: _Item) -> _Found:
    """One item in a process of its own."""
    with one_thread():
        return work(item)


class Journal:
    """Finished entries by key, each on disk as soon as it is added: a stopped run goes on there.

    Line by line in JSON: the first line says what the entries belong to, each further line is one
    finished entry. A line that was cut off by the end of a run is passed over and written anew.

    ``header`` says what the entries belong to. A file with another header is refused, or, with
    ``replace=True``, begun afresh. With ``path=None`` nothing is written.

    Raises:
        OtherWork: The file has another header.
    """

    def __init__(
        self, path: Path | str | None, header: dict[str, Any], *, replace: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.entries: dict[str, Any] = {}
        if self.path is None:
            return
        first = json.dumps({"journal": header}, sort_keys=True) + "\n"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text.startswith(first):
            for line in text[len(first) :].splitlines():
                try:
                    entry = json.loads(line)
                    self.entries[entry["key"]] = entry["entry"]
                except (ValueError, TypeError, KeyError):
                    continue  # the line that was being written when the run was stopped
            if not text.endswith("\n"):
                self._write("a", "\n")
        elif replace or first.startswith(text):  # empty, or stopped in its first line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", first)
        else:
            raise OtherWork(
                f"{self.path} belongs to other work: it begins with {text.splitlines()[0][:80]!r}. "
                "Give another path, or delete the file"
            )

    def add(self, key: str, entry: Any) -> None:
        """Keep one finished entry, anything that JSON can hold."""
        self.entries[key] = entry
        self._write("a", json.dumps({"key": key, "entry": entry}) + "\n")

    def _write(self, mode: str, text: str) -> None:
        if self.path is not None:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
