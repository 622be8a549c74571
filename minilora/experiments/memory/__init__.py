"""Memory and time of a training step: full fine-tuning, LoRA, PEFT's LoRA and QLoRA."""

from minilora.experiments.memory.arms import arms, make, steps
from minilora.experiments.memory.experiment import EXPERIMENT, PROFILES, run

__all__ = ["EXPERIMENT", "PROFILES", "arms", "make", "run", "steps"]
