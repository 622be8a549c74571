"""What a run leaves behind: checked when written and when read."""

from dataclasses import asdict, replace

import pytest
from experiment_help import make_row, recorded

from minilora import experiments
from minilora.experiments import rank, recording

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def smoke(cache):
    return rank.run("smoke", jobs=1)


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
        assert path.name == recording.file_name(found.name, found.profile, found.part)
        assert found.profile in ("cpu", "laptop", "gpu")


def test_a_page_says_where_a_recording_is_stale():
    fresh = replace(recorded([make_row()]), source=recording.source_of("rank"))
    assert fresh.where == "profile smoke, cpu, 2026-01-01"
    stale = replace(fresh, source="0" * 64)
    assert stale.where == f"{fresh.where}, by code that has changed since"


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
        (lambda c: c.update(part=3), "part must be str"),
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
