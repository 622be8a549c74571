"""Chapter 18's checks: held against the package and against small trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilora.exercises import ch18
from minilora.experiments.traffic import figures
from minilora.lab import traffic
from minilora.lab.traffic import Traffic


def test_the_bytes_are_those_that_the_package_predicts() -> None:
    for n in (2, 8):
        with_ddp = ch18.check_bytes_sent.right(1000, 50, n, False)
        assert with_ddp == pytest.approx(Traffic(summed=200).sent(n))
        with_fsdp = ch18.check_bytes_sent.right(1000, 50, n, True)
        both = Traffic(gathered=2 * (2000 + 200), scattered=200)
        assert with_fsdp == pytest.approx(both.sent(n))


def test_with_so_many_tokens_the_sending_is_hidden_and_with_one_less_it_is_not() -> None:
    forward, backward, size, n, speed, gbit = 1.41e10, 1.42e10, 1.6e8, 8, 4e14, 10.0
    tokens = ch18.check_hiding_tokens.right(forward, backward, size, n, speed, gbit)
    sent, link = traffic.all_reduce(size, n), gbit * 1e9 / 8
    for count, hidden in ((tokens, True), (tokens - 1, False)):
        work = count * (forward + backward) / speed
        share = backward / (forward + backward)
        beyond = figures.soonest(work, sent, link, share) - work
        assert (beyond < 1e-12) is hidden


def test_the_weights_make_the_mean_of_all_tokens() -> None:
    counts = [2, 5, 9]
    x = torch.randn(sum(counts))
    parts = [
        w * part.mean()
        for w, part in zip(ch18.check_part_weights.right(counts), x.split(counts), strict=True)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(x.mean().item(), abs=1e-6)


@pytest.mark.parametrize("cut", ["rows", "columns"])
def test_the_pieces_make_the_update_and_the_sum_makes_the_gradient(cut: str) -> None:
    torch.manual_seed(0)
    A, B = (torch.randn(*s, dtype=torch.double, requires_grad=True) for s in ((2, 6), (8, 2)))
    x, g = torch.randn(6).double(), torch.randn(8).double()
    (B @ A @ x @ g).backward()
    *pieces, name = ch18.check_cut_factors.right(A.detach().numpy(), B.detach().numpy(), cut)
    A_0, B_0, A_1, B_1 = (torch.tensor(piece, requires_grad=True) for piece in pieces)
    if cut == "rows":
        y = torch.cat([B_0 @ A_0 @ x, B_1 @ A_1 @ x])
    else:
        y = B_0 @ A_0 @ x[:3] + B_1 @ A_1 @ x[3:]
    torch.testing.assert_close(y, (B @ A @ x).detach())
    (y @ g).backward()
    whole, halves = (A, (A_0, A_1)) if name == "A" else (B, (B_0, B_1))
    summed = np.add(*(half.grad.numpy() for half in halves))
    np.testing.assert_allclose(summed, whole.grad.numpy())


def test_lists_and_float32_are_answers_like_others(capsys: pytest.CaptureFixture[str]) -> None:
    ch18.check_part_weights(lambda counts: [len(counts) * n / sum(counts) for n in counts])
    ch18.check_bytes_sent(
        lambda *case: np.float32(ch18.check_bytes_sent.right(*case))  # seven digits
    )
    assert capsys.readouterr().out.count("passed: ") == 2
