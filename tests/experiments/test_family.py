"""The family experiment: what trains, at which rates, and how an order is read off."""

from __future__ import annotations

import copy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from experiment_help import make_row, recorded

import minilora
from minilora.experiments import family
from minilora.experiments.family import alignment, figures, reading
from minilora.experiments.recording import Recording, Row
from minilora.experiments.tuning import best_rate, by_rate, judged
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import LanguageModel
from minilora.lab.pretrained import ADDER
from minilora.lab.training import evaluate, fit, set_seed
from minilora.lab.transformer import BLOCK_LINEARS, TransformerClassifier
from minilora.variants.adalora import adalora_layers
from minilora.variants.gradient_start import weight_gradients

LAPTOP, SMOKE = family.PROFILES["laptop"], family.PROFILES["smoke"]
SMALL = family.Sizes(r=2, alpha=8.0, only_B=4, vectors=6, bottleneck=2, first=3, asked=16)


@pytest.fixture(scope="module")
def base() -> TransformerClassifier:
    torch.manual_seed(0)
    return TransformerClassifier(ADDER).eval()


@pytest.fixture(scope="module")
def examples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(48, 1, 8, 16, generator=generator)
    return x, torch.randint(0, 19, (48,), generator=generator)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return family.run("smoke", device="cpu", jobs=1)


# ---------------------------------------------------------------- what a method adds


