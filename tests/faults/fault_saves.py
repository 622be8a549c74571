"""Saving that is killed, or that finds no room: what is left must be the old or the new adapter."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from core_help import Toy, bits, snapshot
from fault_child import result_of
from fault_folders import CONFIG_FILE, TENSOR_FILE
from forking import fork
from torch import nn

import minilora
from minilora import LoRAConfig

FILES = {CONFIG_FILE, TENSOR_FILE}
FOREIGN = {"README.md": b"ours", ".adapter_notes.tmp": b"1", "adapter_model.bin": b"\x80"}


class Outcome(NamedTuple):
    """What came of one interrupted save: ``kind`` and ``number`` repeat it."""

    kind: str
    number: int
    found: str
    problem: str


# --- states that cannot be mistaken for one another -------------------------------------------


def state(k: int) -> nn.Module:
    """Adapter number k: its targets, rank, alpha, biases and every number in it tell k.

    A config of one state with the tensors of another would not fit, or give another scale.
    """
    targets = [["q_proj"], ["q_proj", "v_proj"], ["embed", "up_proj"], ["q_proj"]][k % 4]
    config = LoRAConfig(
        r=2 + k % 3,
        alpha=1 + k,
        targets=targets,
        bias="lora_only" if k % 5 == 1 else "none",
        modules_to_save=["head"] if k % 5 == 2 else [],
        use_dora=k % 5 == 3,
    )
    model = minilora.add_lora(_base(), config)
    with torch.no_grad():
        for p in minilora.lora_parameters(model):
            p.copy_(k + torch.arange(p.numel()).reshape(p.shape) / (p.numel() + 1))
    return model


def _base() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy(48)


STATES: list[nn.Module] = []
NUMBER = 12


def prepare() -> None:
    """Make the states once, and load one, so that children need to import nothing."""
    torch.set_num_threads(1)
    if not STATES:
        STATES.extend(state(k) for k in range(NUMBER))


def held(folder: Path) -> int | str:
    """The number of the state that the folder loads as, or what is wrong with it."""
    try:
        model = minilora.load(_base(), folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for k, whole in enumerate(STATES):
        if _description(whole) == _description(model):
            return k
    return "it loads as neither the old nor the new adapter"


def _description(model: nn.Module) -> list[Any]:
    layers = minilora.lora_layers(model).items()
    numbers = [(path, layer.r, layer.alpha, layer.scale) for path, layer in layers]
    return [numbers, [bits(p) for p in minilora.lora_parameters(model)]]


# --- folders before the save -------------------------------------------------------------------


def _by_another_tool(folder: Path) -> None:
    """State 0 without ids, and with foreign files beside it."""
    minilora.save(STATES[0], folder)
    settings = json.loads((folder / CONFIG_FILE).read_text())
    settings["auto_mapping"] = None
    (folder / CONFIG_FILE).write_text(json.dumps(settings))
    whole = (folder / TENSOR_FILE).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"] = {"format": "pt"}
    text = json.dumps(header).encode()
    (folder / TENSOR_FILE).write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])


def _torn(folder: Path) -> None:
    """State 0, with the config of state 1: a save was killed before."""
    minilora.save(STATES[1], folder)
    config = (folder / CONFIG_FILE).read_bytes()
    minilora.save(STATES[0], folder)
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / f".{TENSOR_FILE}.1.tmp").write_bytes(b"left over")


def _links(folder: Path) -> None:
    """State 0 as the hub's cache keeps it: links to files elsewhere, which must stay."""
    blobs = folder.parent / "blobs"
    minilora.save(STATES[0], blobs)
    for name in FILES:
        (folder / name).symlink_to(blobs / name)


def _ours(folder: Path) -> None:
    minilora.save(STATES[0], folder)


SCENES: dict[str, Callable[[Path], None] | None] = {
    "onto nothing": None,
    "onto an adapter": _ours,
    "onto another tool's": _by_another_tool,
    "onto a torn one": _torn,
    "onto links": _links,
}
NEW = 2  # with targets, a rank and a trained head that state 0 has not


