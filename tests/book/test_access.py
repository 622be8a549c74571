"""Can one who hears the page, or has only a keyboard, or an old phone, use every page?"""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import finish
import pytest
import weigh
from site_help import DESK, PAGES, PHONE, Visit

pytestmark = pytest.mark.site

AXE = Path(__file__).resolve().parents[1] / "help" / "axe" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# Besides the pages of the book: those that Sphinx makes by itself, and the one for a wrong address.
EVERY = [*PAGES, "404.html", "genindex.html", "py-modindex.html", "search.html"]
DRAWN = (
    "!window.MathJax || !MathJax.startup || !MathJax.startup.promise"
    " || MathJax.startup.promise.then(() => true)"
)


@pytest.fixture(scope="module")
def reader(browser):
    """One browser window for all pages: what pages share is fetched once."""
    context = browser.new_context(viewport=DESK, color_scheme="light", reduced_motion="reduce")
    yield context.new_page()
    context.close()


def open_page(reader, address: str, name: str) -> None:
    reader.goto(f"{address}/{name}", wait_until="load")
    reader.wait_for_function(DRAWN)


AUDIT = """async ([context, rules]) => {
  const found = await axe.run(context, {runOnly: rules, resultTypes: ['violations'],
    elementRef: false, selectors: false, preload: false, iframes: false});
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => `${v.id} (${v.impact}), ${v.nodes.length} times: ${v.nodes[0].html.slice(0, 160)}`); }
"""
CONTRAST = {"type": "rule", "values": ["color-contrast"]}
# The colours of code are the same everywhere and a page has thousands of its words: one will do.
CODE_PAGE = "notebooks/01_rank.html"


@pytest.mark.parametrize("name", EVERY)
def test_no_serious_violation_of_wcag(reader, address, name):
    """axe-core's rules for WCAG 2.1 A and AA, all drop-downs open, in light and in dark."""
    open_page(reader, address, name)
    reader.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    reader.add_script_tag(path=AXE)
    # Of all these rules, the scheme changes the outcome of one only, which looks at colours.
    rules = {"type": "tag", "values": RULES}
    found = {"both": reader.evaluate(AUDIT, [{"exclude": ["article pre"]}, rules])}
    context = {"exclude": []} if name == CODE_PAGE else {"exclude": ["article pre"]}
    reader.emulate_media(color_scheme="dark", reduced_motion="reduce")
    reader.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    found["dark"] = reader.evaluate(AUDIT, [context, CONTRAST])
    reader.emulate_media(color_scheme="light", reduced_motion="reduce")
    reader.wait_for_function("document.documentElement.dataset.theme === 'light'")
    if name == CODE_PAGE:
        found["code"] = reader.evaluate(AUDIT, [{"include": ["article"]}, CONTRAST])
    assert {scheme: faults for scheme, faults in found.items() if faults} == {}


@pytest.mark.parametrize("opener", ["Control+k", ".dropdown-download-buttons > button"])
def test_no_serious_violation_in_what_opens(reader, address, opener):
    """The search dialog and the download menu, which no page shows at first."""
    open_page(reader, address, "book/index.html")
    reader.add_script_tag(path=AXE)
    if opener.startswith("."):
        reader.locator(opener).click()
        reader.wait_for_selector(".dropdown-menu.show")
    else:
        reader.keyboard.press(opener)
        reader.wait_for_selector("#pst-search-dialog[open]")
    assert reader.evaluate(AUDIT, [{"exclude": []}, {"type": "tag", "values": RULES}]) == []


