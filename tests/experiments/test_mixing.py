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
from minilora.experiments.mixing import agreement, collusion, figures, latency, reading, rounding
from minilora.experiments.mixing.experiment import BOTH, MixingProfile, chosen, training_data
from minilora.experiments.mixing.rules import described
from minilora.experiments.mixing.uncut import uncut
from minilora.experiments.recording import Recording
from minilora.lab import corpus
from minilora.lab.language import pretrained_gpt, tokenizer
from minilora.surgery import add, ties

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


def test_the_planes_can_be_drawn(found) -> None:
    figure, axes = plt.subplots(1, 2)
    figures.draw_plane(axes, found)
    assert [text.get_text() for text in axes[0].texts] == ["the base", "prose alone", "names alone"]
    assert [text.get_text() for text in axes[1].texts] == [*figures.RULES, figures.ROUTED]
    plt.close(figure)


def test_routed_is_each_text_with_its_own_adapter(found) -> None:
    of = figures.routed(found)
    assert of.shape == (2, len(mixing.TASKS))
    for i, task in enumerate(mixing.TASKS):
        arm = f"{task} alone on {task}"
        own = [r.log_loss for r in found.rows if (r.stage, r.arm) == ("final", arm)]
        np.testing.assert_allclose(of[:, i] * np.log(2), own, rtol=1e-6)


def test_what_was_tried_is_the_mean_of_the_tuning_draws(found) -> None:
    rule = SMOKE.rules[1]
    assert len(rule.densities) > 0 and rule.name == "TIES"
    of = reading.tried(found, rule)
    assert {(s, d) for d, row in of.items() for s in row} == set(rule.settings)
    for (strength, density), words in ((s, described(*s)) for s in rule.settings):
        seen = [
            row.log_loss
            for row in found.rows
            if (row.stage, row.arm, row.setting) == ("tune", rule.name, words)
        ]
        assert of[density][strength] * np.log(2) == pytest.approx(np.mean(seen))


# ------------------------------------------------------------- rules without a cut of the rank


def test_without_a_cut_the_sum_is_the_sum_and_ties_is_ties(pair) -> None:
    base = pretrained_gpt()
    one, two = (deltas(loaded(folder)) for folder in pair)
    changes = [{f"{path}.weight": of[path] for path in of} for of in (one, two)]
    before = {path: base.get_parameter(path).clone() for path in changes[0]}
    plain = uncut(base, changes, mixing.RULES[0], (0.5, 1.0))
    elected = uncut(base, changes, mixing.RULES[1], (0.5, 0.5))
    for path, old in before.items():
        torch.testing.assert_close(base.get_parameter(path), old, rtol=0, atol=0)
        both = torch.stack([0.5 * change[path] for change in changes])
        moved = plain.get_parameter(path) - old
        torch.testing.assert_close(moved, both.sum(0), rtol=1e-4, atol=1e-6)
        total, dropped = ties(both, torch.tensor([0.5, 0.5]), 0.5)
        assert dropped > 0.4
        torch.testing.assert_close(elected.get_parameter(path) - old, total, rtol=1e-4, atol=1e-6)


def test_without_a_cut_dare_drops_and_enlarges(pair) -> None:
    base, rule = pretrained_gpt(), mixing.RULES[2]
    one = {f"{path}.weight": of for path, of in deltas(loaded(pair[0])).items()}
    none = {path: torch.zeros_like(of) for path, of in one.items()}
    model = uncut(base, [one, none], rule, (1.0, 0.25))
    for path, change in one.items():
        moved = (model.get_parameter(path) - base.get_parameter(path)).detach()
        stays = moved != 0
        assert 0.2 < float(stays.float().mean()) < 0.3
        torch.testing.assert_close(moved[stays], 4 * change[stays], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="works on factors"):
        uncut(base, [one, none], mixing.RULES[3], (1.0, 1.0))


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


def test_rounding_once_is_as_near_as_the_format_allows(pair) -> None:
    """``off`` counts from W + ΔW, and ``lost`` from the rounded W: they order the ways apart."""
    base, change = pretrained_gpt(), rounding.updates(loaded(pair[0]))
    typical = np.median([la.relative for la in rounding.by_layer(base, change, 1.0, "beside")])
    once, before = (
        rounding.by_layer(base, change, 2e-3 / float(typical), f"rounded {way}")
        for way in ("once", "before")
    )
    assert all(a.off < b.off for a, b in zip(once, before, strict=True))
    assert all(a.lost > b.lost for a, b in zip(once, before, strict=True))


