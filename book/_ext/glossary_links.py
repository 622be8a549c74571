"""'See chapter 11' in the glossary leads to the section of chapter 11 that explains the word.

A chapter explains a term in the section that uses it first, and links it to the glossary there.
These sections are noted while the pages are read; what stands before a page's first section, in
boxes or in exercises does not count. In the glossary, the reference to a page then leads to the
noted section and names it.

Where a page has no such link, the words themselves are looked for: first in the titles of its
sections, then in what the sections say. The section must be plain from that; a word that stands
everywhere leads to the page as before.
"""

from __future__ import annotations

import re

from docutils import nodes
from noted import keep, noted
from sphinx import addnodes

PAGE = "book/glossary"
RECAPS = ("Exercises", "Sources", "What you now know")
SECTIONS = "glossary_sections"  # noted of a page: {term: (id, title) of the section}
PROSE = "glossary_prose"  # noted of a page: what `_texts` finds


def _texts(doctree: nodes.document) -> list[tuple[str, str, str]]:
    """(id, title, text) of each section, without code, exercises and recaps."""
    found: dict[str, tuple[str, list[str]]] = {}
    for node in doctree.findall(nodes.Text):
        section = None if isinstance(node.parent, (nodes.literal_block, nodes.raw, nodes.math)) \
            else _section_of(node)  # fmt: skip
        if section is None or isinstance(node.parent, nodes.math_block):
            continue
        title = section.next_node(nodes.title).astext()
        if not title.startswith(RECAPS):
            found.setdefault(section["ids"][0], (title, []))[1].append(node.astext())
    return [(name, title, " ".join(texts)) for name, (title, texts) in found.items()]


def find_section(names: list[str], sections: list[tuple[str, str, str]]) -> tuple[str, str] | None:
    """(id, title) of the section that is about one of these names, if that is plain.

    Args:
        names: what an entry of the glossary is called.
        sections: (id, title, text) of each section of a page.
    """
    names = [name for name in names if re.search(r"[a-zα-ω]", name, re.IGNORECASE)]
    if not names:
        return None
    either = "|".join(re.escape(name) + "(?:s|es)?" for name in names)
    case = 0 if all(name == name.upper() for name in names) else re.IGNORECASE  # BLAS, not blas
    word = re.compile(rf"\b(?:{either})\b", case)
    titled = [(name, title) for name, title, _ in sections if word.search(title)]
    if len(titled) == 1:
        return titled[0]
    counts = [(len(word.findall(text)), name, title) for name, title, text in sections]
    counts = [count for count in counts if count[0]]
    if not counts:
        return None
    most = max(counts, key=lambda count: count[0])  # the first of several
    others = sum(count[0] for count in counts) - most[0]
    # One section says it, or more often than all the others together.
    return most[1:] if most[0] > others or (len(counts) == 2 and most is counts[0]) else None


def _about(title: str, names: list[str]) -> bool:
    """Whether a whole page is about one of these names."""
    return any(re.search(rf"\b{re.escape(name)}\b", title.lower()) for name in names)


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
    explained: dict[str, tuple[str, str]] = {}
    for link in doctree.findall(addnodes.pending_xref):
        section = _section_of(link) if link.get("reftype") == "term" else None
        if section is not None:
            place = section["ids"][0], section.next_node(nodes.title).astext()
            explained.setdefault(link["reftarget"].lower(), place)
    noted(app.env, SECTIONS)[app.env.docname] = explained
    noted(app.env, PROSE)[app.env.docname] = _texts(doctree)


def _point(app, doctree, page) -> None:
    if page != app.config.glossary_page or app.builder.format != "html":
        return
    explained = noted(app.env, SECTIONS)
    pages = {app.builder.get_relative_uri(page, other): other for other in explained}
    for item in doctree.findall(nodes.definition_list_item):
        names = [term.astext().lower() for term in item.findall(nodes.term)]
        for link in item.findall(nodes.reference):
            uri, _, anchor = link.get("refuri", "").partition("#")
            if uri not in pages or not anchor.startswith("ch-"):
                continue
            there = explained[pages[uri]]
            place = next((there[name] for name in names if name in there), None)
            if place is None and not _about(app.env.titles[pages[uri]].astext(), names):
                place = find_section([term.astext() for term in item.findall(nodes.term)],
                                     noted(app.env, PROSE)[pages[uri]])  # fmt: skip
            if place is not None:
                link["refuri"] = f"{uri}#{place[0]}"
                link.children[-1].append(nodes.Text(f", {place[1]}"))


def setup(app):
    app.add_config_value("glossary_page", PAGE, "env")
    app.connect("doctree-read", _note)
    keep(app, SECTIONS, PROSE)
    app.connect("doctree-resolved", _point)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
