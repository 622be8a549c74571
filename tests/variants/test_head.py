"""Training the head only."""

import pytest
import torch
from core_help import Tied, Toy, bits, ids, refuses, snapshot, toy

import minilora
from minilora.variants import freezing
from minilora.variants.bitfit import add_bitfit
from minilora.variants.head import train_head_only


def test_the_head_trains_on_features_that_stay():
    model = Toy()
    x, seen = ids(), []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    parameters = train_head_only(model, ["head"])
    assert [id(p) for p in parameters] == [id(model.head.weight), id(model.head.bias)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len({bits(features) for features in seen}) == 1
    assert not seen[0].requires_grad


def test_several_modules_may_be_named():
    model = Toy()
    train_head_only(model, ["norm", "head", "blocks.1.q_proj"])
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    modules = ("norm", "head", "blocks.1.q_proj")
    assert names == {f"{m}.{p}" for m in modules for p in ("weight", "bias")}


@pytest.mark.parametrize("keep", [False, True])
def test_restore(keep):
    model = Toy()
    model.blocks[0].q_proj.weight.requires_grad_(False)
    before = snapshot(model)
    parameters = train_head_only(model, ["head"])
    with torch.no_grad():
        for p in parameters:
            p.add_(1.0)
    head = bits(model.head.weight)
    freezing.restore(model, keep_update=keep)
    flags = [p.requires_grad for p in model.parameters()]
    assert flags.count(False) == 1 and not model.blocks[0].q_proj.weight.requires_grad
    assert (snapshot(model) == before) != keep
    assert (bits(model.head.weight) == head) == keep


def test_refusals():
    model = Toy()
    refuses(model, lambda: train_head_only(model, []), "at least one")
    refuses(model, lambda: train_head_only(model, ["hed"]), "'hed'", "'head'")
    tied = Tied()
    refuses(tied, lambda: train_head_only(tied, ["head"]), "'embed.weight'", "shared")
    adapted = toy(r=2, targets=["q_proj"])
    refuses(adapted, lambda: train_head_only(adapted, ["head"]), "remove_lora")
    add_bitfit(model)
    refuses(model, lambda: train_head_only(model, ["head"]), "already", "freezing.restore")
    model = torch.nn.Sequential(torch.nn.ReLU())
    refuses(model, lambda: train_head_only(model, ["0"]), "without any parameter")


def test_tied_modules_may_train_together():
    tied = Tied()
    (weight,) = train_head_only(tied, ["head", "embed"])
    assert weight is tied.head.weight and weight is tied.embed.weight
    assert not tied.proj.weight.requires_grad
    minilora.variants.freezing.restore(tied)
    assert tied.proj.weight.requires_grad
