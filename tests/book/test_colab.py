"""book/_tools/colab.py: MyST in, Markdown that any notebook program shows out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import colab
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]

KNOWN = colab.Lookups(
    titles={"ch-svd": "SVD and the best approximation", "notebooks/01_rank": "What rank means"},
    pages={"ch-svd": "notebooks/02_svd.html#ch-svd"},
    numbers={"fig-rank": "8.1", "eq-lora": "4.2", "ex-swap": "4.1"},
    citations={"hu2021lora": ("Hu et al.", "2022"), "houlsby2019": ("Houlsby et al.", "2019")},
    links={"hu2021lora": "https://arxiv.org/abs/2106.09685"},
    glued={"accuracy": 0.91234, "steps": 300},
    site="https://someone.github.io/book",
)


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("the {term}`rank` of it", "the rank of it"),
        ("its {term}`ranks <rank>`", "its ranks"),
        (
            "see {ref}`ch-svd`",
            "see [SVD and the best approximation]"
            "(https://someone.github.io/book/notebooks/02_svd.html#ch-svd)",
        ),
        (
            "{ref}`there <ch-svd>`",
            "[there](https://someone.github.io/book/notebooks/02_svd.html#ch-svd)",
        ),
        ("{doc}`/notebooks/01_rank`", "What rank means"),
        ("{numref}`fig-rank`", "Fig. 8.1"),
        ("{numref}`figure %s <fig-rank>`", "figure 8.1"),
        ("{eq}`eq-lora`", "(4.2)"),
        ("{cite:t}`hu2021lora`", "Hu et al. ([2022](https://arxiv.org/abs/2106.09685))"),
        ("{cite:p}`houlsby2019`", "(Houlsby et al., 2019)"),
        (
            "{cite:p}`houlsby2019,hu2021lora`",
            "(Houlsby et al., 2019; Hu et al., [2022](https://arxiv.org/abs/2106.09685))",
        ),
        ("{glue:text}`accuracy:.1%`", "91.2%"),
        ("{glue:text}`steps`", "300"),
        ("{math}`r^2`", "$r^2$"),
        ("`{not a role}` and `code`", "`{not a role}` and `code`"),
    ],
)
def test_roles(myst, markdown):
    assert colab.plain(myst, KNOWN) == markdown


def test_labels_go_and_equations_are_numbered():
    myst = "(ch-x)=\n# Title\n\n$$\n\\Delta W = B A\n$$ (eq-lora)\n\nand so on"
    assert colab.plain(myst, KNOWN) == (
        "# Title\n\n$$\n\\Delta W = B A \\tag{4.2}\n$$\n\nand so on"
    )


def test_boxes_become_quotations():
    box = "```{exercise} Swapped ★\n:label: ex-swap\n\nWhich of {term}`A <matrix A>`\nis it?\n```"
    myst = f"{box}\n\nNext."
    assert colab.plain(myst, KNOWN) == (
        "> **Exercise 4.1 Swapped ★**\n>\n> Which of A\n> is it?\n\nNext."
    )


def test_a_live_model_becomes_a_pointer_to_the_page():
    myst = ":::{live}\n:name: ch-svd\nThe adder and its {term}`class token`.\n:::"
    page = "https://someone.github.io/book/notebooks/02_svd.html#ch-svd"
    assert colab.plain(myst, KNOWN) == (
        f"> [In the published page]({page}) this place holds a model that you can try. "
        "The adder and its class token."
    )


def test_boxes_within_boxes():
    myst = "::::{card} You will\nlearn\n\n:::{note}\nthat\n:::\n::::"
    assert colab.plain(myst, KNOWN) == "> **You will**\n>\n> learn\n>\n> > **Note**\n> >\n> > that"


def test_code_blocks_stay_as_they_are():
    myst = "```python\nx = '{ref}`ch-svd`'  # $$\n```"
    assert colab.plain(myst, KNOWN) == myst


def test_an_unknown_role_stops_rather_than_showing_raw_text():
    with pytest.raises(ValueError, match="raw text"):
        colab.plain("{unheard}`of`", KNOWN)


def test_a_value_that_no_cell_glued_stops():
    with pytest.raises(KeyError, match="loss"):
        colab.plain("{glue:text}`loss`", KNOWN)


NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["(ch-x)=\n", "# Title"]},
        {
            "cell_type": "code", "id": "s", "metadata": {}, "execution_count": None, "outputs": [],
            "source": ["SOURCE = None  # filled in by the published copy of this notebook\n", "1"],
        },
        {
            "cell_type": "code", "id": "f", "execution_count": None, "outputs": [],
            "metadata": {"mystnb": {"figure": {"caption": "The {term}`rank`.", "name": "fig-rank"},
                                    "image": {"alt": "A line that falls."}}},
            "source": ["plot()"],
        },
        {
            "cell_type": "code", "id": "x", "execution_count": None, "outputs": [],
            "metadata": {"cellView": "form", "tags": ["hide-cell"]}, "source": ["answer()"],
        },
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}  # fmt: skip


def test_notebook():
    source = "git+https://github.com/someone/book@0123abc"
    made = colab.convert(NOTEBOOK, KNOWN, source)
    nbformat.validate(nbformat.from_dict(made))
    texts = ["".join(cell["source"]) for cell in made["cells"]]
    assert texts[0] == "# Title"
    assert texts[1] == f'SOURCE = "{source}"\n1'
    assert texts[3] == "**Fig. 8.1**  The rank."
    assert texts[4] == "# @title Solution\nanswer()"
    assert NOTEBOOK["cells"][1]["source"][0].startswith("SOURCE = None"), "the original stays"


def test_glued_values_are_read_as_numbers_or_text():
    shown = {"a": "0.25", "b": "np.float64(1.5)", "c": "'seven'", "d": "<Figure>"}
    stored = {name: {"data": {"text/plain": text}} for name, text in shown.items()}
    assert colab.glued_values(stored) == {"a": 0.25, "b": 1.5, "c": "seven", "d": "<Figure>"}


NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_can_be_written_plainly(path):
    """With numbers made up: what must hold is that no role or directive is left over."""

    class Anything(dict):
        def __contains__(self, key):
            return True

        def __missing__(self, key):
            return 1.0

        def get(self, key, default=None):
            return "1"

    known = colab.Lookups(glued=Anything())
    made = colab.convert(json.loads(path.read_text(encoding="utf-8")), known, "git+https://x")
    nbformat.validate(nbformat.from_dict(made))
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"```.*?```", "", "".join(cell["source"]), flags=re.S)
            text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.S)
            assert not re.search(r"\{[a-z:-]+\}`|\{[a-z:-]+\} ", text), text
            assert ":::" not in text
