"""The gradient start: its directions, its first step, and that nothing else is touched."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.variants.gradient_start import gradient_start, weight_gradients

CONFIG = LoRAConfig(r=3, alpha=6.0, targets=["0", "2"])


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 9), nn.Linear(9, 2)).double()


def loss_of(model: nn.Module) -> Tensor:
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model(x).square().mean() + model(x)[:, 0].exp().mean()


def test_the_gradients_are_those_of_full_fine_tuning_and_nothing_changes() -> None:
    model, other = model_of().requires_grad_(False), model_of()
    before = copy.deepcopy(model.state_dict())
    found = weight_gradients(model, CONFIG, lambda: loss_of(model))
    loss_of(other).backward()
    assert list(found) == ["0", "2"]
    for path, G in found.items():
        torch.testing.assert_close(G, other.get_submodule(path).weight.grad)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())


def test_the_first_step_of_gradient_descent_goes_along_the_best_cut_of_the_gradient() -> None:
    """Measured on the trained model, and held against the SVD."""
    model = model_of()
    gradients = weight_gradients(model, CONFIG, lambda: loss_of(model))
    start = gradient_start(model, CONFIG, lambda: loss_of(model))
    minilora.add_lora(model, replace(CONFIG, init=start))
    expected = loss_of(model_of())
    torch.testing.assert_close(loss_of(model), expected)  # the model is the base at first
    loss_of(model).backward()
    lr = 0.1
    for path, layer in minilora.lora_layers(model).items():
        assert not layer.A.grad.any() and not layer.B.any()
        layer.B.data -= lr * layer.B.grad
        U, S, Vh = torch.linalg.svd(gradients[path], full_matrices=False)
        best = U[:, :3] * S[:3] @ Vh[:3]
        # A is orthonormal but for 1/√3, and the scale counts twice: in the gradient and in front.
        torch.testing.assert_close(layer.delta(), -lr * layer.scale**2 / 3 * best)


def test_a_is_as_long_as_the_usual_start_is_on_average() -> None:
    model, usual = model_of(), []
    start = gradient_start(model, CONFIG, lambda: loss_of(model))
    for seed in range(200):
        torch.manual_seed(seed)
        layers = minilora.lora_layers(minilora.add_lora(model_of(), CONFIG))
        usual.append(layers["0"].A.square().sum().item())
    minilora.add_lora(model, replace(CONFIG, init=start))
    mine = minilora.lora_layers(model)["0"].A.square().sum().item()
    assert mine == pytest.approx(1.0) and sum(usual) / 200 == pytest.approx(1.0, rel=0.05)


def test_it_fits_copies_and_refuses_other_weights() -> None:
    model = model_of()
    start = gradient_start(model, CONFIG, lambda: loss_of(model))
    config = replace(CONFIG, init=start)
    minilora.add_lora(copy.deepcopy(model), config)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="made for other weights"):
        minilora.add_lora(model, config)
    with pytest.raises(ValueError, match="has 9 directions, and the rank is 10"):
        minilora.add_lora(model_of(), LoRAConfig(r=10, targets=["2"], init=start))


def test_what_is_not_linear_is_refused_and_the_flags_come_back_after_an_error() -> None:
    embedded = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    with pytest.raises(TypeError, match="'0' is a Embedding"):
        weight_gradients(embedded, LoRAConfig(r=1, targets=["0"]), lambda: torch.zeros(()))
    model = model_of().requires_grad_(False)

    def broken() -> Tensor:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        weight_gradients(model, CONFIG, broken)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_gradient_start_is_saved_and_loaded_as_plain_lora(tmp_path) -> None:
    model = model_of()
    start = gradient_start(model, CONFIG, lambda: loss_of(model))
    minilora.add_lora(model, replace(CONFIG, init=start))
    for layer in minilora.lora_layers(model).values():
        nn.init.normal_(layer.B)
    minilora.save(model, tmp_path / "adapter")
    other = minilora.load(model_of(), tmp_path / "adapter")
    torch.testing.assert_close(loss_of(other), loss_of(model))
