"""Adapters on a base of four, three or two bits: two starts, two ranks, and merging back."""

from minilora.experiments.quantized.arms import (
    LEVELS,
    TARGETS,
    arm_of,
    config_of,
    error,
    relative_error,
    round_weights,
    rounded_base,
    rounding,
    with_update,
)
from minilora.experiments.quantized.experiment import EXPERIMENT, PARTS, PROFILES, run, task
from minilora.experiments.quantized.outputs import output_errors
from minilora.experiments.tuning import best_rate, by_rate, mean_loss

__all__ = [
    "EXPERIMENT",
    "LEVELS",
    "PARTS",
    "PROFILES",
    "TARGETS",
    "arm_of",
    "best_rate",
    "by_rate",
    "config_of",
    "error",
    "mean_loss",
    "output_errors",
    "relative_error",
    "round_weights",
    "rounded_base",
    "rounding",
    "run",
    "task",
    "with_update",
]
