"""The runner: one definition, resumed when stopped, checked when written and when read."""

import json
import math
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from minilora import experiments
from minilora.experiments import rank, recording, summaries
from minilora.experiments.__main__ import main
from minilora.experiments.cells import Journal, run_cells
from minilora.lab.transformer import TransformerClassifier

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def smoke(cache):
    return rank.run("smoke", jobs=1)


def make_row(arm="a", seed=0, accuracy=0.5, **changes):
    row = recording.Row(
        stage="final",
        arm=arm,
        kind="lora",
        r=1,
        labels=40,
        seed=seed,
        lr=1e-3,
        setting=None,
        parameters=10,
        accuracy=accuracy,
        log_loss=1.0,
        train_loss=0.5,
        seconds=0.1,
    )
    return replace(row, **changes)


# ---------------------------------------------------------------- the rank experiment


def test_every_arm_is_tuned_and_tested(smoke):
    size = rank.PROFILES["smoke"]
    for arm in rank.arms(size):
        of_arm = [row for row in smoke.rows if (row.arm, row.labels) == (arm.name, 40)]
        tuned = [row for row in of_arm if row.stage == "tune"]
        tested = [row for row in of_arm if row.stage == "final"]
        assert len({row.lr for row in tuned}) >= 5
        assert sorted(row.seed for row in tested) == list(size.seeds)
        assert {row.lr for row in tested} == {rank.best_rates(smoke.rows)[arm.name, 40]}
    names = {row.arm for row in smoke.rows if row.lr is None}
    assert names == {
        "nearest neighbours",
        "logistic regression",
        "digits labelled singly",
        "the base as it is",
    }


def test_parameters_are_counted_on_the_model(smoke):
    width, classes, hidden = 8, 19, 32
    per_rank = 4 * (width + width) + 2 * (width + hidden)
    counts = {row.arm: row.parameters for row in smoke.rows}
    assert counts["LoRA r=1"] == per_rank and counts["LoRA r=2"] == 2 * per_rank
    assert counts["random A, r=2"] == 2 * (4 * width + hidden + width)
    assert counts["head only"] == classes * (width + 1)
    whole = sum(p.numel() for p in TransformerClassifier(rank.PROFILES["smoke"].model).parameters())
    assert counts["full fine-tuning"] == counts["from scratch"] == whole


def test_the_seed_settles_the_numbers_and_processes_do_not_change_them(smoke):
    size = rank.PROFILES["smoke"]
    base = rank.adder(size)
    work = partial(rank.run_cell, size=size, device="cpu", base=base.state_dict())
    arm = rank.arms(size)[1]
    cells = [rank.Cell("final", arm, 40, seed, 5e-3) for seed in (0, 1)]
    alone = run_cells(cells, work, Journal(None, {}), jobs=1)
    together = run_cells(cells, work, Journal(None, {}), jobs=2)
    for a, b in zip(alone, together, strict=True):
        assert replace(a, seconds=0.0) == replace(b, seconds=0.0)
    assert alone[0].log_loss != alone[1].log_loss


@pytest.mark.parametrize("kind", ["lora", "random", "head", "full"])
def test_prepare_trains_what_the_arm_says(kind):
    torch.manual_seed(0)
    size = rank.PROFILES["smoke"]
    model = TransformerClassifier(size.model)
    x = torch.rand(4, 1, 8, 16)
    before = model(x)
    (arm,) = [arm for arm in rank.arms(size) if arm.kind == kind][:1]
    rank.prepare(arm, model, alpha=8.0, seed=0)
    assert torch.allclose(model(x), before, atol=1e-6)  # every arm starts at the base
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if kind == "lora":
        assert {name.rsplit(".", 1)[1] for name in trained} == {"A", "B"} and len(trained) == 12
    if kind == "random":
        assert {name.rsplit(".", 1)[1] for name in trained} == {"B"} and len(trained) == 6
    if kind == "head":
        assert trained == {"head.weight", "head.bias"}
    if kind == "full":
        assert len(trained) == len(list(model.parameters()))


