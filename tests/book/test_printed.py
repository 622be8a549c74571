"""What the PDF and the EPUB show otherwise than the site, on small pieces."""

from __future__ import annotations

from types import SimpleNamespace
from xml.etree import ElementTree

import paper
import printed
import printed_epub
import printed_latex
import pytest
from docutils import nodes
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_title

M = "{http://www.w3.org/1998/Math/MathML}"


@pytest.mark.parametrize(
    "tex",
    [
        r"W_0 + \tfrac{\alpha}{r} B A",
        r"u_1 v_1^{\mathsf T} + \dots + u_r v_r^{\mathsf T}",
        r"ab = \tfrac12",
        r"\operatorname{rank} X < \sigma_{r+1}",
        r"\begin{pmatrix} 2 & 1 \\ -1 & -2 \end{pmatrix}",
    ],
)
def test_a_formula_becomes_mathml_that_keeps_its_tex(tex):
    formula = ElementTree.fromstring(printed_epub.mathml(tex))
    assert formula.tag == f"{M}math"
    assert formula.get("alttext") == " ".join(tex.split())
    for part in formula.iter():
        if part.tag != f"{M}mstyle":
            assert "scriptlevel" not in part.attrib


def test_dots_between_signs_stand_in_the_middle():
    assert "⋯" in printed_epub.mathml(r"a + \dots + b")
    assert "…" in printed_epub.mathml(r"a, \dots, b")


def cell(source, output="", tags=()):
    node = nodes.container(nb_element="cell_code", classes=["cell", *(f"tag_{t}" for t in tags)])
    node += nodes.container("", nodes.literal_block("", source), nb_element="cell_code_source")
    if output:
        node += nodes.container("", nodes.literal_block("", output), nb_element="cell_code_output")
    return node


def page(*content):
    document = nodes.document("", "")
    document += nodes.section("", nodes.title("", "A chapter"), *content, ids=["a"])
    return document


def test_codes_of_figures_and_the_colab_cell_are_left_out():
    document = page(
        cell("# On Colab this installs the book's package."),
        cell("plt.plot(x)", "a figure", tags=["hide-input"]),
        cell("print(1)", "1"),
        cell("def f(): ...", "not attempted yet"),
    )
    printed.leave_out_code(document)
    text = document.astext()
    assert "Colab" not in text and "plt.plot" not in text and "not attempted" not in text
    assert "a figure" in text and "print(1)" in text and "def f()" in text


def test_solutions_go_to_the_end_with_the_number_of_their_exercise():
    exercise = exercise_enumerable_node("", exercise_title("", "Exercise"), ids=["ex-one"])
    exercise[0] += nodes.subtitle("", "★ The first")
    exercise += nodes.section("", nodes.paragraph("", "Do it."), ids=["exercise-content"])
    document = page(exercise, cell("stub"), cell("# Solution", tags=["hide-cell"]))
    document[0] += nodes.section("", nodes.title("", "Sources"), ids=["sources"])
    env = SimpleNamespace(
        toc_fignumbers={"p": {"exercise": {"ex-one": (3, 1)}}},
        toc_secnumbers={"p": {"": (3,), "#sources": (3, 4)}},
    )
    ((anchor, place),) = printed.solutions_last(env, document, "p")
    last = document[0].children[-1]
    assert [child.astext() for child in last] == [
        "Solutions", "Exercise 3.1: The first", "# Solution"
    ]  # fmt: skip
    assert last[1]["ids"] == [anchor]
    assert place.parent is document[0]
    assert env.toc_secnumbers["p"]["#solutions"] == (3, 5)
    assert "exercise-content" not in document.pformat()


def test_closed_boxes_are_opened():
    box = nodes.container(design_component="dropdown", has_title=True, ids=["proof"])
    box += [nodes.rubric("", "Why"), nodes.paragraph("", "Because.")]
    document = page(box)
    printed.open_boxes(document)
    new = document[0][1]
    assert isinstance(new, nodes.admonition)
    assert new["ids"] == ["proof"]
    assert [child.astext() for child in new] == ["Why", "Because."]


def test_a_long_table_shares_the_line_and_a_short_one_does_not():
    def table(*rows):
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in rows[0]), cols=len(rows[0]))
        body = nodes.tbody()
        for texts in rows:
            body += nodes.row("", *(nodes.entry("", nodes.paragraph("", t)) for t in texts))
        group += body
        return nodes.table("", group, classes=["colwidths-auto"])

    short, long = table(("a", "b")), table(("a claim", "a verdict of many words " * 20))
    printed_latex.share_widths(short)
    printed_latex.share_widths(long)
    assert short["classes"] == ["colwidths-auto"]
    widths = [column["colwidth"] for column in long.findall(nodes.colspec)]
    assert "colwidths-given" in long["classes"]
    assert widths[1] > 2 * widths[0] > 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Missing character: There is no ★ (U+2605) in font X!", "a sign"),
        ("LaTeX Warning: Hyper reference `a:b' on page 3 undefined on input line 7.", "undefined"),
        (r"Overfull \hbox (20.5pt too wide) in paragraph at lines 1--2", "20 pt too large"),
        (r"Overfull \vbox (99.0pt too high) has occurred while \output is active", "99 pt"),
    ],
)
def test_a_log_with_a_fault_is_complained_about(line, said):
    assert any(said in one for one in paper.complaints(line))


@pytest.mark.parametrize(("still", "said"), [(True, []), (False, ["page numbers still move"])])
def test_a_book_whose_page_numbers_never_stand_still_is_not_written(
    tmp_path, monkeypatch, still, said
):
    passes = []

    def ran(command, **_):
        passes.append(command[0])
        for end in ("aux", "toc", "log"):
            text = "same" if still or end == "log" else str(len(passes))
            (tmp_path / f"{paper.NAME}.{end}").write_text(text)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(paper.subprocess, "run", ran)
    wrong = paper.typeset(tmp_path)
    assert len(wrong) == len(said) and all(a in b for a, b in zip(said, wrong, strict=True))
    assert passes.count("xelatex") == (2 if still else paper.PASSES)


def test_a_log_without_faults_is_not():
    log = "LaTeX Font Info: x\nOverfull \\hbox (3.1pt too wide) in paragraph at lines 1--2\n"
    assert paper.complaints(log) == []
    assert paper.overfull(log) == [(3.1, "hbox in paragraph at lines 1--2")]
