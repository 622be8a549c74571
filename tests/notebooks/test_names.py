"""What the page's bars over hidden code say, and what stays off the page."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import colab
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])
CONFIG = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def names(cell: dict) -> tuple[str | None, str | None]:
    """What the bar over a hidden cell says, closed and open, where the cell itself says so."""
    told = cell["metadata"].get("mystnb", {})
    return told.get("code_prompt_show"), told.get("code_prompt_hide")


@every
def test_a_solution_is_called_one(path):
    for cell in code_cells(path):
        if "hide-cell" in cell["metadata"].get("tags", []):
            assert names(cell) == ("Show the solution", "Hide the solution"), cell["id"]


@every
def test_other_hidden_code_is_a_figures_or_has_a_name(path):
    """The book's own words for a bar speak of a figure; a cell that draws none needs others."""
    default = CONFIG["sphinx"]["config"]["nb_code_prompt_show"]
    assert default == "Show the code of this figure"
    for cell in code_cells(path):
        tags = set(cell["metadata"].get("tags", []))
        figure = "figure" in cell["metadata"].get("mystnb", {})
        if tags & {"hide-input", "hide-output"}:
            named = all(names(cell))
            assert named is not figure, f"{cell['id']}: hidden, draws a figure: {figure}"
            assert not named or "figure" not in names(cell)[0]


@every
def test_cells_that_only_keep_numbers_are_off_the_page(path):
    """Nothing in a cell of glue(…) alone is for a reader."""
    for cell in code_cells(path):
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        try:
            lines = ast.parse(source).body
        except SyntaxError:
            continue  # the set-up cell's %pip stands within an if
        calls = [line.value for line in lines if isinstance(line, ast.Expr)]
        only = len(calls) == len(lines) and all(
            isinstance(call, ast.Call) and getattr(call.func, "id", "") == "glue" for call in calls
        )
        if only and lines:
            assert "remove-cell" in cell["metadata"].get("tags", []), cell["id"]


@every
def test_one_sign_for_transposes(path):
    r"""\top, in prose, captions and titles."""
    text = path.read_text(encoding="utf-8")
    for other in (r"\\mathsf", r"\\intercal", "^T$", "^{T}"):
        assert other not in text, other


@every
def test_the_set_up_cell_is_off_the_page_and_in_the_copy_for_colab(path):
    first = code_cells(path)[0]
    assert "SOURCE = None" in "".join(first["source"])
    assert first["metadata"]["tags"] == ["remove-cell"]
    notebook = {"cells": [first], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (kept,) = colab.convert(notebook, colab.Lookups(), "git+https://x.org/book@1")["cells"]
    assert 'SOURCE = "git+https://x.org/book@1"' in "".join(kept["source"])
