"""The built pages in a browser that cannot reach the network: `make site-check`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from site_help import DESK, PAGES, PHONE, ROOT, Visit

pytestmark = pytest.mark.site


@pytest.fixture(scope="module", params=PAGES)
def visit(request, browser, address):
    """Each page of the book, opened once for all the tests that look at it."""
    with Visit(browser, address, request.param) as opened:
        yield opened


def test_page_opens_offline_without_errors(visit):
    assert visit.refused == [], "the page asked for something off the site"
    assert visit.errors == []
    assert visit.page.locator("article h1").inner_text().strip()


def test_mathematics_is_drawn(visit):
    assert visit.page.locator("mjx-merror").count() == 0, "a formula has an error in it"
    undrawn = visit.page.evaluate(
        "[...document.querySelectorAll('article .math')]"
        ".filter(node => !node.querySelector('mjx-container')).map(node => node.textContent)"
    )
    assert undrawn == []
    # Dollars or backslash-words outside code are TeX, and braces before a backtick are MyST, that
    # nobody turned into anything.
    text = visit.page.evaluate(
        """() => { const copy = document.querySelector('article').cloneNode(true);
        copy.querySelectorAll('pre, code, mjx-container, script, style')
            .forEach(node => node.remove()); return copy.textContent; }"""
    )
    assert "$$" not in text
    assert not re.search(r"\\(frac|begin|mathbb|alpha|Delta|sigma|sum|text|lVert)\b", text)
    assert not re.search(r"\{(ref|doc|term|eq|numref|cite:?[tp]?|glue:?\w*)\}", text)


FONTS = """() => performance.getEntriesByType('resource')
  .filter(entry => entry.name.includes('/woff-v2/'))
  .map(entry => [entry.name.match(/MathJax_(.*)\\.woff/)[1], entry.initiatorType])"""


def test_common_fonts_of_formulas_come_early_and_once(visit):
    visit.page.evaluate("document.fonts.ready.then(() => true)")
    fetched = visit.page.evaluate(FONTS)
    early = {name for name, by in fetched if by == "link"}
    has_formulas = visit.page.locator("article .math").count() > 0
    assert early == ({"Zero", "Math-Italic", "Main-Regular"} if has_formulas else set())
    names = [name for name, _ in fetched]
    assert sorted(names) == sorted(set(names)), "a font came twice"
    # A font that no formula needs would come for nothing.
    faces = visit.page.evaluate(
        "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family).sort()"
    )
    wanted = {"Zero": "MJXZERO", "Math-Italic": "MJXTEX-I", "Main-Regular": "MJXTEX"}
    assert {wanted[name] for name in early} <= {face.strip("\"'") for face in faces}


def test_pictures_load_and_say_what_they_show(visit):
    visit.page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    visit.page.wait_for_function("[...document.images].every(image => image.complete)")
    broken = visit.page.evaluate(
        "[...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 100))"
    )
    silent = visit.page.evaluate(
        "[...document.querySelectorAll('article img')]"
        ".filter(i => !i.alt.trim()).map(i => i.src.slice(0, 100))"
    )
    assert broken == []
    assert silent == []


SIDEWAYS = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width + 1) return [];
  const inScroller = node => {
    for (let up = node.parentElement; up && up !== document.body; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== 'visible') return true;
    return false; };
  const wide = [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > width + 1 && !inScroller(node))
    .map(node => node.outerHTML.slice(0, 120));
  return wide.length ? wide.slice(0, 5) : ['the page is wider than the window']; }"""


def test_no_sideways_scrolling_on_a_phone(visit):
    visit.page.set_viewport_size(PHONE)
    try:
        assert visit.page.evaluate(SIDEWAYS) == []
    finally:
        visit.page.set_viewport_size(DESK)


CONTRAST = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number);
    return {rgb: n.slice(0, 3), alpha: n.length > 3 ? n[3] : 1}; };
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => { const layers = [];
    for (let up = node; up; up = up.parentElement) {
      const colour = parse(getComputedStyle(up).backgroundColor);
      if (colour.alpha > 0) layers.push(colour);
      if (colour.alpha === 1) break; }
    let below = [255, 255, 255];
    for (const {rgb, alpha} of layers.reverse())
      below = below.map((v, i) => v * (1 - alpha) + rgb[i] * alpha);
    return below; };
  const bad = [];
  const seen = 'p, li, h1, h2, h3, figcaption, td, th, dt, dd, pre span, .admonition-title, ' +
               '.sd-card-title';
  for (const node of document.querySelectorAll('article :is(' + seen + ')')) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const ink = parse(getComputedStyle(node).color), paper = ground(node);
    const mixed = ink.rgb.map((v, i) => v * ink.alpha + paper[i] * (1 - ink.alpha));
    const [hi, lo] = [light(mixed), light(paper)].sort((a, b) => b - a);
    const ratio = (hi + 0.05) / (lo + 0.05);
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + node.tagName + ' ' + node.className + ': ' +
                              node.textContent.trim().slice(0, 40)); }
  return [...new Set(bad)].slice(0, 8); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, scheme):
    """WCAG's ratio for text, 4.5 to 1, in both colour schemes, chosen as the reader's system is."""
    visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    visit.page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    assert visit.page.evaluate(CONTRAST) == []


def test_page_opens_from_disk(browser, site):
    """A reader opens the file that `make book` names: no server, no network."""
    math = next((page for page in PAGES if 'class="math' in (site / page).read_text()), None)
    assert math, "no page holds mathematics"
    for page in ("book/index.html", math):
        with Visit(browser, site.as_uri(), page) as opened:
            assert opened.refused == []
            assert opened.errors == []
            assert opened.page.locator("article h1").is_visible()
            drawn = opened.page.locator("mjx-container").count()
            assert drawn == opened.page.locator("article .math").count()


def test_links_within_the_book_lead_somewhere(site):
    """Every href on every page: the file exists, and so does the place in it."""
    from html.parser import HTMLParser

    class Page(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.links, self.places = [], set()
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            given = dict(attrs)
            self.places |= {given.get("id"), given.get("name")} - {None}
            if tag == "a" and given.get("href"):
                self.links.append(given["href"])

    parsed = {p.resolve(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.relative_to(site)}: {link} (no such file)")
            elif parts.fragment and target in parsed:
                if unquote(parts.fragment) not in parsed[target].places and parts.fragment != "#":
                    broken.append(f"{path.relative_to(site)}: {link} (no such place)")
    assert broken == []


def test_every_chapter_is_in_the_contents(browser, address):
    with Visit(browser, address, "book/index.html") as opened:
        links = opened.page.locator(".bd-sidebar-primary a").evaluate_all(
            "nodes => nodes.map(node => node.href)"
        )
        names = {Path(urlsplit(link).path).stem for link in links}
        for notebook in (ROOT / "notebooks").glob("*.ipynb"):
            assert notebook.stem in names


def test_solutions_are_hidden_until_asked_for(browser, address, site):
    """A solution is in the page, closed, and opens with a click."""
    found = [page for page in PAGES if "tag_hide-cell" in (site / page).read_text()]
    assert len(found) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for page in found:
        with Visit(browser, address, page) as opened:
            boxes = opened.page.locator(".tag_hide-cell details")
            for index in range(boxes.count()):
                assert boxes.nth(index).evaluate("node => node.open") is False
            boxes.first.locator("summary").first.click()
            assert boxes.first.evaluate("node => node.open") is True
