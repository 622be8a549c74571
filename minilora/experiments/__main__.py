"""The command: ``python -m minilora.experiments list`` and ``… run NAME``; ``--help`` says how."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from minilora.experiments import NAMES, is_stale, load_recording
from minilora.experiments.recording import RECORDED
from minilora.lab.provenance import device_name
from minilora.lab.work import OutOfTime, keep_to_time, time_limit

#: The experiments, those first that are worth most; and a part that can wait until after "rank".
ORDER = (
    "memory",
    "rank",
    "rates",
    "placement",
    "bases",
    "docstrings",
    "language",
    "images",
    "quantized",
    "family",
    "mixing",
    "traffic",
    "limits",
)
WAITS = ("memory", "sweeps")

#: An experiment's name, and that of one of its parts.
Work = tuple[str, str]

ABOUT = "The book's experiments, run in the chapters' size or in that of a large card."
HOW = """\
A run leaves NAME.PROFILE.json in the folder of the recordings, which the chapters draw. Until all
parts of an experiment are done, each finished part has a file of its own there, and what is
finished of an unfinished part lies in NAME.PROFILE.….parts beside it. Called again with the same
folder, the command goes on from there. Changed code, another machine or other versions begin
afresh, and to make a recording anew you delete its file.

`run all` first runs each experiment at its smallest ("smoke"), so that what cannot run on this
machine shows before time is spent. Then it spends the time in order of worth: memory and time of a
training step, rank, the speed-up of a sweep, rates, placement. A part that fails is reported and
left, and the next begins.

With `--seconds` nothing is begun after the limit, nor what would not be done by it, judged by what
has been run so far; what is in hand is finished, which takes some seconds. The same command goes
on with what was left.

On a machine with a CUDA card that is lent for minutes, without a network:

  export MINILORA_CACHE=OUT/bases      # so that the base models are there when you go on
  make gpu-check                       # a minute: are the numbers right on this card?
  python -m minilora.experiments run all --profile gpu --seconds 480 --out OUT

