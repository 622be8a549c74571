"""What the extensions mend in written pages, on strings and on a tiny project."""

from __future__ import annotations

from pathlib import Path

import finish
import icons
import pytest
import texsize
import weigh

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"


def mended(body: str, head: str = "") -> str:
    return finish.mend(f"<html><head>{head}</head><body>{body}</body></html>")


def body_of(page: str) -> str:
    return page.split("<body>")[1].split("</body>")[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Called by the words that one sees.
        (
            '<summary aria-label="Toggle hidden content"><p>Show the solution</p></summary>',
            "<summary><p>Show the solution</p></summary>",
        ),
        (
            '<button class="btn search-button-field" title="Search" aria-label="Search">S</button>',
            '<button class="btn search-button-field" title="Search">S</button>',
        ),
        # A list of things that are no list items.
        (
            '<div class="docutils citation-list" role="list"><div class="citation" id="a" '
            'role="doc-biblioentry">A</div></div>',
            '<div class="docutils citation-list"><div class="citation" id="a">A</div></div>',
        ),
        ('<section id="exercise-content"><p>A</p></section>', "<section><p>A</p></section>"),
        # Japanese, outside code and outside what says so already.
        (
            "<h1>Glossary · 用語集</h1>",
            '<h1>Glossary · <span lang="ja">用語集</span></h1>',
        ),
        (
            "<p>過学習 &amp; 近似（短い）.</p>",
            '<p><span lang="ja">過学習</span> &amp; <span lang="ja">近似（短い）</span>.</p>',
        ),
        ("<pre># 学習率</pre><code>学習率</code>", "<pre># 学習率</pre><code>学習率</code>"),
        ('<p lang="ja">学習<b>率</b></p>', '<p lang="ja">学習<b>率</b></p>'),
        # Nothing else changes, not even what is odd.
        (
            "<p CLASS=a>1 &lt; 2&nbsp;<br>α<svg viewBox='0 0 1 1'><linearGradient/></svg>",
            "<p CLASS=a>1 &lt; 2&nbsp;<br>α<svg viewBox='0 0 1 1'><linearGradient/></svg>",
        ),
        ("<script>if (a < b) x = '<div>';</script>", "<script>if (a < b) x = '<div>';</script>"),
    ],
)
def test_body(before, after):
    assert body_of(mended(before)) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<script src="../_static/scripts/fontawesome.js?digest=8"></script>', ""),
        ('<script type="text/x-thebe-config">{ requestKernel: true }</script>', ""),
        ("<script>kernelName = 'python3'</script>", ""),
        ('<meta name="docsearch:version" content="" />', ""),
        ('<meta name="docsearch:version" content="2" />',) * 2,
        (
            '<meta name="viewport" content="a" /><meta name="viewport" content="b"/>',
            '<meta name="viewport" content="a" />',
        ),
        ("<title>用語集</title>",) * 2,  # no tag may stand in a title
    ],
)
def test_head(before, after):
    assert mended("", before) == f"<html><head>{after}</head><body></body></html>"


MATHJAX = (
    '<script>window.MathJax = {"options": {}}</script>'
    '<script defer="defer" src="../_static/mathjax/es5/tex-mml-chtml.js"></script>'
)


def test_mathjax_comes_only_with_formulas():
    assert "athjax" not in mended("<p>No formula.</p>", MATHJAX).lower()
    page = mended(r'<p><span class="math notranslate">\(r &lt; d\)</span></p>', MATHJAX)
    assert "tex-mml-chtml.js" in page and "maths-wait" in page
    width = texsize.width(r"\(r < d\)")
    assert f'<span class="math notranslate" style="--tex:{width:g}em">\\(r &lt; d\\)</span>' in page


def test_a_displayed_formula_with_a_number_keeps_it():
    number = '<span class="eqno">(1)<a class="headerlink" href="#e">#</a></span>'
    page = body_of(mended(f'<div class="math" id="e">\n{number}\\[ y = \\frac{{a}}{{b}} \\]</div>'))
    height = texsize.height(r"\[ y = \frac{a}{b} \]")
    assert page.startswith(f'<div class="math" id="e" style="--tex:{height:g}em">\n{number}\\[')


