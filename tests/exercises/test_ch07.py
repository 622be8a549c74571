"""Forms of a mistake of chapter 7 that one row recognises, and right answers at the edges."""

import numpy as np
import pytest

from minilora.exercises import check_layer_test, check_mean_adapters, check_moved_numbers


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda A1, B1, s1, A2, B2, s2: s1 * B1 @ A1 + s2 * B2 @ A2, "two factors"),
        (lambda A1, B1, s1, A2, B2, s2: (A1[0], B1[0]), "must be matrices"),
        (lambda A1, B1, s1, A2, B2, s2: (A1.T, B1.T), "A must be (r, 6)"),
        (lambda A1, B1, s1, A2, B2, s2: (A1 + A2, B1 + B2), "averaged the factors"),
    ],
)
def test_what_is_no_pair_of_factors_is_told_why(answer, words):
    verdict = check_mean_adapters.judge(answer)
    assert verdict is not None and words in verdict.words


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_scale_and_half_may_go_into_either_factor(share):
    """|s| to the power share goes into A, and the rest into B."""

    def mean(A1, B1, s1, A2, B2, s2):
        into_A = abs(s1) ** share, abs(s2) ** share
        A = np.vstack([into_A[0] * A1, into_A[1] * A2]) / 2**share
        B = np.hstack([s1 / into_A[0] * B1, s2 / into_A[1] * B2]) / 2 ** (1 - share)
        return A, B

    assert check_mean_adapters.judge(mean) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda layers, r: (sum(r * m for m, n in layers),) * 2 + (0,), "begins at zero"),
        (lambda layers, r: (*check_moved_numbers.right(layers, r)[:2], 1e4), "frozen ones only"),
        (lambda layers, r: (0, 0, 0), "it is not (0, 0, 0)"),
        (lambda layers, r: sum(r * n for m, n in layers), "Return 3 things"),
    ],
)
def test_counts_that_no_row_foresees_are_refused(answer, words):
    verdict = check_moved_numbers.judge(answer)
    assert verdict is not None and words in verdict.words


@pytest.mark.parametrize("kind", [float, np.int64, list])
def test_counts_may_be_of_any_kind(kind):
    def counts(layers, r):
        found = check_moved_numbers.right(layers, r)
        return kind(found) if kind is list else tuple(map(kind, found))

    assert check_moved_numbers.judge(counts) is None


def test_a_layer_test_may_return_numpys_truth(capsys):
    def test(forward, delta, d_in, d_out, r):
        draw = np.random.default_rng(1).standard_normal
        A, B, x = draw((r, d_in)), draw((d_out, r)), draw((2 * d_in, d_in))
        return np.abs(forward(x, A, B) - x @ delta(A, B).T).max() < 1e-9

    check_layer_test(test)
    assert "passed" in capsys.readouterr().out
