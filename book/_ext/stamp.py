"""The foot of every page: when it ran and with what, the notebook to download, how to cite it.

A page whose cells were executed says when, for how long and with which versions; any other says
when it was built. Beside that stand the notebook without and with its outputs, both in plain
Markdown (see _tools/colab.py), the page on Colab, a form for mistakes, and the words to cite it by.
What leads to the book's repository is left out where no repository is known (see repository.py).
The theme's menu for downloads offers the same notebooks, and not the raw source.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import metadata
from pathlib import Path
from urllib.parse import quote, urlencode

import yaml
from addresses import address_of
from executed import Executed, executed
from printed import in_words
from repository import BRANCH, git, repository_slug
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = "downloads"
GLUE = "application/papermill.record/"  # what a glued value is stored as, beside its output


# --- When, and with what ------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """'0.4 s', '12 s' or '1 min 12 s'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def day(moment: float) -> str:
    """'5 November 2026', in UTC."""
    return in_words(datetime.fromtimestamp(moment, UTC))


@cache
def commit(root: Path = ROOT) -> str:
    """The commit that the pages are built from, and whether files were changed since; or ''."""
    found = os.environ.get("GITHUB_SHA", "").strip() or git("rev-parse", "HEAD", root=root)
    if not re.fullmatch(r"[0-9a-f]{40}", found):
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", root=root)
    return found[:7] + (" with changes" if changed else "")


@cache
def whole_commit(root: Path = ROOT) -> str:
    """The commit's full name, or '' where there is none or the files differ from it."""
    if not commit(root) or " " in commit(root):
        return ""
    return os.environ.get("GITHUB_SHA", "").strip() or git("rev-parse", "HEAD", root=root)


@cache
def minilora_version() -> str:
    """The version that the package in this repository gives itself."""
    text = (ROOT / "minilora" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, flags=re.M)[1]


@cache
def versions() -> str:
    """Python, torch, numpy and minilora of this build, which executed the pages."""
    parts = ["Python {}.{}.{}".format(*sys.version_info[:3])]
    for package in ("torch", "numpy"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*parts, f"minilora {minilora_version()}"])


def when(ran: Executed, built: float, with_what: str, made_from: str) -> str:
    """The sentence about a page: executed, if it ``ran``, or else built.

    The cells may have been executed in an earlier build, at another commit than the page's.
    """
    if ran.moment:
        words = f"Executed on {day(ran.moment)} in {duration(ran.seconds or 0.0)}"
        if ran.cores:
            words += " on one core" if ran.cores == 1 else f" on {ran.cores} cores"
        words += f" with {with_what}."
        return f"{words} Built from commit {made_from}." if made_from else words
    return f"Built on {day(built)}" + (f" from commit {made_from}." if made_from else ".")


# --- How to cite --------------------------------------------------------------------------------


@cache
def citation_file(root: Path = ROOT) -> dict:
    """What CITATION.cff says."""
    return yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_])", r"\\\1", text)


def citation(
    title: str, page: str, front: bool, url: str, cff: dict, number: str = ""
) -> tuple[str, str]:
    """(one line of plain text, a BibTeX entry) for a page, or for the book on its front page."""
    people = [
        one.get("name") or f"{one['given-names']} {one['family-names']}" for one in cff["authors"]
    ]
    year, book, version = str(cff["date-released"])[:4], cff["title"], cff["version"]
    end = "" if title.endswith(("?", "!", ".")) else "."
    within = f"{title}{end} In: {book}" + (f", chapter {number}." if number else ".")
    work = f"{book}." if front else within
    plain = f"{', '.join(people)} ({year}). {work} Version {version}." + (f" {url}" if url else "")
    fields = {
        "author": " and ".join(f"{{{_tex(name)}}}" for name in people),
        "title": _tex(book if front else title),
        "booktitle": "" if front else _tex(book),
        "chapter": number,
        "year": year,
        "note": f"Version {version}",
        "url": url,
    }
    key = "lora-measured" if front else f"lora-measured-{page.rsplit('/', 1)[-1].replace('_', '-')}"
    inner = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return plain, f"@{'book' if front else 'incollection'}{{{key},\n{inner}\n}}"


# --- The foot -----------------------------------------------------------------------------------


def report_link(slug: str, title: str, url: str) -> str:
    """The form for mistakes of the repository, with the page filled in."""
    where = f"{title} ({url})" if url else title
    query = {"template": "mistake.yml", "title": f"{title}: ", "page": where}
    return f"https://github.com/{slug}/issues/new?{urlencode(query, quote_via=quote)}"


def colab_link(slug: str, page: str) -> str:
    """The page on Colab, from the branch that holds the plain notebooks."""
    return f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/{quote(page)}.ipynb"


def notebook_names(page: str) -> tuple[str, str]:
    """Where the page's notebook lies without outputs, and with them, from the site's root."""
    name = page.rsplit("/", 1)[-1]
    return f"{DOWNLOADS}/{name}.ipynb", f"{DOWNLOADS}/{name}_with_outputs.ipynb"


