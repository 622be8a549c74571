"""book/_tools/execute.py: which notebooks run where, for how long, and what MyST-NB then finds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import execute
import pytest
from freshness import has_code, notebooks

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "memory", "asked", "sizes"),
    [
        (1, 8 * GIB, 0, [1]),
        (2, 8 * GIB, 0, [1, 1]),
        (2, 4 * GIB, 0, [2]),
        (3, 64 * GIB, 0, [1, 1, 1]),
        (4, 16 * GIB, 0, [2, 1, 1]),
        (8, 64 * GIB, 0, [2, 2, 1, 1, 1, 1]),
        (8, 7 * GIB, 0, [4, 4]),
        (4, GIB, 0, [4]),
        (4, GIB, 2, [2, 2]),
        (2, 64 * GIB, 3, [2, 2, 2]),
    ],
)
def test_a_notebook_has_cores_of_its_own_or_shares_all(
    cores: int, memory: int, asked: int, sizes: list[int]
) -> None:
    found = execute.places(range(10, 10 + cores), memory, asked)
    assert [len(mine) for mine in found] == sizes
    used = [core for mine in found for core in mine]
    if cores < len(found):
        assert all(mine == list(range(10, 10 + cores)) for mine in found)
    else:
        assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (59.6, "1 min"), (100, "1 min 40 s"), (120, "2 min"), (599, "9 min 59 s"),
     (1000, "17 min"), (4000, "67 min")],
)  # fmt: skip
def test_times_in_words(seconds: float, words: str) -> None:
    assert execute.said(seconds) == words


def test_time_left_goes_by_what_was_seen() -> None:
    clock = execute.Clock({"a": 10.0, "b": 20.0, "c": 30.0, "d": 100.0}, workers=2)
    assert clock.left({"a": 0, "b": 0, "c": 0}, ["d"]) == 30 + 100
    assert clock.of("new") == 30.0  # unheard of: the middle one of the others
    clock.done["a"] = 20.0  # this machine takes twice as long
    assert clock.left({"b": 0.0, "c": 0.0}, ["d"]) == 60 + 200
    assert clock.left({"b": 35.0, "c": 90.0}, []) == 5  # c has had its time
    shared = execute.Clock({"a": 10.0, "b": 20.0}, workers=2, shared=1.5)
    assert shared.left({"a": 0.0, "b": 15.0}, ["b"]) == 15 + 20
    assert execute.Clock({}, workers=2).left({"a": 0.0, "b": 0.0, "c": 0.0}, []) == 120


def test_the_longest_begin_first() -> None:
    assert execute.together([1, 1, 1, 3], 2) == 3
    assert execute.together([], 3) == 0


def test_notebooks_that_time_things_run_alone() -> None:
    """Those that alternate timed runs, and those that start processes which wait for each other."""
    timed = re.compile(r"take_turns\(|perf_counter|torchrun\(|\bmemory\.run\(|runs\.run\(")
    found = set()
    for path in notebooks(ROOT):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if timed.search("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")):
            found.add(path.stem)
    assert found == set(execute.ALONE)


def test_a_first_build_knows_how_long_each_takes() -> None:
    known = json.loads(execute.MEASURED.read_text(encoding="utf-8"))
    assert set(known) == {path.stem for path in notebooks(ROOT) if has_code(path)}
    assert all(seconds > 0 for seconds in known.values())


# --- Executing ----------------------------------------------------------------------------------


def notebook(path: Path, *cells: str) -> Path:
    code = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None,
         "outputs": [], "source": source}
        for i, source in enumerate(cells)
    ]  # fmt: skip
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Title"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    content = {"cells": [title, *code], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


LOG = "open('log', 'a').write(str(len(os.sched_getaffinity(0))) + os.environ['OMP_NUM_THREADS'])"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given on Linux alone")
def test_executed_side_by_side_once_and_found_by_sphinx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(execute, "ALONE", ("03_alone",))
    book = tmp_path / "notebooks"
    good = notebook(book / "01_good.ipynb", f"import os\n{LOG};", "print('this', 'was executed')")
    bad = notebook(book / "02_bad.ipynb", "1 + 1", "1 / 0")
    alone = notebook(book / "03_alone.ipynb", "import os\nprint('OMP_NUM_THREADS' in os.environ)")
    core = execute.cores()[0]
    build = execute.Build(tmp_path, [good, bad, alone], [[core], [core]])
    plan = build.plan()
    assert plan.startswith(
        "To execute: 01_good, 02_bad, 03_alone\n3 in all, 2 side by side, then 1"
    )
    build.run()
    said = capsys.readouterr().out
    assert set(build.errors) == {"02_bad"}
    assert "ExecutionError: notebooks/02_bad.ipynb, cell 3: ZeroDivisionError" in said
    assert "3 of 3: 03_alone done," in said and " left" in said.splitlines()[-2]
    assert (book / "log").read_text() == "11", "one core, one thread"
    assert list(json.loads((tmp_path / "build" / "seconds.json").read_text())) == [
        "01_good", "03_alone",
    ]  # fmt: skip

    cache = execute.cache_of(tmp_path)
    assert [execute.is_executed(cache, path) for path in (good, bad, alone)] == [True, False, True]
    _, merged = cache.merge_match_into_notebook(execute.read(alone))
    assert merged.cells[1].outputs[0].text == "False\n", "alone, it has the threads it wants"

    # And MyST-NB, with the same cache, shows the outputs without executing anything.
    sphinx = pytest.importorskip("sphinx.application")
    bad.unlink(), alone.unlink()
    (book / "conf.py").write_text(
        "extensions = ['myst_nb']\nroot_doc = '01_good'\nnb_execution_mode = 'cache'\n"
        f"nb_execution_cache_path = {str(cache.path)!r}\n"
    )
    folders = [str(book), str(book), str(tmp_path / "html"), str(tmp_path / "doctrees")]
    sphinx.Sphinx(*folders, "html", status=None, warning=None).build()
    assert "this was executed" in (tmp_path / "html" / "01_good.html").read_text()
    assert (book / "log").read_text() == "11", "it was executed once"

    notebook(good, f"import os\n{LOG};", "print('changed')")
    assert not execute.is_executed(cache, good)
    assert execute.Build(tmp_path, [], [[core]]).plan() == "Every notebook is executed already."
