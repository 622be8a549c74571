"""Folders in which a file is missing, is not a file, or is something else: a pickle, a zip."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
from fault_folders import (
    CONFIG_FILE,
    REFUSED,
    TENSOR_FILE,
    Content,
    Draft,
    Expect,
    Kind,
    is_root,
)

NAMES = (CONFIG_FILE, TENSOR_FILE)


class Evil:
    """Pickled, it makes the folder ``marker`` beside the adapter's when it is read."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (self.marker,)


def write_pickle(form: int, path: Path) -> None:
    evil = Evil(str(path.parent.parent / "marker"))
    if form == 0:
        path.write_bytes(pickle.dumps(evil))
    elif form == 1:
        path.write_bytes(pickle.dumps(evil, protocol=0))
    else:
        torch.save({"x": evil}, path, _use_new_zipfile_serialization=form == 2)


def pickles(draft: Draft, rng: Random, index: int) -> Expect:
    """Only a pickle, or one under the name of a file that is read."""
    write = partial(write_pickle, index % 4)
    places: list[dict[str, Content]] = [
        {"adapter_model.bin": write, TENSOR_FILE: None},
        {TENSOR_FILE: write},
    ]
    places += [{CONFIG_FILE: write}, {"adapter_model.bin": write, TENSOR_FILE: b""}]
    places += [{"pytorch_model.bin": write, "adapter_model.pt": write, TENSOR_FILE: None}]
    place = places[index // 4 % len(places)]
    draft.files.update(place)
    if index // 4 % len(places) == 0:
        return Expect(REFUSED, ("pickle",))
    return Expect(REFUSED, (CONFIG_FILE,) if CONFIG_FILE in place else (TENSOR_FILE,))


def pickles_beside(draft: Draft, rng: Random, index: int) -> Expect:
    """Pickles that lie beside a whole adapter are left alone."""
    write = partial(write_pickle, index % 4)
    names = [
        "adapter_model.bin",
        "optimizer.pt",
        "training_args.bin",
        "__init__.py",
        "sitecustomize.py",
    ]
    draft.files[names[index % len(names)]] = write
    return Expect("loaded")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../adapter_config.json", "{}")


def _torch_zip(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(2)}, buffer)
    path.write_bytes(buffer.getvalue())


def another_format(draft: Draft, rng: Random, index: int) -> Expect:
    contents: list[Content] = [
        _zip,
        _torch_zip,
        b"",
        b"\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"GGUF\3",
    ]
    contents += [b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08", rng.randbytes(5000), b"PK\5\6" + bytes(18)]
    name = NAMES[index % 2]
    draft.files[name] = contents[index // 2 % len(contents)]
    return Expect(REFUSED, (name,))


def _socket(path: Path) -> None:
    os.mknod(path, 0o140600)


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _link_to(target: str, path: Path) -> None:
    path.symlink_to(target)


def not_a_file(draft: Draft, rng: Random, index: int) -> Expect:
    """A folder, a FIFO nobody writes to, a device, a link to nowhere."""
    things: list[Callable[[Path], object] | None] = [None, Path.mkdir, os.mkfifo, _dangling, _loop]
    things += [partial(_link_to, to) for to in ("/dev/zero", "/dev/null", "/", ".", "a" * 255)]
    things += [_socket] if hasattr(os, "mknod") and os.uname().sysname == "Linux" else []
    name = NAMES[index % 2]
    draft.files[name] = things[index // 2 % len(things)]
    if name == CONFIG_FILE:
        draft.plain()  # otherwise the config inside the tensors stands in for it
    return Expect(REFUSED, (name,))


def files_swapped(draft: Draft, rng: Random, index: int) -> Expect:
    config = b'{"r": 3}'
    both: dict[str, Content] = {TENSOR_FILE: config, CONFIG_FILE: draft.packed()}
    draft.files.update(both if index % 2 else {TENSOR_FILE: config})
    return Expect(REFUSED, NAMES)


def unreadable(draft: Draft, rng: Random, index: int) -> Expect:
    """No right to read a file, or a file that gives an error where it is read."""
    name = NAMES[index % 2]
    draft.plain()
    if index % 4 < 2 or not Path("/proc/self/mem").exists():
        content = draft.packed() if name == TENSOR_FILE else b"{}"
        draft.files[name] = partial(_write_closed, content)
        if is_root():  # who may read everything
            draft.files["zz"] = _become_nobody
    else:
        draft.files[name] = partial(_link_to, "/proc/self/mem")
    return Expect(REFUSED, (name,))


def _write_closed(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    path.chmod(0)


def _become_nobody(path: Path) -> None:
    """For the rest of this child's life."""
    for folder in path.parents[:2]:
        folder.chmod(0o755)
    os.seteuid(65534)


def extra_files(draft: Draft, rng: Random, index: int) -> Expect:
    """A folder of somebody's own beside the two files."""
    draft.files["README.md"] = b"\xff\xfe"
    draft.files["adapter_model.safetensors.index.json"] = b"{"
    draft.files["x" * 255] = b""
    draft.files["new\nline"] = Path.mkdir
    return Expect("loaded")


def not_a_folder(draft: Draft, rng: Random, index: int) -> Expect:
    """Paths at which there is no folder, or none that can be entered."""
    places: list[Callable[[Path], Path]] = [
        lambda folder: folder / "none",
        lambda folder: folder / CONFIG_FILE,
        lambda folder: folder / "link",
        lambda folder: folder / CONFIG_FILE / "deeper",
        lambda folder: folder / ("x" * 300),
        lambda folder: folder.joinpath(*["y" * 200] * 30),
        lambda folder: folder / "nul\0",
    ]
    draft.files["link"] = _dangling
    draft.files["closed"] = partial(Path.mkdir, mode=0)
    places.append(lambda folder: folder / "closed")
    if is_root():  # who may enter every folder
        draft.files["zz"] = _become_nobody
    draft.path = places[index % len(places)]
    return Expect(REFUSED, ("folder", "FOLDER", "too long"))


KINDS = {
    "a pickle": Kind(pickles),
    "pickles beside an adapter": Kind(pickles_beside, most=20),
    "another format": Kind(another_format),
    "no file, or not a file": Kind(not_a_file),
    "a path that is no folder": Kind(not_a_folder, most=16),
    "the two files mixed up": Kind(files_swapped, most=8),
    "a file that cannot be read": Kind(unreadable, most=16),
    "other files beside an adapter": Kind(extra_files, most=8),
}
