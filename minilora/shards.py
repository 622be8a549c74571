"""Tensors on disk, one at a time: safetensors files larger than memory, read and written whole.

``Tensors`` reads any of the tensors of a file, or of the shards of a model's folder. What was read
lies in a map of the file and goes with the last reference to it, so that a walk over a model of
any size needs the memory of its largest tensor. ``write_adapter`` and ``new_folder`` write
likewise, and killed at any moment they leave what was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from minilora.folder import (
    CONFIG_FILE,
    HOST,
    TENSOR_FILE,
    WINDOWS,
    AdapterError,
    check_home,
    replace_file,
)

INDEX_FILE = "model.safetensors.index.json"
CODES = {  # the names of the types in a safetensors file
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BLOCK = 2**24  # numbers that are worked on at a time

# --- reading --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


class Tensors(Mapping[str, Tensor]):
    """{name: tensor} over one or more safetensors files. Each look reads from the disk anew."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers.

        Raises:
            AdapterError: A file cannot be read or is damaged, or two files have one name.
        """
        self.stored: dict[str, Stored] = {}
        self._states: dict[Path, tuple[int, int, int]] = {}
        for file in files:
            self._states[file] = _state(file)
            try:
                with safetensors.safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                        part = opened.get_slice(name)
                        if name in self.stored:
                            raise AdapterError(f"{file} and another file both hold {name!r}")
                        self.stored[name] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
            except AdapterError:
                raise
            except Exception as error:  # the library raises several kinds for damaged files
                raise AdapterError(f"{file} is damaged or cannot be read: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        file = self.stored[name].file
        if _state(file) != self._states[file]:
            raise AdapterError(f"{file} was changed while it was read; begin again")
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except Exception as error:
            raise AdapterError(f"{name!r} cannot be read from {file}: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def files(self) -> list[Path]:
        return list(self._states)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self._states)


def _state(file: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(file)
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror or error}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def model_tensors(folder: Path) -> Tensors:
    """The weights of a model's folder: its index's shards, or every safetensors file in it.

    Raises:
        AdapterError: There is none, or a shard that the index names is missing.
    """
    check_home(folder)
    if folder.is_file() and folder.suffix == ".safetensors":
        return Tensors([folder])
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; give the one that holds the model's weights")
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(f"{index} is damaged: {error}") from error
        files = [folder / str(name) for name in sorted(map(str, names))]
        for file in files:
            if not file.is_file():
                raise AdapterError(f"{index} names {file.name!r}, which is not there")
    else:
        files = sorted(folder.glob("*.safetensors"))
        whole = [file for file in files if file.name == "model.safetensors"]
        files = whole or [file for file in files if file.name != TENSOR_FILE]
    if not files:
        old = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = "; .bin and .pt files are pickles, which can run code, and are not read" * old
        raise AdapterError(f"{folder} holds no safetensors file with a model's weights{why}")
    return Tensors(files)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that hold about ``BLOCK`` numbers each."""
    step = max(1, BLOCK // max(1, columns))
    for first in range(0, rows, step):
        yield slice(first, min(rows, first + step))


class Silent:
    """Stands for a progress bar where none is wanted."""

    def update(self, count: int = 1) -> None:
        """Nothing to draw."""


def bar(total: int, show: bool, unit: str) -> Any:
    """A progress bar with ``update(count)``, on stderr."""
    if not show:
        return Silent()
    from tqdm import tqdm  # which a machine that only runs the experiments need not have

    return tqdm(total=total, unit=unit, unit_scale=unit == "B")


# --- writing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type, its shape, and its numbers, made when asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Iterable[Tensor]]

    @classmethod
    def of(cls, tensor: Tensor) -> Entry:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: [tensor])

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def copied(tensors: Tensors, name: str) -> Entry:
    """An entry that copies a tensor of other files as it is."""
    if tensors[name].dtype not in CODES:
        raise AdapterError(f"{name!r} holds {tensors[name].dtype}, which cannot be written")
    return Entry(tensors[name].dtype, tensors.stored[name].shape, lambda: [tensors[name]])


