"""Every picture says in words what it shows, or the build fails.

Looked at: pictures in Markdown, pictures that cells draw, and pictures hidden in the HTML that a
cell prints (an <img>, an <svg>, a <canvas>). A picture that a cell draws must also have a caption
and a label, so that it can be referred to.
"""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
HOW = (
    'give the cell\'s metadata "mystnb": {"image": {"alt": …}, "figure": {"caption": …, "name": …}}'
)


class _Pictures(HTMLParser):
    """Collects the pictures in a piece of HTML that no text stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []
        self._svg: list[bool] = []  # for each open <svg>: has it got words yet?

    def handle_starttag(self, tag, attrs):
        given = {name: (value or "").strip() for name, value in attrs}
        if given.get("aria-hidden") == "true" or given.get("role") == "presentation":
            named = True
        else:
            named = bool(given.get("aria-label") or given.get("aria-labelledby"))
        if tag == "img" and not (given.get("alt") or named):
            self.missing.append("<img>")
        if tag in ("canvas", "video", "object") and not named:
            self.missing.append(f"<{tag}>")
        if tag == "svg":
            self._svg.append(named)
        if tag == "title" and self._svg:
            self._svg[0] = True

    def handle_endtag(self, tag):
        if tag == "svg" and self._svg:
            words = self._svg.pop()
            if not self._svg and not words:  # the outermost one speaks for those within
                self.missing.append("<svg>")


def pictures_without_words(html: str) -> list[str]:
    """The tags of those pictures in `html` that have no text alternative."""
    parser = _Pictures()
    parser.feed(html)
    parser.close()
    return parser.missing


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _nearest(node: nodes.Node, wanted: Callable[[nodes.Node], object]) -> nodes.Node | None:
    """The node itself or the nearest one above it that is wanted."""
    while node is not None and not wanted(node):
        node = node.parent
    return node


def _stands_in_for_html(node: nodes.Node) -> bool:
    """Whether a picture is only the form that an output takes where no HTML can be shown."""
    form = _nearest(node, lambda one: isinstance(one, nodes.container) and "mime_type" in one)
    return form is not None and any(
        other.get("mime_type") == "text/html" for other in form.parent.children
    )


def _where(app, node: nodes.Node) -> str:
    page = app.env.doc2path(app.env.docname, base=False)
    if (cell := _nearest(node, _is_cell)) is not None:
        return f"{page}, cell {cell['cell_index'] + 1}"
    knows = _nearest(node, lambda one: one.line)  # a picture within a paragraph has line 0
    if page.endswith(".ipynb") and knows and knows.line >= 10000:  # 150002: line 2 of cell 15
        return f"{page}, cell {knows.line // 10000}"
    return page


def check(app, doctree: nodes.document) -> None:
    """Warn (the build turns warnings into failure) about each picture that lacks words."""
    for cell in doctree.findall(_is_cell):
        shown = [node for node in cell.findall(nodes.figure) if node["names"] or node["dupnames"]]
        if len(shown) > 1:
            logger.warning("%s: %d outputs, and each gets the figure's caption; end a last line "
                           "that only returns something with ;", _where(app, cell), len(shown),
                           type="figures", subtype="outputs")  # fmt: skip
    for node in doctree.findall(nodes.image):
        if _stands_in_for_html(node):
            continue
        in_cell = _nearest(node, _is_cell) is not None
        if not node.get("alt", "").strip():
            what = f"; {HOW}" if in_cell else "; write ![what it shows](…) or :alt:"
            logger.warning("%s: a figure has no alt text%s", _where(app, node), what,
                           type="figures", subtype="alt")  # fmt: skip
        if in_cell:
            figure = _nearest(node, lambda one: isinstance(one, nodes.figure))
            captioned = figure is not None and any(
                isinstance(child, nodes.caption) for child in figure.children
            )
            if not captioned or not figure.get("names"):
                logger.warning("%s: a figure has no caption or no name; %s", _where(app, node), HOW,
                               type="figures", subtype="caption")  # fmt: skip
    for node in doctree.findall(nodes.raw):
        if "html" in node.get("format", "").split():
            for tag in pictures_without_words(node.astext()):
                logger.warning("%s: %s in HTML has no alt text (alt, aria-label or <title>)",
                               _where(app, node), tag, type="figures", subtype="html")  # fmt: skip


def setup(app):
    app.connect("doctree-read", check)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
