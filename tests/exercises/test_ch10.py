"""Chapter 10's checks: the paths that they match."""

from __future__ import annotations

from minilora.exercises import ch10
from minilora.lab.transformer import TransformerClassifier, TransformerConfig


def test_the_paths_of_the_exercise_are_those_of_the_model() -> None:
    model = TransformerClassifier(TransformerConfig(layers=2))
    named = {path for path, module in model.named_modules() if list(module.parameters(False))}
    assert set(ch10._paths(2)) == named - {""}
