"""LoftQ: what the start is, that it finds its layer, and PEFT's computation beside it."""

from __future__ import annotations

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig, quantize
from minilora.quantize import NF4_LEVELS, LinearNF4, normal_float_levels, round_to_levels
from minilora.variants import loftq

two_bits = partial(round_to_levels, levels=normal_float_levels(2))
nf4 = partial(round_to_levels, levels=NF4_LEVELS)


def model_of(width: int = 32, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Linear(width, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, width),
        nn.Linear(width, 3),
    )
    return nn.Sequential(*layers).to(dtype)


def config_of(r: int = 4, alpha: float = 8.0, **more: object) -> LoRAConfig:
    return LoRAConfig(r=r, alpha=alpha, targets=["0", "2"], **more)  # type: ignore[arg-type]


def missing(W: Tensor, Q: Tensor, left: Tensor, right: Tensor) -> float:
    return float(torch.linalg.norm(W - Q - left @ right))


def test_one_step_is_the_rounded_weight_and_the_best_cut_of_what_is_missing() -> None:
    W = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    Q, left, right = loftq.loftq(W, 5, two_bits, steps=1)
    assert torch.equal(Q, two_bits(W))
    S = torch.linalg.svdvals(W - Q)
    assert missing(W, Q, left, right) == pytest.approx(S[5:].square().sum().sqrt().item(), rel=1e-5)


def test_more_steps_come_nearer_or_not() -> None:
    W = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    four, two = (
        [missing(W, *loftq.loftq(W, 8, rounded, steps)) for steps in (1, 2, 5)]
        for rounded in (nf4, two_bits)
    )
    assert four[0] > four[1] > four[2]
    assert two[0] > two[2] > two[1]  # neither half of a turn looks at the other's error


def test_every_step_rounds_what_the_last_product_leaves() -> None:
    W = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    _, left, right = loftq.loftq(W, 3, two_bits, steps=2)
    Q, *_ = loftq.loftq(W, 3, two_bits, steps=3)
    assert torch.equal(Q, two_bits(W - left @ right))


