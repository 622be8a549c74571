"""Damage to the bytes of the tensor file: its length field, its JSON header, its data."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

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

BAD_FILE = Expect(REFUSED, (TENSOR_FILE,))


def _header_end(whole: bytes) -> int:
    return 8 + int.from_bytes(whole[:8], "little")


def _flipped(whole: bytes, rng: Random, low: int, high: int, count: int = 1) -> bytes:
    out = bytearray(whole)
    for _ in range(count):
        out[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(out)


def bit_in_header(draft: Draft, rng: Random, index: int) -> Expect:
    whole = draft.packed()
    draft.files[TENSOR_FILE] = _flipped(whole, rng, 8, _header_end(whole))
    return Expect(EITHER)


def bit_in_length(draft: Draft, rng: Random, index: int) -> Expect:
    draft.files[TENSOR_FILE] = _flipped(draft.packed(), rng, 0, 8)
    return BAD_FILE


def bit_in_data(draft: Draft, rng: Random, index: int) -> Expect:
    whole = draft.packed()
    draft.files[TENSOR_FILE] = _flipped(whole, rng, _header_end(whole), len(whole))
    return Expect(EITHER)


def many_bits(draft: Draft, rng: Random, index: int) -> Expect:
    whole = draft.packed()
    draft.files[TENSOR_FILE] = _flipped(whole, rng, 0, len(whole), rng.choice([2, 10, 1000]))
    return Expect(EITHER)


def cut(draft: Draft, rng: Random, index: int) -> Expect:
    whole = draft.packed()
    end, last = _header_end(whole), len(whole)
    places = [0, 1, 7, 8, 9, end // 2, end - 1, end, end + 1, last - 4, last - 1]
    at = places[index] if index < len(places) else rng.randrange(last)
    draft.files[TENSOR_FILE] = whole[:at]
    return BAD_FILE


def too_long(draft: Draft, rng: Random, index: int) -> Expect:
    draft.files[TENSOR_FILE] = draft.packed() + rng.randbytes(rng.choice([1, 4, 8, 5000]))
    return BAD_FILE


def length_lies(draft: Draft, rng: Random, index: int) -> Expect:
    whole = draft.packed()
    n, rest = _header_end(whole) - 8, len(whole) - 8
    lies = [0, 1, 2, n - 1, n + 1, n + 8, rest, rest + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
    lies += [10**8, 10**8 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - n, 2**64 - 8, 2**64 - 1]
    lie = lies[index % len(lies)]
    draft.files[TENSOR_FILE] = lie.to_bytes(8, "little") + whole[8:]
    return BAD_FILE


def header_text(draft: Draft, rng: Random, index: int) -> Expect:
    """Something else in the place of the header."""
    header, data = draft.split()
    text = json.dumps(header).encode()
    key = layer_keys(draft)[0]
    twice = json.dumps({key: header[key]})[:-1].encode() + b"," + text[1:]
    metadata = header["__metadata__"]
    texts: list[bytes | dict[str, Any]] = [
        *(b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"\0" * 64, b"\xff\xfe" * 9),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"NaN", text.decode().encode("utf-16")),
        *(text[:-1], text + b"}", text[1:], b"\xef\xbb\xbf" + text, b"// a\n" + text),
        *(text.replace(b'"', b"'"), text.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)),
        *(text.replace(b'"', b'"\xff', 1), text.replace(b"lora", b"\\ud800", 1)),
        {**header, "__metadata__": [1]},
        {**header, "__metadata__": "x"},
        {**header, "__metadata__": {"format": 1}},
        {**header, "__metadata__": {**metadata, "more": {"a": "b"}}},
        {**header, "__metadata__": {**metadata, "adapter_config.json": None}},
    ]
    tolerable: list[bytes | dict[str, Any]] = [
        {**header, "__metadata__": None},
        {**header, "__metadata__": {}},
        {**header, "__metadata__": {"format": "np"}},
        {**header, "__metadata__": {"format": "a" * 10**6}},
        *(twice, text + b" " * 4096, b" " + text),
    ]
    choices = texts + tolerable
    chosen = choices[index % len(choices)]
    draft.files[TENSOR_FILE] = joined(chosen, data)
    return Expect(EITHER) if index % len(choices) >= len(texts) else BAD_FILE


def header_entry(draft: Draft, rng: Random, index: int) -> Expect:
    """One tensor's entry in the header is wrong: its place, its shape or its type."""
    header, data = draft.split()
    keys = layer_keys(draft)
    entry = header[rng.choice(keys)]
    other = header[rng.choice([key for key in keys if header[key] is not entry])]
    a, b = entry["data_offsets"]
    shape, size = entry["shape"], len(data)
    offsets: list[Any] = [
        [b, a],
        [a, b + 4],
        [a + 4, b],
        [a, a],
        [-a - 4, b],
        [a, -b],
        [a + 0.5, b],
    ]
    offsets += [[str(a), str(b)], [a], [a, b, b], [], None, [a, None], [True, b], [2**64, 2**64]]
    offsets += [[a, 2**64], [2**63, 2**63 + b - a], [size, size + b - a], other["data_offsets"]]
    offsets += [[a + size, b + size], [0, size], {"begin": a, "end": b}]
    shapes: list[Any] = [[2**32, 2**32], [2**63], [2**64], [-1, -1], [-s for s in shape], None]
    shapes += [[*shape, 2], [s + 1 for s in shape], [], [0], [0, 2**40], [*shape, 0], 7, "x"]
    shapes += [[float(s) for s in shape], [str(s) for s in shape], [None], [[s] for s in shape]]
    dtypes: list[Any] = [
        "F33",
        "f32",
        "",
        None,
        7,
        "float32",
        "F64",
        "I8",
        "BOOL",
        "F8_E4M3",
        "C64",
        [],
        "F4",
    ]
    changes: list[dict[str, Any]] = [
        *({"data_offsets": x} for x in offsets),
        *({"shape": x} for x in shapes),
        *({"dtype": x} for x in dtypes),
        *({"data_offsets": ...}, {"shape": ...}, {"dtype": ...}),
        {"shape": [2**31, 2**31], "data_offsets": [a, a + 2**64 - 1]},
        {"shape": [10**9, 8], "data_offsets": [a, a + 32 * 10**9]},
    ]
    entry.update(changes[index % len(changes)])
    for name in [name for name, value in entry.items() if value is ...]:
        del entry[name]
    draft.files[TENSOR_FILE] = joined(header, data)
    return BAD_FILE


