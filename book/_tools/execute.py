"""Execute the notebooks that have changed, several side by side where there are cores for it.

    python book/_tools/execute.py [--only notebooks/08_lora_transformer] [--list] [--beside N]

`make book` calls this before Sphinx reads the pages. It fills the cache that _ext/freshness.py
chooses, with the same programs that MyST-NB would use one after the other, so that Sphinx then
finds every notebook executed. Before it begins it says which notebooks it will execute and for
about how long; after each, how long is left. --list says that and executes nothing.

Notebooks run side by side, with a core each, since most of their time only one thread is busy. Of
four cores or more the longest get two. Their threads and processes count those cores only. The
notebooks that time things run alone, at the end, with all cores.
The seconds that each took are kept in build/seconds.json; before there are any, those in
seconds.json beside this file serve: what the cards of the chapters say, for two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from freshness import execution_key, failing_cell, has_code, notebooks  # noqa: E402

#: They compare times, which a neighbour would change, or start a process for each core.
ALONE = ("11_memory_time", "16_family", "17_shipping", "18_many_gpus")
#: Of one cell, in seconds. A slow machine is no error; a cell that hangs is one.
TIMEOUT = 1800
#: Memory that a notebook may take at its peak, in bytes.
MEMORY = 3 * 2**30
MEASURED = Path(__file__).with_name("seconds.json")


# --- The cache ----------------------------------------------------------------------------------


def cache_of(root: Path):
    """jupyter-cache's folder for the present state of the code, as freshness.py chooses it."""
    from jupyter_cache import get_cache

    folder = root / "build" / "executed" / execution_key(root)
    folder.mkdir(parents=True, exist_ok=True)
    return get_cache(str(folder))


def read(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def is_executed(cache, path: Path) -> bool:
    try:
        cache.match_cache_notebook(read(path))
    except KeyError:
        return False
    return True


# --- How long it takes --------------------------------------------------------------------------


def seconds_known(root: Path = ROOT) -> dict[str, float]:
    """page -> seconds: of the last time here, else of the machine that the book was measured on."""
    known: dict[str, float] = {}
    for path in (MEASURED, root / "build" / "seconds.json"):
        try:
            known |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return known


def keep_seconds(root: Path, name: str, seconds: float) -> None:
    """Remember a notebook's seconds; a build that is stopped has kept those so far."""
    path = root / "build" / "seconds.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    path.parent.mkdir(exist_ok=True)
    known[name] = round(seconds, 1)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def said(seconds: float) -> str:
    """'45 s', '1 min 40 s', '24 min': as exact as one needs it."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{round(seconds / 60)} min"


def together(seconds: Iterable[float], workers: int) -> float:
    """How long so many workers take that always begin the longest of what is left."""
    busy = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


@dataclass
class Clock:
    """What is left, judged by how the notebooks so far compared with what was expected."""

    expected: Mapping[str, float]
    workers: int
    shared: float = 1.0  # how much longer one takes beside others, with which it shares its cores
    done: dict[str, float] = field(default_factory=dict)  # the seconds of each, were it alone

    def of(self, name: str) -> float:
        usual = sorted(self.expected.values())
        return self.expected.get(name) or (usual[len(usual) // 2] if usual else 60.0)

    def pace(self) -> float:
        """This machine's seconds for one that was expected."""
        wanted = sum(self.of(name) for name in self.done)
        return sum(self.done.values()) / wanted if wanted > 0 else 1.0

    def left(self, beside: Mapping[str, float], alone: Sequence[str]) -> float:
        """Seconds for notebooks {name: seconds it has run} and for those that run alone."""
        pace = self.pace()
        rest = [max(self.of(n) * pace * self.shared - ran, 0.0) for n, ran in beside.items()]
        return together(rest, self.workers) + pace * sum(map(self.of, alone))


# --- Executing ----------------------------------------------------------------------------------


def cores() -> list[int]:
    """The cores that this process may use; their numbers count for nothing where they are many."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30


#: How much longer notebooks take beside others than alone with two cores.
SHARED = 1.3


def places(available: Sequence[int], bytes_there: int, asked: int = 0) -> list[list[int]]:
    """The cores of every notebook that runs beside others; one list where none does.

    One for each, and where there are four, two for the one that begins first, which is the longest.
    Fewer notebooks where memory is short; or as many as `asked`, which share all cores where there
    are fewer cores than that.
    """
    count = len(available)
    workers = max(1, asked or min(count - count // 4, bytes_there // MEMORY))
    if workers > count:
        return [list(available)] * workers
    size, more = divmod(count, workers)
    left = iter(available)
    return [list(islice(left, size + (k < more))) for k in range(workers)]


@dataclass(frozen=True)
class Done:
    """What a notebook's own process reports."""

    name: str
    seconds: float
    processor: float
    cores: int
    error: str
    notebook: str


def work(path: Path, out: Path, mine: list[int]) -> None:
    """In a process of its own: execute one notebook and write what came of it."""
    if mine and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, mine)
    import nbformat
    from jupyter_cache.executors.utils import single_nb_execution
    from nbclient.exceptions import DeadKernelError

    notebook = read(path)
    began, error = time.monotonic(), ""
    try:
        found = single_nb_execution(
            notebook, cwd=str(path.parent), timeout=TIMEOUT, allow_errors=False
        )
        if found.err is not None:
            error = f"{failing_cell(notebook)}\n{found.exc_string}"
    except DeadKernelError as problem:
        error = f"{failing_cell(notebook)}\n{problem}"
    children = os.times()
    report = {
        "seconds": time.monotonic() - began,
        "processor": children.children_user + children.children_system,
        "cores": len(cores()),
        "error": error,
        "notebook": nbformat.writes(notebook),
    }
    out.write_text(json.dumps(report), encoding="utf-8")


