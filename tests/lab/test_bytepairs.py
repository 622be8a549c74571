"""Byte pairs: what is joined, in which order, and that every text comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.lab.bytepairs import PIECES, BytePairs, learn_pairs

A, B, C = b"abc"


def test_the_commonest_pair_is_joined_first_and_then_what_it_makes() -> None:
    # "abab" twice, "ac" once: ab occurs four times, and then (ab)(ab) twice.
    pairs = learn_pairs(["abab abab ac"], 259)
    assert pairs[0] == (A, B)
    assert pairs[1] == (256, 256)
    coder = BytePairs(pairs)
    assert coder.tokens[256:258] == [b"ab", b"abab"]
    assert coder.encode("abab") == [257]
    assert coder.encode("aba") == [256, A]


def test_of_equals_the_smaller_numbers_come_first_and_no_pair_is_joined_that_is_not_there() -> None:
    assert learn_pairs(["bc,ab"], 258) == [(A, B), (B, C)]
    assert len(learn_pairs(["ab"], 1000)) == 1
    assert learn_pairs(["ab"], 256) == []
    with pytest.raises(ValueError, match="256 at least"):
        learn_pairs(["ab"], 255)


def test_overlapping_pairs_are_joined_from_the_left() -> None:
    coder = BytePairs([(A, A)])
    assert coder.encode("aaa") == [256, A]
    assert learn_pairs(["aaa"], 258) == [(A, A), (256, A)]


def test_no_token_reaches_over_a_cut() -> None:
    words = "self.name = 12\n    return x"
    for token in BytePairs(learn_pairs([words] * 3, 300)).tokens[256:]:
        assert any(token.decode() in piece for piece in PIECES.findall(words))
    assert PIECES.findall("a b\n    c_1") == ["a", " b", "\n    ", "c", "_", "1"]
    assert PIECES.findall("utf8 12") == ["utf", "8", " 1", "2"]


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    coder = BytePairs(learn_pairs(["the cat, the hat; ünï 12 12\n    x"], 280))
    assert coder.decode(coder.encode(text)) == text
    assert coder.bytes_of(coder.encode(text)) == len(text.encode())


def test_bytes_that_are_no_letter_are_shown_as_such() -> None:
    assert BytePairs([]).decode([0xFF, A]) == "�a"
