"""minilora: low-rank adaptation in plain PyTorch, small enough to read in a sitting::

    config = minilora.LoRAConfig(r=8, alpha=16, targets=["q_proj", "v_proj"])
    model = minilora.add_lora(model, config)
    optimizer = torch.optim.AdamW(minilora.lora_parameters(model), lr=1e-3)
    ...                                   # train as ever
    minilora.save(model, "adapter")       # and load(base_model, "adapter") elsewhere

``disabled`` gives the base back for a moment, ``merge`` writes the update into the weights, and
``remove_lora`` takes the adapter off. ``help(minilora.add_lora)`` tells of one of them. Relatives
of LoRA are in ``minilora.variants``, four-bit bases in ``minilora.quantize``, many adapters in one
batch in ``minilora.serving``; import these by name.
"""

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