def start(path: Path, out: Path, mine: list[int], threads: int) -> subprocess.Popen:
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "LOKY_MAX_CPU_COUNT": str(len(mine))}
    command = [sys.executable, __file__, "--work", str(path), str(out)]
    numbers = ",".join(map(str, mine))
    return subprocess.Popen([*command, "--cores", numbers], env=environment, cwd=ROOT)


def one(path: Path, mine: Sequence[int] = (), threads: int = 0) -> Done:
    """Execute one notebook in a process, on these cores with so many threads, or on all."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "done.json"
        process = start(path, out, list(mine), threads)
        try:
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
        if not out.exists():
            return Done(path.stem, 0.0, 0.0, 0, f"its process ended with {process.returncode}", "")
        return Done(path.stem, **json.loads(out.read_text(encoding="utf-8")))


class Build:
    """Executes notebooks, keeps them in the cache and says how far it is."""

    def __init__(self, root: Path, paths: Sequence[Path], slots: list[list[int]]) -> None:
        self.root, self.cache = root, cache_of(root)
        self.slots = slots
        self.sharing = len(slots) > 1 and slots[0] == slots[1]
        shared = SHARED if len(slots) > 1 else 1.0
        self.clock = Clock(seconds_known(root), len(slots), shared)
        longest_first = sorted(paths, key=lambda path: -self.clock.of(path.stem))
        self.beside = [p for p in longest_first if p.stem not in ALONE] if len(slots) > 1 else []
        self.alone = [path for path in paths if path not in self.beside]
        self.running: dict[str, float] = {}
        self.errors: dict[str, str] = {}
        self.lock = threading.Lock()

    def plan(self) -> str:
        """What will be done, and for how long."""
        count = len(self.beside) + len(self.alone)
        if not count:
            return "Every notebook is executed already."
        usual = self.clock.left(
            {path.stem: 0.0 for path in self.beside}, [path.stem for path in self.alone]
        )
        how = "one after the other"
        if self.beside:
            how = f"{len(self.slots)} side by side"
            if self.alone:
                how += f", then {len(self.alone)} alone, for they time things"
        names = ", ".join(path.stem for path in sorted([*self.beside, *self.alone]))
        return f"To execute: {names}\n{count} in all, {how}: about {said(usual)}."

    def finish(self, path: Path, done: Done) -> None:
        """Keep what came of one notebook, and say what is left."""
        from jupyter_cache.base import CacheBundleIn
        from nbformat import reads

        self.running.pop(path.stem, None)
        usual = done.seconds / (self.clock.shared if path in self.beside else 1.0)
        self.clock.done[path.stem] = usual
        total = len(self.beside) + len(self.alone)
        if done.error:
            self.errors[path.stem] = done.error
            where = path.relative_to(self.root).as_posix()
            # 'ExecutionError: ' is what build.py looks for in a line.
            print(f"ExecutionError: {where}, {done.error}", flush=True)
        else:
            notebook = reads(done.notebook, as_version=4)
            data = {
                "execution_seconds": done.seconds,
                "processor_seconds": done.processor,
                "cores": done.cores,
            }
            bundle = CacheBundleIn(notebook, str(path), data=data)
            self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            keep_seconds(self.root, path.stem, usual)
        beside = {p.stem: 0.0 for p in self.beside if p.stem not in self.clock.done}
        now = time.monotonic()
        beside |= {name: now - began for name, began in self.running.items() if name in beside}
        left = self.clock.left(
            beside, [p.stem for p in self.alone if p.stem not in self.clock.done]
        )
        number = len(self.clock.done)
        rest = f", about {said(left)} left" if number < total else ""
        word = "FAILED after" if done.error else "done,"
        print(f"{number} of {total}: {path.stem} {word} {said(done.seconds)}{rest}", flush=True)

    def run(self) -> None:
        """Execute all; a notebook that fails keeps no other from being executed."""
        waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for path in self.beside:
            waiting.put(path)

        def of_slot(mine: list[int]) -> None:
            while True:
                try:
                    path = waiting.get_nowait()
                except queue.Empty:
                    return
                with self.lock:
                    self.running[path.stem] = time.monotonic()
                done = one(path, mine, 1 if self.sharing else len(mine))
                with self.lock:
                    self.finish(path, done)

        threads = [threading.Thread(target=of_slot, args=(mine,)) for mine in self.slots]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:  # those that run have got it as well; let no other begin
            with suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            raise
        for path in self.alone:
            self.finish(path, one(path))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=None, help="one page: its path without .ipynb")
    parser.add_argument("--list", action="store_true", help="say what would be executed")
    parser.add_argument("--beside", type=int, default=0, help="so many notebooks side by side")
    parser.add_argument("--work", nargs=2, type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--cores", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(*options.work, [int(n) for n in re.findall(r"\d+", options.cores)])
        return 0
    cache = cache_of(ROOT)
    pages = [path for path in notebooks(ROOT) if has_code(path)]
    if options.only:
        pages = [path for path in pages if path == ROOT / f"{options.only}.ipynb"]
    todo = [path for path in pages if not is_executed(cache, path)]
    build = Build(ROOT, todo, places(cores(), memory(), options.beside))
    print(build.plan(), flush=True)
    if not options.list:
        build.run()
    return int(bool(build.errors))


if __name__ == "__main__":
    sys.exit(main())
