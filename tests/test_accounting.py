"""Counts: predicted from shapes, shown by summary, found in the model. All the same number."""

import copy

import pytest
import torch
from core_help import Tied, Toy, cases, refuses, snapshot, toy
from hypothesis import given, settings
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora, count_parameters, predict_trainable, summary
from minilora.accounting import lora_size


@settings(max_examples=50)
@given(cases())
def test_predicted_shown_actual_and_formula_agree(case):
    model, config, _ = case
    by_hand = 0
    for path, module in model.named_modules():
        if path in config.targets:
            d_out, d_in = module.weight.shape
            by_hand += config.rank_for(path) * (d_in + d_out)
        elif path in config.modules_to_save:
            by_hand += sum(p.numel() for p in module.parameters())
            continue
        if config.bias == "all" or (config.bias == "lora_only" and path in config.targets):
            by_hand += module.bias.numel() if getattr(module, "bias", None) is not None else 0
    total = sum(p.numel() for p in model.parameters())
    before = snapshot(model)
    predicted = predict_trainable(model, config)
    assert snapshot(model) == before
    add_lora(model, config)
    table = summary(model)
    actual = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert by_hand == predicted == table.trainable == actual
    assert actual == sum(p.numel() for p in minilora.lora_parameters(model))
    assert actual == count_parameters(model, trainable_only=True)
    assert actual == sum(row[-1] for row in table.rows)
    factors = sum(m.A.numel() + m.B.numel() for m in minilora.lora_layers(model).values())
    assert table.total == total + factors
    assert table.share == actual / table.total
    assert predict_trainable(model, config) == predicted  # also on the adapted model


def test_lora_size():
    assert lora_size(768, 3072, 8) == 8 * (768 + 3072)


def test_count_parameters_counts_shared_ones_once():
    assert count_parameters(Tied()) == 11 * 6 + 6 * 6 + 6
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert (count_parameters(model), count_parameters(model, trainable_only=True)) == (8, 6)


def test_shared_biases_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    config = LoRAConfig(r=1, targets=["0"], bias="all")
    assert predict_trainable(model, config) == 6 + 3
    assert summary(add_lora(model, config)).trainable == 6 + 3


def test_copy_of_a_tied_head():
    model = Tied()
    plain = count_parameters(model)
    add_lora(model, LoRAConfig(r=2, targets=["proj"], modules_to_save=["head"]))
    assert summary(model).total == plain + 2 * 12 + 66  # the copy comes on top of the shared one


def test_summary_is_a_table():
    model = toy(
        r=2, alpha=3, targets=["embed", "q_proj"], bias="lora_only", modules_to_save=["head"]
    )
    table = summary(model)
    assert table.rows[0] == ("embed", "Embedding", 2, 1.5, 2 * (11 + 8))
    assert table.rows[1] == ("blocks.0.q_proj", "Linear", 2, 1.5, 2 * 16)
    assert ("blocks.0.q_proj.bias", "bias", None, None, 8) in table.rows
    assert table.rows[-1] == ("head", "Linear (copy)", None, None, 27)
    lines = str(table).splitlines()
    assert lines[0].split() == ["path", "type", "r", "scale", "parameters"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[2].split() == ["embed", "Embedding", "2", "1.5", "38"]
    assert (
        lines[-1] == f"{table.trainable:,} of {table.total:,} parameters train ({table.share:.2%})"
    )
    minilora.set_strength(model, 2)
    assert summary(model).rows[0][3] == 3.0


def test_predict_refuses_what_add_lora_refuses():
    model = Toy()
    for config in (
        LoRAConfig(targets=["q_porj"]),
        LoRAConfig(targets=["q_proj"], rank_pattern={"v_proj": 2}),
        LoRAConfig(targets=["q_proj"], modules_to_save=["haed"]),
        LoRAConfig(targets=["q_proj"], exclude=["haed"]),
        LoRAConfig(targets=["q_proj"], modules_to_save=["blocks"]),
        LoRAConfig(targets="norm"),
    ):
        one = refuses(model, lambda c=config: predict_trainable(model, c))
        two = refuses(model, lambda c=config: add_lora(model, c))
        assert one == two


@pytest.mark.parametrize("device", ["meta"])
def test_prediction_needs_no_memory(device):
    with torch.device(device):
        model = nn.ModuleDict({"q_proj": nn.Linear(10**5, 10**5)})
    assert predict_trainable(copy.copy(model), LoRAConfig(r=8, targets=["q_proj"])) == 8 * 2 * 10**5


def test_summary_says_when_nothing_trains_because_it_is_merged():
    model = toy(targets=["q_proj"])
    assert "merged" not in str(minilora.summary(model))
    with minilora.merged(model):
        assert str(minilora.summary(model)).endswith("do not train until unmerge")
