"""The class that chapter 7 builds, a few lines at a time, is the package's."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilora
from minilora.initializers import initialize
from minilora.layers import LoRALinear

CHAPTER = Path(__file__).resolve().parents[2] / "notebooks" / "07_building_minilora.ipynb"
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the chapter's own cells make, and nothing else: the class, `find`, `add`, `disabled`."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "contextmanager": contextmanager}
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    parts = [c for c in cells if "builds-the-layer" in c["metadata"].get("tags", [])]
    source = ["".join(cell["source"]) for cell in parts]
    lines = [line for text in source for line in text.splitlines() if line.strip()]
    assert 60 <= len(lines) < 100  # 'under a hundred lines', says the page
    for text in source:
        exec(text, names)
    return names


@pytest.fixture(scope="module")
def built(page) -> type[nn.Module]:
    return page["LoRALinear"]


def pair(
    built, d_in, d_out, r, alpha, dropout=0.0, dtype=torch.float32
) -> tuple[nn.Module, LoRALinear]:
    torch.manual_seed(0)
    mine = built(nn.Linear(d_in, d_out, dtype=dtype).requires_grad_(False), r, alpha, dropout)
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
@pytest.mark.parametrize("dtype", TYPES)
def test_outputs_gradients_and_update_are_the_same_bits(
    built, d_in, d_out, r, alpha, dropout, dtype
):
    mine, theirs = pair(built, d_in, d_out, r, alpha, dropout, dtype)
    x = torch.randn(2, 3, d_in, dtype=dtype)
    for a, b in zip(run(mine, x), run(theirs, x), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_new_layer_starts_in_the_same_way(built, dtype):
    base = nn.Linear(300, 50, dtype=dtype)
    torch.manual_seed(0)
    mine = built(base, 16, 8)
    torch.manual_seed(0)
    theirs = LoRALinear(base, 16, 8, 0.5)
    initialize(theirs, "default")
    assert mine.scale == theirs.scale
    assert mine.A.dtype == theirs.A.dtype and torch.equal(mine.A, theirs.A)
    assert mine.B.dtype == theirs.B.dtype and torch.equal(mine.B, theirs.B)
    assert mine.A.abs().max() <= 300**-0.5 and not mine.B.any()


def test_the_factors_are_where_the_weight_is(built):
    mine = built(nn.Linear(6, 5, device="meta"), 2, 3)
    theirs = LoRALinear(nn.Linear(6, 5, device="meta"), 2, 3, 1.5)
    for a, b in [(mine.A, theirs.A), (mine.B, theirs.B)]:
        assert a.device == b.device == torch.device("meta")
        assert a.shape == b.shape and a.dtype == b.dtype
    assert mine(torch.empty(4, 6, device="meta")).device == torch.device("meta")


@pytest.mark.parametrize("dtype", TYPES)
def test_merging_writes_the_package_s_bits_and_keeps_the_weight_s_type(built, dtype):
    mine, _ = pair(built, 6, 5, 2, 3, dtype=dtype)
    model = nn.Sequential(nn.Linear(6, 5, dtype=dtype).requires_grad_(False))
    model.load_state_dict({f"0.{name}": p for name, p in mine.base.state_dict().items()})
    minilora.add_lora(model, minilora.LoRAConfig(r=2, alpha=3, targets=["0"]))
    with torch.no_grad():
        model[0].A.copy_(mine.A)
        model[0].B.copy_(mine.B)
    weight, before = mine.base.weight, mine.base.weight.clone()
    keys, x = set(mine.state_dict()), torch.randn(4, 6, dtype=dtype)

    mine.merge()
    minilora.merge(model)
    assert mine.weight is weight and weight.dtype == dtype  # the same parameter, in its type
    assert torch.equal(mine.weight, model[0].weight) and not torch.equal(weight, before)
    assert torch.equal(mine(x), model(x)) and mine(x).dtype == dtype
    assert set(mine.state_dict()) == keys  # what is kept aside is not saved

    mine.unmerge()
    minilora.unmerge(model)
    assert torch.equal(mine.weight, before) and torch.equal(model[0].weight, before)


def test_what_would_go_wrong_is_refused_and_changes_nothing(page, built):
    mine, _ = pair(built, 6, 5, 2, 3)
    before, layers = mine.weight.clone(), {"0": mine}
    with pytest.raises(ValueError, match="nothing to take out"):
        mine.unmerge()
    with page["disabled"](layers), pytest.raises(ValueError, match="switched off"):
        mine.merge()
    assert torch.equal(mine.weight, before)
    mine.merge()
    with pytest.raises(ValueError, match="twice"):
        mine.merge()
    with pytest.raises(ValueError, match="unmerge first"), page["disabled"](layers):
        pass
    assert mine.off == 0
    mine.unmerge()
    assert torch.equal(mine.weight, before)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3)))


def adapted(page, names=("0", "2.0")) -> tuple[nn.Module, dict[str, nn.Module], nn.Module]:
    """The page's adapted model and its layers, and the package's with the same factors."""
    mine, theirs = small(), small()
    layers = page["add"](mine, [name.split(".")[-1] for name in names], 2, 3)
    minilora.add_lora(theirs, minilora.LoRAConfig(r=2, alpha=3, targets=list(names)))
    with torch.no_grad():
        for path, layer in minilora.lora_layers(theirs).items():
            layers[path].B.normal_()
            layer.A.copy_(layers[path].A)
            layer.B.copy_(layers[path].B)
    return mine, layers, theirs


def test_adding_trains_what_the_package_trains(page):
    mine, layers, theirs = adapted(page)
    assert list(layers) == list(minilora.lora_layers(theirs)) == ["0", "2.0"]
    trains = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (mine, theirs)]
    assert trains[0] == trains[1] and len(trains[0]) == 4
    x = torch.randn(5, 6)
    with minilora.textbook():
        assert torch.equal(mine(x), theirs(x))


@pytest.mark.parametrize("mode", [True, False])
def test_a_new_layer_has_the_mode_of_the_old_one(page, mode):
    model = small().train(mode)
    (layer, *_) = page["add"](model, ["0"], 2, 3, dropout=0.5).values()
    theirs = small().train(mode)
    minilora.add_lora(theirs, minilora.LoRAConfig(r=2, targets=["0"], dropout=0.5))
    assert layer.training == theirs[0].training == mode


@pytest.mark.parametrize("names", [["q_porj"], ["0", "q_porj"], [], "q_proj"])
def test_a_name_without_a_match_is_refused_and_changes_nothing(page, names):
    model = small()
    with pytest.raises(ValueError, match="no linear layer"):
        page["add"](model, names, 2, 3)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, page["LoRALinear"]) for m in model.modules())


def test_adding_twice_or_with_no_rank_is_refused_and_changes_nothing(page):
    model, _, _ = adapted(page)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="no linear layer"):
        page["add"](model, ["0"], 2, 3)
    plain = small()
    with pytest.raises(ZeroDivisionError):
        page["add"](plain, ["0"], 0, 3)
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.requires_grad for p in plain.parameters()) and type(plain[0]) is nn.Linear


def test_disabled_nests_and_comes_back_after_an_error_as_in_the_package(page):
    mine, layers, theirs = adapted(page)
    x = torch.randn(5, 6)
    base = small()(x)
    for model, off in (
        (mine, lambda: page["disabled"](layers)),
        (theirs, lambda: minilora.disabled(theirs)),
    ):
        with minilora.textbook():
            on = model(x)
            with off():
                with off():
                    assert torch.equal(model(x), base)
                assert torch.equal(model(x), base)
                with pytest.raises(RuntimeError, match="inside"), off():
                    raise RuntimeError("inside")
                assert torch.equal(model(x), base)
            assert torch.equal(model(x), on) and not torch.equal(on, base)


def test_an_adapter_that_was_off_stays_off(page):
    _, layers, _ = adapted(page)
    layers["0"].off = 1
    with page["disabled"](layers):
        pass
    assert [layer.off for layer in layers.values()] == [1, 0]
