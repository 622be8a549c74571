"""What only the EPUB needs: formulas as MathML, a cover, and no file that it does not use."""

from __future__ import annotations

import html
import posixpath
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from printed import ROOT, edition, in_words, only_online, own_nodes, put, site_address
from sphinx.builders.epub3 import Epub3Builder
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from stamp import citation_file

logger = logging.getLogger(__name__)
STYLE = ROOT / "book" / "_paper" / "reader.css"
KEPT = {"pygments.css", STYLE.name, "cover.png"}  # of the many files in _static
MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", MATHML)
SIZE = ("displaystyle", "scriptlevel")
STAYS = ("printed", "printed_epub", "printed_latex", "glossary_links", "freshness")
# What docutils' converter does not know, in words that it knows.
SAME = (
    (re.compile(r"\\dots\b(?=\s*[+\-=])"), r"\\cdots "),
    (re.compile(r"\\dots\b"), r"\\ldots "),
    (re.compile("…"), r"\\ldots "),
    (re.compile(r"(\\[dt]?frac)\s*(\d)(\d)"), r"\1{\2}{\3}"),
)


def mathml(tex: str, block: bool = False) -> str:
    """A formula as MathML, with its TeX as the text for readers that draw no MathML."""
    simple = tex.strip()
    for pattern, known in SAME:
        simple = pattern.sub(known, simple)
    made = tex2mathml(simple, as_block=block)
    made = re.sub(r"&(?!amp;|lt;|gt;|quot;)\w+;", lambda name: html.unescape(name[0]), made)
    formula = ElementTree.fromstring(made)
    formula.set("alttext", " ".join(tex.split()))
    for parent in list(formula.iter()):
        for place, part in enumerate(parent):
            if part.tag == f"{{{MATHML}}}mstyle":
                continue
            # EPUB 3 has the older MathML, in which only <mstyle> may have these.
            size = {key: part.attrib.pop(key) for key in SIZE if key in part.attrib}
            if size:
                parent[place] = ElementTree.Element(f"{{{MATHML}}}mstyle", size)
                parent[place].append(part)
    return ElementTree.tostring(formula, encoding="unicode")


def _converted(translator, node: nodes.Element, block: bool) -> str:
    try:
        return mathml(node.astext(), block)
    except (MathError, SyntaxError, ValueError, IndexError) as error:
        logger.warning("no MathML for %r: %s", node.astext(), error, location=node,
                       type="epub", subtype="math")  # fmt: skip
        return f"<code>{html.escape(node.astext())}</code>"


def visit_math(translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(_converted(translator, node, block=False))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number."""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node.get("number") and node.get("label"):
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})</span>')
    translator.body.append(_converted(translator, node, block=True) + "</div>\n")
    raise nodes.SkipNode


def draw_cover(path: Path, title: str, author: str) -> None:
    """A cover of 1,200 by 1,800 dots: a square matrix plus a tall one times a flat one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(6, 9), dpi=200, facecolor="#0b2f45")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 6), ylim=(0, 9))
    axes.set_axis_off()
    for x, y, wide, high, color in (
        (0.7, 3.2, 1.9, 1.9, "#7f9aa8"),  # the base
        (3.2, 3.2, 0.35, 1.9, "#e69f00"),  # B
        (3.75, 4.75, 1.55, 0.35, "#56b4e9"),  # A
    ):
        axes.add_patch(Rectangle((x, y), wide, high, color=color))
    for x, y, sign in ((2.9, 4.15, "+"), (3.65, 4.15, "")):
        axes.text(x, y, sign, color="white", fontsize=30, ha="center", va="center")
    axes.text(0.7, 7.3, title.replace(", ", ",\n"), color="white", fontsize=44, va="center",
              fontweight="bold", linespacing=1.2)  # fmt: skip
    axes.text(0.7, 5.95, "Low-rank adaptation,\nfrom the rank of a matrix to many GPUs",
              color="white", fontsize=15, va="center", linespacing=1.4)  # fmt: skip
    axes.text(0.7, 0.8, author, color="white", fontsize=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor=figure.get_facecolor(), metadata={"Software": None})


