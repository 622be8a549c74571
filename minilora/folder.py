"""An adapter's folder: whole at any moment, and read without trust.

It holds ``adapter_config.json`` and ``adapter_model.safetensors``. No pickle is read, ever.

The safetensors file also carries the config, and an id that both files share. So a save that was
killed between the two files can be told from a config that somebody edited by hand: equal ids,
the config file holds; different ids, the config inside the safetensors file does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MOST_CONFIG = 2**20  # bytes; real ones have thousands, and JSON grows thirtyfold when it is read
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class AdapterError(ValueError):
    """A folder that cannot be loaded, or an adapter that cannot be saved, and why."""

    def __init__(self, message: str) -> None:
        # Names come from the file, and a hostile one may be of any length.
        super().__init__(message if len(message) <= 600 else f"{message[:599]}…")


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files; killed at any moment, the folder is read as it was before or as new.

    Other files in it stay. ``config`` must hold a dict ``auto_mapping``, which takes the id.

    Raises:
        OSError: The folder cannot be written. It is read as before, or as new.
    """
    content = json.dumps(config, sort_keys=True).encode() + safetensors.torch.save(tensors)
    config["auto_mapping"]["minilora_id"] = hashlib.sha256(content).hexdigest()[:16]
    text = json.dumps(config, indent=2, sort_keys=True)
    metadata = {"format": "pt", CONFIG_FILE: text}

    folder.mkdir(parents=True, exist_ok=True)
    for name in (TENSOR_FILE, CONFIG_FILE):
        for left_over in folder.glob(f".{name}.*.tmp"):  # of a save that was killed
            left_over.unlink(missing_ok=True)
    replace_file(folder / TENSOR_FILE, safetensors.torch.save(tensors, metadata=metadata))
    replace_file(folder / CONFIG_FILE, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that it is never seen half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of one and the same state of the folder.

    Raises:
        AdapterError: The folder cannot be read, or what is in it is no adapter.
    """
    try:
        return _read(folder)
    except OSError as error:  # no right to read, a name that is too long, a broken disk
        raise AdapterError(
            f"the folder or its {CONFIG_FILE} cannot be read: {error.strerror}: {folder}"
        ) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensor_file, config_file = folder / TENSOR_FILE, folder / CONFIG_FILE
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; give the one that holds {CONFIG_FILE}")
    if not tensor_file.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which can run code, and is not read" * pickled
        raise AdapterError(f"{folder} holds no {TENSOR_FILE}{hint}")
    try:
        with safetensors.safe_open(tensor_file, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys}
    except Exception as error:  # the library raises several kinds for damaged files
        raise AdapterError(f"{tensor_file} is damaged or cannot be read: {error}") from error
    inside = metadata.get(CONFIG_FILE)
    if config_file.is_file():
        with open(config_file, "rb") as stream:
            settings = _json(stream.read(MOST_CONFIG + 1), str(config_file))
        if inside is not None:
            own = _json(inside.encode(), f"the config inside {tensor_file}")
            if _identity(own) != _identity(settings):  # a save was killed between the two files
                settings = own
    elif inside is not None:
        settings = _json(inside.encode(), f"the config inside {tensor_file}")
    else:
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}")
    return settings, tensors


def _json(text: bytes, name: str) -> dict[str, Any]:
    if len(text) > MOST_CONFIG:
        raise AdapterError(f"{name} is not a config: it has more than {MOST_CONFIG:,} bytes")
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{name} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def _identity(settings: dict[str, Any]) -> object:
    mapping = settings.get("auto_mapping")
    return mapping.get("minilora_id") if isinstance(mapping, dict) else None


def is_quick(pattern: str) -> bool:
    """Whether a regular expression surely matches fast: few repetitions, and none of a group."""
    plain = re.sub(r"\\.|\[[^]]*\]", "x", pattern)  # escapes and classes are single characters
    repeats = re.findall(r"[*+{]|(?<![(*+}])\?", plain)
    return len(repeats) <= 4 and plain.count("(") <= 4 and not re.search(r"\)[*+{]", plain)


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise AdapterError where the shape is another; nothing is read for it."""
    if tuple(tensor.shape) != tuple(shape):
        raise AdapterError(
            f"{name} has shape {tuple(tensor.shape)} in the file, but the model and the rank in "
            f"{CONFIG_FILE} ask for {tuple(shape)}"
        )


def checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with the type and place of ``like``; refused where it cannot stand for it."""
    check_shape(name, tensor, like.shape)
    if like.is_meta:
        raise AdapterError(
            f"{name} has no place to go: the model is on the meta device, which holds no numbers; "
            "load the base model's weights first"
        )
    if like.is_floating_point():
        if tensor.dtype not in FLOATS:
            raise AdapterError(f"{name} holds {tensor.dtype}, where floating point is needed")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} holds NaN or infinity")
        if not torch.isfinite(tensor.to(like.dtype)).all():
            raise AdapterError(f"{name} holds numbers too large for {like.dtype}")
    elif tensor.dtype != like.dtype:
        raise AdapterError(f"{name} holds {tensor.dtype}, where {like.dtype} is needed")
    return tensor.to(device=like.device, dtype=like.dtype, copy=True)
