"""Rules that every chapter keeps, read from its file alone."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETUP_MARK = "On Colab this installs the book's package"
SHORTEST_ALT = 30  # characters: "a plot" says nothing


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook: dict) -> str:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return "\n".join(text(cell) for cell in cells)


def code_lines(cell: dict) -> int:
    return sum(1 for line in text(cell).splitlines() if line.strip())


every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_nineteen_chapters_are_there_and_in_the_contents():
    numbers = [int(path.stem.split("_")[0]) for path in NOTEBOOKS]
    assert numbers == list(range(1, 20))
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert [name for name in listed if name.startswith("notebooks/")] == [
        f"notebooks/{path.stem}" for path in NOTEBOOKS
    ]
    for name in [toc["root"], *listed]:
        assert any((ROOT / f"{name}{suffix}").exists() for suffix in (".md", ".ipynb")), name


@every
def test_is_a_valid_notebook_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in code_cells(load(path)):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    ids = [cell["id"] for cell in load(path)["cells"]]
    assert len(ids) == len(set(ids)), "two cells share an id"


@every
def test_kernel_is_python3_without_a_version(path):
    metadata = load(path)["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "version" not in metadata.get("language_info", {})


@every
def test_begins_with_a_label_and_one_title(path):
    notebook = load(path)
    first = text(notebook["cells"][0])
    assert re.match(r"\(ch-[a-z]+\)=\n# \S", first), "begin with (ch-…)= and '# Title'"
    titles = re.findall(r"^# \S.*$", re.sub(r"```.*?```", "", prose(notebook), flags=re.S), re.M)
    assert len(titles) == 1, titles


def test_labels_are_each_used_once():
    seen: dict[str, str] = {}
    for path in NOTEBOOKS:
        notebook = load(path)
        body = prose(notebook)
        labels = re.findall(r"^\(([\w:.-]+)\)=$", body, re.M)
        labels += re.findall(r"^\$\$[ \t]*\(([\w:.-]+)\)", body, re.M)
        labels += re.findall(r"^:(?:label|name): *(\S+)", body, re.M)
        labels += [
            cell["metadata"]["mystnb"]["figure"]["name"]
            for cell in code_cells(notebook)
            if "name" in cell["metadata"].get("mystnb", {}).get("figure", {})
        ]
        for label in labels:
            assert label not in seen, f"{label} is in {seen[label]} and in {path.stem}"
            seen[label] = path.stem


@every
def test_cells_are_short(path):
    """Median about 6 lines, nine in ten at most 20, none over 30; the rest belongs in minilora."""
    lengths = sorted(code_lines(cell) for cell in code_cells(load(path)))
    assert statistics.median(lengths) <= 8, lengths
    assert lengths[max(0, -(-9 * len(lengths) // 10) - 1)] <= 20, lengths
    assert lengths[-1] <= 30, lengths


@every
def test_more_prose_than_code(path):
    """At least eight words of prose for each line of code; solutions and set-up do not count."""
    notebook = load(path)
    lines = sum(
        code_lines(cell)
        for cell in code_cells(notebook)
        if SETUP_MARK not in text(cell) and "hide-cell" not in cell["metadata"].get("tags", [])
    )
    words = len(re.findall(r"[^\W\d_]+", prose(notebook)))
    assert words >= 8 * lines, f"{words} words for {lines} lines of code"


def test_set_up_cell_is_the_same_everywhere():
    cells = {}
    for path in NOTEBOOKS:
        first = code_cells(load(path))[0]
        assert SETUP_MARK in text(first), f"{path.stem}: the first code cell is not the set-up cell"
        cells[path.stem] = (text(first), json.dumps(first["metadata"], sort_keys=True))
    assert len(set(cells.values())) == 1, "the set-up cells differ"
    assert "SOURCE = None" in next(iter(cells.values()))[0], "only the published copy is filled in"


@every
def test_figures_have_alt_text_a_caption_and_a_name(path):
    """What the build checks for each picture drawn is here checked for each one announced."""
    for cell in code_cells(load(path)):
        options = cell["metadata"].get("mystnb", {})
        if not options:
            continue
        figure = options.get("figure", {})
        if figure or "image" in options:
            alt = options.get("image", {}).get("alt", "")
            assert len(alt) >= SHORTEST_ALT, f"{cell['id']}: say in the alt text what it shows"
            assert figure.get("caption", "").strip(), f"{cell['id']}: no caption"
            assert re.fullmatch(r"fig-[\w-]+", figure.get("name", "")), f"{cell['id']}: no name"
            assert alt.strip() != figure["caption"].strip(), "alt text is no copy of the caption"


@every
def test_no_markdown_picture_is_silent(path):
    assert re.findall(r"!\[\s*\]\(", prose(load(path))) == []


@every
def test_glue_works_without_jupyter_book(path):
    """Colab has no myst_nb: glue comes from minilora.lab.plotting."""
    for cell in code_cells(load(path)):
        assert not re.search(r"(from|import) +myst_nb", text(cell))


@every
def test_what_is_hidden_is_hidden_everywhere(path):
    """Solutions and plumbing: in the page (hide-cell, remove-cell), in JupyterLab (source_hidden)
    and on Colab (cellView: form). The set-up cell is for notebooks: only the page leaves it out."""
    for cell in code_cells(load(path)):
        metadata = cell["metadata"]
        if SETUP_MARK in text(cell):
            assert metadata == {"tags": ["remove-cell"]}
            continue
        marks = [
            not {"hide-cell", "remove-cell"}.isdisjoint(metadata.get("tags", [])),
            metadata.get("jupyter", {}).get("source_hidden", False),
            metadata.get("cellView") == "form",
        ]
        assert all(marks) or not any(marks), f"{cell['id']}: {marks}"


@every
def test_has_exercises_with_solutions(path):
    notebook = load(path)
    boxes = re.findall(r"^[`:]{3,}\{exercise(?:-start)?\}(.*)$", prose(notebook), re.M)
    assert 3 <= len(boxes) <= 5, f"{len(boxes)} exercises"
    assert all("★" in title for title in boxes), "a title says how hard: ★ to ★★★"
    solutions = [c for c in code_cells(notebook) if "hide-cell" in c["metadata"].get("tags", [])]
    assert len(solutions) >= len(boxes), "an exercise has no solution cell"
