"""TinyLoRA: the formula, one vector for all layers, and everything that a LoRA layer does."""

import copy

import pytest
import torch
from core_help import Toy, bits, close, ids, refuses
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.variants.tiny_lora import TinyLoRALayer, add_tiny_lora

CONFIG = LoRAConfig(r=3, targets=["q_proj", "up_proj", "down_proj"])


def tiny(numbers: int = 5, model: nn.Module | None = None, seed: int = 0) -> nn.Module:
    """A model with TinyLoRA whose numbers have moved."""
    torch.manual_seed(0)
    model = add_tiny_lora(Toy() if model is None else model, CONFIG, numbers, seed)
    (v,) = minilora.lora_parameters(model)
    v.data.copy_(torch.randn(numbers))
    return model


def by_hand(layer: TinyLoRALayer) -> Tensor:
    """U Σ R Vᵀ, from the SVD of the base's weight."""
    U, S, Vt = torch.linalg.svd(layer.base.weight.detach())
    R = sum(number * P for number, P in zip(layer.shared.v, layer.P, strict=True))
    return U[:, :3] @ torch.diag(S[:3]) @ R @ Vt[:3]


def test_the_update_is_the_formula():
    layers = minilora.lora_layers(tiny())
    assert len(layers) >= 3
    for layer in layers.values():
        assert torch.allclose(layer.delta(), by_hand(layer), atol=1e-5)
        assert torch.linalg.matrix_rank(layer.delta()) == 3


def test_all_layers_share_one_vector_that_is_all_that_trains():
    model = tiny(7)
    (v,) = minilora.lora_parameters(model)
    assert v.shape == (7,)
    assert [p for p in model.parameters() if p.requires_grad] == [v]
    assert all(layer.shared.v is v for layer in minilora.lora_layers(model).values())
    other = copy.deepcopy(model)
    assert len({id(layer.shared.v) for layer in minilora.lora_layers(other).values()}) == 1


def test_the_seed_draws_the_matrices_and_each_layer_has_its_own():
    drawn = [[layer.P for layer in minilora.lora_layers(tiny(seed=s)).values()] for s in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_nothing_changes_at_the_start_and_one_step_changes_every_layer():
    torch.manual_seed(0)
    base, x = Toy(), ids()
    model = add_tiny_lora(copy.deepcopy(base), CONFIG, 1)
    assert bits(model(x)) == bits(base(x))
    optimizer = torch.optim.SGD(minilora.lora_parameters(model), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert all(layer.delta().abs().sum() > 0 for layer in minilora.lora_layers(model).values())


def test_it_merges_is_switched_off_and_taken_off():
    torch.manual_seed(0)
    base, x = Toy(), ids()
    model = tiny(model=copy.deepcopy(base))
    with torch.no_grad():
        y = model(x)
        assert not close(y, base(x), 1e-2)
        with minilora.disabled(model):
            assert bits(model(x)) == bits(base(x))
        with minilora.merged(model):
            assert close(model(x), y, 1e-5)
        assert bits(minilora.remove_lora(model)(x)) == bits(base(x))


def test_it_is_saved_as_the_plain_lora_of_the_same_update(tmp_path):
    torch.manual_seed(0)
    base, x = Toy(), ids()
    model = tiny(model=copy.deepcopy(base))
    minilora.save(model, tmp_path)
    other = minilora.load(copy.deepcopy(base), tmp_path)
    with torch.no_grad():
        assert close(other(x), model(x), 1e-5)


def test_the_state_dict_goes_into_a_fresh_model():
    model = tiny(seed=5)
    torch.manual_seed(0)
    other = add_tiny_lora(Toy(), CONFIG, 5, seed=6)
    other.load_state_dict(model.state_dict())
    x = ids()
    assert bits(other(x)) == bits(model(x))


def test_conv1d_of_hugging_face():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(6, 4))
    add_tiny_lora(model, LoRAConfig(r=2, targets=["0"]), 3)
    minilora.lora_parameters(model)[0].data.fill_(0.5)
    x = torch.randn(2, 5, 4)
    y = model(x)
    assert model[0].delta().shape == (4, 6)
    with minilora.merged(model):
        assert torch.allclose(model(x), y, atol=1e-5)


def test_double_precision():
    model = tiny(model=Toy().double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(ids()).dtype == torch.float64


@pytest.mark.parametrize(
    ("config", "numbers", "words"),
    [
        ({"r": 3, "targets": ["q_proj"]}, 0, "whole number from 1 on"),
        ({"r": 3, "targets": ["q_proj"]}, 2.5, "whole number from 1 on"),
        ({"r": 99, "targets": ["q_proj"]}, 4, "singular values"),
        ({"r": 3, "targets": ["q_proj"], "use_dora": True}, 4, "TinyLoRA does not use use_dora"),
        ({"r": 3, "targets": ["q_porj"]}, 4, "q_proj"),
    ],
)
def test_what_is_refused(config, numbers, words):
    model = Toy()
    refuses(model, lambda: add_tiny_lora(model, LoRAConfig(**config), numbers), words)
