"""The book as a PDF and as an EPUB: what both show otherwise than the site.

On paper nothing opens, slides or scrolls. So the doctrees, which are the same for all formats, are
changed just before they are written:

- The code that only draws a figure (tag hide-input) and the cell for Colab are left out.
- Solutions (tag hide-cell) go to the end of their chapter, each with the number of its exercise,
  and the exercise says where.
- Drop-downs and cards become plain boxes.
- The API page is left out, and references to it lead to the site where its address is known.

printed_latex.py and printed_epub.py add what only one of the two needs.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import ClassVar

from addresses import pages_url
from docutils import nodes
from PIL import Image
from repository import git, repository_slug
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.transforms.post_transforms.images import ImageConverter
from sphinx_exercise.nodes import exercise_enumerable_node

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("latex", "epub")  # names of Sphinx's builders
ONLINE_ONLY = ("book/api", "book/api/")  # a page, and the pages in its folder
COLAB = "# On Colab this installs"  # how the first cell of a chapter begins
# Boxes of which nothing is printed: names of tests, which a page of the site lists by the hundred.
UNPRINTED = ("The tests of this table",)
WAITING = "not attempted yet"  # what an exercise's cell says before the reader has done anything


def edition() -> tuple[datetime.date, str]:
    """The date of this edition and its commit: those of the last commit, else today and ''."""
    stamp = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    day = datetime.datetime.fromtimestamp(int(stamp), datetime.UTC) if stamp else None
    commit = git("rev-parse", "--short=10", "HEAD")
    return (day.date() if day else datetime.date.today()), commit


def in_words(day: datetime.date) -> str:
    """'29 November 2026', whatever the language of the machine."""
    months = "January February March April May June July August September October November December"
    return f"{day.day} {months.split()[day.month - 1]} {day.year}"


def site_address(config) -> str:
    """Where the site is published, with a slash at its end; '' where that is not known."""
    return config.html_baseurl or pages_url(repository_slug() or "")


def only_online(page: str) -> bool:
    """Whether a page is left out of both."""
    return any(page == one or (one[-1] == "/" and page.startswith(one)) for one in ONLINE_ONLY)


def pages_of(document: nodes.document) -> list[nodes.Element]:
    """The pages in a document: in LaTeX all of them are merged into one."""
    return [document, *document.findall(addnodes.start_of_file)]


def own_nodes(page: nodes.Element, kind) -> list[nodes.Node]:
    """The nodes of a kind on a page, without those of pages that were merged into it."""
    found: list[nodes.Node] = []
    for child in page.children:
        if isinstance(child, addnodes.start_of_file):
            continue
        if isinstance(child, kind):
            found.append(child)
        if isinstance(child, nodes.Element):
            found += own_nodes(child, kind)
    return found


def _is_part(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == name


def _component(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.container) and node.get("design_component") == name


def put(old: nodes.Node, *new: nodes.Node) -> None:
    """Put nodes in the place of another. (docutils' replace_self would copy its ids to them.)"""
    parent, where = old.parent, old.parent.index(old)
    parent.remove(old)
    for shift, node in enumerate(new):
        parent.insert(where + shift, node)


def leave_out_code(page: nodes.Element) -> None:
    """Drop the Colab cell, the codes of figures, and the outputs of unattempted exercises."""
    for cell in own_nodes(page, nodes.container):
        if not _is_part(cell, "cell_code"):
            continue
        for part in list(cell.children):
            hidden = "tag_hide-input" in cell["classes"] and _is_part(part, "cell_code_source")
            waiting = _is_part(part, "cell_code_output") and part.astext().strip() == WAITING
            if hidden or waiting or part.astext().startswith(COLAB):
                cell.remove(part)
        cell.attributes.pop("hide_mode", None)  # what is left is not folded
        if not cell.children:
            cell.parent.remove(cell)


def open_boxes(page: nodes.Element) -> None:
    """Turn drop-downs and cards into boxes that stand open."""
    for box in own_nodes(page, nodes.container):
        if _component(box, "dropdown"):
            title = box.children[0] if box["has_title"] else nodes.rubric("", "More")
            if title.astext() in UNPRINTED:
                box.parent.remove(box)
                continue
            body = box.children[1:] if box["has_title"] else box.children
            new = nodes.admonition("", classes=["opened"], ids=box["ids"] + title["ids"])
        elif _component(box, "card"):
            title, body = nodes.rubric("", ""), []
            for part in box.children:
                for child in part.children:
                    if _component(child, "card-title"):
                        title = child.children[0]
                    else:
                        body.append(child)
            new = nodes.admonition("", classes=["card"], ids=box["ids"])
        else:
            continue
        new += nodes.title("", "", *[child.deepcopy() for child in title.children])
        new.extend(body)
        put(box, new)


def solutions_last(env, page: nodes.Element, docname: str) -> list[tuple[str, nodes.Element]]:
    """Move the solutions of a page into a section at its end.

    Returns:
        The id of each solution and the place in the text, just after the exercise's cell, where
        a reference to it belongs.
    """
    exercise, found, places = None, [], []
    for node in own_nodes(page, (exercise_enumerable_node, nodes.container)):
        if not isinstance(node, nodes.container):
            exercise = node
            for body in own_nodes(node, nodes.section):  # all have the same id
                put(body, *body.children)
        elif _is_part(node, "cell_code") and "tag_hide-cell" in node["classes"] and exercise:
            found.append((exercise, node))
    if not found:
        return []
    section = nodes.section("", nodes.title("", "Solutions"), ids=["solutions"])
    for exercise, cell in found:
        label = exercise["ids"][0]
        number = env.toc_fignumbers.get(docname, {}).get("exercise", {}).get(label, ())
        name = "Exercise " + ".".join(str(part) for part in number)
        subtitle = exercise.children[0].children[-1].astext().strip(" ★")
        place = nodes.paragraph("", "", classes=["where-solved"])
        put(cell, place)
        anchor = f"solution-{label}-{len(places)}"
        if not any(anchor.startswith(f"solution-{label}-") for anchor, _ in places):
            section += nodes.rubric("", f"{name}: {subtitle}", ids=[anchor])
            places.append((anchor, place))
        else:  # a second cell of the same solution
            place.parent.remove(place)
        section += cell
    last = next(child for child in page.children if isinstance(child, nodes.section))
    last += section
    numbers = env.toc_secnumbers.get(docname, {})
    if chapter := numbers.get(""):  # the section's own number, which the EPUB's headings show
        count = max((one[1] for one in numbers.values() if len(one) > 1), default=0)
        numbers["#solutions"] = (*chapter, count + 1)
    return places


def drop_pages(page: nodes.Element, site: str) -> None:
    """References to pages that are only on the site lead there, or lose their link."""
    for link in own_nodes(page, addnodes.pending_xref):
        target = link.get("reftarget", "").lstrip("/")
        if link.get("reftype") == "doc":
            where = os.path.normpath(os.path.join(os.path.dirname(link["refdoc"]), target))
            if only_online(where):
                text = [child.deepcopy() for child in link.children]
                if not link.get("refexplicit"):
                    text = [nodes.Text("the list of functions on the site")]
                new = nodes.inline("", "", *text)
                if site:
                    new = nodes.reference("", "", *text, refuri=f"{site}{where}.html")
                put(link, new)


def note_what_moves(page: nodes.Element, site: str, docname: str) -> None:
    """Say of a picture that moves on the site that it does, and where.

    These are sliders, which have a form in HTML and one as a picture, and what stands behind the
    cell of a printed figure that a moving one replaces on the site (a node called ``moving``).
    """

    def note(figure: nodes.Element | None, what: str, *place: nodes.Element) -> None:
        words: list[nodes.Node] = [nodes.Text(f" On the site {what}")]
        anchor = f"#{figure['ids'][0]}" if figure is not None and figure["ids"] else ""
        if site:
            address = f"{site}{docname}.html{anchor}"
            words += [nodes.Text(": "), nodes.reference("", "see there", refuri=address)]
        words.append(nodes.Text("."))
        caption = next(iter(own_nodes(figure, nodes.caption)), None) if figure is not None else None
        if caption is not None:
            caption += words
        else:
            words[0] = nodes.Text(words[0].lstrip())
            where = place[0].parent
            where.insert(where.index(place[0]) + 1, nodes.paragraph("", "", *words))

    for bundle in own_nodes(page, nodes.container):
        if not _is_part(bundle, "mime_bundle"):
            continue
        if {"text/html", "image/png"} <= {form["mime_type"] for form in bundle.children}:
            figure = bundle.parent if isinstance(bundle.parent, nodes.figure) else None
            note(figure, "these pictures lie under a slider", bundle)
    for figure in own_nodes(page, nodes.figure):
        if "live-still" in figure["classes"]:
            note(figure, "this can be tried out")
            for part in list(figure.parent):
                if isinstance(part, nodes.raw):  # the box around it, with its button
                    figure.parent.remove(part)
    for place in own_nodes(page, nodes.Element):
        if place.tagname == "ChapterMap":  # a drawing of the book, to be clicked
            place.parent.remove(place)
        if place.tagname == "moving":
            before = place.parent.children[place.parent.index(place) - 1]
            figure = next(iter(own_nodes(before, nodes.figure)), None)
            note(figure, "this can be moved", place)
            place.parent.remove(place)


class Printed(SphinxPostTransform):
    """All of the above, before anything else looks at the doctree."""

    default_priority = 2  # before MyST-NB chooses an output's form and makes hidden cells
    builders = FORMATS

    def run(self, **kwargs) -> None:
        site = site_address(self.config)
        for page in pages_of(self.document):
            docname = page.get("docname") or self.env.docname
            note_what_moves(page, site, docname)
            leave_out_code(page)
            open_boxes(page)
            drop_pages(page, site)
            for anchor, place in solutions_last(self.env, page, docname):
                self.app.emit("printed-solution", place, docname, anchor)


class WebpToPng(ImageConverter):
    """Neither XeLaTeX nor every reader of EPUB draws WebP."""

    conversion_rules: ClassVar = [("image/webp", "image/png")]

    def match(self, node: nodes.image) -> bool:
        return self.app.builder.name in FORMATS and super().match(node)

    def is_available(self) -> bool:
        return True

    def convert(self, _from: str, _to: str) -> bool:
        """Write a PNG of the same size."""
        with Image.open(_from) as picture:
            picture.save(_to, format="PNG", optimize=True)
        return True


def setup(app):
    app.add_post_transform(WebpToPng)
    app.add_event("printed-solution")
    app.add_post_transform(Printed)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
