"""Rank against trainable parameters and accuracy: teaching a printed-digit adder handwriting."""

from minilora.experiments.rank.experiment import EXPERIMENT, PROFILES, arms, run

__all__ = ["EXPERIMENT", "PROFILES", "arms", "run"]
