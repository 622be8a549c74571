"""An adapter's folder: whole at any moment, and read without trust.

It holds ``adapter_config.json`` and ``adapter_model.safetensors``. No pickle is read, ever.

The safetensors file also carries the config, and an id that both files share. So a save that was
killed between the two files can be told from a config that somebody edited by hand: equal ids,
the config file holds; different ids, the config inside the safetensors file does.

Threads and processes may save into one folder and load from it at the same time, without a lock
that they would share: a file appears whole under its name, and a reader that has it open keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MOST_CONFIG = 2**20  # bytes; real ones have thousands, and JSON grows thirtyfold when it is read
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

WINDOWS = os.name == "nt"
HOST = hashlib.sha256(os.fsencode(socket.gethostname())).hexdigest()[:8]
TRIES = 100  # to get a file aside locked before others take it for a left-over
PATIENCE = 10.0  # seconds that a rename waits, on Windows, for those who have the file open


class AdapterError(ValueError):
    """A folder that cannot be loaded, or an adapter that cannot be saved, and why."""

    def __init__(self, message: str) -> None:
        # Names come from the file, and a hostile one may be of any length.
        super().__init__(message if len(message) <= 600 else f"{message[:599]}…")


# --- writing --------------------------------------------------------------------------------


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files; killed at any moment, the folder is read as it was before or as new.

    Others may write into it at the same time; the last one stays. Other files in it stay.
    ``config`` must hold a dict ``auto_mapping``, which takes the id.

    Raises:
        OSError: The folder cannot be written. It is read as before, or as new: the error says
            which, and keeps the system's number.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(safetensors.torch.save(tensors))
    config["auto_mapping"]["minilora_id"] = digest.hexdigest()[:16]
    text = json.dumps(config, indent=2, sort_keys=True)
    content = safetensors.torch.save(tensors, metadata={"format": "pt", CONFIG_FILE: text})

    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / TENSOR_FILE
        replace_file(path, content)
        path, written = folder / CONFIG_FILE, None
        # Another save may put its tensors here before our config. So each save writes the config
        # of the tensors that are there, until they agree; PEFT reads no other.
        while written != (inside := _config_inside(folder) or text):
            replace_file(path, inside.encode())
            written = inside
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{path} cannot be written: {reason}; {_what_is_there(folder, text)}"
        # With a number, Python chooses the kind of error: PermissionError and the like.
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def _config_inside(folder: Path) -> str | None:
    """The config that the tensor file carries; None where there is none that can be read."""
    path = folder / TENSOR_FILE
    with suppress(OSError, AdapterError):
        if path.is_file():  # opening a pipe would wait for ever
            return _tensors(str(path), path)[0]
    return None


def _what_is_there(folder: Path, text: str) -> str:
    """What the folder holds after a save that failed."""
    if _config_inside(folder) == text:
        return f"the new adapter is there, whole, but {CONFIG_FILE} may be that of the one before"
    try:
        os.stat(folder / TENSOR_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return "there was no adapter before, and there is none now"
    except OSError:
        return "if an adapter was there before, it is whole"
    return "the adapter that was there before is whole"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that it is never seen half written.

    Any number of threads and processes may do so with one path at the same time; the last one
    stays. What killed ones left aside is removed.
    """
    _remove_left_overs(path)
    for left in reversed(range(TRIES)):
        temporary = path.with_name(f".{path.name}.{HOST}.{secrets.token_hex(8)}.tmp")
        try:
            _write_aside(temporary, path, content)
            break
        except FileNotFoundError:  # somebody took it for a left-over before it was locked
            if not left:
                raise
    if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_aside(temporary: Path, path: Path, content: bytes) -> None:
    try:
        with _locked(temporary, "xb"):
            with open(temporary, "r+b") as file:  # not made again if it is gone already
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            give_up = time.monotonic() + PATIENCE * WINDOWS
            while True:
                try:
                    return os.replace(temporary, path)
                except PermissionError:
                    if time.monotonic() >= give_up:
                        raise
                    time.sleep(0.01)
    finally:
        with suppress(OSError):  # the first error is the one that says why
            temporary.unlink(missing_ok=True)


def _remove_left_overs(path: Path) -> None:
    """Remove what killed saves of this host have left beside ``path``.

    Whether somebody still writes one is asked of its lock, which goes away with the process. A
    process id could have been given to another process since, and in containers it always is.
    Locks need not reach other hosts, so theirs are left alone. A plain number is the process id
    of an older version of this package.
    """
    left_over = re.compile(rf"\.{re.escape(path.name)}\.(\d+|{HOST}\.[0-9a-f]+)\.tmp")
    with suppress(OSError):  # a folder that may be written, but not listed
        for name in filter(left_over.fullmatch, os.listdir(path.parent)):
            # Gone already, or not ours to remove; on Windows, open.
            with suppress(OSError), _locked(path.with_name(name), "r+b") as locked:
                if locked:
                    path.with_name(name).unlink()


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[bool]:
    """Open a file and lock it; False where somebody has it, or where there are no locks.

    The system takes the lock away when the process ends, however it ends. On Windows nothing is
    locked: there, a file can be neither removed nor renamed while it is open.
    """
    if WINDOWS:
        path.open(mode).close()
        yield True
        return
    import fcntl  # which Windows lacks

    with path.open(mode) as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            locked = False
        yield locked