def test_train_validation_and_test_pictures_share_no_digit():
    size = rank.PROFILES["cpu"]
    halves = [
        {tuple(half.flatten().tolist()) for half in torch.cat(part.x.split(8, dim=3))}
        for part in rank.pictures(size, 500, seed=0)
    ]
    assert not halves[0] & halves[1] and not halves[0] & halves[2] and not halves[1] & halves[2]
    again = rank.pictures(size, 500, seed=1)
    assert not torch.equal(again[0].x, rank.pictures(size, 500, seed=0)[0].x)
    assert torch.equal(again[2].x, rank.pictures(size, 500, seed=0)[2].x)


def test_tuning_goes_on_until_the_best_rate_lies_inside():
    size = replace(rank.PROFILES["smoke"], ranks=(1,))
    wanted = rank.RATES[9]

    def work(cell):  # a valley far above the rates that every arm starts with
        loss = 1 + abs(math.log(cell.lr / wanted))
        return make_row(
            cell.arm.name, cell.seed, stage="tune", lr=cell.lr, labels=cell.labels, log_loss=loss
        )

    journal = Journal(None, {})
    compared = rank.arms(size)
    rows = rank.tune(size, compared, (40,), {}, work, journal, jobs=1, progress=False)
    assert rows == list(journal.rows.values())
    assert set(rank.best_rates(rows).values()) == {wanted}
    for arm in rank.arms(size):
        tried = sorted(row.lr for row in rows if row.arm == arm.name)
        assert tried[0] < wanted < tried[-1]
        first = rank.RATES.index(tried[0])
        assert tried == list(rank.RATES[first : first + len(tried)])  # no gaps

    # With a rate to start from, three are tried at first, and more only where they must be.
    arm, near, far = compared[0], rank.RATES[9], rank.RATES[3]
    for start, expected in ((near, rank.RATES[8:11]), (far, rank.RATES[2:11])):
        journal = Journal(None, {})
        rows = rank.tune(
            size, [arm], (30,), {arm.name: start}, work, journal, jobs=1, progress=False
        )
        assert sorted(row.lr for row in rows) == list(expected)


def test_the_curve_has_its_own_labels_arms_and_seeds(smoke):
    size = rank.PROFILES["smoke"]
    trained = {
        (row.arm, row.seed)
        for row in smoke.rows
        if row.stage == "final" and row.labels == 30 and row.lr is not None
    }
    assert trained == {("LoRA r=1", 0), ("full fine-tuning", 0)}
    assert {row.arm for row in smoke.rows if row.labels == 30 and row.lr is None} == {
        "nearest neighbours",
        "logistic regression",
        "digits labelled singly",
        "the base as it is",
    }
    assert {one.arm for one in summaries.summarise(smoke, 30)} >= {"LoRA r=1"}
    assert size.curve_labels == (30,)


def test_what_was_watched_on_its_way(smoke):
    size = rank.PROFILES["smoke"]
    looks = [row for row in smoke.rows if row.arm == "watched r=2"]
    assert len(looks) == 10 * len(size.watch_rates)
    by_step = {(row.lr, row.setting): row.log_loss for row in looks}
    best = min(by_step, key=by_step.__getitem__)
    (tuned,) = [row for row in smoke.rows if row.arm == "watched r=2, tuned"]
    (untuned,) = [row for row in smoke.rows if row.arm == "watched r=2, untuned"]
    assert (tuned.stage, tuned.lr) == ("final", best[0])
    assert untuned.lr == size.watch_rates[1] and untuned.stage == "final"
    # On test data, and not the number that chose it.
    assert tuned.log_loss != by_step[best]


def test_biases_only_trains_those_of_the_blocks():
    model = TransformerClassifier(rank.PROFILES["smoke"].model)
    (arm,) = [one for one in rank.arms(rank.PROFILES["smoke"]) if one.kind == "biases"]
    rank.prepare(arm, model, alpha=8.0, seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("blocks.") and name.endswith("bias")
    }


