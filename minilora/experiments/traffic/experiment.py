"""What processes that train together send to each other, for adapters and for everything.

A few processes on one machine take training steps of the language model in each of several ways.
What goes into their exchanges is predicted from the model's parameters and counted where PyTorch
hands it over; what they send is predicted for a ring and counted on the machine's loopback device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from minilora.experiments.recording import Quantity
from minilora.experiments.running import Experiment, Machine, Profile
from minilora.experiments.traffic.arms import ARMS, Sharing, build, predicted
from minilora.experiments.traffic.measure import measure
from minilora.lab.processes import Processes
from minilora.lab.traffic import Traffic
from minilora.lab.work import keep_to_time


@dataclass(frozen=True)
class TrafficProfile(Profile):
    """The size of a run: ``counts`` of processes, windows in a step, steps between two looks."""

    counts: tuple[int, ...]
    batch: int
    steps: int


PROFILES = {
    "cpu": TrafficProfile("cpu", counts=(2,), batch=8, steps=2),
    "laptop": TrafficProfile("laptop", counts=(2, 4, 8), batch=8, steps=2),
    "smoke": TrafficProfile("smoke", counts=(2,), batch=2, steps=1),
}


def bytes_of_arms(profile: TrafficProfile, n: int) -> list[Quantity]:
    """All arms in one group of ``n`` processes, whose start takes longer than they do."""
    found: list[Quantity] = []
    with Processes(n) as group:
        for arm in ARMS:
            keep_to_time()
            seen = group.run(measure, arm, profile.batch, profile.steps, seconds=300)
            found += _quantities(arm, predicted(arm, build(arm, profile.batch)), seen)
    return found


def _quantities(arm: Sharing, expected: Traffic, seen: list[dict[str, Any]]) -> list[Quantity]:
    n, first = len(seen), seen[0]

    def one(what: str, unit: str, measured: float, of: float | None, repeat: int = 0) -> Quantity:
        return Quantity(arm.name, arm.kind, what, n, repeat, unit, measured, of)

    found = []
    for field in fields(Traffic):
        if {each["counted"].get(field.name, 0) for each in seen} != {
            first["counted"].get(field.name, 0)
        }:
            raise RuntimeError(f"{arm.name}: the processes do not exchange the same")
        counted = first["counted"].get(field.name, 0)
        found.append(one(field.name, "bytes", counted, getattr(expected, field.name)))
        calls = first["calls"].get(field.name, 0)
        found.append(one(f"calls {field.name}", "calls", calls, None))
    for repeat, size in enumerate(first["loopback"]):
        found.append(one("sent", "bytes", size / n, expected.sent(n, gloo=True), repeat))
    return found


def _part(profile: TrafficProfile, part: str, machine: Machine) -> list[Quantity]:
    found = []
    for n in profile.counts:
        found += bytes_of_arms(profile, n)
        machine.say(f"traffic: {n} processes")
    return found


EXPERIMENT = Experiment("traffic", PROFILES, ("bytes",), _part, on_card=())
run = EXPERIMENT.run