@pytest.mark.parametrize("method", family.METHODS)
def test_a_method_begins_as_the_base_and_trains_what_its_groups_hold(
    method: str, base: TransformerClassifier, examples: tuple
) -> None:
    ready = family.prepare(method, base, SMALL, examples)
    got, expected = ready.model(examples[0]), base(examples[0])
    if method == "serial adapters":  # near the identity, not on it
        assert 0 < (got - expected).abs().max() < 0.1
    else:
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    trained = {p for group in ready.groups for p in group["params"]}
    assert trained == {p for p in ready.model.parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    family.train(ready, *examples, steps=10, lr=1e-2, batch_size=16)
    moved = {n for n, p in ready.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= {n for n, p in ready.model.named_parameters() if p in trained}
    assert not any(p.grad is not None for p in base.parameters())


def test_the_methods_train_about_as_many_numbers_as_lora(
    base: TransformerClassifier, examples: tuple
) -> None:
    """All but those that cannot; the counts are predicted from the shapes."""
    shapes = [
        (layer.in_features, layer.out_features)
        for path, layer in base.named_modules()
        if path.rpartition(".")[2] in BLOCK_LINEARS
    ]
    outputs = sum(out for _, out in shapes)
    lora = 4 * sum(a + b for a, b in shapes)
    counts = {
        name: family.trained_numbers(family.prepare(name, base, LAPTOP.sizes, examples))
        for name in family.FAMILY
    }
    for name in ("LoRA", "rsLoRA", "LoRA+", "PiSSA", "OLoRA", "gradient start"):
        assert counts[name] == lora
    assert counts["LoRA-FA"] == 8 * outputs == lora
    assert counts["VeRA"] == outputs + 504 * len(shapes) == lora
    assert counts["DoRA"] == lora + outputs
    assert counts["AdaLoRA"] == lora * 6 // 4 + 6 * len(shapes)
    assert 0.97 * lora < counts["serial adapters"] <= lora
    assert counts["head only"] < counts["BitFit"] < lora / 4 and counts["full"] > 5 * lora


def test_the_methods_of_the_language_model_are_of_one_size() -> None:
    model = LanguageModel(DecoderConfig(width=128, layers=1, heads=4, vocab=64, context=8))
    ids = torch.zeros(2, 8, dtype=torch.long)
    counts = [
        family.trained_numbers(family.prepare(name, model, LAPTOP.prose.sizes, (ids, ids)))
        for name in family.METHODS
        if name not in ("VeRA", "DoRA", "AdaLoRA", "BitFit", "head only", "the matrices", "full")
    ]
    assert min(counts) > 0.9 * max(counts) == 0.9 * counts[0]


def test_every_method_is_what_its_name_says(base: TransformerClassifier, examples: tuple) -> None:
    def layers(method: str) -> list:
        model = family.prepare(method, base, SMALL, examples).model
        return list(minilora.lora_layers(model).values())

    assert {one.scale for one in layers("LoRA")} == {4.0}
    assert {one.scale for one in layers("rsLoRA")} == {8 / 2**0.5}
    assert all(one.dora is not None for one in layers("DoRA"))
    for name in ("PiSSA", "OLoRA"):
        assert all(one.start is not None for one in layers(name))
    assert not any(one.A.requires_grad for one in layers("LoRA-FA"))
    assert {one.r for one in layers("VeRA")} == {6} and {one.r for one in layers("AdaLoRA")} == {3}
    assert {one.scale for one in layers("AdaLoRA")} == {4.0}
    groups = family.prepare("LoRA+", base, SMALL, examples).groups
    assert [group["lr"] for group in groups] == [1.0, 16.0]
    of_A = {layer.A.shape for layer in layers("LoRA")}
    assert {p.shape for p in groups[0]["params"]} == of_A


def test_the_gradient_start_is_that_of_the_examples(
    base: TransformerClassifier, examples: tuple
) -> None:
    x, y = (part[:16] for part in examples)
    gradients = weight_gradients(
        base, SMALL.config, lambda: torch.nn.functional.cross_entropy(base(x), y)
    )
    model = family.prepare("gradient start", base, SMALL, examples).model
    for path, layer in minilora.lora_layers(model).items():
        Vh = torch.linalg.svd(gradients[path]).Vh[:2]
        assert alignment.share_inside(layer.A.T.detach(), Vh.T) == pytest.approx(1, abs=1e-4)


def test_a_name_that_is_no_method_is_refused(base: TransformerClassifier, examples: tuple) -> None:
    with pytest.raises(ValueError, match="no method 'MoRA'; there are LoRA"):
        family.prepare("MoRA", base, SMALL, examples)


# ---------------------------------------------------------------- the loop


def test_the_loop_is_fit_where_fit_can_do_it(base: TransformerClassifier, examples: tuple) -> None:
    how = {"steps": 12, "lr": 3e-3, "batch_size": 16, "seed": 5}
    ready = family.prepare("LoRA", base, SMALL, examples, seed=3)
    losses = family.train(ready, *examples, **how)
    set_seed(3)
    model = minilora.add_lora(copy.deepcopy(base), SMALL.config)
    history = fit(model, *examples, progress=False, **how)
    assert losses == history.loss
    torch.testing.assert_close(ready.model(examples[0]), model(examples[0]))


def test_groups_keep_their_multiple_of_the_rate(
    base: TransformerClassifier, examples: tuple
) -> None:
    """One step of Adam moves every entry by about its rate: B's sixteen times as far as A's is."""
    ready = family.prepare("LoRA+", base, SMALL, examples)
    layers = minilora.lora_layers(ready.model).values()
    for layer in layers:
        torch.nn.init.normal_(layer.B, std=0.1)  # so that A has a gradient, too
    before = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]
    family.train(ready, *examples, steps=1, lr=1e-3, batch_size=48)
    for layer, (A, B) in zip(layers, before, strict=True):
        moved = [(a - b).abs().median().item() for a, b in ((layer.A, A), (layer.B, B))]
        assert moved[1] / moved[0] == pytest.approx(16, rel=0.05)


def test_epsilon_reaches_adam(base: TransformerClassifier, examples: tuple) -> None:
    ready = family.prepare("LoRA", base, SMALL, examples)
    family.train(ready, *examples, steps=4, lr=1e-2, batch_size=16, eps=1e6)
    assert all(layer.B.abs().max() < 1e-6 for layer in minilora.lora_layers(ready.model).values())


def test_adalora_ends_with_the_rank_of_lora_and_is_pulled_to_right_angles(
    base: TransformerClassifier, examples: tuple
) -> None:
    ready = family.prepare("AdaLoRA", base, SMALL, examples, steps=40)
    assert ready.penalty is not None and ready.after is not None
    family.train(ready, *examples, steps=40, lr=1e-2, batch_size=16)
    layers = adalora_layers(ready.model)
    kept = sum(int(one.Lambda.count_nonzero()) for one in layers.values())
    assert kept == SMALL.r * len(layers) < SMALL.first * len(layers)


def test_a_run_that_breaks_has_no_numbers(base: TransformerClassifier, examples: tuple) -> None:
    bench = replace(family.adder_bench(SMOKE), steps=10)
    (row,) = family.one_run(family.MethodRun("a", "full", 1e30), bench=bench, stages=("tune",))
    assert row.diverged and row.log_loss is None and row.parameters


def test_a_step_can_be_timed(base: TransformerClassifier, examples: tuple) -> None:
    for name in ("LoRA+", "AdaLoRA"):
        ready = family.prepare(name, base, SMALL, examples, steps=10)
        before = evaluate(ready.model, *examples).log_loss
        step = family.stepper(ready, *examples, lr=1e-3)
        for _ in range(5):
            step()
        assert evaluate(ready.model, *examples).log_loss < before


# ---------------------------------------------------------------- the comparison


def test_every_method_is_tuned_and_tested_on_other_draws(recording: Recording) -> None:
    assert {row.setting for row in recording.rows} == {
        *("sums", "longer", "batch-8", "alpha", "prose", "finer")
    }
    for name in SMOKE.methods:
        tried = by_rate(recording.rows, name, SMOKE.labels)
        assert len(tried) >= 3 and {row.seed for runs in tried.values() for row in runs} == {100}
        best = best_rate(recording.rows, name, SMOKE.labels)
        one = reading.standing(recording, name, labels=SMOKE.labels)
        assert one.rate == best and len(one.values) == len(SMOKE.tuning.tested)


def test_the_fine_ladder_has_smaller_steps_and_longer_runs(recording: Recording) -> None:
    labels, rows = SMOKE.prose.labels, recording.rows
    for times in SMOKE.prose.finer:
        tried = sorted(by_rate(rows, family.finer("LoRA", times), labels))
        ratios = np.divide(tried[1:], tried[:-1])
        assert len(tried) >= 3 and (ratios < 1.7).all()
    short, long = (
        reading.standing(recording, family.finer("LoRA", times), "own", "log_loss", labels)
        for times in (1, 2)
    )
    assert short.values != long.values
    with pytest.raises(ValueError, match="no"):
        reading.standing(recording, family.finer("LoRA", 3), "own", "log_loss", labels)


def test_all_but_the_lender_are_tested_at_its_rate(recording: Recording) -> None:
    for labels, methods in (
        (SMOKE.labels, SMOKE.methods),
        (SMOKE.prose.labels, SMOKE.prose.methods),
    ):
        lent = best_rate(recording.rows, family.LENDER, labels)
        assert family.borrowed(family.LENDER) == family.LENDER
        for name in methods:
            one = reading.standing(recording, name, "borrowed", labels=labels)
            own = reading.standing(recording, name, labels=labels)
            assert one.rate == lent
            if own.rate == lent:
                assert one.values == own.values
            other = reading.standing(recording, name, "second", labels=labels)
            losses = judged(recording.rows, name, labels)
            assert sorted(losses, key=losses.__getitem__)[:2] == [own.rate, other.rate]
            if other.rate == lent:
                assert other.values == one.values
    beside = [row for row in recording.rows if ", sheet " in row.arm]
    assert beside and not any(word in row.arm for row in beside for word in ("borrowed", "second"))


def test_alpha_and_bs_rate_are_one_knob_without_epsilon(base: TransformerClassifier) -> None:
    """What the part "alpha" is about, on its own runs."""
    bench = replace(family.adder_bench(SMOKE), steps=30)
    runs = {run.arm: run for run in family.alpha_runs(SMOKE)}
    found = {}
    for eps in (1e-8, 1e-2):
        for what in ("α", "B's rate"):
            run = runs[family.alpha_arm(what, 4.0, eps)].at(3e-2, 0)
            (row,) = family.one_run(run, bench=bench, stages=("tune",))
            found[what, eps] = row.train_loss
    assert found["α", 1e-8] == pytest.approx(found["B's rate", 1e-8], abs=1e-3)
    assert abs(found["α", 1e-2] - found["B's rate", 1e-2]) > 5e-3


# ---------------------------------------------------------------- the reading


def three() -> Recording:
    rows = [
        make_row(arm, seed, value, labels=500, lr=rate, kind=kind)
        for arm, kind, rate, values in (
            ("LoRA", "lora", 0.02, (0.80, 0.82, 0.84, 0.81)),
            ("PiSSA", "lora", 0.01, (0.81, 0.83, 0.85, 0.82)),
            ("DoRA", "lora", 0.02, (0.70, 0.90, 0.72, 0.88)),
            ("PiSSA, borrowed", "borrowed", 0.02, (0.3, 0.4, 0.35, None)),
            ("DoRA, borrowed", "borrowed", 0.02, (0.70, 0.90, 0.72, 0.88)),
        )
        for seed, value in enumerate(values)
    ]
    return recorded(rows)


def test_an_order_has_the_best_first_and_the_lost_last() -> None:
    names = ["DoRA", "LoRA", "PiSSA"]
    own = reading.order(three(), names)
    lent = reading.order(three(), names, "borrowed")
    assert [one.method for one in own] == ["PiSSA", "LoRA", "DoRA"]
    assert [one.method for one in lent] == ["LoRA", "DoRA", "PiSSA"] and np.isnan(lent[-1].mean)
    with pytest.raises(ValueError, match="at must be one of own, borrowed, low, second"):
        reading.standing(three(), "LoRA", "else")


def test_what_the_tuning_draws_said_is_paired_by_draw() -> None:
    def tune(arm: str, lr: float, values: tuple[float, ...]) -> list[Row]:
        row = Row("tune", arm, "lora", 500, 0, lr=lr, log_loss=lr)
        return [replace(row, seed=seed, accuracy=value) for seed, value in enumerate(values)]

    rows = [*tune("a", 1.0, (0.5, 0.7, 0.6)), *tune("a", 2.0, (0.9, 0.9, 0.9))]
    rows += tune("b", 3.0, (0.4, 0.6, 0.5))
    mean, low, high = reading.while_tuning(replace(three(), rows=rows), "a", "b")
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))  # at rate 1, where a's loss is low
    with pytest.raises(ValueError, match="same draws"):
        reading.while_tuning(replace(three(), rows=rows[:-1]), "a", "b")


