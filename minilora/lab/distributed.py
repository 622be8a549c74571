"""Take the language model from code to prose, in one process or in many that share the work.

    python -m minilora.lab.distributed
    torchrun --nproc-per-node 2 -m minilora.lab.distributed --share ddp
    torchrun --nproc-per-node 2 -m minilora.lab.distributed --share fsdp --full

With ``--share ddp`` every process holds the whole model and works on a part of the batch; with
``--share fsdp`` it holds a part of the model as well. ``--full`` trains everything and not an
adapter. On several machines the same line is given on each of them, with ``--nnodes`` and
``--rdzv-endpoint``.

Process 0 leaves ``report.json`` in the folder ``--out``, the adapter in ``adapter/``, and with
``--save-every`` a checkpoint, from which the same command goes on where it was stopped. Killed
processes are started again by ``torchrun --max-restarts``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import minilora
from minilora import LoRAConfig, add_lora
from minilora.folder import replace_file
from minilora.lab import language, training
from minilora.lab.language import LanguageModel
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.layers import is_sharded, whole

SHARES = ("alone", "ddp", "fsdp")
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class RunSettings:
    """What settles a run, but for the number of processes and where its files are.

    ``batch`` are the windows of text in a step, those of all processes together, and ``seed``
    draws the adapter, the order of the text and the dropout.
    """

    full: bool = False
    r: int = 16
    alpha: float = 8.0
    dropout: float = 0.0
    steps: int = 20
    batch: int = 8
    lr: float = 0.016
    seed: int = 0


# --- processes ------------------------------------------------------------------------------


@contextmanager
def together() -> Iterator[torch.device]:
    """Inside, the processes that torchrun has started know each other; the device of this one.

    Alone, started without torchrun, a process is a group of one.
    """
    place, here = (int(os.environ.get(f"LOCAL_{what}", 0)) for what in ("RANK", "WORLD_SIZE"))
    device = torch.device("cpu")
    if torch.cuda.is_available() and torch.cuda.device_count() >= here:  # a card for each of them
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process() -> int:
    """The number of this process, from 0. (PyTorch calls it the rank.)"""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# --- model and data -------------------------------------------------------------------------


def build(settings: RunSettings) -> LanguageModel:
    """The pretrained model with an adapter, or with all of its parameters trained."""
    model = language.pretrained_gpt()
    training.set_seed(settings.seed)
    if settings.full:
        return model.requires_grad_()
    config = LoRAConfig(
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=list(BLOCK_LINEARS),
    )
    return add_lora(model, config)


def share(model: LanguageModel, how: str, reshard: bool = True) -> nn.Module:
    """The module to call in training. With "fsdp" the model is changed in place.

    ``reshard`` is for "fsdp": whether a block's whole parameters are given up after the forward
    pass, and gathered once more for the backward pass.
    """
    if how == "ddp":
        return DistributedDataParallel(model)
    if how == "fsdp":
        mesh = init_device_mesh(model.positions.device.type, (processes(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh)
    return model


def part_of(rows: Tensor) -> Tensor:
    """This process's part of the batch: every n-th row, so that no row is done twice."""
    if len(rows) % processes():
        raise ValueError(
            f"a batch of {len(rows)} cannot be cut into {processes()} equal parts: give --batch "
            f"{processes() * -(-len(rows) // processes())}"
        )
    return rows[process() :: processes()]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of what is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- checkpoints ----------------------------------------------------------------------------


def save_checkpoint(
    path: Path,
    settings: RunSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[Tensor],
) -> None:
    """Write one file, whole or not at all: what is trained, and all that a step depends on.

    Every process must call it, since sharded tensors are gathered; process 0 writes. The base is
    not in it.
    """
    tensors = {"losses": mean_over_processes(losses)}
    for name, parameter in trained(model).items():
        tensors[f"model/{name}"] = whole(parameter.detach())
        for what, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{what}"] = whole(value)
    generator = torch.cuda if torch.cuda.is_initialized() else torch
    for number, state in enumerate(from_all(generator.get_rng_state())):
        tensors[f"generator/{number}"] = state
    if process() == 0:
        tensors = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        about = {"settings": json.dumps(asdict(settings)), "steps": str(len(losses))}
        replace_file(path, save(tensors, about))
    if dist.is_initialized():
        dist.barrier()


