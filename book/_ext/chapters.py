"""The map of the chapters: ``{chapter-map}`` lists them by part, with what a reader wants to know.

A line and a level for each page stand in book/chapters.yml. The minutes of reading are counted from
the page as it is shown, without what is folded; the minutes of running are those that the last
execution took. The parts and their order are those of the table of contents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from executed import executed
from noted import keep, noted
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
WORDS_A_MINUTE = 180
LINES_A_MINUTE = 30  # of code
WORDS_OF_A_FORMULA = 10  # one that stands on a line of its own
FOLDED = {"tag_hide-cell", "tag_remove-cell"}
FOLDED_CODE = {"tag_hide-input", "tag_remove-input"}
LEVELS = {1: "for everybody", 2: "with some practice", 3: "demanding"}
LONGEST = 90  # characters of a line
MINUTES = "chapter_minutes"  # noted of a page: how long it takes to read
MAPS = "chapters_mapped"  # noted of a page that shows the map


class ChapterMap(nodes.General, nodes.Element):
    """Where the map is to stand; filled in when all pages have been read."""


class ChapterMapDirective(SphinxDirective):
    """``{chapter-map}``, without content."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(table_path(self.env.app)))
        return [ChapterMap()]


# --- Minutes ------------------------------------------------------------------------------------


def _is_folded(node: nodes.Node) -> bool:
    if not isinstance(node, nodes.Element):
        return False
    if node.get("nb_element") == "cell_code_source":
        return bool(set(node.parent.get("classes", [])) & FOLDED_CODE)
    classes = set(node.get("classes", []))
    return bool(classes & FOLDED) or "sd-dropdown" in classes or node.get("type") == "dropdown"


def reading_minutes(doctree: nodes.document) -> float:
    """How long the open text, formulas and code of a page take to read."""
    words = lines = 0

    def look(node: nodes.Node) -> None:
        nonlocal words, lines
        if isinstance(node, nodes.Text):
            words += len(re.findall(r"\w[\w’'.,-]*", node.astext()))
        elif isinstance(node, (nodes.math_block, nodes.math)):
            words += WORDS_OF_A_FORMULA if isinstance(node, nodes.math_block) else 1
        elif isinstance(node, nodes.literal_block):
            lines += sum(1 for line in node.astext().splitlines() if line.strip())
        elif isinstance(node, (nodes.raw, nodes.comment, nodes.system_message)):
            pass
        elif isinstance(node, nodes.container) and node.get("nb_element") == "cell_code_output":
            # One line for each output: it is looked at rather than read.
            lines += 1
            for caption in node.findall(nodes.caption):
                words += len(caption.astext().split())
        elif not _is_folded(node):
            for child in node.children:
                look(child)

    look(doctree)
    return words / WORDS_A_MINUTE + lines / LINES_A_MINUTE


def rounded(minutes: float) -> int:
    """To five minutes, which is as exact as a reading time can be; under ten to one."""
    return max(1, round(minutes)) if minutes < 10 else 5 * round(minutes / 5)


def in_words(seconds: float) -> str:
    """A duration as short as it is exact: '7 s', '25 s', '2 min'."""
    if seconds < 20:
        return f"{max(1, round(seconds))} s"
    if seconds < 57.5:
        return f"{5 * round(seconds / 5)} s"
    return f"{max(1, math.floor(seconds / 60 + 0.5))} min"


# --- The table ----------------------------------------------------------------------------------


def table_path(app) -> Path:
    """The table with a line and a level for each page."""
    return Path(app.srcdir) / app.config.chapter_table