def test_topics_are_paired(recording: Recording) -> None:
    labels = SMOKE.prose.labels
    mean, low, high = reading.over_topics(recording, "LoRA", "PiSSA", labels)
    assert low <= mean <= high
    with pytest.raises(ValueError, match="no topics in common"):
        reading.over_topics(recording, "LoRA", "DoRA", labels)


# ---------------------------------------------------------------- the first gradient


def test_shares_and_cosines_are_those_of_the_svd() -> None:
    generator = torch.Generator().manual_seed(2)
    G = torch.randn(9, 7, generator=generator)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    assert alignment.share_inside(G, U[:, :2]) == pytest.approx(
        (S[:2].square().sum() / S.square().sum()).item(), rel=1e-5
    )
    best = alignment.first_step(G, Vh[:2])
    bound = (S[:2].square().sum() / S.square().sum()).sqrt().item()
    assert alignment.cosine(best, -G) == pytest.approx(bound, rel=1e-5)
    for _ in range(20):
        A = torch.randn(2, 7, generator=generator)
        step = alignment.first_step(G, A)
        assert alignment.cosine(step, -G) < bound
        torch.testing.assert_close(alignment.first_step(G, 2 * A), 4 * step)  # A counts twice


def test_a_small_start_turns_towards_the_gradient_and_a_large_one_does_not(
    base: TransformerClassifier, examples: tuple
) -> None:
    gradients = weight_gradients(
        base,
        SMALL.config,
        lambda: torch.nn.functional.cross_entropy(base(examples[0]), examples[1]),
    )
    seen = {}
    for size in (1.0, 0.01):
        model = family.prepare("LoRA", base, SMALL, examples).model
        for layer in minilora.lora_layers(model).values():
            layer.A.data *= size
        seen[size] = alignment.turning(model, gradients, *examples, lr=0.3, steps=60, every=20)
    assert seen[1.0].steps == [2, 20, 40, 60]
    assert abs(seen[1.0].A[-1] - seen[1.0].A[0]) < 0.1
    assert seen[0.01].A[-1] > seen[0.01].A[0] + 0.2
    assert seen[1.0].learnt[0] > 0.6 > seen[1.0].A[-1]  # what is learnt points there at once
    assert seen[1.0].grown == sorted(seen[1.0].grown) and seen[0.01].grown[-1] > 1


