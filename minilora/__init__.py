"""minilora: low-rank adaptation in plain PyTorch, small enough to read in a sitting."""

from minilora.accounting import count_parameters, predict_trainable, summary
from minilora.adapt import (
    add_lora,
    disabled,
    lora_layers,
    lora_parameters,
    merge,
    merged,
    remove_lora,
    set_strength,
    unmerge,
)
from minilora.config import LoRAConfig
from minilora.files import AdapterError, load, save
from minilora.layers import textbook

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "LoRAConfig",
    "add_lora",
    "count_parameters",
    "disabled",
    "load",
    "lora_layers",
    "lora_parameters",
    "merge",
    "merged",
    "predict_trainable",
    "remove_lora",
    "save",
    "set_strength",
    "summary",
    "textbook",
    "unmerge",
]
