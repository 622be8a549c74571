"""Two adapters in one: the sum, TIES, DARE and the mean of the factors, against joint training."""

from minilora.experiments.mixing.experiment import (
    EXPERIMENT,
    PROFILES,
    TASKS,
    best_settings,
    bits,
    rates,
    run,
    train,
)
from minilora.experiments.mixing.rules import RULES, Rule, mixed
from minilora.experiments.mixing.texts import character_names, names_text, text_of

__all__ = [
    "EXPERIMENT",
    "PROFILES",
    "RULES",
    "TASKS",
    "Rule",
    "best_settings",
    "bits",
    "character_names",
    "mixed",
    "names_text",
    "rates",
    "run",
    "text_of",
    "train",
]
