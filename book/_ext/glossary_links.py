"""'See chapter 11' in the glossary leads to the section of chapter 11 that explains the word.

A chapter explains a term in the section that uses it first, and links it to the glossary there.
These sections are noted while the pages are read; what stands before a page's first section, in
boxes or in exercises does not count. In the glossary, the reference to a page then leads to the
noted section and names it, and one to a page that has none stays as it is.
"""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes

PAGE = "book/glossary"


def _sections(env) -> dict[str, dict[str, tuple[str, str]]]:
    """{page: {term: (id, title) of the section}} of all pages that were read."""
    if not hasattr(env, "glossary_sections"):
        env.glossary_sections = {}
    return env.glossary_sections


def _section_of(node: nodes.Node) -> nodes.section | None:
    """The section that a node lies in; None in a box, and before the first section of a page."""
    while not isinstance(node, (nodes.section, nodes.document)):
        if isinstance(node, (nodes.Admonition, nodes.container)):
            return None
        if "exercise" in getattr(node, "tagname", ""):
            return None
        node = node.parent
    below = isinstance(node, nodes.section) and isinstance(node.parent, nodes.section)
    return node if below else None


def _note(app, doctree) -> None:
    noted: dict[str, tuple[str, str]] = {}
    for link in doctree.findall(addnodes.pending_xref):
        section = _section_of(link) if link.get("reftype") == "term" else None
        if section is not None:
            place = section["ids"][0], section.next_node(nodes.title).astext()
            noted.setdefault(link["reftarget"].lower(), place)
    _sections(app.env)[app.env.docname] = noted


def _forget(app, env, page) -> None:
    _sections(env).pop(page, None)


def _merge(app, env, pages, other) -> None:
    _sections(env).update({page: _sections(other)[page] for page in pages})


def _point(app, doctree, page) -> None:
    if page != app.config.glossary_page or app.builder.format != "html":
        return
    noted = _sections(app.env)
    pages = {app.builder.get_relative_uri(page, other): other for other in noted}
    for item in doctree.findall(nodes.definition_list_item):
        names = [term.astext().lower() for term in item.findall(nodes.term)]
        for link in item.findall(nodes.reference):
            uri, _, anchor = link.get("refuri", "").partition("#")
            there = noted[pages[uri]] if uri in pages and anchor.startswith("ch-") else {}
            place = next((there[name] for name in names if name in there), None)
            if place is not None:
                link["refuri"] = f"{uri}#{place[0]}"
                link.children[-1].append(nodes.Text(f", {place[1]}"))


def setup(app):
    app.add_config_value("glossary_page", PAGE, "env")
    app.connect("doctree-read", _note)
    app.connect("env-purge-doc", _forget)
    app.connect("env-merge-info", _merge)
    app.connect("doctree-resolved", _point)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
