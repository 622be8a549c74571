"""Digits in styles: what each style does to the ink, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minilora.lab import styles
from minilora.lab.styles import STYLES, styled


def ink(style: str) -> float:
    return styled(style, 200, seed=3).x.mean().item()


def lean(x: Tensor) -> float:
    """How far the ink moves to the right for each dot further up: (N, 1, H, W) → their mean."""
    down, across = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    slopes = []
    for picture in x[:, 0]:
        weight = picture / picture.sum()
        mid_down, mid_across = (weight * down).sum(), (weight * across).sum()
        both = (weight * (down - mid_down) * (across - mid_across)).sum()
        slopes.append(-(both / (weight * (down - mid_down) ** 2).sum()).item())
    return sum(slopes) / len(slopes)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_drawn_the_same_from_the_same_seed(style: str) -> None:
    one, same, other = styled(style, 40, 1), styled(style, 40, 1), styled(style, 40, 2)
    assert one.x.shape == (40, 1, 16, 16) and one.x.min() >= 0 and one.x.max() <= 1
    assert torch.equal(one.x, same.x) and not torch.equal(one.x, other.x)
    assert set(one.y.tolist()) <= set(range(10))


def test_the_printed_styles_share_their_digits() -> None:
    plain = styled("plain", 60, 5)
    for style in STYLES[:-1]:
        other = styled(style, 60, 5)
        assert torch.equal(other.y, plain.y) and torch.equal(other.sheet, plain.sheet)


def test_bold_has_more_ink_and_thin_less() -> None:
    assert ink("thin") < 0.9 * ink("plain") < ink("plain") < 0.8 * ink("bold")
    assert ink("negative") == pytest.approx(1 - ink("plain"), abs=1e-6)


def test_slanted_leans_to_the_right_and_left_to_the_left() -> None:
    plain, right, left = (lean(styled(s, 100, 3).x) for s in ("plain", "slanted", "left"))
    assert right > plain + 0.25 and left < plain - 0.25
    assert lean(styled("bold slanted", 100, 3).x) == pytest.approx(right, abs=0.1)


def test_an_outline_is_hollow() -> None:
    """Where the plain digit has its ink, the outline has little."""
    plain, outline = styled("plain", 100, 3).x, styled("outline", 100, 3).x
    inside = plain > 0.95
    assert outline[inside].mean() < 0.35
    assert styled("bold", 100, 3).x[inside].mean() > 0.95


def test_handwriting_of_training_validation_and_test_is_from_different_sheets() -> None:
    sheets = [set(styled("handwritten", 300, seed).sheet.tolist()) for seed in (1, 5000, 8000)]
    assert not (sheets[0] & sheets[1] or sheets[1] & sheets[2] or sheets[0] & sheets[2])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no style 'italic'; there are plain, bold"):
        styled("italic", 3)
    with pytest.raises(ValueError, match="at least 1"):
        styled("bold", 0)
    with pytest.raises(ValueError, match="handwritten digits here"):
        styled("handwritten", 700)


def test_the_fonts_are_upright_and_of_a_regular_weight() -> None:
    assert not [name for name in styles.UPRIGHT if "Bol" in name or "Ital" in name or "Obl" in name]
