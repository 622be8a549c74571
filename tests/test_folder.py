"""The folder as many use it at once: saves beside saves and loads, and disks that fail."""

import builtins
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from core_help import Toy, bits, rewritten, toy
from forking import fork
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

import minilora
from minilora import AdapterError
from minilora import folder as folder_module
from minilora.folder import CONFIG_FILE, HOST, TENSOR_FILE, read_folder, replace_file, write_folder

CONFIGS = [
    {"targets": ["q_proj"], "r": 2},
    {"targets": ["v_proj", "embed"], "r": 5, "alpha": 3},
    {"targets": ["q_proj", "up_proj"], "r": 3, "alpha": 7},
    {"targets": ["q_proj"], "r": 2, "alpha": 9},
]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, locks and signals")


def adapter(k: int) -> nn.Module:
    """Adapter number k: its rank, alpha, targets and numbers are those of no other."""
    return toy(k, **CONFIGS[k])


def held(folder: Path) -> int:
    """The number of the adapter that the folder loads as."""
    found = described(minilora.load(Toy(), folder))
    for k in range(len(CONFIGS)):
        if found == number_described(k):
            return k
    raise AssertionError("the folder loads as a mixture")


@cache
def number_described(k: int) -> list:
    return described(adapter(k))


def described(model: nn.Module) -> list:
    layers = minilora.lora_layers(model).items()
    numbers = [(path, layer.r, layer.alpha) for path, layer in layers]
    return [numbers, [bits(p) for p in minilora.lora_parameters(model)]]


def is_tidy(folder: Path) -> bool:
    """Two files, which belong together: other readers than ours take the config file as it is."""
    with safe_open(folder / TENSOR_FILE, "pt") as file:
        inside = file.metadata()[CONFIG_FILE]
    return (
        sorted(os.listdir(folder)) == [CONFIG_FILE, TENSOR_FILE]
        and (folder / CONFIG_FILE).read_text() == inside
    )


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stepped(work: Callable[[], object], act: Callable[[int], object]) -> object:
    """What ``work`` returns; before each line of folder.py that it runs, ``act(step)`` is called.

    So, too, before the library opens the tensor file a second time, for the numbers.
    """
    steps, busy = itertools.count(), False
    from_file = torch.UntypedStorage.from_file

    def step() -> None:
        nonlocal busy
        if not busy:
            busy = True
            act(next(steps))
            busy = False

    def trace(frame, event, argument):
        if frame.f_code.co_filename != folder_module.__file__:
            return None
        if event == "line":
            step()
        return trace

    def stepping(*arguments, **named):
        step()
        return from_file(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "from_file", stepping)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return work()
        finally:
            sys.settrace(before)


# --- saves beside saves -----------------------------------------------------------------------


def save_often(model: nn.Module, folder: Path, errors: list) -> None:
    for _ in range(15):
        try:
            minilora.save(model, folder)
        except Exception as error:
            errors.append(error)


