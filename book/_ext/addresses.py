"""What a page says of itself to browsers, search engines and those who share a link to it.

The book's address is BOOK_URL or, on GitHub's machines, the one that Pages gives the repository
(https://OWNER.github.io/NAME/). Where it is known, every page has a canonical link, and a picture
for shared links; the site has sitemap.xml and robots.txt. Titles, descriptions, icons, the page for
addresses that do not exist (404.html) and the page at the root need no address.
"""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import cards
from docutils import nodes
from sections import plain

LONGEST = 160  # characters of a description: what search engines show


# --- Addresses ----------------------------------------------------------------------------------


def book_url(environ: dict[str, str]) -> str:
    """The address under which the book is published, with a slash at its end, or ''."""
    url = environ.get("BOOK_URL", "").strip()
    if url:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"BOOK_URL is no web address: {url!r}; give https://…")
        return url.rstrip("/") + "/"
    return pages_url(environ.get("GITHUB_REPOSITORY", "").strip())


def pages_url(slug: str) -> str:
    """The address that GitHub Pages gives the repository 'OWNER/NAME', or ''."""
    found = re.fullmatch(r"([\w.-]+)/([\w.-]+)", slug)
    if not found:
        return ""
    owner, name = found[1].lower(), found[2]
    if name.lower() == f"{owner}.github.io":
        return f"https://{owner}.github.io/"
    return f"https://{owner}.github.io/{name}/"


def base_path(url: str) -> str:
    """The path at which the site's root lies: '/NAME/' of https://OWNER.github.io/NAME/."""
    return urlsplit(url).path or "/"


def address_of(url: str, page: str) -> str:
    """The whole address of a page, as 'notebooks/01_rank'; '' where the book's is not known."""
    return urljoin(url, quote(f"{page}.html")) if url else ""


# --- What a page is about -----------------------------------------------------------------------


def first_paragraph(doctree: nodes.document) -> str:
    """The text under the page's title, before any box, list or cell speaks."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            if words := plain(paragraph):
                return words
    return ""


def shortened(text: str, longest: int = LONGEST) -> str:
    """As many whole sentences as fit, or the first words of the first, with an ellipsis."""
    if len(text) <= longest:
        return text
    kept = ""
    for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z\"“(])", text):
        if len(kept) + len(sentence) + 1 > longest:
            break
        kept = f"{kept} {sentence}".strip()
    if len(kept) >= longest // 2:
        return kept
    return text[: longest - 1].rsplit(" ", 1)[0].rstrip(",;:.") + "…"


def _untagged(title: str) -> str:
    return re.sub(r"<[^>]+>", "", title).strip()


# --- Heads of pages -----------------------------------------------------------------------------


def _tag(kind: str, name: str, content: str) -> str:
    return f'<meta {kind}="{name}" content="{escape(content)}" />'


def head_lines(app, pagename, context, doctree) -> list[str]:
    """The tags that this page gets besides those of the theme."""
    small, large = (
        context["pathto"](f"_static/{name}.png", 1) for name in ("icon-32", "apple-touch-icon")
    )
    lines = [
        f'<link rel="icon" type="image/png" sizes="32x32" href="{small}"/>',
        f'<link rel="apple-touch-icon" href="{large}"/>',
    ]
    if doctree is None:
        return lines
    url = app.config.html_baseurl
    front = pagename == app.config.root_doc
    title, book = _untagged(context.get("title", "")), app.config.html_title
    lines += [
        _tag("property", "og:type", "website" if front else "article"),
        _tag("property", "og:site_name", book),
        _tag("property", "og:title", title),
    ]
    about = shortened(first_paragraph(doctree))
    if about:
        lines += [_tag("name", "description", about), _tag("property", "og:description", about)]
    if not url:
        return lines
    picture, shown = cards.card_of(app, pagename, title)
    lines += [
        _tag("property", "og:url", address_of(url, pagename)),
        _tag("property", "og:image", urljoin(url, picture)),
        _tag("property", "og:image:width", str(cards.SIZE[0])),
        _tag("property", "og:image:height", str(cards.SIZE[1])),
        _tag("property", "og:image:alt", shown),
        _tag("name", "twitter:card", "summary_large_image"),
    ]
    return lines


def _add_head(app, pagename, templatename, context, doctree):
    lines = head_lines(app, pagename, context, doctree)
    if pagename == "404":
        # Every link of this page is relative to the root, whatever address was asked for.
        base = f'<base href="{escape(base_path(app.config.html_baseurl))}"/>'
        lines = [base, '<meta name="robots" content="noindex"/>', *lines]
        context["pageurl"] = None
    context["metatags"] = "\n    ".join([context.get("metatags", ""), *lines])
    if _untagged(context.get("title", "")) == context.get("docstitle"):
        context["docstitle"] = ""  # 'LoRA, measured' once is enough


# --- Pages that no chapter is -------------------------------------------------------------------


def _contents(app) -> str:
    """The table of contents as nested lists, with addresses from the site's root."""
    includes = app.env.toctree_includes

    def entries(page: str) -> str:
        items = "".join(
            f'<li><a href="{quote(child)}.html">'
            f"{escape(app.env.titles[child].astext())}</a>{entries(child)}</li>"
            for child in includes.get(page, [])
            if child in app.env.titles
        )
        return f"<ul>{items}</ul>" if items else ""

    return entries(app.config.root_doc)


