"""The PDF and the EPUB hold the whole book, and nothing in them is broken.

Both are made by `make pdf` and `make epub`; the tests fail where they are missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from paper import complaints, log_of, overfull
from site_help import ROOT

pytestmark = pytest.mark.site

XHTML = "{http://www.w3.org/1999/xhtml}"
OPF = "{http://www.idpf.org/2007/opf}"


@pytest.fixture(scope="module")
def chapters() -> dict[int, str]:
    """{number: page}, as `make chapter` counts them."""
    from build import chapters  # at the top it would be sorted by whether there is a build folder

    return chapters()


def made(name: str) -> Path:
    """A file that `make pdf` or `make epub` writes."""
    path = ROOT / "build" / name
    if path.suffix == ".pdf" and os.environ.get("BOOK_WITHOUT_PDF"):
        pytest.skip("This machine has no XeLaTeX; see .ci/run.")
    if not path.exists():
        pytest.fail(f"There is no {path}. Run 'make {path.suffix[1:]}' first.", pytrace=False)
    return path


def notebook(name: str) -> dict:
    return json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))


def title_of(name: str) -> str:
    """The title of a chapter, as its first cell has it."""
    first = "".join(notebook(name)["cells"][0]["source"])
    return re.search(r"^# (.+)$", first, re.M)[1]


def figures(site: Path) -> dict[str, str]:
    """{name: how its caption begins} of all figures of cells that are on the site."""
    shown = {
        name
        for page in site.rglob("*.html")
        for name in re.findall(r'id="(fig-[\w-]+)"', page.read_text(encoding="utf-8"))
    }
    found = {}
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")]:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            figure = cell["metadata"].get("mystnb", {}).get("figure")
            if figure and figure["name"] in shown:
                found[figure["name"]] = plain(re.split(r"[$`{*]", figure["caption"])[0])[:40]
    assert len(found) > 90
    return found


def plain(text: str) -> str:
    """Letters and digits only: without spaces, hyphens and quotes that a line end changes."""
    return re.sub(r"[\W_]+", "", text)


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.fail(f"There is no {command[0]}. Install poppler-utils.", pytrace=False)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ------------------------------------------------------------------------------------------ PDF


@pytest.fixture(scope="module")
def pdf() -> Path:
    return made("lora-measured.pdf")


@pytest.fixture(scope="module")
def text(pdf) -> str:
    return plain(tool("pdftotext", str(pdf), "-"))


@pytest.fixture(scope="module")
def log(pdf) -> str:
    return log_of(ROOT / "build" / "_build" / "latex")


def test_the_pdf_is_a_whole_book_on_a4(pdf):
    facts = dict(
        line.split(":", 1) for line in tool("pdfinfo", str(pdf)).splitlines() if ":" in line
    )
    assert int(facts["Pages"]) > 300
    assert "A4" in facts["Page size"]
    assert facts["Title"].strip() == "LoRA, measured"
    assert facts["Author"].strip() == "The authors of the LoRA book"


def test_every_font_is_within_the_pdf(pdf):
    lines = tool("pdffonts", str(pdf)).splitlines()[2:]
    assert lines
    for line in lines:
        assert line.split()[-5] == "yes", f"a font is not in the file: {line}"


def test_the_outline_has_all_chapters(pdf, chapters):
    lines = (ROOT / "build/_build/latex/lora-measured.toc").read_text(encoding="utf-8")
    numbers = re.findall(r"\\contentsline \{chapter\}\{\\numberline \{(\d+)\}", lines)
    assert [int(number) for number in numbers] == sorted(chapters)
    shown = tool("pdftohtml", "-xml", "-i", "-l", "1", "-stdout", str(pdf))
    outline = [plain(entry) for entry in re.findall(r"<item page[^>]*>([^<]*)</item>", shown)]
    for number, name in chapters.items():
        assert plain(f"{number} {title_of(name)}") in outline
    for part in ("Low rank", "LoRA by hand", "Fine-tuning", "In practice"):
        assert any(entry.endswith(plain(part)) for entry in outline), part


def test_every_chapter_is_in_the_text(text, chapters):
    for name in chapters.values():
        assert plain(title_of(name)) in text, name


def test_every_figure_is_in_the_pdf(text, site):
    source = (ROOT / "build/_build/latex/lora-measured.tex").read_text(encoding="utf-8")
    for name, caption in figures(site).items():
        assert re.search(rf"\\label\{{\\detokenize\{{[\w/]+:{name}\}}\}}", source), name
        assert caption in text, f"{name}: {caption}"


def test_nothing_is_undefined_or_has_no_sign(log, text):
    assert complaints(log) == [], f"the worst: {overfull(log)[:5]}"
    shown = tool("pdftotext", str(ROOT / "build" / "lora-measured.pdf"), "-")
    assert "??" not in shown
    assert "\ufffd" not in shown


def test_the_solutions_stand_at_the_end_of_their_chapter(text, chapters):
    lines = (ROOT / "build/_build/latex/lora-measured.toc").read_text(encoding="utf-8")
    entry = r"\\contentsline \{(chapter|section)\}\{\\numberline \{[\d.]+\}(.*?)\}\{\d+\}"
    kinds = re.findall(entry, lines)
    last = [title for (kind, title), (then, _) in zip(kinds, [*kinds[1:], ("chapter", "")],
            strict=True) if kind == "section" and then == "chapter"]  # fmt: skip
    assert last == ["Solutions"] * len(chapters)
    solved = re.findall(r"Solutiononpage(\d+)", text)
    assert len(solved) > 60
    shown = tool("pdftotext", str(ROOT / "build" / "lora-measured.pdf"), "-").splitlines()
    assert "not attempted yet" not in shown
    assert "OnColabthisinstalls" not in text


# ----------------------------------------------------------------------------------------- EPUB


@pytest.fixture(scope="module")
def epub():
    with zipfile.ZipFile(made("lora-measured.epub")) as file:
        yield file


@pytest.fixture(scope="module")
def pages(epub) -> dict[str, ElementTree.Element]:
    """All XHTML files; reading them fails where one is not well formed."""
    return {
        name: ElementTree.fromstring(epub.read(name))
        for name in epub.namelist()
        if name.endswith(".xhtml")
    }


@pytest.fixture(scope="module")
def package(epub) -> ElementTree.Element:
    container = ElementTree.fromstring(epub.read("META-INF/container.xml"))
    path = next(node.get("full-path") for node in container.iter() if node.get("full-path"))
    return ElementTree.fromstring(epub.read(path))


def test_the_epub_begins_with_its_type(epub):
    first = epub.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert epub.read("mimetype") == b"application/epub+zip"
    assert epub.testzip() is None


def test_the_package_names_every_file_once(epub, package):
    listed = [item.get("href") for item in package.iter(f"{OPF}item")]
    there = {name for name in epub.namelist() if not name.startswith("META-INF/")}
    assert len(listed) == len(set(listed))
    assert there - set(listed) - {"mimetype", "content.opf"} == set()
    assert set(listed) - there == set()


def test_the_reading_order_is_that_of_the_book(package, chapters):
    files = {item.get("id"): item.get("href") for item in package.iter(f"{OPF}item")}
    order = [files[item.get("idref")] for item in package.iter(f"{OPF}itemref")]
    assert len(order) == len(set(order))
    assert order[:2] == ["epub-cover.xhtml", "book/index.xhtml"]
    own = [name for name in order if name.startswith("notebooks/")]
    assert own == [f"{name}.xhtml" for name in chapters.values()]


def test_the_cover_and_the_contents_are_declared(epub, package, chapters):
    items = {item.get("id"): item for item in package.iter(f"{OPF}item")}
    cover = [item for item in items.values() if item.get("properties") == "cover-image"]
    meta = [node for node in package.iter(f"{OPF}meta") if node.get("name") == "cover"]
    assert cover or (meta and meta[0].get("content") in items)
    nav = next(item for item in items.values() if "nav" in (item.get("properties") or ""))
    shown = ElementTree.fromstring(epub.read(nav.get("href")))
    entries = ["".join(link.itertext()) for link in shown.iter(f"{XHTML}a")]
    for number, name in chapters.items():
        assert any(plain(title_of(name)) in plain(entry) for entry in entries), number


def test_every_link_and_picture_of_the_epub_leads_somewhere(epub, pages):
    there = set(epub.namelist())
    ids = {name: {node.get("id") for node in page.iter() if node.get("id")}
           for name, page in pages.items()}  # fmt: skip
    for name, page in pages.items():
        for node in page.iter():
            for key in ("href", "src"):
                target = unquote(node.get(key) or "")
                if not target or re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                full = normpath(join(dirname(name), path)) if path else name
                assert full in there, f"{name}: {target}"
                if anchor and full in ids:
                    assert anchor in ids[full], f"{name}: {target}"


def test_ids_are_there_once(pages):
    for name, page in pages.items():
        ids = [node.get("id") for node in page.iter() if node.get("id")]
        twice = {one for one in ids if ids.count(one) > 1}
        assert not twice, f"{name}: {twice}"


def test_every_picture_says_what_it_shows(pages):
    for name, page in pages.items():
        for picture in page.iter(f"{XHTML}img"):
            assert (picture.get("alt") or "").strip(), f"{name}: {picture.get('src')}"


def test_every_figure_is_in_the_epub(pages, site):
    drawn = {
        node.get("id")
        for page in pages.values()
        for node in page.iter(f"{XHTML}figure")
        if node.find(f".//{XHTML}img") is not None
    }
    assert set(figures(site)) <= drawn


def test_the_epub_runs_no_program_and_opens_all_boxes(pages):
    for name, page in pages.items():
        tags = {node.tag.removeprefix(XHTML) for node in page.iter()}
        assert not tags & {"script", "details", "iframe", "canvas"}, name


def test_formulas_are_mathml_with_words(pages):
    formulas = [
        node
        for page in pages.values()
        for node in page.iter("{http://www.w3.org/1998/Math/MathML}math")
    ]
    assert len(formulas) > 1500
    assert all(node.get("alttext") for node in formulas)


def test_epubcheck_has_nothing_to_say():
    path, checker = made("lora-measured.epub"), shutil.which("epubcheck")
    if checker is None:
        pytest.skip("There is no epubcheck, which brings a Java along.")
    command = [checker]
    if Path(checker).read_bytes()[:2] == b"PK" and shutil.which("java"):
        command = ["java", "-jar", checker]  # as Debian packs it
    answer = subprocess.run(
        [*command, "--failonwarnings", str(path)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