def foot(sentence: str, links: list[tuple[str, str, bool]], plain: str, bibtex: str) -> str:
    """The foot as HTML; a link is (text, address, whether it is a file to keep)."""
    items = "".join(
        f'<li><a href="{escape(link)}"{" download" if keep else ""}>{escape(text)}</a></li>'
        for text, link, keep in links
    )
    return (
        '<aside class="book-stamp" aria-label="About this page">'
        f"<p>{escape(sentence)}</p>"
        + (f"<ul>{items}</ul>" if items else "")
        + "<details><summary>Cite this page</summary>"
        f'<p>{escape(plain)}</p><pre tabindex="0">{escape(bibtex)}</pre></details></aside>'
    )


def _menu(context, buttons: list[tuple[str, str, str, str]]) -> None:
    """Replace the theme's entries for downloads: (text, address, explanation, label) each."""
    entries = [
        {"type": "link", "text": text, "url": link, "tooltip": tip, "label": label,
         "icon": "fas fa-code"}
        for text, link, tip, label in buttons
    ]  # fmt: skip
    entries.append(
        {"type": "javascript", "text": "Print", "javascript": "window.print()",
         "tooltip": "Print this page, or save it as PDF", "label": "download-pdf-button",
         "icon": "fas fa-file-pdf"}
    )  # fmt: skip
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            group["buttons"] = entries


def _add_foot(app, pagename, templatename, context, doctree):
    if doctree is None:
        return
    slug, ran = repository_slug(), executed(app, pagename)
    title = re.sub(r"<[^>]+>", "", context["title"])
    url = address_of(app.config.html_baseurl, pagename)
    links, buttons = [], []
    if ran.moment:
        bare, full = (context["pathto"](name, 1) for name in notebook_names(pagename))
        links += [("Notebook", bare, True), ("Notebook with outputs", full, True)]
        buttons = [
            ("Notebook", bare, "Download the notebook, without outputs",
             "download-notebook-button"),
            ("Notebook with outputs", full, "Download the notebook as it was executed",
             "download-executed-button"),
        ]  # fmt: skip
        if slug:
            links.append(("Run on Colab", colab_link(slug, pagename), False))
    if slug:
        links.append(("Report a mistake", report_link(slug, title, url), False))
    front = pagename == app.config.root_doc
    number = ".".join(map(str, app.env.toc_secnumbers.get(pagename, {}).get("", ())))
    bare_title = app.env.titles[pagename].astext()
    plain, bibtex = citation(bare_title, pagename, front, url, citation_file(), number)
    sentence = when(ran, app.book_began, versions(), commit())
    context["body"] += foot(sentence, links, plain, bibtex)
    _menu(context, buttons)


# --- The version, under the contents ------------------------------------------------------------


def version_line(slug: str | None, files: Mapping[str, str]) -> str:
    """'Version 0.1.0', with the list of changes where the repository is known, and the files.

    ``files`` are the whole book in one file each, {what it is called: its address}.
    """
    links = {"what changed": f"https://github.com/{slug}/blob/main/CHANGELOG.md"} if slug else {}
    links |= files
    words = [f"Version {escape(str(citation_file()['version']))}"]
    words += [f'<a href="{escape(link)}">{escape(text)}</a>' for text, link in links.items()]
    return f'<p class="book-version">{" · ".join(words)}</p>'


def _add_version(app, pagename, templatename, context, doctree):
    # What is published names the files that it puts beside the site; elsewhere there are none.
    names = os.environ.get("BOOK_FILES", "").split()
    files = {name.rpartition(".")[2].upper(): context["pathto"](name, 1) for name in names}
    context["book_version"] = version_line(repository_slug(), files)
    if context.get("sidebars"):
        context["sidebars"] = [*context["sidebars"], "book-version.html"]


# --- The notebooks ------------------------------------------------------------------------------


def without_glue(notebook: dict) -> dict:
    """The notebook without the outputs that only carry a value to the prose."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [
                output
                for output in cell.get("outputs", [])
                if not any(kind.startswith(GLUE) for kind in output.get("data", {}))
            ]
    return notebook


def _write_notebooks(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    pages = [page for page in sorted(app.env.found_docs) if executed(app, page).moment]
    if not pages:
        return
    sys.path.insert(0, str(ROOT / "book" / "_tools"))
    import colab

    slug, exact = repository_slug(), whole_commit()
    source = f"git+https://github.com/{slug}@{exact}" if slug and exact else None
    known = colab.lookups_of(app.env, app.config.html_baseurl)
    for page in pages:
        glued = Path(app.outdir).parent / "jupyter_execute" / f"{page}.glue.json"
        stored = json.loads(glued.read_text(encoding="utf-8")) if glued.is_file() else {}
        known.glued = colab.glued_values(stored)
        bare = json.loads((Path(app.srcdir) / f"{page}.ipynb").read_text(encoding="utf-8"))
        both = (bare, executed(app, page).notebook)
        for notebook, name in zip(both, notebook_names(page), strict=True):
            if notebook is None:
                continue
            try:
                notebook = colab.convert(without_glue(notebook), known, source)
            except (KeyError, ValueError) as problem:
                logger.warning("%s as plain Markdown: %s", page, problem, type="stamp")
                continue
            path = Path(app.outdir) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def _configure(app, config):
    config.templates_path = [*config.templates_path, str(ROOT / "book" / "_templates")]
    config.html_copy_source = False  # pages offer notebooks that any program shows


def setup(app):
    app.book_began = datetime.now(UTC).timestamp()
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _add_foot, priority=800)
    app.connect("html-page-context", _add_version, priority=800)
    app.connect("build-finished", _write_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
