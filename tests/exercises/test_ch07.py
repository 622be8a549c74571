"""Forms of a mistake of chapter 7 that one row recognises."""

import pytest

from minilora.exercises import check_mean_adapters


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda A1, B1, A2, B2: B1 @ A1 + B2 @ A2, "two factors"),
        (lambda A1, B1, A2, B2: (A1[0], B1[0]), "must be matrices"),
        (lambda A1, B1, A2, B2: (A1.T, B1.T), "A must be (r, 6)"),
    ],
)
def test_what_is_no_pair_of_factors_is_told_why(answer, words):
    verdict = check_mean_adapters.judge(answer)
    assert verdict is not None and words in verdict.words
