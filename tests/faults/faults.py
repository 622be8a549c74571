"""Kill saves, fill disks and spoil folders, and count what came of it.

    python tests/faults/faults.py --kills 200 --folders 2000 --seed 0

prints a table by kind, and each failure with the command that repeats it. It needs a system with
``fork``; what else it cannot try on this machine it says. Two cores take a few minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "help"))

import fault_bytes
import fault_configs
import fault_files
import fault_saves
import fault_tensors
import torch
from fault_child import all_results
from fault_folders import MODELS, Draft, Kind, adapted, bases, draft_for, fresh
from fault_judge import judged
from fault_saves import Outcome

import minilora

KINDS: dict[str, Kind] = {
    **fault_bytes.KINDS,
    **fault_tensors.KINDS,
    **fault_configs.KINDS,
    **fault_files.KINDS,
}
SECONDS = 60.0  # after which the load of a folder hangs, however busy the machine is


def shares(folders: int) -> dict[str, int]:
    """How many folders of each kind: as equal as the slow kinds allow, ``folders`` in all."""
    out = dict.fromkeys(KINDS, 0)
    while folders > 0:
        open_kinds = [name for name in KINDS if out[name] < KINDS[name].most]
        for name in open_kinds[:folders]:
            out[name] += 1
        folders -= len(open_kinds)
    return out


def spoilt_folders(
    root: Path, todo: list[tuple[str, int]], seed: int, jobs: int, with_peft: bool
) -> Iterator[Outcome]:
    """Load every spoilt folder in a child of its own."""
    models = {name: {"base": fresh(name), "adapted": adapted(name)} for name in MODELS}
    with bases(with_peft) as all_bases:
        warm_up(all_bases, root)

        def work(name: str, index: int) -> dict[str, Any]:
            place = root / f"{list(KINDS).index(name)}-{index}"
            draft, expect = draft_for(name, KINDS[name], all_bases, seed, index)
            folder = place / "adapter"
            draft.write(folder)
            path = draft.path(folder) if draft.path else folder
            return judged(path, place / "marker", models[draft.model], expect)

        works = (((n, i), partial(work, n, i)) for n, i in todo)
        for (name, index), result in all_results(works, jobs, SECONDS):
            _remove(root / f"{list(KINDS).index(name)}-{index}")
            if "died" in result:
                died = result["died"].replace("died of SIGXCPU", "computed without an end")
                yield Outcome(name, index, "died", died)
            else:
                yield Outcome(name, index, result["outcome"], "; ".join(result["problems"]))


def warm_up(all_bases: dict[str, Draft], root: Path) -> None:
    """Load each valid folder, so that no child has anything left to import."""
    for name, draft in all_bases.items():
        draft.write(root / name)
        minilora.load(fresh(draft.model), root / name)
    importlib.import_module("minilora.initializers")


def _remove(place: Path) -> None:
    for closed in place.glob("*/closed"):
        closed.chmod(0o700)
    shutil.rmtree(place, ignore_errors=True)


def interrupted_saves(root: Path, args: argparse.Namespace, only: str) -> Iterator[Outcome]:
    """Every kind of kill and of full disk that this machine allows."""
    fault_saves.prepare()
    step = args.step
    tries = [
        fault_saves.killed_at_random(root, args.kills, args.seed, only),
        fault_saves.killed_at_byte(root, step, only),
        fault_saves.killed_at_call(root, max(1, step // 300), only),
        fault_saves.no_room(root, step, only),
        fault_saves.failing_calls(root, only),
        fault_saves.real_disk(root, only),
    ]
    for outcomes in tries:
        yield from outcomes


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--kills", type=int, default=200, help="kills at random; 0 leaves saves out"
    )
    parser.add_argument("--folders", type=int, default=2000, help="spoilt folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="folders loaded at the same time")
    parser.add_argument(
        "--step", type=int, default=300, help="bytes from one interruption to the next"
    )
    parser.add_argument(
        "--only", metavar="KIND[:INDEX]", help="only kinds with KIND in their name, or one folder"
    )
    parser.add_argument("--no-peft", action="store_true", help="no folders written by PEFT")
    args = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        print("not tried: this system cannot fork")
        return 0
    torch.set_num_threads(1)  # a forked child could wait for ever for its parent's threads
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    root.chmod(0o755)
    began = time.monotonic()
    try:
        outcomes = list(_outcomes(root, args))
    finally:
        shutil.rmtree(root)
    failures = report(outcomes, args.seed)
    print(f"{len(outcomes)} tried, {failures} failed, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


def _outcomes(root: Path, args: argparse.Namespace) -> Iterator[Outcome]:
    only, _, index = (args.only or "").partition(":")
    if args.kills > 0:
        yield from interrupted_saves(root, args, only)
    if only and index:
        todo = [(name, int(index)) for name in KINDS if only == name]
    else:
        counts = shares(args.folders)
        todo = [(name, i) for name in KINDS if only in name for i in range(counts[name])]
    with_peft = not args.no_peft and importlib.util.find_spec("peft") is not None
    if todo and not with_peft:
        print("not tried: folders written by PEFT")
    yield from spoilt_folders(root, todo, args.seed, args.jobs, with_peft)


def report(outcomes: list[Outcome], seed: int) -> int:
    """Print the table and the failures; how many failed."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind.partition(", onto")[0]].append(outcome)  # one line for all scenes
    width = max(map(len, by_kind), default=4)
    print(f"{'kind':{width}}  tried  passed  what came of it")
    for kind, group in by_kind.items():
        passed = sum(not outcome.problem for outcome in group)
        counts = Counter(outcome.found for outcome in group).most_common(4)
        found = ", ".join(f"{n} {what}" for what, n in counts)
        print(f"{kind:{width}}  {len(group):5}  {passed:6}  {found}")
    failed = [outcome for outcome in outcomes if outcome.problem]
    shown: Counter[str] = Counter()
    for outcome in failed:
        shown[outcome.kind] += 1
        if shown[outcome.kind] <= 5:
            repeat = f"--seed {seed} --only '{outcome.kind}:{outcome.number}'"
            print(f"FAILED {repeat}: {outcome.problem[:300]}")
    for kind, count in shown.items():
        if count > 5:
            numbers = [str(outcome.number) for outcome in failed if outcome.kind == kind]
            print(f"FAILED --seed {seed} --only '{kind}:N' too, for N = {', '.join(numbers[5:])}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
