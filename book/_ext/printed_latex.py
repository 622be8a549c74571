"""What only the PDF needs: parts and chapters, references with pages, fonts, a title page.

The layout itself is in book/_paper/preamble.tex.
"""

from __future__ import annotations

import re

from docutils import nodes
from printed import (
    ROOT,
    edition,
    in_words,
    only_online,
    own_nodes,
    pages_of,
    put,
    site_address,
)
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_enumerable_node

PREAMBLE = ROOT / "book" / "_paper" / "preamble.tex"
WORD = 14  # a word of more letters in code may be broken
LONG = 1200  # a table of more letters than these may be broken over pages
MANY = 5  # columns: from so many on, each gets a width, and with more a smaller font
ROWS = 20  # and so may one of more rows
FITS = 80  # so many letters fit into a line of a table
# Pages that a reader looks up by name: a page number behind each reference would be noise.
NO_PAGE = ("book/glossary", "book/bibliography")


def _raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="latex")


def _escaped(text: str) -> str:
    return "".join({"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_"}.get(one, one) for one in text)


class Arrange(SphinxPostTransform):
    """The first page becomes a chapter, and captions of the table of contents become parts."""

    default_priority = 3  # after printed.Printed, before references are resolved
    builders = ("latex",)

    def run(self, **kwargs) -> None:
        for page in pages_of(self.document):
            if only_online(page.get("docname", "")):
                page.parent.remove(page)
                self.app.builder.docnames.discard(page["docname"])
        front = next(child for child in self.document if isinstance(child, nodes.section))
        parts = [child for child in front if "toctree-wrapper" in child.get("classes", [])]
        first = nodes.section("", nodes.title("", "About this book"), ids=["about-this-book"])
        first.extend(child for child in front.children[1:] if child not in parts)
        captions = self.config.external_site_map.root.subtrees
        for part, toctree in zip(parts, captions, strict=True):
            name = _escaped(toctree.caption.split(" · ")[-1])
            if part is not parts[0]:
                kind = "bookpart" if toctree.numbered else "bookback"
                part.insert(0, _raw(rf"\{kind}{{{name}}}"))
        front.children = [front.children[0]]
        front += [_raw(r"\bookfront"), first, *parts]


def let_break(code: nodes.literal) -> None:
    """Let a long name in code be broken behind its signs."""
    parts = re.split(r"(?<=[_=.,(/\[])(?=\w)", code.astext())
    if max(len(word) for word in code.astext().split() or [""]) > WORD and len(parts) > 1:
        code.children = []
        for part in parts:
            code += [_raw(r"\allowbreak{}"), nodes.Text(part)] if len(code) else nodes.Text(part)


class Details(SphinxPostTransform):
    """Outputs get a look of their own, and anchors of boxes a label."""

    default_priority = 9
    builders = ("latex",)

    def run(self, **kwargs) -> None:
        for page in pages_of(self.document):
            name = page.get("docname") or self.env.docname
            for output in own_nodes(page, nodes.container):
                if output.get("nb_element") == "cell_code_output":
                    for picture in own_nodes(output, nodes.image):
                        if not isinstance(picture.parent, nodes.figure):
                            output.insert(0, _raw(r"\clearpage"))  # high, and no float
                    for block in own_nodes(output, nodes.literal_block):
                        if block.parent is not None:
                            put(block, _raw(r"\begin{bookoutput}"), block,
                                _raw(r"\end{bookoutput}"))  # fmt: skip
            for short in own_nodes(page, nodes.abbreviation):
                short.attributes.pop("explanation", None)  # would be printed in the table
            for code in own_nodes(page, nodes.literal):
                let_break(code)
            for box in own_nodes(page, (nodes.admonition, nodes.rubric, exercise_enumerable_node)):
                labels = "".join(rf"\phantomsection\label{{{name}:{one}}}" for one in box["ids"])
                if labels:
                    where = box.parent.index(box) + int(isinstance(box, nodes.rubric))
                    box.parent.insert(where, _raw(labels))


def longest_word(cell: nodes.entry) -> float:
    """Letters of the longest word that cannot be broken; code has a wider font."""
    code = "".join(part.astext() + " " for part in cell.findall(nodes.literal)).split()
    text = [word for part in cell.astext().split() for word in part.split("-")]
    return min(WORD + 4, max([1.0, *map(len, text), *(1.25 * len(word) for word in code)]))


