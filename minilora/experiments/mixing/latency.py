"""What an adapter beside the weights costs in time, and what serving many adapters costs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.accounting import count_parameters, predict_trainable
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.measuring import take_turns
from minilora.lab.training import set_seed
from minilora.lab.transformer import BLOCK_LINEARS
from minilora.serving import AdapterBank

#: Wide enough that its matrices, and not the calls, take the time; one block has all of it.
WIDE = DecoderConfig(width=512, layers=2, heads=8, vocab=64, context=512)


def with_adapter(base: nn.Module, r: int) -> nn.Module:
    """A copy of the base with an adapter on the blocks' matrices whose B is not zero."""
    model = copy.deepcopy(base)
    minilora.add_lora(model, LoRAConfig(r=r, alpha=r, targets=list(BLOCK_LINEARS)))
    with torch.no_grad():
        for layer in minilora.lora_layers(model).values():
            layer.B.normal_(std=0.01)
    return model.eval()


def predicted(r: int, config: DecoderConfig = WIDE) -> float:
    """Unmerged over merged, where time goes with the numbers that a token is multiplied by."""
    base = Decoder(config)
    targets = list(BLOCK_LINEARS)
    added = predict_trainable(base, LoRAConfig(r=r, alpha=r, targets=targets))
    layers = [m for m in base.modules() if isinstance(m, nn.Linear)]
    return 1 + added / sum(count_parameters(layer) for layer in layers)


def unmerged_over_merged(
    ranks: Sequence[int], tokens: Sequence[int], rounds: int, config: DecoderConfig = WIDE
) -> dict[int, dict[int, list[float]]]:
    """{tokens: {r: time of the unmerged model over that of the merged one, for each round}}."""
    set_seed(0)
    base = Decoder(config).eval()
    models = {r: with_adapter(base, r) for r in ranks}
    models[0] = minilora.remove_lora(copy.deepcopy(models[ranks[0]]), keep_update=True)
    found: dict[int, dict[int, list[float]]] = {}
    for n in tokens:
        ids = torch.randint(config.vocab, (1, n))
        runs = {str(r): partial(_repeat, model, ids) for r, model in models.items()}
        spent = take_turns(runs, rounds)
        found[n] = {
            r: [a / b for a, b in zip(spent[str(r)], spent["0"], strict=True)] for r in ranks
        }
    return found


@torch.inference_mode()
def _repeat(model: nn.Module, ids: Tensor) -> None:
    """Few tokens often, so that a round is long enough for the clock."""
    for _ in range(max(1, 32 // ids.numel())):
        model(ids)


def sharing(base: nn.Module) -> nn.Module:
    """A copy of the base that has the very same weights, so that it takes no memory for them."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def serving_runs(
    base: nn.Module, folders: Mapping[str, Path], names: Sequence[str], ids: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Ways to answer a batch whose row i wants the adapter ``names[i]``: {way: a run}.

    "load": one model, which loads each adapter from its folder in turn. "groups": adapters beside
    the weights, all in memory over one set of weights; each is called with the rows that want it.
    "copies": the same with a merged model for each. "bank": one pass in which each row has its own.
    """
    wanted = {name: [i for i, one in enumerate(names) if one == name] for name in folders}
    wanted = {name: rows for name, rows in wanted.items() if rows}
    bank = AdapterBank(copy.deepcopy(base))
    for name in wanted:
        bank.add(name, folders[name])
    model = copy.deepcopy(base)
    copies = {
        name: minilora.remove_lora(
            minilora.load(copy.deepcopy(base), folders[name]), keep_update=True
        )
        for name in wanted
    }
    beside = {name: minilora.load(sharing(base), folders[name]) for name in wanted}

    @torch.no_grad()
    def gathered(of: Callable[[str], nn.Module]) -> Tensor:
        parts = {name: of(name)(ids[rows]) for name, rows in wanted.items()}
        first = next(iter(parts.values()))
        whole = first.new_empty(len(ids), *first.shape[1:])
        for name, rows in wanted.items():
            whole[rows] = parts[name]
        return whole

    @torch.no_grad()
    def banked() -> Tensor:
        with bank.rows(list(names)) as served:
            found: Tensor = served(ids)
            return found

    return {
        "load": lambda: gathered(lambda name: minilora.load(model, folders[name])),
        "groups": lambda: gathered(beside.__getitem__),
        "copies": lambda: gathered(copies.__getitem__),
        "bank": banked,
    }


def serving_seconds(
    base: nn.Module, folders: Mapping[str, Path], counts: Sequence[int], ids: Tensor, rounds: int
) -> dict[int, dict[str, list[float]]]:
    """{number of different adapters in the batch: {way: seconds of each round}}."""
    found = {}
    for n in counts:
        names = [list(folders)[i % n] for i in range(len(ids))]
        found[n] = take_turns(serving_runs(base, folders, names, ids), rounds)
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below it."""
    return sum(
        os.path.getsize(Path(place) / name) for place, _, names in os.walk(folder) for name in names
    )
