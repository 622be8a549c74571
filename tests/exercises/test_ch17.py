"""Chapter 17's checks: held against PyTorch's own bfloat16, the package's TIES, and softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilora.exercises import ch17
from minilora.surgery import ties


def test_what_fits_on_a_card_fits_and_one_more_does_not() -> None:
    for card, base, adapter in ((80, 13.5e9, 80e6), (24, 12.85e9, 160e6), (12, 13.5e9, 80e6)):
        copies, adapters = ch17.check_room_on_card.right(card, base, adapter)
        room = card * 2**30
        assert copies * base <= room < (copies + 1) * base
        if base <= room:
            assert base + adapters * adapter <= room < base + (adapters + 1) * adapter
        else:
            assert adapters == 0


def test_merged_weights_are_those_of_bfloat16() -> None:
    generator = np.random.default_rng(0)
    w = torch.tensor(generator.normal(size=500)).bfloat16().double()
    d = torch.tensor(generator.normal(size=500) * 0.01)
    # Through float32 the sum would be rounded twice.
    got = ch17.check_merged_weights.right(w.numpy(), d.numpy())
    spacing = torch.tensor(2.0) ** (torch.tensor(got).abs().log2().floor() - 7)
    assert torch.equal(torch.tensor(got).bfloat16().double(), torch.tensor(got))
    assert ((torch.tensor(got) - (w + d)).abs() <= spacing / 2).all()


def test_log_odds_add_up_where_two_adapters_add_to_the_scores() -> None:
    scores = torch.tensor([0.3, -1.2, 0.8, 2.0]).double()
    one = torch.tensor([1.5, 0.0, 0.0, 0.0])  # both act on the word's own score
    two = torch.tensor([-0.7, 0.0, 0.0, 0.0])
    p = [float((scores + add).softmax(0)[0]) for add in (0, one, two, one + two)]
    assert ch17.check_summed_chance.right(*p[:3]) == pytest.approx(p[3])


@pytest.mark.parametrize("density", [1 / 3, 1 / 2, 1.0])
def test_ties_is_the_package_s_at_weights_that_sum_to_one(density: float) -> None:
    updates = np.random.default_rng(1).normal(size=(3, 12))
    got = ch17.check_ties.right(updates, density)
    weighted = torch.tensor(updates).reshape(3, 3, 4) / 3
    merged, _ = ties(weighted, torch.full((3,), 1 / 3).double(), density)
    np.testing.assert_allclose(got, merged.numpy().ravel(), atol=1e-9)