def test_a_run_that_diverges_is_recorded_and_never_chosen():
    rows = [
        make_row(stage="tune", lr=0.1, accuracy=None, log_loss=None, diverged=True),
        make_row(stage="tune", lr=0.01, log_loss=9.0),
    ]
    assert rank.best_rates(rows) == {("a", 40): 0.01}
    size = rank.PROFILES["smoke"]
    arm = replace(rank.arms(size)[-2], patience=10)
    model = TransformerClassifier(size.model)
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    cell = rank.Cell("tune", arm, 40, 0, 0.01)
    row = rank.run_cell(cell, size=size, device="cpu", base=model.state_dict())
    assert row.diverged and row.log_loss is None and row.accuracy is None


# ---------------------------------------------------------------- stopped and resumed


def counted(calls, cell):
    calls.append(cell)
    return make_row(seed=cell)


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    path, calls = tmp_path / "x.jsonl", []
    run_cells([1, 2, 3], partial(counted, calls), Journal(path, {"v": 1}), jobs=1)
    with path.open("a") as file:
        file.write('{"key": "4", "row": {"sta')  # killed while writing
    rows = run_cells([1, 2, 3, 4], partial(counted, calls), Journal(path, {"v": 1}), jobs=1)
    assert calls == [1, 2, 3, 4] and [row.seed for row in rows] == [1, 2, 3, 4]
    assert len(Journal(path, {"v": 1}).rows) == 4
    run_cells([1], partial(counted, calls), Journal(path, {"v": 2}), jobs=1)  # changed code
    assert calls == [1, 2, 3, 4, 1]


def test_run_resumes_from_its_journal(tmp_path, monkeypatch, smoke):
    done = []
    real = rank.run_cell

    def stopping(cell, **given):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(cell)
        return real(cell, **given)

    monkeypatch.setattr(rank, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        rank.run("smoke", jobs=1, out=tmp_path)
    assert (tmp_path / "rank.smoke.jsonl").exists()
    assert not (tmp_path / "rank.smoke.json").exists()
    monkeypatch.setattr(rank, "run_cell", real)
    resumed = rank.run("smoke", jobs=1, out=tmp_path)
    assert not (tmp_path / "rank.smoke.jsonl").exists()

    def plain(rows):
        return {replace(row, seconds=0.0) for row in rows}

    assert plain(resumed.rows) == plain(smoke.rows)


# ---------------------------------------------------------------- recordings


def test_a_recording_survives_the_disk(tmp_path, smoke):
    path = recording.write_recording(smoke, tmp_path)
    assert path.name == "rank.smoke.json" and [p.name for p in tmp_path.iterdir()] == [path.name]
    back = experiments.load_recording("rank", "smoke", tmp_path)
    assert len(back.rows) == len(smoke.rows)
    for a, b in zip(back.rows, smoke.rows, strict=True):
        assert a.arm == b.arm and a.parameters == b.parameters
        assert a.accuracy == pytest.approx(b.accuracy, rel=1e-5)
    assert back.where == smoke.where
    assert not experiments.is_stale(back)
    assert experiments.is_stale(replace(back, source="0" * 64))


def test_every_committed_recording_is_sound():
    for path in recording.RECORDED.glob("*.json"):
        found = recording.read_recording(path)
        assert path.name == f"{found.name}.{found.profile}.json"
        assert found.profile in ("cpu", "gpu")


def test_a_missing_recording_is_said(tmp_path):
    assert experiments.load_recording("rank", "gpu", tmp_path) is None
    said = experiments.not_recorded("rank")
    assert "Not recorded yet" in said
    assert "python -m minilora.experiments run rank --profile gpu" in said


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: c.pop("rows"), "lacks rows"),
        (lambda c: c.update(extra=1), "unknown extra"),
        (lambda c: c.update(rows=[]), "without rows"),
        (lambda c: c.update(schema=99), "schema 99"),
        (lambda c: c.update(source="abc"), "SHA-256"),
        (lambda c: c.update(date="yesterday"), "yesterday"),
        (lambda c: c["versions"].pop("torch"), "torch"),
        (lambda c: c["rows"][0].pop("seed"), "row 0 lacks seed"),
        (lambda c: c["rows"][0].update(accuracy=1.5), "accuracy"),
        (lambda c: c["rows"][0].update(accuracy=None), "accuracy"),
        (lambda c: c["rows"][0].update(log_loss=float("nan")), "log_loss"),
        (lambda c: c["rows"][0].update(stage="peek"), "stage"),
        (lambda c: c["rows"][0].update(parameters=0), "trainable parameters"),
        (lambda c: c["rows"][0].update(seed=True), "seed"),
        (lambda c: c["rows"].append(dict(c["rows"][0])), "repeats"),
    ],
)
def test_an_unsound_recording_is_refused(smoke, break_it, says):
    content = asdict(smoke)
    recording.check_recording(content)
    break_it(content)
    with pytest.raises(ValueError, match=says):
        recording.check_recording(content)


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "rank.gpu.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        experiments.load_recording("rank", "gpu", tmp_path)


