"""Chapter 14's checks: the solutions, held against a network and a file that minilora writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.exercises import ch14
from minilora.lab.flow import sample
from minilora.lab.flowbase import image_base


def test_one_step_of_the_base_hardly_depends_on_the_noise() -> None:
    sevens = torch.full((20,), 7)
    one, many = (sample(image_base(), sevens, steps=n).std(dim=0).mean() for n in (1, 16))
    assert one < 0.5 * many


def test_the_bytes_are_those_of_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8, 5)).half()
    minilora.add_lora(model, LoRAConfig(r=2, targets=["0", "2"]))
    layers = minilora.lora_layers(model)
    for layer in layers.values():
        layer.A.data, layer.B.data = layer.A.data.half(), layer.B.data.half()
    found = sum(2 * (layer.A.numel() + layer.B.numel()) for layer in layers.values())
    assert ch14.check_adapter_bytes.right([(8, 6, 3), (5, 8, 1)], 2) == found
    minilora.save(model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size >= found


def test_other_factors_with_the_same_product_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def other(A, B, s, C, D, t):
        return np.vstack([2 * t * C, s * A]), np.hstack([D / 2, B])

    ch14.check_one_adapter(other)
    assert capsys.readouterr().out.startswith("passed: ")


def test_the_guided_change_is_that_of_two_velocities() -> None:
    draw = np.random.default_rng(0)
    v_class, v_none, c, n = draw.standard_normal((4, 3))

    def guided(of_class, of_none, w):
        return of_none + w * (of_class - of_none)

    for w in (0.0, 1.0, 4.0):
        change = guided(v_class + c, v_none + n, w) - guided(v_class, v_none, w)
        assert ch14.check_guided_change.right(c, n, w) == pytest.approx(change)