def share_widths(table: nodes.table) -> None:
    """Give the columns of a table with long texts a width each, so that these wrap.

    A column gets room for its longest word, and beyond that the more the longer its texts are,
    though not in proportion: a column of single words would vanish beside one of sentences.
    """
    group = table.next_node(nodes.tgroup)
    rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
    longest = max((sum(len(cell.astext()) for cell in row) for row in rows), default=0)
    if longest <= FITS and group["cols"] < MANY:
        return
    columns = [[row[at] for row in rows if at < len(row)] for at in range(group["cols"])]
    texts = [[cell.astext() for cell in column] for column in columns]
    least = [max(map(longest_word, column)) + 2 for column in columns]
    mean = [sum(len(text) for text in column) / len(column) for column in texts]
    more = [max(length - word, 0) ** 0.7 for word, length in zip(least, mean, strict=True)]
    spare = max(FITS - sum(least), 0) / max(sum(more), 1)
    wanted = [word + spare * extra for word, extra in zip(least, more, strict=True)]
    table["classes"] = [one for one in table["classes"] if one != "colwidths-auto"]
    table["classes"].append("colwidths-given")
    if sum(len(text) for column in texts for text in column) > LONG or len(rows) > ROWS:
        table["classes"].append("longtable")  # may go on overleaf
    for column, width in zip(group.findall(nodes.colspec), wanted, strict=True):
        column["colwidth"] = max(1, round(100 * width / sum(wanted)))


class Tables(SphinxPostTransform):
    """Tables that are wider than the page wrap."""

    default_priority = 890
    builders = ("latex",)

    def run(self, **kwargs) -> None:
        for table in list(self.document.findall(nodes.table)):
            share_widths(table)
            if table.next_node(nodes.tgroup)["cols"] > MANY:
                put(table, _raw(r"\begingroup\footnotesize"), table, _raw(r"\endgroup"))


class PageNumbers(SphinxPostTransform):
    """'chapter 8' becomes 'chapter 8 (p. 231)', once in a section."""

    default_priority = 900  # when all references are resolved
    builders = ("latex",)

    def run(self, **kwargs) -> None:
        for page in pages_of(self.document):
            name = page.get("docname") or self.env.docname
            seen: set[tuple[int, str]] = set()
            for link in own_nodes(page, (nodes.reference, addnodes.number_reference)):
                target = link.get("refuri", "")
                other, _, anchor = target.lstrip("%").partition("#")
                if not target.startswith("%") or other == name or other in NO_PAGE:
                    continue
                section = link.parent
                while section is not None and not isinstance(section, nodes.section):
                    if isinstance(section, (nodes.title, nodes.caption, nodes.rubric)):
                        break
                    section = section.parent
                if not isinstance(section, nodes.section) or (id(section), target) in seen:
                    continue
                seen.add((id(section), target))
                label = f"{other}:{anchor or ':doc'}"
                where = link.parent.index(link) + 1
                link.parent.insert(where, _raw(rf" (p.~\pageref{{\detokenize{{{label}}}}})"))


def _point_to_solution(app, place: nodes.Element, docname: str, anchor: str) -> None:
    if app.builder.name == "latex":
        label = rf"\detokenize{{{docname}:{anchor}}}"
        place += _raw(rf"\booksolution{{{label}}}")


def _configure(app, config) -> None:
    day, commit = edition()
    site = site_address(config)
    facts = {
        "booktitle": config.html_title,
        "bookauthor": config.author,
        "bookdate": in_words(day),
        "bookcommit": commit,
        "booksite": site,
    }
    config.latex_engine = "xelatex"
    config.latex_toplevel_sectioning = "chapter"
    config.latex_domain_indices = False
    config.latex_show_urls = "no"
    config.latex_table_style = ["booktabs"]
    config.latex_elements = {
        "papersize": "a4paper",
        "pointsize": "11pt",
        "extraclassoptions": "openany,oneside",
        "polyglossia": "",
        "fontpkg": "",
        "fncychap": "",
        "makeindex": "",
        "printindex": "",
        "fvset": r"\fvset{fontsize=\fontsize{9}{11.3}\selectfont}",
        "figure_align": "htbp",
        "maketitle": r"\booktitlepage",
        "preamble": "".join(rf"\newcommand\{key}{{{_escaped(value)}}}" + "\n"
                            for key, value in facts.items())
        + PREAMBLE.read_text(encoding="utf-8"),
    }  # fmt: skip


def setup(app):
    app.connect("config-inited", _configure, priority=900)
    app.connect("printed-solution", _point_to_solution)
    for transform in (Arrange, Details, Tables, PageNumbers):
        app.add_post_transform(transform)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
