"""Write the page that says what works with what, from the list of tests that show it.

    python book/_tools/capabilities.py [--check]

The list is tests/capabilities.toml. Every field of the page's tables stands for tests, or is empty.
--check writes nothing and exits with 1 where the page is not what the list makes of it.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests" / "capabilities.toml"
PAGE = ROOT / "book" / "capabilities.md"

INTRODUCTION = """\
(capabilities)=
# What works with what

<!-- Written by book/_tools/capabilities.py from tests/capabilities.toml. Change the list, and run
     the tool again. -->

Which layers can `minilora` adapt, and what can you do with the adapter then? Look up your layer, \
setting or model in the first column. ✓: a test of the repository does it and compares the result \
with the formula, with the model before, or with PEFT. *refused*: a test asks for it and gets an \
error that says why. **An empty field means that no test looks**: it may work, so try it and \
compare. The tests run on every change, on Python 3.11 to 3.13. Their names stand below each \
table; point at a field with the mouse to see the first.

The columns:

- **add and train**: `add_lora` puts the adapter there, and the output is what it should be; or \
it trains.
- **merge**: `merge` and back; where the test is `test_merge`, `remove_lora(keep_update=True)` too.
- **save**: `save`, and `load` into a fresh copy of the base.
- **PEFT reads it**, **reads PEFT's**: a folder that one of the two wrote gives the same model in \
the other.
- **serve**: `AdapterBank`, many adapters in one batch.
- **tools**: at least one of the commands on files, as the tests say: `minilora resize`, `add`, \
`merge`, `extract`, `convert`; *refused*: the one that its test asks for.
"""


@dataclass(frozen=True)
class Field:
    """One field of a table: the tests, and whether what they show is a refusal."""

    tests: tuple[str, ...]
    refused: bool = False

    def text(self) -> str:
        """✓ or 'refused'; the first test's name is the title."""
        name = self.tests[0].partition("::")[2]
        more = f" and {len(self.tests) - 1} more" if len(self.tests) > 1 else ""
        return f"{{abbr}}`{'refused' if self.refused else '✓'} ({name}{more})`"


@dataclass(frozen=True)
class Section:
    """One table."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Field]]


def sections(path: Path = LIST) -> list[Section]:
    """The tables of the list.

    Raises:
        ValueError: A row has a column that its table has not, or a field without tests.
    """
    found = []
    for one in tomllib.loads(path.read_text(encoding="utf-8"))["section"]:
        rows: dict[str, dict[str, Field]] = {}
        for name, row in one["rows"].items():
            rows[name] = {}
            for column, value in row.items():
                refused = isinstance(value, dict)
                tests = tuple(value["refused"] if refused else value)
                if column not in one["columns"] or not tests:
                    raise ValueError(f"{one['title']}, {name}: what is {column!r} with {value}?")
                rows[name][column] = Field(tests, refused)
        found.append(Section(one["title"], one["text"], tuple(one["columns"]), rows))
    return found


def tests_named(found: list[Section]) -> Iterator[str]:
    """Every test of the list, its path below tests/."""
    for section in found:
        for row in section.rows.values():
            for field in row.values():
                yield from field.tests


def table(section: Section) -> str:
    """A section in MyST Markdown: its table, and its tests in a box that opens."""
    lines = [f"## {section.title}", "", section.text, "", ":::{div} capabilities", ""]
    lines.append(f"| {section.title} | " + " | ".join(section.columns) + " |")
    lines.append("|---|" + ":-:|" * len(section.columns))
    for name, row in section.rows.items():
        fields = (row[column].text() if column in row else " " for column in section.columns)
        lines.append(f"| {name} | " + " | ".join(fields) + " |")
    lines += ["", ":::", "", ":::{dropdown} The tests of this table", ""]
    for name, row in section.rows.items():
        lines.append(f"- {name}")
        for column, field in row.items():
            says = " (refused)" if field.refused else ""
            shown = ", ".join(f"`{test}`" for test in field.tests)
            lines.append(f"  - {column}{says}: {shown}")
    return "\n".join([*lines, "", ":::", ""])


def page(found: list[Section]) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *map(table, found)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say whether the page is up to date")
    options = parser.parse_args(arguments)
    text = page(sections())
    shown = PAGE.relative_to(ROOT)
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        print(f"{shown} is written.")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{shown} is not what {LIST.relative_to(ROOT)} makes of it: run", file=sys.stderr)
        print("  python book/_tools/capabilities.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
