"""The foot of a page, the menu for downloads and the notebooks to download."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import stamp
import yaml
from site_help import DESK, PAGES, PHONE, ROOT, Visit
from tiny_site import Tiny

CFF = {
    "authors": [{"name": "The authors"}, {"given-names": "A.", "family-names": "B"}],
    "title": "The book & more",
    "version": "1.2",
    "date-released": "2026-11-23",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No repository and no address are known unless a test gives them."""
    for name in ("BOOK_URL", "GITHUB_REPOSITORY", "GITHUB_SHA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stamp, "repository_slug", lambda: None)


# --- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (6.7, "6.7 s"), (9.99, "10 s"), (59.6, "1 min 0 s"), (72, "1 min 12 s")],
)
def test_durations(seconds, words):
    assert stamp.duration(seconds) == words


def test_a_page_says_that_it_was_executed_or_that_it_was_built():
    noon = 1_795_953_600.0  # 29 November 2026, 12:00 UTC
    ran, never = stamp.Executed(None, noon, 72.0, 2), stamp.Executed()
    assert stamp.when(ran, 0.0, "Python 3.12.3, torch 2.9", "abc1234") == (
        "Executed on 29 November 2026 in 1 min 12 s on 2 cores with Python 3.12.3, torch 2.9. "
        "Built from commit abc1234."
    )
    alone = stamp.when(ran._replace(cores=1), 0.0, "Python", "")
    assert alone == "Executed on 29 November 2026 in 1 min 12 s on one core with Python."
    unknown = stamp.when(ran._replace(cores=None), 0.0, "Python", "")
    assert unknown == "Executed on 29 November 2026 in 1 min 12 s with Python."
    assert stamp.when(never, noon, "Python", "abc1234") == (
        "Built on 29 November 2026 from commit abc1234."
    )
    assert stamp.when(never, noon, "Python", "") == "Built on 29 November 2026."


def test_a_commit_with_changes_is_not_named_as_if_it_had_none(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    asked = stamp.commit.__wrapped__
    assert re.fullmatch(r"[0-9a-f]{7}", asked(tmp_path))
    (tmp_path / "file").write_text("two")
    assert asked(tmp_path).endswith(" with changes")
    assert asked(tmp_path / "nowhere") == ""


def test_the_versions_are_those_of_this_python():
    import sys

    import torch

    words = stamp.versions()
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))}" in words
    assert f"torch {torch.__version__.partition('+')[0]}" in words  # '+cu130' is of the build
    assert words.endswith(
        "minilora " + yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    )


# --- Citing and reporting -----------------------------------------------------------------------


def test_a_chapter_is_cited_with_the_book_around_it():
    plain, bibtex = stamp.citation(
        "Why 2_r?", "notebooks/02_r", False, "https://a.org/n.html", CFF, "2"
    )
    assert plain == (
        "The authors, A. B (2026). Why 2_r? In: The book & more, chapter 2. Version 1.2. "
        "https://a.org/n.html"
    )
    assert bibtex.startswith("@incollection{lora-measured-02-r,\n")
    assert r"  title = {Why 2\_r?}," in bibtex
    assert r"  booktitle = {The book \& more}," in bibtex
    assert "  author = {{The authors} and {A. B}}," in bibtex
    assert bibtex.count("{") == bibtex.count("}")


def test_the_front_page_cites_the_book():
    plain, bibtex = stamp.citation("The book", "book/index", True, "", CFF)
    assert plain == "The authors, A. B (2026). The book & more. Version 1.2."
    assert bibtex.startswith("@book{lora-measured,\n")
    assert "url" not in bibtex
    assert "booktitle" not in bibtex


def test_bibtex_can_be_read():
    database = pytest.importorskip("pybtex.database")
    entry = database.parse_string(
        stamp.citation("One & two", "a/b", False, "https://a.org/b_c.html", CFF, "3")[1], "bibtex"
    ).entries["lora-measured-b"]
    assert entry.fields["title"] == r"One \& two"
    assert entry.fields["url"] == "https://a.org/b_c.html"
    assert len(entry.persons["author"]) == 2


