"""The site's own Sphinx extensions, on tiny projects: what must fail fails, and says where."""

from __future__ import annotations

import re

import figures
import offline
import pytest
import repository
from tiny_site import FIGURE, PNG, build, notebook


def test_a_drawn_figure_without_alt_text_is_named_with_its_cell(tmp_path):
    warnings = build(tmp_path, {"index.ipynb": notebook(PNG)}, ("figures",))
    assert "index.ipynb, cell 2: a figure has no alt text" in warnings
    assert "no caption or no name" in warnings


def test_a_drawn_figure_with_everything_passes(tmp_path):
    warnings = build(tmp_path, {"index.ipynb": notebook(PNG, mystnb=FIGURE)}, ("figures",))
    assert warnings == ""


def test_a_markdown_picture_without_alt_text_is_named(tmp_path):
    silent = "# Title\n\n![](https://x.org/a.png)\n"
    warnings = build(tmp_path, {"index.md": silent}, ("figures",))
    assert "index.md: a figure has no alt text" in warnings


def test_a_markdown_picture_in_a_notebook_is_named_with_its_cell(tmp_path):
    page = notebook()
    page["cells"][0]["source"] = ["# Title\n", "\n", "![](https://x.org/a.png)"]
    warnings = build(tmp_path, {"index.ipynb": page}, ("figures",))
    assert "index.ipynb, cell 1: a figure has no alt text" in warnings


@pytest.mark.parametrize(
    ("html", "missing"),
    [
        ('<img src="data:image/png;base64,AA">', ["<img>"]),
        ('<img src="a.png" alt="">', ["<img>"]),
        ('<div><img src="a.png" alt="Three bars of falling height."/></div>', []),
        ("<svg><path d='M0 0'/></svg>", ["<svg>"]),
        ("<svg><title>Three bars</title></svg>", []),
        ("<svg role='img' aria-label='Three bars'></svg>", []),
        ("<svg aria-hidden='true'></svg>", []),
        ("<svg><svg></svg></svg>", ["<svg>"]),
        ("<canvas></canvas>", ["<canvas>"]),
        ("<table><tr><td>1</td></tr></table>", []),
    ],
)
def test_pictures_in_html(html, missing):
    assert figures.pictures_without_words(html) == missing


def test_a_picture_in_an_html_output_is_named_with_its_cell(tmp_path):
    page = notebook({"text/html": '<img src="data:image/png;base64,AA">', "text/plain": "slider"})
    warnings = build(tmp_path, {"index.ipynb": page}, ("figures",))
    assert "index.ipynb, cell 2: <img> in HTML has no alt text" in warnings


def test_the_html_of_an_output_speaks_for_its_picture(tmp_path):
    """A slider carries a PNG for programs that show no HTML; the page shows the HTML alone."""
    html = '<img alt="A dahlia, sharper as the rank grows." src="data:image/png;base64,AA">'
    warnings = build(tmp_path, {"index.ipynb": notebook(PNG | {"text/html": html})}, ("figures",))
    assert warnings == ""


def test_a_stray_value_beside_a_figure_is_named(tmp_path):
    """Without a semicolon the last line's value is a second output, with the same caption."""
    page = notebook({"text/plain": "[Text(0, 0, 'a')]"}, PNG, mystnb=FIGURE)
    assert "index.ipynb, cell 2: 2 outputs" in build(tmp_path, {"index.ipynb": page}, ("figures",))


def test_a_page_that_loads_from_elsewhere_is_named(tmp_path):
    body = '# Title\n\n<img alt="A dot on paper" src="https://x.org/a.png">\n'
    warnings = build(tmp_path, {"index.md": body}, ("offline",))
    assert "index.html would fetch https://x.org/a.png" in warnings


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://unpkg.com/a.js"></script>', ["https://unpkg.com/a.js"]),
        ('<link rel="stylesheet" href="//fonts.org/a.css">', ["//fonts.org/a.css"]),
        ('<link rel="preconnect" href="https://fonts.org">', ["https://fonts.org"]),
        ('<link rel="canonical" href="https://book.org/a.html">', []),
        ('<a href="https://arxiv.org">paper</a>', []),
        ('<img srcset="a.png 1x, https://x.org/b.png 2x">', ["https://x.org/b.png"]),
        ('<script src="_static/a.js"></script>', []),
    ],
)
def test_loads_from_elsewhere(html, found):
    assert offline.loads_from_elsewhere(html) == found


@pytest.mark.parametrize(
    ("url", "slug"),
    [
        ("https://github.com/someone/book.git", "someone/book"),
        ("https://github.com/someone/book", "someone/book"),
        ("git@github.com:someone/lora.book.git", "someone/lora.book"),
        ("ssh://git@github.com/someone/book.git", "someone/book"),
        ("https://token@github.com/someone/book.git", "someone/book"),
        ("https://example.org/someone/book.git", None),
        ("/home/me/book", None),
        ("", None),
    ],
)
def test_github_slug(url, slug):
    assert repository.github_slug(url) == slug


def test_no_repository_no_button(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert repository.repository_slug(tmp_path) is None
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    assert repository.repository_slug(tmp_path) == "someone/book"


# ---------------------------------------------------------------- the glossary

CHAPTER = """
(ch-one)=
# One

About {term}`rank`, in the first paragraph.

## What a rank is

:::{note}
Do you know {term}`energy`?
:::

A {term}`rank` is a number.

## Later

{term}`energy <Energy>` and {term}`rank` again.
"""
GLOSSARY = """
# Glossary

:::{glossary}
rank
  A number. See {ref}`ch-one`.

share
energy
  A share. See {ref}`ch-one`.

trace
  A sum. See {ref}`ch-one`, {ref}`below`.
:::

(below)=
## Below
"""


def test_a_glossary_entry_leads_to_the_section_that_explains_its_word(tmp_path):
    pages = {"index.md": "# I\n\n```{toctree}\none\nwords\n```\n", "one.md": CHAPTER}
    settings = 'glossary_page = "words"\n'
    said = build(tmp_path, {**pages, "words.md": GLOSSARY}, ("glossary_links",), settings)
    assert said == ""
    text = (tmp_path / "out" / "words.html").read_text()
    links = re.findall(r'href="([^"]*)"><span class="std std-ref">([^<]*)</span>', text)
    assert links == [
        ("one.html#what-a-rank-is", "One, What a rank is"),
        ("one.html#later", "One, Later"),
        ("one.html#ch-one", "One"),
        ("#below", "Below"),
    ]
