"""The two texts: what is taken away, what is kept apart, and how a leak is measured."""

from __future__ import annotations

import ast

import pytest

from minilora.lab import corpus
from minilora.lab.language import text, tokenizer

CODE = '''
"""About the module."""
# a remark
X = 1  # another


class C:
    """About the class."""


def f(a):
    """About f."""
    "a string that is no docstring"
    return a  # last
'''


def test_bare_code_has_no_comments_or_docstrings_and_does_the_same() -> None:
    bare = corpus.bare(CODE)
    assert "About" not in bare and "#" not in bare
    assert "no docstring" in bare  # a string by itself is code, if useless
    names: dict = {}
    exec(bare, names)
    assert names["X"] == 1 and names["f"](3) == 3 and isinstance(names["C"](), names["C"])
    assert ast.unparse(ast.parse(bare)) == bare


@pytest.mark.parametrize(
    ("paragraph", "kept"),
    [
        ("The *with* statement wraps\n   a block.", "The *with* statement wraps a block."),
        ("   with open(x) as f:\n       f.read()", ""),
        (">>> 1 + 1\n2", ""),
        ("result = evaluate(something_long)", ""),
        ('   while_stmt ::= "while" expression', ""),
        ("+-----+------+\n| a   | b    |", ""),
        ("hence,", "hence,"),
        ("", ""),
    ],
)
def test_prose_is_words_on_one_line_and_no_examples(paragraph: str, kept: str) -> None:
    assert corpus._prose(paragraph) == kept


def test_repeats_stay_in_the_first_document_that_has_them() -> None:
    found = corpus.without_repeats(
        {"a": "one\n\ntwo", "b": "two\n\n three\n\none", "c": "one"}, "\n\n"
    )
    assert found == {"a": "one\n\ntwo", "b": " three"}


def test_the_split_is_by_document_and_does_not_change() -> None:
    documents = {f"m{i}": "x" * (100 + i) for i in range(100)}
    found = corpus.split(documents, 0.1)
    assert sorted(name for part in found.values() for name in part) == sorted(documents)
    assert sum(map(len, found.values())) == 100
    for which in ("validation", "test"):
        share = sum(map(len, found[which].values())) / sum(map(len, documents.values()))
        assert 0.08 < share < 0.13
    assert corpus.split(dict(reversed(documents.items())), 0.1) == found


def test_shared_windows_counts_what_a_training_text_has() -> None:
    held_out = "abcdefghij"  # six windows of five letters
    assert corpus.shared_windows([held_out], ["xx abcdefg"], 5) == pytest.approx(3 / 6)
    assert corpus.shared_windows([held_out], ["nothing"], 5) == 0
    assert corpus.shared_windows(["a  b\nc d"], ["a b c d"], 5) == 1  # spacing does not count
    assert corpus.shared_windows(["abc"], ["abc"], 5) == 0  # too short to ask


@pytest.mark.parametrize("kind", ["code", "prose"])
def test_the_shipped_texts_do_not_leak(kind: str) -> None:
    """Less than one in a hundred stretches of 60 letters that are asked for was to be learnt."""
    train = [tokenizer().decode(ids.tolist()) for ids in text(kind).documents]
    for which in ("validation", "test"):
        asked = [tokenizer().decode(ids.tolist()) for ids in text(kind, which).documents]
        assert corpus.shared_windows(asked, train) < 0.01
        assert not set(text(kind, which).names) & set(text(kind).names)
    # And one repeated document would be seen.
    assert corpus.shared_windows([*asked, max(train, key=len)], train) > 0.05


def test_the_help_texts_repeat_each_other_and_that_is_taken_away() -> None:
    raw = corpus.help_prose()
    kept = corpus.without_repeats(raw, "\n\n")
    leaks = []
    for documents in (raw, kept):
        parts = corpus.split(documents, 0.15)
        leaks.append(corpus.shared_windows(parts["test"].values(), parts["train"].values()))
    assert leaks[0] > 0.1 > 0.02 > leaks[1]
