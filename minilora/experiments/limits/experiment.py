"""Where low rank fails, and what else the frontier asks.

Part "relabelling" permutes tokens of a language model, which asks for a change of high rank whose
exact form is known. Part "capacity" offers one matrix more facts than it has room for. Part
"batches" compares LoRA with full fine-tuning in larger and larger batches. Part "handful" teaches a
few numbers by rewards and by answers. Part "backdoors" trains adapters with and without a hidden
trigger, and notes the numbers of their spectra.
"""

from __future__ import annotations

from minilora.experiments.limits.backdoors import run_backdoors
from minilora.experiments.limits.batches import run_batches
from minilora.experiments.limits.capacity import run_capacity
from minilora.experiments.limits.handful import reader, run_handful
from minilora.experiments.limits.profiles import PROFILES, LimitsProfile
from minilora.experiments.limits.relabelling import run_relabelling
from minilora.experiments.recording import Quantity, Row
from minilora.experiments.running import Experiment, Machine

#: What can be run by itself: a section of the chapter each.
PARTS = ("capacity", "backdoors", "handful", "batches", "relabelling")


def _part(profile: LimitsProfile, part: str, machine: Machine) -> list[Row | Quantity]:
    if part == "relabelling":
        return [*run_relabelling(profile.relabelling, machine)]
    if part == "capacity":
        return [*run_capacity(profile.capacity, machine)]
    if part == "batches":
        return [*run_batches(profile.batches, reader(profile.handful), machine)]
    if part == "handful":
        return [*run_handful(profile.handful, machine)]
    return [*run_backdoors(profile.backdoors, profile.sums, machine)]


# Everything is small enough for a CPU, which all parts are written for.
EXPERIMENT = Experiment("limits", PROFILES, PARTS, _part, on_card=())
run = EXPERIMENT.run
