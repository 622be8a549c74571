"""Valid adapter folders kept in memory, to be spoilt; and how one spoilt folder is described."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from core_help import Block, shake
from fault_child import result_of
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# What must come of a folder. EITHER: refused, or loaded as exactly what the bytes say.
REFUSED, LOADS, EITHER = "refused", "loaded", "either"


class Expect(NamedTuple):
    """What must come of a folder, and words of which the error has to hold at least one.

    ``headroom``: MiB that the process may map while it loads, for the machine's sake.
    """

    outcome: str
    words: tuple[str, ...] = ()
    headroom: int = 4096


Content = bytes | Callable[[Path], object] | None


@dataclass
class Draft:
    """A folder before it is written: change ``tensors`` and ``config``, or replace a whole file.

    ``files`` overrides: bytes, a function that makes something at the path, or None for nothing.
    ``path`` gives the path to load, where it is not the folder's own.
    """

    model: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]
    files: dict[str, Content] = field(default_factory=dict)
    path: Callable[[Path], Path] | None = None

    def packed(self) -> bytes:
        return safetensors.torch.save(self.tensors, metadata=self.metadata)

    def split(self) -> tuple[dict[str, Any], bytes]:
        """(header, data) of the tensor file."""
        whole = self.packed()
        end = 8 + int.from_bytes(whole[:8], "little")
        return json.loads(whole[8:end]), whole[end:]

    def plain(self) -> None:
        """As another tool writes it: no config and no id inside the tensor file."""
        self.metadata = {"format": "pt"}
        self.config["auto_mapping"] = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, Content] = {TENSOR_FILE: None, CONFIG_FILE: None}
        if TENSOR_FILE not in self.files:
            files[TENSOR_FILE] = self.packed()
        if CONFIG_FILE not in self.files:
            files[CONFIG_FILE] = json.dumps(self.config).encode()
        for name, content in {**files, **self.files}.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            elif content is not None:
                content(folder / name)


def joined(header: object, data: bytes) -> bytes:
    """A tensor file from a header (JSON, or the bytes that stand in its place) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_sparse(begin: bytes, size: int, path: Path) -> None:
    """A file of this size that takes no room on the disk: zeros follow the beginning."""
    path.write_bytes(begin)
    os.truncate(path, size)


@dataclass(frozen=True)
class Kind:
    """One way to spoil a folder: ``make(draft, rng, index)`` changes the draft.

    ``bases``: the folders that it starts from, or all. ``most``: how often at most, where one is
    slow or there are no more. ``ours``: only as minilora writes folders, with the config inside
    the tensor file too.
    """

    make: Callable[[Draft, Random, int], Expect]
    bases: tuple[str, ...] = ()
    most: int = 10**9
    ours: bool = False


class Mixed(nn.Module):
    """One layer of each type that takes an adapter, and what can be trained beside them."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.conv = nn.Conv1d(d, d, 3)
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.norm = nn.BatchNorm1d(d)
        self.head = nn.Linear(d, 3)


class Deep(nn.Module):
    """A hundred layers: what costs a little for each shows."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(100)])


MODELS = ("mixed", "half", "deep")


def fresh(name: str) -> nn.Module:
    """One of MODELS, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Deep() if name == "deep" else Mixed()
    return model.half() if name == "half" else model


def adapted(name: str) -> nn.Module:
    """The same model with another adapter on it."""
    torch.manual_seed(1)
    config = LoRAConfig(targets=["up_proj"], r=2, bias="all", modules_to_save=["head"])
    return shake(minilora.add_lora(fresh(name), config))


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["q_proj"], "r": 3, "alpha": 6},
    "full": {
        "targets": ["q_proj", "v_proj", "embed"],
        "r": 3,
        "alpha": 5,
        "bias": "all",
        "modules_to_save": ["head", "norm"],
        "rank_pattern": {"0.v_proj": 2},
        "alpha_pattern": {"embed": 2},
        "scaling": "rslora",
    },
    "dora": {"targets": ["q_proj", "up_proj", "conv", "embed"], "r": 2, "use_dora": True},
    "half": {"targets": ["q_proj", "conv"], "r": 3, "modules_to_save": ["head"]},
    "deep": {"targets": r"layers\.\d+", "r": 1},
}
PEFT_CONFIGS: dict[str, dict[str, Any]] = {
    "PEFT plain": {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 6},
    "PEFT full": {
        "target_modules": ["q_proj", "embed", "conv"],
        "r": 3,
        "bias": "all",
        "modules_to_save": ["head"],
        "rank_pattern": {"embed": 2},
    },
    "PEFT DoRA": {"target_modules": ["v_proj", "down_proj"], "r": 2, "use_dora": True},
    "PEFT PiSSA": {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": "pissa"},
}


@contextmanager
def bases(with_peft: bool) -> Iterator[dict[str, Draft]]:
    """{name: draft} of valid folders; those that PEFT writes only where it is installed."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind, config in CONFIGS.items():
            torch.manual_seed(2)
            model = minilora.add_lora(fresh(kind), LoRAConfig(**config))
            minilora.save(shake(model), root / kind)
        if with_peft:  # in a child, so that every later fork is spared its modules
            if why := result_of(lambda: _written_by_peft(root), seconds=300).get("died"):
                print(f"not tried: folders written by PEFT: {why}")
        found = {path.name: _read(path) for path in sorted(root.iterdir())}
        yield found


def _written_by_peft(root: Path) -> dict[str, Any]:
    with redirect_stderr(io.StringIO()):  # it speaks of optional parts that are not there
        import peft

    for kind, config in PEFT_CONFIGS.items():
        torch.manual_seed(3)
        model = peft.get_peft_model(fresh("PEFT"), peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(str(root / kind))
    return {}


def _read(folder: Path) -> Draft:
    with safetensors.safe_open(folder / TENSOR_FILE, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load((folder / TENSOR_FILE).read_bytes())
    config = json.loads((folder / CONFIG_FILE).read_text())
    model = folder.name if folder.name in MODELS else "mixed"
    return Draft(model, tensors, metadata, config)


def draft_for(
    name: str, kind: Kind, all_bases: dict[str, Draft], seed: int, index: int
) -> tuple[Draft, Expect]:
    """The folder number ``index`` of this kind: the same for the same seed."""
    rng = Random(f"{seed}/{name}/{index}")
    usual = [base for base in all_bases if base != "deep"]
    usable = [base for base in (kind.bases or usual) if base in all_bases]
    draft = deepcopy(all_bases[rng.choice(usable)])
    if not kind.ours and rng.random() < 0.5:
        draft.plain()
    return draft, kind.make(draft, rng, index)


def layer_keys(draft: Draft) -> list[str]:
    """The keys of factors."""
    return [key for key in sorted(draft.tensors) if ".lora_" in key]


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
