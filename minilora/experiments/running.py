"""Running an experiment: on which machine, in which parts, and how its recording comes about."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from minilora.experiments.recording import (
    Quantity,
    Recording,
    Row,
    file_name,
    keep_run,
    read_recording,
    same_work,
    source_of,
    together,
    write_recording,
)
from minilora.lab.provenance import commit, device_name, now, peak_memory, versions
from minilora.lab.training import one_thread
from minilora.lab.work import Journal, OtherWork, cores, spread

_Run = TypeVar("_Run")

#: Processes that share a card. Each takes seconds to reach it, and they wait for each other there.
CARD_JOBS = 4


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
        profiles: Its sizes: "cpu" for a page, "laptop" and "gpu" for a recording, "smoke" for the
            tests.
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

        Until that is there, each finished part has a recording of its own in the folder, and what
        is finished of an unfinished part lies in a folder beside it, so that a second call goes on
        where the first was stopped. ``jobs`` processes share the work: one for each core, or four
        for a card.

        Raises:
            ValueError: A part that there is not; the gpu profile without a card, unless ``device``
                says where to run it.
            minilora.lab.work.OutOfTime: Under a `minilora.lab.work.time_limit`, there is work left
                and no time.
        """
        if isinstance(profile, str):
            profile = self.profiles[profile]
        chosen = list(self.parts if parts is None else parts)
        if unknown := [part for part in chosen if part not in self.parts]:
            raise ValueError(f"no part {unknown[0]!r}; there are {', '.join(self.parts)}")
        machine = self._machine(profile, jobs, device, out, progress)
        started = time.perf_counter()
        found = []
        for part in chosen:
            one = self._of_part(profile, part, machine, out)
            if one is None:
                one = self._run_part(profile, part, machine)
                if out is not None:
                    write_recording(one, out)
            found.append(one)
            machine.say(f"{self.name}: {part}, {time.perf_counter() - started:.0f} s")
        whole = set(chosen) == set(self.parts)
        recording = together(found, None if whole else "-".join(chosen))
        if out is not None:
            self._gather(profile, machine, out)
        keep_run(recording)
        return recording

    def recorded(
        self,
        profile: str | _Profile,
        part: str,
        out: Path | str,
        device: torch.device | str | None = None,
    ) -> bool:
        """Whether a folder has a recording of the part, by itself or in that of the whole.

        It must be of the same size, made by the same code, on such a machine.
        """
        if isinstance(profile, str):
            profile = self.profiles[profile]
        machine = self._machine(profile, None, device, out, False)
        names = (part, None)
        return any(self._of_part(profile, name, machine, out) is not None for name in names)

    def _run_part(self, profile: _Profile, part: str, machine: Machine) -> Recording:
        if machine.device.type == "cuda":
            torch.cuda.init()  # before it there is no peak to set back
            torch.cuda.reset_peak_memory_stats(machine.device)
        started = time.perf_counter()
        try:
            found = self.run_part(profile, part, machine)
        except OtherWork:
            # A base that had to be trained anew on a card need not be the same to the last bit.
            machine.say(f"{self.name}: what is there of {part} belongs to another base; afresh")
            assert machine.folder is not None
            shutil.rmtree(machine.folder)
            found = self.run_part(profile, part, machine)
        return replace(
            self._empty(profile, part, machine),
            rows=[one for one in found if isinstance(one, Row)],
            quantities=[one for one in found if isinstance(one, Quantity)],
            commit=commit(),
            seconds=time.perf_counter() - started,
            peak_bytes=peak_memory(machine.device),
        )

    def _empty(self, profile: _Profile, part: str | None, machine: Machine) -> Recording:
        """The recording of a part without what was found."""
        return Recording(
            name=self.name,
            profile=profile.name,
            part=part,
            settings=asdict(profile),
            rows=[],
            source=machine.source,
            device=device_name(machine.device),
            versions=versions() | _more_versions(),
            date=now(),
            commit=None,
            seconds=0.0,
            peak_bytes=None,
        )

    def _of_part(
        self, profile: _Profile, part: str | None, machine: Machine, out: Path | str | None
    ) -> Recording | None:
        """What a folder has of a part (None: of the whole), if it is what would be run now."""
        if out is None:
            return None
        path = Path(out) / file_name(self.name, profile.name, part)
        try:
            found = read_recording(path)
        except (FileNotFoundError, ValueError):  # not there, or not sound: it is made anew
            return None
        return found if same_work(found, self._empty(profile, part, machine)) else None

    def _gather(self, profile: _Profile, machine: Machine, out: Path | str) -> None:
        """Where the folder has every part, write one recording and delete those of the parts."""
        found = [self._of_part(profile, part, machine, out) for part in self.parts]
        parts = [one for one in found if one is not None]
        if len(parts) < len(found):
            return
        write_recording(together(parts), out)
        for part in self.parts:
            (Path(out) / file_name(self.name, profile.name, part)).unlink()
        if machine.folder is not None:
            shutil.rmtree(machine.folder, ignore_errors=True)

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
        processes = jobs or (min(cores(), CARD_JOBS) if chosen.type == "cuda" else cores())
        return Machine(chosen, processes, folder, source, progress)


def _more_versions() -> dict[str, str]:
    """How exact products of float32 are, and PEFT's version where it is installed."""
    found = {"float32 products": torch.get_float32_matmul_precision()}
    with suppress(metadata.PackageNotFoundError):
        found["peft"] = metadata.version("peft")
    return found


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
    with one_thread():
        found = spread(work, missing, machine.jobs)
        for done, (run, rows) in enumerate(zip(missing, found, strict=True), 1):
            journal.add(repr(run), [asdict(row) for row in rows])
            elapsed = time.perf_counter() - started
            if elapsed - shown > 5 or done == len(missing):
                shown = elapsed
                machine.say(f"{name}: {done} of {len(missing)} in {elapsed:.0f} s")
    return [[Row(**row) for row in journal.entries[repr(run)]] for run in runs]