def load_checkpoint(
    path: Path, settings: RunSettings, model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[Tensor]:
    """Put everything back; the losses of the steps that have been done.

    It may have been written by another number of processes, or with the model shared out in
    another way. Only the dropout of a process that was not there begins anew then.

    Raises:
        ValueError: It belongs to a run with other settings.
    """
    with safe_open(path, "pt") as file:
        about, keys = file.metadata(), list(file.keys())
        if json.loads(about["settings"]) != asdict(settings):
            raise ValueError(
                f"{path} belongs to a run with other settings, {about['settings']}: give those, "
                "or another folder"
            )
        for name, parameter in trained(model).items():
            with torch.no_grad():
                parameter.copy_(like(parameter, file.get_tensor(f"model/{name}")))
            start = f"optimizer/{name}/"
            for key in [key for key in keys if key.startswith(start)]:
                value = file.get_tensor(key)
                state = like(parameter, value) if value.shape == parameter.shape else value
                optimizer.state[parameter][key.removeprefix(start)] = state
        if f"generator/{process()}" in keys:
            generator = torch.cuda if torch.cuda.is_initialized() else torch
            generator.set_rng_state(file.get_tensor(f"generator/{process()}"))
        return list(file.get_tensor("losses"))


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, moved to where the parameter is and cut as the parameter is."""
    value = value.to(parameter.device)
    if not is_sharded(parameter):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)  # type: ignore


def from_all(tensor: Tensor) -> list[Tensor]:
    """The tensor of every process."""
    if processes() == 1:
        return [tensor]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = [torch.empty_like(tensor, device=device) for _ in range(processes())]
    dist.all_gather(found, tensor.to(device))
    return [one.cpu() for one in found]


def mean_over_processes(values: Sequence[Tensor]) -> Tensor:
    """The mean over the processes, one by one; on the CPU."""
    mine = torch.stack([value.detach().cpu() for value in values])
    return torch.stack(from_all(mine)).mean(dim=0)


# --- training -------------------------------------------------------------------------------


def train(
    settings: RunSettings,
    device: torch.device,
    how: str = "alone",
    out: Path | None = None,
    save_every: int = 0,
    die_at: int | None = None,
) -> tuple[LanguageModel, dict[str, Any]]:
    """The trained model, and what `main` reports of it."""
    model = build(settings).to(device).train()
    forward = share(model, how)
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=0.0)
    torch.manual_seed(settings.seed + process())  # each process drops other numbers
    losses: list[Tensor] = []
    path = None if out is None else out / CHECKPOINT
    if path is not None and path.exists():
        losses = load_checkpoint(path, settings, model, optimizer)
    begun_at = len(losses)
    x, y = language.text("prose").windows()
    order = training.batches(len(x), settings.batch, settings.steps, settings.seed)
    steps, seconds = settings.steps, []
    for step, rows in islice(enumerate(order), begun_at, None):
        if step == die_at:
            die_once()
        started = time.perf_counter()
        mine = part_of(rows)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps, settings.lr, "cosine", steps // 4)
        loss = F.cross_entropy(forward(x[mine].to(device)), y[mine].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu())
        seconds.append(time.perf_counter() - started)
        if path is not None and save_every and (step + 1) % save_every == 0:
            save_checkpoint(path, settings, model, optimizer, losses)
    if out is not None and not settings.full and (process() == 0 or how == "fsdp"):
        minilora.save(model, out / "adapter")  # where the model is cut up, all have to call it
    return model, {
        "losses": mean_over_processes(losses).tolist(),
        "begun_at": begun_at,
        "restarts": restarts(),
        "processes": processes(),
        "share": how,
        "trained": sum(p.numel() for p in parameters.values()),
        "seconds": sorted(seconds)[len(seconds) // 2] if seconds else None,
    }


def restarts() -> int:
    """How often torchrun has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def die_once() -> None:
    """The last process kills itself as `kill -9` would, unless it has been started again."""
    if restarts() == 0 and process() == processes() - 1:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; 0 where all went well."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m minilora.lab.distributed",
        description=about,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in fields(RunSettings):
        # torchrun would take "--r" for a short form of an option of its own.
        option = "--adapter-rank" if field.name == "r" else f"--{field.name}"
        if field.name == "full":
            parser.add_argument(option, action="store_true")
        else:
            kind = type(field.default)
            parser.add_argument(option, dest=field.name, type=kind, default=field.default)
    parser.add_argument("--share", choices=SHARES, default="alone")
    parser.add_argument("--out", type=Path, help="folder of the report, adapter and checkpoint")
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS")
    parser.add_argument("--die-at", type=int, metavar="STEP", help="the last process dies, once")
    options = parser.parse_args(arguments)
    settings = RunSettings(**{one.name: getattr(options, one.name) for one in fields(RunSettings)})
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    with together() as device, training.one_thread(), training.flush_denormals():
        if processes() > 1 and options.share == "alone":
            parser.error("several processes need --share ddp or --share fsdp")
        if options.share != "alone" and not dist.is_initialized():
            parser.error(f"--share {options.share} needs torchrun, which starts the processes")
        _, report = train(
            settings, device, options.share, options.out, options.save_every, options.die_at
        )
        if process() == 0:
            if options.out is not None:
                replace_file(options.out / "report.json", json.dumps(report, indent=1).encode())
            losses = report["losses"]
            print(f"{report['processes']} processes, loss {losses[0]:.4f} → {losses[-1]:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
