"""Where low rank fails, and what else the frontier asks."""

from minilora.experiments.limits.experiment import EXPERIMENT, PARTS, run
from minilora.experiments.limits.profiles import PROFILES, LimitsProfile

__all__ = ["EXPERIMENT", "PARTS", "PROFILES", "LimitsProfile", "run"]
