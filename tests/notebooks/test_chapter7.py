"""The class that chapter 7 builds, a few lines at a time, is the package's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora
from minilora.initializers import initialize
from minilora.layers import LoRALinear

CHAPTER = Path(__file__).resolve().parents[2] / "notebooks" / "07_building_minilora.ipynb"


@pytest.fixture(scope="module")
def built() -> type[nn.Module]:
    """The class of the chapter, made by its own cells and by nothing else."""
    names: dict = {"torch": torch, "nn": nn, "F": F}
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    parts = [c for c in cells if "builds-the-layer" in c["metadata"].get("tags", [])]
    assert len(parts) >= 4
    for cell in parts:
        exec("".join(cell["source"]), names)
    return names["LoRALinear"]


def pair(built, d_in, d_out, r, alpha, dropout=0.0) -> tuple[nn.Module, LoRALinear]:
    torch.manual_seed(0)
    mine = built(nn.Linear(d_in, d_out).requires_grad_(False), r, alpha, dropout)
    theirs = LoRALinear(mine.base, r, alpha, alpha / r, dropout)
    with torch.no_grad():
        mine.B.normal_()
        theirs.A.copy_(mine.A)
        theirs.B.copy_(mine.B)
    return mine, theirs


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    torch.manual_seed(3)  # the same dropout
    with minilora.textbook():
        y = layer(x)
    y.sin().sum().backward()
    return [y, x.grad, layer.A.grad, layer.B.grad, layer.delta()]


@pytest.mark.parametrize(
    ("d_in", "d_out", "r", "alpha"), [(6, 6, 2, 3), (5, 9, 4, 7), (4, 3, 6, 1)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_gradients_and_update_are_the_same_bits(built, d_in, d_out, r, alpha, dropout):
    mine, theirs = pair(built, d_in, d_out, r, alpha, dropout)
    x = torch.randn(2, 3, d_in)
    for a, b in zip(run(mine, x), run(theirs, x), strict=True):
        assert torch.equal(a, b)


def test_a_new_layer_starts_in_the_same_way(built):
    torch.manual_seed(0)
    mine = built(nn.Linear(300, 50), 16, 8)
    theirs = LoRALinear(nn.Linear(300, 50), 16, 8, 0.5)
    initialize(theirs, "default")
    assert mine.A.shape == theirs.A.shape and mine.scale == theirs.scale
    assert torch.equal(mine.B, torch.zeros(50, 16)) and torch.equal(theirs.B, mine.B)
    for layer in (mine, theirs):
        assert 0.98 * 300**-0.5 < layer.A.abs().max() <= 300**-0.5


def test_off_and_merged(built):
    mine, theirs = pair(built, 6, 5, 2, 3)
    x = torch.randn(4, 6)
    weight = mine.base.weight.clone()
    for layer in (mine, theirs):
        layer.off = True
        assert torch.equal(layer(x), layer.base(x))
        layer.off = False
    mine.merge()
    assert torch.equal(mine.weight, weight + theirs.delta())
    assert torch.equal(mine(x), F.linear(x, mine.weight, mine.bias))
    with pytest.raises(ValueError, match="twice"):
        mine.merge()
    mine.unmerge()
    assert torch.equal(mine.weight, weight)
