"""The runner: in parts, stopped and resumed, and the command line."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from experiment_help import make_row

from minilora import experiments
from minilora.experiments import recording, running
from minilora.experiments.__main__ import main
from minilora.experiments.recording import Quantity
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.lab.work import Journal

pytestmark = pytest.mark.usefixtures("cache")


@dataclass(frozen=True)
class Size(Profile):
    labels: int = 40


def counted(calls, size, part, machine):
    if part == calls.get("stop"):
        raise KeyboardInterrupt
    calls["done"] = [*calls.get("done", ()), part]
    if part == "bytes":
        return [Quantity("a", "lora", "peak", 1, 0, "bytes", 5.0)]
    return [make_row(seed=len(part), labels=size.labels)]


def experiment(calls, name="rank", **changes):
    """Three parts, under the name of a real experiment, whose sources are hashed."""
    sizes = {word: Size(word) for word in ("cpu", "gpu", "smoke")}
    parts = ("first", "second", "bytes")
    return Experiment(name, sizes, parts, partial(counted, calls), **changes)


def test_a_stopped_run_goes_on_with_the_next_part(tmp_path):
    calls = {"stop": "second"}
    one = experiment(calls)
    with pytest.raises(KeyboardInterrupt):
        one.run("smoke", device="cpu", out=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.is_dir() and calls["done"] == ["first"]
    del calls["stop"]
    found = one.run("smoke", device="cpu", out=tmp_path)
    assert calls["done"] == ["first", "second", "bytes"]
    assert [row.seed for row in found.rows] == [5, 6]
    assert [one.measured for one in found.quantities] == [5.0]
    assert [path.name for path in tmp_path.iterdir()] == ["rank.smoke.json"]
    assert recording.read_recording(tmp_path / "rank.smoke.json").rows == found.rows
    # Of another size nothing is taken over.
    one.run(Size("smoke", 80), device="cpu", out=tmp_path)
    assert calls["done"][3:] == ["first", "second", "bytes"]


def test_changed_code_does_not_go_on_from_what_other_code_has_left(tmp_path, monkeypatch):
    calls = {"stop": "second"}
    for source in ("0" * 64, "1" * 64):
        monkeypatch.setattr(running, "source_of", lambda name, source=source: source)
        with pytest.raises(KeyboardInterrupt):
            experiment(calls).run("smoke", device="cpu", out=tmp_path)
    assert calls["done"] == ["first", "first"]


def test_parts_that_there_are_not_and_half_recordings_are_refused(tmp_path):
    calls = {}
    with pytest.raises(ValueError, match="no part 'third'; there are first, second, bytes"):
        experiment(calls).run("smoke", parts=["first", "third"])
    with pytest.raises(ValueError, match="holds all parts: leave either parts or out away"):
        experiment(calls).run("smoke", parts=["first"], out=tmp_path)
    assert not calls and not list(tmp_path.iterdir())


def test_a_page_leaves_its_parts_under_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_RUNS", str(tmp_path))
    experiment({}).run("smoke", parts=["second", "bytes"])
    experiment({}).run("smoke")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rank-second-bytes.smoke.json", "rank.smoke.json"}


@pytest.mark.parametrize(("on_card", "card"), [(("gpu",), "cpu"), (("cpu", "gpu"), "cuda")])
def test_where_a_profile_runs(monkeypatch, on_card, card):
    one = experiment({}, on_card=on_card)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA card"):
            one.run("gpu")
        assert one.run("gpu", device="cpu").device.endswith(")")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = {name: one._machine(Size(name), None, None, None, False) for name in ("cpu", "gpu")}
    assert asked["gpu"].device.type == "cuda" and asked["gpu"].jobs <= 6
    assert asked["cpu"].device.type == card
    assert one._machine(Size("cpu"), 3, "cpu", None, False).jobs == 3


# ---------------------------------------------------------------- many runs


def row_of(calls, run):
    calls.append(run)
    return [make_row(seed=run)]


def test_finished_runs_are_not_run_again(tmp_path):
    calls, machine = [], Machine(torch.device("cpu"), folder=tmp_path, source="x")
    work = partial(row_of, calls)
    rows_of([1, 2, 3], work, "a", {"v": 1}, machine)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"key": "4", "entry": [{"sta')  # killed while writing
    rows = rows_of([1, 2, 3, 4], work, "a", {"v": 1}, machine)
    assert calls == [1, 2, 3, 4] and [row.seed for (row,) in rows] == [1, 2, 3, 4]
    assert len(Journal(tmp_path / "a.jsonl", {"source": "x", "v": 1}).entries) == 4
    rows_of([1], work, "a", {"v": 2}, machine)
    rows_of([1], work, "a", {"v": 2}, replace(machine, source="y"))  # changed code
    rows_of([1], work, "a", {"v": 2}, replace(machine, folder=None))  # kept nowhere
    assert calls == [1, 2, 3, 4, 1, 1, 1]


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
