"""The workflows in .github, as far as that can be seen without running them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import colab_run
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {("on" if key is True else key): value for key, value in found.items()}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@every
def test_a_workflow_says_what_it_may_do_and_when_it_stops(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] == path.stem
    for job in workflow["jobs"].values():
        assert "permissions" in workflow or "permissions" in job
        assert "timeout-minutes" in job or any("deploy" in s.get("uses", "") for s in job["steps"])
    if "schedule" in workflow["on"]:
        assert "workflow_dispatch" in workflow["on"], "one must be able to start it by hand"
        (entry,) = workflow["on"]["schedule"]
        minute, hour, day, month, weekday = entry["cron"].split()
        assert minute != "0" and (day, month) == ("*", "*") and weekday.isdigit() and hour.isdigit()


@every
def test_steps_are_pinned_and_name_files_that_exist(path: Path) -> None:
    for step in steps(load(path)):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
        for name in re.findall(r"(?:book/_tools|tests)/[\w/.]+\.py", step.get("run", "")):
            assert (ROOT / name).is_file(), name


def test_one_action_has_one_version() -> None:
    used = {s["uses"] for path in WORKFLOWS for s in steps(load(path)) if "uses" in s}
    assert len(used) == len({one.partition("@")[0] for one in used})


def test_weekly_workflows_do_not_start_together() -> None:
    times = [load(p)["on"]["schedule"][0]["cron"] for p in WORKFLOWS if "schedule" in load(p)["on"]]
    assert len(times) >= 4 and len({t.split()[-1] for t in times}) == len(times)


# --- colab_run.py -------------------------------------------------------------------------------


def notebook(path: Path, *cells: str) -> None:
    code = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None,
         "outputs": [], "source": source}
        for i, source in enumerate(cells)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    content = {"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_notebook_that_stops_fails_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook(tmp_path / "notebooks" / "01_bad.ipynb", "1 / 0", "open('too far', 'w')")
    notebook(tmp_path / "notebooks" / "02_good.ipynb", "open('ran', 'w').close()")
    summary = tmp_path / "summary.md"
    assert colab_run.main([str(tmp_path), "--summary", str(summary)]) == 1
    assert (tmp_path / "notebooks" / "ran").exists()
    assert not (tmp_path / "notebooks" / "too far").exists()
    text = summary.read_text(encoding="utf-8")
    assert "| 01_bad | 0.0 | FAILED |" in text or "| 01_bad | 0.1 | FAILED |" in text
    assert "| ran |" in text and "ZeroDivisionError" in text and "changed: none." in text
    assert colab_run.main([str(tmp_path), "--only", "good"]) == 0
    assert colab_run.main([str(tmp_path / "nowhere")]) == 2


def test_a_package_that_is_another_one_afterwards_is_named() -> None:
    before = {"torch": "2.9.0", "numpy": "2.0.2", "tqdm": "4.67.1"}
    after = {"torch": "2.13.0", "numpy": "2.0.2", "minilora": "0.1.0", "nvidia": "13"}
    assert colab_run.changes(before, after) == [
        "nvidia: absent → 13",
        "torch: 2.9.0 → 2.13.0",
        "tqdm: 4.67.1 → absent",
    ]
    assert colab_run.changes(before, before | {"minilora": "0.1.0"}) == []
