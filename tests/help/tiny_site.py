"""Building a Sphinx project of a few lines with the book's own extensions, and pages for it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

# 1x1 PNG
DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FIGURE = {
    "image": {"alt": "A single dark dot in the middle."},
    "figure": {"caption": "A dot.", "name": "fig-dot"},
}
PNG = {"image/png": DOT, "text/plain": "<Figure>"}


class Tiny:
    """A built project: its folder of pages, its warnings, and Sphinx's application."""

    def __init__(
        self, folder: Path, pages: dict[str, object], extensions: tuple[str, ...],
        settings: str = "", root: str = "index", theme: str = "basic",
    ):  # fmt: skip
        source = folder / "source"
        source.mkdir(exist_ok=True)
        (source / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
            f"extensions = {['myst_nb', *extensions]!r}\n"
            f'master_doc = {root!r}\nhtml_theme = {theme!r}\n'
            'project = html_title = "The book"\n'
            'nb_execution_mode = "off"\nmyst_enable_extensions = ["colon_fence", "dollarmath"]\n'
            + settings
        )  # fmt: skip
        for name, content in pages.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        self.out = folder / "out"
        heard = io.StringIO()
        self.app = Sphinx(
            str(source), str(source), str(self.out), str(folder / "trees"), "html",
            status=io.StringIO(), warning=heard, freshenv=False,
        )  # fmt: skip
        self.app.build()
        lines = re.sub(r"\x1b\[[\d;]*m", "", heard.getvalue()).splitlines()
        # A second Sphinx in one process says of its own nodes that they are known already.
        self.warnings = [line for line in lines if "while setting up extension" not in line]

    def __getitem__(self, name: str) -> str:
        return (self.out / name).read_text(encoding="utf-8")


def build(
    folder: Path, pages: dict[str, object], extensions: tuple[str, ...], settings: str = ""
) -> str:
    """Build a project of these pages, with every reference looked at; return the warnings."""
    return "\n".join(Tiny(folder, pages, extensions, f"nitpicky = True\n{settings}").warnings)


def notebook(*outputs: dict, **metadata: object) -> dict:
    """A notebook with one code cell that has these outputs."""
    return {
        "cells": [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
            {
                "cell_type": "code",
                "id": "b",
                "metadata": metadata,
                "source": ["draw()"],
                "execution_count": 1,
                "outputs": [
                    {"output_type": "display_data", "metadata": {}, "data": output}
                    for output in outputs
                ],
            },
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