def read_table(path: Path) -> dict[str, dict]:
    """{page: {"line": …, "level": 1 to 3}}.

    Raises:
        ValueError: The table is not of that form; the message names the page.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    for page, entry in table.items():
        line, level = entry.get("line", ""), entry.get("level")
        if not line or len(line) > LONGEST:
            raise ValueError(f"{page}: the line has {len(line)} characters; 1 to {LONGEST} can be")
        if level not in LEVELS:
            raise ValueError(f"{page}: the level is {level!r}; it can be {list(LEVELS)}")
    return table


def _parts(env) -> list[tuple[str, list[str]]]:
    """(caption, pages) of each part in the table of contents."""
    root = env.get_doctree(env.config.root_doc)
    return [
        (tree.get("caption") or "", [page for _, page in tree["entries"]])
        for tree in root.findall(addnodes.toctree)
    ]


def _number(env, page: str) -> str:
    number = env.toc_secnumbers.get(page, {}).get("", ())
    return ".".join(map(str, number))


def _entry(app, page: str, entry: dict, here: str) -> str:
    env = app.env
    number, title = _number(env, page), escape(env.titles[page].astext())
    link = app.builder.get_relative_uri(here, page)
    level = entry["level"]
    facts = [
        f'<span class="chapter-level" role="img" aria-label="level {level} of 3: '
        f'{LEVELS[level]}" title="{LEVELS[level]}">{"★" * level}</span>',
        f"<span>reads in {rounded(noted(env, MINUTES).get(page, 0))} min</span>",
    ]
    if seconds := executed(app, page).seconds:
        facts.append(f"<span>runs in {in_words(seconds)}</span>")
    shown = f'<span class="chapter-number">{number}</span> {title}' if number else title
    return (
        f'<li><a class="chapter-title" href="{escape(link)}">{shown}</a>'
        f'<span class="chapter-line">{escape(entry["line"])}</span>'
        f'<span class="chapter-facts">{"".join(facts)}</span></li>'
    )


def chapter_map(app, here: str) -> str:
    """The map as HTML, with links from the page ``here``."""
    table = read_table(table_path(app))
    blocks = []
    listed = set()
    for index, (caption, pages) in enumerate(_parts(app.env)):
        rows = [_entry(app, page, table[page], here) for page in pages if page in table]
        listed |= set(pages)
        if rows:
            name = f"chapter-part-{index + 1}"
            blocks.append(
                f'<section class="chapter-part" aria-labelledby="{name}">'
                f'<h3 id="{name}">{escape(caption)}</h3><ol>{"".join(rows)}</ol></section>'
            )
    for page in table:
        if page not in listed:
            logger.warning("%s names %s, which is not in the table of contents",
                           app.config.chapter_table, page, type="chapters")  # fmt: skip
    for page in sorted(listed - set(table)):
        if app.env.doc2path(page, base=False).endswith(".ipynb"):
            logger.warning("%s has no line for %s", app.config.chapter_table, page,
                           type="chapters")  # fmt: skip
    note = times_note(executed(app, page).cores for page in table)
    return f'<div class="chapter-map">{"".join(blocks)}{note}</div>'


def times_note(cores: Iterable[int | None]) -> str:
    """What the run times on the map mean; nothing where no notebook was executed."""
    counts = sorted({count for count in cores if count})
    if not counts:
        return ""
    words = " or ".join("one" if count == 1 else str(count) for count in counts)
    words += " core" if counts == [1] else " cores"
    return f'<p class="chapter-note">The run times are those of this build, on {words}.</p>'


# --- Events -------------------------------------------------------------------------------------


def _count(app, doctree) -> None:
    noted(app.env, MINUTES)[app.env.docname] = reading_minutes(doctree)
    if any(doctree.findall(ChapterMap)):
        noted(app.env, MAPS)[app.env.docname] = True


def _rewrite(app, env) -> list[str]:
    """A map is written anew in every build: it tells of other pages."""
    return sorted(noted(env, MAPS))


def _fill(app, doctree, docname) -> None:
    for node in list(doctree.findall(ChapterMap)):
        if app.builder.format != "html":
            node.parent.remove(node)
            continue
        node.replace_self(nodes.raw("", chapter_map(app, docname), format="html"))


def setup(app):
    app.add_node(ChapterMap)
    app.add_config_value("chapter_table", "book/chapters.yml", "env", [str])
    app.add_directive("chapter-map", ChapterMapDirective)
    app.connect("doctree-read", _count)
    keep(app, MINUTES, MAPS)
    app.connect("env-updated", _rewrite)
    app.connect("doctree-resolved", _fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