@pytest.mark.parametrize(
    ("r", "steps", "words"), [(0, 1, "r must"), (17, 1, "r must"), (4, 0, "steps")]
)
def test_what_does_not_fit_is_refused(r: int, steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loftq.loftq(torch.randn(16, 20), r, nf4, steps)


@pytest.mark.parametrize("alpha", [2.0, 4.0, 32.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_model_starts_nearer_to_the_exact_one_whatever_the_scale(
    alpha: float, steps: int
) -> None:
    exact = model_of()
    model = copy.deepcopy(exact)
    config = loftq.round_linears(model, config_of(alpha=alpha), two_bits, steps)
    before = {path: model.get_submodule(path).weight.detach().clone() for path in ("0", "2")}
    minilora.add_lora(model, config)
    for path, layer in minilora.lora_layers(model).items():
        W = exact.get_submodule(path).weight
        assert torch.equal(layer.base.weight, before[path])
        left = torch.linalg.norm(layer.new_weight() - W).detach()
        E = W - before[path]
        best = torch.linalg.svdvals(E.detach())[4:].square().sum().sqrt()
        assert float(left) == pytest.approx(float(best), rel=1e-4)
    assert torch.equal(model[3].weight, exact[3].weight)  # not a target


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_get_a_start_for_what_they_store(double: bool, dtype: torch.dtype) -> None:
    exact = model_of(dtype=dtype)
    model = copy.deepcopy(exact)
    config = loftq.quantize_linears(model, config_of(), double=double, steps=2)
    assert isinstance(model[0], LinearNF4) and isinstance(model[2], LinearNF4)
    assert type(model[3]) is nn.Linear
    minilora.add_lora(model, config)
    plain = quantize.quantize_linears(copy.deepcopy(exact), ["0", "2"], double=double)
    for path, layer in minilora.lora_layers(model).items():
        W = exact.get_submodule(path).weight.float()
        mine = torch.linalg.norm(layer.base.weight.float() + layer.delta() - W)
        assert mine < 0.95 * torch.linalg.norm(plain.get_submodule(path).weight.float() - W)


def test_the_start_finds_copies_and_refuses_other_weights_and_ranks() -> None:
    model = model_of()
    config = loftq.round_linears(model, config_of(), nf4, 1)
    minilora.add_lora(copy.deepcopy(model), config)
    other = model_of()
    with pytest.raises(ValueError, match="made for other weights"):
        minilora.add_lora(other, config)
    with pytest.raises(ValueError, match="rank 4 for a layer of rank 5"):
        minilora.add_lora(model, LoRAConfig(r=5, alpha=8, targets=["0"], init=config.init))
    again = loftq.round_linears(model_of(), config_of(), nf4, 1)
    two = loftq.round_linears(model_of(), config_of(), nf4, 2)
    assert repr(again.init) == repr(config.init) != repr(two.init)


def test_a_rank_for_each_layer() -> None:
    model = model_of()
    config = loftq.round_linears(model, config_of(rank_pattern={"2": 7}), nf4, 1)
    layers = minilora.lora_layers(minilora.add_lora(model, config))
    assert {path: layer.r for path, layer in layers.items()} == {"0": 4, "2": 7}
    assert all(layer.B.abs().sum() > 0 for layer in layers.values())


def test_what_is_not_a_plain_linear_layer_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 8))
    with pytest.raises(TypeError, match="'1' is a Embedding"):
        loftq.round_linears(model, LoRAConfig(r=2, alpha=2, targets=["0", "1"]), nf4)
    tied = model_of()
    tied[3].weight = nn.Parameter(torch.randn(3, 32))
    tied.add_module("4", nn.Linear(32, 3, bias=False))
    tied[4].weight = tied[3].weight
    before = {path: tied.get_submodule(path).weight.clone() for path in ("0", "3")}
    config = LoRAConfig(r=2, alpha=2, targets=["0", "3"])
    with pytest.raises(ValueError, match="shares its weight"):
        loftq.quantize_linears(tied, config, block=32)
    # Refused by what packs the weights, when they have been changed already.
    with pytest.raises(ValueError, match="block must be at least 2"):
        loftq.quantize_linears(model_of(), config_of(), block=1, steps=1)
    assert all(torch.equal(tied.get_submodule(p).weight, W) for p, W in before.items())


def test_training_goes_on_from_such_a_start_and_leaves_the_rounded_weights() -> None:
    exact = model_of()
    model = copy.deepcopy(exact)
    config = loftq.round_linears(model, config_of(), two_bits, 3)
    minilora.add_lora(model, config)
    frozen = [layer.base.weight.clone() for layer in minilora.lora_layers(model).values()]
    x = torch.randn(64, 32)
    optimizer = torch.optim.Adam(minilora.lora_parameters(model), lr=1e-3)
    losses = []
    for _ in range(50):
        loss = (model(x) - exact(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for layer, before in zip(minilora.lora_layers(model).values(), frozen, strict=True):
        assert torch.equal(layer.base.weight, before)


def test_an_adapter_with_such_a_start_is_saved_and_loaded(tmp_path: object) -> None:
    model = model_of()
    config = loftq.quantize_linears(model, config_of(), steps=2)
    stored = copy.deepcopy(model)
    minilora.add_lora(model, config)
    x = torch.randn(5, 32)
    minilora.save(model, f"{tmp_path}/adapter")
    loaded = minilora.load(stored, f"{tmp_path}/adapter")
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-6)


def test_the_factors_are_those_of_peft_which_does_not_know_the_scale() -> None:
    peft = pytest.importorskip("peft.utils.loftq_utils")
    E = torch.randn(12, 9, generator=torch.Generator().manual_seed(5))
    _, left, right = loftq.loftq(E, 3, torch.zeros_like, steps=1)
    theirs = peft._low_rank_decomposition(E, reduced_rank=3)
    torch.testing.assert_close(left, theirs["L"])
    torch.testing.assert_close(right, theirs["R"])
    known = ["weight", "num_bits", "reduced_rank", "num_iter"]
    assert list(inspect.signature(peft.loftq_init).parameters) == known