def write_tensors(
    file: BinaryIO, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> Callable[[Mapping[str, str]], None]:
    """Write a safetensors file, one block in memory at a time.

    Args:
        file: Open for writing, at its beginning.
        entries: {name: what to write}.
        metadata: Strings for the header.

    Returns:
        A function that writes the header again, with other metadata of the same length.

    Raises:
        ValueError: An entry made another number of bytes than its shape says.
    """
    # Wide types first, so that each tensor begins at a multiple of its numbers' size.
    names = sorted(entries, key=lambda name: -entries[name].dtype.itemsize)

    def header(notes: Mapping[str, str]) -> bytes:
        table: dict[str, Any] = {"__metadata__": dict(notes)}
        place = 0
        for name in names:
            entry = entries[name]
            ends = [place, place + entry.bytes]
            table[name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": ends}
            place = ends[1]
        text = json.dumps(table, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    first = header(metadata)
    file.write(len(first).to_bytes(8, "little") + first)
    for name in names:
        written = 0
        for block in entries[name].make():
            raw = block.detach().cpu().contiguous().reshape(-1)
            if raw.dtype != entries[name].dtype:
                raise ValueError(f"{name}: {raw.dtype} was made for {entries[name].dtype}")
            written += file.write(raw.view(torch.uint8).numpy().data)
        if written != entries[name].bytes:
            raise ValueError(f"{name}: {written} bytes were made for {entries[name].bytes}")

    def again(notes: Mapping[str, str]) -> None:
        text = header(notes)
        if len(text) != len(first):
            raise ValueError("the header's length changed")
        file.seek(8)
        file.write(text)

    return again


def write_adapter(folder: Path, config: dict[str, Any], entries: Mapping[str, Entry]) -> None:
    """Write an adapter's folder as ``minilora.folder.write_folder`` does, one tensor at a time.

    Killed at any moment, the folder is read as the adapter that it held before or as the new one.
    Other files in it stay.

    Raises:
        OSError: The folder cannot be written.
        AdapterError: It begins with a ``~`` that only a shell would read as the home folder.
    """
    check_home(folder)
    # PEFT looks for both where there is a mapping at all.
    mapping = {"base_model_class": "unknown", "parent_library": "unknown"}
    config = {**config, "auto_mapping": dict(config.get("auto_mapping") or mapping)}
    blank = "0" * 16

    def text(identity: str) -> str:
        config["auto_mapping"]["minilora_id"] = identity
        return json.dumps(config, indent=2, sort_keys=True)

    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(folder / TENSOR_FILE)
    digest = hashlib.sha256(text(blank).encode())
    with _aside(folder / TENSOR_FILE) as file:
        again = write_tensors(
            file, _hashed(entries, digest), {"format": "pt", CONFIG_FILE: text(blank)}
        )
        settled = text(digest.hexdigest()[:16])
        again({"format": "pt", CONFIG_FILE: settled})
    replace_file(folder / CONFIG_FILE, settled.encode())


def _hashed(entries: Mapping[str, Entry], digest: Any) -> dict[str, Entry]:
    def watched(name: str, entry: Entry) -> Iterator[Tensor]:
        digest.update(name.encode())
        for block in entry.make():
            digest.update(block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            yield block

    return {
        name: Entry(entry.dtype, entry.shape, lambda n=name, e=entry: watched(n, e))  # type: ignore[misc]
        for name, entry in entries.items()
    }


@contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place at the end, and is gone after an error."""
    temporary = path.with_name(f".{path.name}.{HOST}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            _lock(file.fileno())  # so that another save does not take it for a left-over
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not WINDOWS:  # where an open file cannot be renamed
                os.replace(temporary, path)
        if WINDOWS:
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is named ``path`` once it is whole, and is gone after an error.

    Raises:
        AdapterError: ``path`` is there already and is not an empty folder.
    """
    check_home(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AdapterError(f"{path} is there already; give a new name, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(path)
    temporary = path.with_name(f".{path.name}.{HOST}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    held = None if WINDOWS else os.open(temporary, os.O_RDONLY)
    try:
        if held is not None:
            _lock(held)
        yield temporary
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            os.close(held)


def _remove_left_overs(path: Path) -> None:
    """Remove the files and folders that killed runs of this host have left beside ``path``."""
    if WINDOWS:
        return
    left_over = re.compile(rf"\.{re.escape(path.name)}\.{HOST}\.[0-9a-f]+\.tmp")
    with suppress(OSError):
        for name in filter(left_over.fullmatch, os.listdir(path.parent)):
            found = path.with_name(name)
            with suppress(OSError):
                held = os.open(found, os.O_RDONLY)
                try:
                    if _lock(held):
                        shutil.rmtree(found) if found.is_dir() else found.unlink()
                finally:
                    os.close(held)


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder; False where another process has it."""
    if WINDOWS:
        return False
    import fcntl  # which Windows lacks

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
