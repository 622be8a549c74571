"""The page of what works with what: every field names tests that exist, and it is up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import capabilities
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_list_makes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert capabilities.main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_was_edited_by_hand_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capabilities, "ROOT", tmp_path)
    monkeypatch.setattr(capabilities, "LIST", tmp_path / "list.toml")
    monkeypatch.setattr(capabilities, "PAGE", tmp_path / "page.md")
    (tmp_path / "list.toml").write_text(
        '[[section]]\ntitle = "T"\ntext = "What."\ncolumns = ["merge", "save"]\n'
        '[section.rows.Linear]\nmerge = ["a.py::test_m[1]", "a.py::test_n"]\n'
        "[section.rows.Tied]\nmerge = { refused = ['a.py::test_r'] }\n"
    )
    monkeypatch.setattr(capabilities.sections, "__defaults__", (tmp_path / "list.toml",))
    assert capabilities.main(["--check"]) == 1 and "run" in capsys.readouterr().err
    assert capabilities.main([]) == 0 and capabilities.main(["--check"]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "| Linear | {abbr}`✓ (test_m[1] and 1 more)` |   |" in text
    assert "| Tied | {abbr}`refused (test_r)` |   |" in text
    assert "- merge (refused): `a.py::test_r`" in text
    (tmp_path / "page.md").write_text(text.replace("refused (", "✓ ("))
    assert capabilities.main(["--check"]) == 1
    (tmp_path / "list.toml").write_text(
        '[[section]]\ntitle = "T"\ntext = "W"\ncolumns = ["merge"]\n[section.rows.L]\nsave = ["x"]'
    )
    with pytest.raises(ValueError, match="save"):
        capabilities.main([])


@pytest.mark.slow
def test_every_test_that_the_page_names_exists() -> None:
    """As pytest collects them. A name without brackets stands for all cases of that test."""
    named = set(capabilities.tests_named(capabilities.sections()))
    files = sorted({name.partition("::")[0] for name in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider",
         *(f"tests/{file}" for file in files)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
    )  # fmt: skip
    found = {line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}
    found |= {re.sub(r"\[.*", "", line) for line in found}
    assert done.returncode == 0, done.stdout[-2000:]
    assert named - found == set()


def test_a_refusal_is_shown_by_a_test_that_expects_an_error() -> None:
    """Its body, or the helper that it calls, must name an error or a refusal."""
    for section in capabilities.sections():
        for name, row in section.rows.items():
            for field in row.values():
                for test in field.tests if field.refused else ():
                    file, _, function = re.sub(r"\[.*", "", test).partition("::")
                    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
                    body = text.split(f"def {function}(")[1].split("\ndef ")[0]
                    assert re.search(r"[Ee]rror|raises|refuse|\bno\(|not_loaded|forbidden", body), (
                        name,
                        test,
                    )
