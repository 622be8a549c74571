"""The map of the chapters: `{chapter-map}`, its table, its minutes."""

from __future__ import annotations

import re

import chapters
import pytest
import yaml
from docutils import nodes
from site_help import DESK, PHONE, ROOT, Visit
from tiny_site import Tiny

INDEX = """# The book

```{chapter-map}
```

```{toctree}
:caption: Part I · First
:numbered:
one
two
```

```{toctree}
:caption: Apart
three
```
"""
PROSE = "word " * 2700  # a quarter of an hour
TABLE = {
    "one": {"line": "The first & best", "level": 1},
    "three": {"line": "The last", "level": 3},
}


def tiny(tmp_path, table, **pages):
    given = {"index.md": INDEX, "one.md": f"# One\n\n{PROSE}\n", "two.md": "# Two\n\nA.\n",
             "three.md": "# Three\n\nB.\n", "chapters.yml": yaml.safe_dump(table)}  # fmt: skip
    given |= {f"{name}.md": text for name, text in pages.items()}
    return Tiny(tmp_path, given, ("chapters",), 'chapter_table = "chapters.yml"\n')


def test_the_map_follows_the_table_of_contents(tmp_path):
    site = tiny(tmp_path, TABLE)
    found = re.search(r'<div class="chapter-map">.*?</div>', site["index.html"], flags=re.S)[0]
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", found) == ["Part I · First", "Apart"]
    assert re.findall(r'href="([^"]+)"', found) == ["one.html", "three.html"]
    assert "The first &amp; best" in found
    assert '<span class="chapter-number">1</span> One' in found
    assert re.findall(r"level (\d) of 3", found) == ["1", "3"]
    assert re.findall(r"reads in (\d+) min", found) == ["15", "1"]
    assert "runs in" not in found, "nothing was executed"
    assert not site.warnings


def test_the_map_is_written_anew_when_a_chapter_changes(tmp_path):
    """Also on a page that Sphinx has no reason of its own to write anew."""
    apart = {"three": "# Three\n\n```{chapter-map}\n```\n"}
    assert "reads in 15 min" in tiny(tmp_path, TABLE, **apart)["three.html"]
    again = tiny(tmp_path, TABLE, one=f"# One\n\n{PROSE * 2}\n", **apart)
    assert "reads in 30 min" in again["three.html"]


def test_a_page_that_is_not_there_is_named(tmp_path):
    site = tiny(tmp_path, TABLE | {"nowhere": {"line": "Words", "level": 2}})
    assert any("nowhere" in line for line in site.warnings)


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"line": "x" * 91, "level": 1}, "91 characters"), ({"line": "x", "level": 4}, "level is 4"),
     ({"level": 1}, "0 characters")],
)  # fmt: skip
def test_a_bad_table_is_refused(tmp_path, entry, words):
    path = tmp_path / "chapters.yml"
    path.write_text(yaml.safe_dump({"page": entry}))
    with pytest.raises(ValueError, match=words):
        chapters.read_table(path)


def test_folded_cells_and_long_outputs_do_not_count():
    def cell(lines: int, *classes: str) -> nodes.container:
        source = nodes.container(nb_element="cell_code_source")
        source += nodes.literal_block(text="x = 1\n" * lines)
        output = nodes.container(nb_element="cell_code_output")
        output += nodes.literal_block(text="1\n" * 900)
        whole = nodes.container("", source, nb_element="cell_code", classes=list(classes))
        whole += output
        return whole

    def minutes(*children: nodes.Node) -> float:
        section = nodes.section("", *children)
        return chapters.reading_minutes(nodes.container("", section))

    open_cell = minutes(cell(60))
    assert 1.9 < open_cell < 2.2
    assert minutes(cell(60, "tag_hide-cell")) == 0
    assert minutes(cell(60, "tag_hide-input")) < 0.1, "the picture stays, its code is folded"
    assert minutes(nodes.paragraph(text="word " * 360)) == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (7.4, "7 s"), (33, "35 s"), (58, "1 min"), (89, "1 min"), (91, "2 min")],
)
def test_run_times(seconds, words):
    assert chapters.in_words(seconds) == words


def test_every_chapter_has_a_line():
    table = chapters.read_table(ROOT / "book" / "chapters.yml")
    for page in table:
        assert any((ROOT / f"{page}{kind}").is_file() for kind in (".ipynb", ".md")), page
    have = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert have <= set(table)


@pytest.mark.parametrize(
    ("cores", "words"),
    [([None], ""), ([1, 1, None], "on one core."), ([2, 1], "on one or 2 cores.")],
)
def test_the_map_says_on_how_many_cores(cores, words):
    note = chapters.times_note(cores)
    assert words in note
    assert bool(note) == bool(words)


@pytest.mark.site
@pytest.mark.parametrize(("size", "columns"), [(DESK, 2), (PHONE, 1)], ids=["desk", "phone"])
def test_the_map_in_the_book(browser, address, size, columns):
    table = chapters.read_table(ROOT / "book" / "chapters.yml")
    with Visit(browser, address, "book/index.html") as opened:
        opened.page.set_viewport_size(size)
        entries = opened.page.locator(".chapter-map li")
        assert entries.count() == len(table)
        left = entries.evaluate_all("all => all.map(n => Math.round(n.getBoundingClientRect().x))")
        assert len(set(left)) == columns
        facts = opened.page.locator(".chapter-map .chapter-facts").all_inner_texts()
        assert all(re.search(r"reads in \d+ min", fact) for fact in facts)
        notebooks = sum((ROOT / f"{page}.ipynb").is_file() for page in table)
        assert sum("runs in" in fact for fact in facts) == notebooks


@pytest.mark.site
def test_the_card_of_a_chapter_and_the_map_say_the_same(site):
    """Reading times, to the five minutes that they are rounded to."""
    shown = (site / "book" / "index.html").read_text(encoding="utf-8")
    shown = shown[shown.index('id="the-chapters"') :]
    compared = 0
    for page in sorted((site / "notebooks").glob("*.html")):
        entry = shown[shown.index(f"{page.name}") :]
        counted = int(re.search(r"reads in (\d+)", entry)[1])
        said = re.search(r"Reading takes about (\d+) minutes", page.read_text(encoding="utf-8"))
        assert abs(int(said[1]) - counted) <= 5, f"{page.stem}: {said[1]} on its card, {counted}"
        compared += 1
    assert compared == 19
