"""``python -m minilora.experiments list | run NAME | run all --profile cpu|gpu --out DIR``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from minilora.experiments import NAMES, is_stale, load_recording
from minilora.experiments.recording import RECORDED


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 where all went well, 2 where it was refused."""
    parser = argparse.ArgumentParser(prog="python -m minilora.experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments and their recordings")
    run = commands.add_parser("run", help="run one experiment, or all")
    run.add_argument("name", choices=[*NAMES, "all"])
    # "smoke" is the size that the tests run: seconds, and no result worth reading.
    run.add_argument("--profile", choices=["cpu", "gpu", "smoke"], default="cpu")
    run.add_argument("--out", type=Path, default=RECORDED, help="folder of the recordings")
    run.add_argument("--jobs", type=int, help="processes (default: chosen for the machine)")
    options = parser.parse_args(arguments)

    if options.command == "list":
        for name in NAMES:
            print(_line(name))
        return 0
    if options.profile == "gpu" and not torch.cuda.is_available():
        print(
            "The gpu profile needs a CUDA card, and torch finds none here. "
            "Run it on a machine that has one, or take --profile cpu.",
            file=sys.stderr,
        )
        return 2
    for name in NAMES if options.name == "all" else (options.name,):
        recording = _module(name).run(
            options.profile, jobs=options.jobs, out=options.out, progress=True
        )
        count = len(recording.rows) + len(recording.quantities)
        print(f"{name}: {count} rows in {recording.seconds:.0f} s ({recording.where})")
    return 0


def _module(name: str) -> Any:
    return importlib.import_module(f"minilora.experiments.{name}")


def _line(name: str) -> str:
    """An experiment's name, the first line of its docstring and the state of its recordings."""
    about = (_module(name).__doc__ or "").strip().splitlines()[0]
    states = []
    for profile in ("cpu", "gpu"):
        recording = load_recording(name, profile)
        if recording is None:
            states.append(f"{profile}: not recorded")
        else:
            stale = ", stale" if is_stale(recording) else ""
            states.append(f"{profile}: {recording.date[:10]} on {recording.device}{stale}")
    return f"{name}: {about} [{'; '.join(states)}]"


if __name__ == "__main__":
    sys.exit(main())
