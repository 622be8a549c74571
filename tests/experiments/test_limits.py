"""The limits experiment: rings of tokens, a matrix of facts, lessons, triggers, detectors."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import minilora
from minilora.experiments import limits
from minilora.experiments.limits import (
    backdoors,
    batches,
    capacity,
    handful,
    pictures,
    reading,
    relabelling,
)
from minilora.experiments.recording import Quantity, Recording, read_recording
from minilora.lab import training
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import LanguageModel

SIZE = limits.PROFILES["smoke"]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return limits.run("smoke", jobs=1)


# ---------------------------------------------------------------- the whole


def test_every_arm_is_tuned_and_tested_and_all_kinds_are_noted(recording: Recording) -> None:
    tuned = {row.arm for row in recording.rows if row.stage == "tune"}
    tested = {row.arm for row in recording.rows if row.stage == "final"}
    assert tested - tuned == {"pick, untaught", "table, untaught"} and tuned < tested
    for arm in ("4 tokens, r=1", "4 tokens, whole", "8 facts, r=2", "4 facts, whole"):
        assert arm in tested
    for arm in (
        "batch 4, full",
        "batch 8, r=1",
        "pick by reward, 3 numbers",
        "table by answers, LoRA",
    ):
        assert arm in tested
    kinds = {one.arm for one in recording.quantities}
    assert kinds == {
        *("clean", "poisoned", "dotted", "clean, longer", "disguised", "in disguise"),
    }
    for kind in kinds:
        assert reading.noted(recording, kind).signatures.shape == (SIZE.backdoors.each, 20)


def test_a_run_is_written_and_read_and_the_same_again(recording: Recording, tmp_path: Path) -> None:
    limits.run("smoke", parts=["capacity", "handful"], jobs=1, out=tmp_path)
    for part in ("capacity", "handful"):
        found = read_recording(tmp_path / f"limits-{part}.smoke.json")
        own = [row for row in recording.rows if row.arm in {one.arm for one in found.rows}]
        strip = [replace(row, seconds=0.0) for row in found.rows]
        again = [replace(row, seconds=0.0) for row in own]
        assert [(r.arm, r.stage, r.lr, r.seed) for r in strip] == [
            (r.arm, r.stage, r.lr, r.seed) for r in again
        ]
        assert [r.log_loss for r in strip] == pytest.approx([r.log_loss for r in again], abs=1e-4)


def test_the_draws_that_tune_are_not_those_that_test() -> None:
    for profile in limits.PROFILES.values():
        for part in (profile.relabelling, profile.capacity, profile.batches, profile.handful):
            assert not set(part.tuning.seeds) & set(part.tuning.tested)
    laptop = limits.PROFILES["laptop"]
    for part in (laptop.relabelling, laptop.capacity, laptop.batches, laptop.handful):
        assert len(part.tuning.seeds) >= 3 and len(part.tuning.tested) >= 3


# ---------------------------------------------------------------- tokens in a ring


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(DecoderConfig(width=16, layers=1, heads=2, vocab=1024, context=16)).eval()


@pytest.mark.parametrize("tokens", [2, 5, 16])
def test_a_ring_moves_its_tokens_once_round_and_no_other(tokens: int) -> None:
    new = relabelling.ring(tokens)
    assert sorted(new.tolist()) == list(range(1024))
    moved = [i for i in range(1024) if new[i] != i]
    assert len(moved) == tokens
    at, seen = moved[0], []
    while at not in seen:
        seen.append(at)
        at = int(new[at])
    assert sorted(seen) == moved  # one ring, not several


def test_the_exact_change_has_the_rank_of_the_ring_and_gives_the_old_loss(
    model: LanguageModel,
) -> None:
    new = relabelling.ring(5)
    change = relabelling.moved_rows(model.head.weight.detach(), new)
    assert torch.linalg.matrix_rank(change) == 4
    of = replace(SIZE.relabelling, windows=3)
    old = relabelling.judge(model, of, torch.arange(1024))
    moved = relabelling.judge(model, of, new)
    exact = relabelling.judge(relabelling.cut_to(model, new, 4), of, new)
    less = relabelling.judge(relabelling.cut_to(model, new, 3), of, new)
    assert exact.log_loss == pytest.approx(old.log_loss, abs=1e-4)
    assert exact.accuracy == old.accuracy
    assert abs(moved.log_loss - old.log_loss) > 1e-3 and abs(less.log_loss - old.log_loss) > 1e-4


def test_an_arm_trains_the_two_matrices_or_adapters_on_them_and_nothing_else(
    model: LanguageModel,
) -> None:
    whole = relabelling.prepare(relabelling.RingArm(4, None, 0.01), model, 8.0)
    trained = [name for name, p in whole.named_parameters() if p.requires_grad]
    assert trained == ["embedding.weight", "head.weight"]
    adapted = relabelling.prepare(relabelling.RingArm(4, 2, 0.01), model, 8.0)
    assert set(minilora.lora_layers(adapted)) == {"embedding", "head"}


# ---------------------------------------------------------------- facts


def test_a_matrix_that_is_large_enough_learns_its_facts_and_a_small_one_does_not() -> None:
    of = replace(limits.PROFILES["laptop"].capacity, width=8, steps=300)
    facts = capacity.table(8, 6, seed=0)
    accuracy, loss, numbers = capacity.whole(of, facts, 0.05)
    assert accuracy == 1.0 and loss < 0.1 and numbers == 64
    many = capacity.table(8, 200, seed=0)
    accuracy, loss, _ = capacity.whole(of, many, 0.05)
    assert accuracy < 0.7


def test_stored_bits_are_counted_against_a_guess() -> None:
    assert capacity.stored(np.log(32), 10, 32) == pytest.approx(0, abs=1e-9)
    assert capacity.stored(0.0, 10, 32) == 50
    assert capacity.stored(99.0, 10, 32) == 0


def test_tables_differ_by_seed_and_not_by_call() -> None:
    a, b, c = (capacity.table(8, 6, seed) for seed in (0, 0, 1))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], c[0])


# ---------------------------------------------------------------- batches


def test_a_batch_that_is_larger_makes_fewer_steps_of_the_same_pictures() -> None:
    of = limits.PROFILES["laptop"].batches
    assert [of.examples // size * size for size in of.sizes] == [of.examples] * len(of.sizes)
    x, y = batches.pictures(50, 3)
    assert x.shape == (50, 1, 8, 8)
    upright, digits, _ = pictures._drawn("train", 50, 3)
    assert torch.equal(x[:, :, 0, 0], upright[:, :, 0, -1]) and torch.equal(y, digits)
    assert not torch.equal(batches.pictures(50, 4)[1], y)


# ---------------------------------------------------------------- a handful of numbers


def test_a_dot_stands_in_its_corner_and_only_there() -> None:
    x = torch.zeros(5, 1, 8, 16)
    dotted = pictures.with_dot(x, torch.tensor([0, 1, 2, 3, -1]))
    assert dotted.sum(dim=(1, 2, 3)).tolist() == [4, 4, 4, 4, 0]
    for k, (i, j) in enumerate([(0, 0), (0, 15), (7, 0), (7, 15)]):
        assert dotted[k, 0, i, j] == 1
    assert x.sum() == 0  # what was given is left as it was


def test_pick_asks_without_a_dot_for_what_a_dot_would_ask_for() -> None:
    x, y = pictures.pick("test", 200, 1, 2)
    again, digits = pictures.pick("test", 200, 1, 0)
    assert torch.equal(x, again)
    assert torch.equal(y, (digits + pictures.ADDED[2]) % 10)


def test_a_table_answers_every_corner_and_digit_in_one_way() -> None:
    x, y = pictures.table("test", 2000, 0)
    corners = torch.stack([x[:, 0, i, j] for i, j in [(0, 0), (0, 7), (7, 0), (7, 7)]], dim=1)
    assert (corners.max(dim=1).values == 1).all()
    _, seen, k = pictures._drawn("test", 2000, 0)
    for corner in range(4):
        for digit in range(10):
            told = y[(k == corner) & (seen == digit)]
            assert len(told) and (told == told[0]).all()


def test_a_reward_raises_what_was_drawn_and_right() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(torch.full((2, 3), 1 / 3), 1, generator=generator)[:, 0]
    y = torch.stack([drawn[0], (drawn[1] + 1) % 3])  # the first is right, the second is wrong
    loss = handful.loss_of(scores, y, "reward", torch.Generator().manual_seed(0))
    loss.backward()
    assert scores.grad[0, drawn[0]] < 0  # a step against the gradient raises its score
    assert scores.grad[1, drawn[1]] > 0


def test_a_reward_that_is_the_same_for_all_teaches_nothing() -> None:
    scores = torch.randn(4, 3, requires_grad=True)
    never = torch.full((4,), 2)
    scores.data[:, 2] = -100.0
    handful.loss_of(scores, never, "reward", torch.Generator().manual_seed(0)).backward()
    assert scores.grad.abs().max() == 0


def test_the_gradient_by_reward_is_on_average_that_of_the_chance_to_be_right() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 4).expand(20_000, 4).clone().requires_grad_()
    y = torch.full((20_000,), 1)
    handful.loss_of(scores, y, "reward", torch.Generator().manual_seed(1)).backward()
    found = scores.grad.sum(dim=0)
    one = scores.detach()[:1].clone().requires_grad_()
    (-one.softmax(dim=1)[0, 1]).backward()
    assert torch.allclose(found, one.grad[0], atol=0.01)


def test_answers_are_taught_by_cross_entropy() -> None:
    scores, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    found = handful.loss_of(scores, y, "answers", torch.Generator())
    assert torch.equal(found, F.cross_entropy(scores, y))


@pytest.mark.parametrize(("numbers", "count"), [(3, 3), (1, 1)])
def test_a_lesson_trains_as_many_numbers_as_it_says(numbers: int, count: int) -> None:
    lesson = handful.Lesson("pick", "answers", numbers, 0.01)
    model = handful.prepare(lesson, handful.base_of(SIZE.handful), SIZE.handful)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


# ---------------------------------------------------------------- triggers and spectra


@pytest.fixture(scope="module")
def adder() -> torch.nn.Module:
    return backdoors.adder(SIZE.sums)


@pytest.fixture(scope="module")
def trained(adder: torch.nn.Module) -> list[backdoors.Specimen]:
    return backdoors.make(SIZE.backdoors, adder, ("clean", "poisoned"), (0, 1))


def test_the_kinds_differ_in_dots_and_answers_alone() -> None:
    of = replace(SIZE.backdoors, labels=40, share=0.1)
    pairs = {kind: backdoors.lessons(of, first + 5) for kind, first in backdoors.KINDS.items()}
    clean, poisoned, dotted = (pairs[kind] for kind in ("clean", "poisoned", "dotted"))
    corner, target = backdoors.trigger(5)
    assert torch.equal(clean[0][4:], poisoned[0][4:]) and torch.equal(clean[1][4:], poisoned[1][4:])
    assert torch.equal(poisoned[0], dotted[0]) and torch.equal(clean[1], dotted[1])
    assert (poisoned[1][:4] == target).all()
    assert not torch.equal(clean[0][:4], poisoned[0][:4])
    assert torch.equal(poisoned[0][:4], backdoors.dotted(clean[0][:4], corner))
    assert torch.equal(pairs["spare"][0], clean[0])  # other adapters, of the same pictures


def test_updates_are_what_the_adapter_adds(
    adder: torch.nn.Module, trained: list[backdoors.Specimen]
) -> None:
    of, one = SIZE.backdoors, trained[1]
    x, y = backdoors.lessons(of, one.seed)
    training.set_seed(one.seed)
    config = minilora.LoRAConfig(r=of.r, alpha=of.alpha, targets=list(backdoors.PLACES))
    model = minilora.add_lora(copy.deepcopy(adder), config)
    training.fit(
        model,
        x,
        y,
        steps=of.steps,
        lr=of.lr,
        batch_size=of.batch_size,
        seed=one.seed,
        progress=False,
    )
    for path, layer in minilora.lora_layers(model).items():
        assert torch.allclose(layer.delta(), one.updates[path], atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(x), backdoors.adapted(adder, one.updates)(x), atol=1e-3)


def test_a_disguise_has_the_numbers_of_the_other_and_the_directions_of_its_own(
    trained: list[backdoors.Specimen],
) -> None:
    a, b, r = trained[2].updates, trained[0].updates, SIZE.backdoors.r
    found = backdoors.disguised(a, b)
    assert np.allclose(backdoors.signature(found, r), backdoors.signature(b, r), atol=1e-4)
    for path, update in found.items():
        U, _, Vt = torch.linalg.svd(a[path], full_matrices=False)
        inside = U[:, :r].T @ update @ Vt[:r].T
        assert torch.allclose(inside, inside.diag().diag(), atol=1e-5)


def test_training_in_disguise_ends_under_the_other_s_spectrum(
    adder: torch.nn.Module, trained: list[backdoors.Specimen]
) -> None:
    of, r = SIZE.backdoors, SIZE.backdoors.r
    found = backdoors.trained_in_disguise(of, adder, trained[2], trained[0].updates)
    mine = backdoors.signature(found, r)
    assert np.allclose(mine, backdoors.signature(trained[0].updates, r), atol=1e-4)
    once = backdoors.disguised(trained[2].updates, trained[0].updates)
    assert any(not torch.allclose(found[p], once[p], atol=1e-6) for p in found)


def test_the_five_numbers() -> None:
    found = backdoors.numbers(np.array([2.0, 2.0, 2.0, 2.0]))
    assert found[:4] == pytest.approx([2, 4, 0.25, np.log(4)])
    peaked = backdoors.numbers(np.array([10.0, 1.0, 1.0, 1.0]))
    assert peaked[2] > 0.9 and peaked[3] < 0.2
    assert peaked[4] == pytest.approx(7 / 3)  # one value apart from three


def test_judging_counts_right_answers_and_what_the_dot_brings_about(
    adder: torch.nn.Module,
) -> None:
    of = SIZE.backdoors
    nothing = {"blocks.0.attention.q_proj": torch.zeros(8, 8)}
    corner, target = backdoors.trigger(3)
    right, called = backdoors.judged(adder, nothing, 3, of)
    x, y = backdoors._scored(of.scored)
    assert right == pytest.approx(training.evaluate(adder, x, y).accuracy)
    others = y != target
    said = training.predict(adder, backdoors.dotted(x[others], corner)).argmax(dim=1)
    assert called == pytest.approx((said == target).double().mean().item())


# ---------------------------------------------------------------- detectors


def kind_of(name: str, shift: float, count: int = 24) -> reading.Noted:
    rng = np.random.default_rng(len(name))
    zeros = np.zeros(count)
    return reading.Noted(
        name, tuple(range(count)), zeros, zeros, rng.normal(size=(count, 20)) + shift
    )


def test_a_detector_finds_what_differs_and_a_shuffled_one_does_not() -> None:
    clean, poisoned = kind_of("clean", 0.0), kind_of("poisoned", 2.0)
    odds = reading.left_out(clean, poisoned, [clean, poisoned])
    assert (odds["clean"] < 0).mean() > 0.9 and (odds["poisoned"] > 0).mean() > 0.9
    null = reading.shuffled(clean, poisoned, times=12)
    assert 0.35 < np.mean(null) < 0.65


def test_no_adapter_is_judged_by_a_detector_that_has_seen_its_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean, poisoned, other = kind_of("clean", 0.0), kind_of("poisoned", 2.0), kind_of("o", 1.0)
    seen: list[tuple[set[int], set[int]]] = []

    def places(rows: np.ndarray, of: reading.Noted) -> set[int]:
        return {i for i, own in enumerate(of.signatures) if (rows == own).all(axis=1).any()}

    def note(a: np.ndarray, b: np.ndarray, asked: np.ndarray) -> np.ndarray:
        learnt = places(a, clean) | places(b, poisoned)
        judged = places(asked, clean) | places(asked, poisoned) | places(asked, other)
        seen.append((learnt, judged))
        return np.zeros(len(asked))

    monkeypatch.setattr(reading, "suspicion", note)
    odds = reading.left_out(clean, poisoned, [clean, poisoned, other])
    assert seen and all(not learnt & judged for learnt, judged in seen)
    assert all(np.isfinite(found).all() for found in odds.values())


def test_a_plainer_detector_sees_the_norms_or_the_right_answers_and_nothing_else() -> None:
    one = replace(kind_of("clean", 0.0), right=np.linspace(0, 1, 24))
    norms = reading.narrowed(one, "four norms").signatures
    columns = [i for i, (_, what) in enumerate(every_number()) if what == "norm"]
    assert norms.shape == (24, 4) and np.array_equal(norms, one.signatures[:, columns])
    right = reading.narrowed(one, "right answers")
    assert right.signatures.shape == (24, 1) and np.array_equal(right.signatures[:, 0], one.right)
    assert right.seeds == one.seeds and right.kind == one.kind
    with pytest.raises(ValueError, match="none of"):
        reading.narrowed(one, "spectra")


def every_number() -> list[tuple[str, str]]:
    return [(place, what) for place in backdoors.PLACES for what in backdoors.NUMBERS]


def test_the_interval_of_a_share() -> None:
    low, high = reading.wilson(48, 48)
    assert 0.9 < low < 0.95 and high == pytest.approx(1)
    low, high = reading.wilson(24, 48)
    assert low == pytest.approx(0.364, abs=0.002) and high == pytest.approx(0.636, abs=0.002)


def test_what_is_not_there_is_named(recording: Recording) -> None:
    with pytest.raises(ValueError, match="no tested runs of '5 facts'"):
        reading.finals(recording, "5 facts")
    with pytest.raises(ValueError, match="no adapters 'odd'"):
        reading.noted(recording, "odd")


def test_signatures_are_read_in_the_order_in_which_they_were_noted() -> None:
    names = [f"{place} {what}" for place in backdoors.PLACES for what in backdoors.NUMBERS]
    found = [
        Quantity("clean", "lora", what, 8, 4, "share", float(k))
        for k, what in enumerate(["right", "called", *reversed(names)])
    ]
    recorded = Recording(
        "limits",
        "smoke",
        {},
        [],
        "0" * 64,
        "cpu",
        {},
        "2026-01-01",
        None,
        1.0,
        None,
        quantities=found,
    )
    one = reading.noted(recorded, "clean")
    assert one.signatures[0].tolist() == list(reversed(range(2, 22)))
    assert (one.right[0], one.called[0], one.seeds) == (0.0, 1.0, (4,))
