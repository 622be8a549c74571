"""No page may show the output of code that has changed since.

The cache of executed notebooks is keyed on a notebook's own cells. A cell's output depends on
more: on minilora with its recordings, on the pinned packages and on Python. So each state of those
gets a cache folder of its own, and when it is another than last time Sphinx reads every page again.

The extension also names the notebook and the cell when a build fails, and prints the seconds that
each chapter took.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEEP = 3  # states whose executed notebooks are kept: going back to one of them costs nothing


def execution_files(root: Path) -> list[Path]:
    """The files, other than the notebook itself, that a notebook's outputs depend on."""
    package = [
        path
        for path in (root / "minilora").rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix != ".pyc"
        and not path.name.startswith(".")
    ]
    return sorted([*package, root / "constraints.txt", root / "pyproject.toml"])


def execution_key(root: Path, python: str | None = None) -> str:
    """A short hash of those files (names and bytes) and of the Python that runs them.

    Args:
        root: the repository.
        python: implementation and version; by default those of the running interpreter.
    """
    python = python or f"{platform.python_implementation()} {platform.python_version()}"
    digest = hashlib.sha256(python.encode())
    for path in execution_files(root):
        content = path.read_bytes() if path.is_file() else b"absent"
        digest.update(f"\0{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def notebooks(root: Path) -> list[Path]:
    """The chapters, and those pages of book/ that are notebooks."""
    return sorted([*(root / "notebooks").glob("*.ipynb"), *(root / "book").glob("*.ipynb")])


def has_code(notebook: Path) -> bool:
    """Whether a notebook has a cell to execute."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(cell["cell_type"] == "code" for cell in cells)


def forget_old(folder: Path, current: Path, keep: int = KEEP) -> None:
    """Delete all but the newest `keep` caches; `current` always stays."""
    others = [path for path in folder.glob("*") if path.is_dir() and path != current]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[keep - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def seconds_table(times: Iterable[tuple[str, float, bool]]) -> str:
    """Lines `seconds  chapter`, with a note where a stored execution was used."""
    rows = [
        f"  {seconds:6.1f} s  {name}" + ("" if fresh else "  (executed earlier)")
        for name, seconds, fresh in times
    ]
    return "\n".join(rows)


def failing_cell(notebook) -> str:
    """Which cell stopped an execution, and how: 'cell 7: NameError: …'."""
    for number, cell in enumerate(notebook["cells"], start=1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"cell {number}: {output['ename']}: {output['evalue']}"
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] == "code" and cell.get("execution_count") is None:
            return f"cell {number}: it did not finish"
    return "an unknown cell"


def _name_the_cell() -> None:
    """MyST-NB names the notebook that failed; say the cell as well."""
    from myst_nb.core.execute.base import ExecutionError
    from myst_nb.core.execute.cache import NotebookClientCache
    from nbclient.exceptions import DeadKernelError

    start = NotebookClientCache.start_client

    def start_client(self):
        try:
            start(self)
        except (ExecutionError, DeadKernelError) as error:
            where = Path(self.path).resolve().relative_to(ROOT).as_posix()
            raise ExecutionError(f"{where}, {failing_cell(self.notebook)}") from error

    NotebookClientCache.start_client = start_client


def _configure(app, config):
    key = execution_key(ROOT)
    config.execution_key = key
    folder = ROOT / "build" / "executed"
    current = folder / key
    current.mkdir(parents=True, exist_ok=True)
    current.touch()
    forget_old(folder, current)
    config.nb_execution_cache_path = str(current)
    only = os.environ.get("BOOK_ONLY_CHAPTER")  # set by `make chapter`
    config.nb_execution_excludepatterns = [
        *config.nb_execution_excludepatterns,
        *(
            path.relative_to(ROOT).as_posix()
            for path in notebooks(ROOT)
            if not has_code(path) or (only and path.stem != Path(only).name)
        ),
    ]


def _report(app, exception, began):
    known = getattr(app.env, "nb_metadata", {})  # None of it, where the build stopped early.
    ran = {name: known[name].get("exec_data") for name in sorted(known)}
    times = [
        (name, data["runtime"], data["mtime"] >= began)
        for name, data in ran.items()
        if data and data.get("runtime")
    ]
    if times:
        print("\nSeconds that each chapter's cells took:")
        print(seconds_table(times))


def setup(app):
    began = float(os.environ.get("BOOK_BEGAN", time.time()))  # set by build.py, which executes
    _name_the_cell()
    # 'env': another key makes Sphinx read every page again, not only the pages that changed.
    app.add_config_value("execution_key", "", "env", [str])
    # Before MyST-NB reads its configuration.
    app.connect("config-inited", _configure, priority=100)
    app.connect("build-finished", lambda app, exception: _report(app, exception, began))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