class Builder(Epub3Builder):
    """Sphinx's EPUB 3 builder, for a first page that lies in a folder."""

    def get_toc(self) -> None:
        """The pages in their order, each with its number and its sections.

        Sphinx writes 'book/../notebooks/…', which readers refuse.
        """
        super().get_toc()
        entries = []
        for item in self.refnodes:
            item["refuri"] = posixpath.normpath(item["refuri"])
            page = item["refuri"].removesuffix(self.out_suffix)
            number = self.env.toc_secnumbers.get(page, {}).get("", ())
            item["text"] = "".join(f"{part}. " for part in number) + item["text"]
            entries.append(item)
            for link in self.env.tocs[page].findall(nodes.reference):
                depth = -1
                above = link.parent
                while above is not None:
                    depth += isinstance(above, nodes.bullet_list)
                    above = above.parent
                if depth == 1 and link.get("anchorname"):
                    entries.append({"level": 2, "text": html.escape(link.astext()),
                                    "refuri": item["refuri"] + link["anchorname"]})  # fmt: skip
        self.refnodes = entries

    def build_content(self) -> None:
        """The list of files, with what the standard asks for and Sphinx leaves out."""
        self.domain_indices = []  # of functions, which are not in here
        super().build_content()
        path = Path(self.outdir) / "content.opf"
        package = re.sub(r' *<meta property="ibooks:[^<]*</meta>\n', "", path.read_text("utf-8"))
        package = package.replace(
            'href="_static/cover.png"', 'href="_static/cover.png" properties="cover-image"'
        )
        for name in self.files:
            if name.endswith(self.out_suffix) and name != "nav.xhtml":
                if "<math " in (Path(self.outdir) / name).read_text("utf-8"):
                    package = package.replace(
                        f'href="{name}"', f'href="{name}" properties="mathml"'
                    )
        path.write_text(package, "utf-8")

    def copy_html_static_files(self, context) -> None:
        """Only what the pages name."""
        static = Path(self.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        shutil.copy(STYLE, static / STYLE.name)
        draw_cover(static / "cover.png", self.config.epub_title, self.config.author)

    def handle_finish(self) -> None:
        """Delete what extensions have put beside the pages before all is packed."""
        out = Path(self.outdir)
        for path in [*(out / "_static").rglob("*"), *out.rglob("*.js")]:
            if path.is_file() and path.relative_to(out).as_posix()[8:] not in KEPT:
                path.unlink()
        super().handle_finish()


class Adapt(SphinxPostTransform):
    """Of a slider take the contact sheet; say on the first page which edition this is."""

    default_priority = 3  # before MyST-NB chooses an output's form
    builders = ("epub",)

    def run(self, **kwargs) -> None:
        for bundle in own_nodes(self.document, nodes.container):
            forms = {form.get("mime_type"): form for form in bundle.children}
            if "text/html" in forms and "image/png" in forms:
                bundle.remove(forms["text/html"])
        if self.env.docname == self.config.root_doc:
            day, commit = edition()
            site = site_address(self.config)
            words = [f"{self.config.author}. {in_words(day)}" + (f", commit {commit}." if commit
                     else ".")]  # fmt: skip
            words += [f"The site: {site}"] if site else []
            words += ["Code: MIT licence. Text and figures: Creative Commons Attribution 4.0."]
            title = self.document.next_node(nodes.title)
            notes = [nodes.paragraph("", line, classes=["edition"]) for line in words]
            where = title.parent.index(title) + 1
            title.parent[where:where] = notes


class Unlink(SphinxPostTransform):
    """A reference to a page that is only on the site leads there, or loses its link."""

    default_priority = 900
    builders = ("epub",)

    def run(self, **kwargs) -> None:
        site = site_address(self.config)
        here = posixpath.dirname(self.env.docname)
        for link in own_nodes(self.document, nodes.reference):
            path, _, anchor = link.get("refuri", "").partition("#")
            page = posixpath.normpath(posixpath.join(here, path)).removesuffix(".xhtml")
            if not path or not only_online(page):
                continue
            if site:
                link["refuri"] = f"{site}{page}.html" + (f"#{anchor}" if anchor else "")
            else:
                put(link, *link.children)


def _without_the_site(app) -> None:
    """The site's own extensions, which finish its pages, have no part in an EPUB."""
    if app.builder.name != "epub":
        return
    here = str(Path(__file__).parent)
    for event in ("doctree-resolved", "html-page-context", "html-collect-pages", "build-finished"):
        for listener in list(app.events.listeners.get(event, ())):
            code = getattr(listener.handler, "__code__", None)
            name = Path(code.co_filename) if code else Path()
            if str(name.parent) == here and name.stem not in STAYS:
                app.disconnect(listener.id)


def _only_own_styles(app, pagename, templatename, context, doctree) -> None:
    if app.builder.name == "epub":
        context["script_files"] = []
        context["body"] = re.sub(r"<script\b.*?</script>", "", context.get("body", ""), flags=re.S)
        context["css_files"] = [
            style
            for style in context.get("css_files", [])
            if Path(str(getattr(style, "filename", style))).name in KEPT
        ]


def _point_to_solution(app, place: nodes.Element, docname: str, anchor: str) -> None:
    if app.builder.name == "epub":
        place += nodes.reference("", "Solution", refid=anchor, internal=True)


def _configure(app, config) -> None:
    # The same for all formats: a difference would make Sphinx read all pages anew.
    config.version = config.version or str(citation_file()["version"])
    config.epub_title = config.html_title
    config.epub_basename = "lora-measured"
    config.epub_uid = "lora-measured"
    config.epub_identifier = "lora-measured"
    config.epub_scheme = "ID"
    config.epub_author = config.epub_publisher = config.epub_contributor = config.author
    config.epub_description = "Low-rank adaptation, measured: a book in executed notebooks."
    config.epub_copyright = "Code: MIT. Text and figures: CC BY 4.0."
    config.epub_language = config.language
    config.epub_cover = ("_static/cover.png", "epub-cover.html")
    config.epub_css_files = [(STYLE.name, {})]
    config.epub_tocscope = "includehidden"
    config.epub_tocdepth = 2
    config.epub_tocdup = False
    config.epub_show_urls = "no"
    config.epub_use_index = False
    left_out = [page.relative_to(ROOT).with_suffix(".xhtml").as_posix()
                for page in (ROOT / "book").rglob("*.md")
                if only_online(page.relative_to(ROOT).with_suffix("").as_posix())]  # fmt: skip
    config.epub_exclude_files = [*sorted(left_out), "py-modindex.xhtml", "search.xhtml"]


def setup(app):
    app.add_builder(Builder, override=True)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_config_value("epub_math_renderer", "mathml", "")
    app.connect("config-inited", _configure, priority=400)
    app.connect("builder-inited", _without_the_site)
    app.connect("html-page-context", _only_own_styles, priority=990)
    app.connect("printed-solution", _point_to_solution)
    for transform in (Adapt, Unlink):
        app.add_post_transform(transform)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
