"""The data: where the sheets begin, that nothing overlaps, and that printed digits are digits."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from minilora.lab import data


@pytest.fixture(scope="module")
def printed():
    return data.printed_digits(3000, seed=0)


def rows(split):
    return {tuple(x.flatten().tolist()) for x in split.x}


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    parts = data.digits()
    x = torch.cat([parts.train.x, parts.validation.x, parts.test.x])
    y = torch.cat([parts.train.y, parts.validation.y, parts.test.y])
    images, labels = load_digits(return_X_y=True)
    assert np.array_equal(x.flatten(1).numpy() * 16, images)
    assert np.array_equal(y.numpy(), labels)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [646, 383, 768]


def test_sheets_begin_where_the_labels_say():
    """Every sheet asks for the same digits in the same order, beginning 0123456789 0123456789."""
    parts = data.digits()
    labels = torch.cat([parts.train.y, parts.validation.y, parts.test.y]).tolist()
    opening = "01234567890123456789"
    text = "".join(map(str, labels))
    for start in data.SHEET_STARTS:
        head = text[start : start + 25]
        # A sheet may lack a digit or two: those that could not be read were thrown out.
        assert head.startswith((opening, "1234567890123456789", "012345678901234569")), (
            start,
            head,
        )
    # Nowhere between two starts does the opening come again.
    places = [i for i in range(len(text)) if text.startswith(opening + "0123456789", i)]
    assert set(places) <= set(data.SHEET_STARTS)
    assert len(data.SHEET_STARTS) == 14


def test_sheets_stay_apart():
    parts = data.digits("sheets")
    used = [set(p.sheet.tolist()) for p in (parts.train, parts.validation, parts.test)]
    assert used == [set(range(5)), {5, 6, 7}, set(range(8, 14))]


def test_random_split_mixes_sheets_and_does_not_overlap():
    parts = data.digits("random", seed=1)
    assert len(set(parts.test.sheet.tolist())) == 14
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [646, 383, 768]
    everything = data.digits("sheets")
    total = sum(p.x.double().sum() for p in (parts.train, parts.validation, parts.test))
    assert total == sum(
        p.x.double().sum() for p in (everything.train, everything.validation, everything.test)
    )
    assert not torch.equal(parts.test.y, data.digits("random", seed=2).test.y)


def test_random_split_flatters_nearest_neighbours():
    scores = {}
    for split in ("sheets", "random"):
        parts = data.digits(split)
        model = KNeighborsClassifier(1).fit(parts.train.x.flatten(1), parts.train.y)
        scores[split] = model.score(parts.test.x.flatten(1), parts.test.y)
    assert scores["random"] > scores["sheets"] + 0.005


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'sheets' or 'random'"):
        data.digits("writers")


@pytest.mark.parametrize("n", [10, 25, 200])
def test_few_labels_are_even_and_nested(n):
    train = data.digits().train
    few = data.few_labels(train, n, seed=3)
    counts = torch.bincount(few.y, minlength=10)
    assert len(few) == n and counts.max() - counts.min() <= 1
    assert rows(few) <= rows(data.few_labels(train, 2 * n, seed=3))
    assert not torch.equal(few.x, data.few_labels(train, n, seed=4).x)


@pytest.mark.parametrize("n", [0, 9, 647])
def test_too_few_or_too_many_labels_are_refused(n):
    with pytest.raises(ValueError, match="between 10 and 646"):
        data.few_labels(data.digits().train, n, seed=0)


def test_pairs_show_what_their_label_says():
    digits = data.digits().validation
    sums, numbers = (data.pairs(digits, 50, 5, label) for label in ("sum", "number"))
    assert sums.x.shape == (50, 1, 8, 16)
    assert torch.equal(sums.x, numbers.x)
    label_of = {
        tuple(x.flatten().tolist()): int(y) for x, y in zip(digits.x, digits.y, strict=True)
    }
    for x, total, number in zip(sums.x, sums.y, numbers.y, strict=True):
        left, right = (label_of[tuple(half.flatten().tolist())] for half in x.split(8, dim=2))
        assert total == left + right and number == 10 * left + right


def test_pairs_are_dealt_without_repeating():
    digits = data.digits().test  # 768
    one_pass = data.pairs(digits, 384, seed=0)
    halves = torch.cat(one_pass.x.split(8, dim=3)).flatten(1).sum(0)
    assert torch.allclose(halves, digits.x.flatten(1).sum(0), rtol=1e-5)
    assert torch.equal(data.pairs(digits, 1000, seed=0).x[:384], one_pass.x)
    assert not torch.equal(data.pairs(digits, 384, seed=1).x, one_pass.x)


def test_pairs_refuse_what_they_cannot_do():
    digits = data.digits().test
    with pytest.raises(ValueError, match="at least 1"):
        data.pairs(digits, 0)
    with pytest.raises(ValueError, match="'sum' or 'number'"):
        data.pairs(digits, 5, label="product")


def test_printed_digits_look_like_counts_in_blocks(printed):
    assert printed.x.shape == (3000, 1, 8, 8) and printed.x.dtype == torch.float32
    assert printed.x.min() == 0 and printed.x.max() == 1
    assert torch.equal((printed.x * 16).round(), printed.x * 16)
    # Size-normalised, like the handwriting: ink reaches the first and the last row.
    assert (printed.x[:, 0, 0].amax(1) > 0).float().mean() > 0.95
    assert (printed.x[:, 0, -1].amax(1) > 0).float().mean() > 0.95
    assert torch.bincount(printed.y).min() > 200
    assert len(printed.sheet.unique()) == len(data.FONTS)


def test_printed_digits_are_the_digits_they_say(printed):
    """Fresh printed digits have a nearest neighbour of the same class far more often than not."""
    fresh = data.printed_digits(300, seed=1)
    model = KNeighborsClassifier(1).fit(printed.x.flatten(1), printed.y)
    assert model.score(fresh.x.flatten(1), fresh.y) > 0.6
    # And they tell something about handwriting, without being it.
    hand = data.digits().test
    assert 0.35 < model.score(hand.x.flatten(1), hand.y) < 0.95


def test_printed_digits_follow_their_seed(printed):
    assert torch.equal(data.printed_digits(3000, seed=0).x, printed.x)
    assert not torch.equal(data.printed_digits(3000, seed=1).x, printed.x)
    with pytest.raises(ValueError, match="at least 1"):
        data.printed_digits(0)


def test_distance_is_the_distance_to_the_nearest_true_pixel():
    mask = torch.zeros(1, 7, 9, dtype=torch.bool)[:, :, :7]
    mask[0, 1, 1] = mask[0, 5, 6] = True
    there = mask[0].nonzero().double()
    here = torch.cartesian_prod(torch.arange(7), torch.arange(7)).double()
    expected = torch.cdist(here, there).min(1).values.reshape(7, 7)
    assert torch.allclose(data._distance_to(mask)[0].double(), expected, atol=1e-5)


def test_thinning_leaves_a_line_one_pixel_wide():
    bar = torch.zeros(1, 16, 16, dtype=torch.bool)
    bar[0, 3:13, 6:10] = True
    thin = data._thinned(bar)[0]
    assert thin.any() and (thin & ~bar[0]).sum() == 0
    assert thin.sum(1).max() == 1  # one pixel in each row
    assert thin.sum() >= 6  # and still most of the bar's length


@pytest.mark.parametrize("name", ["china", "flower"])
def test_photos(name):
    grey, colour = data.photo(name), data.photo(name, colour=True)
    assert grey.shape == (427, 640) and colour.shape == (427, 640, 3)
    assert 0 <= grey.min() < 0.1 and 0.8 < grey.max() <= 1
    assert (colour.min(2) - 1e-12 <= grey).all() and (grey <= colour.max(2) + 1e-12).all()
    with pytest.raises(ValueError, match="'china' or 'flower'"):
        data.photo("cat")
