"""How the built pages look: figures in the dark and on a phone, lines, hidden code, paper."""

from __future__ import annotations

import re
from pathlib import Path

import pictures
import pytest
from site_help import DESK, PAGES, PHONE, SITE, Visit

pytestmark = pytest.mark.site


def html(page: str) -> str:
    path = Path(SITE) / page
    return path.read_text(encoding="utf-8") if path.exists() else ""


WITH_FIGURES = [page for page in PAGES if 'class="picture-box"' in html(page)] or PAGES[:1]
every = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="module")
def visit(browser, address):
    """The page with the most figures among the first chapters."""
    page = max(WITH_FIGURES[:12], key=lambda page: html(page).count('class="picture-box"'))
    with Visit(browser, address, page) as opened:
        yield opened


# ---------------------------------------------------------------- files


@every
def test_pictures_are_webp_with_sizes_and_wait_their_turn(page, site):
    text = html(page)
    assert not re.search(r"_images/[^\"' )]+\.png", text)
    assert "data:image/png" not in text
    shown = [m[0] for m in pictures.IMG.finditer(text) if "_images/" in m[0]]
    assert len(shown) == text.count('class="picture-box"')
    for number, tag in enumerate(shown):
        assert int(pictures.attribute(tag, "width")) > 0
        assert int(pictures.attribute(tag, "height")) > 0
        assert (pictures.attribute(tag, "loading") == "lazy") is (number > 0), tag


@every
def test_each_figure_is_a_plot_or_a_picture(page, site):
    tags = [m[0] for m in pictures.IMG.finditer(html(page)) if "_images/" in m[0]]
    assert bool(tags) == ('class="picture-box"' in html(page))
    for tag in tags:
        kinds = set((pictures.attribute(tag, "class") or "").split())
        assert len(kinds & {"plot", "picture"}) == 1, tag


# ---------------------------------------------------------------- the dark

SHOWN = """() => [...document.querySelectorAll('.picture-box')].map(box => {
  const image = box.querySelector('img'), panels = box.querySelector('.panels');
  const style = getComputedStyle(image);
  return {kinds: image.className.split(' '), filter: style.filter, ground: style.backgroundColor,
          mat: style.padding,
          panels: panels && getComputedStyle(panels).display,
          apart: panels && panels.offsetWidth - image.offsetWidth};
})"""


def test_plots_turn_around_in_the_dark_and_pictures_keep_their_shades(visit):
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    shown = visit.page.evaluate(SHOWN)
    visit.page.emulate_media(color_scheme="light")
    visit.page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert shown
    for one in shown:
        assert (one["ground"], one["mat"]) == ("rgba(0, 0, 0, 0)", "0px"), "a white mat"
        turned = "plot" in one["kinds"] or "framed" in one["kinds"]
        assert one["filter"].startswith("invert(" if turned else "brightness("), one
        assert one["panels"] == ("block" if "framed" in one["kinds"] else None)
        assert not one["apart"] or abs(one["apart"]) < 0.5, "panels as wide as the figure"
    for one in visit.page.evaluate(SHOWN):
        assert one["filter"] == "none"
        assert one["panels"] in (None, "none")


# ---------------------------------------------------------------- a phone

NINE_POINTS = 9 * 150 / 72  # dots high, in a figure of 150 dots to the inch


@pytest.mark.parametrize("page", WITH_FIGURES)
def test_words_in_figures_are_ten_pixels_high_on_a_phone(page, browser, address):
    with Visit(browser, address, page) as opened:
        opened.page.set_viewport_size(PHONE)
        opened.page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        opened.page.wait_for_function("[...document.images].every(i => i.complete)")
        scales = opened.page.evaluate(
            "[...document.querySelectorAll('.picture-box > img')].filter(i => i.checkVisibility())"
            ".map(i => i.getBoundingClientRect().width / i.naturalWidth)"
        )
    assert scales
    assert min(scales) * NINE_POINTS >= 10


def test_a_figure_opens_at_full_size_by_keyboard_and_closes(visit):
    page = visit.page
    assert page.locator(".picture-enlarge:visible").count() == 0, "no button where there is room"
    page.set_viewport_size(PHONE)
    try:
        button = page.locator(".picture-enlarge:visible").first
        assert re.fullmatch(r"Enlarge Fig\. [\d.]+", button.inner_text())
        dialog = page.locator(".picture-dialog")
        for close in ("Escape", "button", "tap"):
            if close == "tap":
                page.locator(".picture-box").first.click()
            else:
                button.focus()
                page.keyboard.press("Enter")
            dialog.wait_for(state="visible")
            picture = dialog.locator("img")
            full = float(picture.get_attribute("width"))
            assert picture.evaluate("i => i.getBoundingClientRect().width") >= full - 1
            if close == "button":
                dialog.get_by_role("button", name="Close").click()
            else:
                page.keyboard.press("Escape")
            dialog.wait_for(state="hidden")
            if close != "tap":
                assert button.evaluate("b => b === document.activeElement"), "the focus returns"
    finally:
        page.set_viewport_size(DESK)


