"""The language experiment: its arms, what is measured of forgetting, facts, intruders."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import minilora
from minilora.experiments import language
from minilora.experiments.language import (
    BASE,
    MATRICES,
    PROFILES,
    LastMatrix,
    adapter,
    arms,
    base_of,
    divergence,
    experiment,
    log_probabilities,
    moved,
    prepare,
    size,
    strength_of,
    turned,
    updates,
)
from minilora.experiments.language.intruders import (
    cosines,
    count_intruders,
    gaussian,
    without_intruders,
)
from minilora.experiments.language.results import (
    RunResult,
    by_topic,
    correlation,
    measured,
    paths_by_rate,
    paths_by_strength,
    price,
    share_of_loss,
    spearman,
    turned_down,
    untouched,
    watched,
)
from minilora.experiments.recording import Quantity, Recording, Row
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import LanguageModel, Text, text

SIZE = PROFILES["smoke"]
ALL = [*(f"LoRA r={r}" for r in SIZE.ranks), MATRICES, "the head", "everything"]
MODEL = DecoderConfig(width=16, layers=2, heads=2, vocab=1024, context=16)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return language.run("smoke", device="cpu", jobs=1)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(MODEL).eval()


@pytest.fixture
def x() -> Tensor:
    return text("prose", "validation").windows(MODEL.context)[0][:6]


def nudges(model: LanguageModel, scale: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        path: scale * torch.randn(p.shape, generator=generator)
        for path, p in model.named_parameters()
        if path.endswith("_proj.weight")
    }


# ---------------------------------------------------------------- the arms


def test_each_arm_trains_what_it_says_and_an_adapter_s_ceiling_has_the_same_matrices() -> None:
    base = base_of(SIZE)
    trained = {
        arm.name: {n for n, p in prepare(arm, base).named_parameters() if p.requires_grad}
        for arm in arms(SIZE)
    }
    assert list(trained) == ALL
    assert trained["the head"] == {"head.weight"}
    assert trained["everything"] == {name for name, _ in base.named_parameters()}
    places = {name.removesuffix(".A").removesuffix(".B") for name in trained["LoRA r=1"]}
    assert {f"{place}.weight" for place in places} == trained[MATRICES]
    assert not any(
        p.requires_grad
        for p in minilora.add_lora(base_copy(base), config()).blocks[0].norm1.parameters()
    )


def base_copy(base: LanguageModel) -> LanguageModel:
    return moved(base, {})


def config() -> minilora.LoRAConfig:
    return minilora.LoRAConfig(r=2, targets="all-linear")


def test_updates_are_what_training_has_added(model: LanguageModel) -> None:
    tuned = prepare(adapter(2, 1e-2), model)
    with torch.no_grad():
        for layer in minilora.lora_layers(tuned).values():
            layer.B.normal_()
    change = updates(tuned, model)
    ids = torch.arange(16)[None]
    assert torch.allclose(moved(model, change)(ids), tuned(ids), atol=1e-4)
    minilora.set_strength(tuned, 0.3)
    assert torch.allclose(moved(model, change, 0.3)(ids), tuned(ids), atol=1e-4)
    whole = moved(model, nudges(model))
    assert updates(whole, model).keys() == nudges(model).keys()
    assert torch.equal(moved(model, nudges(model), 0.0)(ids), model(ids))


# ---------------------------------------------------------------- rows and quantities


def test_every_arm_is_tuned_inside_and_tested_with_other_draws(recording: Recording) -> None:
    tuned = Counter(row.arm for row in recording.rows if row.stage == "tune")
    assert {arm for arm in tuned if "facts" not in arm} == set(ALL)
    for arm in ALL:
        rows = [row for row in recording.rows if row.arm == arm]
        draws = {stage: {r.seed for r in rows if r.stage == stage} for stage in ("tune", "final")}
        assert draws == {"tune": {100}, "final": {0, 1}}
        assert len({row.lr for row in rows if row.stage == "final"}) == 1
        topics = [r for r in recording.rows if r.arm.startswith(f"{arm}, topic ") and r.seed == 0]
        assert len(topics) > 5 and all(row.kind == "aside" for row in topics)
    assert untouched(recording, "prose") > 0
    (row,) = [one for one in recording.rows if one.arm == BASE]
    assert row.stage == "final" and row.parameters is None


def test_the_topics_are_the_test_text_cut_up(recording: Recording) -> None:
    homes = Counter(text("prose", "test").homes(SIZE.model.context))
    rows = {row.arm: row for row in recording.rows if row.seed == 0 and row.stage == "final"}
    mean = sum(rows[f"{BASE}, topic {name}"].log_loss * n for name, n in homes.items())
    assert mean / homes.total() == pytest.approx(rows[BASE].log_loss, rel=1e-5)


def test_every_run_is_measured_and_the_nulls_are_what_they_say(recording: Recording) -> None:
    runs = measured(recording)
    assert {one.arm for one in runs} == set(ALL)
    for one in runs:
        assert {"prose", "code", "KL", "size"} <= one.values.keys()
        assert ("code, random of equal KL" in one.values) == (one.arm in SIZE.nulls)
    for arm in SIZE.nulls:
        lr = next(r.lr for r in recording.rows if (r.arm, r.stage) == (arm, "final"))
        down = turned_down(recording, arm, lr)
        assert down.keys() == {50} and down[50].keys() == {0, 1}  # the draws that are tested
    # A model as small as this one cannot be brought to every KL by a random change.
    off = {
        null: [
            abs(math.log(one.values[f"KL, random of equal {null}"] / one.values["KL"]))
            for one in runs
            if one.arm in SIZE.nulls and one.values["KL"] > 1e-3
        ]
        for null in ("KL", "size")
    }
    assert off["KL"] and sum(off["KL"]) < 0.5 * sum(off["size"])


def test_watched_arms_are_looked_at_on_the_way(recording: Recording) -> None:
    ((arm, rates),) = SIZE.watched.items()
    assert {k: len(v) for k, v in watched(recording, arm, rates[0]).items()} == {2: 2, 4: 2}


def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = experiment._watched

    def noted(arm, **more):  # type: ignore[no-untyped-def]
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(arm.name)
        return real(arm, **more)

    monkeypatch.setattr(experiment, "_watched", noted)
    with pytest.raises(KeyboardInterrupt):
        language.run("smoke", parts=["steps"], device="cpu", jobs=1, out=tmp_path)
    monkeypatch.setattr(experiment, "_watched", real)
    monkeypatch.setattr(experiment, "fit", counted := Counting(experiment.fit))
    language.run("smoke", parts=["steps"], device="cpu", jobs=1, out=tmp_path)
    assert counted.calls == len(SIZE.tuning.tested) - 1


class Counting:
    def __init__(self, real) -> None:  # type: ignore[no-untyped-def]
        self.real, self.calls = real, 0

    def __call__(self, *given, **more):  # type: ignore[no-untyped-def]
        self.calls += 1
        return self.real(*given, **more)


# ---------------------------------------------------------------- what a recording says

#: In such a text a nat a token is a bit a byte.
PLAIN = Text(("a",), (torch.arange(100),), round(100 / math.log(2)))


def by_hand(recording: Recording) -> Recording:
    """Two tuning runs, one tested one, its update halved, and a null; the base at 4 and 3 nats."""
    rows = [
        Row("tune", "LoRA r=1", "lora", 4, 100, 1, lr, None, 9, 0.1, loss, 1.0)
        for lr, loss in ((0.01, 3.8), (0.02, 3.5), (0.04, 3.6))
    ]
    rows.append(replace(rows[1], stage="final", seed=0))
    for a, topic, loss in (("LoRA r=1", "t", 2.0), (MATRICES, "t", 1.5), ("LoRA r=1", "u", 7.0)):
        rows.append(replace(rows[3], arm=f"{a}, topic {topic}", kind="aside", log_loss=loss))
    table = [
        (BASE, 0, {"prose": 4.0, "code": 3.0}),
        ("LoRA r=1 at 0.02", 100, {"prose": 3.5, "code": 3.9}),
        ("LoRA r=1 at 0.01", 100, {"prose": 3.8, "code": 3.2}),
        ("LoRA r=1 at 0.04", 100, {"prose": 3.6, "code": 5.0}),
        ("LoRA r=1 at 0.02", 0, {"prose": 3.4, "code": 3.8, "code, random of equal KL": 3.2}),
    ]
    quantities = [
        Quantity(arm, "lora", what, 3, draw, "nats", value)
        for arm, draw, values in table
        for what, value in values.items()
    ]
    for what, value in (("prose, turned", 3.5), ("code, turned", 3.1)):
        quantities.append(Quantity("LoRA r=1 at 0.02", "lora", what, 50, 0, "nats", value))
    return replace(recording, rows=rows, quantities=quantities)


def test_the_paths_of_an_arm_are_its_gains_and_losses_from_the_smallest_on(
    recording: Recording,
) -> None:
    made, r = by_hand(recording), "LoRA r=1"
    (path,) = paths_by_rate(made, r, PLAIN, PLAIN).values()
    assert [x for point in path for x in point] == pytest.approx(
        [0.2, 0.2, 0.5, 0.9, 0.4, 2.0], rel=0.01
    )
    (path,) = paths_by_strength(made, r, PLAIN, PLAIN).values()
    assert [x for point in path for x in point] == pytest.approx(
        [0, 0, 0.5, 0.1, 0.6, 0.8], rel=0.01
    )


def test_a_price_is_read_on_the_line_and_nowhere_beside_it() -> None:
    path = [(0.2, 0.2), (0.5, 0.9), (0.4, 2.0)]
    assert price(path, 0.35) == pytest.approx(0.55)
    assert price(path, 0.2) == 0.2 and price(path, 0.5) == 0.9
    assert math.isnan(price(path, 0.1)) and math.isnan(price(path, 0.51))


def test_shares_topics_and_rank_correlations_by_hand(recording: Recording) -> None:
    made = by_hand(recording)
    tested = replace(made, quantities=[q for q in made.quantities if q.repeat == 0])
    assert share_of_loss(tested, "LoRA r=1", 0.02, "KL") == pytest.approx(0.2 / 0.8)
    of = Text(("t", "u"), PLAIN.documents, PLAIN.bytes)
    assert by_topic(made, of, "LoRA r=1", MATRICES) == [0.5]  # "u" has one of the two only
    assert spearman([1, 2, 3, 4], [10, 30, 20, 99]) == pytest.approx(0.8)
    runs = [
        RunResult("a", "lora", lr, 0, {"code": code, "prose": prose, "KL": kl})
        for lr, code, prose, kl in ((1, 1, 9, 3), (2, 2, 8, 1), (3, 4, 7, 4), (4, 3, 6, 2))
    ]
    found = [correlation(runs, what) for what in ("rate", "gain", "KL")]
    assert found == pytest.approx([0.8, 0.8, 0.4])


# ---------------------------------------------------------------- forgetting


def test_a_random_rival_has_the_spectrum_and_not_the_directions(model: LanguageModel) -> None:
    change = {path: one @ one.T @ one for path, one in nudges(model).items()}
    rival = turned(change, 0)
    for path, one in change.items():
        wanted, found = torch.linalg.svdvals(one), torch.linalg.svdvals(rival[path])
        assert torch.allclose(wanted, found, rtol=1e-3, atol=1e-6)
        assert (one * rival[path]).sum().abs() < 0.5 * one.square().sum()
    assert size(rival) == pytest.approx(size(change), rel=1e-4)
    assert not torch.equal(turned(change, 1)[path], rival[path])


def test_divergence_is_kl_and_zero_for_the_base(model: LanguageModel, x: Tensor) -> None:
    expected = log_probabilities(model, x)
    assert divergence(expected, model, x) == (pytest.approx(0, abs=1e-6), 1.0)
    other = moved(model, nudges(model))
    q = other(x).log_softmax(1)
    by_hand = (expected.exp() * (expected - q)).sum(1).mean()
    kl, same = divergence(expected, other, x)
    assert kl == pytest.approx(by_hand.item(), rel=1e-3) and 0 <= same < 1


@pytest.mark.parametrize("share", [0.1, 1.0, 4.0])
def test_a_strength_is_found_for_a_kl(model: LanguageModel, x: Tensor, share: float) -> None:
    expected, change = log_probabilities(model, x), nudges(model)
    kl = share * divergence(expected, moved(model, change), x)[0]
    strength = strength_of(kl, model, change, expected, x)
    found, _ = divergence(expected, moved(model, change, strength), x)
    assert found == pytest.approx(kl, rel=0.05)


# ---------------------------------------------------------------- facts


def test_the_last_matrix_by_itself_says_what_the_model_says(model: LanguageModel) -> None:
    """Rows that were computed once, and the whole model with the three tokens: the same scores."""
    rows, answers = language.facts(model, 9, seed=3)
    generator = torch.Generator().manual_seed(3)
    asked = torch.randint(256, 1024, (18, 3), generator=generator).unique(dim=0)
    asked = asked[torch.randperm(len(asked), generator=generator)[:9]]
    assert torch.allclose(LastMatrix(model)(rows), model(asked)[:, :, -1], atol=1e-4)
    assert rows.shape == (9, 5 * MODEL.width) and answers.shape == (9,)
    assert len(asked.unique(dim=0)) == 9


def test_an_adapter_on_the_last_matrix_can_learn_a_few_facts(model: LanguageModel) -> None:
    rows, answers = language.facts(model, 4, seed=0)
    last = LastMatrix(moved(model, {}))
    minilora.add_lora(last, minilora.LoRAConfig(r=4, alpha=8, targets=["down_proj"]))
    optimizer = torch.optim.Adam(minilora.lora_parameters(last), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(last(rows), answers).backward()
        optimizer.step()
    assert (last(rows).argmax(1) == answers).all()


def test_bits_are_what_is_saved_against_guessing() -> None:
    row = Row("final", "a", "lora", labels=10, seed=0, accuracy=1.0, log_loss=0.0)
    assert language.bits(row, 1024) == 100
    guessing = Row("final", "a", "lora", 10, 0, accuracy=0.0, log_loss=math.log(1024))
    worse = Row("final", "a", "lora", 10, 0, accuracy=0.0, log_loss=9.0)
    assert language.bits(guessing, 1024) == pytest.approx(0) == language.bits(worse, 1024)


# ---------------------------------------------------------------- intruders


def planted(model: LanguageModel, strength: float) -> dict[str, Tensor]:
    """One strong piece in a matrix (64, 16), whose left direction no piece of the base has."""
    path = "blocks.1.up_proj.weight"
    before = model.get_parameter(path).detach()
    U, _, Vh = torch.linalg.svd(before, full_matrices=True)
    return {path: strength * torch.outer(U[:, -1], Vh[-1])}


def test_a_planted_direction_is_found_and_nothing_else(model: LanguageModel) -> None:
    assert count_intruders(model, planted(model, 50.0)) == 1
    assert count_intruders(model, planted(model, 0.0)) == 0
    path = "blocks.1.up_proj.weight"
    before = model.get_parameter(path).detach()
    assert torch.allclose(cosines(before, before), torch.ones(10).double())


def test_intruders_are_taken_away_and_the_rest_is_left(model: LanguageModel) -> None:
    change = planted(model, 50.0)
    (path,) = change
    assert torch.allclose(without_intruders(model, change, keep=1.0)[path], change[path], atol=1e-4)
    gone = without_intruders(model, change)[path]
    # What is left is the base but for its last piece, which the planted one had taken up.
    last = torch.linalg.svdvals(model.get_parameter(path).detach())[-1]
    assert gone.norm() == pytest.approx(last.item(), rel=0.02)
    noise = gaussian(change, 0)[path]
    assert noise.norm() == pytest.approx(change[path].norm().item(), rel=1e-4)
    assert torch.linalg.matrix_rank(noise) == 16
