"""BitFit: the biases train, and everything is put back."""

import copy

import pytest
import torch
from core_help import Tied, Toy, bits, ids, refuses, snapshot, toy
from torch import nn

import minilora
from minilora.variants import freezing
from minilora.variants.bitfit import add_bitfit, is_bias


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def train(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    model(ids()).square().sum().backward()
    optimizer.step()


def test_the_biases_train_and_nothing_else():
    model = Toy()
    parameters = add_bitfit(model)
    names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert trainable(model) == names and "norm.bias" in names and len(names) == 8
    named = dict(model.named_parameters())
    assert [id(p) for p in parameters] == [id(p) for n, p in named.items() if n in names]
    before = {name: bits(p) for name, p in named.items()}
    train(model, parameters)
    assert {name for name, p in named.items() if bits(p) != before[name]} == names


def test_the_same_biases_as_in_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=1, target_modules=["q_proj"], bias="all", modules_to_save=["head"])
    other = peft.get_peft_model(Toy(), config)
    theirs = {
        name.removeprefix("base_model.model.")
        .replace(".base_layer", "")
        .replace(".modules_to_save.default", "")
        for name, p in other.named_parameters()
        if p.requires_grad and "lora_" not in name and ".original_module" not in name
    }
    model = Toy()
    add_bitfit(model, modules=["head"])
    assert trainable(model) == theirs and {"head.weight", "head.bias"} <= theirs


def test_excluded_modules_stay_frozen():
    model = Toy()
    add_bitfit(model, exclude=["norm", "blocks.0"])
    assert trainable(model) == {
        *(f"blocks.1.{name}.bias" for name in ("q_proj", "up_proj", "down_proj")),
        "head.bias",
    }


def test_the_path_of_an_excluded_module_is_no_prefix():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(11)])
    add_bitfit(model, exclude=["1"])
    assert trainable(model) == {f"{i}.bias" for i in range(11) if i != 1}  # "10" is another


def test_what_counts_as_a_bias():
    attention, recurrent = nn.MultiheadAttention(4, 2), nn.LSTM(3, 4)
    table = nn.Parameter(torch.zeros(5, 2))
    names = {n for m in (attention, recurrent) for n, p in m.named_parameters() if is_bias(n, p)}
    assert names == {"in_proj_bias", "out_proj.bias", "bias_ih_l0", "bias_hh_l0"}
    assert not is_bias("attention.relative_position_bias_table", table)
    vector = nn.Parameter(torch.zeros(3))
    assert not is_bias("bias_net.weight", vector) and not is_bias("unbiased", vector)


@pytest.mark.parametrize("frozen", [[], ["embed.weight", "norm.bias", "head.weight"]])
def test_restore_puts_flags_and_values_back(frozen):
    model = Toy()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    before = snapshot(model)
    train(model, add_bitfit(model, modules=["head"]))
    assert freezing.restore(model) is model
    for p in model.parameters():
        p.grad = None
    assert snapshot(model) == before


def test_keeping_the_update_restores_the_flags_only():
    model = Toy()
    parameters = add_bitfit(model)
    train(model, parameters)
    y = model(ids(1, 2))
    torch.manual_seed(0)
    x = ids()
    y = model(x)
    freezing.restore(model, keep_update=True)
    assert bits(model(x)) == bits(y)
    assert all(p.requires_grad for p in model.parameters())


def test_a_copied_model_is_restored_by_itself():
    model = Toy()
    add_bitfit(model)
    other = copy.deepcopy(model)
    freezing.restore(other)
    assert all(p.requires_grad for p in other.parameters())
    assert "head.weight" not in trainable(model) and "head.bias" in trainable(model)


def test_lora_goes_on_after_it_is_undone():
    model = Toy()
    add_bitfit(model)
    freezing.restore(model)
    minilora.add_lora(model, minilora.LoRAConfig(r=2, targets=["q_proj"]))
    assert trainable(model) == {f"blocks.{i}.q_proj.{f}" for i in (0, 1) for f in "AB"}


def test_refusals():
    model = Toy()
    refuses(model, lambda: add_bitfit(model, exclude=["nrm"]), "exclude", "'nrm'", "'norm'")
    refuses(model, lambda: add_bitfit(model, modules=["haed"]), "modules", "'head'")
    refuses(model, lambda: add_bitfit(model, modules="head"), "list", error=TypeError)
    refuses(model, lambda: add_bitfit(model, exclude=["blocks", "norm", "head"]), "no bias")
    without = nn.Sequential(nn.Linear(2, 2, bias=False))
    refuses(without, lambda: add_bitfit(without), "no bias")
    adapted = toy(r=2, targets=["q_proj"])
    refuses(adapted, lambda: add_bitfit(adapted), "remove_lora")
    refuses(model, lambda: freezing.restore(model), "nothing to undo")
    add_bitfit(model)
    refuses(model, lambda: add_bitfit(model), "already", "freezing.restore")
    tied = Tied()
    refuses(tied, lambda: add_bitfit(tied, modules=["head"]), "'embed.weight'", "shared")
