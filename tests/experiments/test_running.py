"""The runner: in parts, stopped and resumed, and the command line."""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from experiment_help import make_row

from minilora import experiments
from minilora.experiments import __main__ as command
from minilora.experiments import recording, running
from minilora.experiments.__main__ import main
from minilora.experiments.recording import Quantity
from minilora.experiments.running import Experiment, Machine, Profile, rows_of
from minilora.lab.work import Journal, OutOfTime, time_limit

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
    # Each finished part is a recording by itself, whole and checked.
    assert [path.name for path in tmp_path.iterdir()] == ["rank-first.smoke.json"]
    alone = recording.read_recording(tmp_path / "rank-first.smoke.json")
    assert alone.part == "first" and [row.seed for row in alone.rows] == [5]
    assert calls["done"] == ["first"] and one.recorded("smoke", "first", tmp_path, "cpu")
    assert not one.recorded("smoke", "second", tmp_path, "cpu")
    del calls["stop"]
    found = one.run("smoke", device="cpu", out=tmp_path)
    assert calls["done"] == ["first", "second", "bytes"]
    assert [row.seed for row in found.rows] == [5, 6]
    assert [one.measured for one in found.quantities] == [5.0]
    assert [path.name for path in tmp_path.iterdir()] == ["rank.smoke.json"]
    assert recording.read_recording(tmp_path / "rank.smoke.json").rows == found.rows
    assert found.part is None and one.recorded("smoke", "second", tmp_path, "cpu")
    assert not one.recorded(Size("smoke", 80), "second", tmp_path, "cpu")
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


def test_parts_that_there_are_not_are_refused():
    calls = {}
    with pytest.raises(ValueError, match="no part 'third'; there are first, second, bytes"):
        experiment(calls).run("smoke", parts=["first", "third"])
    assert not calls


