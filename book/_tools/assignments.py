"""Write the chapters without their solutions, for those who teach a class.

    python book/_tools/assignments.py [OUT]

The notebooks are in plain Markdown, as those for Colab are, so that any notebook program shows
them; the exercises' checks work, and tell the students what is wrong. Needs a built site.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import colab

ROOT = Path(__file__).resolve().parents[2]


def is_solution(cell: dict) -> bool:
    """Solutions are marked for the page, for JupyterLab and for Colab; one mark is enough.

    A cell that is not on the page at all is plumbing, which other cells may need.
    """
    metadata = cell["metadata"]
    if "remove-cell" in metadata.get("tags", []):
        return False
    return cell["cell_type"] == "code" and (
        "hide-cell" in metadata.get("tags", [])
        or metadata.get("jupyter", {}).get("source_hidden", False)
        or metadata.get("cellView") == "form"
    )


def without_solutions(notebook: dict) -> dict:
    """The notebook, every solution cell left out."""
    return {**notebook, "cells": [c for c in notebook["cells"] if not is_solution(c)]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build" / "assignments")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    options = parser.parse_args()
    if not (options.build / "_build" / ".doctrees" / "environment.pickle").exists():
        print("There is no built site yet: run 'make book' first.", file=sys.stderr)
        return 1
    known = colab.lookups_of_site(options.build, "")
    try:
        written = colab.write_plain(options.build, options.out, known, None, without_solutions)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{written} notebooks without solutions in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
