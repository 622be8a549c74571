"""The bytes that processes send to each other in a training step: predicted, and counted.

`all_reduce`, `all_gather` and `reduce_scatter` say what one process sends in a ring, in which each
sends to the next one only. No way of adding sends less (Patarasuk and Yuan 2009,
doi 10.1016/j.jpdc.2008.09.002).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

# --- predicted ------------------------------------------------------------------------------


def all_gather(size: float, n: int) -> float:
    """What each of ``n`` processes sends so that all get the whole, of ``size`` bytes.

    Each holds 1/n of it, and passes on n − 1 such parts.
    """
    return (n - 1) * size / n


def reduce_scatter(size: float, n: int) -> float:
    """What each sends so that each gets 1/n of the sum; every process holds ``size`` bytes."""
    return (n - 1) * size / n


def all_reduce(size: float, n: int) -> float:
    """What each sends so that all get the whole sum of ``size`` bytes: first one, then the other.

    Hardly more than twice the size, however many there are.
    """
    return reduce_scatter(size, n) + all_gather(size, n)


@dataclass(frozen=True)
class Traffic:
    """What goes into the exchanges of one training step, in bytes.

    Attributes:
        summed: Gradients of which every process gets the whole sum.
        gathered: Parameters that are put together from their parts; those that are put together
            twice count twice.
        scattered: Gradients of which every process gets a part of the sum.
    """

    summed: int = 0
    gathered: int = 0
    scattered: int = 0

    def sent(self, n: int, gloo: bool = False) -> float:
        """What each of ``n`` processes sends in a ring.

        ``gloo`` has no reduce-scatter of its own: every process gets the whole sum, and drops what
        is not its part.
        """
        scatter = all_reduce if gloo else reduce_scatter
        return (
            all_reduce(self.summed, n) + all_gather(self.gathered, n) + scatter(self.scattered, n)
        )


def data_parallel(model: nn.Module) -> Traffic:
    """Of a step with DDP: the gradients of what is trained, and nothing of the base."""
    return Traffic(summed=_bytes(_parameters(model), trained=True))


def fully_sharded(model: nn.Module, parts: Sequence[nn.Module], again: bool = True) -> Traffic:
    """Of a step with FSDP2, for a model whose ``parts`` are sharded, and then the rest of it.

    Every process needs all parameters to compute, trained or not, and gathers them: the rest once,
    the parts in the forward pass and, with ``again``, once more in the backward pass. Sides that
    cannot be cut evenly are padded, which is not counted here.
    """
    inside = {p for part in parts for p in part.parameters()}
    rest = [p for p in _parameters(model) if p not in inside]
    gathered = _bytes(rest) + (1 + again) * _bytes(list(inside))
    return Traffic(gathered=gathered, scattered=_bytes(_parameters(model), trained=True))


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def _bytes(parameters: Sequence[nn.Parameter], trained: bool = False) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad or not trained)


# --- counted --------------------------------------------------------------------------------

#: PyTorch's operations between processes, by the field of `Traffic` that their bytes belong to,
#: and whether what comes out is the whole, or what goes in.
OPERATIONS = {
    "allreduce_": "summed",
    "_allgather_base_": "gathered",
    "_reduce_scatter_base_": "scattered",
}


class Collectives(TorchDispatchMode):
    """Counts the bytes of what PyTorch's processes exchange inside ``with Collectives() as seen``.

    ``seen.bytes`` and ``seen.calls`` are by the fields of `Traffic`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            what = OPERATIONS.get(name.removeprefix("c10d::"))
            if what is not None:
                self.calls[what] += 1
                # The first argument is what comes out, but for the shards of a scattered sum.
                whole = args[1] if what == "scattered" else args[0]
                self.bytes[what] += sum(t.nbytes for t in _flat(whole))
        return func(*args, **(kwargs or {}))

    @property
    def traffic(self) -> Traffic:
        """All of it."""
        return Traffic(**self.bytes)


def _flat(tensors: Any) -> Iterator[Tensor]:
    for one in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _flat(one)


def count_buckets(parallel: DistributedDataParallel) -> list[int]:
    """A list that gets the bytes of each bucket of gradients that DDP sums, from now on."""
    sizes: list[int] = []

    def sum_up(bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        sizes.append(bucket.buffer().nbytes)
        mean = bucket.buffer() / torch.distributed.get_world_size()
        work = torch.distributed.all_reduce(mean, async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    parallel.register_comm_hook(None, lambda state, bucket: sum_up(bucket))
    return sizes


LOOPBACK = Path("/proc/net/dev")


def loopback_bytes() -> int | None:
    """Bytes that this machine has sent to itself since it was started; None where Linux is not.

    Everything that goes over the device ``lo`` is in it, the envelopes of the network and what
    other programs send among them.
    """
    if not LOOPBACK.exists():
        return None
    for line in LOOPBACK.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return None


@contextmanager
def over_loopback() -> Iterator[list[int]]:
    """Inside, the machine's talk to itself is counted: a list that has one number in the end.

    It stays empty where it cannot be counted.
    """
    before, found = loopback_bytes(), list[int]()
    yield found
    after = loopback_bytes()
    if before is not None and after is not None:
        found.append(after - before)


# --- what it comes to -----------------------------------------------------------------------


def step_seconds(work: float, sent: float, link: float, overlap: bool = False) -> float:
    """A step of ``work`` seconds in which each process sends so many bytes.

    ``link`` are bytes a second. With ``overlap`` all of it is sent while the processor works on;
    without, after it. A real step lies between the two.
    """
    return max(work, sent / link) if overlap else work + sent / link
