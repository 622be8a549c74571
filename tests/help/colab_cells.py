"""Runs the first cells of notebooks as Colab does. Executed by another Python than the tests'.

    python colab_cells.py NOTEBOOKS.json RESULTS.json

NOTEBOOKS.json maps names to lists of code cells. Of every notebook the set-up cell and the cell
after it are run as they are; of the other cells only the imports, and not those of a cell whose
first line says that it needs a package which may be missing. RESULTS.json holds the problems of
each, in order, what is installed afterwards, and which torch and numpy were imported.
"""

import ast
import importlib
import json
import sys
from importlib import metadata

from IPython.core.interactiveshell import InteractiveShell

MAY_BE_PASSED_OVER = "# needs "


def imports(cell: str) -> str:
    """The import statements of a cell, wherever they stand in it."""
    lines = [line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))]
    found = ast.walk(ast.parse("\n".join(lines)))
    return "\n".join(ast.unparse(x) for x in found if isinstance(x, ast.Import | ast.ImportFrom))


def run(shell: InteractiveShell, cells: list[str]) -> list[str]:
    """Problems of one notebook's first cells and imports."""
    problems = []
    later = [c for c in cells[2:] if not c.lstrip().startswith(MAY_BE_PASSED_OVER)]
    for number, source in enumerate([*cells[:2], *map(imports, later)]):
        done = shell.run_cell(source)
        error = done.error_before_exec or done.error_in_exec
        if error is not None:
            problems.append(f"{type(error).__name__}: {error}\nin\n{source}")
        if number == 0 and shell.user_ns.get("_exit_code"):
            problems.append(f"pip stopped with status {shell.user_ns['_exit_code']}")
    return problems


def installed() -> dict[str, str]:
    """name -> version of everything that pip would list."""
    return {one.metadata["Name"]: one.version for one in metadata.distributions()}


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        notebooks = json.load(file)
    shell = InteractiveShell.instance()
    problems = {}
    for name, cells in notebooks.items():
        shell.reset(new_session=False)
        problems[name] = run(shell, cells)
    importlib.invalidate_caches()
    modules = [importlib.import_module(name) for name in ("torch", "numpy")]
    results = {
        "problems": problems,
        "installed": installed(),
        "imported": {one.__name__: [str(one.__version__), str(one.__file__)] for one in modules},
    }
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
