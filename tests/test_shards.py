"""Tensors on disk, one at a time: read over shards, written whole, and killed in the middle."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from core_help import bits
from forking import fork
from safetensors import safe_open
from torch import Tensor

from minilora import AdapterError
from minilora.folder import CONFIG_FILE, HOST, TENSOR_FILE, read_folder, write_folder
from minilora.shards import (
    CODES,
    INDEX_FILE,
    Entry,
    Tensors,
    copied,
    model_tensors,
    new_folder,
    row_blocks,
    write_adapter,
    write_tensors,
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, locks and signals")
A, B = torch.arange(6.0).reshape(2, 3), torch.tensor([1.5, -2.0], dtype=torch.bfloat16)


def stored(path: Path, **tensors: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    return path


def sharded(folder: Path) -> Path:
    """A model's folder of two shards and an index, with another file that the index leaves out."""
    stored(folder / "model-00001-of-00002.safetensors", a=A)
    stored(folder / "model-00002-of-00002.safetensors", b=B)
    stored(folder / "consolidated.safetensors", a=A + 1)
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


# --- reading ----------------------------------------------------------------------------------


def test_tensors_of_one_file(tmp_path):
    file = stored(tmp_path / "x.safetensors", a=A, b=B)
    found = Tensors([file])
    assert sorted(found) == ["a", "b"]
    assert len(found) == 2
    assert bits(found["a"]) == bits(A)
    assert bits(found["b"]) == bits(B)
    assert (found.stored["b"].dtype, found.stored["b"].shape) == ("BF16", (2,))
    assert found.stored["a"].size == 6
    assert found.files == [file]
    assert found.bytes == file.stat().st_size
    with pytest.raises(KeyError):
        found["c"]


def test_a_models_folder_is_its_indexs_shards(tmp_path):
    found = model_tensors(sharded(tmp_path))
    assert bits(found["a"]) == bits(A)
    assert bits(found["b"]) == bits(B)
    assert [file.name[:11] for file in found.files] == ["model-00001", "model-00002"]


def test_without_an_index_it_is_the_whole_file_or_all_but_an_adapter(tmp_path):
    stored(tmp_path / "one.safetensors", a=A)
    stored(tmp_path / "two.safetensors", b=B)
    stored(tmp_path / TENSOR_FILE, c=A)
    assert sorted(model_tensors(tmp_path)) == ["a", "b"]
    assert sorted(model_tensors(tmp_path / "two.safetensors")) == ["b"]
    stored(tmp_path / "model.safetensors", d=A)
    assert sorted(model_tensors(tmp_path)) == ["d"]


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(AdapterError) as caught:
        action()
    for word in words:
        assert word in str(caught.value)


def test_a_damaged_file(tmp_path):
    file = stored(tmp_path / "x.safetensors", a=A)
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: Tensors([file]), str(file), "is damaged")
    refused(lambda: Tensors([tmp_path / "none"]), "cannot be read", "No such file")


def test_a_missing_shard(tmp_path):
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: model_tensors(tmp_path), "names 'model-00002-of-00002.safetensors'")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index(tmp_path, text):
    (sharded(tmp_path) / INDEX_FILE).write_text(text)
    refused(lambda: model_tensors(tmp_path), INDEX_FILE, "is damaged")


def test_one_name_in_two_files(tmp_path):
    files = [stored(tmp_path / f"{n}.safetensors", a=A) for n in "xy"]
    refused(lambda: Tensors(files), "y.safetensors and another file both hold 'a'")


