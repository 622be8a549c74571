"""What pages say of themselves: addresses, titles, descriptions, icons, and the page for none."""

from __future__ import annotations

import io
import re
import threading
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import addresses
import cards
import pytest
import sections
from docutils import nodes
from site_help import PAGES, ROOT
from tiny_site import Tiny

PIXELS = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No address is known unless a test gives one."""
    for name in ("BOOK_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)


# --- The address of the book --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, ""),
        ({"BOOK_URL": "https://example.org/lora"}, "https://example.org/lora/"),
        ({"BOOK_URL": "https://example.org/"}, "https://example.org/"),
        ({"GITHUB_REPOSITORY": "Someone/lora-book"}, "https://someone.github.io/lora-book/"),
        ({"GITHUB_REPOSITORY": "Someone/someone.github.io"}, "https://someone.github.io/"),
        ({"GITHUB_REPOSITORY": "no slash"}, ""),
        ({"BOOK_URL": "https://a.org", "GITHUB_REPOSITORY": "b/c"}, "https://a.org/"),
    ],
)
def test_the_books_address(environ, url):
    assert addresses.book_url(environ) == url


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="BOOK_URL"):
        addresses.book_url({"BOOK_URL": "example.org/lora"})


# --- Words ----------------------------------------------------------------------------------------


def test_a_description_is_whole_sentences_where_they_fit():
    first = "A sentence of some length that says what the page is about, and a little more of it."
    assert addresses.shortened(f"{first} And {'many ' * 30}more words.") == first


def test_a_long_first_sentence_is_cut_at_a_word():
    cut = addresses.shortened("word, " * 60)
    assert len(cut) <= addresses.LONGEST
    assert cut.endswith("word…")


def test_formulas_become_characters():
    paragraph = nodes.paragraph("", "", nodes.Text("the scale "), nodes.math("", r"\alpha / r"))
    assert sections.plain(paragraph) == "the scale α / r"


# --- Tiny projects ------------------------------------------------------------------------------

PAGES_OF_TWO = {
    "book/index.md": "# The book\n\nAll about it.\n\n```{toctree}\n../notes/one\n```\n",
    "notes/one.md": "# One *thing*\n\n```{note}\nNot this.\n```\n\nThe words & more.\n",
}


def test_an_address_brings_canonical_links_a_sitemap_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_URL", "https://example.org/lora")
    site = Tiny(tmp_path, PAGES_OF_TWO, ("addresses",), root="book/index")
    page = site["notes/one.html"]
    url = "https://example.org/lora/notes/one.html"
    assert re.findall(r'<link rel="canonical" href="([^"]+)"', page) == [url]
    assert f'<meta property="og:url" content="{url}" />' in page
    assert '<meta property="og:title" content="One thing" />' in page
    assert '<meta name="description" content="The words &amp; more." />' in page
    picture = re.search(r'property="og:image" content="https://example.org/lora/([^"]+)"', page)[1]
    with PIXELS.open(site.out / picture) as image:
        assert image.size == cards.SIZE == (1200, 630)
    found = re.findall(r"<loc>(.*?)</loc>", site["sitemap.xml"])
    assert found == ["https://example.org/lora/book/index.html", url]
    assert "Sitemap: https://example.org/lora/sitemap.xml" in site["robots.txt"]
    assert 'rel="canonical" href="https://example.org/lora/book/index.html"' in site["index.html"]


def test_without_an_address_nothing_names_one(tmp_path):
    site = Tiny(tmp_path, PAGES_OF_TWO, ("addresses",), root="book/index")
    page = site["notes/one.html"]
    assert 'rel="canonical"' not in page
    assert "og:image" not in page
    assert "og:url" not in page
    assert '<meta property="og:title" content="One thing" />' in page
    assert not (site.out / "sitemap.xml").exists()
    assert not (site.out / "robots.txt").exists()


def test_the_books_title_is_said_once(tmp_path):
    site = Tiny(tmp_path, PAGES_OF_TWO, ("addresses",), root="book/index")
    title = re.search(r"<title>(.*?)</title>", site["book/index.html"])[1]
    assert unescape(title) == "The book"
    assert unescape(re.search(r"<title>(.*?)</title>", site["notes/one.html"])[1]) == (
        "One thing — The book"
    )


def test_the_root_leads_on_with_a_link(tmp_path):
    page = Tiny(tmp_path, PAGES_OF_TWO, ("addresses",), root="book/index")["index.html"]
    assert '<html lang="en">' in page
    assert "<title>The book</title>" in page
    assert '<a href="book/index.html">The book</a>' in page


def test_root_page_escapes_what_it_says():
    page = addresses.root_page("A & B", "en", "book/index.html")
    assert "<title>A &amp; B</title>" in page and 'lang="en"' in page
    assert 'url=book/index.html"' in page and '<a href="book/index.html">' in page


@pytest.mark.parametrize(("url", "base"), [("", "/"), ("https://a.org/lora/", "/lora/")])
def test_the_page_for_no_page_stands_on_the_root(tmp_path, monkeypatch, url, base):
    if url:
        monkeypatch.setenv("BOOK_URL", url)
    page = Tiny(tmp_path, PAGES_OF_TWO, ("addresses",), root="book/index")["404.html"]
    assert f'<base href="{base}"/>' in page
    assert page.index("<base") < page.index("stylesheet")
    assert 'name="robots" content="noindex"' in page
    assert 'rel="canonical"' not in page
    assert '<a href="notes/one.html">One thing</a>' in page
    assert '<a href="search.html">' in page
    assert 'href="#' not in page


def test_a_card_holds_the_figure():
    red = io.BytesIO()
    PIXELS.new("RGB", (300, 200), "red").save(red, "PNG")
    with PIXELS.open(io.BytesIO(cards.draw_card("A title " * 9, "Book", red.getvalue()))) as card:
        assert card.size == cards.SIZE
        colours = {colour: count for count, colour in card.getcolors(10**6)}
        assert colours[(255, 0, 0)] > 50_000
        # Title and figure do not touch the edge.
        assert card.crop((0, 0, 1200, 30)).getcolors() == [(36_000, (255, 255, 255))]
        assert card.crop((0, 600, 1200, 630)).getcolors() == [(36_000, (255, 255, 255))]


def test_the_first_figure_with_a_caption_is_taken():
    def cell(picture: str, **metadata):
        data = {"image/png": picture}
        return {"cell_type": "code", "metadata": metadata, "outputs": [{"data": data}]}

    figure = {"mystnb": {"figure": {"caption": "A dot.", "name": "fig-dot"}}}
    notebook = {"cells": [cell("AAAA"), cell("BBBB", **figure), cell("CCCC", **figure)]}
    assert cards.first_figure(notebook) == b"\x04\x10\x41"
    assert cards.first_figure({"cells": []}) is None
    assert cards.first_figure(None) is None


# --- The built site -----------------------------------------------------------------------------


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_a_title_and_a_description_of_its_own(site, page):
    text = (site / page).read_text(encoding="utf-8")
    title = unescape(re.search(r"<title>(.*?)</title>", text)[1])
    assert title.count("LoRA, measured") == 1
    found = re.findall(r'<meta name="description" content="([^"]*)"', text)
    assert len(found) == 1 or page.endswith("bibliography.html")
    for words in map(unescape, found):
        assert 20 <= len(words) <= addresses.LONGEST
        assert not re.search(r"[\\{}$]", words), "TeX or MyST in a description"


@pytest.mark.site
def test_no_two_pages_have_the_same_description(site):
    seen: dict[str, str] = {}
    for page in PAGES:
        text = (site / page).read_text(encoding="utf-8")
        for words in re.findall(r'<meta name="description" content="([^"]*)"', text):
            assert words not in seen, f"{page} and {seen[words]} describe themselves alike"
            seen[words] = page


@pytest.mark.site
def test_the_icons_are_the_mark(browser):
    """icon-32.png and apple-touch-icon.png look as logo.svg does at their sizes."""
    static = ROOT / "book" / "_static"
    svg = (static / "logo.svg").read_text(encoding="utf-8")
    for name, size, margin in (("icon-32", 32, 0), ("apple-touch-icon", 180, 14)):
        page = browser.new_page(viewport={"width": size, "height": size})
        page.set_content(
            "<style>html,body{margin:0;background:#fff}svg{display:block;"
            f"width:{size - 2 * margin}px;height:{size - 2 * margin}px;padding:{margin}px}}"
            f"</style>{svg}"
        )
        with PIXELS.open(io.BytesIO(page.screenshot())) as drawn:
            wanted = drawn.convert("RGB")
        page.close()
        with PIXELS.open(static / f"{name}.png") as icon:
            assert icon.size == (size, size)
            white = PIXELS.new("RGBA", icon.size, "white")
            shown = PIXELS.alpha_composite(white, icon.convert("RGBA")).convert("RGB")
        apart = [abs(a - b) for a, b in zip(shown.tobytes(), wanted.tobytes(), strict=True)]
        assert sum(apart) / len(apart) < 4, f"{name}.png is not drawn from logo.svg"


@pytest.mark.site
def test_the_page_for_no_page_works_at_any_depth(browser, site):
    """A server like GitHub's gives it for /NAME/a/b/c: style, scripts and links must be found."""
    text = (site / "404.html").read_text(encoding="utf-8")
    base = re.search(r'<base href="([^"]+)"', text)[1]

    class Server(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return str(site / urlsplit(path).path.removeprefix(base).lstrip("/"))

        def send_error(self, code, message=None, explain=None):
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        missing: list[str] = []
        page.on("response", lambda got: missing.append(got.url) if got.status >= 400 else None)
        asked = f"http://127.0.0.1:{server.server_address[1]}{base}a/b/c"
        page.goto(asked, wait_until="load")
        assert missing == [asked]
        links = page.locator("article a").evaluate_all("nodes => nodes.map(node => node.href)")
        paths = [urlsplit(link).path.removeprefix(base) for link in links]
        assert "search.html" in paths
        assert {name.removesuffix(".html") for name in paths} >= {
            f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")
        }
        assert [path for path in paths if not Path(site, path).is_file()] == []
        page.close()
        server.shutdown()