# ---------------------------------------------------------------- the command line


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in experiments.NAMES) and "gpu: " in said


def test_run_leaves_a_checked_recording(tmp_path, capsys):
    assert main(["run", "all", "--profile", "smoke", "--out", str(tmp_path), "--jobs", "1"]) == 0
    assert "rows in" in capsys.readouterr().out
    content = json.loads((tmp_path / "rank.smoke.json").read_text())
    recording.check_recording(content)
    assert content["versions"]["torch"] == torch.__version__
    assert content["settings"]["ranks"] == [1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_the_gpu_profile_is_refused_without_a_card(tmp_path, capsys):
    assert main(["run", "rank", "--profile", "gpu", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "needs a CUDA card" in said and "--profile cpu" in said
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- summaries


def recorded(rows):
    return recording.Recording(
        name="rank",
        profile="smoke",
        settings={"labels": [40, 80]},
        rows=rows,
        source="0" * 64,
        device="cpu",
        versions={"python": "3", "torch": "2", "numpy": "2"},
        date="2026-01-01T00:00:00+00:00",
        commit=None,
        seconds=1.0,
        peak_bytes=None,
    )


def test_summary_by_hand():
    rows = [make_row(seed=s, accuracy=v) for s, v in enumerate((0.6, 0.7, 0.8))]
    rows.append(make_row(seed=9, accuracy=0.1, stage="tune"))
    rows.append(make_row(seed=9, accuracy=0.1, labels=80))
    (one,) = summaries.summarise(recorded(rows))
    assert one.seeds == 3 and one.values == (0.6, 0.7, 0.8)
    assert one.accuracy == pytest.approx(0.7)
    assert one.accuracy_se == pytest.approx(0.1 / math.sqrt(3))
    (other,) = summaries.summarise(recorded(rows), labels=80)
    assert other.accuracy == 0.1 and math.isnan(other.accuracy_se)
    with pytest.raises(ValueError, match="no run with 7 labels"):
        summaries.summarise(recorded(rows), labels=7)


def test_pairing_by_hand():
    a = [make_row("a", s, v) for s, v in enumerate((0.6, 0.7, 0.9))]
    b = [make_row("b", s, v) for s, v in enumerate((0.5, 0.5, 0.6))]
    found = summaries.paired(recorded([*a, *reversed(b)]), "a", "b")
    # differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(0.975, 2) = 4.3027
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert not found.detectable and found.seeds == 3
    with pytest.raises(ValueError, match="no test rows of 'c'"):
        summaries.paired(recorded(a), "a", "c")
    with pytest.raises(ValueError, match="need 2"):
        summaries.paired(recorded([a[0], b[0]]), "a", "b")


def test_tuning_curve_and_table(smoke):
    curve = summaries.tuning_curve(smoke, "LoRA r=1")
    assert list(curve) == sorted(curve) and len(curve) >= 5
    best = rank.best_rates(smoke.rows)["LoRA r=1", 40]
    assert curve[best] == min(curve.values())
    text = summaries.table(smoke)
    assert all(row.arm in text for row in smoke.rows) and f"{best:g}" in text
