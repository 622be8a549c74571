"""What must hold on a CUDA card. Without one the same tests run on the CPU, at smaller sizes."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.experiments import memory
from minilora.experiments.memory.experiment import attention_without_tables
from minilora.experiments.memory.weighing import held_on_card, warm_up, weigh
from minilora.lab import sweep as sweep_module
from minilora.lab.decoder import DecoderConfig
from minilora.lab.sweep import Cell, sweep
from minilora.lab.training import fit, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier, TransformerConfig

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
BYTES = ("weights", "gradients", "optimizer", "activations", "peak")


def adapted(dtype, d_in=384, d_out=512, r=8, alpha=12):
    """A linear layer with an adapter whose B is not zero, and an input: (4, 33, d_in)."""
    set_seed(0)
    model = nn.Sequential(nn.Linear(d_in, d_out)).to(DEVICE, dtype)
    minilora.add_lora(model, LoRAConfig(r=r, alpha=alpha, targets=["0"]))
    nn.init.normal_(model[0].B, std=0.05)
    x = torch.randn(4, 33, d_in, device=DEVICE, dtype=dtype, requires_grad=True)
    return model, x


def outputs(model, x, factors):
    """The output, and the gradients of the input and of the factors, of a sum of squares."""
    x.grad = None
    for factor in factors:
        factor.grad = None
    y = model(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(factor.grad for factor in factors)]


# ---------------------------------------------------------------- one layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_form_is_the_textbook_form(dtype):
    model, x = adapted(dtype)
    factors = [model[0].A, model[0].B]
    fused = outputs(model, x, factors)
    with minilora.textbook():
        textbook = outputs(model, x, factors)
    # In half precision either form is rounded, in places of its own.
    within = 1e-5 if dtype == torch.float32 else 3e-2
    for a, b in zip(fused, textbook, strict=True):
        assert (a - b).abs().max() <= within * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_textbook_form_is_peft_s_to_the_last_bit(dtype):
    peft = pytest.importorskip("peft")
    model, x = adapted(dtype)
    theirs = nn.ModuleDict({"0": copy.deepcopy(model[0].base)})
    config = peft.LoraConfig(r=8, lora_alpha=12, target_modules=["0"])
    peft.get_peft_model(theirs, config)
    layer = theirs["0"]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        A.copy_(model[0].A)
        B.copy_(model[0].B)
    with minilora.textbook():
        ours = outputs(model, x, [model[0].A, model[0].B])
    for a, b in zip(ours, outputs(layer, x, [A, B]), strict=True):
        assert torch.equal(a, b)


def test_merged_is_unmerged_and_the_way_back_is_exact():
    model, x = adapted(torch.float32)
    before, weight = model(x), model[0].weight.clone()
    with minilora.merged(model):
        assert (model(x) - before).abs().max() <= 1e-5 * before.abs().max()
    assert torch.equal(model[0].weight, weight)


# ---------------------------------------------------------------- sweeps


SIZE = TransformerConfig(image_size=(8, 8), width=16, layers=2, heads=2)
CELLS = [
    Cell(LoRAConfig(r=1, alpha=1, targets=list(BLOCK_LINEARS)), lr=1e-2),
    Cell(LoRAConfig(r=4, alpha=16, targets=["q_proj", "v_proj"]), lr=3e-3, seed=1),
    Cell(LoRAConfig(r=4, alpha=8, targets=list(BLOCK_LINEARS)), lr=1e-2, trained="B"),
]


def base():
    set_seed(0)
    return TransformerClassifier(SIZE).double()


def test_a_sweep_draws_the_adapters_that_a_model_gets_on_the_cpu():
    stack = sweep_module._Stack(base().to(DEVICE), CELLS)
    assert stack.A.device.type == DEVICE.type
    for i, cell in enumerate(CELLS):
        alone = base()
        set_seed(cell.seed)
        minilora.add_lora(alone, cell.config)
        drawn = stack.unpack(i)
        for path, layer in minilora.lora_layers(alone).items():
            assert torch.equal(drawn[f"{path}.A"].cpu(), layer.A)


def test_every_cell_of_a_sweep_is_the_run_of_its_own():
    set_seed(1)
    x, y = torch.rand(60, 1, 8, 8, dtype=torch.float64), torch.arange(60) % 10
    settings = {"steps": 40, "batch_size": 16, "progress": False}
    together = sweep(base().to(DEVICE), CELLS, (x, y), keep=True, **settings)
    for cell, result in zip(CELLS, together, strict=True):
        alone = base()
        set_seed(cell.seed)
        minilora.add_lora(alone, cell.config)
        for layer in minilora.lora_layers(alone).values():
            layer.A.requires_grad_("A" in cell.trained)
        losses = fit(alone, x, y, lr=cell.lr, seed=cell.seed, device=DEVICE, **settings).loss
        torch.testing.assert_close(result.loss, losses, rtol=0, atol=1e-9)
        for path, layer in minilora.lora_layers(alone).items():
            for name in "AB":
                found = result.adapter[f"{path}.{name}"]
                torch.testing.assert_close(found, getattr(layer, name).data, rtol=0, atol=1e-8)


# ---------------------------------------------------------------- bytes


def size():
    """A decoder whose step holds a gigabyte or two, beside which a workspace is small."""
    if not CARD:
        return memory.PROFILES["smoke"]
    model = DecoderConfig(width=1024, layers=6, heads=16, vocab=16_384, context=1024)
    return replace(memory.PROFILES["gpu"], model=model)


def test_bytes_and_operations_are_those_predicted():
    profile = size()
    with attention_without_tables(DEVICE):
        if CARD:
            warm_up(profile, DEVICE)
        for arm in memory.arms(profile):
            start = held_on_card(DEVICE)
            found = weigh(memory.make(arm, profile, DEVICE), start)
            for what in BYTES:
                _, measured, predicted = found[what]
                assert measured == pytest.approx(predicted, rel=0.02), (arm.name, what)
            _, measured, predicted = found["flops"]
            assert predicted is None or measured == pytest.approx(predicted, rel=0.01), arm.name


# ---------------------------------------------------------------- the check itself


@pytest.mark.skipif(CARD, reason="this machine has a card")
def test_without_a_card_the_check_says_that_it_is_skipped():
    script = Path(__file__).with_name("gpu_check.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "gpu-check is skipped: torch finds no CUDA card on this machine.\n"