def test_what_goes_on_beyond_the_edge_of_a_phone_says_so(visit):
    page = visit.page
    page.set_viewport_size(PHONE)
    try:
        page.wait_for_function(
            """() => [...document.querySelectorAll('article :is(.picture-box, div.math)')]
            .every(b => (b.scrollWidth > b.clientWidth + 4) === (b.dataset.more === 'right'))"""
        )
        assert page.locator(".picture-box[data-more=right]").count() > 0
        box = page.locator(".picture-box[data-more=right]").first
        assert box.evaluate("b => b.tabIndex") == 0
        box.evaluate("b => { b.scrollLeft = b.scrollWidth; }")
        page.wait_for_selector(".picture-box[data-more=left]", state="attached")
        box = page.locator(".picture-box[data-more=left]").first
        box.evaluate("b => { b.scrollLeft = 0; }")
        cut = page.evaluate(
            "[...document.querySelectorAll('article div.highlight pre')].filter(p =>"
            " p.checkVisibility() && p.scrollWidth > p.clientWidth + 1).map(p => p.innerText)"
        )
        assert cut == [], "code wraps"
    finally:
        page.set_viewport_size(DESK)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_no_line_begins_with_the_comma_after_a_formula(visit, size):
    visit.page.set_viewport_size(size)
    fallen = visit.page.evaluate(
        """() => [...document.querySelectorAll('article .held')].filter(span => {
        const last = span.lastChild, formula = span.querySelector('mjx-container');
        if (last.nodeType !== 3 || !formula || !span.checkVisibility()) return false;
        const range = document.createRange(); range.selectNode(last);
        const a = range.getBoundingClientRect(), b = formula.getBoundingClientRect();
        return a.top >= b.bottom; }).map(span => span.textContent)"""
    )
    visit.page.set_viewport_size(DESK)
    assert visit.page.locator("article .held").count() > 0
    assert fallen == []


# ---------------------------------------------------------------- lines


def test_lines_have_75_characters_or_so(visit):
    """Whole lines of plain paragraphs, counted by where each letter stands."""
    visit.page.set_viewport_size({"width": 1440, "height": 900})
    lines = visit.page.evaluate(
        """() => { const counts = [];
        for (const p of document.querySelectorAll('article section > p')) {
          if (p.querySelector('.math, code')) continue;
          const walk = document.createTreeWalker(p, NodeFilter.SHOW_TEXT), at = new Map();
          const range = document.createRange();
          for (let node; (node = walk.nextNode());) for (let i = 0; i < node.length; i++) {
            range.setStart(node, i); range.setEnd(node, i + 1);
            const line = Math.round(range.getBoundingClientRect().bottom / 6);
            at.set(line, (at.get(line) || 0) + 1); }
          counts.push(...[...at.values()].slice(0, -1)); }
        return counts; }"""
    )
    visit.page.set_viewport_size(DESK)
    lines.sort()
    assert len(lines) > 10
    assert 65 <= lines[len(lines) // 2] <= 80, lines
    assert lines[-1] <= 92


# ---------------------------------------------------------------- hidden code

BARS = {
    "Show the solution",
    "Show the code of this figure",
    "Show this code",
    "Show the output",
}


@every
def test_bars_over_hidden_code_say_what_is_under_them(page, site):
    found = re.findall(r'<p class="collapsed admonition-title">([^<]*)</p>', html(page))
    hidden = re.findall(r'class="cell[^"]*tag_hide-(?:cell|input|output)', html(page))
    assert len(found) == len(hidden)
    assert set(found) <= BARS
    assert "On Colab this installs the book" not in html(page), "the set-up cell is on the page"


# ---------------------------------------------------------------- paper


def test_paper_is_light_and_unfolded(visit):
    page = visit.page
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    state = """() => ({theme: document.documentElement.dataset.theme,
      folded: document.querySelectorAll('details.sd-dropdown:not([open])').length,
      solutions: document.querySelectorAll('.tag_hide-cell details[open]').length})"""
    before = page.evaluate(state)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    printed = page.evaluate(state)
    title = page.locator("#jb-print-docs-body h1").text_content()
    page.emulate_media(media="print")
    try:
        shown = page.evaluate(
            """() => { const of = s => [...document.querySelectorAll(s)];
            const style = s => new Set(of(s).map(n => getComputedStyle(n).breakInside));
            return {bars: of('details.hide > summary').filter(n => n.checkVisibility()).length,
              breaks: [...style('article div.cell_input, article figure, article div.admonition')],
              sides: of('.bd-sidebar-primary, .bd-header-article, .headerlink, .copybtn,' +
                '.prev-next-footer').filter(n => n.checkVisibility()).length}; }"""
        )
    finally:
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
    after = page.evaluate(state)
    page.emulate_media(color_scheme="light")
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert before["theme"] == "dark"
    assert before["folded"] > 0
    assert printed == {"theme": "light", "folded": 0, "solutions": 0}
    assert after == before
    assert re.match(r"\d+\. ", title), "the title keeps its number"
    assert shown == {"bars": 0, "breaks": ["avoid"], "sides": 0}
