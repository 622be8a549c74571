"""Chapter 12's checks: the solutions, held against PEFT, a small LLaMA, Adam and a saved folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.exercises import ch12
from minilora.lab import anatomy


def test_the_fused_adapter_does_what_the_two_did() -> None:
    """Two layers side by side, and one with the outputs q, k, v."""
    torch.manual_seed(0)
    apart = nn.ModuleDict({name: nn.Linear(6, 6, bias=False) for name in "qkv"})
    fused = nn.Sequential(nn.Linear(6, 18, bias=False))
    fused[0].weight.data = torch.cat([apart[name].weight.data for name in "qkv"])
    config = LoRAConfig(r=2, alpha=2, targets=["q", "v"], rank_pattern={"v": 3})
    minilora.add_lora(apart, config)
    layers = minilora.lora_layers(apart)
    given = []
    for name in "qv":
        nn.init.normal_(layers[name].B)
        # Their scales differ with their ranks; the exercise has none.
        given += [layers[name].A.detach().numpy(), (layers[name].scale * layers[name].B).detach()]
    A, B = ch12.check_fused_adapter.right(*(np.asarray(one) for one in given))
    minilora.add_lora(fused, LoRAConfig(r=5, alpha=5, targets=["0"]))
    layer = minilora.lora_layers(fused)["0"]
    layer.A.data, layer.B.data = torch.from_numpy(A), torch.from_numpy(B).float()
    x = torch.randn(4, 6)
    there = torch.cat([apart[name](x) for name in "qkv"], 1)
    torch.testing.assert_close(fused(x), there)


def test_other_factors_with_the_same_product_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def v_first(Aq, Bq, Av, Bv):
        A, B = ch12.check_fused_adapter.right(Aq, Bq, Av, Bv)
        turned = np.r_[len(Aq) : len(A), : len(Aq)]
        return 2 * A[turned], B[:, turned] / 2

    ch12.check_fused_adapter(v_first)
    assert capsys.readouterr().out.startswith("passed: ")


@pytest.mark.parametrize("config", [case[0] for case in ch12.check_scale_of_config.cases])
def test_the_factor_is_the_one_that_peft_computes_with(config) -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(6, 5))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], **config))
    found = wrapped.base_model.model[0].scaling["default"]
    assert ch12.check_scale_of_config.right(config) == pytest.approx(found)


def test_the_count_is_that_of_a_small_llama() -> None:
    pytest.importorskip("transformers")
    model = anatomy.build("LLaMA")
    minilora.add_lora(model, LoRAConfig(r=3, targets="all-linear"))
    counted = minilora.count_parameters(model, trainable_only=True)
    assert ch12.check_llama_adapter.right(32, 64, 4, 2, 2, 3) == counted


def test_the_bytes_are_those_of_a_state_and_of_a_folder(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    base = sum(p.numel() for p in model.parameters())
    minilora.add_lora(model, LoRAConfig(r=4, targets=["0", "1"]))
    trained = minilora.lora_parameters(model)
    adapter = sum(p.numel() for p in trained)
    adam = torch.optim.AdamW(trained)
    model(torch.randn(2, 40)).sum().backward()
    adam.step()
    means = [t for state in adam.state.values() for t in state.values() if t.ndim]
    checkpoint = sum(t.nbytes for t in [*model.state_dict().values(), *means])
    minilora.save(model, tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    of_checkpoint, of_folder = ch12.check_checkpoint_bytes.right(base, adapter)
    assert of_checkpoint == checkpoint
    assert of_folder <= size < of_folder + 3000