def test_halfway_weights_are_counted() -> None:
    # Between 1 and 2 the numbers of bfloat16 lie 1/128 apart.
    weight = torch.tensor([1.0, 1 + 1 / 256, -1 - 3 / 256, 1 + 1 / 512, 1 + 1 / 128, 0.0])
    assert rounding.halfway(weight) == pytest.approx(2 / 6)
    assert rounding.halfway(weight * 2**-7) == pytest.approx(2 / 6)


def test_nudged_weights_lie_anywhere_within_half_a_step() -> None:
    base, path = pretrained_gpt(), "blocks.0.q_proj.weight"
    old = base.get_parameter(path).detach().clone()
    model = rounding.nudged(base, [path], seed=0)
    torch.testing.assert_close(base.get_parameter(path), old, rtol=0, atol=0)
    moved = (model.get_parameter(path) - old).detach()
    _, power = torch.frexp(old)
    steps = moved / torch.ldexp(torch.ones_like(old), power - 8)
    assert 0.45 < float(steps.abs().max()) <= 0.501 and float(steps.mean().abs()) < 0.02
    assert rounding.halfway(model.get_parameter(path)) < 0.001 < rounding.halfway(old)
    assert torch.equal(model.blocks[1].q_proj.weight, base.blocks[1].q_proj.weight)


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


def test_adapters_in_memory_share_one_set_of_weights(pair) -> None:
    base = pretrained_gpt()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    models = [minilora.load(latency.sharing(base), folder) for folder in pair]
    ids = torch.arange(6).reshape(2, 3)
    outputs = [model.eval()(ids) for model in models]
    for model in models:
        places = {weight.data_ptr() for weight in model.parameters()}
        assert {weight.data_ptr() for weight in base.parameters()} <= places
    assert not torch.allclose(*outputs)
    assert not minilora.lora_layers(base)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_latency_is_measured_for_every_rank_and_length() -> None:
    config = copy.copy(latency.WIDE)
    found = latency.unmerged_over_merged([1, 2], [1], rounds=2, config=config)
    assert set(found) == {1} and {r: len(v) for r, v in found[1].items()} == {1: 2, 2: 2}


def test_bytes_of_a_folder(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "two").write_bytes(b"123")
    assert latency.folder_bytes(tmp_path) == 8


# ------------------------------------------------------------- does the server compute the same?


def test_a_server_is_a_coarse_copy_with_a_factor(pair) -> None:
    mine, ids = loaded(pair[0]).eval(), torch.arange(24).reshape(4, 6)
    right, weak, off = (agreement.served(mine, factor) for factor in (1.0, 0.25, 0))
    assert {weight.dtype for weight in right.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in mine.parameters()} == {torch.float32}
    asked = agreement.first_tokens(mine, ids)
    found = [agreement.apart(asked, agreement.first_tokens(m, ids)) for m in (right, weak, off)]
    assert 0 < found[0].mean() < found[1].mean() < found[2].mean()
    without = agreement.first_tokens(agreement.served(pretrained_gpt()), ids)
    torch.testing.assert_close(agreement.first_tokens(off, ids), without)


def test_the_first_token_is_the_one_after_the_prompt() -> None:
    model, ids = pretrained_gpt().eval(), torch.arange(12).reshape(2, 6)
    found = agreement.first_tokens(model, ids)
    assert found.shape == (2, 1024)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2))
    longer = torch.cat([ids, torch.zeros(2, 1, dtype=torch.long)], 1)
    torch.testing.assert_close(found, model(longer)[:, :, -2].detach().log_softmax(1))


def test_apart_looks_at_the_likeliest_token() -> None:
    expected = torch.tensor([[-1.0, -0.5, -3.0], [-0.1, -4.0, -5.0]])
    found = torch.tensor([[-0.6, -0.7, -9.0], [-0.1, -9.0, -9.0]])
    torch.testing.assert_close(agreement.apart(expected, found), torch.tensor([0.2, 0.0]))


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
