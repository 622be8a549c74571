"""The placement experiment: what is put where, what is tuned, and what the shifts do."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from experiment_help import noted, plain

import minilora
from minilora.experiments import placement, recording
from minilora.experiments.placement import experiment, figures
from minilora.experiments.placement.shifts import task as shifted_task
from minilora.experiments.recording import Recording
from minilora.experiments.summaries import paired
from minilora.experiments.tuning import RATES, best_rate
from minilora.lab import data
from minilora.lab.training import evaluate
from minilora.lab.transformer import TransformerClassifier

SIZE = placement.PROFILES["smoke"]
#: How many numbers each part of the model itself has: 8 wide, one block, 8 patches of 16 dots.
OWN = {
    "the embeddings": 16 * 8 + 8 + 8 + 9 * 8,
    "the norms": 3 * 2 * 8,
    "the biases": 8 + 3 * 8 + 5 * 8 + 32 + 19,
    "the head": 8 * 19 + 19,
}


pytestmark = pytest.mark.usefixtures("cache")


def run(**given: Any) -> Recording:
    return placement.run(SIZE, **{"device": "cpu", "jobs": 1, **given})


@pytest.fixture(scope="module")
def everything(cache: None) -> tuple[Recording, list[str]]:
    return noted(run)


SHIFTS = ("turned 90°", "exchanged 50%")


# ---------------------------------------------------------------- which adapters


@pytest.mark.parametrize("name", placement.PROFILES)
def test_each_place_spends_the_budget_and_no_more(name: str) -> None:
    size = placement.PROFILES[name]
    model = TransformerClassifier(size.sums.model)
    limit = size.budget * size.sums.model.layers
    configs = placement.placements(size, "places")
    assert len(configs) == len(placement.PLACES) == 11
    for arm, config in configs.items():
        spent = minilora.predict_trainable(model, config)
        one_more = minilora.predict_trainable(model, replace(config, r=config.r + 1))
        assert spent <= limit < one_more, arm
        assert arm.endswith(f", r={config.r}")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_one_block_trains_what_all_six_do_in_all(name: str) -> None:
    size = placement.PROFILES[name]
    model = TransformerClassifier(size.sums.model)
    (every,) = [c for a, c in placement.placements(size, "places").items() if "all six" in a]
    blocks = placement.placements(size, "blocks")
    assert len(blocks) == size.sums.model.layers
    for number, config in enumerate(blocks.values()):
        assert minilora.predict_trainable(model, config) == minilora.predict_trainable(model, every)
        taken = [p for p, _ in model.named_modules() if re.fullmatch(str(config.targets), p)]
        assert len(taken) == 6 and all(path.startswith(f"blocks.{number}.") for path in taken)
    # "answers" asks about the same, and about all of them.
    again = placement.placements(size, "answers")
    assert list(again.values()) == [every, *blocks.values()]


def test_equal_rank_adds_only_what_the_budget_has_not() -> None:
    for name, places in (("cpu", {"V", "O"}), ("smoke", {"V", "O", "up", "down"})):
        size = placement.PROFILES[name]
        configs = placement.placements(size, "rank")
        assert {arm.split(",")[0] for arm in configs} == places
        assert {config.r for config in configs.values()} == {size.r}
        assert not configs.keys() & placement.placements(size, "places").keys()


# ---------------------------------------------------------------- the shifts


def test_a_turn_goes_to_the_left() -> None:
    dot = torch.zeros(1, 1, 8, 8)
    dot[0, 0, 3, 7] = 1  # at the right edge, above the middle
    quarter, half = placement.turn(90, dot), placement.turn(180, dot)
    assert quarter[0, 0, 0, 3].item() == pytest.approx(1, abs=1e-4)
    assert half[0, 0, 4, 0].item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(placement.turn(360, dot), dot, atol=1e-4, rtol=0)


def test_a_turn_keeps_the_middle_and_most_of_the_ink() -> None:
    x = data.printed_digits(20, seed=3).x
    turned = placement.turn(30, x)
    assert turned.shape == x.shape
    assert 0.8 < (turned.sum() / x.sum()).item() < 1.1
    assert not torch.allclose(turned, x, atol=0.1)


@pytest.mark.parametrize(("share", "moved"), [(0.125, 8), (0.5, 32), (1.0, 64)])
def test_an_exchange_moves_its_share_along_one_cycle(share: float, moved: int) -> None:
    units = torch.eye(64).reshape(64, 1, 8, 8)
    matrix = placement.exchange(share, units).flatten(1).T
    assert (matrix.sum(0) == 1).all() and (matrix.sum(1) == 1).all()
    assert int((matrix.diag() == 0).sum()) == moved
    assert torch.linalg.matrix_rank(matrix - torch.eye(64)) == moved - 1


def test_an_exchange_is_one_rule_for_all_pictures() -> None:
    x = torch.rand(3, 1, 8, 8)
    one_by_one = torch.cat([placement.exchange(0.5, part) for part in x.split(1)])
    assert torch.equal(placement.exchange(0.5, x), one_by_one)


@pytest.mark.parametrize(("degrees", "cycles"), [(90, 16), (180, 32)])
def test_the_rank_of_a_turn_by_right_angles(degrees: int, cycles: int) -> None:
    units = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    change = placement.turn(degrees, units).flatten(1).T - torch.eye(64)
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 64 - cycles


def test_new_answers_are_what_is_missing_to_18() -> None:
    x, y = experiment.renamed(30, seed=4)
    pairs = data.pairs(data.printed_digits(60, 4), 30, 4)
    assert torch.equal(x, pairs.x)
    assert torch.equal(y + pairs.y, torch.full_like(y, 18))


def test_labelled_pictures_validation_and_test_are_changed_and_differ() -> None:
    task = shifted_task(SIZE.shift, partial(placement.turn, 90))
    plain = placement.task(SIZE, "turned")
    assert torch.equal(task.labelled(0)[0], placement.turn(90, plain.labelled(0)[0]))
    seen = [task.labelled(0), task.labelled(1), *task.scored.values()]
    firsts = {float(x[:20].sum()) for x, _ in seen}
    assert len(firsts) == 4
    assert len(task.labelled(0)[1]) == SIZE.shift.labels


# ---------------------------------------------------------------- the run


def test_every_arm_of_every_part_is_there(everything: tuple[Recording, list[str]]) -> None:
    found, _ = everything
    wanted = {"base, turned 90°", "base, exchanged 50%", "the head, new answers", *OWN}
    for part in ("places", "rank", "blocks", "answers", "own"):
        wanted |= placement.placements(SIZE, part).keys()
    wanted |= {f"r={r}, {name}" for r in SIZE.shift.ranks for name in SHIFTS}
    assert {row.arm for row in found.rows} == wanted


def test_rates_are_tuned_on_some_draws_and_tested_on_others(
    everything: tuple[Recording, list[str]],
) -> None:
    found, _ = everything
    arms = {row.arm for row in found.rows if row.lr is not None}
    for arm in arms:
        tuned = [row for row in found.rows if (row.stage, row.arm) == ("tune", arm)]
        tested = [row for row in found.rows if (row.stage, row.arm) == ("final", arm)]
        tried = sorted({row.lr for row in tuned if row.lr is not None})
        best = best_rate(found.rows, arm)
        of_shifts = arm.endswith(SHIFTS)
        assert {row.seed for row in tuned} == ({100} if of_shifts else {100, 101})
        assert sorted(row.seed for row in tested) == [0, 1, 2]
        assert {row.lr for row in tested} == {best}
        assert len(tried) >= 3 or best in (RATES[0], RATES[-1])
        if best not in (RATES[0], RATES[-1]):
            assert tried[0] < best < tried[-1]


def test_parameters_are_those_that_train(everything: tuple[Recording, list[str]]) -> None:
    found, _ = everything
    counts = {row.arm: row.parameters for row in found.rows}
    assert {arm: counts[arm] for arm in OWN} == OWN
    model = TransformerClassifier(SIZE.sums.model)
    for part in ("places", "rank", "blocks", "answers", "own"):
        for arm, config in placement.placements(SIZE, part).items():
            assert counts[arm] == minilora.predict_trainable(model, config)


def test_the_base_is_judged_on_the_shifted_test_pictures(
    everything: tuple[Recording, list[str]],
) -> None:
    found, _ = everything
    (row,) = [row for row in found.rows if row.arm == "base, turned 90°"]
    x, y = placement.task(SIZE, "turned").test
    seen = evaluate(
        placement.reader(SIZE.shift.reader, torch.device("cpu")), placement.turn(90, x), y
    )
    assert row.log_loss == pytest.approx(seen.log_loss, rel=1e-6)
    assert row.stage == "final" and row.labels == SIZE.shift.labels


def test_parts_by_themselves_give_the_same_rows(everything: tuple[Recording, list[str]]) -> None:
    found, _ = everything
    alone = run(parts=["blocks"])
    same = [row for row in found.rows if row.setting == "blocks"]
    assert plain(alone.rows) == plain(same)


def test_no_run_is_made_twice_or_for_nothing(everything: tuple[Recording, list[str]]) -> None:
    found, done = everything
    assert len(set(done)) == len(done)
    # A further seed is trained once for each arm, at its best rate, and not while that is sought.
    arms = {row.arm for row in found.rows if row.lr is not None}
    assert sum("seed=2" in work for work in done) == len(arms)


def test_a_stopped_run_goes_on(tmp_path: Any, everything: tuple[Recording, list[str]]) -> None:
    found, all_work = everything
    _, first = noted(partial(run, out=tmp_path), stop=60)
    assert 0 < len(first) < len(all_work)
    assert not (tmp_path / "placement.smoke.json").exists()
    _, second = noted(partial(run, out=tmp_path))
    assert first + second == all_work
    assert [path.name for path in tmp_path.iterdir()] == ["placement.smoke.json"]
    kept = recording.read_recording(tmp_path / "placement.smoke.json")
    recording.write_recording(found, tmp_path / "whole")  # numbers are rounded for a file
    whole = recording.read_recording(tmp_path / "whole" / "placement.smoke.json")
    assert plain(kept.rows) == plain(whole.rows)


def test_a_part_without_placements_is_refused() -> None:
    with pytest.raises(ValueError, match="no placements in part 'turned'"):
        placement.placements(SIZE, "turned")


# ---------------------------------------------------------------- the figures


def test_figures_draw_what_the_rows_say(everything: tuple[Recording, list[str]]) -> None:
    found, _ = everything
    arms = list(placement.placements(SIZE, "places"))
    reference = arms[-1]
    figure, axes = plt.subplots(1, 2)
    figures.draw_comparison(axes, found, arms, reference)
    means = [line.get_xdata()[0] for line in axes[1].lines if len(line.get_xdata()) == 1]
    wanted = [paired(found, arm, reference, "log_loss", 40).mean for arm in arms[:-1]]
    assert means == pytest.approx(wanted)
    hollow = [line.get_markerfacecolor() == "white" for line in axes[1].lines[1::2]][: len(wanted)]
    assert hollow == [
        not paired(found, arm, reference, "log_loss", 40).detectable for arm in arms[:-1]
    ]
    plt.close(figure)
    figure, axes = plt.subplots(1, 2)
    figures.draw_comparison(axes, found, arms, reference, limit=0)
    words = [text.get_text() for text in axes[1].texts]
    assert sum("→" in text for text in words) == len(arms) - 1
    plt.close(figure)


def test_the_shift_figure_compares_with_the_largest_rank(
    everything: tuple[Recording, list[str]],
) -> None:
    found, _ = everything
    figure, axes = plt.subplots(2, 1)
    figures.draw_shift(axes, found, {"turned 90°": "90°"}, SIZE.shift.ranks, names=True)
    (line,) = [line for line in axes[1].lines if line.get_marker() == "o"]
    p = paired(found, "r=1, turned 90°", "r=2, turned 90°", "log_loss", SIZE.shift.labels)
    assert line.get_ydata()[0] == pytest.approx(p.mean)
    assert [text.get_text() for text in axes[0].texts] == ["untrained", "r = 1", "r = 2"]
    plt.close(figure)