def same_bytes_twice(draft: Draft, rng: Random, index: int) -> Expect:
    """Two names for the same bytes, or one name twice with two different places."""
    header, data = draft.split()
    key = rng.choice(layer_keys(draft))
    if index % 2:
        header[key + ".copy"] = header[key]
        draft.files[TENSOR_FILE] = joined(header, data)
        return BAD_FILE
    size = header[key]["data_offsets"][1] - header[key]["data_offsets"][0]
    again = {**header[key], "data_offsets": [len(data), len(data) + size]}
    text = json.dumps(header)[:-1] + ", " + json.dumps({key: again})[1:]
    draft.files[TENSOR_FILE] = joined(text.encode(), data + bytes(size))
    return BAD_FILE


def huge_header(draft: Draft, rng: Random, index: int) -> Expect:
    """A header as long as the library lets it be, or longer, in a file that has the length."""
    header, data = draft.split()
    text = json.dumps(header).encode()
    if index % 4 == 3:  # a valid file whose header is nearly all spaces
        draft.files[TENSOR_FILE] = partial(_write_padded, text, data, 20_000_000)
        return Expect(EITHER)
    claimed = [99_000_000, 100_000_001, 2**31 + 9][index % 4]
    draft.files[TENSOR_FILE] = partial(write_sparse, claimed.to_bytes(8, "little"), claimed + 8)
    return BAD_FILE