def test_colours_are_settled_in_the_head():
    theme = '<script data-cfasync="false">x = localStorage.getItem("theme") || "auto";</script>'
    page = finish.mend(f'<html lang="en" data-theme="auto"><head>{theme}</head></html>')
    assert page.startswith('<html lang="en" data-theme="light">')
    assert "prefers-color-scheme" in page and "data-cfasync" not in page


def test_a_mended_page_stays_as_it_is():
    page = mended(
        r'<div id="pst-scroll-pixel-helper"></div><div id="pst-primary-sidebar">用語</div>'
        r'<p><span class="math">\(r\)</span></p>',
        '<script>x = localStorage.getItem("theme")</script>' + MATHJAX,
    )
    assert "to-contents" in page and 'role="navigation"' in page
    assert finish.mend(page) == page


@pytest.mark.parametrize(
    ("tex", "drawn"),  # em of the text, measured in Chromium with MathJax 3.2.2
    [
        (r"\(A\)", 0.89),
        (r"\((n, r)\)", 2.71),
        (r"\(y = W x\)", 4.11),
        (r"\(\Delta W = \frac{\alpha}{r} B A\)", 6.7),
        (r"\(W \in \mathbb{R}^{d_\mathrm{out} \times d_\mathrm{in}}\)", 6.46),
        (r"\(\lVert D - \Delta W\rVert_F^2\)", 6.61),
        (r"\(\sigma_1 u_1 v_1^{\mathsf T} + \sigma_2 u_2 v_2^{\mathsf T} + \dots\)", 11.62),
        (r"\(-\sum_j p_j \log p_j\)", 7.04),
        (r"\(\sqrt{2.2^2 - 4} = 0.92\)", 9.03),
    ],
)
def test_width_of_a_formula(tex, drawn):
    assert texsize.width(tex) == pytest.approx(drawn, rel=0.06)


@pytest.mark.parametrize(
    ("tex", "drawn"),
    [
        (r"\[ v = x_1 - x_0 . \]", 1.08),
        (r"\[ r^\star = \frac{m\,n}{m + n} . \]", 2.44),
        (r"\[ L = -\frac1n \sum_{i=1}^n \log p_i . \]", 3.54),
        (r"\[ W = \begin{pmatrix} 2 & 1 \\ -1 & -2 \end{pmatrix} . \]", 3.06),
        (r"\[ \begin{aligned} a &= \frac{n-1}{n}\,p, \\[4pt] b &= \frac{n-1}{n} \end{aligned} \]",
         5.89),
    ],
)  # fmt: skip
def test_height_of_a_formula(tex, drawn):
    assert texsize.height(tex) == pytest.approx(drawn, abs=0.5)


@pytest.mark.parametrize("tex", ["", "{", r"\frac", r"\begin{pmatrix} 1", "x_", "^2", r"\left("])
def test_broken_tex_has_some_size(tex):
    assert texsize.width(tex) > 0
    assert texsize.height(tex) > 0


def test_icons_of_a_page_and_of_the_style():
    page = '<i class="theme-switch fa-solid fa-sun fa-lg"></i><p class="fact fable">fa-moon</p>'
    assert icons.icon_names(page) == {"fa-sun", "fa-lg"}
    style = (
        '--pst-icon-bell:"\uf0f3";--pst-icon-share: "\\f064";'
        '.fa-sun:before{content:"\\f185"}.fa-sunny:before,.fa-moon:before{content:"\\f186"}'
    )
    assert icons.code_points({"fa-sun"}, style) == {0xF0F3, 0xF064, 0xF185}


def test_small_font_has_the_asked_characters_only():
    theme = pytest.importorskip("pydata_sphinx_theme")
    found = list(Path(theme.__file__).parent.rglob("fa-solid-900.ttf"))
    font, characters = icons.cut_out(found[0], {0xF185, 0xF0C9, 0x41BEEF & 0xFFFF})
    assert characters == [0xF0C9, 0xF185]
    assert font[:4] == b"wOFF" and len(font) < 3000
    assert "unicode-range: U+F0C9, U+F185;" in icons.font_face("F", 900, font, characters)


def test_layout_shift_is_that_of_the_worst_burst():
    burst = [{"at": 100, "size": 0.1}, {"at": 900, "size": 0.2}, {"at": 2500, "size": 0.25}]
    assert weigh.total_shift(burst) == pytest.approx(0.3)
    assert weigh.total_shift([]) == 0
