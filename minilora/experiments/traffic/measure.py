"""What runs inside the processes: some training steps of an arm, watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from minilora.experiments.traffic.arms import Sharing, build
from minilora.lab import distributed, language, traffic, training

#: DDP looks at the first step and then packs the gradients anew, so that two are not counted.
FIRST = 2


def stepper(arm: Sharing, batch: int) -> Callable[[], None]:
    """A function that does one step."""
    model = build(arm, batch).train()
    forward = distributed.share(model, arm.how, arm.reshard)
    optimizer = torch.optim.AdamW(distributed.trained(model).values(), lr=1e-3)
    x, y = language.text("prose").windows()
    rows = distributed.part_of(torch.arange(batch))

    def step() -> None:
        loss = F.cross_entropy(forward(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(arm: Sharing, batch: int, steps: int) -> dict[str, Any]:
    """In one process: bytes and calls of a step by exchange, and bytes over the loopback.

    ``loopback`` are the bytes of all processes together, for each of some steps; empty where they
    cannot be counted.
    """
    step = stepper(arm, batch)
    with training.flush_denormals():
        for _ in range(FIRST):
            step()
        with traffic.Collectives() as seen:
            step()
        loopback: list[float] = []
        for _ in range(3):
            dist.barrier()
            with traffic.over_loopback() as found:
                for _ in range(steps):
                    step()
                dist.barrier()
            loopback += [one / steps for one in found]
    return {"counted": dict(seen.bytes), "calls": dict(seen.calls), "loopback": loopback}
