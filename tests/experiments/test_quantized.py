"""The quantized experiment: what is rounded, what is trained beside it, and what merging makes."""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from experiment_help import plain

import minilora
from minilora import quantize
from minilora.experiments import quantized
from minilora.experiments.quantized import figures
from minilora.experiments.recording import Recording
from minilora.experiments.sums import adder
from minilora.experiments.tasks import Task
from minilora.experiments.tuning import best_rate
from minilora.lab import training
from minilora.lab.sweep import Cell, sweep
from minilora.lab.transformer import TransformerClassifier

SIZE = quantized.PROFILES["smoke"]

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def everything(cache: None) -> Recording:
    return quantized.run(SIZE, device="cpu", jobs=1)


@pytest.fixture(scope="module")
def base(cache: None) -> TransformerClassifier:
    return adder(SIZE.sums)


def test_rounded_weights_train_as_packed_ones_do(base: TransformerClassifier) -> None:
    x, y = quantized.task(SIZE).labelled(0)
    losses = []
    for packed in (False, True):
        model = copy.deepcopy(base)
        if packed:
            quantize.quantize_linears(model, quantized.TARGETS, double=False)
        else:
            quantized.round_weights(model, quantized.rounding(4))
        training.set_seed(0)
        minilora.add_lora(model, quantized.config_of(2, 8.0))
        with minilora.textbook():
            losses.append(training.fit(model, x, y, steps=6, lr=0.02, progress=False).loss)
    assert losses[0] == losses[1]


def test_a_sweep_takes_loftq_s_start(base: TransformerClassifier) -> None:
    config = quantized.config_of(2, 8.0)
    model, config = quantized.rounded_base(base, 2, config, "LoftQ", 2)
    task = quantized.task(SIZE)
    cell = Cell(config, 0.02, seed=3)
    (swept,) = sweep(model, [cell], task.labelled, steps=5, batch_size=16, progress=False)
    training.set_seed(3)
    alone = minilora.add_lora(copy.deepcopy(model), config)
    fitted = training.fit(
        alone, *task.labelled(3), steps=5, lr=0.02, batch_size=16, seed=3, progress=False
    )
    np.testing.assert_allclose(swept.loss, fitted.loss, rtol=1e-4)
    assert not np.allclose(swept.loss[0], _first_loss(model, task, 3), rtol=1e-4)


@torch.no_grad()
def _first_loss(model: TransformerClassifier, task: Task, seed: int) -> float:
    x, y = task.labelled(seed)
    (rows,) = training.batches(len(y), 16, 1, seed)
    return float(torch.nn.functional.cross_entropy(model(x[rows]), y[rows]))


def test_only_the_targets_are_rounded_and_to_few_values(base: TransformerClassifier) -> None:
    for bits in (4, 3, 2):
        model, _ = quantized.rounded_base(base, bits, quantized.config_of(1, 1.0), "default", 1)
        for (path, W), (_, old) in zip(
            model.named_parameters(), base.named_parameters(), strict=True
        ):
            if path.endswith("_proj.weight"):
                first = W.flatten()[:64] / W.flatten()[:64].abs().max()
                assert len(first.unique()) <= 2**bits < len(old.flatten()[:64].unique())
            else:
                assert torch.equal(W, old)
    assert quantized.error(base, base) == 0 < quantized.error(model, base)


def test_a_merged_update_is_in_the_weights(base: TransformerClassifier) -> None:
    config = quantized.config_of(2, 8.0)
    model = minilora.add_lora(copy.deepcopy(base), config)
    factors = {}
    for path, layer in minilora.lora_layers(model).items():
        layer.B.data.normal_()
        factors |= {f"{path}.A": layer.A.detach(), f"{path}.B": layer.B.detach()}
    merged = quantized.with_update(base, factors, config.alpha / config.r)
    x = quantized.task(SIZE).test[0]
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)
    assert quantized.error(merged, base) == pytest.approx(quantized.error(model, base), rel=1e-5)


def test_outputs_err_as_much_as_weights_where_inputs_are_alike() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 128))
    found = quantized.output_errors(model, torch.randn(4000, 256), quantize.NF4_LEVELS)
    of_weight, of_output = found["0"]
    assert of_output == pytest.approx(of_weight, rel=0.02)
    x = torch.randn(4000, 1) * torch.linalg.svd(model[0].weight)[2][0]  # one direction only
    assert quantized.output_errors(model, x, quantize.NF4_LEVELS)["0"][1] < 0.8 * of_weight


