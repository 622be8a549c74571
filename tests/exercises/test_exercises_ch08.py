"""Chapter 8's checks: the right answer passes, a stub is no error, each mistake gets its words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from exercise_help import exercise_tests
from scipy.stats import t

import minilora
from minilora import LoRAConfig
from minilora.exercises import ch08

Function = Callable[..., Any]


def each(count: Callable[[int, int], float]) -> float:
    """A count of layers, from that of one: the sum over (d_out, d_in)."""
    return lambda shapes, r: sum(count(d_out, d_in, r) for d_out, d_in in shapes)


count = each(lambda d_out, d_in, r: r * (d_out + d_in))


# Choosing a rate: (rows → the losses of each rate) → the rate with the lowest mean.


def lowest(losses, summary=np.mean):
    return min(losses, key=lambda rate: summary(losses[rate]))


def by_rate(rows, key="validation_loss", diverged=np.inf):
    losses = {}
    for row in rows:
        loss = diverged if row["diverged"] and diverged is not None else row[key]
        losses.setdefault(row["lr"], []).append(loss)
    return losses


def choose_rate(rows):
    return lowest(by_rate(rows))


def finished(rows):
    return [row for row in rows if not row["diverged"]]


def safe(rows):
    """The rows of the rates at which no run diverged."""
    lost = {row["lr"] for row in rows if row["diverged"]}
    return [row for row in rows if row["lr"] not in lost]


def grouped(rows):
    """Neighbouring rows of one rate; right only where a rate's rows stand together."""
    means = [
        (np.mean([row["validation_loss"] for row in group]), rate)
        for rate, group in groupby(safe(rows), key=lambda row: row["lr"])
    ]
    return min(means)[1]


# An interval.


def interval(a, b, half=None, ddof=1, q=None):
    d = a - b
    n = len(d)
    q = t.ppf(0.975, n - 1) if q is None else q
    right = q * d.std(ddof=ddof) / n**0.5
    return d.mean(), right if half is None else half(d, q, n)


def unpaired(q, ddof=1):
    def answer(a, b):
        return (a - b).mean(), q * ((a.var(ddof=ddof) + b.var(ddof=ddof)) / len(a)) ** 0.5

    return answer


def both_bars(a, b):
    q = t.ppf(0.975, len(a) - 1)
    return (a - b).mean(), q * (a.std(ddof=1) + b.std(ddof=1)) / len(a) ** 0.5


def welch(a, b):
    from scipy.stats import ttest_ind

    found = ttest_ind(a, b).confidence_interval()
    return (found.low + found.high) / 2, (found.high - found.low) / 2


def ends(a, b):
    mean, half = interval(a, b)
    return mean - half, mean + half


# A budget.


def adapters(targets=("v_proj", "up_proj", "down_proj"), r=2, **more):
    def answer(model):
        return minilora.add_lora(model, LoRAConfig(r=r, alpha=r, targets=list(targets), **more))

    return answer


EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def returns_nothing(model):
    adapters()(model)


def with_head(model):
    adapters()(model).head.requires_grad_(True)
    return model


def with_embedding(model):
    adapters()(model).class_token.requires_grad_(True)
    return model


def thawed(model):
    return adapters()(model).requires_grad_(True)


def frozen(model):
    return adapters()(model).requires_grad_(False)


def only_head(model):
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def both_random(layer):
    layer.A.normal_()
    layer.B.normal_()


RIGHT: dict[str, Function] = {
    "lora_count": count,
    "choose_rate": choose_rate,
    "paired_interval": interval,
    "budget": adapters(),
}