def test_no_weights(tmp_path):
    refused(lambda: model_tensors(tmp_path / "none"), "is not a folder")
    refused(lambda: model_tensors(tmp_path), "holds no safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(lambda: model_tensors(tmp_path), "pickles")
    refused(lambda: model_tensors(Path("~/model")), "does not expand '~'")


def test_a_file_changed_while_it_is_read(tmp_path):
    file = stored(tmp_path / "x.safetensors", a=A, b=B)
    found = Tensors([file])
    held = found["a"]
    os.replace(stored(tmp_path / "y.safetensors", a=A + 1, b=B), file)
    refused(lambda: found["a"], "was changed while it was read")
    assert bits(held) == bits(A)  # what was read stays what it was
    file.unlink()
    refused(lambda: found["b"], "cannot be read")


def test_blocks_of_rows_cover_each_row_once(monkeypatch):
    monkeypatch.setattr("minilora.shards.BLOCK", 10)
    for rows, columns in [(7, 3), (1, 100), (9, 1), (0, 4), (3, 0)]:
        blocks = list(row_blocks(rows, columns))
        assert [n for block in blocks for n in range(rows)[block]] == list(range(rows))
        assert all(len(range(rows)[b]) * columns <= max(10, columns) for b in blocks)


# --- writing ----------------------------------------------------------------------------------


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)


def test_every_type_and_shape_is_read_back_by_the_library(tmp_path):
    """Types of different widths lie in one file, and each at a place that its width divides."""
    shapes = [(), (1,), (3,), (2, 3), (2, 1, 3, 1)]
    tensors = {f"{n}.{d}": some(d, *shape) for n, shape in enumerate(shapes) for d in CODES}
    with open(tmp_path / "x.safetensors", "xb") as file:
        write_tensors(file, {n: Entry.of(t) for n, t in tensors.items()}, {"note": "ü"})
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert {n: bits(t) for n, t in found.items()} == {n: bits(t) for n, t in tensors.items()}
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"note": "ü"}
        read = Tensors([tmp_path / "x.safetensors"])
        assert {s.dtype for s in read.stored.values()} == set(CODES.values())
    whole = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + table[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0


def test_blocks_are_joined_and_need_not_be_contiguous(tmp_path):
    X = torch.randn(6, 4)
    entries = {
        "rows": Entry(X.dtype, (6, 4), lambda: (X[n : n + 2] for n in (0, 2, 4))),
        "turned": Entry(X.dtype, (4, 6), lambda: [X.T]),
        "trained": Entry.of(torch.nn.Parameter(X)),
    }
    with open(tmp_path / "x.safetensors", "xb") as file:
        write_tensors(file, entries, {})
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert bits(found["rows"]) == bits(X) == bits(found["trained"])
    assert bits(found["turned"]) == bits(X.T)


def test_an_entry_copies_a_tensor_of_other_files(tmp_path):
    found = Tensors([stored(tmp_path / "x.safetensors", b=B)])
    with open(tmp_path / "y.safetensors", "xb") as file:
        write_tensors(file, {"c": copied(found, "b")}, {})
    assert bits(safetensors.torch.load_file(tmp_path / "y.safetensors")["c"]) == bits(B)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "a: 0 bytes were made for 24"),
        ([A, A], "a: 48 bytes were made for 24"),
        ([A.double()], "a: torch.float64 was made for torch.float32"),
        ([A.int()], "a: torch.int32 was made for torch.float32"),  # as many bytes
    ],
)
def test_a_wrong_number_of_bytes_is_refused(tmp_path, made, message):
    with open(tmp_path / "x", "xb") as file, pytest.raises(ValueError, match=message):
        write_tensors(file, {"a": Entry(torch.float32, (2, 3), lambda: made)}, {})


def test_the_header_is_written_again_with_the_same_length_only(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "xb") as file:
        again = write_tensors(file, {"a": Entry.of(A)}, {"id": "000"})
        with pytest.raises(ValueError, match="length"):
            again({"id": "1" * 20})
        again({"id": "123"})
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"id": "123"}
        assert bits(opened.get_tensor("a")) == bits(A)


# --- an adapter's folder ------------------------------------------------------------------------


def config(k: int = 0) -> dict:
    return {"auto_mapping": {"parent_library": "x"}, "r": k}


def entries(k: int = 0) -> dict[str, Entry]:
    """Of number k: as many bytes as those of another, so that a mixture is not seen by size."""
    return {f"t{n}": Entry.of(torch.full((3,), float(k))) for n in range(3)}