def test_a_mistake_is_reported_with_the_page_filled_in():
    parts = urlsplit(stamp.report_link("o/n", "SVD & more", "https://a.org/p.html"))
    assert f"{parts.netloc}{parts.path}" == "github.com/o/n/issues/new"
    asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert asked["page"] == "SVD & more (https://a.org/p.html)"
    assert asked["title"] == "SVD & more: "
    # The form is there, and has the field that is filled in.
    form = ROOT / ".github" / "ISSUE_TEMPLATE" / asked["template"]
    fields = {one.get("id") for one in yaml.safe_load(form.read_text(encoding="utf-8"))["body"]}
    assert "page" in fields


def test_the_version_links_to_the_changes_only_where_there_is_a_repository():
    assert "<a" not in stamp.version_line(None, {})
    assert 'href="https://github.com/o/n/blob/main/CHANGELOG.md"' in stamp.version_line("o/n", {})


def test_the_files_of_the_whole_book_are_linked_where_they_are_published(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_FILES", "whole.pdf whole.epub")
    pages = {"index.md": "# The book\n\n```{toctree}\ndeep/page\n```\n", "deep/page.md": "# Deep\n"}
    site = Tiny(tmp_path, pages, ("stamp",), theme="sphinx_book_theme")
    line = re.search(r'<p class="book-version">.*?</p>', site["deep/page.html"])[0]
    assert re.findall(r'href="([^"]+)">(\w+)<', line) == [
        ("../whole.pdf", "PDF"), ("../whole.epub", "EPUB"),
    ]  # fmt: skip
    assert (ROOT / "CHANGELOG.md").is_file()


# --- Tiny projects ------------------------------------------------------------------------------

NOTEBOOK = {
    "cells": [
        {
            "cell_type": "markdown",
            "id": "a",
            "metadata": {},
            "source": "# One & thing\n\nSee {ref}`the end <end>`.\n\n(end)=\n## End\n\nWords.",
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "source": "print('ran', 6 * 7)",
            "execution_count": None,
            "outputs": [],
        },
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
TWO = {"index.md": "# The book\n\nWords.\n\n```{toctree}\none\n```\n", "one.ipynb": NOTEBOOK}


def executing(folder: Path) -> str:
    """Settings with which MyST-NB executes into a cache, as the book's configuration does."""
    (folder / "cache").mkdir()
    return (
        f'nb_execution_mode = "cache"\nnb_execution_cache_path = {str(folder / "cache")!r}\n'
        'suppress_warnings = ["mystnb.unknown_mime_type"]\n'
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A page with code, executed, and one without, in the book's theme and with no repository."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stamp, "repository_slug", lambda: None)
        return Tiny(folder, TWO, ("stamp",), executing(folder), theme="sphinx_book_theme")


def test_a_page_that_ran_and_one_without_code(two):
    page = two["one.html"]
    assert re.search(
        r"Executed on \d+ \w+ \d{4} in [\d.]+ s with Python [\d.]+, torch \S+, numpy \S+, "
        r"minilora [\d.]+[,.]",
        page,
    )
    assert re.search(r"Built on \d+ \w+ \d{4}", two["index.html"])
    assert "Executed on" not in two["index.html"]
    # Without a repository nothing leads to one.
    assert "colab.research" not in page
    assert "issues/new" not in page
    assert "One &amp; thing. In: LoRA, measured" in page
    assert "downloads" not in two["index.html"]


def test_the_menu_offers_notebooks_and_not_the_source(two):
    menu = re.search(r'class="dropdown-menu">(.*?)</ul>', two["one.html"], flags=re.S)[1]
    assert re.findall(r'href="([^"]+)"', menu) == [
        "downloads/one.ipynb",
        "downloads/one_with_outputs.ipynb",
    ]
    assert "window.print()" in menu
    other = re.search(r'class="dropdown-menu">(.*?)</ul>', two["index.html"], flags=re.S)[1]
    assert "href" not in other
    assert not (two.out / "_sources").exists()


def test_notebooks_are_plain_and_hold_outputs_where_they_should(two):
    bare, full = (json.loads(two[name]) for name in stamp.notebook_names("one"))
    assert bare["cells"][1]["outputs"] == []
    assert full["cells"][1]["outputs"][0]["text"] == "ran 42\n"
    for notebook in (bare, full):
        words = "".join(notebook["cells"][0]["source"])
        assert "{ref}" not in words
        assert "See the end." in words


def test_outputs_and_date_come_from_the_cache_in_a_later_build(tmp_path):
    """MyST-NB gives notebooks that it took from the cache back without their outputs."""
    settings = executing(tmp_path)
    first = Tiny(tmp_path, TWO, ("stamp",), settings)
    sentence = re.search(r"Executed on [^<]*", first["one.html"])[0]
    (tmp_path / "source" / "one.ipynb").touch()
    again = Tiny(tmp_path, TWO, ("stamp",), settings + "# read all again\nnumfig = True\n")
    full = json.loads(again[stamp.notebook_names("one")[1]])
    assert full["cells"][1]["outputs"][0]["text"] == "ran 42\n"
    assert re.search(r"Executed on [^<]*", again["one.html"])[0] == sentence


def test_a_known_repository_brings_colab_and_the_form(tmp_path, monkeypatch):
    monkeypatch.setattr(stamp, "repository_slug", lambda: "o/n")
    page = Tiny(tmp_path, TWO, ("stamp",), executing(tmp_path))["one.html"]
    assert 'href="https://colab.research.google.com/github/o/n/blob/colab/one.ipynb"' in page
    assert "https://github.com/o/n/issues/new?" in page


def test_glued_values_do_not_travel():
    glued = {
        "output_type": "display_data",
        "data": {"application/papermill.record/text/plain": "1"},
    }
    shown = {"output_type": "stream", "text": "1"}
    cell = {"cell_type": "code", "outputs": [glued, shown]}
    assert stamp.without_glue({"cells": [cell]})["cells"][0]["outputs"] == [shown]


# --- The built site -----------------------------------------------------------------------------


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_a_foot(site, page):
    text = (site / page).read_text(encoding="utf-8")
    feet = re.findall(r'<aside class="book-stamp".*?</aside>', text, flags=re.S)
    assert len(feet) == 1
    notebook = (ROOT / page).with_suffix(".ipynb")
    if notebook.is_file():
        assert "<p>Executed on " in feet[0]
        links = re.findall(r'href="([^"]+)" download', feet[0])
        assert len(links) == 2
        for link in links:
            assert (site / page).parent.joinpath(unescape(link)).resolve().is_file()
    else:
        assert "<p>Built on " in feet[0]
        assert "download" not in feet[0]
    assert "@incollection{" in feet[0] or "@book{" in feet[0]


@pytest.mark.site
@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_downloads_are_notebooks_without_myst(site, notebook):
    nbformat = pytest.importorskip("nbformat")
    bare, full = (
        json.loads((site / name).read_text(encoding="utf-8"))
        for name in stamp.notebook_names(f"notebooks/{notebook.stem}")
    )
    for found in (bare, full):
        nbformat.validate(found)
        prose = "".join(
            "".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "markdown"
        )
        assert not re.search(r"\{(ref|doc|term|eq|numref|cite:?[tp]?|glue:?\w*)\}`", prose)
    assert not any(cell.get("outputs") for cell in bare["cells"])
    drawn = [o for cell in full["cells"] for o in cell.get("outputs", [])]
    assert any(kind.startswith("image/") for o in drawn for kind in o.get("data", {}))


@pytest.mark.site
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_foot_can_be_read_and_opened(browser, address, size, scheme):
    with Visit(browser, address, "notebooks/01_rank.html") as opened:
        opened.page.set_viewport_size(size)
        opened.page.emulate_media(color_scheme=scheme)
        foot = opened.page.locator(".book-stamp")
        foot.scroll_into_view_if_needed()
        cited = foot.locator("details pre")
        assert not cited.is_visible()
        foot.locator("summary").click()
        assert cited.is_visible()
        wide = foot.evaluate("node => node.scrollWidth <= node.clientWidth + 1")
        assert wide, "the foot is wider than its column"
        assert opened.errors == []
