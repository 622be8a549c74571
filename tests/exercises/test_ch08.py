"""Chapter 8's checks: more right answers, and the limits of a budget."""

from __future__ import annotations

import copy

import pytest
import torch
from answers_ch08 import EVERY, Function, adapters

import minilora
from minilora.exercises import ch08


def adapters_on_a_copy(model: torch.nn.Module) -> torch.nn.Module:
    return adapters()(copy.deepcopy(model))


def only_b(model: torch.nn.Module) -> torch.nn.Module:
    """With A left as it was drawn, rank 2 everywhere costs half, and keeps the budget."""
    for layer in minilora.lora_layers(adapters(EVERY)(model)).values():
        layer.A.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (adapters(EVERY, 1), "2,592"),
        (adapters([*EVERY, "head"], 1), ""),  # an adapter on the head is one like any other
        (adapters(EVERY, 1, rank_pattern={"v_proj": 5}), ""),
        (adapters(init="pissa"), ""),
        (adapters(EVERY, 1, use_dora=True), ""),
        (adapters(r"blocks\.[12]\.feed_forward\..*", 3, dropout=0.1), ""),
        (adapters_on_a_copy, "3,456 of 4,000"),
        (only_b, "2,592"),
    ],
)
def test_every_way_to_keep_the_budget_is_accepted(
    answer: Function, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ch08.check_budget(answer)
    assert capsys.readouterr().out.startswith(f"passed: {count}")


def test_the_budget_is_kept_to_the_last_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    """The solution trains 3,456: all of a budget of as many, and half of twice that."""
    for budget in (3456, 6912):
        ch08.check_budget(adapters(), budget)
        assert capsys.readouterr().out.startswith("passed: ")
    for budget, words in ((3455, "1 more than"), (6913, "at least half")):
        with pytest.raises(AssertionError, match=words):
            ch08.check_budget(adapters(), budget)


def test_a_rounded_quantile_is_accepted_where_it_is_the_right_one() -> None:
    rounded = {8: 2.365, 5: 2.776}
    check = ch08.check_paired_interval
    assert check.judge(lambda a, b: ch08._interval(a, b, rounded[len(a)])) is None
