"""The docstrings: what was taken, that nothing leaks from what is learnt to what is tested."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest

from minilora.lab import docstrings
from minilora.lab.docstrings import SPLITS, by_library, by_module, docs, plain, windows


def of_split(split: str) -> list[str]:
    return [doc.text for doc in docs() if doc.split == split]


def test_a_file_and_its_texts_lie_in_one_split():
    splits: dict[str, set[str]] = {}
    for doc in docs():
        splits.setdefault(doc.file, set()).add(doc.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == set(SPLITS)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_eight_words_in_a_row_are_in_a_training_text_as_well(split):
    learnt = set().union(*map(windows, of_split("train")))
    assert not [text for text in of_split(split) if windows(text) & learnt]


def test_what_still_overlaps_is_little_and_known():
    """Five words in a row are shared by one test text in eight, as 'a scalar or an array of' is."""
    learnt = set().union(*(windows(text, 5) for text in of_split("train")))
    tested = of_split("test")
    shared = sum(bool(windows(text, 5) & learnt) for text in tested) / len(tested)
    assert 0.05 < shared < 0.16


def test_no_text_names_a_library_or_carries_its_markup():
    named = re.compile(r"numpy|scipy|sklearn|scikit|matplotlib|torch|\bnp\.|\bplt\.|:class:|`|\*")
    assert not [doc.text for doc in docs() if named.search(doc.text.lower())]


def test_texts_are_short_lines_and_no_module_is_most_of_its_library():
    assert all(len(doc.text) <= docstrings.LONGEST and "\n" not in doc.text for doc in docs())
    assert max(Counter(doc.module for doc in docs()).values()) <= docstrings.MOST
    assert len({doc.text.lower() for doc in docs()}) == len(docs()) > 6000


@pytest.mark.parametrize(("ask", "classes"), [(by_library, 5), (by_module, 35)])
def test_a_question_has_texts_of_every_class_in_every_split(ask, classes):
    asked = ask(1000)
    assert len(asked.classes) == classes
    for split in SPLITS:
        assert set(asked.labels[split]) == set(range(classes))
        assert len(asked.texts[split]) == len(asked.labels[split]) == len(asked.files[split])
    of_text = {doc.text: doc for doc in docs()}
    for text, label, file in zip(
        asked.texts["test"], asked.labels["test"], asked.files["test"], strict=True
    ):
        doc = of_text[text]
        assert asked.classes[label] in (doc.library, doc.module) and doc.file == file
    assert (len(asked.texts["validation"]), len(asked.texts["test"])) == (500, 1000)


def test_draws_are_repeatable_and_differ_by_seed():
    asked = by_library()
    first = asked.draw(500, 0)
    assert np.array_equal(first, asked.draw(500, 0)) and len(set(first.tolist())) == 500
    assert not np.array_equal(first, asked.draw(500, 1))
    with pytest.raises(ValueError, match="count must be from 1 to"):
        asked.draw(100_000, 0)


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        (
            "Return a sorted copy of an array.\n\nParameters\n----------\na : array_like",
            "Return a sorted copy of an array.",
        ),
        (
            "Plot *x* against :attr:`~matplotlib.lines.Line2D.y` as in `numpy.interp`.",
            "Plot x against package as in package.",
        ),
        (
            "Applies ReLU of torch.nn to\n  all the elements.\n\nArgs:\n    x: a tensor",
            "Applies ReLU of package to all the elements.",
        ),
        ("Alias for np.abs.", ""),
    ],
)
def test_plain_text_of_a_docstring(docstring, text):
    assert plain(docstring) == text


def test_a_long_docstring_ends_with_a_whole_word():
    words = plain("alpha beta gamma delta epsilon " * 20)
    assert len(words) <= docstrings.LONGEST and words.rsplit(" ", 1)[-1] in "alpha beta gamma delta"


def test_sources_versions_and_licences_travel_along():
    content = json.loads(gzip.decompress((docstrings.SHIPPED / docstrings.FILE).read_bytes()))
    text = (docstrings.SHIPPED / "docstrings.txt").read_text(encoding="utf-8")
    for distribution, version in content["versions"].items():
        assert f"\n{distribution} {version}\n" in text
    for holder in ("NumPy Developers", "Enthought", "scikit-learn developers", "Facebook"):
        assert holder in text
    assert 'Matplotlib Development Team\n("MDT")' in text
    assert text.count("Redistribution") >= 4
    assert (docstrings.SHIPPED / docstrings.FILE).stat().st_size < 1_000_000


def test_missing_data_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(docstrings, "SHIPPED", tmp_path)
    docs.cache_clear()
    with pytest.raises(FileNotFoundError, match="install minilora whole"):
        docs()
    docs.cache_clear()