@contextmanager
def scene(root: Path, name: str) -> Iterator[Path]:
    """A folder before the save; ``onto nothing`` is not even a folder yet."""
    place = root / "scene"
    folder = place / "deep" / "adapter"
    prepare_folder = SCENES[name]
    if prepare_folder is not None:
        folder.mkdir(parents=True)
        prepare_folder(folder)
        for file, content in FOREIGN.items():
            (folder / file).write_bytes(content)
    else:
        place.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(place)


def wrong_after(folder: Path, old: bool, done: bool, tidy: bool) -> tuple[str, str]:
    """(what was found, what is wrong) after a save of state NEW.

    ``old``: state 0 was there before. ``done``: save returned, so the new one must be there.
    ``tidy``: the process lived on, and so must have removed its temporary files.
    """
    found = held(folder)
    named = {0: "old", NEW: "new"}.get(found, str(found)) if isinstance(found, int) else found
    if found not in (0, NEW):
        nothing = not old and not (folder / TENSOR_FILE).exists()
        if not (nothing and "AdapterError" in named):
            return "neither", named
        named = "nothing"
    problem = ""
    if done and found != NEW:
        problem = f"save returned, but the folder holds the {named} one"
    if tidy:
        problem = problem or _untidy(folder, old)
    # Whatever is left, the next save puts it right.
    try:
        minilora.save(STATES[3], folder)
    except Exception as error:
        return named, problem or f"the next save fails: {type(error).__name__}: {error}"
    if held(folder) != 3:
        problem = problem or f"the next save is not there: {held(folder)}"
    problem = problem or _untidy(folder, old)
    if (blobs := folder.parent / "blobs").exists() and held(blobs) != 0:
        problem = problem or "the files that the links pointed to have changed"
    return named, problem


def _untidy(folder: Path, old: bool) -> str:
    here = set(os.listdir(folder)) if folder.exists() else set()
    left = here - FILES - set(FOREIGN)
    if left:
        return f"files are left over: {', '.join(sorted(left))}"
    kept = {name: (folder / name).read_bytes() for name in here & set(FOREIGN)}
    if old and kept != FOREIGN:
        return "somebody's own files in the folder have changed"
    return ""


# --- killed ------------------------------------------------------------------------------------


def killed_at_random(root: Path, kills: int, seed: int, only: str) -> Iterator[Outcome]:
    """A child saves one state after the other into one folder; SIGKILL ends it at any moment."""
    kind = "killed at a random moment"
    if only not in kind:
        return
    folder = root / "random"
    minilora.save(STATES[0], folder)
    for name, content in FOREIGN.items():
        (folder / name).write_bytes(content)
    began = time.perf_counter()
    for k in (1, 2, 0):
        minilora.save(STATES[k], folder)
    typical = (time.perf_counter() - began) / 3
    last = 0
    for index in range(kills):
        rng = Random(f"{seed}/{kind}/{index}")
        begun, done = _save_until_killed(folder, last, rng.uniform(0, 4 * typical))
        found = held(folder)
        # `done` was on the disk when save returned; `begun` may be.
        allowed = {done, begun}
        problem = "" if found in allowed else f"{found}, after {done} and while saving {begun}"
        if rng.random() < 0.5 or problem:  # else the next child starts from what is left here
            last = (begun + 1) % NUMBER
            minilora.save(STATES[last], folder)
            if held(folder) != last:
                problem = problem or f"the next save is not there: {held(folder)}"
            problem = problem or _untidy(folder, True)
        else:
            last = int(found)
        yield Outcome(kind, index, "new" if found == begun != done else "old", problem)


def _save_until_killed(folder: Path, last: int, delay: float) -> tuple[int, int]:
    """(the state being saved, the last one that was saved) when the child was killed."""
    reader, writer = os.pipe()

    def work() -> None:
        k = last
        while True:
            k = (k + 1) % NUMBER
            os.write(writer, bytes([k]))
            minilora.save(STATES[k], folder)
            os.write(writer, bytes([128 + k]))

    pid = fork(work)
    os.close(writer)
    select.select([reader], [], [], 10)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as pipe:
        events = list(pipe.read())
    done = [last, *(e - 128 for e in events if e >= 128)][-1]
    begun = [last, *(e for e in events if e < 128)][-1]
    return begun, done


