"""Chapter 6's checks: edges, second shapes, and formulas held to what a network does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilora import exercises
from minilora.exercises.ch06 import gradient_ranks
from minilora.exercises.tools import Exercise, Function
from minilora.lab.transformer import TransformerClassifier, TransformerConfig


def words(table: Exercise, answer: Function) -> str:
    verdict = table.judge(answer)
    assert verdict is not None
    return verdict.words


# --- the rank that holds a share


@pytest.mark.parametrize("kind", [float, np.float64, np.int64])
def test_a_whole_number_may_be_of_any_kind(kind: type) -> None:
    table = exercises.check_rank_for_share
    assert table.judge(lambda X, share: kind(table.right(X, share))) is None


def squares(X: np.ndarray) -> np.ndarray:
    return np.linalg.svd(X, compute_uv=False) ** 2


def by_own_total(X: np.ndarray, share: float) -> int:
    """Another right way: divide by the last entry of the running sum."""
    if not X.any():
        return 0
    running = squares(X).cumsum()
    return int((running / running[-1] < share).sum()) + 1


def by_another_total(X: np.ndarray, share: float) -> int:
    """What the page's solution once was."""
    running = squares(X).cumsum()
    return int((running / squares(X).sum() < share).sum()) + 1


def more_than(X: np.ndarray, share: float) -> int:
    running = squares(X).cumsum()
    return min(int((running / running[-1] <= share).sum()) + 1, min(X.shape))


def by_argmax(X: np.ndarray, share: float) -> int:
    held = squares(X).cumsum() / squares(X).sum()
    return int(np.argmax(held >= share)) + 1


def zeros_need_one(X: np.ndarray, share: float) -> int:
    return by_own_total(X, share) if X.any() else 1


def zeros_fail(X: np.ndarray, share: float) -> int:
    running = squares(X).cumsum()
    return int(np.flatnonzero(running / running[-1] >= share)[0]) + 1


def test_another_right_way_passes() -> None:
    assert exercises.check_rank_for_share.judge(by_own_total) is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (by_another_total, "divide by the last entry"),
        (by_argmax, "without a True"),
        (more_than, "'at least' includes equality"),
        (zeros_need_one, "a matrix of zeros"),
    ],
)
def test_an_answer_that_fails_at_an_edge_is_refused(answer: Function, says: str) -> None:
    assert says in words(exercises.check_rank_for_share, answer)


def test_an_answer_that_breaks_on_zeros_is_refused() -> None:
    with pytest.raises(IndexError):
        exercises.check_rank_for_share(zeros_fail)


def test_everything_is_asked_of_matrices_in_which_two_sums_differ() -> None:
    """On this machine at least one case tells the two totals apart."""
    everything = [X for X, share in exercises.check_rank_for_share.cases if share == 1]
    assert any(by_another_total(X, 1.0) > min(X.shape) for X in everything)


# --- what chance gives to the first piece


def test_the_estimate_is_what_noise_shows() -> None:
    rng = np.random.default_rng(0)
    for m, n in ((300, 300), (800, 200)):
        s = np.linalg.svd(rng.standard_normal((m, n)), compute_uv=False)
        measured = s[0] ** 2 / (s**2).sum()
        assert abs(measured / exercises.check_first_share.right(m, n) - 1) < 0.06


def test_a_measurement_is_no_estimate() -> None:
    """The page asks for a formula; a draw misses it, and cannot be made for the largest case."""

    def measured(m: int, n: int) -> float:
        s = squares(np.random.default_rng(0).standard_normal((min(m, 200), min(n, 200))))
        return float(s[0] / s.sum())

    assert "no random numbers" in words(exercises.check_first_share, measured)


# --- the rank of a gradient

SIZES = [((8, 16), 4, 4), ((8, 8), 2, 4), ((4, 8), 4, 4), ((4, 12), 4, 4), ((8, 8), 4, 1)]


def measured_ranks(size: tuple[int, int], patch: int, heads: int, seed: int) -> list[dict]:
    """The ranks of one picture's gradients in a small network with random weights, by block."""
    torch.manual_seed(seed)
    config = TransformerConfig(image_size=size, patch_size=patch, heads=heads, layers=2)
    model = TransformerClassifier(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    F.cross_entropy(model(x), torch.tensor([3])).backward()
    found = []
    for block in model.blocks:
        ranks = {}
        for name, p in block.named_parameters():
            if name.endswith("proj.weight"):
                s = torch.linalg.svdvals(p.grad)
                ranks[name.split(".")[-2]] = int((s > 1e-9 * s[0]).sum())
        found.append(ranks)
    return found


@pytest.mark.parametrize(("size", "patch", "heads"), SIZES)
def test_the_ranks_are_those_of_a_network(size: tuple[int, int], patch: int, heads: int) -> None:
    tokens = 1 + size[0] * size[1] // patch**2
    first, last = measured_ranks(size, patch, heads, seed=0)
    assert last == gradient_ranks(tokens, heads)
    # What the page says of the blocks before the last.
    queries = tokens if heads > 1 else tokens - 1
    assert first == dict.fromkeys(first, tokens) | {"q_proj": queries, "k_proj": tokens - 1}


def at(**ranks: Callable[[int, int], int]) -> Function:
    """Right but for the matrices named."""

    def answer(T: int, h: int) -> dict[str, int]:
        return gradient_ranks(T, h) | {kind: rank(T, h) for kind, rank in ranks.items()}

    return answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (at(q_proj=lambda T, h: T), "the rank for q_proj is 1"),
        (at(k_proj=lambda T, h: T), "the rank for k_proj is"),
        (at(k_proj=lambda T, h: min(h, T)), "add up to zero"),
        (lambda T, h: list(gradient_ranks(T, h).values()), "return a dictionary"),
        (lambda T, h: {"q_proj": 1}, "return a dictionary"),
        (lambda T, h: gradient_ranks(9, 4), "the rank for"),
    ],
)
def test_wrong_ranks_are_refused(answer: Function, says: str) -> None:
    assert says in words(exercises.check_gradient_ranks, answer)
