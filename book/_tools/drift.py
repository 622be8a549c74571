"""Which numbers of the book, and which claims, come out otherwise in another build?

    python book/_tools/drift.py BEFORE AFTER [--conclusions JUNIT.xml] [--summary FILE]

BEFORE and AFTER are folders with the values that two builds glued (build/_build/jupyter_execute, or
a copy of its *.glue.json): for example one with the pinned PyTorch and one with the next. A value
has drifted when it changed by more than its tolerance, when it changed its sign, or when its words
changed. --conclusions is what pytest wrote of tests/notebooks/test_conclusions.py after the second
build. The report names the chapters and the claims of book/claims.md that rest on them. Exits with
1 where something drifted or a conclusion no longer holds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import colab

ROOT = Path(__file__).resolve().parents[2]
#: A relative change that the order of sums, or another seed, can bring about in a trained model.
TOLERANCE = 0.1
#: Smaller than this in both builds is zero.
ZERO = 1e-6
#: Values that are no result of the mathematics: times, and what depends on the machine.
OF_THE_MACHINE = re.compile(r"second|minute|hours|time|slower|faster|lent|latency|(^|-)ms(-|$)")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?")
Values = dict[str, object]


@dataclass(frozen=True)
class Drift:
    """One glued value that came out otherwise."""

    name: str
    before: object
    after: object
    how: str


def values_of(folder: Path) -> dict[str, Values]:
    """page -> name -> value, from every *.glue.json below a folder."""
    found: dict[str, Values] = {}
    for path in sorted(folder.rglob("*.glue.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        found[path.name.removesuffix(".glue.json")] = colab.glued_values(stored)
    return found


def _numbers(value: object) -> tuple[str, list[float]]:
    """The words of a value without its numbers, and the numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return repr(value), []
    text = str(value).replace("−", "-").replace("–", " to ")
    return NUMBER.sub("#", text), [float(n.replace(",", "")) for n in NUMBER.findall(text)]


def apart(before: float, after: float, tolerance: float) -> str:
    """How two numbers differ; '' where they do not by more than the tolerance."""
    largest = max(abs(before), abs(after))
    if before == after or largest < ZERO:
        return ""
    if before * after < 0:
        return "another sign"
    if before == int(before) and after == int(after) and abs(before - after) <= 1:
        return ""  # a count, one more or less
    change = abs(after - before) / largest
    return f"by {change:.0%}" if change > tolerance else ""


def drifted(before: Values, after: Values, tolerance: float = TOLERANCE) -> list[Drift]:
    """The values of one page that came out otherwise, also those that only one build has."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        if OF_THE_MACHINE.search(name):
            continue
        if name not in before or name not in after:
            gone = "is new" if name not in before else "is gone"
            found.append(Drift(name, before.get(name), after.get(name), gone))
            continue
        words, numbers = _numbers(before[name])
        words_after, numbers_after = _numbers(after[name])
        if words != words_after or len(numbers) != len(numbers_after):
            found.append(Drift(name, before[name], after[name], "other words"))
            continue
        how = [apart(a, b, tolerance) for a, b in zip(numbers, numbers_after)]
        if worst := next((h for h in sorted(how, key=len, reverse=True) if h), ""):
            found.append(Drift(name, before[name], after[name], worst))
    return found


# --- What rests on a chapter --------------------------------------------------------------------


def chapter_of_label() -> dict[str, str]:
    """'ch-lora' -> '08_lora_transformer', and so for the labels of its sections."""
    labels = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        labels |= dict.fromkeys(re.findall(r"\"\(([\w-]+)\)=", text), path.stem)
    return labels


def claims(page: str, chapters: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """(claim, chapters that test it) for every row of the claims page's tables."""
    found = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) < 3:
            continue
        labels = re.findall(r"\{ref\}`(?:[^`<]*<)?([\w-]+)>?`", cells[1])
        tested = list(dict.fromkeys(chapters[label] for label in labels if label in chapters))
        if tested:
            found.append((cells[0], tested))
    return found


def failed_conclusions(junit: Path) -> list[tuple[str, str]]:
    """(chapter's two digits, sentence) for every conclusion that a run contradicts."""
    if not junit.exists():
        return [("", f"They could not be tested: there is no {junit}.")]
    found = []
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = case.get("name", "")
        if case.find("failure") is None and case.find("error") is None:
            continue
        if (part := re.search(r"\[(\d\d): (.*)\]$", name)) and "the_run_says" in name:
            found.append((part[1], part[2]))
        else:
            found.append(("", name))
    return found


def report(
    found: Mapping[str, list[Drift]],
    failed: list[tuple[str, str]],
    rest: list[tuple[str, list[str]]],
) -> str:
    """Markdown: conclusions that do not hold, claims that rest on chapters that drifted, values."""
    lines = ["### Conclusions that no longer hold", ""]
    lines += [f"- chapter {int(n)}: {what}" if n else f"- {what}" for n, what in failed] or [
        "None."
    ]
    numbers = {number for number, _ in failed}
    contradicted = [(c, t) for c, t in rest if any(one[:2] in numbers for one in t)]
    moved = [(c, t) for c, t in rest if any(found.get(one) for one in t)]
    lines += ["", "### Claims whose chapters say something else now", ""]
    lines += [f"- {claim} ({', '.join(tested)})" for claim, tested in contradicted] or ["None."]
    lines += ["", "### Claims whose chapters' numbers drifted", ""]
    for claim, tested in moved:
        counts = [f"{one}: {len(found[one])}" for one in tested if found.get(one)]
        lines.append(f"- {claim} ({', '.join(counts)})")
    lines += [] if moved else ["None."]
    lines += ["", "### Values", ""]
    for page, drifts in found.items():
        if drifts:
            lines += [f"**{page}**", "", "| value | before | after | |", "|---|---|---|---|"]
            lines += [f"| {d.name} | {d.before} | {d.after} | {d.how} |" for d in drifts] + [""]
    return "\n".join([*lines, "" if any(found.values()) else "None."]).strip()


def _say(text: str, summary: Path | None) -> None:
    print(text)
    if summary:
        with summary.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--conclusions", type=Path, default=None, help="pytest's junit file")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative; default .1")
    parser.add_argument("--summary", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args(arguments)
    before, after = values_of(options.before), values_of(options.after)
    if not before or not after:
        empty = options.after if before else options.before
        _say(f"No glued values below {empty}: was the book built there?", options.summary)
        return 2
    found = {
        page: drifted(before.get(page, {}), after.get(page, {}), options.tolerance)
        for page in sorted(before.keys() | after.keys())
    }
    failed = failed_conclusions(options.conclusions) if options.conclusions else []
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    _say(report(found, failed, claims(page, chapter_of_label())), options.summary)
    return int(bool(failed) or any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