def killed_at_byte(root: Path, step: int, only: str) -> Iterator[Outcome]:
    """Killed by the kernel when a file grows beyond n bytes, for every ``step``-th n."""

    def work(limit: int, folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        minilora.save(STATES[NEW], folder)

    for name in SCENES:
        kind = f"killed after n bytes, {name}"
        if only not in kind:
            continue
        for limit in range(0, 10**6, step):
            with scene(root, name) as folder:
                pid = fork(partial(work, limit, folder))
                status = os.waitpid(pid, 0)[1]
                lived = not os.WIFSIGNALED(status)
                found, problem = wrong_after(folder, name != "onto nothing", lived, lived)
                yield Outcome(kind, limit, found, problem)
            if lived:  # the whole of it fits
                break


def killed_at_call(root: Path, stride: int, only: str) -> Iterator[Outcome]:
    """Killed before and after every system call that ``save`` makes.

    ptrace stops the child at each; it needs Linux, and a machine that permits it.
    """
    why = _why_no_ptrace()
    for name in SCENES:
        kind = f"killed at the n-th call, {name}"
        if only not in kind:
            continue
        if why:
            print(f"not tried: {kind}: {why}")
            continue
        for n in range(0, 10**6, stride):
            with scene(root, name) as folder:
                lived = _killed_at_stop(partial(minilora.save, STATES[NEW], folder), n)
                found, problem = wrong_after(folder, name != "onto nothing", lived, lived)
                yield Outcome(kind, n, found, problem)
            if lived:
                break


PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24


def _ptrace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    arguments = [ctypes.c_long(x) for x in (request, pid, 0, 0)]
    if libc.ptrace(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _killed_at_stop(work: Callable[[], object], n: int) -> bool:
    """Run ``work`` in a child and kill it at its n-th stop; whether it ended before."""

    def traced() -> None:
        _ptrace(PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os.kill(os.getpid(), signal.SIGSTOP)  # the end of what is to be stepped through

    pid = fork(traced)
    _, status = os.waitpid(pid, 0)
    stops = -1
    while os.WIFSTOPPED(status):
        ended = stops >= 0 and os.WSTOPSIG(status) == signal.SIGSTOP
        if stops == n or ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return ended
        _ptrace(PTRACE_SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        stops += 1
    return True


def _why_no_ptrace() -> str:
    """Empty where ptrace works."""
    if sys.platform != "linux":
        return "it needs Linux"

    def attempt() -> dict[str, Any]:
        try:
            _ptrace(PTRACE_TRACEME, 0)
        except OSError as error:
            return {"why": str(error)}
        return {"why": ""}

    return result_of(attempt).get("why", "ptrace failed")


# --- no room -----------------------------------------------------------------------------------


def _save_and_say(folder: Path) -> dict[str, Any]:
    """Save, in a child: which error it raised, and whether the model stayed as it was."""
    model = STATES[NEW]
    was = snapshot(model)
    raised = ""
    try:
        minilora.save(model, folder)
    except BaseException as error:
        raised = type(error).__name__
        if isinstance(error, OSError):
            raised = "OSError"
    return {"raised": raised, "changed": snapshot(model) != was}


def _tried(
    root: Path, name: str, kind: str, n: int, before: Callable[[], None]
) -> tuple[Outcome, bool]:
    """One save in a child after ``before``, and whether it succeeded."""

    def work(folder: Path) -> dict[str, Any]:
        before()
        return _save_and_say(folder)

    with scene(root, name) as folder:
        result = result_of(partial(work, folder))
        if "died" in result:
            return Outcome(kind, n, "died", result["died"]), True
        raised = result["raised"]
        found, problem = wrong_after(folder, name != "onto nothing", not raised, True)
        if raised not in ("", "OSError"):
            problem = problem or f"{raised} instead of OSError"
        if result["changed"]:
            problem = problem or "the model has changed"
        return Outcome(kind, n, found, problem), not raised


def _largest_file(n: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


class Scarce(io.FileIO):
    """A file on a disk with ``left`` bytes of room for all files together."""

    left = 0

    def write(self, content: Any) -> int:
        content = bytes(content)
        fits = content[: Scarce.left]
        Scarce.left -= len(fits)
        super().write(fits)
        if len(fits) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return len(content)


def _little_room(n: int) -> None:
    Scarce.left = n
    plain = builtins.open

    def scarce_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = set(mode) & set("wax+")
        return Scarce(file, mode.replace("b", "")) if writes else plain(file, mode, *args, **kwargs)

    builtins.open = io.open = scarce_open


def no_room(root: Path, step: int, only: str) -> Iterator[Outcome]:
    """A largest size for files, and a disk that fills up, at every ``step``-th byte."""
    limits = {"a file size limit": _largest_file, "a full disk": _little_room}
    for what, limit in limits.items():
        for name in SCENES:
            kind = f"{what} at n bytes, {name}"
            if only not in kind:
                continue
            for n in range(0, 10**6, step):
                outcome, fits = _tried(root, name, kind, n, partial(limit, n))
                if fits and n == 0 and not outcome.problem:
                    outcome = outcome._replace(problem="save did not notice that nothing fits")
                yield outcome
                if fits:
                    break


CALLS = ("open", "write", "fsync", "replace", "rename", "close", "mkdir")
OWNERS = [*((os, call) for call in CALLS), (builtins, "open")]


def failing_calls(root: Path, only: str) -> Iterator[Outcome]:
    """The n-th call of each kind fails, as where a disk fills up late or breaks."""
    for owner, call in OWNERS:
        for name in SCENES:
            kind = f"{owner.__name__}.{call} fails, {name}"
            if only not in kind:
                continue
            for n in range(100):
                outcome, fits = _tried(root, name, kind, n, partial(_break, owner, call, n))
                if fits:
                    break  # there is no n-th call
                yield outcome


def _break(owner: Any, call: str, n: int) -> None:
    working = getattr(owner, call)
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n + 1:
            if call == "close":
                working(*args)  # a failing close closes all the same
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return working(*args, **kwargs)

    setattr(owner, call, failing)


# --- a real small disk ---------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 1 << 14, 1 << 18


def real_disk(root: Path, only: str) -> Iterator[Outcome]:
    """A tmpfs of a few pages, with one page less free each time, in a namespace of the child's own.

    Nothing is mounted where another process could see it.
    """
    kind = "a real disk with n pages free"
    if only not in kind:
        return
    if why := _why_no_mount(root):
        print(f"not tried: {kind}: {why}")
        return
    for pages in range(40):
        result = result_of(partial(_on_small_disk, root, pages))
        if "died" in result:
            yield Outcome(kind, pages, "died", result["died"])
            return
        yield Outcome(kind, pages, result["found"], result["problem"])
        if not result["raised"]:
            return


def _why_no_mount(root: Path) -> str:
    """Empty where a child can mount a disk of its own."""
    if sys.platform != "linux":
        return "it needs Linux"
    return result_of(lambda: {"why": _mount(root, 16)}).get("why", "mounting failed")


def _mount(root: Path, pages: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    place = root / "disk"
    place.mkdir(exist_ok=True)
    size = f"size={pages * resource.getpagesize()}".encode()
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, size)
    ):
        return os.strerror(ctypes.get_errno())
    return ""


def _on_small_disk(root: Path, free: int) -> dict[str, Any]:
    """Save the old state, leave ``free`` pages, save the new one."""
    _mount(root, 40)
    folder = root / "disk" / "adapter"
    minilora.save(STATES[0], folder)
    for name, content in FOREIGN.items():
        (folder / name).write_bytes(content)
    page = resource.getpagesize()
    room = os.statvfs(folder)
    filler = root / "disk" / "filler"
    filler.write_bytes(bytes(max(0, room.f_bavail - free) * page))
    result = _save_and_say(folder)
    raised = result["raised"]
    filler.unlink()
    found, problem = wrong_after(folder, True, not raised, True)
    if raised not in ("", "OSError"):
        problem = problem or f"{raised} instead of OSError"
    if not raised and free == 0:
        problem = problem or "save did not notice that nothing fits"
    return {"raised": raised, "found": found, "problem": problem}
