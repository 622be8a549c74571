"""{live}: a trained model that the reader runs in the page.

In a chapter stands

    :::{live}
    :name: fig-live
    The caption of the picture.
    :::

The build makes the model's weights and a still picture of what it does (_tools/live_model.py), once
for each state of the package and of the chapter's own run, and keeps them in build/live. The page
shows the picture, and a button where scripts run; only that button loads the weights. Scripts and
weights lie in _static/live.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import freshness
from docutils import nodes
from docutils.parsers.rst import directives
from noted import keep, noted
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "book" / "_tools" / "live_model.py"
RUN = ROOT / "build" / "runs" / "rank.cpu.json"  # left by the chapter's cells
SCRIPTS = ("transformer.js", "drawing.js", "live.js")
MODELS = "live_models"  # noted of a page: the key of the model on it


def live_key(root: Path = ROOT, tool: Path = TOOL, run: Path = RUN) -> str:
    """A short hash of all that the weights depend on: package, tool, and the run's rates."""
    digest = hashlib.sha256(freshness.execution_key(root).encode())
    for path in (tool, run):
        digest.update(b"\0" + (path.read_bytes() if path.is_file() else b"absent"))
    return digest.hexdigest()[:16]


def make(folder: Path) -> None:
    """Make weights.js, still.webp and still.json in the folder, unless they are there.

    Raises:
        ExtensionError: The tool failed; the message holds what it said.
    """
    if (folder / "weights.js").is_file():  # the tool writes it last
        return
    command = [sys.executable, str(TOOL), str(folder), "--runs", str(RUN.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExtensionError(f"the live model could not be made:\n{done.stderr[-3000:]}")


def _folder(app, key: str) -> Path:
    return Path(app.srcdir) / "build" / "live" / key


class Live(SphinxDirective):
    """The picture with its caption, and round it what the script needs to find."""

    has_content = True
    option_spec = {"name": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        only = os.environ.get("BOOK_ONLY_CHAPTER")  # set by `make chapter`
        if only and only != self.env.docname:
            return []  # this page is not looked at
        key = live_key()
        folder = _folder(self.env.app, key)
        make(folder)
        folder.touch()
        freshness.forget_old(folder.parent, folder)
        noted(self.env, MODELS)[self.env.docname] = key

        words = json.loads((folder / "still.json").read_text(encoding="utf-8"))
        place = "/" + (folder / "still.webp").relative_to(self.env.srcdir).as_posix()
        figure = nodes.figure(
            "", nodes.image("", uri=place, alt=words["alt"]), classes=["live-still"]
        )
        holder = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, holder)
        figure += nodes.caption("", "", *holder[0].children)
        self.set_source_info(figure)
        self.add_name(figure)
        kilobytes = (folder / "weights.js").stat().st_size / 1000
        start = (
            f'<div class="live" data-version="{html.escape(key)}">'
            f'<button type="button" class="live-start" hidden>'
            f"Start the model ({kilobytes:.0f} kB)</button>"
        )
        return [nodes.raw("", start, format="html"), figure, nodes.raw("", "</div>", format="html")]


def _add_scripts(app, page, template, context, doctree) -> None:
    if page in noted(app.env, MODELS):
        for name in SCRIPTS:
            app.add_js_file(f"live/{name}", loading_method="defer")


def _copy_weights(app, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for key in set(noted(app.env, MODELS).values()):
        make(_folder(app, key))  # its folder may have been deleted since the page was read
        target = Path(app.outdir) / "_static" / "live"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_folder(app, key) / "weights.js", target / "weights.js")


def setup(app):
    app.add_directive("live", Live)
    keep(app, MODELS)
    app.connect("html-page-context", _add_scripts)
    app.connect("build-finished", _copy_weights)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