class Marks(HTMLParser):
    """What a page's source says of its ids, its language, its scripts and its viewport."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.viewports = 0
        self.scripts: list[str] = []
        self.unmarked: list[str] = []
        self.formulas = 0
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.ids[given["id"]] += 1
        self.viewports += given.get("name") == "viewport"
        self.formulas += "math" in (given.get("class") or "").split()
        if tag == "script":
            self.scripts.append(given.get("src") or "")
        if tag not in finish.VOID:
            self._open.append((tag, given.get("lang")))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if any(tag in finish.NO_PROSE or lang == "ja" for tag, lang in self._open):
            return
        self.unmarked += re.findall("[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]+", data)


@pytest.fixture(scope="module")
def marks(site) -> dict[str, Marks]:
    return {name: Marks((site / name).read_text(encoding="utf-8")) for name in EVERY}


def test_ids_occur_once(marks):
    twice = {name: [i for i, n in page.ids.items() if n > 1] for name, page in marks.items()}
    assert {name: ids for name, ids in twice.items() if ids} == {}


def test_japanese_says_that_it_is_japanese(marks):
    assert {name: page.unmarked[:3] for name, page in marks.items() if page.unmarked} == {}


def test_one_viewport(marks):
    assert {name: page.viewports for name, page in marks.items() if page.viewports != 1} == {}


def test_scripts_that_nobody_needs_are_not_fetched(marks):
    for name, page in marks.items():
        assert not any("fontawesome" in script or "thebe" in script for script in page.scripts)
        maths = any("/mathjax/" in script for script in page.scripts)
        assert maths == bool(page.formulas), f"{name}: {page.formulas} formulas"


def test_root_leads_to_the_book_by_a_link_too(site):
    root = (site / "index.html").read_text(encoding="utf-8")
    assert re.search(r'<html lang="\w+">', root) and re.search("<title>[^<]+</title>", root)
    assert '<a href="book/index.html">' in root


def test_no_formula_is_a_tab_stop(reader, address, marks):
    """And each still says in words (MathML) what it is."""
    most = max(PAGES, key=lambda name: marks[name].formulas)
    open_page(reader, address, most)
    assert reader.locator("mjx-container").count() == marks[most].formulas
    assert reader.evaluate("document.querySelectorAll('mjx-container[tabindex]').length") == 0
    said = reader.evaluate("document.querySelectorAll('mjx-assistive-mml > math').length")
    assert said == marks[most].formulas


CUT = """() => [...document.querySelectorAll('article span.math')].filter(box => {
  const drawn = box.querySelector('mjx-math');
  if (!drawn || !box.clientHeight) return false;
  const [inner, outer] = [drawn, box].map(node => node.getBoundingClientRect());
  return inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
}).map(box => box.textContent.slice(0, 60))"""


def test_no_formula_in_a_line_is_cut_off(reader, address, marks):
    """The room between the lines is theirs, too, and they are seen whole."""
    open_page(reader, address, "book/notation.html")
    assert marks["book/notation.html"].formulas
    assert reader.evaluate(CUT) == []
    assert reader.evaluate("document.querySelector('article span.math mjx-math').clientHeight") > 0


# An icon is a character of the private range, drawn before an element that is empty itself.
ICONS = """() => { const small = [...document.fonts]
    .filter(face => face.status === 'loaded' && face.family.includes('Font Awesome'))
    .map(face => face.unicodeRange).join(', ');
  return [...document.querySelectorAll('[class*="fa-"]')].filter(icon => {
    const shown = getComputedStyle(icon, '::before').content.codePointAt(1);
    return !(shown >= 0xe000) || !small.includes('U+' + shown.toString(16).toUpperCase());
  }).map(icon => icon.outerHTML); }"""


def test_every_icon_is_drawn_from_the_small_font(browser, address):
    """Without the theme's script, and without its fonts of 156 kB and more."""
    with Visit(browser, address, PAGES[0]) as opened:
        opened.page.evaluate("document.fonts.ready.then(() => true)")
        assert opened.page.locator('[class*="fa-"]').count() > 5
        assert opened.page.evaluate(ICONS) == []
        loaded = opened.page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in loaded if "fontawesome" in name] == []


# How the element with the focus looks, and a stop on the keyboard's way without it.
LOOK = """() => { const s = getComputedStyle(document.activeElement);
  const width = s.outlineStyle === 'none' ? 0 : parseFloat(s.outlineWidth);
  return [width, s.outlineColor, s.opacity]; }"""
BARE = """node => { const s = getComputedStyle(node);
  return s.outlineStyle === 'none' ? 0 : parseFloat(s.outlineWidth); }"""
