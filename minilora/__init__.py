"""minilora: low-rank adaptation in plain PyTorch, small enough to read in a sitting."""

from minilora.accounting import Summary, count_parameters, predict_trainable, summary
from minilora.adapt import add_lora, disabled, remove_lora, set_strength
from minilora.config import LoRAConfig
from minilora.files import AdapterError, load, save
from minilora.layers import LoRALayer, textbook
from minilora.merging import merge, merged, unmerge
from minilora.state import lora_layers, lora_parameters

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "LoRAConfig",
    "LoRALayer",
    "Summary",
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
