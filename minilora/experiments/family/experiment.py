"""The relatives of LoRA on two tasks: at one borrowed rate, and each at its own.

Part "arms" puts every method on the adder of printed digits, which is to add handwritten ones. Each
is tuned, and tested at its own rate; and it is tested again at the rate that was best for plain
LoRA, in rows of the kind "borrowed", at a quarter of that, and at its own second-best rate. Part
"longer" gives some methods twice the steps. Part "batch" tunes some again for other batch sizes,
with as many pictures in all. Part "alpha" multiplies α, or the rate of B, at several ε of Adam.
Part "prose" compares some methods on a language model, and its rows have as ``labels`` the tokens
of a step. Part "finer" repeats that with smaller steps from rate to rate, and for several times the
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from minilora.experiments.families import FINAL, TUNE
from minilora.experiments.family.profiles import (
    PROFILES,
    FamilyProfile,
    adder_bench,
    prose_bench,
)
from minilora.experiments.family.training import Bench, MethodRun, one_run
from minilora.experiments.recording import Row
from minilora.experiments.running import Experiment, Machine, rows_of
from minilora.experiments.tuning import Runs, Tuning, best_rate, runner_up, tune
from minilora.lab.sweep import fingerprint

#: What can be run by itself.
PARTS = ("arms", "prose", "alpha", "longer", "batch", "finer")

#: Whose best rate the others borrow.
LENDER = "LoRA"

BORROWED, LOW, SECOND = "borrowed", "low", "second"

#: What part of the lender's best rate the low one is.
PART_OF_RATE = 1 / 4


def borrowed(arm: str) -> str:
    """The name of an arm's rows at the borrowed rate; the lender's are its own."""
    return arm if arm == LENDER else f"{arm}, {BORROWED}"


def low(arm: str) -> str:
    """The name of an arm's rows at a low rate, which is the same for all, the lender's as well."""
    return f"{arm}, {LOW}"


def finer(arm: str, patience: int = 1) -> str:
    """The name of an arm on the fine ladder of rates, with so many times the usual steps."""
    return f"{arm}, fine ladder" + (f", {patience} times the steps" if patience > 1 else "")


def second(arm: str) -> str:
    """The name of an arm's rows at the rate that came second."""
    return f"{arm}, {SECOND}"


def trained(
    runs: Sequence[MethodRun], bench: Bench, stages: Sequence[str], machine: Machine
) -> list[Row]:
    """The rows of some runs; those that are kept in the machine's folder are not trained again."""
    work = partial(one_run, bench=bench, stages=stages, device=str(machine.device))
    header = {"base": fingerprint(bench.base.state_dict().items()), "steps": bench.steps}
    header |= {"batch": bench.batch_size, "sizes": repr(bench.sizes)}
    found = rows_of(runs, work, f"{bench.name}-{'-'.join(stages)}", header, machine)
    return [row for of_run in found for row in of_run]


def compare(
    runs: Iterable[MethodRun], bench: Bench, tuning: Tuning, machine: Machine, lend: bool = False
) -> list[Row]:
    """Tune every arm and test it at its best rate.

    With ``lend`` it is also tested at the best rate of `LENDER`, at a quarter of it, and at its
    own second one. A run stands for its arm, and its rate is the middle of those that are tried at
    first.
    """
    of = {run.arm: run for run in runs}

    def train(asked: Runs) -> list[Row]:
        wanted = [of[arm].at(lr, seed) for arm, pairs in asked.items() for lr, seed in pairs]
        return trained(wanted, bench, TUNE, machine)

    rows = tune(train, {arm: run.lr for arm, run in of.items()}, dict.fromkeys(of, tuning))
    best = {arm: best_rate(rows, arm) for arm in of}
    tests = [run.at(best[arm], seed) for arm, run in of.items() for seed in tuning.tested]
    tested = trained(tests, bench, FINAL, machine)
    if not lend:
        return rows + tested
    lent = dict.fromkeys((arm for arm in of if arm != LENDER), best[LENDER])
    lower = dict.fromkeys(of, PART_OF_RATE * best[LENDER])
    others = {arm: runner_up(rows, arm) for arm in of}
    for rates, kind in ((lent, BORROWED), (lower, LOW), (others, SECOND)):
        tested += _elsewhere(of, rates, kind, tested, bench, tuning, machine)
    return rows + tested


