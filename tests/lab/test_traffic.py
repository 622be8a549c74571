"""Bytes between processes: predicted, against a ring that is played through, and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from minilora import LoRAConfig, add_lora
from minilora.lab import traffic
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.traffic import Traffic


def play(n: int, size: int) -> tuple[int, int, np.ndarray]:
    """Numbers that process 0 sends until all have parts of the sum, then all of it; the sums."""
    held = np.arange(n * size, dtype=float).reshape(n, n, size // n)  # process, part
    wanted = held.sum(axis=0)
    sent = [0, 0]
    for phase in (0, 1):
        for turn in range(n - 1):
            parts = [(p - turn + phase) % n for p in range(n)]
            moving = [held[p, part].copy() for p, part in enumerate(parts)]
            for p, (part, values) in enumerate(zip(parts, moving, strict=True)):
                after = (p + 1) % n
                held[after, part] = values + (0 if phase else held[after, part])
            sent[phase] += size // n
    assert all(np.array_equal(one, wanted) for one in held)
    return sent[0], sent[1], held


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_a_ring_that_is_played_through_sends_what_is_predicted(n: int) -> None:
    scattered, gathered, _ = play(n, 24 * 5 * n)
    size = 24 * 5 * n
    assert scattered == traffic.reduce_scatter(size, n)
    assert gathered == traffic.all_gather(size, n)
    assert scattered + gathered == traffic.all_reduce(size, n)


def test_gloo_makes_a_scattered_sum_whole() -> None:
    found = Traffic(summed=100, gathered=60, scattered=40)
    assert found.sent(2) == 100 + 30 + 20
    assert found.sent(2, gloo=True) == 100 + 30 + 40


def test_one_process_sends_nothing() -> None:
    assert Traffic(summed=100, gathered=100, scattered=100).sent(1) == 0


def decoder(r: int | None) -> Decoder:
    model = Decoder(DecoderConfig(width=8, layers=2, heads=2, vocab=10, context=4))
    if r is not None:
        add_lora(model, LoRAConfig(r=r, targets=["q_proj", "down_proj"]))
    return model


def test_with_ddp_only_what_is_trained_travels() -> None:
    # An adapter of rank 2 on 8 × 8 and 32 × 8 in two blocks; everything is all parameters.
    assert traffic.data_parallel(decoder(2)) == Traffic(summed=4 * 2 * 2 * (16 + 40))
    model = decoder(None)
    assert traffic.data_parallel(model).summed == 4 * DecoderConfig(8, 2, 2, 10, 4).parameters


def test_with_fsdp_the_base_travels_twice_but_for_what_lies_outside_the_blocks() -> None:
    model = decoder(2)
    blocks = list(model.blocks)
    inside = 4 * sum(p.numel() for block in blocks for p in block.parameters())
    outside = 4 * (sum(p.numel() for p in model.parameters())) - inside
    adapter = 4 * 2 * 2 * (16 + 40)
    found = traffic.fully_sharded(model, blocks)
    assert found == Traffic(gathered=2 * inside + outside, scattered=adapter)
    kept = traffic.fully_sharded(model, blocks, again=False)
    assert kept == Traffic(gathered=inside + outside, scattered=adapter)


def test_a_tied_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert traffic.data_parallel(model).summed == 64
    assert traffic.fully_sharded(model, list(model)) == Traffic(gathered=128, scattered=64)


def test_the_loopback_device_is_read_where_linux_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dev"
    monkeypatch.setattr(traffic, "LOOPBACK", file)
    with traffic.over_loopback() as found:
        pass
    assert found == [] and traffic.loopback_bytes() is None
    head = "Inter-|   Receive                |  Transmit\n face |bytes packets | bytes packets\n"
    line = "{}: 70 7 0 0 0 0 0 0 {} 9 0 0 0 0 0 0\n"
    file.write_text(head + line.format("  eth0", 5) + line.format("    lo", 1000))
    with traffic.over_loopback() as found:
        file.write_text(head + line.format("    lo", 1234))
    assert found == [234]
    file.write_text(head)
    assert traffic.loopback_bytes() is None


def test_a_step_lies_between_sending_during_the_work_and_after_it() -> None:
    assert traffic.step_seconds(2.0, 100, 50) == 4.0
    assert traffic.step_seconds(2.0, 100, 50, overlap=True) == 2.0
    assert traffic.step_seconds(2.0, 100, 10, overlap=True) == 10.0
