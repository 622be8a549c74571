"""An index of the book's sections for the search, as a script: `_static/sections-index.js`.

A page of this book is long, so a search has to lead to a place in it. Collected are sections,
glossary entries, objects of the API, claims, exercises and references, each with its anchor, its
heading, where it stands and its text. The script sets one global, `BOOK_SECTIONS`, so that it
works without a server; search.js loads it when the reader begins to search.

The text is what a reader reads: formulas are put into characters (ΔW = α/r BA) or left out, and
of code only the names are kept. In it stand ⟦ and ⟧ around words that are bold or that a link to
the glossary explains; the search counts these for more.

Collected from the pages as they are after all references are resolved. Sphinx writes only pages
that have changed, so each page's part is kept beside its doctree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from docutils import nodes
from glossary_links import RECAPS
from sphinx import addnodes

OUTPUT = "_static/sections-index.js"
LEFT, RIGHT = "⟦", "⟧"
TYPES = r"\s*\((?:[^()]|\([^()]*\))*\) – "  # 'rank (int | None) – Rank of …'
FIGURES = r" \((?:(?:Fig|Table|Eq|exercise|Exercise)\.?[ \d.]*|[( ,]*\d+\.\d+[) ]*|,| and )+\)"
MANY = 6
TASK = 400  # of an exercise so many letters will do
WINGS = ("minilora.lab", "minilora.experiments", "minilora.exercises")
GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε",
    "zeta": "ζ", "eta": "η", "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν",
    "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ",
    "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "times": "×", "cdot": "·",
    "top": "ᵀ", "approx": "≈", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "to": "→",
    "infty": "∞", "pm": "±", "ldots": "…", "dots": "…", "ll": "≪", "gg": "≫", "ne": "≠",
    "in": "∈", "sum": "Σ", "min": "min", "max": "max", "log": "log", "exp": "exp",
}  # fmt: skip


def readable(tex: str) -> str:
    """A formula of a sentence in plain characters: r'\\tfrac{\\alpha}{r} B A' -> 'α/r B A'."""
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", tex)
    text = re.sub(r"\\[dt]?frac\s*(\w)\s*(\w)", r"\1/\2", text)
    text = re.sub(r"\\(?:sqrt)\s*", "√", text)
    text = re.sub(r"\\(?:mathsf|mathrm)\s*\{?T\}?(?![a-z])", "ᵀ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: GREEK.get(found[1], " "), text)
    text = re.sub(r"\\[^A-Za-z]", " ", text)
    text = re.sub(r"[{}$&^_]", "", text)
    return " ".join(text.split())


def names_in(code: str) -> list[str]:
    """The telling names in a piece of code, each once: lora_alpha, Conv1D, and no plain words."""
    code = re.sub(r"(?m)#.*$", "", code)
    found = re.findall(r"[A-Za-z][A-Za-z0-9_]{2,}", code)
    return [name for name in dict.fromkeys(found) if not name.islower() or "_" in name.strip("_")]


def slug(text: str, words: int = 7) -> str:
    """The first words of a text as an anchor."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())[:words])


class Entry:
    """One place that a search can lead to."""

    def __init__(self, kind: str, anchor: str, heading: str, where: str = "", number: str = ""):
        self.kind, self.anchor, self.heading = kind, anchor, heading
        self.where, self.number = where, number
        self.text: list[str] = []
        self.code: dict[str, None] = {}

    def packed(self) -> list[str]:
        """Kind, anchor, number, heading, breadcrumb within the page, text, names in code."""
        text = re.sub(r"\s+", " ", "".join(self.text)).strip()
        # Marks that only hold spaces or marks, and spaces before a full stop, are no use.
        text = re.sub(f"{LEFT}\\s*{RIGHT}", "", text)
        text = re.sub(FIGURES, "", text)
        text = re.sub(r"\s+([.,;:)])", r"\1", text)
        said = set(re.findall(r"[A-Za-z0-9_]+", f"{self.heading} {text}"))
        code = " ".join(name for name in self.code if name not in said)
        return [self.kind, self.anchor, self.number, self.heading, self.where, text, code]


def _is_exercise(node: nodes.Node) -> bool:
    return node.tagname in ("exercise_node", "exercise_enumerable_node")