def test_every_arm_is_tuned_on_some_draws_and_tested_on_others(everything: Recording) -> None:
    arms = {row.arm for row in everything.rows if row.stage == "tune"}
    wanted = {quantized.arm_of(bits, r) for bits in (32, 4, 3, 2) for r in SIZE.ranks}
    wanted |= {quantized.arm_of(bits, r, "LoftQ") for bits in (4, 3, 2) for r in SIZE.ranks}
    wanted |= {quantized.arm_of(2, r, "even levels") for r in SIZE.ranks}
    short = {f"2 bits, r=2{start}, 2 steps" for start in ("", ", LoftQ")}
    assert arms == wanted | short | {"full fine-tuning"}
    for arm in arms:
        tuned = [row for row in everything.rows if (row.stage, row.arm) == ("tune", arm)]
        tested = [row for row in everything.rows if (row.stage, row.arm) == ("final", arm)]
        assert {row.seed for row in tuned} == {100, 101}
        assert sorted(row.seed for row in tested) == [0, 1]
        assert {row.lr for row in tested} == {best_rate(everything.rows, arm)}


def test_merged_rows_belong_to_the_arms_that_start_at_zero(everything: Recording) -> None:
    merged = {row.arm for row in everything.rows if row.kind == "merged"}
    wanted = set()
    for r in SIZE.ranks:
        wanted |= {f"32 bits, r={r}, rounded to {bits}" for bits in (4, 3, 2)}
        for bits in (4, 3, 2):
            arm = quantized.arm_of(bits, r)
            wanted |= {f"{arm}, into the exact weights", f"{arm}, rounded again"}
        second = f"2 bits, r={r}, runner-up"
        wanted |= {f"{second}, into the exact weights", f"{second}, rounded again"}
    assert merged == wanted


def test_untrained_bases_and_runners_up_are_there(everything: Recording) -> None:
    names = {row.arm for row in everything.rows}
    assert {f"{bits} bits, untrained" for bits in (32, 4, 3, 2)} <= names
    assert "2 bits, even levels, untrained" in names
    for r in SIZE.ranks:
        assert {f"2 bits, r={r}, LoftQ, untrained", f"2 bits, r={r}, runner-up"} <= names
    for arm in ("2 bits, r=1", "2 bits, r=2, LoftQ"):
        lr = {row.lr for row in everything.rows if row.arm == f"{arm}, runner-up"}
        assert len(lr) == 1 and lr != {best_rate(everything.rows, arm)}


def test_a_part_by_itself_gives_the_same_rows(everything: Recording) -> None:
    alone = quantized.run(SIZE, parts=["short"], device="cpu", jobs=1)
    assert plain(alone.rows) == plain([r for r in everything.rows if r.setting == "short"])


def test_the_figures_draw_what_the_rows_say(everything: Recording) -> None:
    figure, axes = plt.subplots(2, 2)
    figures.draw_bits(axes[0, 0], everything, SIZE.ranks, "default")
    last = axes[0, 0].lines[-1].get_ydata()
    values = [
        100 * np.mean([row.accuracy for row in everything.rows
                       if (row.arm, row.stage) == (quantized.arm_of(bits, 2), "final")])
        for bits in (32, 4, 3, 2)
    ]  # fmt: skip
    assert list(last) == pytest.approx(values)
    figures.draw_untrained(axes[0, 1], everything, {2: "2 bits, untrained"})
    arm = "2 bits, r=1"
    figures.draw_starts(axes[1, 0], everything, {"B = 0": arm, "LoftQ": f"{arm}, LoftQ"})
    figures.draw_merged(axes[1, 1], everything, {arm: {"kept apart": arm}})
    assert [text.get_text() for text in axes[1, 0].texts] == ["B = 0", "LoftQ"]
    plt.close(figure)
    use = figures.usage(torch.tensor([1.0, -1.0, 0.0, 0.1]), quantize.NF4_LEVELS, block=4)
    assert use.sum() == 1 and use[[0, 7, 8, 15]].tolist() == [0.25] * 4


def test_even_levels_are_evenly_spaced_and_as_many(base: TransformerClassifier) -> None:
    config = quantized.config_of(1, 1.0)
    for start, levels in (
        ("default", quantize.normal_float_levels(2)),
        ("even levels", quantize.uniform_levels(4)),
    ):
        model, given = quantized.rounded_base(base, 2, config, start, 1)
        assert given is config
        W = model.blocks[0].attention.q_proj.weight.flatten()[:64]
        found = (W / W.abs().max())[:, None] - levels
        assert found.abs().amin(1).max() < 1e-6
