"""Chapter 9's checks: more right answers, and what the solutions say of other models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from answers_ch09 import three_groups
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.exercises import ch09
from minilora.exercises.tools import Function


def test_three_groups_are_as_good_as_two(capsys: pytest.CaptureFixture[str]) -> None:
    ch09.check_rate_groups(three_groups)
    assert capsys.readouterr().out.startswith("passed: ")


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        # NumPy's numbers, float32 and lists are answers like any others.
        (
            ch09.check_rates_at_scale,
            lambda alpha, r, how, lr, scale: [
                lr,
                np.float32(lr * alpha / (r if how == "standard" else r**0.5) / scale),
            ],
        ),
        (
            ch09.check_cliff_rate,
            lambda product, alpha, new, ratio: np.exp(
                (np.log(product) + np.log(alpha) - np.log(ratio) - np.log(new)) / 2
            ),
        ),
    ],
)
def test_other_forms_of_a_right_answer_pass(
    check: Function, answer: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith("passed: ")


def losses(alpha: float, lr_A: float, lr_B: float) -> list[float]:
    """Thirty steps of AdamW on one layer, in double precision."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 6).double(), torch.randn(20, 5).double()
    model = nn.Sequential(nn.Linear(6, 5)).double()
    layer = minilora.lora_layers(
        minilora.add_lora(model, LoRAConfig(r=2, alpha=alpha, targets=["0"]))
    )["0"]
    layer.A.data, layer.B.data = layer.A.data.double(), layer.B.data.double()
    groups = [{"params": [layer.A], "lr": lr_A}, {"params": [layer.B], "lr": lr_B}]
    optimizer, found = torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-30), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_the_rates_of_the_exercise_make_the_same_run() -> None:
    """Held against two trainings, and not against the formula again."""
    alpha, r, scale, lr = 6.0, 2, 0.5, 0.01
    lr_A, lr_B = ch09.check_rates_at_scale.right(alpha, r, "standard", lr, scale)
    there = losses(scale * r, lr_A, lr_B)
    assert losses(alpha, lr, lr) == pytest.approx(there, rel=1e-9)
    assert losses(scale * r, lr_B, lr_B) != pytest.approx(there, rel=1e-3)
