"""Build the site: `make book`, or `make chapter N=8`, or N=symptoms, for one page.

    python book/_tools/build.py [--chapter N] [--output DIR]

Any warning is a failure: a cell that raises, a broken reference, a figure without alt text. With
--chapter only that notebook is executed, into a site of its own, and only its warnings count.
Notebooks are executed by execute.py, which says for how long; Sphinx then finds them executed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ANSI = re.compile(r"\x1b\[[\d;]*m")
# The kernels' remark about the local network is no fault of the book.
NOISE = re.compile(r"Kernel is running over TCP without encryption|^\[etoc\] missing index\.html")
# MyST-NB writes 'notebook.ipynb:150002' for line 2 of its 15th cell.
PLACE = re.compile(r"\.ipynb:(\d+?)(\d{4})(?=:)")
# A page may name figures that other chapters' cells draw. With --chapter these are not executed;
# tests/book/test_practice.py and the whole build look at such names.
DRAWN_ELSEWHERE = re.compile(r"undefined label: 'fig-")
PROBLEM = re.compile(r"WARNING:|ERROR:|CRITICAL:|ExecutionError: |^\S*(?:Error|Exception): \S")


def chapters() -> dict[int, str]:
    """Chapter number -> 'notebooks/NN_name', from the table of contents."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    found = (re.fullmatch(r"notebooks/(\d+)_\w+", name) for name in files)
    return {int(match[1]): match[0] for match in found if match}


def page_of(asked: str) -> str | None:
    """'8' -> 'notebooks/08_name'; 'symptoms' -> 'book/symptoms', if that is a notebook."""
    if asked.isdigit():
        return chapters().get(int(asked))
    return f"book/{asked}" if asked and (ROOT / "book" / f"{asked}.ipynb").is_file() else None


def run(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command, pass its output on, and return its exit status and the problems in it."""
    problems: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        for line in process.stdout:
            bare = ANSI.sub("", line.rstrip("\n")).replace(f"{ROOT}{os.sep}", "")
            bare = PLACE.sub(lambda at: f".ipynb, cell {at[1]}, line {int(at[2])}", bare)
            if NOISE.search(bare):
                continue
            print(bare, flush=True)
            if PROBLEM.search(bare) and bare.strip() not in problems:
                problems.append(bare.strip())
    return process.returncode, problems


def failed(code: int, problems: list[str], what: str = "The book was not built.") -> int:
    """Say what is wrong, once more and last."""
    print(f"\n{what} What is wrong:", file=sys.stderr)
    print("\n".join(f"  {problem}" for problem in problems[:40]), file=sys.stderr)
    return code


def jupyter_book(output: str, *more: str, toc: str = "book/_toc.yml") -> list[str]:
    """The command with which Sphinx reads and writes the pages."""
    return [
        str(Path(sys.executable).with_name("jupyter-book")), "build", ".",
        "--config", "book/_config.yml", "--toc", toc, "--path-output", output, "-n", *more,
    ]  # fmt: skip


def surroundings() -> dict[str, str]:
    """The environment variables that a build runs with."""
    return os.environ | {
        # Not a fault of the book: the kernel that builds it has no widgets for progress bars.
        "PYTHONWARNINGS": "ignore:IProgress not found",
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this Python, not one from elsewhere
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's notice that would end up in outputs
        "PYTHONHASHSEED": "0",
        # The experiments that the pages run leave their results here, for tests/notebooks.
        "MINILORA_RUNS": str(ROOT / "build" / "runs"),
        # Threads that wait by spinning slow a busy machine down tenfold; these sleep.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def made_by_older_code(doctrees: Path, code: Path) -> bool:
    """Whether an extension in `code` changed after Sphinx kept what it had read in `doctrees`."""
    kept = doctrees / "environment.pickle"
    if not kept.exists():
        return False
    since = kept.stat().st_mtime
    return any(path.stat().st_mtime > since for path in code.rglob("*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chapter", default=None, help="number of the one chapter to build")
    parser.add_argument("--output", default="build", help="folder for the site (default: build)")
    options = parser.parse_args()

    environment = surroundings()
    page, output, strict = "book/index", options.output, ["-W", "--keep-going"]
    if options.chapter is not None:
        page = page_of(options.chapter)
        if page is None:
            print(f"Which chapter? make chapter N=1 to N={max(chapters())}", file=sys.stderr)
            return 2
        output, strict = f"{options.output}/chapter", []
        environment["BOOK_ONLY_CHAPTER"] = page

    began = time.time()
    environment["BOOK_BEGAN"] = str(began)  # what was executed since is not from an earlier build
    execute = [sys.executable, str(ROOT / "book" / "_tools" / "execute.py")]
    code, problems = run([*execute, *(["--only", page] if options.chapter else [])], environment)
    if code != 0:
        return failed(code, problems)
    doctrees = ROOT / output / "_build" / ".doctrees"
    if made_by_older_code(doctrees, ROOT / "book" / "_ext"):
        shutil.rmtree(doctrees)  # else Sphinx writes only the pages whose text changed
    print("\nSphinx reads and writes the pages now: a minute or two.", flush=True)
    code, problems = run(jupyter_book(output, *strict), environment)
    if options.chapter is not None:
        problems = [
            problem
            for problem in problems
            if code != 0 or (page in problem and not DRAWN_ELSEWHERE.search(problem))
        ]
        code = code or int(bool(problems))
    if code != 0:
        # Sphinx says what is wrong with a page when it reads it; make it read all of them again.
        shutil.rmtree(doctrees, ignore_errors=True)
        return failed(code, problems)
    shown = (ROOT / output / "_build" / "html" / f"{page}.html").resolve()
    print(f"\nBuilt in {time.time() - began:.0f} s. Open this page in a browser:\n  {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