def _write_padded(text: bytes, data: bytes, size: int, path: Path) -> None:
    with open(path, "wb") as file:
        file.write((len(text) + size).to_bytes(8, "little") + text)
        for _ in range(size // 100_000):
            file.write(b" " * 100_000)
        file.write(data)


def giant_tensor(draft: Draft, rng: Random, index: int) -> Expect:
    """A tensor of half a gigabyte, which the file really has, where a small one belongs."""
    header, data = draft.split()
    size = 2**29
    keys = [key for key in header if key != "__metadata__"]
    replaced = rng.choice(layer_keys(draft))
    places: list[tuple[str, str, list[int]]] = [
        (replaced, "F32", [2**26, 2]),
        (replaced, "F16", [2**28]),
        (f"{PREFIX}head.bias", "F16", [2**28]),  # looks like a repetition of the base's
        (f"{PREFIX}blocks.1.down_proj.weight", "F16", [2**25, 8]),
        (f"{PREFIX}blocks.1.down_proj.base_layer.weight", "BF16", [2**25, 8]),
        (f"{PREFIX}what.lora_A.weight", "F16", [2**25, 8]),
    ]
    key, dtype, shape = places[index % len(places)]
    kept = {k: header[k] for k in keys if k != key}
    out: dict[str, Any] = {"__metadata__": header["__metadata__"]}
    packed, at = b"", 0
    for name, entry in kept.items():
        a, b = entry["data_offsets"]
        out[name] = {**entry, "data_offsets": [at, at + b - a]}
        packed, at = packed + data[a:b], at + b - a
    out[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
    begin = joined(out, packed)
    draft.files[TENSOR_FILE] = partial(write_sparse, begin, len(begin) + size)
    return Expect(REFUSED, ("proj", "embed", "conv", "head", "what"))


# Bits of every type that the library knows.
TYPES = {
    **{"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8},
    **{"F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16},
    **{"F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64},
    **{"I64": 64, "U64": 64},
}


def any_type(draft: Draft, rng: Random, index: int) -> Expect:
    """A tensor of any type, of the shape of a factor or of a weight of the base."""
    dtype = list(TYPES)[index % len(TYPES)]
    factor = rng.choice(layer_keys(draft))
    names = [f"{PREFIX}blocks.1.down_proj.weight", f"{PREFIX}blocks.1.down_proj.base_layer.bias"]
    key = [factor, *names, factor + ".default"][index // len(TYPES) % 4]
    shapes = {names[0]: [8, 16], names[1]: [8]}
    header, data = draft.split()
    old = header.pop(key, None)
    if old is not None:  # its bytes must go too
        a, b = old["data_offsets"]
        data = data[:a] + data[b:]
        for entry in header.values():
            begin, end = entry.get("data_offsets", (0, 0))
            if begin >= b:
                entry["data_offsets"] = [begin - (b - a), end - (b - a)]
    shape = shapes.get(key) or list(draft.tensors[factor].shape)
    if dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        shape = [*shape[:-1], shape[-1] * 2]  # as two of them fill a byte
    size = math.prod(shape) * TYPES[dtype] // 8
    header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
    draft.files[TENSOR_FILE] = joined(header, data + bytes(size))
    return Expect(EITHER)


KINDS = {
    "a bit in the header": Kind(bit_in_header),
    "a bit in the header's length": Kind(bit_in_length),
    "a bit in the tensors": Kind(bit_in_data),
    "many bits": Kind(many_bits),
    "the file cut short": Kind(cut),
    "bytes after the end": Kind(too_long),
    "a header length that lies": Kind(length_lies),
    "another text as the header": Kind(header_text),
    "a wrong entry in the header": Kind(header_entry),
    "the same bytes or key twice": Kind(same_bytes_twice, most=20),
    "a huge header": Kind(huge_header, most=8),
    "any type of number": Kind(any_type),
    "a giant tensor": Kind(giant_tensor, most=12),
}
