"""Learning rate, α and the start: what each of them does to the training of an adapter."""

from minilora.experiments.rates.experiment import EXPERIMENT, PARTS, PROFILES, run, task

__all__ = ["EXPERIMENT", "PARTS", "PROFILES", "run", "task"]
