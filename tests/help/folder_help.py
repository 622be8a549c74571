"""Adapter folders made by hand, so that each can be broken in one way."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS = [f"model.layers.{n}.self_attn.{name}" for n in range(4) for name in ("q_proj", "v_proj")]


def factors(layers=LAYERS, r=4, width=16, size=0.1, seed=0):
    """{key: tensor} of PEFT's keys, A uniform as it starts and B normal."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path in layers:
        A = torch.rand(r, width, generator=generator) * 2 - 1
        B = torch.randn(width, r, generator=generator) * size
        found[f"base_model.model.{path}.lora_A.weight"] = A / width**0.5
        found[f"base_model.model.{path}.lora_B.weight"] = B
    return found


def settings(**others):
    """PEFT's settings for `factors`."""
    return {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "a/base",
        **others,
    }


def folder(path, tensors=None, config=None):
    """Write an adapter's folder and return it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    save_file(factors() if tensors is None else tensors, path / "adapter_model.safetensors")
    text = json.dumps(settings() if config is None else config)
    (path / "adapter_config.json").write_text(text)
    return path


def base(path, layers=LAYERS, width=16, size=1.0, dtype=torch.float32, seed=1):
    """A model's folder with a weight for each layer."""
    generator = torch.Generator().manual_seed(seed)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{name}.weight": (torch.randn(width, width, generator=generator) * size).to(dtype)
        for name in layers
    }
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path
