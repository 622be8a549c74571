"""PEFT's spelling of a config of ours, for the tests that compare the two."""

from __future__ import annotations

from typing import Any

import peft


def peft_config(
    config: dict[str, Any], targets: Any = None, task: str | None = None
) -> peft.LoraConfig:
    """The same settings; ``targets`` where PEFT must be told others than ours."""
    return peft.LoraConfig(
        r=config.get("r", 8),
        lora_alpha=config.get("alpha", 8),
        target_modules=config["targets"] if targets is None else targets,
        exclude_modules=config.get("exclude"),
        lora_dropout=config.get("dropout", 0.0),
        use_rslora=config.get("scaling") == "rslora",
        use_dora=config.get("use_dora", False),
        bias=config.get("bias", "none"),
        rank_pattern=config.get("rank_pattern", {}),
        alpha_pattern=config.get("alpha_pattern", {}),
        # PEFT writes the names of heads that it thinks of into the list it is given.
        modules_to_save=list(config.get("modules_to_save", ())) or None,
        init_lora_weights=config.get("init", True),
        task_type=task,
    )