WRONG: list[tuple[str, Function, str]] = [
    ("lora_count", each(lambda m, n, r: m * n), "the frozen matrices. LoRA"),
    ("lora_count", each(lambda m, n, r: m * n + r * (m + n)), "the frozen matrices as well"),
    ("lora_count", each(lambda m, n, r: r * m * n), "You multiply the whole matrix by the rank"),
    ("lora_count", each(lambda m, n, r: m + n), "leave the rank out"),
    ("lora_count", each(lambda m, n, r: r * n), "You count A and forget B"),
    ("lora_count", each(lambda m, n, r: r * m), "You count B and forget A"),
    ("lora_count", each(lambda m, n, r: 2 * r * n), "one factor twice"),
    ("lora_count", each(lambda m, n, r: 2 * r * m), "one factor twice"),
    ("lora_count", each(lambda m, n, r: r * (m + n - r)), "take off r²"),
    ("lora_count", each(lambda m, n, r: r * (m + n) + m), "the biases"),
    ("lora_count", lambda shapes, r: count(shapes[:1], r), "a single layer"),
    ("lora_count", lambda shapes, r: count(shapes[-1:], r), "a single layer"),
    ("lora_count", lambda shapes, r: [count([s], r) for s in shapes], "Add them up"),
    ("lora_count", lambda shapes, r: count(set(shapes), r), "the count is 2,920"),
    ("lora_count", lambda shapes, r: count(shapes, 4), "For rank 3"),
    ("choose_rate", lambda rows: lowest(by_rate(rows, "test_loss")), "the test loss"),
    ("choose_rate", lambda rows: lowest(by_rate(rows, "train_loss")), "the training loss"),
    ("choose_rate", lambda rows: lowest(by_rate(safe(rows)), np.min), "the best single run"),
    ("choose_rate", lambda rows: lowest(by_rate(safe(rows)), lambda v: v[0]), "the first run"),
    ("choose_rate", lambda rows: lowest(by_rate(safe(rows)), lambda v: v[-1]), "the last run"),
    ("choose_rate", lambda rows: lowest(by_rate(rows, diverged=None)), "whether a run diverged"),
    ("choose_rate", lambda rows: lowest(by_rate(finished(rows))), "by the others"),
    (
        "choose_rate",
        lambda rows: lowest(by_rate(safe(rows)), lambda v: -np.mean(v)),
        "highest of all",
    ),
    ("choose_rate", lambda rows: rows[9], "not its row"),
    ("choose_rate", lambda rows: (0.005, 0.95), "one learning rate"),
    ("choose_rate", lambda rows: min(map(np.mean, by_rate(rows).values())), "the lowest mean loss"),
    ("choose_rate", lambda rows: list(by_rate(rows)).index(0.005), "none of the rates"),
    ("choose_rate", lambda rows: 0.005, "Work it out"),
    ("choose_rate", grouped, "next to each other"),
    ("paired_interval", lambda a, b: interval(b, a), "you have b − a"),
    ("paired_interval", lambda a, b: interval(100 * a, 100 * b), "percentage points"),
    ("paired_interval", lambda a, b: interval(a / b, 0 * b), "The mean of a − b is"),
    ("paired_interval", lambda a, b: interval(a, b)[0], "two numbers"),
    ("paired_interval", lambda a, b: (interval(a, b)[0], ends(a, b)), "two numbers"),
    ("paired_interval", lambda a, b: interval(a, b)[::-1], "exchanged"),
    ("paired_interval", ends, "two ends"),
    ("paired_interval", lambda a, b: ends(a, b)[::-1], "two ends"),
    ("paired_interval", lambda a, b: interval(a, b, q=t.ppf(0.025, len(a) - 1)), "is positive"),
    ("paired_interval", lambda a, b: unpaired(t.ppf(0.975, len(a) - 1))(a, b), "as if they were"),
    ("paired_interval", unpaired(1.96), "as if they were unrelated"),
    ("paired_interval", unpaired(1.96, ddof=0), "as if they were unrelated"),
    ("paired_interval", both_bars, "as if they were unrelated"),
    ("paired_interval", welch, "as if they were unrelated"),
    ("paired_interval", lambda a, b: interval(a, b, lambda d, q, n: q * d.std(ddof=1)), "division"),
    ("paired_interval", lambda a, b: interval(a, b, lambda d, q, n: 1.96 * d.std()), "division"),
    ("paired_interval", lambda a, b: interval(a, b, lambda d, q, n: d.std()), "standard deviation"),
    (
        "paired_interval",
        lambda a, b: interval(a, b, lambda d, q, n: 2 * q * d.std(ddof=1) / n**0.5),
        "the whole width",
    ),
    (
        "paired_interval",
        lambda a, b: interval(a, b, lambda d, q, n: q * d.std(ddof=1) / n),
        "divide by n. Divide by its root",
    ),
    (
        "paired_interval",
        lambda a, b: interval(a, b, lambda d, q, n: q * d.var(ddof=1) / n**0.5),
        "mix up variance",
    ),
    ("paired_interval", lambda a, b: interval(a, b, q=1), "one standard error"),
    ("paired_interval", lambda a, b: interval(a, b, q=1, ddof=0), "one standard error"),
    ("paired_interval", lambda a, b: interval(a, b, q=1.96), "use Student's t"),
    ("paired_interval", lambda a, b: interval(a, b, q=2), "use Student's t"),
    ("paired_interval", lambda a, b: interval(a, b, ddof=0), "std divides by n"),
    ("paired_interval", lambda a, b: interval(a, b, q=1.96, ddof=0), "std divides by n"),
    ("paired_interval", lambda a, b: interval(a, b, q=t.ppf(0.95, len(a) - 1)), "0.95"),
    ("paired_interval", lambda a, b: interval(a, b, q=t.ppf(0.975, len(a))), "has used one up"),
    ("paired_interval", lambda a, b: interval(a, b, q=3), "The half-width is"),
    ("paired_interval", lambda a, b: interval(a, b, q=2.36), "whatever the number of runs"),
    (
        "paired_interval",
        lambda a, b: interval(a, b, lambda d, q, n: q * d.std(ddof=1) / 8**0.5),
        "runs eight somewhere",
    ),
    ("budget", adapters(EVERY), "5,184 parameters would be trained, 1,184 more"),
    ("budget", adapters(["q_proj"]), "Only 576 parameters"),
    ("budget", lambda model: model, "There is no adapter"),
    ("budget", only_head, "There is no adapter"),
    ("budget", returns_nothing, "return nothing"),
    ("budget", lambda model: LoRAConfig(r=2, alpha=2, targets=["q_proj"]), "found LoRAConfig"),
    ("budget", with_head, "The head is trained"),
    ("budget", adapters(EVERY, 1, modules_to_save=["head"]), "The head is trained"),
    ("budget", with_embedding, "class_token is trained"),
    ("budget", adapters(bias="lora_only"), "proj.base.bias is trained"),
    ("budget", thawed, "The base is not frozen"),
    ("budget", frozen, "Nothing would be trained"),
    ("budget", adapters(init=both_random), "does not start where the base stands"),
]


