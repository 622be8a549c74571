"""The keys of an adapter's file, and the modules of a model that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from minilora.folder import TENSOR_FILE, AdapterError
from minilora.targets import second_names, unwrapped

PREFIX = "base_model.model."
Parts = dict[str, dict[str, Tensor]]


def group(tensors: Mapping[str, Tensor]) -> tuple[Parts, dict[str, Tensor]]:
    """({module path: {"A": …, "B": …}}, everything else), names as the model has them."""
    factor = re.compile(
        r"(.+)\.lora_((?:embedding_)?[AB]|magnitude_vector)(?:\.default)?(?:\.weight)?"
    )
    parts: Parts = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = unwrapped(key.removeprefix(PREFIX))
        hit = factor.fullmatch(name)
        pair = parts.setdefault(hit[1], {}) if hit else rest
        short = hit[2] if hit else re.sub(r"\.modules_to_save\.(default\.)?", ".", name)
        other = pair.get(short)
        if other is not None and (other.dtype != tensor.dtype or not torch.equal(other, tensor)):
            raise AdapterError(f"the file has two tensors for {name!r}")
        pair[short] = tensor
    if not parts:
        some = ", ".join(repr(key) for key in list(tensors)[:3]) or "nothing"
        raise AdapterError(
            f"{TENSOR_FILE} holds no LoRA factors, whose keys end in lora_A.weight and "
            f"lora_B.weight; among its {len(tensors)} tensors are {some}"
        )
    return parts, rest


def fit(
    parts: Parts, rest: dict[str, Tensor], modules: Mapping[str, nn.Module]
) -> tuple[Parts, dict[str, Tensor], bool]:
    """``group``'s two under the names of the model, and whether any name had to change.

    A name may be a second one of a shared module, or begin with what a wrapper put in front.

    Raises:
        AdapterError: The file has factors for a module that the model has not.
    """
    missing = [path for path in parts if path not in modules]
    if not missing:
        return parts, rest, False
    firsts = second_names(modules)
    if all(path in firsts for path in missing):
        return {firsts.get(p, p): pair for p, pair in parts.items()}, _renamed(rest, firsts), True
    for head in _heads(parts):
        if all(path.removeprefix(head) in modules for path in parts):
            cut = {path.removeprefix(head): pair for path, pair in parts.items()}
            return cut, {name.removeprefix(head): t for name, t in rest.items()}, True
    for path in modules:
        inner = path.removesuffix(f".{missing[0]}")
        if inner != path and all(f"{inner}.{name}" in modules for name in parts):
            raise AdapterError(
                f"the file has factors for {missing[0]!r}, which here is {path!r}, and so for all; "
                f"load the adapter onto that part: minilora.load(model.{inner}, …)"
            )
    some = [path for path in modules if path.rpartition(".")[2] == missing[0].rpartition(".")[2]]
    there = f"; of that name it has {', '.join(map(repr, some[:3]))}" if some else ""
    if len(missing) < len(parts):
        there += f"; {len(parts) - len(missing)} of the file's {len(parts)} modules are there"
    else:
        there += "; is it the base model that the adapter was trained on?"
    raise AdapterError(
        f"the file has factors for {missing[0]!r}, but the model has no such module{there}"
    )


def _heads(paths: Iterable[str]) -> list[str]:
    """What all paths begin with, up to a dot: ``["a.", "a.b."]`` for a.b.c and a.b.d."""
    split = [path.split(".")[:-1] for path in paths]
    heads: list[str] = []
    for number, part in enumerate(split[0]):
        if any(len(other) <= number or other[number] != part for other in split):
            break
        heads.append(".".join(split[0][: number + 1]) + ".")
    return heads


def _renamed(rest: dict[str, Tensor], firsts: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in rest.items():
        path, _, last = name.rpartition(".")
        renamed[f"{firsts.get(path, path)}.{last}"] = tensor
    return renamed
