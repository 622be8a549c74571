"""What two processes do together, for tests/test_pytorch_machinery.py.

A section is a function that both processes run, and that raises where something is wrong. All
sections of a framework share one pair of processes, because starting it is what takes time.
"""

import copy
import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from core_help import Toy, bits, close, shake
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import minilora
from minilora import LoRAConfig, add_lora

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"targets": ["q_proj", "v_proj", "embed"], "r": 2, "alpha": 3},
    "dora": {"targets": ["q_proj", "down_proj"], "r": 2, "use_dora": True},
    "copies": {"targets": ["q_proj"], "r": 2, "modules_to_save": ["head", "norm"]},
    "biases": {"targets": ["q_proj", "v_proj"], "r": 2, "bias": "all"},
}
BATCH = 4  # two rows for each process


def adapted(config: dict[str, Any], seed: int = 0) -> Any:
    """The same base everywhere, an adapter that differs with the seed."""
    torch.manual_seed(0)
    base = Toy()
    torch.manual_seed(seed)
    return shake(add_lora(base, LoRAConfig(**config)))


def batches(steps: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 11, (BATCH, 5), generator=generator) for _ in range(steps)]


def mine(x: Tensor) -> Tensor:
    half = BATCH // 2
    return x[half * dist.get_rank() :][:half]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_beside(
    model: nn.Module, forward: nn.Module, alone: nn.Module, rounding: float = 1e-5
) -> None:
    """Three steps of ``model`` on half batches and of ``alone`` on whole ones: the same losses."""
    ours = torch.optim.AdamW(minilora.lora_parameters(model), lr=0.03)
    other = torch.optim.AdamW(minilora.lora_parameters(alone), lr=0.03)
    for x in batches():
        wanted = loss_of(alone, x)
        other.zero_grad()
        wanted.backward()
        loss = loss_of(forward, mine(x))
        ours.zero_grad()
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        assert close(mean / 2, wanted.detach(), rounding), (float(mean / 2), float(wanted))
        for (name, p), (_, q) in zip(trained(model), trained(alone), strict=True):
            assert p.grad is not None and q.grad is not None, f"no gradient of {name}"
            assert close(gathered(p.grad), q.grad, 10 * rounding), f"gradient of {name}"
        ours.step()
        other.step()
    for (name, p), (_, q) in zip(trained(model), trained(alone), strict=True):
        assert close(gathered(p.detach()), q.detach(), 10 * rounding), name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


# --- DistributedDataParallel ----------------------------------------------------------------


def ddp_goes_on_after_load(config: str, folder: Path) -> None:
    """huggingface/peft#300: what DDP keeps equal is what the model trains, also after a load."""
    there = folder / f"load-{config}"
    if dist.get_rank() == 0:
        minilora.save(adapted(CONFIGS[config], seed=7), there)
    dist.barrier()
    model = adapted(CONFIGS[config], seed=dist.get_rank())
    parallel = DistributedDataParallel(model)
    minilora.load(parallel.module, there)
    train_beside(model, parallel, adapted(CONFIGS[config], seed=7))
    parts = [torch.cat([p.detach().flatten() for _, p in trained(model)]) for _ in range(2)]
    dist.broadcast(parts[1], src=0)
    assert torch.equal(*parts), "the processes have ended with different parameters"


def ddp_inside_is_refused(folder: Path) -> None:
    model = nn.Sequential(DistributedDataParallel(Toy()))
    with suppress(ValueError):
        add_lora(model, LoRAConfig(r=2, targets=["q_proj"]))
        raise AssertionError("DistributedDataParallel inside the model was accepted")


def ddp_trains(config: str, folder: Path) -> None:
    # The processes begin with different adapters, and DDP gives all of them the first one's.
    model = adapted(CONFIGS[config], seed=dist.get_rank())
    parallel = DistributedDataParallel(model)  # default settings: an unused parameter is an error
    alone = adapted(CONFIGS[config])
    assert all(bits(p) == bits(q) for p, q in zip(model.parameters(), alone.parameters()))
    train_beside(model, parallel, alone)
    with torch.no_grad(), minilora.disabled(model):  # as preference training does between steps
        plain = parallel(batches()[0])
    torch.manual_seed(0)
    assert close(plain, Toy()(batches()[0]))
    loss_of(parallel, mine(batches()[0])).backward()


def ddp_saves(config: str, folder: Path) -> None:
    model = adapted(CONFIGS[config])
    parallel = DistributedDataParallel(model)
    loss_of(parallel, mine(batches()[0])).backward()
    torch.optim.SGD(minilora.lora_parameters(model), lr=0.1).step()
    if dist.get_rank() == 0:
        minilora.save(parallel.module, folder / config)
    dist.barrier()
    torch.manual_seed(0)
    again = minilora.load(Toy(), folder / config)
    assert bits(again(batches()[0])) == bits(model(batches()[0]))


