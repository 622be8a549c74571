"""One load of one folder, watched: what came of it, and everything about it that is wrong."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from core_help import bits, snapshot
from fault_folders import CONFIG_FILE, EITHER, LOADS, PREFIX, REFUSED, TENSOR_FILE, Expect
from torch import Tensor, nn

import minilora
from minilora.state import adaptation, trained_copies

CPU_SECONDS = 10  # that a load may compute, both models together
LONGEST = 600  # characters of an error
MOST_GROWTH = 256  # MiB of memory that one load may add
MIB = 2**20
# ru_maxrss counts bytes on macOS and KiB elsewhere.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

# Where a kind asks for no words of its own, the error names at least one of these.
ANY_NAME = (CONFIG_FILE, TENSOR_FILE, "proj", "embed", "conv", "head", "norm", "bias", "rank", "r ")


def judged(
    folder: Path, marker: Path, models: dict[str, nn.Module], expect: Expect
) -> dict[str, Any]:
    """Load ``folder`` onto each model: {"outcome", "message", "problems", "growth"}.

    To be called in a child of its own: it limits the memory, and forbids what a load never needs.
    ``marker``: what code in the folder would make if it were run. The first model is the base.
    """
    problems: list[str] = []
    outcomes: list[str] = []
    message: str | None = None
    _limit(expect.headroom)
    original = _state(next(iter(models.values())))
    before = _peak()
    with warnings.catch_warnings(record=True) as warned, _watched(marker, problems):
        warnings.simplefilter("always")
        for name, model in models.items():
            was = snapshot(model)
            try:
                minilora.load(model, folder)
                outcomes.append(LOADS)
                problems += [f"{name}: {what}" for what in _mistakes(model, folder, original)]
                continue
            except minilora.AdapterError as error:
                message = str(error).replace(str(folder), "FOLDER")
                outcomes.append(REFUSED)
            except BaseException as error:
                problems.append(f"{name}: {type(error).__name__} instead of AdapterError: {error}")
            if snapshot(model) != was:
                problems.append(f"{name}: not loaded, but the model has changed")
    told = ("load has replaced parameters", "will train in torch.")  # true of these models
    other = [w for w in warned if not any(words in str(w.message) for words in told)]
    problems += [f"loading warned: {warning.message}" for warning in other[:1]]
    growth = (_peak() - before) / MIB
    if growth > MOST_GROWTH:
        problems.append(f"loading took {growth:.0f} MiB of memory")
    if message is not None:
        problems += _faults_of(message, expect.words)
    outcome = outcomes[0] if outcomes else "another error"
    if len(set(outcomes)) > 1:
        problems.append(f"what came of it depends on the model: {outcomes}")
    if expect.outcome != EITHER and outcomes and outcome != expect.outcome:
        problems.insert(0, f"{outcome}, but must be {expect.outcome}: {message or ''}")
    return {"outcome": outcome, "message": message, "problems": problems, "growth": growth}


def _faults_of(message: str, words: tuple[str, ...]) -> list[str]:
    found = []
    if len(message) > LONGEST:
        found.append(f"the message has {len(message)} characters: {message[:120]}…")
    if not message.isprintable():
        found.append(f"the message is not one paragraph of printable text: {message[:300]!r}")
    words = words or ANY_NAME
    if not any(word in message for word in words):
        found.append(f"the message names none of {', '.join(words)}: {message[:300]}")
    return found


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def _limit(headroom: int) -> None:
    """Processor time, which a busy machine does not stretch, and memory (MiB)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return  # not Linux
    limit = mapped + headroom * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# --- what a load must not do ------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"pickle\..*|exec|compile|os\.(system|exec|posix_spawn|fork|remove|rename|mkdir|rmdir|link|"
    r"symlink|chmod|chown|truncate|putenv)|shutil\..*|subprocess\..*|socket\..*|marshal\..*"
)


@contextmanager
def _watched(marker: Path, problems: list[str]) -> Iterator[None]:
    """Note any pickle, any code that is run, any other file, and anything that is written.

    Python's audit events show it also where the code under test catches the error.
    """
    watching = True

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if FORBIDDEN.fullmatch(event):
            problems.append(f"loading did {event} {args!r:.100}")
        if event == "open" and Path(os.fsdecode(args[0])).name not in (CONFIG_FILE, TENSOR_FILE):
            problems.append(f"loading opened {args[0]!r:.100}")

    def forbidden(*args: object, **kwargs: object) -> None:
        problems.append("a pickle was read")
        raise RuntimeError("a pickle was read")

    sys.addaudithook(audit)
    for owner, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (pickle, "_Unpickler"),
        (torch, "load"),
    ]:
        setattr(owner, name, forbidden)
    yield
    watching = False
    if marker.exists():
        problems.append("code from the folder was run: the marker is there")


