"""Chapter 16's checks: more right answers, and the package beside them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import minilora
from minilora.exercises import ch16
from minilora.experiments import family
from minilora.experiments.family import Sizes, trained_numbers
from minilora.experiments.family.methods import prepare
from minilora.lab.pretrained import ADDER
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier


def test_another_way_to_the_best_start(capsys: pytest.CaptureFixture[str]) -> None:
    """The leading directions of GᵀG, turned among themselves, which leaves their plane."""

    def turned(G, r):
        _, vectors = np.linalg.eigh(G.T @ G)
        turn = np.linalg.qr(np.random.default_rng(1).standard_normal((r, r)))[0]
        return turn @ vectors[:, ::-1][:, :r].T

    ch16.check_best_start(turned)
    assert capsys.readouterr().out.startswith("passed: ")


def test_the_equal_sizes_are_those_of_the_package() -> None:
    model = TransformerClassifier(ADDER)
    shapes = [
        (layer.out_features, layer.in_features)
        for path, layer in model.named_modules()
        if path.rpartition(".")[2] in BLOCK_LINEARS
    ]
    x, y = torch.zeros(4, 1, 8, 16), torch.zeros(4, dtype=torch.long)
    budget = 10_368
    r, only_B, vectors = ch16.check_equal_sizes.right(shapes, budget)
    sizes = Sizes(r, 8.0, only_B, vectors, bottleneck=2, first=r)
    for name in ("LoRA", "LoRA-FA", "VeRA"):
        assert trained_numbers(prepare(name, model, sizes, (x, y))) == budget


def test_pissa_at_scale_1_and_the_new_rate_is_the_same_run() -> None:
    """Trained in double precision, both ways; ε is small enough not to count."""
    set_seed(0)
    base = TransformerClassifier(ADDER).double()
    x = torch.rand(32, 1, 8, 16, dtype=torch.float64)
    y = torch.randint(0, 19, (32,))
    ends = []
    for alpha, lr in ((8.0, 1e-3), (4.0, ch16.check_pissa_rate.right(1e-3, 2.0)), (4.0, 1e-3)):
        sizes = Sizes(4, alpha, 8, 16, bottleneck=2, first=6)
        ready = prepare("PiSSA", copy.deepcopy(base), sizes, (x, y))
        assert {one.scale for one in minilora.lora_layers(ready.model).values()} == {alpha / 4}
        losses = family.train(ready, x, y, steps=20, lr=lr, batch_size=32, eps=1e-16)
        ends.append(losses[-1])
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert abs(ends[0] - ends[2]) > 1e-4
