"""Write the book as a PDF or an EPUB: `make pdf`, `make epub`.

    python book/_tools/paper.py pdf|epub [--output DIR]
    python book/_tools/paper.py packages    # what Debian calls the things that a PDF needs

Both come from the notebooks that `make book` has executed, and any that it has not are executed
now. Any warning is a failure, as it is for the site; of the PDF also a reference without a target,
a sign that no font has, and a line or table that sticks out of the page.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from build import ROOT, failed, jupyter_book, run, surroundings

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from repository import git

NAME = "lora-measured"
PACKAGES = (
    "texlive-xetex texlive-fonts-recommended fonts-texgyre fonts-texgyre-math fonts-dejavu-core "
    "fonts-ipaexfont-gothic fonts-ipaexfont-mincho poppler-utils"
)
TOO_WIDE = 20.0  # points, 7 mm: so far may a line stick out
PASSES = 5  # at most; three are usual: text, contents and references, and pages moved by these
BROKEN = (
    (re.compile(r"^! .*", re.M), "an error"),
    (re.compile(r"Missing character: .*"), "a sign that the font has not"),
    (re.compile(r"LaTeX Warning: (?:Hyper r|R)eference .*? undefined"), "a reference"),
    (re.compile(r"Hyper reference .*? undefined"), "a link"),
    (re.compile(r"multiply defined|duplicate ignored"), "an anchor that is there twice"),
)
STICKS_OUT = re.compile(r"Overfull \\([hv])box \(([\d.]+)pt too (?:wide|high)\)(.*)")


def log_of(folder: Path) -> str:
    """TeX's log with its lines, which it breaks after 79 signs, put together again."""
    text = (folder / f"{NAME}.log").read_text(encoding="utf-8", errors="replace")
    return re.sub(r"(?<=^.{79})\n", "", text, flags=re.M)


def overfull(log: str) -> list[tuple[float, str]]:
    """What sticks out of the page: points and where, the worst first."""
    found = [(float(m[2]), f"{m[1]}box{m[3]}") for m in STICKS_OUT.finditer(log)]
    return sorted(found, reverse=True)


def complaints(log: str) -> list[str]:
    """What is wrong with a PDF according to TeX's log."""
    found = [f"{what}: {match[0]}" for pattern, what in BROKEN for match in pattern.finditer(log)]
    found += [f"{points:.0f} pt too large: {where}" for points, where in overfull(log)
              if points > TOO_WIDE]  # fmt: skip
    return list(dict.fromkeys(found))


def typeset(folder: Path) -> list[str]:
    """Run XeLaTeX until page numbers stand still; return what is wrong."""
    known = None
    for turn in range(PASSES):
        began = time.time()
        command = ["xelatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
        answer = subprocess.run(
            [*command, "-no-pdf", f"{NAME}.tex"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        print(f"xelatex, pass {turn + 1}: {time.time() - began:.0f} s", flush=True)
        if answer.returncode != 0:
            return complaints(log_of(folder)) or [f"xelatex ended with {answer.returncode}"]
        seen = [(folder / f"{NAME}{end}").read_bytes() for end in (".aux", ".toc")]
        if seen == known:
            break
        known = seen
    else:
        return [f"page numbers still move in pass {PASSES}"]
    began = time.time()
    answer = subprocess.run(
        ["xdvipdfmx", "-q", "-E", "-o", f"{NAME}.pdf", f"{NAME}.xdv"],
        cwd=folder, stdin=subprocess.DEVNULL, text=True, capture_output=True, check=False,
    )  # fmt: skip
    print(f"xdvipdfmx: {time.time() - began:.0f} s", flush=True)
    wrong = complaints(log_of(folder))
    if answer.returncode != 0:
        wrong.append(answer.stderr.strip()[-500:])
    return wrong


def dated() -> dict[str, str]:
    """The last commit's time as that of the file: the same commit gives the same file."""
    stamp = git("log", "-1", "--format=%ct")
    return {"SOURCE_DATE_EPOCH": stamp} if stamp else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("format", choices=("pdf", "epub", "packages"))
    parser.add_argument("--output", default="build", help="folder for it (default: build)")
    parser.add_argument("--toc", default="book/_toc.yml", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.format == "packages":  # for .ci/run
        print(PACKAGES)
        return 0
    if options.format == "pdf" and not (shutil.which("xelatex") and shutil.which("xdvipdfmx")):
        print(f"make pdf needs XeLaTeX. On Debian or Ubuntu:\n  apt-get install "
              f"--no-install-recommends {PACKAGES}\nElsewhere: TeX Live or MacTeX with the fonts "
              "TeX Gyre, DejaVu and IPAex.", file=sys.stderr)  # fmt: skip
        return 2

    began = time.time()
    builder = {"pdf": "latex", "epub": "epub"}[options.format]
    folder = ROOT / options.output / "_build" / builder
    shutil.rmtree(folder, ignore_errors=True)
    wanted = ("-W", "--keep-going", "--builder", "custom", "--custom-builder", builder)
    command = jupyter_book(options.output, *wanted, toc=options.toc)
    code, wrong = run(command, surroundings() | dated())
    if code == 0 and options.format == "pdf":
        wrong = typeset(folder)
        worst = overfull(log_of(folder))[:3]
        if worst:
            print("What sticks out most:", *(f"{pt:.1f} pt, {what}" for pt, what in worst),
                  sep="\n  ")  # fmt: skip
        code = int(bool(wrong))
    if code != 0:
        return failed(code, wrong, f"The {options.format} was not written.")
    made = ROOT / options.output / f"{NAME}.{options.format}"
    shutil.copy(folder / made.name, made)
    size = made.stat().st_size / 1e6
    print(f"\nWritten in {time.time() - began:.0f} s, {size:.1f} MB:\n  {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