It needs torch, numpy, safetensors, scikit-learn and matplotlib; PEFT takes part where it is
installed. No Jupyter is needed. Keep OUT, give it back to the next call, and copy OUT/*.gpu.json to
minilora/experiments/recorded/ in the end.
"""


def main(arguments: list[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Run the command; 0 where all went well, 1 where a part failed, 2 where it was refused."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name in NAMES:
            print(_line(name))
        return 0
    if options.parts and options.name == "all":
        parser.error("--parts belongs to one experiment: name it in place of 'all'")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out must be a folder, but {options.out} is a file")
    if options.profile == "gpu" and not torch.cuda.is_available():
        print(
            "The gpu profile needs a CUDA card, and torch finds none here. "
            "Run it on a machine that has one, or take --profile cpu.",
            file=sys.stderr,
        )
        return 2
    names = [
        name
        for name in (ORDER if options.name == "all" else (options.name,))
        if options.profile in _module(name).PROFILES
    ]
    if not names:
        there = ", ".join(_module(options.name).PROFILES)
        parser.error(f"{options.name} has no profile {options.profile!r}; there are {there}")
    if unknown := set(options.parts or ()) - set(_parts(options.name)):
        there = ", ".join(_parts(options.name))
        parser.error(f"{options.name} has no part {min(unknown)!r}; there are {there}")
    plan = [work for work in in_order(names) if work[1] in (options.parts or (work[1],))]
    with time_limit(options.seconds, clock):
        return _run(plan, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minilora.experiments",
        description=ABOUT,
        epilog=HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments and their recordings")
    run = commands.add_parser(
        "run",
        help="run one experiment, or all",
        epilog=HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("name", choices=[*NAMES, "all"])
    # "smoke" is the size that the tests run: seconds, and no result worth reading.
    run.add_argument("--profile", choices=["cpu", "laptop", "gpu", "smoke"], default="cpu")
    run.add_argument("--parts", nargs="+", metavar="PART", help="some parts of the experiment only")
    run.add_argument(
        "--seconds", type=_seconds, default=math.inf, help="stop after so many seconds"
    )
    run.add_argument("--out", type=Path, default=RECORDED, help="folder of the recordings")
    run.add_argument("--jobs", type=_jobs, help="processes (default: chosen for the machine)")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, but is {text!r}")
    return seconds


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, but is {text!r}")
    return int(text)


def in_order(names: Iterable[str]) -> list[Work]:
    """All parts of some experiments, those first that are worth most."""
    plan = [(name, part) for name in names for part in _parts(name)]
    waits = ORDER.index("rank") + 0.5
    return sorted(plan, key=lambda work: waits if work == WAITS else ORDER.index(work[0]))


def _parts(name: str) -> tuple[str, ...]:
    return () if name == "all" else tuple(_module(name).EXPERIMENT.parts)


def _run(plan: list[Work], options: argparse.Namespace) -> int:
    """Run the parts that are not recorded yet, in this order, and say what became of them."""
    profile, out = options.profile, options.out
    done = [(n, p) for n, p in plan if _module(n).EXPERIMENT.recorded(profile, p, out)]
    if done:
        print(f"Recorded already: {_listed(done)}. To run it anew, delete its file in {out}.")
    todo, failed = [work for work in plan if work not in done], []
    if options.name == "all" and profile != "smoke":
        failed = _smoke(todo, options)
    for work in [one for one in todo if one not in failed]:
        name, part = work
        try:
            keep_to_time()
            found = _module(name).run(
                profile, parts=[part], jobs=options.jobs, out=out, progress=True
            )
        except OutOfTime:
            break
        except Exception:
            traceback.print_exc()
            failed.append(work)
        else:
            done.append(work)
            count = len(found.rows) + len(found.quantities)
            print(f"{name}, {part}: {count} rows in {found.seconds:.0f} s ({found.where})")
    if failed:
        print(f"Failed, for the reasons above: {_listed(failed)}.", file=sys.stderr)
    if left := [work for work in plan if work not in done + failed]:
        print(
            f"Stopped at the limit of {options.seconds:g} seconds. Left: {_listed(left)}. "
            "The same command goes on from there."
        )
    return 1 if failed else 0


def _smoke(todo: list[Work], options: argparse.Namespace) -> list[Work]:
    """Run every experiment that is asked for at its smallest; the parts of those that fail."""
    card = options.profile == "gpu"
    device = torch.device("cuda" if card else "cpu")
    print(f"torch {torch.__version__}, {device_name(device)}")
    failed: list[Work] = []
    for name in dict.fromkeys(name for name, _ in todo):
        try:
            keep_to_time()
            seconds = _module(name).run("smoke", device=device, jobs=options.jobs).seconds
        except OutOfTime:
            return failed
        except Exception:
            traceback.print_exc()
            failed += [work for work in todo if work[0] == name]
        else:
            print(f"{name}: runs here ({seconds:.0f} s for its smallest size)")
    return failed


def _listed(plan: list[Work]) -> str:
    """The parts in words, as in "rank (arms), rates (adam, plus)"."""
    names = [
        f"{name} ({', '.join(part for _, part in group)})"
        for name, group in groupby(plan, key=lambda work: work[0])
    ]
    return ", ".join(names)


def _module(name: str) -> Any:
    return importlib.import_module(f"minilora.experiments.{name}")


def _line(name: str) -> str:
    """An experiment's name, the first line of its docstring and the state of its recordings."""
    module = _module(name)
    about = (module.__doc__ or "").strip().splitlines()[0]
    states = []
    for profile in [one for one in ("cpu", "laptop", "gpu") if one in module.PROFILES]:
        recording = load_recording(name, profile)
        parts = [p for p in _parts(name) if load_recording(name, profile, parts=[p]) is not None]
        if recording is not None:
            stale = ", stale" if is_stale(recording) else ""
            states.append(f"{profile}: {recording.date[:10]} on {recording.device}{stale}")
        elif parts:
            states.append(f"{profile}: {', '.join(parts)} of {len(_parts(name))} parts")
        else:
            states.append(f"{profile}: not recorded")
    return f"{name}: {about} [{'; '.join(states)}]"


if __name__ == "__main__":
    sys.exit(main())