# ---------------------------------------------------------------- the figures


def test_the_figures_draw_what_the_recording_holds(recording: Recording) -> None:
    names, labels = SMOKE.methods, SMOKE.labels
    figure, axes = plt.subplots(1, 4)
    figures.draw_ladders(axes[0], recording.rows, names, labels, worst=4.0)
    assert len(axes[0].patches) == len(axes[0].texts) + len(names)  # and a frame for each
    own = reading.order(recording, names, labels=labels)
    lent = reading.order(recording, names, "borrowed", labels=labels)
    seconds = {
        name: reading.standing(recording, name, "second", labels=labels).mean for name in names
    }
    figures.draw_orders(axes[1:3], [lent, own], 0.0, seconds)
    bars = [line.get_xdata()[0] for line in axes[2].lines if line.get_marker() == "|"]
    assert bars == [100 * seconds[one.method] for one in own]
    assert [text.get_text() for text in axes[2].get_yticklabels()] == [one.method for one in own]
    arms = {"LoRA": {16: "LoRA", 8: "LoRA, batch 8"}, "full": {16: "full", 8: "full, batch 8"}}
    figures.draw_batches(axes[3], recording, arms)
    plt.close(figure)
    figure, axes = plt.subplots(1, len(SMOKE.epsilons))
    figures.draw_alpha(axes, recording, SMOKE.factors, SMOKE.epsilons)
    for ax, eps in zip(axes, SMOKE.epsilons, strict=True):
        assert ax.get_title() == f"ε = {eps:g}"
        assert [list(line.get_xdata()) for line in ax.lines] == [list(SMOKE.factors)] * 2
    plt.close(figure)