CONTROLS = {
    "the sidebar's button": ".sidebar-toggle.primary-toggle",
    "the download menu": ".dropdown-download-buttons > button",
    "the theme button": ".theme-switch-button",
    "the search button": ".search-button__button",
    "a link in the contents": ".bd-docs-nav a",
    "a link in the text": "article p a.reference",
    "a drop-down": "article details > summary",
    "a copy button": "button.copybtn",
    "next": ".prev-next-area a",
    "code that scrolls": "article pre",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_focus_can_be_seen(reader, address, site, scheme):
    """On each kind of control: an outline, 3 to 1 against the page, that is there with it alone."""
    page = next(
        name for name in PAGES
        if name.startswith("notebooks/")
        and all(word in (site / name).read_text(encoding="utf-8") for word in ("<details", "<h2>"))
    )  # fmt: skip
    reader.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    open_page(reader, address, page)
    reader.wait_for_selector("button.copybtn", state="attached")
    reader.keyboard.press("Tab")  # from here on the browser takes the focus for a keyboard's
    for what, selector in CONTROLS.items():
        control = reader.locator(selector).locator("visible=true").first
        assert control.count(), f"{page} has no {what}"
        assert control.evaluate(BARE) == 0, f"{what} has an outline without the focus"
        control.evaluate("node => { if (node.tabIndex < 0) node.tabIndex = 0; node.focus(); }")
        width, colour, opacity = reader.evaluate(LOOK)
        assert width >= 2 and float(opacity) > 0.5, f"{what}: {width} px, opacity {opacity}"
        ground = reader.evaluate("getComputedStyle(document.body).backgroundColor")
        assert contrast(colour, ground) >= 3, f"{what}: {colour} on {ground}"
    reader.emulate_media(color_scheme="light", reduced_motion="reduce")


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours 'rgb(…)'."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


def test_menu_entries_show_the_focus(reader, address):
    open_page(reader, address, PAGES[0])
    reader.locator(".dropdown-download-buttons > button").focus()
    reader.keyboard.press("Enter")
    reader.keyboard.press("ArrowDown")
    reader.wait_for_function("document.activeElement.matches('.dropdown-item')")
    assert reader.evaluate(LOOK)[0] >= 2


def test_focus_stays_where_it_was(reader, address):
    """After the theme button, and after the search dialog is closed with Esc."""
    open_page(reader, address, PAGES[0])
    theme = reader.locator(".theme-switch-button").locator("visible=true").first
    theme.focus()
    before = reader.evaluate("document.documentElement.dataset.mode")
    reader.keyboard.press("Enter")
    reader.wait_for_function(f"document.documentElement.dataset.mode !== '{before}'")
    reader.wait_for_function("document.activeElement.matches('.theme-switch-button')", timeout=5000)
    search = reader.locator(".search-button__button").locator("visible=true").first
    search.focus()
    reader.keyboard.press("Enter")
    reader.wait_for_selector("#pst-search-dialog[open]")
    reader.keyboard.press("Escape")
    reader.wait_for_function(
        "document.activeElement.matches('.search-button__button')", timeout=5000
    )
    reader.evaluate("localStorage.clear()")


def test_copy_buttons_stand_on_code_alone(reader, address, site):
    page = next(n for n in PAGES if "cell_output" in (site / n).read_text(encoding="utf-8"))
    open_page(reader, address, page)
    reader.wait_for_selector("button.copybtn", state="attached")
    assert reader.locator(".cell_output pre").count() > 0
    assert reader.locator(".cell_output button.copybtn").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_known_before_the_first_paint(browser, address, scheme):
    """No bright page in the dark: the theme's own script comes far later."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.route("**/pydata-sphinx-theme.js*", lambda route: route.abort())
    page.goto(f"{address}/{PAGES[0]}", wait_until="load")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    context.close()


def test_without_a_script_there_are_colours_and_a_way_to_the_contents(browser, address):
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto(f"{address}/{PAGES[0]}", wait_until="load")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.locator(".to-contents a").click()
    contents = page.locator("#pst-primary-sidebar .bd-docs-nav a").last
    assert contents.is_visible()
    box = contents.bounding_box()
    assert box and 0 <= box["x"] < PHONE["width"]
    context.close()


WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [320, 390])
def test_lists_of_names_fit_a_phone(browser, address, width):
    context = browser.new_context(viewport={"width": width, "height": 700})
    page = context.new_page()
    for name in ("genindex.html", "book/api.html"):
        page.goto(f"{address}/{name}", wait_until="load")
        assert page.evaluate(WIDE) <= 1, name
    context.close()


@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_text_does_not_jump_while_the_page_is_built(browser, site, width):
    """Layout shift at most 0.1 on every page, which comes with at most 900 kB over the line."""
    heavy, jumpy = {}, {}
    with weigh.serve(site) as address:
        for name in PAGES:
            # A fresh window each: nothing is in its cache, as on a reader's first visit.
            found = weigh.weigh(browser, f"{address}/{name}", width, slow=False)
            if found.shift > 0.1:
                jumpy[name] = (round(found.shift, 3), found.shifts[-2:])
            if found.kilobytes > 900:
                heavy[name] = round(found.kilobytes)
    assert jumpy == {}
    assert heavy == {}