# --- what the bytes say -----------------------------------------------------------------------

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "C64": torch.complex64},
}


def _said(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors of a folder, read without the code under test."""
    whole = (folder / TENSOR_FILE).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for key, entry in header.items():
        a, b = entry["data_offsets"]
        data = bytearray(whole[end + a : end + b])
        flat = torch.frombuffer(data, dtype=DTYPES[entry["dtype"]]) if data else torch.empty(0)
        tensors[key] = flat.reshape(entry["shape"])
    inside = metadata.get(CONFIG_FILE)
    own: Any = None if inside is None else json.loads(inside)
    if not (folder / CONFIG_FILE).is_file():
        return own, tensors
    settings = json.loads((folder / CONFIG_FILE).read_bytes().decode("utf-8-sig"))
    return (own if own is not None and _id(own) != _id(settings) else settings), tensors


def _id(settings: dict[str, Any]) -> object:
    mapping = settings.get("auto_mapping")
    return mapping.get("minilora_id") if isinstance(mapping, dict) else None


def _mistakes(model: nn.Module, folder: Path, original: dict[str, Any]) -> list[str]:
    """Where the loaded adapter differs from what the folder says, or hides another base."""
    try:
        found = _differences(model, *_said(folder))
        if _state(minilora.remove_lora(model)) != original:
            found.append("without the adapter it is not the base again")
        return found
    except Exception as error:
        return [f"loaded, but it cannot be compared: {type(error).__name__}: {error}"]


def _differences(
    model: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> list[str]:
    if not all(torch.isfinite(p).all() for p in minilora.lora_parameters(model)):
        return ["loaded with NaN or infinity in it"]
    left = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    found = []
    for path, layer in minilora.lora_layers(model).items():
        factors = {"A": layer.A, "B": layer.B}
        if layer.dora is not None:
            factors["magnitude_vector"] = layer.dora.magnitude
        for short, value in factors.items():
            spelling = rf"{re.escape(path)}\.lora_(embedding_)?{short}(\.default)?(\.weight)?"
            keys = [key for key in left if re.fullmatch(spelling, key)]
            if not keys:
                found.append(f"{path} has a {short}, but the file has none")
            for key in keys:
                if not _same(value, left.pop(key)):
                    found.append(f"{path}: {short} is not what the file holds")
        r, alpha = (
            _meant(settings, path, "r", "rank"),
            _meant(settings, path, "lora_alpha", "alpha"),
        )
        scale = alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
        if (layer.r, layer.alpha, layer.scale) != (r, alpha, scale) or layer.A.shape[0] != r:
            found.append(f"{path}: r={layer.r}, alpha={layer.alpha}, but {r}, {alpha} in the file")
    now, base = _other_tensors(model)
    for key, tensor in left.items():
        name = re.sub(r"\.(base_layer|original_module|modules_to_save(\.default)?)\.", ".", key)
        if not any(name in of and _same(of[name], tensor) for of in (now, base)):
            found.append(f"{key!r} is in the file, but its values are nowhere in the model")
    return found


def _same(value: Tensor, stored: Tensor) -> bool:
    stored = stored.real if stored.is_complex() else stored
    return bits(value) == bits(stored.to(value.dtype))


def _meant(settings: dict[str, Any], path: str, setting: str, short: str) -> Any:
    pattern = settings.get(f"{short}_pattern") or {}
    hits = [v for key, v in pattern.items() if _ending(key).match(path)]
    return hits[0] if hits else settings[setting]


@cache
def _ending(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _other_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """{name: tensor} that the adapter trains beside A and B, and of the base, by original name."""
    now: dict[str, Any] = {n: m.bias for n, (m, _) in adaptation(model).biases.items()}
    for path, wrapper in trained_copies(model).items():
        now.update({f"{path}.{n}": t for n, t in wrapper.tuned.state_dict().items()})
    with minilora.disabled(model):
        base = {
            name.replace(".base.", ".").removeprefix("base."): tensor.clone()
            for name, tensor in dict(model.state_dict()).items()
        }
    return now, base
