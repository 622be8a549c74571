"""Checks of chapter 8: experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minilora.exercises.tools import Function, call, not_attempted, passed


def check_lora_count(function: Function) -> None:
    """Chapter 8: ``function(shapes, r)`` counts what LoRA trains on layers of these shapes."""
    shapes, r = [(48, 48), (192, 48), (48, 192), (10, 48)], 4
    answer = call(function, shapes, r)
    if not_attempted(answer):
        return

    def same(count: Callable[[int, int], float]) -> bool:
        return float(answer) == sum(count(d_out, d_in) for d_out, d_in in shapes)

    assert not same(lambda d_out, d_in: d_out * d_in), (
        "you counted the frozen matrices; LoRA trains their factors A and B instead"
    )
    assert not same(lambda d_out, d_in: r * d_out * d_in), (
        "you multiplied by the rank; each rank adds one column to B and one row to A, "
        "so d_out + d_in numbers"
    )
    assert not same(lambda d_out, d_in: d_out + d_in), "you left out the rank: this is rank 1"
    assert not same(lambda d_out, d_in: r * d_in), "you counted A and forgot B, of shape (d_out, r)"
    assert not same(lambda d_out, d_in: r * d_out), "you counted B and forgot A, of shape (r, d_in)"
    assert not same(lambda d_out, d_in: r * (d_out + d_in) + d_out), (
        "you added the biases; they belong to the frozen layer"
    )
    assert same(lambda d_out, d_in: r * (d_out + d_in)), (
        "the count is r·(d_out + d_in) for each layer, added up over the layers"
    )
    passed("r·(d_in + d_out) for each adapted layer")


def _tuning_rows() -> list[dict[str, Any]]:
    """Four rates; each wrong way of choosing picks another one than the right way."""
    table = {  # rate: (training, validation, test) loss of two seeds
        0.001: ((1.0, 1.0), (1.2, 1.2), (0.7, 0.7)),  # best on test data
        0.01: ((0.5, 0.5), (0.9, 1.0), (1.0, 1.0)),  # right: best mean on validation data
        0.03: ((0.1, 0.1), (1.5, 1.5), (1.6, 1.6)),  # best on training data
        0.1: ((0.3, 3.0), (0.6, 0.1), (0.9, 0.9)),  # its second seed diverged
        0.02: ((0.4, 0.4), (0.8, 2.0), (1.2, 1.2)),  # best single run
    }
    return [
        {
            "lr": rate,
            "train_loss": train[seed],
            "validation_loss": validation[seed],
            "test_loss": test[seed],
            "diverged": rate == 0.1 and seed == 1,
        }
        for rate, (train, validation, test) in table.items()
        for seed in (0, 1)
    ]


def check_choose_rate(function: Function) -> None:
    """Chapter 8: ``function(rows)`` chooses the learning rate from the rows of a tuning run."""
    answer = call(function, _tuning_rows())
    if not_attempted(answer):
        return
    wrong = {
        0.001: "you looked at the test loss; then the test says nothing about new data any more",
        0.03: "you looked at the training loss, which is lowest where the model fits by heart",
        0.1: "one of the two runs at this rate diverged; a rate that may fail is not a choice",
        0.02: "you took the best single run; average over the seeds, or you choose good luck",
    }
    if isinstance(answer, dict):
        raise AssertionError("return the learning rate itself, not its row")
    assert float(answer) not in wrong, wrong[float(answer)]
    assert float(answer) == 0.01, f"{answer!r} is none of the rates that were tried"
    passed("the lowest mean loss on validation data, of rates that never fail")


def check_paired_interval(function: Function) -> None:
    """Chapter 8: ``function(a, b)`` gives the mean of a − b and its 95% interval's half-width."""
    a = np.array([0.81, 0.84, 0.86, 0.83, 0.88])
    b = np.array([0.80, 0.82, 0.86, 0.80, 0.87])
    answer = call(function, a, b)
    if not_attempted(answer):
        return
    assert np.shape(answer) == (2,), "return two numbers: the mean difference and the half-width"
    mean, half = map(float, answer)
    d, root, t = a - b, np.sqrt(5), 2.7764451
    assert not np.isclose(mean, -d.mean()), "the difference is a − b, and you have b − a"
    assert np.isclose(mean, d.mean()), "the first number is the mean of a − b"
    spread = d.std(ddof=1)
    unpaired = t * np.sqrt(a.var(ddof=1) + b.var(ddof=1)) / root
    assert not np.isclose(half, unpaired, rtol=0.02), (
        "you added the variances of a and b as if they were unrelated; the runs share their data, "
        "so take the differences first and look at their spread"
    )
    assert not np.isclose(half, t * spread, rtol=0.02), (
        "this is the interval for one more run; for the mean of five, divide by √5"
    )
    assert not np.isclose(half, 1.96 * spread / root, rtol=0.02), (
        "1.96 is for many runs; for five the spread itself is uncertain: use Student's t, 2.78"
    )
    assert not np.isclose(half, t * d.std() / root, rtol=0.005), (
        "NumPy's std divides by n unless you say ddof=1"
    )
    assert not np.isclose(half, spread / root, rtol=0.02), (
        "this is one standard error; the 95% interval is 2.78 of them for five runs"
    )
    assert np.isclose(half, t * spread / root, rtol=0.005), (
        "the half-width is t(0.975, n − 1) · std(a − b, ddof=1) / √n"
    )
    passed("pairing first, then Student's t")


def check_budget(function: Function, budget: int) -> None:
    """Chapter 8: ``function(model)`` adds adapters that train at most ``budget`` parameters."""
    import torch

    from minilora import count_parameters, lora_layers, lora_parameters
    from minilora.pretrained import ADDER
    from minilora.transformer import TransformerClassifier

    torch.manual_seed(0)
    model = TransformerClassifier(ADDER)
    pictures = torch.rand(4, 1, 8, 16)
    before = model(pictures).detach()
    answer = call(function, model)
    if not_attempted(answer):
        return
    assert isinstance(answer, torch.nn.Module), "return the model, as add_lora does"
    layers = lora_layers(answer)
    assert layers, "there is no adapter on the model; call minilora.add_lora(model, LoRAConfig(…))"
    assert torch.equal(answer(pictures).detach(), before), (
        "the adapted model does not start where the base stands; leave B (or A) at zero"
    )
    trained = {id(p) for p in lora_parameters(answer)}
    extra = [
        name for name, p in answer.named_parameters() if p.requires_grad and id(p) not in trained
    ]
    assert not extra, f"{extra[0]} is trained as well, and is no part of an adapter; freeze it"
    count = count_parameters(answer, trainable_only=True)
    assert count <= budget, (
        f"{count:,} parameters would be trained, {count - budget:,} more than the budget of "
        f"{budget:,}: lower the rank, or adapt fewer layers"
    )
    assert 2 * count >= budget, (
        f"only {count:,} parameters would be trained; spend at least half of {budget:,}"
    )
    passed(f"{count:,} of {budget:,} parameters, on {len(layers)} layers")
