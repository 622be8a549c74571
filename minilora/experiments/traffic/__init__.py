"""What processes that train together send to each other, for adapters and for everything."""

from minilora.experiments.traffic.arms import ARMS, Sharing, build, predicted
from minilora.experiments.traffic.experiment import EXPERIMENT, PROFILES, run

__all__ = ["ARMS", "EXPERIMENT", "PROFILES", "Sharing", "build", "predicted", "run"]