def test_parts_that_are_run_one_by_one_become_one_recording(tmp_path):
    calls = {}
    one = experiment(calls)
    for part in ("second", "first"):
        assert one.run("smoke", parts=[part], device="cpu", out=tmp_path).part == part
    asked = partial(recording.load_recording, "rank", "smoke", tmp_path)
    assert asked() is None and asked(parts=["bytes"]) is None
    assert [row.seed for row in asked(parts=["first", "second"]).rows] == [5, 6]
    one.run("smoke", parts=["bytes"], device="cpu", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rank.smoke.json"]
    whole = asked(parts=["bytes"])  # of the whole there is more than was asked for
    assert whole.part is None and [row.seed for row in whole.rows] == [5, 6]
    assert calls["done"] == ["second", "first", "bytes"]


@pytest.mark.parametrize("key", ["device", "source", "versions"])
def test_parts_from_another_machine_code_or_version_are_made_anew(tmp_path, key):
    calls = {"stop": "second"}
    with pytest.raises(KeyboardInterrupt):
        experiment(calls).run("smoke", device="cpu", out=tmp_path)
    path = tmp_path / "rank-first.smoke.json"
    content = json.loads(path.read_text())
    other = {"device": "a card", "source": "0" * 64, "versions": {**content["versions"], "x": "1"}}
    path.write_text(json.dumps({**content, key: other[key]}))
    first = recording.read_recording(path)
    del calls["stop"]
    experiment(calls).run("smoke", device="cpu", out=tmp_path)
    assert calls["done"] == ["first", "first", "second", "bytes"]
    with pytest.raises(ValueError, match="rank: the parts None and first are not of one run"):
        recording.together([recording.read_recording(tmp_path / "rank.smoke.json"), first])


def test_a_torn_recording_of_a_part_is_made_anew(tmp_path):
    calls = {}
    (tmp_path / "rank-first.smoke.json").write_text('{"name": "ra')
    experiment(calls).run("smoke", device="cpu", out=tmp_path)
    assert calls["done"] == ["first", "second", "bytes"]


def test_unfinished_work_on_another_base_is_begun_afresh(tmp_path):
    tried = []

    def part(size, part, machine):
        """It keeps a cell of a base that is another one each time."""
        tried.append(part)
        Journal(machine.file("cells"), {"base": len(tried)}).add("cell", 1)
        return [make_row(seed=len(part))]

    sizes = {"smoke": Size("smoke")}
    one = Experiment("rank", sizes, ("first", "second"), part)
    one.run("smoke", device="cpu", out=tmp_path)
    assert tried == ["first", "second", "second"]
    assert [path.name for path in tmp_path.iterdir()] == ["rank.smoke.json"]


def test_the_card_s_peak_is_that_of_a_part(monkeypatch):
    """There may be no card: its counter is played. It is set back before each part."""
    asked = []
    monkeypatch.setattr(torch.cuda, "init", lambda: asked.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append("reset"))
    monkeypatch.setattr(running, "peak_memory", lambda device: asked.append("peak") or 7)
    monkeypatch.setattr(running, "device_name", lambda device: "a card")
    found = experiment({}).run("smoke", device="cuda")
    assert asked == ["init", "reset", "peak"] * 3 and found.peak_bytes == 7
    assert found.versions["float32 products"] == "highest"


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
    assert asked["gpu"].device.type == "cuda" and asked["gpu"].jobs <= running.CARD_JOBS
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


def test_runs_keep_to_the_time_and_what_is_done_is_kept(tmp_path):
    """Three runs of a second each in the time for two, and the third when there is time again."""
    calls, clock = [], Clock()
    machine = Machine(torch.device("cpu"), folder=tmp_path, source="x")

    def work(run):
        clock.now += 1.0
        return row_of(calls, run)

    with pytest.raises(OutOfTime), time_limit(2.5, clock):
        rows_of([1, 2, 3], work, "a", {}, machine)
    assert calls == [1, 2] and clock.now == 2.0
    with time_limit(1.5, clock):
        rows = rows_of([1, 2, 3], work, "a", {}, machine)
    assert calls == [1, 2, 3] and [row.seed for (row,) in rows] == [1, 2, 3]


# ---------------------------------------------------------------- the command line


class Clock:
    """It stands still, unless somebody moves it on."""

    now = 0.0

    def __call__(self):
        return self.now


#: The experiments that a card is worth most to.
FOUR = ("memory", "rank", "rates", "placement")


class Played:
    """Four experiments with two parts each, every one of which takes ten seconds."""

    def __init__(self, monkeypatch):
        self.clock, self.done, self.fails = Clock(), [], {}
        monkeypatch.setattr(command, "_module", self.module)
        monkeypatch.setattr(command, "ORDER", FOUR)
        self.sizes = {word: Size(word) for word in ("cpu", "smoke")}

    def module(self, name):
        parts = ("bytes", "sweeps") if name == "memory" else ("one", "two")
        one = Experiment(name, self.sizes, parts, partial(self.run_part, name))
        return SimpleNamespace(EXPERIMENT=one, PROFILES=self.sizes, run=one.run)

    def run_part(self, name, size, part, machine):
        word = f"{name} {part}" + (" smoke" if size.name == "smoke" else "")
        if error := self.fails.get(word):
            raise error
        self.clock.now += 1 if size.name == "smoke" else 10
        self.done.append(word)
        return [make_row(seed=sum(map(ord, part)))]

    def __call__(self, *words, out):
        self.done.clear()
        return main(["run", *words, "--out", str(out)], self.clock)


@pytest.fixture
def played(monkeypatch):
    return Played(monkeypatch)


SMOKES = [
    f"{name} {part} smoke"
    for name, parts in (
        ("memory", ("bytes", "sweeps")),
        *((name, ("one", "two")) for name in ("rank", "rates", "placement")),
    )
    for part in parts
]
WORTH = [
    *("memory bytes", "rank one", "rank two", "memory sweeps"),
    *("rates one", "rates two", "placement one", "placement two"),
]


def test_every_part_of_every_experiment_has_its_turn():
    plan = command.in_order(command.ORDER)
    assert set(command.ORDER) == set(experiments.NAMES)
    for name in experiments.NAMES:
        of = [part for one, part in plan if one == name]
        parts = importlib.import_module(f"minilora.experiments.{name}").EXPERIMENT.parts
        assert sorted(of) == sorted(parts) and len(set(of)) == len(of)
    first = [name for name, part in plan if (name, part) != command.WAITS]
    assert first == sorted(first, key=command.ORDER.index) and plan[0] == ("memory", "bytes")
    assert plan[plan.index(command.WAITS) - 1][0] == "rank"


def test_time_is_spent_in_order_of_worth_and_the_next_call_goes_on(tmp_path, played, capsys):
    assert played("all", "--seconds", "35", out=tmp_path) == 0
    assert played.done == [*SMOKES, *WORTH[:3]]  # 8 s of smoke; the third part began in time
    said = capsys.readouterr().out
    assert "memory: runs here" in said and "rank, two: 1 rows in" in said
    assert (
        "Stopped at the limit of 35 seconds. Left: memory (sweeps), rates (one, two), placement "
        "(one, two). The same command goes on from there." in said
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"memory-bytes.cpu.json", "rank.cpu.json"}

    assert played("all", "--seconds", "1000", out=tmp_path) == 0
    assert played.done == [*SMOKES[:2], *SMOKES[4:], *WORTH[3:]]  # rank has nothing left
    said = capsys.readouterr().out
    assert "Recorded already: memory (bytes), rank (one, two). To run it anew, delete" in said
    assert "Left" not in said
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.cpu.json" for name in FOUR}
    assert played("all", out=tmp_path) == 0 and played.done == []


def test_without_time_for_the_smallest_sizes_nothing_is_begun(tmp_path, played, capsys):
    assert played("all", "--seconds", "3", out=tmp_path) == 0
    assert played.done == SMOKES[:4]
    assert (
        "Left: memory (bytes), rank (one, two), memory (sweeps), rates" in capsys.readouterr().out
    )
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_said_and_the_rest_is_run(tmp_path, played, capsys):
    played.fails = {
        "rank two smoke": RuntimeError("no such kernel"),
        "rates one": torch.OutOfMemoryError("too large"),
    }
    assert played("all", out=tmp_path) == 1
    left = [one for one in WORTH if one[:4] != "rank" and one != "rates one"]
    assert [one for one in played.done if "smoke" not in one] == left
    said = capsys.readouterr().err
    assert "no such kernel" in said and "too large" in said
    assert "Failed, for the reasons above: rank (one, two), rates (one)." in said


def test_some_parts_of_one_experiment(tmp_path, played, capsys):
    assert played("rank", "--parts", "two", out=tmp_path) == 0
    assert played.done == ["rank two"]
    assert [path.name for path in tmp_path.iterdir()] == ["rank-two.cpu.json"]
    with pytest.raises(SystemExit) as stopped:
        played("rank", "--parts", "two", "three", out=tmp_path)
    assert stopped.value.code == 2 and played.done == []
    assert "rank has no part 'three'; there are one, two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["all", "--seconds", "soon"], "--seconds: must be a positive number, but is 'soon'"),
        (["all", "--seconds", "0"], "must be a positive number, but is '0'"),
        (["all", "--seconds", "nan"], "must be a positive number, but is 'nan'"),
        (["all", "--jobs", "0"], "--jobs: must be a whole number from 1 on, but is '0'"),
        (["all", "--parts", "one"], "--parts belongs to one experiment: name it in place of 'all'"),
        (["rang"], "invalid choice: 'rang'"),
        (["all", "--profile", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, played, capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        played(*words, out=tmp_path)
    assert stopped.value.code == 2 and played.done == []
    assert says in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, played, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit):
        played("all", out=file)
    assert f"--out must be a folder, but {file} is a file" in capsys.readouterr().err


def test_help_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "run all --profile gpu --seconds 480 --out OUT" in said and "make gpu-check" in said
    assert all(option in said for option in ("--seconds", "--parts", "--jobs", "--out"))


def test_the_experiments_need_no_jupyter():
    """A machine with a card has torch, scikit-learn and matplotlib, and not the book's tools."""
    absent = ["IPython", "ipykernel", "jupyter_book", "myst_nb", "nbformat", "sphinx", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"  # None: cannot be imported
    code += "from minilora.experiments.__main__ import main; main(['list'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in experiments.NAMES)


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in experiments.NAMES) and "gpu: " in said


def test_run_leaves_a_checked_recording(tmp_path, capsys):
    words = ["run", "all", "--profile", "smoke", "--seconds", "600"]
    assert main([*words, "--out", str(tmp_path), "--jobs", "1"], Clock()) == 0
    assert "rows in" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.smoke.json" for name in experiments.NAMES
    }
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