def _not_found(app):
    """The page that a server shows for an address that does not exist."""
    body = (
        "<section><h1>This page does not exist</h1>"
        "<p>The address has a typing error, or the page has moved. "
        '<a href="search.html">Search the book</a>, or choose from its contents.</p>'
        f'<nav aria-label="Contents of the book"><p><a href="{quote(app.config.root_doc)}.html">'
        f"{escape(app.config.html_title)}</a></p>{_contents(app)}</nav></section>"
    )
    yield "404", {"title": "This page does not exist", "body": body}, "page.html"


def root_page(title: str, language: str, target: str, canonical: str = "") -> str:
    """The page at the site's root: it leads on by itself, and by a link where that is refused."""
    title, target = escape(title), escape(target)
    link = f'\n    <link rel="canonical" href="{escape(canonical)}" />' if canonical else ""
    return f"""<!DOCTYPE html>
<html lang="{escape(language)}">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <meta http-equiv="refresh" content="0; url={target}" />{link}
    <title>{title}</title>
  </head>
  <body>
    <main>
      <h1>{title}</h1>
      <p>The first page of the book: <a href="{target}">{title}</a></p>
    </main>
  </body>
</html>
"""


def sitemap(url: str, pages: list[str]) -> str:
    """The addresses of all pages, for search engines."""
    lines = "\n".join(f"<url><loc>{escape(address_of(url, page))}</loc></url>" for page in pages)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{lines}\n</urlset>\n'
    )


def _finish(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    out, url, front = Path(app.outdir), app.config.html_baseurl, app.config.root_doc
    if front != "index":
        page = root_page(app.config.html_title, app.config.language, f"{quote(front)}.html",
                         address_of(url, front))  # fmt: skip
        (out / "index.html").write_text(page, encoding="utf-8")
    lost = out / "404.html"
    # With <base> a link to a place on this page would lead to the root instead.
    text = lost.read_text(encoding="utf-8")
    lost.write_text(re.sub(r'href="#', 'href="404.html#', text), encoding="utf-8")
    files = {
        "sitemap.xml": sitemap(url, sorted(app.env.found_docs)),
        "robots.txt": f"User-agent: *\nAllow: /\nSitemap: {urljoin(url, 'sitemap.xml')}\n",
    }
    for name, text in files.items():
        if url:
            (out / name).write_text(text, encoding="utf-8")
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier build


def _configure(app, config):
    config.html_baseurl = book_url(dict(os.environ)) or config.html_baseurl or ""


def setup(app):
    app.connect("config-inited", _configure, priority=100)
    app.connect("html-collect-pages", _not_found)
    app.connect("html-page-context", _add_head, priority=850)
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
