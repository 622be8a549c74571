"""The key under which executed notebooks are kept: what changes it, and what does not."""

from __future__ import annotations

import json

import freshness
import pytest

PYTHON = "CPython 3.11.7"


@pytest.fixture
def book(tmp_path):
    """A repository in miniature."""
    for name, content in {
        "minilora/__init__.py": "",
        "minilora/layers.py": "x = 1\n",
        "minilora/experiments/recorded/rank.gpu.json": "{}",
        "constraints.txt": "torch==2.13.0\n",
        "pyproject.toml": "[project]\n",
        "notebooks/01_rank.ipynb": "{}",
        "book/index.md": "# Title\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "minilora/layers.py",
        "minilora/experiments/recorded/rank.gpu.json",
        "constraints.txt",
        "pyproject.toml",
    ],
)
def test_key_changes_with_what_outputs_depend_on(book, name):
    before = freshness.execution_key(book, PYTHON)
    (book / name).write_text((book / name).read_text() + "\n# changed\n")
    assert freshness.execution_key(book, PYTHON) != before


def test_key_changes_when_a_file_comes_goes_or_moves(book):
    before = freshness.execution_key(book, PYTHON)
    (book / "minilora" / "svd.py").write_text("y = 2\n")
    added = freshness.execution_key(book, PYTHON)
    (book / "minilora" / "svd.py").rename(book / "minilora" / "dvs.py")
    moved = freshness.execution_key(book, PYTHON)
    (book / "minilora" / "dvs.py").unlink()
    assert len({before, added, moved}) == 3
    assert freshness.execution_key(book, PYTHON) == before


def test_key_does_not_confuse_content_that_moved_between_files(book):
    (book / "minilora" / "a.py").write_text("one")
    (book / "minilora" / "b.py").write_text("two")
    before = freshness.execution_key(book, PYTHON)
    (book / "minilora" / "a.py").write_text("onetwo")
    (book / "minilora" / "b.py").write_text("")
    assert freshness.execution_key(book, PYTHON) != before


def test_key_changes_with_python(book):
    keys = {
        freshness.execution_key(book, version)
        for version in ("CPython 3.11.7", "CPython 3.11.8", "CPython 3.13.0", "PyPy 3.11.7")
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "name",
    [
        "book/index.md",
        "notebooks/01_rank.ipynb",  # jupyter-cache looks at the notebook itself
        "README.md",
        "tests/test_layers.py",
        "minilora/__pycache__/layers.cpython-311.pyc",
        "minilora/.DS_Store",
    ],
)
def test_key_stays_with_what_outputs_do_not_depend_on(book, name):
    before = freshness.execution_key(book, PYTHON)
    (book / name).parent.mkdir(parents=True, exist_ok=True)
    (book / name).write_text("changed")
    assert freshness.execution_key(book, PYTHON) == before


def test_old_caches_are_forgotten_but_never_the_current_one(tmp_path):
    import os

    folders = [tmp_path / name for name in "abcde"]
    for age, folder in enumerate(folders):
        folder.mkdir()
        os.utime(folder, (age, age))
    freshness.forget_old(tmp_path, current=folders[0], keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d", "e"]


def test_a_notebook_without_code_is_not_executed(tmp_path):
    for name, kind in (("words", "markdown"), ("code", "code")):
        (tmp_path / name).write_text(json.dumps({"cells": [{"cell_type": kind, "source": []}]}))
    assert not freshness.has_code(tmp_path / "words")
    assert freshness.has_code(tmp_path / "code")
