"""The relatives of LoRA: at one borrowed learning rate, and each at its own."""

from minilora.experiments.family.experiment import (
    EXPERIMENT,
    LENDER,
    PARTS,
    alpha_arm,
    alpha_runs,
    borrowed,
    compare,
    finer,
    low,
    run,
    second,
)
from minilora.experiments.family.methods import (
    METHODS,
    Ready,
    Sizes,
    kind_of,
    prepare,
    trained_numbers,
)
from minilora.experiments.family.profiles import (
    FAMILY,
    ON_PROSE,
    PROFILES,
    adder_bench,
    prose_bench,
)
from minilora.experiments.family.training import Bench, MethodRun, one_run, stepper, train

__all__ = [
    "EXPERIMENT",
    "FAMILY",
    "LENDER",
    "METHODS",
    "ON_PROSE",
    "PARTS",
    "PROFILES",
    "Bench",
    "MethodRun",
    "Ready",
    "Sizes",
    "adder_bench",
    "alpha_arm",
    "alpha_runs",
    "borrowed",
    "compare",
    "finer",
    "kind_of",
    "low",
    "one_run",
    "prepare",
    "prose_bench",
    "run",
    "second",
    "stepper",
    "train",
    "trained_numbers",
]