# --- FSDP2 ----------------------------------------------------------------------------------


def shard(model: Any) -> Any:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def fsdp_trains(config: str, folder: Path) -> None:
    model = adapted(CONFIGS[config])
    alone = copy.deepcopy(model)
    shard(model)
    assert isinstance(model.blocks[0].q_proj.A, DTensor)
    listed = {id(p) for p in minilora.lora_parameters(model)}
    assert listed == {id(p) for _, p in trained(model)}, "lora_parameters lists stale tensors"
    train_beside(model, model, alone)
    x = batches()[0]
    try:
        with torch.no_grad(), minilora.disabled(model), minilora.disabled(alone):
            assert close(model(x), alone(x)), "disabled"
    except ValueError:  # original biases cannot be put into shards: a refusal is right as well
        assert config == "biases"
    with torch.no_grad():
        assert close(model(x), alone(x)), "after disabled"


def fsdp_trains_on_a_half_precision_base(folder: Path) -> None:
    """Two types of parameters in one group: bfloat16 that is frozen, float32 that trains."""
    torch.manual_seed(0)
    model = shake(add_lora(Toy().bfloat16(), LoRAConfig(**CONFIGS["lora"])))
    alone = copy.deepcopy(model)
    shard(model)
    train_beside(model, model, alone, rounding=0.01)
    assert {p.dtype for _, p in trained(model)} == {torch.float32}


def fsdp_saves(config: str, folder: Path) -> None:
    """All processes call save, the first one writes; the file holds the whole factors."""
    model = adapted(CONFIGS[config])
    alone = copy.deepcopy(model)
    shard(model)
    for target in (folder / "a" / config, folder / "b" / config):
        if target.parent.name == "b":
            loss_of(model, mine(batches()[0]))  # leaves the root's own parameters whole
        minilora.save(model, target)
        dist.barrier()
        torch.manual_seed(0)
        again = minilora.load(Toy(), target)
        assert bits(again(batches()[0])) == bits(alone(batches()[0]))


def fsdp_full_state_fits_one_process(config: str, folder: Path) -> None:
    """What works without ``save``: the whole state dict, gathered."""
    model = adapted(CONFIGS[config])
    alone = copy.deepcopy(model)
    shard(model)
    whole = {name: gathered(t) for name, t in model.state_dict().items()}
    again = adapted(CONFIGS[config], seed=3)
    again.load_state_dict(whole)
    assert bits(again(batches()[0])) == bits(alone(batches()[0]))


def fsdp_removes(config: str, folder: Path) -> None:
    model = shard(adapted(CONFIGS[config]))
    minilora.remove_lora(model)
    torch.manual_seed(0)
    with torch.no_grad():
        assert close(model(batches()[0]), Toy()(batches()[0]))


# --- running a pair -------------------------------------------------------------------------

DDP: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    **{f"trains {c}": (ddp_trains, (c,)) for c in CONFIGS},
    **{f"saves {c}": (ddp_saves, (c,)) for c in CONFIGS},
    **{f"goes on after load {c}": (ddp_goes_on_after_load, (c,)) for c in CONFIGS},
    "inside is refused": (ddp_inside_is_refused, ()),
}
FSDP: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    **{f"trains {c}": (fsdp_trains, (c,)) for c in CONFIGS},
    "trains on a half-precision base": (fsdp_trains_on_a_half_precision_base, ()),
    **{f"saves {c}": (fsdp_saves, (c,)) for c in CONFIGS},
    **{f"full state {c}": (fsdp_full_state_fits_one_process, (c,)) for c in CONFIGS},
    **{f"removes {c}": (fsdp_removes, (c,)) for c in ("lora", "copies")},
}
SECTIONS = {"ddp": DDP, "fsdp": FSDP}


def _child(rank: int, framework: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),  # a file, so no port can be taken
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    outcomes = {}
    for name, (section, arguments) in SECTIONS[framework].items():
        try:
            section(*arguments, folder)
            outcomes[name] = ""
        except Exception as error:
            outcomes[name] = "".join(traceback.format_exception(error, limit=-3, chain=False))
        # After every section, so that a pair that is killed still tells how far it came.
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
        with suppress(RuntimeError):
            dist.barrier()
    dist.destroy_process_group()


def run_pair(framework: str, folder: Path, seconds: float = 100) -> list[dict[str, str]]:
    """For each process {section: what went wrong in it, or ""}. No process outlives the call."""
    context = mp.get_context("spawn")
    pair = [context.Process(target=_child, args=(rank, framework, folder)) for rank in (0, 1)]
    try:
        for process in pair:
            process.start()
        for process in pair:
            process.join(seconds)
    finally:
        for process in pair:
            if process.is_alive():
                process.kill()
                process.join()
    files = [folder / f"{rank}.json" for rank in (0, 1)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]