@pytest.mark.parametrize(
    "config",
    [
        {"r": 1, "targets": list(EVERY)},  # 2,592
        {"r": 1, "targets": [*EVERY, "head"]},  # an adapter on the head is one like any other
        {"r": 1, "targets": list(EVERY), "rank_pattern": {"v_proj": 5}},
        {"r": 2, "targets": ["v_proj", "up_proj", "down_proj"], "init": "pissa"},
        {"r": 1, "targets": list(EVERY), "use_dora": True},
        {"r": 3, "targets": r"blocks\.[12]\.feed_forward\..*", "dropout": 0.1},
    ],
)
def test_every_way_to_keep_the_budget_is_accepted(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ch08.check_budget(lambda model: minilora.add_lora(model, LoRAConfig(alpha=2, **config)))
    assert capsys.readouterr().out.startswith("passed: ")


def test_a_copy_of_the_model_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    ch08.check_budget(lambda model: adapters()(copy.deepcopy(model)))
    assert capsys.readouterr().out.startswith("passed: 3,456 of 4,000")


def test_the_budget_is_kept_to_the_last_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    """The solution trains 3,456: all of a budget of as many, and half of twice that."""
    for budget in (3456, 6912):
        ch08.check_budget(adapters(), budget)
        assert capsys.readouterr().out.startswith("passed: ")
    for budget, words in ((3455, "1 more than"), (6913, "at least half")):
        with pytest.raises(AssertionError, match=words):
            ch08.check_budget(adapters(), budget)


def test_frozen_factors_cost_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """With A left as it was drawn, rank 2 everywhere costs half, and keeps the budget."""

    def only_b(model: torch.nn.Module) -> torch.nn.Module:
        for layer in minilora.lora_layers(adapters(EVERY)(model)).values():
            layer.A.requires_grad_(False)
        return model

    ch08.check_budget(only_b)
    assert capsys.readouterr().out.startswith("passed: 2,592")


def test_a_rounded_quantile_is_accepted_where_it_is_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {8: 2.365, 5: 2.776}
    ch08.check_paired_interval(lambda a, b: interval(a, b, q=table[len(a)]))
    assert capsys.readouterr().out.startswith("passed: ")


test_right, test_stub, test_wrong = exercise_tests(RIGHT, WRONG)