def identity(text: str) -> str:
    return json.loads(text)["auto_mapping"]["minilora_id"]


def numbers(folder: Path) -> set[int]:
    """The adapters that what is read comes from: one, if all is well."""
    settings, tensors = read_folder(folder)
    return {settings["r"], *(int(x) for t in tensors.values() for x in t.tolist())}


def test_write_adapter_means_what_write_folder_writes(tmp_path):
    given = config()
    write_adapter(tmp_path / "one", given, {"a": Entry.of(A), "b": Entry.of(B)})
    assert given == config()  # the caller's dict is its own
    write_folder(tmp_path / "other", config(), {"a": A, "b": B})
    (mine, a), (theirs, b) = (read_folder(tmp_path / n) for n in ("one", "other"))
    assert {n: bits(t) for n, t in a.items()} == {n: bits(t) for n, t in b.items()}
    for settings in (mine, theirs):
        assert len(settings["auto_mapping"].pop("minilora_id")) == 16
    assert mine == theirs
    for n in ("one", "other"):
        with safe_open(tmp_path / n / TENSOR_FILE, "pt") as file:
            inside = file.metadata()
        assert inside["format"] == "pt"  # transformers asks for it
        assert inside[CONFIG_FILE] == (tmp_path / n / CONFIG_FILE).read_text()
    assert sorted(os.listdir(tmp_path / "one")) == [CONFIG_FILE, TENSOR_FILE]


def test_the_id_is_that_of_the_config_and_of_the_numbers(tmp_path):
    renamed = {f"{name}x": entry for name, entry in entries(0).items()}
    given = [(0, entries(0)), (0, entries(0)), (0, entries(1)), (1, entries(0)), (0, renamed)]
    for n, (settings, tensors) in enumerate(given):
        write_adapter(tmp_path / str(n), config(settings), tensors)
    ids = [identity((tmp_path / str(n) / CONFIG_FILE).read_text()) for n in range(5)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert "0" * 16 not in ids


def test_an_auto_mapping_of_none_and_a_config_edited_by_hand(tmp_path):
    write_adapter(tmp_path, {"auto_mapping": None, "r": 0}, entries())
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**settings, "r": 7}))
    assert numbers(tmp_path) == {7, 0}


@pytest.mark.parametrize(("tensors", "settings"), [(1, 0), (0, 1)])
def test_tensors_of_one_write_and_the_config_of_another(tmp_path, tensors, settings):
    for k in (0, 1):
        write_adapter(tmp_path / str(k), config(k), entries(k))
    (tmp_path / "both").mkdir()
    shutil.copy(tmp_path / str(tensors) / TENSOR_FILE, tmp_path / "both")
    shutil.copy(tmp_path / str(settings) / CONFIG_FILE, tmp_path / "both")
    assert numbers(tmp_path / "both") == {tensors}


def test_other_files_stay(tmp_path):
    for name in ("README.md", ".notes.tmp", f".{TENSOR_FILE}.0123abcd.ff.tmp"):
        (tmp_path / name).write_text("mine")
    write_adapter(tmp_path, config(0), entries(0))
    write_adapter(tmp_path, config(1), entries(1))
    assert numbers(tmp_path) == {1}
    assert len(os.listdir(tmp_path)) == 5
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_home_that_only_a_shell_would_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: write_adapter(Path("~/adapter"), config(), entries()), "does not expand '~'")
    assert os.listdir(tmp_path) == []


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path):
    write_adapter(tmp_path, config(0), entries(0))

    def broken() -> Iterator[Tensor]:
        yield torch.ones(2)
        raise RuntimeError("no more")

    wrong = entries(1) | {"z": Entry(torch.float32, (3,), broken)}
    with pytest.raises(RuntimeError, match="no more"):
        write_adapter(tmp_path, config(1), wrong)
    assert numbers(tmp_path) == {0}
    assert sorted(os.listdir(tmp_path)) == [CONFIG_FILE, TENSOR_FILE]


# --- killed -------------------------------------------------------------------------------------


