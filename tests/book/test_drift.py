"""book/_tools/drift.py: what has changed between two builds, and which claims rest on it."""

from __future__ import annotations

import json
from pathlib import Path

import drift
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        (0.5, 0.5, ""),
        (0.50, 0.52, ""),
        (0.50, 0.60, "by 17%"),
        (0.001, -0.001, "another sign"),
        (1e-9, -1e-9, ""),
        (0.0, 0.3, "by 100%"),
        (7, 8, ""),
        (7, 9, "by 22%"),
        (float("nan"), 0.5, "other words"),
        (float("nan"), float("nan"), ""),
        ("−0.012", "0.012", "another sign"),
        ("1,024 of 4,096", "1,030 of 4,096", ""),
        ("1,024 of 4,096", "1,024 of 8,192", "by 50%"),
        ("between 2 and 3", "above 2", "other words"),
        ("rank 8", "rank 8", ""),
        (True, False, "other words"),
        (["a", 1], ["a", 2], "other words"),
    ],
)
def test_what_counts_as_drift(before: object, after: object, how: str) -> None:
    found = drift.drifted({"x": before}, {"x": after})
    assert [one.how for one in found] == ([how] if how else [])


def test_values_of_one_build_alone_and_times() -> None:
    found = drift.drifted({"gone": 1.0, "lm-minutes": 3.0}, {"new": 1.0, "lm-minutes": 30.0})
    assert [(one.name, one.how) for one in found] == [("gone", "is gone"), ("new", "is new")]


def test_the_worst_number_is_named() -> None:
    (one,) = drift.drifted({"x": "0.10 and 2"}, {"x": "0.50 and −2"})
    assert one.how == "another sign"


def build(folder: Path, **values: str) -> Path:
    """What a build leaves of chapter 8."""
    stored = {name: {"data": {"text/plain": shown}} for name, shown in values.items()}
    path = folder / "notebooks" / "08_lora_transformer.glue.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stored))
    return folder


JUNIT = """<testsuites><testsuite name="pytest">
<testcase name="test_the_run_says_the_same[09: a sentence]"><failure message="x"/></testcase>
<testcase name="test_the_run_says_the_same[10: another]"/>
</testsuite></testsuites>"""


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = build(tmp_path / "before", **{"lead": "np.float64(0.02)", "share": "0.9"})
    same = build(tmp_path / "same", **{"lead": "0.0201", "share": "0.9"})
    after = build(tmp_path / "after", **{"lead": "-0.01", "share": "0.9"})
    assert drift.main([str(before), str(same)]) == 0
    assert "None." in capsys.readouterr().out
    summary = tmp_path / "summary.md"
    assert drift.main([str(before), str(after), "--summary", str(summary)]) == 1
    capsys.readouterr()
    text = summary.read_text()
    assert "| lead | 0.02 | -0.01 | another sign |" in text and "share" not in text
    assert "LoRA needs little data. [データ量] (08_lora_transformer: 1)" in text
    assert "Training is shorter" not in text  # that claim rests on chapter 11

    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT)
    assert drift.main([str(before), str(same), "--conclusions", str(junit)]) == 1
    said = capsys.readouterr().out
    assert "- chapter 9: a sentence" in said and "chapter 10" not in said
    assert "Training is more stable. [学習の安定性] (09_learning_rate)" in said
    assert drift.main([str(before), str(same), "--conclusions", str(tmp_path / "none")]) == 1
    assert "could not be tested" in capsys.readouterr().out
    assert drift.main([str(before), str(tmp_path / "nothing")]) == 2


def test_every_claim_of_the_page_is_found_with_its_chapters() -> None:
    """Also where a formula has a bar in it; rows that name no chapter are steps and the like."""
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    chapters = drift.chapter_of_label()
    assert len(set(chapters.values())) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    rows = [line for line in page.splitlines() if line.startswith("|") and "{ref}`" in line]
    steps = [line for line in rows if line.startswith("| Step ")]  # they name their chapters last
    found = drift.claims(page, chapters)
    assert len(found) == len(rows) - len(steps) and len(steps) == 4
    assert all(claim and tested for claim, tested in found)
