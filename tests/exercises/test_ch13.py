"""Chapter 13's checks: more right answers, and the package beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import minilora
from minilora import LoRAConfig
from minilora.exercises import ch13
from minilora.experiments import language
from minilora.lab.decoder import DecoderConfig
from minilora.lab.language import LanguageModel, text

SMALL = DecoderConfig(width=16, layers=1, heads=2, vocab=1024, context=16)


def package_rival(update: np.ndarray, seed: int) -> np.ndarray:
    """The package's own null, which the page holds the intruders against."""
    return language.turned({"W": torch.from_numpy(update)}, seed)["W"].numpy()


def spectral_rival(update: np.ndarray, seed: int) -> np.ndarray:
    """Another way: the singular vectors of a random matrix."""
    noise = np.random.default_rng(seed).standard_normal(update.shape)
    U, _, Vh = np.linalg.svd(noise, full_matrices=False)
    return (U * np.linalg.svd(update, compute_uv=False)) @ Vh


@pytest.mark.parametrize("answer", [package_rival, spectral_rival])
def test_other_random_rivals_pass(answer, capsys: pytest.CaptureFixture[str]) -> None:
    ch13.check_random_rival(answer)
    assert capsys.readouterr().out.startswith("passed: ")


def test_the_bits_of_a_byte_are_those_of_the_package() -> None:
    one = text("prose", "test")
    mine = ch13.check_bits_per_byte.right(3.5, one.tokens, one.bytes)
    assert mine == pytest.approx(one.bits_per_byte(3.5))


def test_a_small_change_is_turned_down_to_the_kl_that_is_wanted() -> None:
    """Held against a model's own divergence, and not against the formula again."""
    torch.manual_seed(0)
    base = LanguageModel(SMALL).eval()
    ids = torch.randint(0, 1024, (4, 16))
    change = {"head.weight": 0.05 * torch.randn_like(base.head.weight)}
    expected = language.log_probabilities(base, ids)

    def kl(strength: float) -> float:
        return language.divergence(expected, language.moved(base, change, strength), ids)[0]

    for share in (0.5, 0.25):
        strength = ch13.check_turned_down.right(kl(1), share * kl(1))
        assert kl(strength) == pytest.approx(share * kl(1), rel=0.1)


def test_the_least_rank_has_room_and_the_one_below_has_not() -> None:
    """The numbers are counted on an adapter."""
    facts, vocab, bits = 150, 1024, 0.8
    r = ch13.check_least_rank.right(facts, vocab, 64, 16, bits)
    room = []
    for rank in (r - 1, r):
        model = minilora.add_lora(
            LanguageModel(SMALL), LoRAConfig(r=rank, alpha=8, targets=["down_proj"])
        )
        room.append(bits * sum(p.numel() for p in minilora.lora_parameters(model)))
    assert room[0] < facts * math.log2(vocab) <= room[1]
