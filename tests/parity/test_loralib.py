"""The same numbers as the LoRA paper's own code."""

import pytest
import torch
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora

loralib = pytest.importorskip("loralib")


@pytest.mark.parametrize("alpha", [1, 4, 7])
def test_linear(alpha):
    torch.manual_seed(0)
    other = loralib.Linear(6, 5, r=4, lora_alpha=alpha)
    nn.init.normal_(other.lora_B)
    base = nn.Linear(6, 5)
    base.load_state_dict({"weight": other.weight.detach(), "bias": other.bias.detach()})
    layer = add_lora(nn.Sequential(base), LoRAConfig(r=4, alpha=alpha, targets=["0"]))[0]
    assert layer.A.shape == other.lora_A.shape
    assert layer.B.shape == other.lora_B.shape
    with torch.no_grad():
        layer.A.copy_(other.lora_A)
        layer.B.copy_(other.lora_B)
    x = torch.randn(7, 6)
    with minilora.textbook():
        assert torch.equal(layer(x), other(x))
    assert torch.allclose(layer(x), other(x), atol=1e-5)
    other.eval()  # merges the weight, and returns None
    y = other(x)
    assert torch.equal(layer.weight + layer.delta(), other.weight)
    assert torch.allclose(layer(x), y, atol=1e-5)
