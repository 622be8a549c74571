"""Adapters that teach a small image generator a style: at which rank, where, and how strong."""

from minilora.experiments.images.combining import WAYS, combine, cosine
from minilora.experiments.images.experiment import EXPERIMENT, PARTS, PROFILES, arms, run
from minilora.experiments.images.measures import Marks, ceiling, energy_distance, judged, real
from minilora.experiments.images.training import PLACES, Size, StyleRun, base, digits, trained

__all__ = [
    "EXPERIMENT",
    "PARTS",
    "PLACES",
    "PROFILES",
    "WAYS",
    "Marks",
    "Size",
    "StyleRun",
    "arms",
    "base",
    "ceiling",
    "combine",
    "cosine",
    "digits",
    "energy_distance",
    "judged",
    "real",
    "run",
    "trained",
]
