"""Stable Diffusion's network in miniature: adapters go both ways between minilora and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

#: Attention alone, and with the two kinds of layers around it that are convolutions.
TARGETS = [
    ["to_q", "to_k", "to_v", "to_out.0"],
    ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut", "proj_in"],
]


def tiny_unet() -> nn.Module:
    """Random weights, the same at each call."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=4,
        sample_size=8,
    ).eval()


@torch.no_grad()
def drawn(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    words = torch.randn(2, 7, 24, generator=generator)
    return model(x, torch.tensor([3, 500]), words).sample


@pytest.mark.parametrize("targets", TARGETS, ids=["attention", "convolutions too"])
def test_peft_draws_with_our_file_what_we_draw(targets: list[str], tmp_path: Path) -> None:
    ours = minilora.add_lora(tiny_unet(), LoRAConfig(r=4, alpha=6, targets=targets))
    for layer in minilora.lora_layers(ours).values():
        nn.init.normal_(layer.B)
    minilora.save(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_unet(), tmp_path)
    with minilora.textbook():
        torch.testing.assert_close(drawn(ours), drawn(theirs))
    assert not torch.allclose(drawn(ours), drawn(tiny_unet()), atol=1e-3)


@pytest.mark.parametrize("targets", TARGETS, ids=["attention", "convolutions too"])
def test_we_draw_with_their_file_what_they_draw(targets: list[str], tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets)
    theirs = peft.get_peft_model(tiny_unet(), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    ours = minilora.load(tiny_unet(), tmp_path)
    torch.testing.assert_close(drawn(ours), drawn(theirs))
    merged = minilora.merge(ours)
    torch.testing.assert_close(drawn(merged), drawn(theirs), rtol=1e-4, atol=1e-4)
