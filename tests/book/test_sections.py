"""The index of the search and the rows of the glossary, on tiny projects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import glossary_links
import glossary_rows
import pytest
import sections
from tiny_site import Tiny

EXTENSIONS = ("sphinx.ext.autodoc", "sphinx_exercise", "glossary_rows", "sections")
INDEX_PAGE = (
    "# Front\n\n```{toctree}\n:numbered:\nchapter\n```\n\n```{toctree}\nwords\nclaims\n```\n"
)
CHAPTER = """
# A chapter

Its **first** words, and {term}`rank`.

## The update

The update is $\\Delta W = \\tfrac{\\alpha}{r} B A$, set by `lora_alpha`.

$$ E = m c^2 $$

```python
lora_config = make(Conv1D, value)
```

### Deeper

A word below.

:::{exercise} ★ Count them
:label: ex-count

How many are there?
:::

## Sources

Somebody, somewhere.

```{py:function} tiny.cut_off(matrix, most)

Cut a matrix off.
```
"""
WORDS = """
# Words

:::{glossary}
absmax
最大絶対値
  The largest of all.

rank
階数
ランク
  A number, see {term}`absmax`.
:::

(glossary-ja)=
## 日本語から引く

| 日本語 | English |
|---|---|
| {term}`最大絶対値` | absmax |
| {term}`ランク` | rank |
| {term}`階数` | rank |
"""
CLAIMS = """
# Claims

| Claim | Verdict |
|---|---|
| Too large a $r$ overfits. | Not always. |
| Too large a rate breaks. | Yes. |

| Letter | Sound |
|---|---|
| b | bee |
"""


def build(folder: Path, pages: dict[str, str]) -> tuple[str, Path]:
    """Build a project of these pages; return the warnings and the folder of the site."""
    site = Tiny(folder, pages, EXTENSIONS)
    return "\n".join(site.warnings), site.out


PAGES = {"index.md": INDEX_PAGE, "chapter.md": CHAPTER, "words.md": WORDS, "claims.md": CLAIMS}


def read(site: Path) -> dict:
    text = (site / "_static" / "sections-index.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.BOOK_SECTIONS=").removesuffix(";\n"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    warnings, out = build(tmp_path_factory.mktemp("book"), PAGES)
    assert warnings == ""
    return out


@pytest.fixture(scope="module")
def places(site) -> dict[str, tuple]:
    """{anchor: (kind, number, heading, where, text, code)} of the chapter and the other pages."""
    return {place[2]: (place[1], *place[3:]) for place in read(site)["places"]}


def test_sections_have_number_heading_way_and_text(places):
    assert places["a-chapter"] == (
        "section", "1", "A chapter", "", "Its ⟦first⟧ words, and ⟦rank⟧.", "",
    )  # fmt: skip
    kind, number, heading, where, text, _ = places["the-update"]
    assert (kind, number, heading, where) == ("section", "1.1", "The update", "")
    assert text == "The update is Δ W = α/r B A, set by lora_alpha."
    assert places["deeper"][1:4] == ("1.1.1", "Deeper", "The update")


def test_of_code_only_telling_names_are_kept(places):
    assert places["the-update"][5] == "lora_config Conv1D"


def test_what_only_repeats_is_left_out(places):
    assert places["sources"][2:5] == ("Sources", "", "")


def test_terms_have_all_their_names(places):
    assert places["term-rank"][0] == "term"
    assert places["term-rank"][2] == "rank · 階数 · ランク"
    assert places["term-rank"][4] == "A number, see ⟦absmax⟧."
    assert places["glossary-ja"][4] == "", "each name is in its entry"


def test_exercises_and_functions_are_places(places):
    assert places["ex-count"][0] == "exercise"
    assert places["ex-count"][2] == "Count them"
    assert places["ex-count"][4] == "How many are there?"
    assert places["tiny.cut_off"][0] == "api"
    assert places["tiny.cut_off"][2] == "tiny.cut_off"


def test_each_claim_has_an_anchor(places, site):
    assert places["claim-too-large-a-r-overfits"][2] == "Too large a r overfits."
    assert "Not always." in places["claim-too-large-a-r-overfits"][4]
    page = (site / "claims.html").read_text()
    assert re.search(r'<tr [^>]*id="claim-too-large-a-rate-breaks"', page)
    assert "claim-b" not in page, "a table of something else"


def test_a_second_build_keeps_the_pages_that_did_not_change(tmp_path):
    build(tmp_path, PAGES)
    _, out = build(tmp_path, {"chapter.md": CHAPTER.replace("A word below", "Another word")})
    there = {place[2]: place[6] for place in read(out)["places"]}
    assert there["deeper"] == "Another word."
    assert there["term-absmax"] == "The largest of all."


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\Delta W = \tfrac{\alpha}{r} B A", "Δ W = α/r B A"),
        (r"\frac1r", "1/r"),
        (r"V^{\mathsf T}", "Vᵀ"),
        (r"V^\top x", "Vᵀ x"),
        (r"r \le \min(m, n)", "r ≤ min(m, n)"),
        (r"d_\text{in}", "d in"),
    ],
)
def test_formulas_become_readable(tex, plain):
    assert sections.readable(tex) == plain


# ---------------------------------------------------------------- the glossary


def test_rows_of_letters_lead_to_entries(site):
    page = (site / "words.html").read_text(encoding="utf-8")
    links = dict(re.findall(r'<a [^>]*href="#([^"]+)"[^>]*>([A-Z])</a>', page))
    assert links == {"term-absmax": "A", "term-rank": "R"}
    kana = re.findall(r'<a [^>]*href="#(kana-\d+)"[^>]*>(.)</a>', page)
    assert kana == [("kana-2", "か"), ("kana-3", "さ"), ("kana-9", "ら")]
    rows = re.findall(r'<tr class="[^"]*"(?: id="([^"]*)")?>', page[page.index("<tbody>") :])
    assert rows == ["kana-2", "kana-3", "kana-9"], "かいすう, さいだいぜったいち, ランク"


def test_a_name_without_a_reading_is_named(tmp_path):
    odd = WORDS.replace("階数", "鑑定")
    warnings, _ = build(tmp_path, {**PAGES, "words.md": odd})
    assert "how is 鑑定 read?" in warnings


@pytest.mark.parametrize(
    ("name", "row"),
    [("学習率", "か"), ("ガイダンス", "か"), ("重み", "あ"), ("ドロップアウト", "た"),
     ("べき乗法", "は"), ("Adam法", ""), ("2つ程度", ""), ("鑑定", None)],
)  # fmt: skip
def test_rows_of_japanese_names(name, row):
    assert glossary_rows.row_of(name) == row


SECTIONS = [
    ("one", "Walking down", "The loss falls. The gradient leads."),
    ("two", "Energy", "The trace, the trace and the loss."),
    ("three", "Later", "A trace of it, and a loss."),
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["energy"], "two"),  # in a title
        (["trace", "跡"], "two"),  # more often than in all the others
        (["gradient"], "one"),  # in one section only
        (["loss"], None),  # everywhere
        (["entropy"], None),  # nowhere
        (["跡"], None),
    ],
)
def test_the_section_that_is_about_a_word(names, found):
    place = glossary_links.find_section(names, SECTIONS)
    assert (place and place[0]) == found
