"""Execute the published notebooks in this environment, as a reader on Colab does.

    python book/_tools/colab_run.py FOLDER [--only PART] [--summary FILE]

For Colab's own container image; .github/workflows/colab.yml runs it there every week. FOLDER is a
checkout of the branch `colab`. Each notebook gets a kernel of its own, in its own folder. Besides
errors in cells it reports every package that is another one afterwards: the set-up cell may add
minilora and must leave all else alone. Exits with 1 in either case. Needs nbclient and nbformat.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL_SECONDS = 1800
LIST = (
    "from importlib import metadata\n"
    "for d in metadata.distributions(): print(d.metadata['Name'], d.version)"
)


@dataclass(frozen=True)
class Run:
    """One notebook: how long it took, and what stopped it ('' where nothing did)."""

    name: str
    seconds: float
    error: str


def packages() -> dict[str, str]:
    """name -> version of what is installed, seen by a Python of its own."""
    said = subprocess.check_output([sys.executable, "-c", LIST], text=True)
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is another package, or gone, or new and not minilora; one line each."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name != "minilora" and before.get(name) != after.get(name):
            lines.append(f"{name}: {before.get(name, 'absent')} → {after.get(name, 'absent')}")
    return lines


def execute(path: Path, timeout: int = CELL_SECONDS) -> Run:
    """Run one notebook from its first cell to its last, or to the first error."""
    notebook = nbformat.read(path, as_version=4)
    began, error = time.monotonic(), ""
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
        error = str(problem)
    return Run(path.stem, time.monotonic() - began, error)


def report(runs: list[Run], changed: list[str]) -> str:
    """A table of the notebooks, and the errors in full below it."""
    lines = ["| notebook | minutes | |", "|---|---|---|"]
    for one in runs:
        lines.append(
            f"| {one.name} | {one.seconds / 60:.1f} | {'FAILED' if one.error else 'ran'} |"
        )
    lines += ["", "Packages that were changed: " + ("; ".join(changed) if changed else "none.")]
    for one in runs:
        if one.error:
            lines += ["", f"**{one.name}**", "", "```text", one.error.strip()[-3000:], "```"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="notebooks whose name has this in it")
    parser.add_argument("--summary", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args(arguments)
    paths = sorted(p for p in options.folder.rglob("*.ipynb") if options.only in p.stem)
    if not paths:
        print(f"No notebooks below {options.folder}.", file=sys.stderr)
        return 2
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    before, runs = packages(), []
    for path in paths:
        runs.append(execute(path))
        print(f"{path.stem}: {runs[-1].seconds:.0f} s {runs[-1].error[-2000:]}", flush=True)
    changed = changes(before, packages())
    text = report(runs, changed)
    print(text)
    if options.summary:
        with options.summary.open("a", encoding="utf-8") as file:
            file.write(f"## The notebooks on Colab's image\n\n{text}\n")
    return int(bool(changed) or any(one.error for one in runs))


if __name__ == "__main__":
    sys.exit(main())
