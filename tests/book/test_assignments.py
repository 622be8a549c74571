"""book/_tools/assignments.py: the chapters without their solutions."""

from __future__ import annotations

import json
from pathlib import Path

import assignments
import colab
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_the_solutions_are_gone(path):
    before, after = load(path), assignments.without_solutions(load(path))
    nbformat.validate(nbformat.from_dict(after))
    gone = [c for c in before["cells"] if c not in after["cells"]]
    assert all(source(c).startswith("# Solution") for c in gone)
    assert not any(source(c).startswith("# Solution") for c in after["cells"])
    stubs = [c for c in after["cells"] if "# your code" in source(c)]
    assert len(stubs) >= len(gone) - 1  # a solution may have a second cell


@pytest.mark.parametrize(
    "metadata",
    [{"tags": ["hide-cell"]}, {"jupyter": {"source_hidden": True}}, {"cellView": "form"}],
)
def test_one_mark_is_enough(metadata):
    cell = {"cell_type": "code", "metadata": metadata, "source": ["1"]}
    kept = {"cell_type": "code", "metadata": {"tags": ["hide-input"]}, "source": ["2"]}
    plumbing = {"cell_type": "code", "metadata": {**metadata, "tags": ["remove-cell"]}}
    cells = [cell, kept, plumbing]
    assert assignments.without_solutions({"cells": cells})["cells"] == [kept, plumbing]


def test_the_written_files_are_plain_and_have_no_solutions(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["the {term}`rank` of it"]},
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {"tags": ["hide-cell"]},
            "source": ["# Solution"],
            "outputs": [],
            "execution_count": None,
        },
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebooks" / "01_one.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    out = tmp_path / "out"
    change = assignments.without_solutions
    assert colab.write_plain(tmp_path, out, colab.Lookups(), None, change) == 1
    written = load(out / "01_one.ipynb")["cells"]
    assert [source(c) for c in written] == ["the rank of it"]


def test_without_a_built_site_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["assignments.py", "--build", str(tmp_path)])
    assert assignments.main() == 1
    assert "make book" in capsys.readouterr().err
