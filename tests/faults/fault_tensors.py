"""A well-formed tensor file whose tensors or keys are wrong."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from random import Random

import torch
from fault_configs import any_bytes, any_setting
from fault_folders import (
    EITHER,
    PREFIX,
    REFUSED,
    TENSOR_FILE,
    Draft,
    Expect,
    Kind,
    joined,
    layer_keys,
    write_sparse,
)
from torch import Tensor


def _pick(draft: Draft, rng: Random) -> str:
    """A key whose tensor the adapter needs, and that is of floats."""
    floats = [key for key in sorted(draft.tensors) if draft.tensors[key].is_floating_point()]
    repeats = (".embed.weight", ".base_layer.weight", ".original_module.")  # of the base
    return rng.choice([key for key in floats if not any(part in key for part in repeats)])


def _plain_name(key: str) -> str:
    """What several spellings of a key have in common."""
    return re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", key.removeprefix(PREFIX))


def _named(key: str) -> tuple[str, ...]:
    """The module of the key, which the error must name."""
    name = _plain_name(key)
    return (name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0],)


def _refused(key: str) -> Expect:
    return Expect(REFUSED, _named(key))


def wrong_type(draft: Draft, rng: Random, index: int) -> Expect:
    key = _pick(draft, rng)
    types = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool]
    types += [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
    types += [torch.uint16, torch.uint32, torch.uint64]
    chosen = types[index % len(types)]
    draft.tensors[key] = torch.ones(draft.tensors[key].shape).to(chosen)
    return _refused(key)


def nan_or_inf(draft: Draft, rng: Random, index: int) -> Expect:
    key = _pick(draft, rng)
    dtype = [None, torch.float16, torch.bfloat16, torch.float64][index % 4]
    tensor = draft.tensors[key].to(dtype or draft.tensors[key].dtype)
    bad = rng.choice([float("nan"), float("inf"), float("-inf")])
    tensor.view(-1)[rng.randrange(tensor.numel())] = bad
    draft.tensors[key] = tensor
    return _refused(key)


def too_large(draft: Draft, rng: Random, index: int) -> Expect:
    """Finite numbers that are infinite in the type that the model needs."""
    if draft.model == "half" and index % 2:
        key = f"{PREFIX}head.weight"
        dtype, value = rng.choice([(torch.float32, 1e6), (torch.bfloat16, -1e38)])
    else:
        key, dtype, value = rng.choice(layer_keys(draft)), torch.float64, rng.choice([1e39, -1e300])
    tensor = draft.tensors[key].to(dtype)
    tensor.view(-1)[-1] = value
    draft.tensors[key] = tensor
    return _refused(key)


def wrong_shape(draft: Draft, rng: Random, index: int) -> Expect:
    key = rng.choice(layer_keys(draft))
    t = draft.tensors[key]
    more = torch.cat([t, t[:1]])
    shapes: list[Tensor] = [t[None], t[..., None], t.flatten()[:-1], torch.tensor(1.0), more]
    shapes += [t[:0], t[1:] if t.dim() > 1 else t[:-1], t.repeat(2, *[1] * (t.dim() - 1))]
    if t.dim() > 1:
        shapes += [t.transpose(0, 1), t.flatten(), t[:, 1:], torch.zeros(0, 10**9), t[:, :, None]]
    draft.tensors[key] = shapes[index % len(shapes)].clone().contiguous()
    return _refused(key)


def other_rank(draft: Draft, rng: Random, index: int) -> Expect:
    """A and B agree with each other, and not with the config."""
    a = rng.choice([key for key in layer_keys(draft) if "_A" in key])
    b = a.replace("_A", "_B")
    A, B = draft.tensors[a], draft.tensors[b]
    if index % 2:
        draft.tensors[a], draft.tensors[b] = A[:1].clone(), B[:, :1].clone()
    else:
        draft.tensors[a], draft.tensors[b] = torch.cat([A, A]), torch.cat([B, B], dim=1)
    return _refused(a)


def swapped(draft: Draft, rng: Random, index: int) -> Expect:
    a = rng.choice([key for key in layer_keys(draft) if "_A" in key])
    b = a.replace("_A", "_B")
    draft.tensors[a], draft.tensors[b] = draft.tensors[b], draft.tensors[a]
    return _refused(a)


def missing(draft: Draft, rng: Random, index: int) -> Expect:
    key = _pick(draft, rng)
    for name in list(draft.tensors):  # PEFT writes some biases under two names
        if _plain_name(name) == _plain_name(key):
            del draft.tensors[name]
    return _refused(key)


def all_missing(draft: Draft, rng: Random, index: int) -> Expect:
    for key in layer_keys(draft) if index % 2 else list(draft.tensors):
        del draft.tensors[key]
    return Expect(REFUSED)


def too_many(draft: Draft, rng: Random, index: int) -> Expect:
    """A tensor that fits nothing, or a weight of the base with other values."""
    shapes: dict[str, tuple[int, ...]] = {
        "extra.weight": (2,),
        "norm.running_mean": (7,),
        "head.weight.more": (3, 8),
        "blocks.0.down_proj.lora_A": (3, 16),
        "blocks.1.up_proj.lora_B.weight": (16, 3),
        "norm.lora_A.weight": (3, 8),
        "blocks.lora_A.weight": (3, 8),
        "lora_A.weight": (3, 8),
        ".lora_A.weight": (3, 8),
        "blocks.1.down_proj.weight": (8, 16),
        "blocks.1.down_proj.bias": (8,),
        "conv.weight": (8, 8, 3),
        "embed.base_layer.weight": (11, 8),
        "blocks.0.q_proj.lora_B.bias": (8,),
        "blocks.0.q_proj.lora_C.weight": (8, 8),
        "blocks.0.q_proj.lora_A.other.weight": (3, 8),
        "blocks.0.q_proj.base_layer.base_layer.weight": (8, 8),
    }
    names = [name for name in shapes if PREFIX + name not in draft.tensors]
    name = names[index % len(names)]
    draft.tensors[PREFIX + name] = torch.randn(shapes[name], generator=_generator(rng)) + 9
    return Expect(REFUSED)


def magnitude_without_dora(draft: Draft, rng: Random, index: int) -> Expect:
    key = rng.choice([key for key in layer_keys(draft) if "_B" in key])
    name = key.split(".lora_")[0] + ".lora_magnitude_vector"
    draft.tensors[name] = torch.ones(draft.tensors[key].shape[0])
    return Expect(REFUSED, ("magnitude",))


def _respelled(key: str, rng: Random) -> str:
    spellings = [key.removeprefix(PREFIX)]
    if ".lora_" in key:
        spellings.append(key.replace(".weight", ".default.weight"))
        if "embedding" in key or "magnitude" in key:
            spellings.append(key + ".default")
    return rng.choice([name for name in spellings if name != key])


def two_spellings(draft: Draft, rng: Random, index: int) -> Expect:
    key = rng.choice(layer_keys(draft))
    again = _respelled(key, rng)
    value = draft.tensors[key] + (index % 4 != 0)
    dtypes = [torch.float32, torch.float16, torch.int64, torch.float8_e4m3fn, torch.complex64]
    draft.tensors[again] = value.to(dtypes[index // 4 % len(dtypes)])
    # Where both say the same, it is clear what is meant.
    return Expect(EITHER) if index % 4 == 0 else _refused(key)


def _renamed(draft: Draft, rng: Random, old: str, new: str) -> None:
    """Every key of one module, or only one of them."""
    keys = [key for key in sorted(draft.tensors) if f".{old}." in key]
    for key in keys if rng.random() < 0.5 else [rng.choice(keys)]:
        draft.tensors[key.replace(f".{old}.", f".{new}.")] = draft.tensors.pop(key)


TARGET = "blocks.0.q_proj"
HAVE_TARGET = ("plain", "full", "dora", "half", "PEFT plain", "PEFT full")

MIS_NAMED = [
    *("blocks.0.q_porj", "blocks.2.q_proj", "blocks.00.q_proj", "blocks.0.Q_PROJ", "blocks.0.q"),
    *("blocks[0].q_proj", "blocks.0.q_proj ", " blocks.0.q_proj", "blocks.0.q-proj", "q_proj"),
    *("model.blocks.0.q_proj", "blocks.0.q_proj.base", "blocks.0.base.q_proj", "blocks.-1.q_proj"),
    *("BLOCKS.0.q_proj", "blocks.0.q_proj.lora_A", "blocks.0.q_proj.weight", "blocks.0"),
    # Look-alikes: a Cyrillic о, a full-width q, a full-width dot, a zero-width space, an accent.
    *("bl\u043ecks.0.q_proj", "blocks.0.\uff51_proj", "blocks\uff0e0.q_proj"),
    *("blocks.0.q_\u200bproj", "blocks.0.q_proj\u0301", "blocks.\u0660.q_proj"),
    # Characters that do something where they are printed.
    *("blocks.0.q_proj\0", "blocks.0\n.q_proj", "\x1b[31mblocks.0.q_proj", "blocks.0.q_\u202eproj"),
    *("blocks.0.q_proj\r", "\ufeffblocks.0.q_proj", "blocks.0.q_proj\x7f", "\U0001f600.q_proj"),
]
PATHS = [
    *("../q_proj", "..", "../../../../etc/passwd", "/etc/passwd", "..\\..\\q_proj", "C:\\q_proj"),
    *("blocks..q_proj", ".blocks.0.q_proj", "blocks.0.q_proj.", "blocks/0/q_proj", "~/q_proj"),
    *("./blocks.0.q_proj", "blocks.0...q_proj", "", ".", "file:///etc/passwd", "$HOME/q_proj"),
    *("%2e%2e/q_proj", "adapter_model.bin", "blocks.0.q_proj/../v_proj", "...", "//"),
]
ATTRIBUTES = [
    *("__class__", "blocks.__class__", "blocks.0.q_proj.__class__", "blocks.0.q_proj.__dict__"),
    *("_modules", "_modules.blocks", "blocks._modules.0.q_proj", "blocks.0.q_proj.forward"),
    *("blocks.0.q_proj.weight.data", "_minilora", "blocks.0.q_proj.base", "training", "__init__"),
    *("blocks.0.q_proj._parameters.weight", "blocks.0.__getattr__", "state_dict", "{0.__class__}"),
    *("%s%s%n", "blocks.{}.q_proj", "blocks.*.q_proj", ".*", "(.+)+", "${jndi:x}", "__import__"),
]


def mis_named(draft: Draft, rng: Random, index: int) -> Expect:
    _renamed(draft, rng, TARGET, MIS_NAMED[index % len(MIS_NAMED)])
    return Expect(REFUSED)


def path_tricks(draft: Draft, rng: Random, index: int) -> Expect:
    _renamed(draft, rng, TARGET, PATHS[index % len(PATHS)])
    return Expect(REFUSED)


def attribute_names(draft: Draft, rng: Random, index: int) -> Expect:
    _renamed(draft, rng, TARGET, ATTRIBUTES[index % len(ATTRIBUTES)])
    return Expect(REFUSED)


def wrong_prefix(draft: Draft, rng: Random, index: int) -> Expect:
    # One that ends in a dot is taken off, as tests/test_nothing_silent.py shows.
    prefixes = ["base_model.model", "BASE_MODEL.MODEL", "base_model/model/", "x", "model_"]
    new = prefixes[index % len(prefixes)]
    draft.tensors = {k.replace(PREFIX, new, 1): t for k, t in draft.tensors.items()}
    return Expect(REFUSED)


def long_key(draft: Draft, rng: Random, index: int) -> Expect:
    n = [1000, 10_000, 1_000_000][index % 3]
    names = ["x" * n, ".".join("x" * (n // 2)), f"{TARGET}{'_' * n}", "../" * (n // 3)]
    _renamed(draft, rng, TARGET, names[index % 4])
    return Expect(REFUSED)


def long_factor_key(draft: Draft, rng: Random, index: int) -> Expect:
    """Long keys that are no factors, or many of them."""
    n = [1000, 100_000][index % 2]
    if index % 4 == 0:
        draft.tensors.update({f"{PREFIX}x.{i}": torch.ones(1) for i in range(5000)})
    elif index % 4 == 1:
        draft.tensors.update({f"{PREFIX}x{i}.lora_A.weight": torch.ones(1) for i in range(5000)})
    else:
        draft.tensors[f"{PREFIX}head.{'y' * n}"] = torch.ones(1)
    return Expect(REFUSED)


def factor_of_another_layer_type(draft: Draft, rng: Random, index: int) -> Expect:
    """A linear layer's factor spelled as an embedding's, or the other way round.

    PEFT would find no place for it, and so must not be told that all is well.
    """
    key = rng.choice([key for key in layer_keys(draft) if "magnitude" not in key])
    if "embedding" in key:
        new = key.replace("lora_embedding_", "lora_") + ".weight"
    else:
        new = key.replace("lora_", "lora_embedding_").removesuffix(".weight")
    draft.tensors[new] = draft.tensors.pop(key)
    return _refused(key)


def more_than_memory(draft: Draft, rng: Random, index: int) -> Expect:
    """A rank for which there is no memory, in a file of the size that it needs."""
    size, r = 2**27, 2**23
    a, b = (f"{PREFIX}{TARGET}.lora_{x}.weight" for x in "AB")
    header = {
        a: {"dtype": "F16", "shape": [r, 8], "data_offsets": [0, size]},
        b: {"dtype": "F16", "shape": [8, r], "data_offsets": [size, 2 * size]},
    }
    begin = joined(header, b"")
    draft.files[TENSOR_FILE] = partial(write_sparse, begin, len(begin) + 2 * size)
    draft.config.update(target_modules=[TARGET], r=r)
    return Expect(REFUSED, (TARGET, "memory"), headroom=700)


def several_at_once(draft: Draft, rng: Random, index: int) -> Expect:
    makes = [wrong_type, nan_or_inf, wrong_shape, other_rank, swapped, missing, too_many]
    makes += [magnitude_without_dora, two_spellings, mis_named, path_tricks, any_setting, any_bytes]
    for make in rng.sample(makes, rng.choice([2, 3, 4])):
        with suppress(LookupError, RuntimeError):  # an earlier one left nothing to spoil
            make(draft, rng, rng.randrange(100))
    return Expect(EITHER)


def _generator(rng: Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


NO_DORA = ("plain", "full", "half", "PEFT plain", "PEFT full")
KINDS = {
    "integers and other types": Kind(wrong_type),
    "NaN or infinity": Kind(nan_or_inf),
    "too large for the type": Kind(too_large, ("half", "plain", "dora", "full")),
    "a wrong shape": Kind(wrong_shape),
    "another rank than the config's": Kind(other_rank),
    "A and B swapped": Kind(swapped),
    "a tensor missing": Kind(missing),
    "no factors at all": Kind(all_missing, most=12),
    "a tensor too many": Kind(too_many),
    "magnitudes without DoRA": Kind(magnitude_without_dora, NO_DORA),
    "one key in two spellings": Kind(two_spellings),
    "a mis-named module": Kind(mis_named, HAVE_TARGET),
    "paths in a key": Kind(path_tricks, HAVE_TARGET),
    "attribute names in a key": Kind(attribute_names, HAVE_TARGET),
    "another prefix": Kind(wrong_prefix, most=20),
    "a very long key": Kind(long_key, HAVE_TARGET),
    "very long or very many other keys": Kind(long_factor_key, most=24),
    "a rank beyond the memory": Kind(more_than_memory, ("plain", "PEFT plain"), most=4),
    "several faults at once": Kind(several_at_once, HAVE_TARGET),
    "a factor of another layer type": Kind(factor_of_another_layer_type),
}
