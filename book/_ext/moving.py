"""Pictures that move, in the place of a printed figure, where a browser runs scripts.

A code cell asks for one by its metadata, ``"book": {"moving": "NAME"}``, or a Markdown page by

    :::{moving} NAME
    What stands here in print and without script.
    :::

where ``:start: {"r": 4}`` sets what the controls begin with on this page.

A page with a picture loads ``_static/moving/moving.js``, which explains itself, and ``NAME.js``,
and before it ``NAME.data.js`` if `moving_data` has a function of that name: the build writes the
numbers, from a run of the experiment that the page shows or from the package. Where there are none,
the printed figure stays, and a build of the whole book fails and says why. In other formats than
HTML, printed figures stand alone.
"""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import moving_data
from docutils import nodes
from docutils.parsers.rst import Directive
from executed import executed
from sphinx.util import logging

logger = logging.getLogger(__name__)
STATIC = Path(__file__).resolve().parents[1] / "_static" / "moving"


class moving(nodes.General, nodes.Element):
    """The place of a moving picture; its attribute ``picture`` is the name."""


class Moving(Directive):
    """``{moving} NAME``: a picture on a Markdown page; the content is its printed form."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"start": json.loads}

    def run(self) -> list[nodes.Node]:
        printed = nodes.container(classes=["moving-printed"])
        self.state.nested_parse(self.content, self.content_offset, printed)
        start = self.options.get("start", {})
        return [printed, moving(picture=self.arguments[0], start=json.dumps(start))]


def place(app, doctree: nodes.document) -> None:
    """Put a place for the picture after each cell that asks for one."""
    for cell in list(doctree.findall(nodes.container)):
        if cell.get("nb_element") == "cell_code":
            name = (cell.get("cell_metadata") or {}).get("book", {}).get("moving")
            if name:
                cell.parent.insert(cell.parent.index(cell) + 1, moving(picture=name))
    for node in doctree.findall(moving):
        if not (STATIC / f"{node['picture']}.js").is_file():
            logger.warning("%s: there is no moving picture %r in book/_static/moving",
                           app.env.docname, node["picture"], type="moving")  # fmt: skip


def load(app, pagename, templatename, context, doctree) -> None:
    """Let a page that has such a picture load its scripts, and write the numbers for them."""
    names = dict.fromkeys(n["picture"] for n in doctree.findall(moving)) if doctree else {}
    if not names or app.builder.format != "html":
        return
    app.add_css_file("moving/moving.css")
    app.add_js_file("moving/moving.js", loading_method="defer")
    for name in names:
        if find := getattr(moving_data, name, None):
            try:
                kept = Path(app.config.nb_execution_cache_path or app.doctreedir) / "runs"
                ran = executed(app, pagename).notebook
                numbers = find(moving_data.Page(pagename, doctree.astext(), kept, ran))
            except moving_data.Missing as missing:
                if not os.environ.get("BOOK_ONLY_CHAPTER"):
                    logger.warning("%s: the picture %r stays as printed: %s",
                                   pagename, name, missing, type="moving")  # fmt: skip
            else:
                write(Path(app.outdir) / "_static" / "moving" / f"{name}.data.js", name, numbers)
                app.add_js_file(f"moving/{name}.data.js", loading_method="defer")
        app.add_js_file(f"moving/{name}.js", loading_method="defer")


def write(path: Path, name: str, numbers: Any) -> None:
    """A script that sets a global: a page opened as a file may not fetch JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(numbers, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(f"Moving.data[{json.dumps(name)}] = {text};\n", encoding="utf-8")


def visit_html(self, node: moving) -> None:
    """An empty place, unseen until the script fills it."""
    if self.builder.name in ("html", "dirhtml"):
        name = node["picture"]
        needs = " data-needs" if hasattr(moving_data, name) else ""
        if (start := node.get("start", "{}")) != "{}":
            needs += f' data-start="{escape(start)}"'
        self.body.append(f'<div class="moving" data-moving="{name}"{needs} hidden></div>\n')
    raise nodes.SkipNode


def skip(self, node: moving) -> None:
    raise nodes.SkipNode


def setup(app):
    others = ("latex", "text", "man", "texinfo")
    app.add_node(moving, html=(visit_html, None), **dict.fromkeys(others, (skip, None)))
    app.add_directive("moving", Moving)
    app.connect("doctree-read", place)
    app.connect("html-page-context", load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
