"""From code to prose: what a rank can learn of it, and what is forgotten on the way."""

from minilora.experiments.language.arms import MATRICES, LanguageArm, adapter, prepare, updates
from minilora.experiments.language.experiment import BASE, EXPERIMENT, PARTS, run, train
from minilora.experiments.language.facts import LastMatrix, bits, facts
from minilora.experiments.language.forgetting import (
    divergence,
    log_probabilities,
    mean_loss,
    moved,
    relative_size,
    size,
    strength_of,
    turned,
)
from minilora.experiments.language.judging import some
from minilora.experiments.language.profiles import PROFILES, arms, base_of

__all__ = [
    "BASE",
    "EXPERIMENT",
    "MATRICES",
    "PARTS",
    "PROFILES",
    "LanguageArm",
    "LastMatrix",
    "adapter",
    "arms",
    "base_of",
    "bits",
    "divergence",
    "facts",
    "log_probabilities",
    "mean_loss",
    "moved",
    "prepare",
    "relative_size",
    "run",
    "size",
    "some",
    "strength_of",
    "train",
    "turned",
    "updates",
]