def _elsewhere(
    of: Mapping[str, MethodRun],
    rates: Mapping[str, float],
    kind: str,
    tested: Sequence[Row],
    bench: Bench,
    tuning: Tuning,
    machine: Machine,
) -> list[Row]:
    """Arms at other rates than their best, without rows beside the test.

    Runs at a rate at which an arm has been tested already are not made again.
    """
    found: list[Row] = []
    plain = replace(bench, name=f"{bench.name}-{kind}")
    plain = replace(plain, task=replace(bench.task, sheets=None, aside={}))
    for arm, lr in rates.items():
        rows = [row for row in tested if row.lr == lr and _arm_of(row) == arm]
        if not rows:
            runs = [of[arm].at(lr, seed) for seed in tuning.tested]
            rows = trained(runs, plain, FINAL, machine)
        name = {BORROWED: borrowed, LOW: low, SECOND: second}[kind](arm)
        found += [replace(row, arm=name, kind=kind, setting=bench.name) for row in rows]
    return found


def _arm_of(row: Row) -> str:
    """The arm that a row at another rate belongs to; of a row beside the test its own name."""
    name, _, last = row.arm.rpartition(", ")
    return name if last in (BORROWED, LOW, SECOND) else row.arm


def _part(profile: FamilyProfile, part: str, machine: Machine) -> list[Row]:
    if part == "prose":
        prose = profile.prose
        bench = prose_bench(prose, str(machine.device))
        runs = [MethodRun(name, name, prose.middles[name]) for name in prose.methods]
        return compare(runs, bench, prose.tuning, machine, lend=True)
    if part == "finer":
        prose = profile.prose
        bench = replace(prose_bench(prose, str(machine.device)), name="finer")
        runs = [
            MethodRun(finer(name, times), name, middle, patience=times)
            for times, middles in prose.finer.items()
            for name, middle in middles.items()
        ]
        return compare(runs, bench, replace(prose.tuning, ladder="fine"), machine)
    bench = adder_bench(profile, machine.device, machine.progress)
    if part == "arms":
        runs = [MethodRun(name, name, profile.middles[name]) for name in profile.methods]
        return compare(runs, bench, profile.tuning, machine, lend=True)
    if part == "longer":
        runs = [
            MethodRun(f"{name}, twice the steps", name, profile.middles[name], patience=2)
            for name in profile.longer
        ]
        return compare(runs, replace(bench, name="longer"), profile.tuning, machine)
    if part == "batch":
        rows: list[Row] = []
        for size, steps in profile.batches.items():
            name = f"batch-{size}"
            runs = [
                MethodRun(f"{method}, batch {size}", method, middles[size])
                for method, middles in profile.by_batch.items()
            ]
            other = replace(bench, name=name, steps=steps, batch_size=size)
            rows += compare(runs, other, profile.tuning, machine)
        return rows
    if part == "alpha":
        return trained(alpha_runs(profile), replace(bench, name="alpha"), TUNE, machine)
    raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")


def alpha_arm(what: str, factor: float, eps: float) -> str:
    """The name of a run of part "alpha": ``what`` is "α" or "B's rate"."""
    return f"{what} × {factor:g}, ε {eps:g}"


def alpha_runs(profile: FamilyProfile) -> list[MethodRun]:
    """α multiplied, and beside it the rate of B, for every factor, ε and draw."""
    ways = {
        "α": lambda k: MethodRun("", "LoRA", profile.slow, alpha=k * profile.sizes.alpha),
        "B's rate": lambda k: MethodRun("", "LoRA+", profile.slow, ratio=k),
    }
    return [
        replace(run_of(k), arm=alpha_arm(what, k, eps), eps=eps, seed=seed)
        for eps in profile.epsilons
        for k in profile.factors
        for what, run_of in ways.items()
        for seed in profile.watched
    ]


EXPERIMENT = Experiment("family", PROFILES, PARTS, _part)
run = EXPERIMENT.run