def test_threads_save_into_one_folder(tmp_path):
    errors: list[Exception] = []
    models = [adapter(k) for k in range(4)]
    threads = [threading.Thread(target=save_often, args=(m, tmp_path, errors)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert held(tmp_path) in range(4)
    assert is_tidy(tmp_path)


@posix
def test_processes_save_into_one_folder(tmp_path):
    def work(k: int) -> None:
        errors: list[Exception] = []
        save_often(adapter(k), tmp_path, errors)
        assert errors == []

    children = [fork(lambda k=k: work(k)) for k in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert held(tmp_path) in range(3)
    assert is_tidy(tmp_path)


@pytest.mark.parametrize("first", [None, 2])
def test_a_save_within_a_save_at_every_step(tmp_path, monkeypatch, first):
    """The other save is begun and ended between two lines of the first; both succeed."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes nearly all of the time
    a, b = adapter(0), adapter(1)
    found = set()
    for n in range(1000):
        folder, reached = tmp_path / str(n), []
        if first is not None:
            minilora.save(adapter(first), folder)

        def act(step: int, n=n, folder=folder, reached=reached) -> None:
            if step == n:
                reached.append(minilora.save(b, folder))

        stepped(lambda folder=folder: minilora.save(a, folder), act)
        if not reached:
            break
        assert is_tidy(folder)
        found.add(held(folder))
    assert n > 40
    assert found == {0, 1}


def names_aside(monkeypatch) -> list[str]:
    """The names under which files are written aside from now on."""
    names, replace = [], os.replace

    def noting(old: Path, new: Path) -> None:
        names.append(Path(old).name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", noting)
    return names


def test_no_two_writers_share_a_name(tmp_path, monkeypatch):
    """Nor does it matter that two processes draw the same random numbers."""
    names = names_aside(monkeypatch)
    random.seed(0)
    minilora.save(adapter(0), tmp_path)
    random.seed(0)
    minilora.save(adapter(0), tmp_path)
    assert len(set(names)) == 4
    assert all(HOST in name for name in names)


# --- what killed saves leave ------------------------------------------------------------------


def left_overs(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


@posix
def test_what_a_killed_save_left_goes_and_what_a_live_one_writes_stays(tmp_path):
    minilora.save(adapter(0), tmp_path)
    stopped, go_on = os.pipe(), os.pipe()

    def work(number: int) -> None:
        """Stop in the middle of a save, with a file written aside, until there is a word to go."""
        fsync = os.fsync

        def waits(file: int) -> None:
            os.fsync = fsync
            os.write(stopped[1], b"x")
            os.read(go_on[0], 1)

        os.fsync = waits
        minilora.save(adapter(number), tmp_path)

    killed = fork(lambda: work(1))
    os.read(stopped[0], 1)
    live = fork(lambda: work(2))
    os.read(stopped[0], 1)
    try:
        assert len(left_overs(tmp_path)) == 2
        minilora.save(adapter(3), tmp_path)
        assert len(left_overs(tmp_path)) == 2  # both are alive
        os.kill(killed, signal.SIGKILL)
        assert ended(killed) == -signal.SIGKILL
        minilora.save(adapter(3), tmp_path)
        assert len(left_overs(tmp_path)) == 1
        assert held(tmp_path) == 3
    finally:
        os.write(go_on[1], b"xx")
        code = ended(live)
    assert code == 0
    assert held(tmp_path) == 2
    assert is_tidy(tmp_path)
    for end in (*stopped, *go_on):
        os.close(end)


def test_a_living_process_with_the_same_number_keeps_nothing(tmp_path):
    """In containers, each start has the process ids of the one before."""
    pids = [1, os.getpid(), os.getppid()]
    for name in [f".{TENSOR_FILE}.{pid}.tmp" for pid in pids]:
        (tmp_path / name).write_bytes(b"of an older version")
    (tmp_path / f".{CONFIG_FILE}.{HOST}.00ff.tmp").write_bytes(b"")
    minilora.save(adapter(0), tmp_path)
    assert is_tidy(tmp_path)


def test_files_of_other_hosts_and_of_others_stay(tmp_path):
    """A lock need not be known on another host; and who calls a file so is not known at all."""
    names = [f".{TENSOR_FILE}.0123abcd.ffff.tmp", f".{TENSOR_FILE}.mine.tmp", ".notes.7.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    minilora.save(adapter(0), tmp_path)
    assert sorted(left_overs(tmp_path)) == sorted(names)


@posix
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Saves work there; whether a left-over has a writer cannot be known, so it stays."""
    import fcntl

    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left_over = f".{TENSOR_FILE}.{HOST}.ff.tmp"
    (tmp_path / left_over).write_bytes(b"")
    monkeypatch.setattr(fcntl, "flock", none)
    minilora.save(adapter(0), tmp_path)
    assert held(tmp_path) == 0
    assert left_overs(tmp_path) == [left_over]
    monkeypatch.undo()
    minilora.save(adapter(0), tmp_path)
    assert left_overs(tmp_path) == []


@pytest.mark.parametrize("times", [1, 4, 5])
def test_a_file_taken_away_before_it_was_locked_is_written_again(tmp_path, monkeypatch, times):
    replace, calls = os.replace, itertools.count(1)
    monkeypatch.setattr(folder_module, "TRIES", 5)

    def taken(old: Path, new: Path) -> None:
        if next(calls) <= times:
            os.unlink(old)
        replace(old, new)

    monkeypatch.setattr(os, "replace", taken)
    with nullcontext() if times < 5 else pytest.raises(FileNotFoundError, match="cannot be wri"):
        minilora.save(adapter(0), tmp_path)
    assert left_overs(tmp_path) == []
    assert times == 5 or held(tmp_path) == 0


@posix
def test_on_windows_a_save_waits_for_those_who_read(tmp_path, monkeypatch):
    """There, a file that is open can be neither replaced nor removed, and nothing is locked."""
    minilora.save(adapter(0), tmp_path)
    (tmp_path / f".{TENSOR_FILE}.{HOST}.ff.tmp").write_bytes(b"")
    (tmp_path / f".{TENSOR_FILE}.{HOST}.ee.tmp").write_bytes(b"")
    replace, unlink, calls = os.replace, Path.unlink, itertools.count()

    def deny(old: Path, new: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    def busy(old: Path, new: Path) -> None:
        if next(calls) % 3 < 2:
            deny(old, new)
        replace(old, new)

    def open_elsewhere(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith(".ee.tmp"):
            raise PermissionError(errno.EACCES, "being used by another process")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(Path, "unlink", open_elsewhere)
    with pytest.raises(PermissionError, match="denied"):
        minilora.save(adapter(1), tmp_path)  # here, waiting would not help
    monkeypatch.setattr(folder_module, "WINDOWS", True)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    minilora.save(adapter(1), tmp_path)
    assert held(tmp_path) == 1
    assert left_overs(tmp_path) == [f".{TENSOR_FILE}.{HOST}.ee.tmp"]
    monkeypatch.setattr(folder_module, "PATIENCE", 0.05)
    monkeypatch.setattr(os, "replace", deny)
    with pytest.raises(PermissionError, match="denied.*adapter that was there before is whole"):
        minilora.save(adapter(2), tmp_path)


def test_one_file_written_by_many(tmp_path):
    """As recordings and base models are written."""
    path, errors = tmp_path / "a [1].json", []

    def work(k: int) -> None:
        try:
            for _ in range(20):
                replace_file(path, bytes([k]) * 50_000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = path.read_bytes()
            seen.add((content[:1], len(content), len(set(content))))
    assert errors == []
    assert {(length, kinds) for _, length, kinds in seen} == {(50_000, 1)}
    assert os.listdir(tmp_path) == [path.name]


# --- saves beside loads -----------------------------------------------------------------------


@posix
def test_a_load_beside_a_save_gets_one_adapter_whole(tmp_path):
    minilora.save(adapter(0), tmp_path)
    models = [adapter(k) for k in range(4)]

    def work() -> None:
        os.fsync = lambda file: None  # so that it saves the more often
        for k in itertools.count():
            minilora.save(models[k % 4], tmp_path)

    child = fork(work)
    try:
        found, tried = set(), 0
        while tried < 150 or len(found) < 2:
            found.add(held(tmp_path))
            tried += 1
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)


def named(k: int) -> tuple[dict, dict]:
    """(config, tensors) of number k, all of one shape, so that a mixture is not seen by size."""
    return {"auto_mapping": {}, "k": k}, {f"t{i}": torch.full((3,), float(k)) for i in range(3)}


def numbers(folder: Path) -> set[int]:
    """The adapters that what is read comes from: one, if all is well."""
    settings, tensors = read_folder(folder)
    return {settings["k"], *(int(x) for t in tensors.values() for x in t.tolist())}


@pytest.mark.parametrize(("tensors", "config"), [(1, 0), (0, 1), (0, 0), (1, 1)])
def test_tensors_of_one_save_and_the_config_of_another(tmp_path, tensors, config):
    for k in (0, 1):
        write_folder(tmp_path / str(k), *named(k))
    (tmp_path / "both").mkdir()
    shutil.copy(tmp_path / str(tensors) / TENSOR_FILE, tmp_path / "both")
    shutil.copy(tmp_path / str(config) / CONFIG_FILE, tmp_path / "both")
    assert numbers(tmp_path / "both") == {tensors}


def test_a_config_edited_by_hand_is_that_of_its_tensors(tmp_path):
    write_folder(tmp_path, *named(0))
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**settings, "k": 7}))
    assert numbers(tmp_path) == {7, 0}


def put(source: Path, name: str, folder: Path) -> None:
    """In place of what is there, as a save does it; links are fast."""
    (folder / "aside").unlink(missing_ok=True)
    os.link(source / name, folder / "aside", follow_symlinks=False)
    os.replace(folder / "aside", folder / name)


@posix
@pytest.mark.parametrize("place", ["/dev/fd", "no /dev/fd", "links"])
@pytest.mark.parametrize("old", ["ours", "of another tool"])
def test_every_moment_of_a_load_at_which_a_save_may_replace_the_files(
    tmp_path, monkeypatch, old, place
):
    for k in (0, 1):
        write_folder(tmp_path / str(k), *named(k))
    if old == "of another tool":
        rewritten(tmp_path / "0", auto_mapping=...)
    if place == "no /dev/fd":
        exists = os.path.exists
        monkeypatch.setattr(
            os.path, "exists", lambda path: "/dev/fd" not in str(path) and exists(path)
        )
    elif not os.path.exists("/dev/fd"):
        pytest.skip("needs /dev/fd")
    folder, links = tmp_path / "folder", tmp_path / "links"
    folder.mkdir()
    links.mkdir()
    for name in (TENSOR_FILE, CONFIG_FILE):  # as in the hub's cache
        (links / name).symlink_to(tmp_path / "0" / name)

    def begin() -> None:
        for name in (TENSOR_FILE, CONFIG_FILE):
            put(tmp_path / ("links" if place == "links" else "0"), name, folder)

    steps: list[int] = []
    begin()
    stepped(lambda: read_folder(folder), steps.append)
    assert len(steps) > 20
    found = set()
    for first, second in itertools.combinations_with_replacement(range(len(steps) + 1), 2):
        begin()

        def act(step: int, first=first, second=second) -> None:
            if step == first:
                put(tmp_path / "1", TENSOR_FILE, folder)
            if step == second:
                put(tmp_path / "1", CONFIG_FILE, folder)

        got = stepped(lambda: numbers(folder), act)
        assert len(got) == 1, (first, second)
        found |= got
    assert found == {0, 1}


@posix
def test_a_load_beside_two_saves_in_any_order(tmp_path):
    """Each save puts its tensors before its config; else, any order, at any moment of the load."""
    for k in range(3):
        write_folder(tmp_path / str(k), *named(k))
    folder, chance = tmp_path / "folder", random.Random(0)
    folder.mkdir()
    for name in (TENSOR_FILE, CONFIG_FILE):
        put(tmp_path / "0", name, folder)
    steps: list[int] = []
    stepped(lambda: read_folder(folder), steps.append)
    for _ in range(400):
        order = [1, 1, 2, 2]
        chance.shuffle(order)
        moments = sorted(chance.choices(range(len(steps) + 1), k=4))
        for name in (TENSOR_FILE, CONFIG_FILE):
            put(tmp_path / "0", name, folder)
        seen: set[int] = set()

        def act(step: int, order=order, moments=moments, seen=seen) -> None:
            for moment, k in zip(moments, order, strict=True):
                if moment == step:
                    put(tmp_path / str(k), CONFIG_FILE if k in seen else TENSOR_FILE, folder)
                    seen.add(k)

        got = stepped(lambda: numbers(folder), act)
        assert len(got) == 1, (order, moments)


@posix
def test_reading_takes_no_more_memory_than_the_file_has_bytes(tmp_path):
    import resource

    size = 2**27  # bytes
    content = save({"x": torch.ones(size // 4)}, {CONFIG_FILE: "{}"})
    (tmp_path / TENSOR_FILE).write_bytes(content)
    write_folder(tmp_path / "small", *named(0))
    unit = 1 if sys.platform == "darwin" else 1024

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def work() -> None:
        read_folder(tmp_path / "small")  # what is imported, allocated or copied once is, now
        before = peak()
        _, tensors = read_folder(tmp_path)
        opened = peak()
        assert opened - before < size / 4  # a wrong shape is refused before anything is read
        assert float(tensors["x"][::512].sum()) == size / 4 / 512
        assert peak() - before < 1.25 * size

    assert ended(fork(work)) == 0


def joined(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(a: int, b: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [a, b]}


DAMAGED = {
    "nothing": b"",
    "no header": b"\7\0\0\0\0\0\0\0",
    "a header longer than the file": b"\xff" * 7 + b"\0{}",
    "no JSON": b"\2\0\0\0\0\0\0\0{{",
    "overlap": joined({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "hole": joined({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
    "beyond the end": joined({"a": entry(0, 8, [2])}, bytes(4)),
    "bytes left": joined({"a": entry(0, 8, [2])}, bytes(12)),
    "another shape": joined({"a": entry(0, 8, [3])}, bytes(8)),
    "unknown type": joined({"a": entry(0, 8, [2], "F33")}, bytes(8)),
    "metadata that is no text": joined({"__metadata__": {"a": 1}}, b""),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tensor_file_is_refused(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / TENSOR_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match=f"{TENSOR_FILE} is damaged") as refused:
        read_folder(tmp_path)
    assert "/dev/fd" not in str(refused.value)


# --- disks that fail --------------------------------------------------------------------------


def failing(monkeypatch, call: str, number: int, n: int = 1) -> None:
    """From the n-th call on, this one fails with the system's error of that number."""
    owner, name = (builtins, "open") if call == "open" else (os, call)
    working, calls = getattr(owner, name), itertools.count(1)

    def fails(*arguments, **named):
        if next(calls) >= n and (call != "open" or arguments[1] == "r+b"):
            raise OSError(number, os.strerror(number))
        return working(*arguments, **named)

    monkeypatch.setattr(owner, name, fails)


NUMBERS = ["EFBIG", "ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM"]


@pytest.mark.parametrize("number", [n for n in NUMBERS if hasattr(errno, n)])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("old", [True, False])
def test_a_save_that_fails_says_what_and_what_is_there(tmp_path, monkeypatch, number, call, old):
    if old:
        minilora.save(adapter(0), tmp_path)
    code = getattr(errno, number)
    failing(monkeypatch, call, code)
    with pytest.raises(OSError) as refused:
        minilora.save(adapter(1), tmp_path)
    monkeypatch.undo()
    assert type(refused.value) is type(OSError(code, ""))
    assert refused.value.errno == code
    text = str(refused.value)
    assert str(tmp_path / TENSOR_FILE) in text
    assert os.strerror(code) in text
    assert ".tmp" not in text
    there = "that was there before is whole" if old else "no adapter before, and there is none now"
    assert there in text
    assert left_overs(tmp_path) == []
    if old:
        assert held(tmp_path) == 0
        assert is_tidy(tmp_path)
    else:
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "replace"])
def test_a_save_that_fails_between_the_files_says_that_the_new_one_is_there(
    tmp_path, monkeypatch, call
):
    minilora.save(adapter(0), tmp_path)
    failing(monkeypatch, call, errno.ENOSPC, n=2)
    with pytest.raises(OSError, match=f"{CONFIG_FILE} cannot.*No space left.*new adapter is there"):
        minilora.save(adapter(1), tmp_path)
    monkeypatch.undo()
    assert held(tmp_path) == 1
    assert left_overs(tmp_path) == []


def test_an_error_without_a_number_and_a_disk_on_which_nothing_can_be_removed(
    tmp_path, monkeypatch
):
    def fails(*arguments: object, **named: object) -> None:
        raise OSError("power cut")

    def broken(*arguments: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(OSError, match="cannot be written: power cut; there was no") as refused:
        minilora.save(adapter(1), tmp_path)
    assert str(refused.value).startswith(str(tmp_path / TENSOR_FILE))


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"ours")
    for path in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(OSError, match="cannot be written: .*; there was no adapter"):
            minilora.save(adapter(1), path)
    assert (tmp_path / "file").read_bytes() == b"ours"


@posix
@pytest.mark.parametrize("limit", [0, 100, 1500])
@pytest.mark.parametrize("old", [True, False])
def test_a_file_that_may_not_grow(tmp_path, limit, old):
    """The system's own error, and no room for the whole of the tensor file."""
    import resource

    if old:
        minilora.save(adapter(0), tmp_path)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError) as refused:
            minilora.save(adapter(1), tmp_path)
        assert refused.value.errno == errno.EFBIG
        assert re.search(f"{TENSOR_FILE} cannot be written: File too large; ", str(refused.value))
        assert ("whole" if old else "none now") in str(refused.value)

    assert ended(fork(work)) == 0
    assert left_overs(tmp_path) == []
    assert held(tmp_path) == 0 if old else os.listdir(tmp_path) == []


def let_others_in(tmp_path: Path) -> None:
    """Another user may look into pytest's folder: root tests as one."""
    for place in (tmp_path, *itertools.islice(tmp_path.parents, 3)):
        if os.stat(place).st_uid == os.geteuid() and place.name.startswith(
            ("pytest-", "test_", "popen-")
        ):
            place.chmod(0o755)


@posix
@pytest.mark.parametrize(("mode", "said"), [(0o555, "before is whole"), (0, "if an adapter was")])
def test_a_folder_that_may_not_be_written(tmp_path, mode, said):
    folder = tmp_path / "adapter"
    minilora.save(adapter(0), folder)
    let_others_in(tmp_path)

    def work() -> None:
        if os.geteuid() == 0:  # who may write everywhere
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=f"{TENSOR_FILE} cannot.*Permission.*{said}"):
            minilora.save(adapter(1), folder)

    folder.chmod(mode)
    try:
        assert ended(fork(work)) == 0
    finally:
        folder.chmod(0o755)
    assert held(folder) == 0
    assert is_tidy(folder)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs to see open files")
def test_no_file_stays_open(tmp_path, monkeypatch):
    minilora.save(adapter(0), tmp_path)
    (tmp_path / f".{TENSOR_FILE}.{HOST}.ff.tmp").write_bytes(b"")
    before = set(os.listdir("/proc/self/fd"))
    minilora.save(adapter(1), tmp_path)
    assert held(tmp_path) == 1
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        read_folder(tmp_path)
    for call in ("fsync", "replace", "open"):
        failing(monkeypatch, call, errno.EIO)
        with pytest.raises(OSError, match="cannot be written"):
            minilora.save(adapter(2), tmp_path)
        monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) == before


# --- a path that is not the adapter's folder --------------------------------------------------


def refused(path: Path | str) -> str:
    with pytest.raises(AdapterError) as error:
        minilora.load(Toy(), path)
    return str(error.value)


@pytest.mark.parametrize("name", [TENSOR_FILE, CONFIG_FILE, "README.md", "none"])
def test_the_path_of_a_file_in_the_folder(tmp_path, name):
    minilora.save(adapter(0), tmp_path)
    (tmp_path / "README.md").touch()
    text = refused(tmp_path / name)
    assert f"{name} is not a folder" in text
    assert repr(str(tmp_path)) in text
    assert held(tmp_path) == 0  # what is suggested works


def test_a_path_with_nothing_near_it(tmp_path):
    text = refused(tmp_path / "none")
    assert "none is not a folder; give the one that holds" in text
    assert text.endswith(TENSOR_FILE)


@pytest.mark.parametrize("there", [["default"], ["a", "b", "c"], ["a", "b", "c", "d", "e"]])
def test_a_folder_of_adapters(tmp_path, there):
    for name in there:
        minilora.save(adapter(0), tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / CONFIG_FILE).touch()
    text = refused(tmp_path)
    assert f"holds no {TENSOR_FILE}" in text
    assert ", ".join(map(repr, there[:3])) in text
    assert all(repr(name) not in text for name in ["empty", *there[3:]])
    assert ("and 2 more" in text) == (len(there) == 5)


def test_of_checkpoints_the_last_are_named(tmp_path):
    for step in (5, 50, 500, 1000):
        minilora.save(adapter(0), tmp_path / f"checkpoint-{step}")
    (tmp_path / "runs").mkdir()
    assert "'checkpoint-1000', 'checkpoint-500', 'checkpoint-50' and 1 more" in refused(tmp_path)


def test_the_home_folder_is_not_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    minilora.save(adapter(0), tmp_path / "adapter")
    text = refused("~/adapter")
    assert "does not expand '~'" in text
    assert repr(os.path.expanduser("~/adapter")) in text
    with pytest.raises(minilora.AdapterError, match="does not expand '~'"):
        minilora.save(adapter(0), "~/adapter")
    assert os.listdir(tmp_path) == ["adapter"]
    (tmp_path / "~").mkdir()  # somebody has called a folder so
    minilora.save(adapter(0), "~/adapter")
    minilora.load(adapter(1), "~/adapter")
    assert "is not a folder" in refused("~nobody-of-that-name/adapter")


def test_what_a_folder_holds_instead(tmp_path):
    assert "it is empty" in refused(tmp_path)
    for name in ("b.txt", "c\u200b.txt", "a.txt"):
        (tmp_path / name).touch()
    assert "only 'a.txt', 'b.txt', 'c\\u200b.txt'" in refused(tmp_path)
    for name in "xyz":
        (tmp_path / name).mkdir()
    text = refused(tmp_path)
    assert text.endswith("only 'a.txt', 'b.txt', 'c\\u200b.txt', 'x', 'y' and 1 more")


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        assert re.search("pickle, which can run code, and is not read", refused(path))


@posix
def test_a_folder_that_cannot_be_looked_into(tmp_path):
    """Neither it nor one inside it stops the others from being named."""
    minilora.save(adapter(0), tmp_path / "one")
    (tmp_path / "closed").mkdir()
    let_others_in(tmp_path)
    (tmp_path / "closed").chmod(0)

    def work() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        assert "'one'" in refused(tmp_path)
        assert "closed" in refused(tmp_path / "closed")

    try:
        assert ended(fork(work)) == 0
    finally:
        (tmp_path / "closed").chmod(0o700)
