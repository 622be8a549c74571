"""Learning rate, α and the start: what each of them does to the training of an adapter."""

from minilora.experiments.rates.experiment import (
    EXPERIMENT,
    PARTS,
    PROFILES,
    RULES,
    arm_of,
    run,
    sgd_arm_of,
    task,
)
from minilora.experiments.rates.sound import broken, highest_sound
from minilora.experiments.tuning import best_rate, by_rate, mean_loss

__all__ = [
    "EXPERIMENT",
    "PARTS",
    "PROFILES",
    "RULES",
    "arm_of",
    "best_rate",
    "broken",
    "by_rate",
    "highest_sound",
    "mean_loss",
    "run",
    "sgd_arm_of",
    "task",
]
