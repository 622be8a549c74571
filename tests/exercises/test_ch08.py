"""Chapter 8's checks: more right answers, and the limits of a budget."""

from __future__ import annotations

import copy

import numpy as np
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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda rows: max(rows, key=lambda row: row["validation_loss"])["lr"], "highest of all"),
        (lambda rows: ch08._lowest(lambda runs: -ch08._loss(runs), rows), "highest of all"),
        (
            lambda rows: ch08._lowest(
                ch08._safe(lambda runs: float(np.median([r["validation_loss"] for r in runs]))),
                rows,
            ),
            "You take the median",
        ),
    ],
)
def test_ways_to_choose_a_rate_are_told_apart(answer: Function, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        ch08.check_choose_rate(answer)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_the_range_of_the_differences_is_no_half_width(part: float) -> None:
    def answer(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        return (a - b).mean(), part * np.ptp(a - b)

    with pytest.raises(AssertionError, match="from the smallest difference to the largest"):
        ch08.check_paired_interval(answer)


def test_the_least_number_of_draws_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert ch08._draws(1.8, 1.0) == 15  # t(14) = 2.145: 0.997; t(13) = 2.160: 1.039
    assert ch08._draws(1e-9, 1.0) == 2
    ch08.check_draws_needed(lambda s, half: np.int64(ch08._draws(s, half)))
    assert capsys.readouterr().out.startswith("passed")