def _is_output(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code_output"


def _is_claims(table: nodes.table) -> bool:
    """Whether a table's first column is headed 'Claim'."""
    first = table.next_node(nodes.entry)
    return first is not None and first.astext().strip() == "Claim"


def name_claims(doctree: nodes.document) -> None:
    """Give every row of a table of claims an anchor."""
    taken: set[str] = set()
    for table in doctree.findall(nodes.table):
        if not _is_claims(table):
            continue
        for row in table.next_node(nodes.tbody).children:
            name = f"claim-{slug(plain(row.children[0]))}"
            while name in taken:
                name += "-again"
            taken.add(name)
            if not row["ids"]:
                row["ids"] = [name]


def plain(node: nodes.Node) -> str:
    """The words of a node, formulas as far as characters can show them."""
    entry = Entry("", "", "")
    for child in node.children:
        _Collector({}).read(child, entry)
    return re.sub(f"[{LEFT}{RIGHT}]", "", entry.packed()[5])


class _Collector:
    """Walks a page and hands every word to the innermost place that has an anchor."""

    def __init__(self, numbers: dict[str, tuple[int, ...]]):
        self.numbers = numbers
        self.entries: list[Entry] = []
        self.glossary = False  # whether the page has one

    def open(self, *arguments: str) -> Entry:
        self.entries.append(Entry(*arguments))
        return self.entries[-1]

    def page(self, doctree: nodes.document) -> list[Entry]:
        for child in doctree.children:
            if isinstance(child, nodes.section):
                self.section(child, [])
        return [entry for entry in self.entries if entry.anchor]

    def section(self, node: nodes.section, above: list[str]) -> None:
        title = node.next_node(nodes.title)
        heading, anchor = plain(title) if title else "", node["ids"][0]
        number = self.numbers.get("" if not above else f"#{anchor}", ())
        where = " › ".join(above[1:])
        entry = self.open("section", anchor, heading, where, ".".join(map(str, number)))
        if heading in RECAPS:  # says again what stands elsewhere: only what is new in it
            entry = Entry("", "", "")
        self.children(node, entry, [*above, heading])

    def children(self, node: nodes.Node, entry: Entry, above: list[str]) -> None:
        for child in node.children:
            if isinstance(child, nodes.title) and child.parent is node:
                continue
            self.read(child, entry, above)

    def read(self, node: nodes.Node, entry: Entry, above: list[str] = ()) -> None:
        """Add what a node says to `entry`, or to the places that it opens."""
        where = " › ".join(above[1:])
        if isinstance(node, nodes.Text):
            entry.text.append(node.astext())
        elif isinstance(node, nodes.section) and not _in_exercise(node):
            self.section(node, list(above))
        elif isinstance(node, addnodes.glossary):
            self.glossary = True
            for item in node.findall(nodes.definition_list_item):
                self.term(item)
        elif isinstance(node, nodes.table) and self.glossary:
            pass  # the list of Japanese names: each is a name of its entry
        elif isinstance(node, addnodes.desc):
            self.described(node, where)
        elif _is_exercise(node):
            self.exercise(node, where)
        elif isinstance(node, nodes.citation):
            self.source(node)
        elif isinstance(node, nodes.table) and _is_claims(node):
            for row in node.next_node(nodes.tbody).children:
                self.claim(row, where)
        elif isinstance(node, nodes.math):
            entry.text.append(readable(node.astext()))
        elif isinstance(node, nodes.literal_block):
            entry.code.update(dict.fromkeys(names_in(node.astext())))
        elif isinstance(node, nodes.literal):
            entry.text.append(node.astext())
        elif _is_output(node):  # of an output only the captions of its figures are prose
            for caption in node.findall(nodes.caption):
                self.within(caption, entry, above)
        elif isinstance(node, nodes.strong) or _is_explained(node):
            entry.text.append(LEFT)
            self.within(node, entry, above)
            entry.text.append(RIGHT)
        elif isinstance(node, (nodes.raw, nodes.math_block, nodes.image, nodes.comment,
                               nodes.substitution_definition, nodes.target, addnodes.index,
                               addnodes.toctree)):  # fmt: skip
            pass
        else:
            self.within(node, entry, above)
            if isinstance(node, nodes.entry):
                entry.text.append(" · ")
            elif not isinstance(node, nodes.Inline):
                entry.text.append(" ")

    def within(self, node: nodes.Node, entry: Entry, above: list[str]) -> None:
        for child in node.children:
            self.read(child, entry, above)

    def term(self, item: nodes.definition_list_item) -> None:
        terms = [child for child in item.children if isinstance(child, nodes.term)]
        heading = " · ".join(plain(term) for term in terms)
        entry = self.open("term", terms[0]["ids"][0], heading)
        for child in item.children:
            if not isinstance(child, nodes.term):
                self.within(child, entry, [])

    def described(self, node: addnodes.desc, where: str) -> None:
        signature = node.next_node(addnodes.desc_signature)
        anchor = (signature["ids"] or [""])[0]
        # LoRAConfig, or LoRAConfig.rank for what belongs to a class.
        name = signature.get("fullname") or anchor
        entry = self.open("api", "" if name.endswith(".extra_repr") else anchor, name, where)
        entry.code.update(dict.fromkeys(names_in(signature.astext())))
        for child in node.children:
            if isinstance(child, addnodes.desc_content):
                self.within(child, entry, ["", where] if where else [""])
        text = re.sub(TYPES, " – ", "".join(entry.text))
        if anchor.startswith(WINGS):  # of the laboratory the first sentence will do
            text = re.split(r"(?<=[a-z)])\. ", text)[0]
        entry.text = [text]

    def exercise(self, node: nodes.Element, where: str) -> None:
        title = node.next_node(nodes.Titular) if node.children else None
        subtitle = [part for part in node.findall() if part.tagname == "exercise_subtitle"]
        heading = plain(subtitle[0] if subtitle else title) if title or subtitle else ""
        anchor = node["ids"][0] if node["ids"] else node.get("label", "")
        entry = self.open("exercise", anchor, heading.strip("★ ()") or "Exercise", where)
        for child in node.children:
            if child.tagname not in ("exercise_title", "exercise_enumerable_title", "title"):
                self.within(child, entry, [])
        entry.text = ["".join(entry.text)[:TASK].rsplit(" ", 1)[0]]

    def source(self, node: nodes.citation) -> None:
        entry = self.open("source", node["ids"][0], "")
        for child in node.children:
            if not isinstance(child, nodes.label):
                self.read(child, entry)
        # 'Authors. Title. Journal, year.': the title is the first sentence without a name in it.
        text = "".join(entry.text)
        said = [part for part in text.split(". ")[1:] if re.search(r"[a-z]{2,} [a-z]{2,}", part)]
        entry.heading = (said or [text])[0].strip()
        authors, *rest = text.split(". ")
        if authors.count(",") > 3:  # the first three will do
            entry.text = [". ".join([", ".join(authors.split(", ")[:3]) + " and others", *rest])]

    def claim(self, row: nodes.row, where: str) -> None:
        entry = self.open("claim", row["ids"][0] if row["ids"] else "", plain(row.children[0]),
                          where)  # fmt: skip
        for cell in row.children[1:]:
            self.within(cell, entry, [])
            entry.text.append(" · ")


def _in_exercise(node: nodes.Node) -> bool:
    """sphinx-exercise wraps the text of an exercise in a section that is none."""
    return node.parent is not None and _is_exercise(node.parent)


def _is_explained(node: nodes.Node) -> bool:
    """A link to the glossary."""
    return isinstance(node, nodes.inline) and "std-term" in node.get("classes", [])


def collect(doctree: nodes.document, numbers: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """The places of a page, in the order of the page; the first one is the page itself."""
    return [entry.packed() for entry in _Collector(numbers).page(doctree)]


# What an older version of this file has kept does not count.
VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _kept(app, page: str) -> Path:
    return Path(app.doctreedir) / "sections" / VERSION / f"{page}.json"


def _note(app, doctree: nodes.document, page: str) -> None:
    if app.builder.format != "html":
        return
    name_claims(doctree)
    numbers = app.env.toc_secnumbers.get(page, {})
    kept = _kept(app, page)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(collect(doctree, numbers), ensure_ascii=False), encoding="utf-8")


def _write(app, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    pages, places = [], []
    for page in sorted(app.env.found_docs):
        kept = _kept(app, page)
        if not kept.exists():
            _note(app, app.env.get_and_resolve_doctree(page, app.builder), page)
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found:
            number, title = found[0][2], found[0][3]
            places += [[len(pages), *place] for place in found]
            pages.append([app.builder.get_target_uri(page), title, number])
    # A name that stands in the code of many places leads to none of them.
    often = Counter(name for place in places for name in place[-1].split())
    for place in places:
        place[-1] = " ".join(name for name in place[-1].split() if often[name] <= MANY)
    data = json.dumps({"pages": pages, "places": places}, ensure_ascii=False,
                      separators=(",", ":"))  # fmt: skip
    # Written by _ext/sections.py; what the fields mean stands there in Entry.packed.
    script = Path(app.outdir) / OUTPUT
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"window.BOOK_SECTIONS={data};\n", encoding="utf-8")


def _templates(app, config) -> None:
    """The book's own search.html, which does without Sphinx's search."""
    config.templates_path.append(str(Path(__file__).parents[1] / "_templates"))


def setup(app):
    app.connect("config-inited", _templates)
    app.add_js_file("search.js", loading_method="defer")
    # After glossary_links, which lengthens the references of the glossary.
    app.connect("doctree-resolved", _note, priority=900)
    app.connect("build-finished", _write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
