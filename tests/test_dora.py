"""DoRA: its equation, its constant norm, and the contract of every other adapter."""

import copy
import pickle

import pytest
import torch
from core_help import Toy, bits, close, ids, shake, unchanged
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora
from minilora.accounting import predict_trainable

CONFIG = LoRAConfig(r=3, alpha=5, targets=["q_proj", "v_proj", "embed"], use_dora=True)


def linear(dtype=torch.float64, **more):
    model = nn.Sequential(nn.Linear(6, 5, dtype=dtype))
    settings = {"r": 2, "alpha": 3, "targets": ["0"], "use_dora": True, **more}
    return shake(add_lora(model, LoRAConfig(**settings)))[0]


def test_equation_five_of_the_paper():
    layer, x = linear(), torch.randn(4, 6, dtype=torch.float64)
    V = layer.weight + 1.5 * layer.B @ layer.A
    W = layer.dora.magnitude[:, None] * V / V.square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(layer(x), x @ W.T + layer.bias)
    assert torch.allclose(layer.new_weight(), W)
    assert torch.allclose(layer.delta(), W - layer.weight)


def test_nothing_changes_at_first_and_the_magnitudes_are_the_lengths_of_the_rows():
    torch.manual_seed(0)
    model, x = Toy(), ids()
    before = model(x)
    add_lora(model, CONFIG)
    assert close(model(x), before, 1e-6)
    q = model.blocks[0].q_proj
    assert torch.allclose(q.dora.magnitude, q.weight.norm(dim=1))
    embed = model.embed  # one for each output: here for each column of the table
    assert torch.allclose(embed.dora.magnitude, embed.weight.norm(dim=0))


def test_the_norm_is_a_constant_to_the_gradient():
    layer, x = linear(), torch.randn(4, 6, dtype=torch.float64)
    layer(x).sin().sum().backward()
    A, B = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B))
    norm = (layer.weight + 1.5 * layer.B @ layer.A).detach().norm(dim=1, keepdim=True)
    W = layer.dora.magnitude.detach()[:, None] * (layer.weight + 1.5 * B @ A) / norm
    (x @ W.T + layer.bias).sin().sum().backward()
    assert torch.allclose(layer.A.grad, A.grad)
    assert torch.allclose(layer.B.grad, B.grad)
    assert layer.dora.magnitude.grad.abs().max() > 0


def test_rows_keep_the_length_that_the_magnitudes_say():
    model = shake(add_lora(Toy(), CONFIG))
    minilora.merge(model)
    q = model.blocks[1].q_proj
    assert torch.allclose(q.weight.norm(dim=1), q.dora.magnitude.abs(), rtol=1e-5)


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d])
def test_convolutions_with_and_without_a_batch(cls):
    model = nn.Sequential(cls(3, 4, 3, padding=1))
    layer = shake(add_lora(model, LoRAConfig(r=2, targets=["0"], use_dora=True)))[0]
    x = torch.randn(2, 3, *[5] * (layer.weight.dim() - 2))
    wanted = layer.base._conv_forward(x, layer.new_weight(), layer.bias)
    assert close(layer(x), wanted, 1e-5)
    assert layer(x[0]).shape == wanted[0].shape
    assert close(layer(x[0]), wanted[0], 1e-5)


def test_what_trains_and_how_much():
    model = Toy()
    predicted = predict_trainable(model, CONFIG)
    add_lora(model, CONFIG)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "blocks.0.q_proj.dora.magnitude" in names and "embed.dora.magnitude" in names
    parameters = minilora.lora_parameters(model)
    assert len(parameters) == 15
    assert sum(p.numel() for p in parameters) == predicted == minilora.summary(model).trainable


def test_disabled_merged_removed_copied_pickled():
    torch.manual_seed(0)
    model, x = Toy(), ids()
    before = model(x)
    shake(add_lora(model, CONFIG))
    y = model(x)
    with unchanged(model), minilora.disabled(model):
        assert bits(model(x)) == bits(before)
    with unchanged(model), minilora.merged(model):
        assert close(model(x), y, 1e-5)
    assert bits(copy.deepcopy(model)(x)) == bits(y)
    assert bits(pickle.loads(pickle.dumps(model))(x)) == bits(y)
    kept = minilora.remove_lora(copy.deepcopy(model), keep_update=True)
    assert close(kept(x), y, 1e-5)
    assert bits(minilora.remove_lora(model)(x)) == bits(before)


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    base, x = Toy(), ids()
    model = shake(add_lora(copy.deepcopy(base), CONFIG))
    minilora.save(model, tmp_path)
    again = minilora.load(base, tmp_path)
    assert bits(again(x)) == bits(model(x))
    with torch.no_grad():
        model.embed.dora.magnitude[0] = float("nan")
    with pytest.raises(ValueError, match=r"embed.lora_magnitude_vector holds NaN"):
        minilora.save(model, tmp_path)


def test_dora_on_pissa_and_dropout():
    torch.manual_seed(0)
    model, x = Toy(), ids()
    before = model(x)
    both = LoRAConfig(r=2, targets=["q_proj"], use_dora=True, init="pissa", dropout=0.5)
    add_lora(model, both).eval()
    assert close(model(x), before, 1e-5)
    model.train()
    assert not close(model(x), before, 1e-2)


def test_half_precision_base():
    layer, x = linear(torch.bfloat16), torch.randn(4, 6, dtype=torch.bfloat16)
    assert layer.dora.magnitude.dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
    wanted = x.float() @ layer.new_weight().T + layer.bias.float()
    assert close(layer(x).float(), wanted, 0.02)
