"""What a result came from: the code behind it, its versions, the machine, the time."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[1]

#: Modules that note down where a result came from, and have no part in it.
WITNESSES = ("minilora.lab.provenance", "minilora.experiments.recording")


@functools.cache
def sources(module: str) -> tuple[str, ...]:
    """All modules of the package that one of them needs, itself among them, sorted.

    Read off the import statements, those inside functions included. A name that is imported from
    ``minilora`` itself counts as the module that it comes from; ``import minilora`` as all that are
    loaded with the package.
    """
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in found and name not in WITNESSES:
            found.add(name)
            todo += imported(name)
    return tuple(sorted(found))


@functools.cache
def imported(module: str) -> frozenset[str]:
    """The modules of the package that the import statements of one of them name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.split(".")[0] == "minilora")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minilora":
            found.update(_home(node.module or "", alias.name) for alias in node.names)
    return frozenset(found)


def _home(package: str, name: str) -> str:
    """The module that ``from package import name`` takes the name from."""
    if is_module(f"{package}.{name}"):
        return f"{package}.{name}"
    path = path_of(package)
    if path.name == "__init__.py":
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                if name in (alias.asname or alias.name for alias in node.names):
                    return _home(node.module, name)
    return package


def is_module(name: str) -> bool:
    """Whether the package has a module of that name."""
    stem = PACKAGE.parent / name.replace(".", "/")
    return stem.with_suffix(".py").is_file() or (stem / "__init__.py").is_file()


def path_of(module: str) -> Path:
    """The file of one of the package's modules."""
    stem = PACKAGE.parent / module.replace(".", "/")
    file = stem.with_suffix(".py")
    return file if file.is_file() else stem / "__init__.py"


def source_hash(modules: Iterable[str]) -> str:
    """A hash of what modules of this package do: 64 hex digits.

    Docstrings, comments and blank lines do not count, so that better words do not make a result
    stale.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        for line in code_lines(path_of(name)):
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def code_lines(path: Path) -> list[str]:
    """The lines of a file that hold code: no docstrings, no comments, no blank lines."""
    text = path.read_text(encoding="utf-8")
    words: set[int] = set()  # the lines that docstrings fill
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                words.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        line
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in words and line.strip() and not line.lstrip().startswith("#")
    ]


def versions() -> dict[str, str]:
    """The versions that settle the numbers."""
    import matplotlib
    import numpy
    import sklearn

    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"numpy": numpy.__version__, "scikit-learn": sklearn.__version__}
    found |= {"matplotlib": matplotlib.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def device_name(device: torch.device) -> str:
    """The card's own name, or the processor's, with the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} {device.type.upper()} cores ({platform.machine() or 'unknown'})"


def commit() -> str | None:
    """The commit of the code's own repository, or None: not a repository, or changed since."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed into somebody else's repository has no commit of its own.
    tracked = git("ls-files", "--error-unmatch", "__init__.py")
    # Recordings and unfinished work are results of the code, and no change of it.
    own = PACKAGE.as_posix(), f":(exclude){(PACKAGE / 'experiments' / 'recorded').as_posix()}"
    if not tracked or git("status", "--porcelain", "--", *own):
        return None
    return git("rev-parse", "HEAD")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has used so far: of the card's memory, else of its own.

    Off the card, the largest of the processes that it started counts as well.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(one).ru_maxrss for one in who)
