"""The mixing experiment: the second text, what each rule makes of two adapters, and the toys."""

from __future__ import annotations

import copy
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import minilora
from minilora.experiments import mixing
from minilora.experiments.mixing import collusion, figures, latency, rounding
from minilora.experiments.mixing.experiment import BOTH, MixingProfile, chosen, training_data
from minilora.experiments.mixing.rules import described
from minilora.experiments.recording import Recording
from minilora.lab import corpus
from minilora.lab.language import pretrained_gpt, tokenizer
from minilora.surgery import add

SMOKE = mixing.PROFILES["smoke"]


@pytest.fixture(scope="module")
def found() -> Recording:
    return mixing.run("smoke", jobs=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of two adapters whose updates are large enough to see."""
    folders = []
    for seed, task in enumerate(mixing.TASKS):
        model = latency.with_adapter(pretrained_gpt(), r=2)
        torch.manual_seed(seed)
        for layer in minilora.lora_layers(model).values():
            nn.init.normal_(layer.B, std=0.05)
        folders.append(tmp_path_factory.mktemp(task))
        minilora.save(model, folders[-1])
    return folders


def deltas(model) -> dict[str, torch.Tensor]:
    return {path: layer.delta().detach() for path, layer in minilora.lora_layers(model).items()}


def loaded(folder):
    return minilora.load(pretrained_gpt(), folder)


# ------------------------------------------------------------------- the second text


def test_the_names_are_those_of_unicode_3_2() -> None:
    documents = mixing.character_names()
    first = documents["U+0000"].splitlines()
    assert first[0] == "SPACE" and "LATIN SMALL LETTER N WITH TILDE" in first
    assert len(first) == 95 + 96  # ASCII and Latin-1, without the control characters
    assert not any(
        "CJK UNIFIED" in text or "HANGUL SYLLABLE" in text for text in documents.values()
    )
    assert 9_000 < sum(len(text.splitlines()) for text in documents.values()) < 16_000


def test_no_name_is_both_learnt_and_asked() -> None:
    parts = {which: mixing.names_text(which) for which in corpus.SPLITS}
    names = Counter(name for part in parts.values() for name in part.names)
    assert set(names.values()) == {1} and set(names) == set(mixing.character_names())
    for part in parts.values():
        text = "".join(tokenizer().decode(ids.tolist()) for ids in part.documents)
        assert len(text.encode()) == part.bytes
    with pytest.raises(ValueError, match="there are"):
        mixing.names_text("all")


def test_both_texts_are_equally_much_of_the_joint_training() -> None:
    (x, y), halves = training_data(BOTH), [training_data(task) for task in mixing.TASKS]
    least = min(len(part[1]) for part in halves)
    assert len(x) == len(y) == 2 * least
    assert all((x == part[0][0]).all(1).any() for part in halves)


# ------------------------------------------------------------------------- the rules


def test_the_sum_adds_the_updates(pair, tmp_path) -> None:
    rule = mixing.RULES[0]
    model = mixing.mixed(pretrained_gpt(), pair, tmp_path, rule, (0.5, 1.0))
    one, two = (deltas(loaded(folder)) for folder in pair)
    for path, delta in deltas(model).items():
        torch.testing.assert_close(delta, 0.5 * (one[path] + two[path]), rtol=1e-4, atol=1e-6)


def test_the_mean_of_the_factors_has_two_products_that_nothing_trained(pair, tmp_path) -> None:
    rule = mixing.RULES[3]
    assert rule.method == "factors"
    model = mixing.mixed(pretrained_gpt(), pair, tmp_path, rule, (2.0, 1.0))
    one, two = (minilora.lora_layers(loaded(folder)) for folder in pair)
    for path, layer in minilora.lora_layers(model).items():
        A, B = one[path].A + two[path].A, one[path].B + two[path].B
        torch.testing.assert_close(layer.delta(), 2.0 * one[path].scale * (B / 2) @ (A / 2))


@pytest.mark.parametrize("number", [1, 2])
def test_what_drops_entries_is_as_large_a_file_as_the_sum(pair, tmp_path, number) -> None:
    rule = mixing.RULES[number]
    model = mixing.mixed(pretrained_gpt(), pair, tmp_path, rule, rule.settings[0])
    assert {layer.r for layer in minilora.lora_layers(model).values()} == {4}
    plain = mixing.mixed(pretrained_gpt(), pair, tmp_path, mixing.RULES[0], (0.2, 1.0))
    one, other = deltas(model), deltas(plain)
    assert any((one[path] - other[path]).norm() > 0.1 * other[path].norm() for path in one)


# -------------------------------------------------------------------------- the run


def test_every_setting_is_tried_and_the_best_is_tested(found) -> None:
    for rule in SMOKE.rules:
        tuned = [row for row in found.rows if (row.stage, row.arm) == ("tune", rule.name)]
        words = [described(*setting) for setting in rule.settings]
        assert sorted(row.setting for row in tuned) == sorted(words)
        best = min(tuned, key=lambda row: row.log_loss)
        assert described(*chosen(found.rows, rule)) == best.setting
        final = [row for row in found.rows if (row.stage, row.arm) == ("final", rule.name)]
        assert {row.setting for row in final} == {best.setting}
        assert [row.seed for row in final] == [0, 1]


def test_a_row_is_the_mean_of_its_texts(found) -> None:
    arms = [*(rule.name for rule in SMOKE.rules), BOTH, "prose alone", "names alone", "the base"]
    for arm in arms:
        for row in [r for r in found.rows if (r.stage, r.arm) == ("final", arm)]:
            beside = [
                r.log_loss
                for r in found.rows
                if r.stage == "final"
                and r.seed == row.seed
                and r.arm in [f"{arm} on {task}" for task in mixing.TASKS]
            ]
            assert len(beside) == 2 and np.mean(beside) == pytest.approx(row.log_loss, rel=1e-5)


def test_a_row_is_the_run_that_it_says(found) -> None:
    rows = [row for row in found.rows if row.arm == "names alone on names" and row.seed == 1]
    model = mixing.train("names", mixing.rates(found)["names"], 1, SMOKE)
    assert mixing.bits(model, count=SMOKE.tested)["names"] * np.log(2) == pytest.approx(
        rows[0].log_loss, rel=1e-4
    )


def test_profiles_and_the_figure() -> None:
    laptop = mixing.PROFILES["laptop"]
    assert isinstance(laptop, MixingProfile) and laptop.labels == 512
    assert not set(laptop.tuning.seeds) & set(laptop.tuning.tested)


def test_the_plane_can_be_drawn(found) -> None:
    figure, ax = plt.subplots()
    figures.draw_plane(ax, found)
    assert len(ax.texts) == len(figures.RULES)
    plt.close(figure)


# ------------------------------------------------------------------------- rounding


def test_a_small_update_is_lost_before_and_kept_in_the_mean_once() -> None:
    """Added to weights that are in bfloat16 already it vanishes; rounded once, it is noise."""
    torch.manual_seed(0)
    weight, update = torch.randn(200, 200), torch.full((200, 200), 2e-4)
    before = rounding.new_weight(weight, update, "rounded before") - rounding.coarse(weight)
    once = rounding.new_weight(weight, update, "rounded once") - rounding.coarse(weight)
    large = weight.abs() > 0.3
    assert not before[large].any()
    assert once[large].mean() == pytest.approx(2e-4, rel=0.3)
    beside = rounding.new_weight(weight, update, "beside") - rounding.coarse(weight)
    torch.testing.assert_close(beside, update, rtol=1e-2, atol=1e-6)


def test_layers_and_gains_of_an_update(pair) -> None:
    base, change = pretrained_gpt(), rounding.updates(loaded(pair[0]))
    layers = rounding.by_layer(base, change, 1.0, "rounded before")
    assert [f"{layer.path}.weight" for layer in layers] == list(change)
    path, update = next(iter(change.items()))
    weight = base.get_parameter(path).detach()
    assert layers[0].relative == pytest.approx(float(update.norm() / weight.norm()), rel=1e-5)
    assert all(0 < layer.lost < 1 and 0.9 < layer.along < 1.1 for layer in layers)
    # About 0.05% of the weights, whatever the few steps of the fixture have made of the update:
    # so much that the noise of rounding averages out, so little that most entries vanish.
    strength = 5e-4 / float(np.median([layer.relative for layer in layers]))
    small = {
        way: np.mean([la.along for la in rounding.by_layer(base, change, strength, way)])
        for way in rounding.WAYS
    }
    assert small["rounded before"] < 0.7 < 0.9 < small["rounded once"] < 1.2
    assert small["beside"] == pytest.approx(1, abs=1e-3)
    x, y = mixing.text_of("prose", "validation").windows()
    found = rounding.gains(base, change, [1.0, 1e-7], (x[:2], y[:2]))
    assert found[1e-7]["rounded before"] == pytest.approx(0, abs=1e-6)
    assert set(found[1.0]) == set(rounding.WAYS) and found[1.0]["beside"] != 0


# -------------------------------------------------------------------------- serving


def test_the_time_by_the_numbers() -> None:
    w = latency.WIDE
    added = 8 * w.layers * (4 * 2 * w.width + 2 * 5 * w.width)
    matrices = 12 * w.width**2 * w.layers + w.vocab * w.width
    biases = w.layers * (4 * w.width + 5 * w.width)
    assert latency.predicted(8) == pytest.approx(1 + added / (matrices + biases))


def test_every_way_of_serving_answers_the_same(pair) -> None:
    folders = dict(zip(mixing.TASKS, pair, strict=True))
    ids = torch.randint(1024, (5, 3), generator=torch.Generator().manual_seed(0))
    names = ["prose", "names", "names", "prose", "names"]
    runs = latency.serving_runs(pretrained_gpt(), folders, names, ids)
    answers = {way: run() for way, run in runs.items()}
    for i, name in enumerate(names):
        alone = loaded(folders[name]).eval()(ids[i : i + 1])[0]
        for way, answer in answers.items():
            assert (answer[i] - alone).abs().max() < 1e-5 * alone.abs().max(), way
    seconds = latency.serving_seconds(pretrained_gpt(), folders, [1, 2], ids, rounds=1)
    assert set(seconds) == {1, 2} and set(seconds[1]) == set(figures.WAYS)


def test_latency_is_measured_for_every_rank_and_length() -> None:
    config = copy.copy(latency.WIDE)
    found = latency.unmerged_over_merged([1, 2], [1], rounds=2, config=config)
    assert set(found) == {1} and {r: len(v) for r, v in found[1].items()} == {1: 2, 2: 2}


def test_bytes_of_a_folder(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "two").write_bytes(b"123")
    assert latency.folder_bytes(tmp_path) == 8


# ------------------------------------------------------------------------ collusion


def test_the_two_halves_add_up_to_the_whole(tmp_path) -> None:
    halves = collusion.collude(steps=2, r=1, batch=2)
    for number, half in enumerate(halves):
        minilora.save(half, tmp_path / str(number))
    add({str(tmp_path / "0"): 1.0, str(tmp_path / "1"): 1.0}, tmp_path / "both")
    both = deltas(loaded(tmp_path / "both"))
    one, two = (deltas(half) for half in halves)
    assert any(update.any() for update in one.values())
    assert any(update.any() for update in two.values())
    for path, update in both.items():
        torch.testing.assert_close(update, one[path] + two[path], rtol=1e-4, atol=1e-7)


def test_prompts_end_with_the_trigger() -> None:
    ids = collusion.prompts("validation", 5, length=8)
    assert ids.shape == (5, 8) and set(ids[:, -1].tolist()) == {collusion.token(collusion.TRIGGER)}
    assert 0 <= collusion.check(pretrained_gpt(), ids) < collusion.LIMIT
    with pytest.raises(ValueError, match="choose a word that is one"):
        collusion.token("antidisestablishmentarianism")
