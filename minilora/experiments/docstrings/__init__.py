"""Adapting a real pretrained transformer: from which library, or which module, is a docstring?"""

from minilora.experiments.docstrings.experiment import EXPERIMENT, PARTS, PROFILES, arms, run
from minilora.experiments.docstrings.results import by_bundle, over_files

__all__ = ["EXPERIMENT", "PARTS", "PROFILES", "arms", "by_bundle", "over_files", "run"]
