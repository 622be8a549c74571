"""The main comparison of ranks once more, on adders from other pretrainings."""

from minilora.experiments.bases.experiment import EXPERIMENT, PROFILES, run

__all__ = ["EXPERIMENT", "PROFILES", "run"]