# --- reading --------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of one and the same state of the folder.

    Raises:
        AdapterError: The folder cannot be read, or what is in it is no adapter.
    """
    try:
        _check_place(folder)
        return _read(folder)
    except OSError as error:  # no right to read, a name that is too long, a broken disk
        place = error.filename or f"{folder} or its {CONFIG_FILE}"
        reason = error.strerror or str(error)
        raise AdapterError(f"the folder cannot be read: {reason}: {place}") from error


def check_home(folder: Path) -> None:
    """Refuse a ``~`` that only a shell would read as the home folder."""
    home = os.path.expanduser(folder)
    if home != str(folder) and not os.path.isdir(folder.parts[0]):
        raise AdapterError(
            f"{folder} is not a folder: Python does not expand '~' in a path; give {home!r}"
        )


def _check_place(folder: Path) -> None:
    """Raise AdapterError where no adapter is; say where one is, or what is there."""
    check_home(folder)
    if not folder.is_dir():
        hint = ""
        if os.path.isfile(folder.parent / TENSOR_FILE):
            hint = f": {str(folder.parent)!r}"
        elif folder.suffix == ".bin":
            hint = "; a .bin file is a pickle, which can run code, and is not read"
        raise AdapterError(
            f"{folder} is not a folder; give the one that holds {CONFIG_FILE} and {TENSOR_FILE}"
            + hint
        )
    if (folder / TENSOR_FILE).is_file():
        return
    names = sorted(os.listdir(folder))
    adapters = [name for name in names if os.path.isfile(folder / name / TENSOR_FILE)]
    if adapters:  # PEFT makes one for each adapter's name, transformers one for each checkpoint
        adapters.sort(key=_last_number, reverse=True)
        found = f"but folders in it do: {_some(adapters, 3)}; give one of them"
    elif "adapter_model.bin" in names:
        found = "and adapter_model.bin is a pickle, which can run code, and is not read"
    else:
        found = f"only {_some(names, 5)}" if names else "it is empty"
    raise AdapterError(f"{folder} holds no {TENSOR_FILE}, {found}")


def _last_number(name: str) -> int:
    """The number at the end, as of a checkpoint; -1 where there is none."""
    return int((re.findall(r"[0-9]{1,9}$", name) or ["-1"])[0])


def _some(names: list[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(map(repr, names[:most])) + f" and {rest} more" * (rest > 0)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / TENSOR_FILE
    while True:  # once, unless a save comes between the two files
        with path.open("rb") as held:
            # The library opens a file by its name, twice. This name is that of the file we hold,
            # even when a save has put another in its place. Where there is no such name, as on
            # Windows, a file that is held cannot be replaced.
            name = f"/dev/fd/{held.fileno()}"
            known = os.path.exists(name)
            inside, tensors = _tensors(name if known else str(path), path)
            settings = _settings(folder, inside)
            # Tensors without a config of their own may have met that of a later save.
            if (known and inside is not None) or WINDOWS or _is_at(path, held):
                return settings, tensors


def _tensors(name: str, path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The config inside the tensor file, if there is one, and the tensors, still on the disk."""
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            inside = (file.metadata() or {}).get(CONFIG_FILE)
            keys = list(file.keys())
            return inside, {key: file.get_tensor(key) for key in keys}
    except Exception as error:  # the library raises several kinds for damaged files
        raise AdapterError(f"{path} is damaged or cannot be read: {error}") from error


def _is_at(path: Path, held: BinaryIO) -> bool:
    return os.path.samestat(os.fstat(held.fileno()), os.stat(path))


def _settings(folder: Path, inside: str | None) -> dict[str, Any]:
    """The config file, or the config ``inside`` the tensors if that is the one of the same save."""
    path = folder / CONFIG_FILE
    own = (
        None
        if inside is None
        else _json(inside.encode(), f"the config inside {folder / TENSOR_FILE}")
    )
    if not path.is_file():
        if own is None:
            raise AdapterError(f"{folder} holds no {CONFIG_FILE}")
        return own
    with open(path, "rb") as stream:
        settings = _json(stream.read(MOST_CONFIG + 1), str(path))
    return settings if own is None or _identity(own) == _identity(settings) else own


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