def killed_in_the_middle(work: Callable[[Callable[[], None]], object]) -> None:
    """Do ``work`` in a child; where it calls its argument, it waits there and is killed."""
    reader, writer = os.pipe()

    def wait() -> None:
        os.write(writer, b"x")
        signal.pause()

    child = fork(lambda: work(wait))
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reader)


def left_overs(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def slow(k: int, wait: Callable[[], None]) -> dict[str, Entry]:
    """The entries of number k; the last is written by half when ``wait`` is called."""

    def make() -> Iterator[Tensor]:
        yield torch.full((2,), float(k))
        wait()
        yield torch.full((1,), float(k))

    return entries(k) | {"z": Entry(torch.float32, (3,), make)}


@posix
@pytest.mark.parametrize("old", [True, False])
def test_a_write_killed_in_the_middle(tmp_path, old):
    if old:
        write_adapter(tmp_path, config(0), entries(0))
    killed_in_the_middle(lambda wait: write_adapter(tmp_path, config(1), slow(1, wait)))
    assert len(left_overs(tmp_path)) == 1
    if old:
        assert numbers(tmp_path) == {0}
    else:
        refused(lambda: read_folder(tmp_path), "holds no")
    write_adapter(tmp_path, config(2), entries(2))
    assert left_overs(tmp_path) == []
    assert numbers(tmp_path) == {2}


@posix
def test_what_a_living_write_has_aside_stays(tmp_path):
    """Another write beside it finds the lock; both succeed, and the last one stays."""

    def meanwhile() -> None:
        write_adapter(tmp_path, config(1), entries(1))
        assert len(left_overs(tmp_path)) == 1

    write_adapter(tmp_path, config(2), slow(2, meanwhile))
    assert numbers(tmp_path) == {2}
    assert left_overs(tmp_path) == []


# --- a new folder -------------------------------------------------------------------------------


def test_a_new_folder_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "model"
    with new_folder(path) as folder:
        (folder / "x").write_text("1")
        assert not path.exists()
        assert folder.parent == path.parent
    assert os.listdir(path) == ["x"]
    assert os.listdir(path.parent) == ["model"]


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "model").mkdir()
    with new_folder(tmp_path / "model") as folder:
        (folder / "x").write_text("1")
    assert os.listdir(tmp_path / "model") == ["x"]


def test_what_is_there_is_not_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("1")
    (tmp_path / "file").write_text("1")
    for name in ("full", "file"):
        refused(lambda name=name: new_folder(tmp_path / name).__enter__(), "is there already")
    refused(lambda: new_folder(Path("~/model")).__enter__(), "does not expand '~'")
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "model"

    def work() -> None:
        with new_folder(path) as folder:
            (folder / "x").write_text("1")
            path.mkdir()
            (path / "mine").write_text("1")

    with pytest.raises(OSError):
        work()
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(path) == ["mine"]


@pytest.mark.parametrize("there", [True, False])
def test_after_an_error_it_is_gone(tmp_path, there):
    path = tmp_path / "model"
    if there:
        path.mkdir()

    def work() -> None:
        with new_folder(path) as folder:
            (folder / "x").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert os.listdir(tmp_path) == (["model"] if there else [])
    assert not there or os.listdir(path) == []


@posix
def test_a_new_folder_killed_in_the_middle(tmp_path):
    path = tmp_path / "model"

    def work(wait: Callable[[], None]) -> None:
        with new_folder(path) as folder:
            (folder / "x").write_text("1")
            wait()

    killed_in_the_middle(work)
    assert not path.exists()
    assert len(left_overs(tmp_path)) == 1
    others = [".model.0123abcd.ff.tmp", f".mode.{HOST}.ff.tmp"]  # another host's, another name's
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(path):
        with new_folder(path) as folder:  # what a living one fills stays
            (folder / "x").write_text("2")
            assert len(left_overs(tmp_path)) == 4
        path.rename(tmp_path / "aside")
    assert sorted(left_overs(tmp_path)) == sorted(others)
    assert (tmp_path / "aside" / "x").read_text() == "2"
