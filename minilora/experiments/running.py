"""Running an experiment: on which machine, in which parts, and how its recording comes about."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from minilora.experiments.recording import (
    Quantity,
    Recording,
    Row,
    keep_run,
    source_of,
    write_recording,
)
from minilora.lab.provenance import commit, device_name, now, peak_memory, versions
from minilora.lab.training import one_thread
from minilora.lab.work import Journal, cores, spread

_Run = TypeVar("_Run")


@dataclass(frozen=True)
class Machine:
    """Where a run takes place: device, processes, the folder of its unfinished work, its code."""

    device: torch.device
    jobs: int = 1
    folder: Path | None = None
    source: str = ""
    progress: bool = False

    def file(self, name: str) -> Path | None:
        """The file for finished work of that name, if it is to be kept at all."""
        return None if self.folder is None else self.folder / f"{name}.jsonl"

    def say(self, words: str) -> None:
        """Print a line of progress, where it is wanted."""
        if self.progress:
            print(words, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Profile:
    """The size of a run. Each experiment has its own, with what it varies."""

    name: str


_Profile = TypeVar("_Profile", bound=Profile)


@dataclass(frozen=True)
class Experiment(Generic[_Profile]):
    """An experiment: what can be run, at which sizes.

    Attributes:
        name: That of its folder, and of its recordings.
        profiles: Its sizes: "cpu" for a page, "gpu" for a recording, "smoke" for the tests.
        parts: What can be run by itself.
        run_part: The rows and the quantities of one part.
        on_card: The profiles that take a CUDA card where there is one.
    """

    name: str
    profiles: Mapping[str, _Profile]
    parts: Sequence[str]
    run_part: Callable[[_Profile, str, Machine], Sequence[Row | Quantity]]
    on_card: Sequence[str] = ("cpu", "gpu", "smoke")

    def run(
        self,
        profile: str | _Profile = "cpu",
        *,
        parts: Sequence[str] | None = None,
        jobs: int | None = None,
        device: torch.device | str | None = None,
        out: Path | str | None = None,
        progress: bool = False,
    ) -> Recording:
        """Run the parts, all unless some are named; ``out`` is a folder for ``NAME.PROFILE.json``.

        Until that is there, finished work is kept in a folder beside it, so that a second call
        goes on where the first was stopped. ``jobs`` processes share the work: one for each core,
        or six for a card.

        Raises:
            ValueError: A part that there is not; ``out`` with some of the parts only; the gpu
                profile without a card, unless ``device`` says where to run it.
        """
        if isinstance(profile, str):
            profile = self.profiles[profile]
        chosen = list(self.parts if parts is None else parts)
        if unknown := [part for part in chosen if part not in self.parts]:
            raise ValueError(f"no part {unknown[0]!r}; there are {', '.join(self.parts)}")
        if out is not None and set(chosen) != set(self.parts):
            raise ValueError("a recording holds all parts: leave either parts or out away")
        machine = self._machine(profile, jobs, device, out, progress)
        started = time.perf_counter()
        rows: list[Row] = []
        quantities: list[Quantity] = []
        journal = Journal(machine.file("parts"), {"settings": repr(profile)}, replace=True)
        for part in chosen:
            if part not in journal.entries:
                found = self.run_part(profile, part, machine)
                journal.add(part, [asdict(one) for one in found])
            for one in journal.entries[part]:
                if "measured" in one:
                    quantities.append(Quantity(**one))
                else:
                    rows.append(Row(**one))
            machine.say(f"{self.name}: {part}, {time.perf_counter() - started:.0f} s")
        recording = Recording(
            name=self.name,
            profile=profile.name,
            settings=asdict(profile),
            rows=rows,
            quantities=quantities,
            source=machine.source,
            device=device_name(machine.device),
            versions=versions(),
            date=now(),
            commit=commit(),
            seconds=time.perf_counter() - started,
            peak_bytes=peak_memory(machine.device),
        )
        if out is not None:
            write_recording(recording, out)
        if machine.folder is not None:
            shutil.rmtree(machine.folder, ignore_errors=True)
        keep_run(recording, None if set(chosen) == set(self.parts) else "-".join(chosen))
        return recording

    def _machine(
        self,
        profile: _Profile,
        jobs: int | None,
        device: torch.device | str | None,
        out: Path | str | None,
        progress: bool,
    ) -> Machine:
        card = torch.cuda.is_available() and profile.name in self.on_card
        if profile.name == "gpu" and not card and device is None:
            raise ValueError(
                "the gpu profile needs a CUDA card, and torch finds none here: run it where there "
                "is one, or take the profile 'cpu'"
            )
        chosen = torch.device(device or ("cuda" if card else "cpu"))
        source = source_of(self.name)
        folder = None
        if out is not None:
            folder = Path(out) / f"{self.name}.{profile.name}.{source[:12]}.parts"
        processes = jobs or (min(cores(), 6) if chosen.type == "cuda" else cores())
        return Machine(chosen, processes, folder, source, progress)


def rows_of(
    runs: Sequence[_Run],
    work: Callable[[_Run], list[Row]],
    name: str,
    header: dict[str, Any],
    machine: Machine,
) -> list[list[Row]]:
    """The rows of every run, in the runs' order; those in the machine's folder are not run again.

    ``work`` must be importable, as in `minilora.lab.work.spread`. A run's repr is its key, and
    ``header`` is what else settles its rows.
    """
    journal = Journal(machine.file(name), {"source": machine.source} | header, replace=True)
    missing = [run for run in runs if repr(run) not in journal.entries]
    started, shown = time.perf_counter(), 0.0
    found = spread(partial(_on_one_thread, work), missing, machine.jobs)
    for done, (run, rows) in enumerate(zip(missing, found, strict=True), 1):
        journal.add(repr(run), [asdict(row) for row in rows])
        elapsed = time.perf_counter() - started
        if elapsed - shown > 5 or done == len(missing):
            shown = elapsed
            machine.say(f"{name}: {done} of {len(missing)} in {elapsed:.0f} s")
    return [[Row(**row) for row in journal.entries[repr(run)]] for run in runs]


def _on_one_thread(work: Callable[[_Run], list[Row]], run: _Run) -> list[Row]:
    with one_thread():
        return work(run)
