"""The same numbers as the LoRA paper's own code, where the two overlap.

They do for linear layers, embeddings, (in, out) weights and 1 × 1 convolutions. loralib factorises
a larger convolution another way, and its ``MergedLinear`` adapts blocks of one weight apart.
"""

import pytest
import torch
from core_help import bits, close
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora
from minilora.layers import LoRALayer

loralib = pytest.importorskip("loralib")
HFConv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D


def linear(alpha, dropout=0.0):
    other = loralib.Linear(6, 5, r=4, lora_alpha=alpha, lora_dropout=dropout)
    return other, nn.Linear(6, 5), torch.randn(7, 6)


def transposed(alpha):
    other = loralib.Linear(6, 6, r=4, lora_alpha=alpha, fan_in_fan_out=True)
    return other, HFConv1D(6, 6), torch.randn(2, 7, 6)


def embedding(alpha):
    other = loralib.Embedding(9, 4, r=3, lora_alpha=alpha, padding_idx=1)
    return other, nn.Embedding(9, 4, padding_idx=1), torch.tensor([[0, 1, 3], [3, 3, 8]])


def point(alpha):
    other = loralib.Conv2d(3, 4, 1, r=2, lora_alpha=alpha)
    return other, nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5)


def pair(make, alpha, **more):
    """loralib's layer, ours with the same numbers, and an input."""
    torch.manual_seed(0)
    other, base, x = make(alpha, **more)
    nn.init.normal_(other.lora_A)
    nn.init.normal_(other.lora_B)
    theirs = other.conv if make is point else other
    with torch.no_grad():
        base.weight.copy_(theirs.weight)
        if make is not embedding:
            base.bias.copy_(theirs.bias)
    r = other.r
    layer: LoRALayer = add_lora(
        nn.Sequential(base), LoRAConfig(r=r, alpha=alpha, targets=["0"], **more)
    )[0]
    with torch.no_grad():
        layer.A.copy_(other.lora_A.view_as(layer.A))
        layer.B.copy_(other.lora_B.view_as(layer.B))
    return other, layer, x


@pytest.mark.parametrize("make", [linear, transposed, embedding, point])
@pytest.mark.parametrize("alpha", [1, 4, 7])
def test_outputs_and_gradients(make, alpha):
    other, layer, x = pair(make, alpha)
    assert layer.scale == other.scaling == alpha / other.r
    other(x).sin().sum().backward()
    with minilora.textbook():
        y = layer(x)
    y.sin().sum().backward()
    if make in (linear, embedding):
        assert bits(y) == bits(other(x))
    assert close(y, other(x))  # Conv1D multiplies by addmm; loralib convolves once
    assert close(layer.A.grad, other.lora_A.grad.view_as(layer.A))
    assert close(layer.B.grad, other.lora_B.grad.view_as(layer.B))
    assert close(layer(x), other(x))


def test_dropout():
    other, layer, x = pair(linear, 3, dropout=0.4)
    torch.manual_seed(5)
    y = other(x)
    torch.manual_seed(5)
    with minilora.textbook():
        assert bits(layer(x)) == bits(y)


@pytest.mark.parametrize("make", [linear, transposed, embedding])
def test_merged_weights(make):
    other, layer, x = pair(make, 7)
    y = layer(x)
    other.eval()  # merges the weight
    assert bits(layer.new_weight()) == bits(other.weight)
    assert close(other(x), y)
