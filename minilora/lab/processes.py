"""Starting the processes that train together on this machine.

`torchrun` runs `minilora.lab.distributed` as a command line would, and reads its report.
`Processes` keeps a few processes open, in which the functions of a page are tried together: their
start takes seconds, and a function then takes as long as it takes. Both use PyTorch's gloo, which
runs on any CPU, and on Windows as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

SCRIPT = "minilora.lab.distributed"


def torchrun(
    out: Path | str,
    *arguments: str,
    processes: int = 2,
    restarts: int = 0,
    seconds: float = 240,
    show: bool = True,
) -> dict[str, Any]:
    """Run the script with ``torchrun`` in a folder, and return its report.

    ``show`` prints the command as one would type it.

    Raises:
        RuntimeError: It failed, or took longer than so many seconds; with what it wrote last.
    """
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    script = ["-m", SCRIPT, *arguments, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    more = {}
    if restarts:
        # The processes of a second start read the addresses of the dead ones, unless the place
        # where addresses are left is made anew (pytorch/pytorch#135712).
        more["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if sys.platform == "win32":  # PyTorch is built without libuv there, and torchrun asks for it
        more["USE_LIBUV"] = "0"
    if show:
        said_first = [f"{name}={value}" for name, value in more.items()]
        print(*said_first, "torchrun", *(options if restarts else options[:1]), *script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options, *script]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, stdout=said, stderr=said, env=environment | more, start_new_session=True
        )
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
        said.seek(0)
        last = said.read().decode(errors="replace").rpartition("failed (exitcode")
    words = (last[0] or last[2])[-2000:]  # what the processes wrote, before torchrun's own words
    if code is None:
        raise RuntimeError(f"torchrun was not done after {seconds:g} seconds. It wrote:\n{words}")
    if code:
        raise RuntimeError(f"torchrun failed with code {code}. It wrote:\n{words}")
    report: dict[str, Any] = json.loads((Path(out) / "report.json").read_text(encoding="utf-8"))
    return report


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session of its own, and all that it has started."""
    if child.poll() is not None:
        return
    child.terminate()  # torchrun then ends its own
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


class Waiting(RuntimeError):
    """Some processes were still at work, or waiting for others, when the time was over."""


class Processes:
    """``count`` processes of this machine that know each other, one thread each::

        with Processes(2) as two:
            two.run(function, 3)    # [what process 0 returns, what process 1 returns]

    A function may be one of a page, and is sent with what it needs. In it ``dist.get_rank()``
    says which process it is in. What it prints is printed here, process by process. After an error
    or a `Waiting` the processes are ended, and the next ``run`` starts new ones.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self._children: list[subprocess.Popen[bytes]] = []
        self._answers: queue.Queue[tuple[int, bytes | None]] = queue.Queue()
        self._folder: Path | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
        """Call the function in every process at once; what each returns, in their order.

        Raises:
            Waiting: Not all have returned after so many seconds.
            RuntimeError: The function has raised; with what it has said.
        """
        cloudpickle = _pickle()
        task = cloudpickle.dumps((function, arguments))
        try:
            self._start()
            for child in self._children:
                assert child.stdin is not None
                _send(child.stdin, task)
            return self._gather(seconds, cloudpickle.loads)
        except BaseException:  # an interruption, too, would leave answers behind
            self.close()
            raise

    def _gather(self, seconds: float, loads: Callable[[bytes], Any]) -> list[Any]:
        end = time.monotonic() + seconds
        found: dict[int, tuple[str, Any]] = {}
        wrong: list[str] = []
        while len(found) + len(wrong) < self.count:
            try:
                number, answer = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if answer is None:
                wrong.append(f"process {number} has ended. {self._last_words(number)}")
            else:
                printed, returned, error = loads(answer)
                if error:
                    wrong.append(f"process {number}: {error}")
                else:
                    found[number] = printed, returned
            if wrong:  # those that wait for one that has failed would wait for ever
                end = min(end, time.monotonic() + 2)
        for number in sorted(found):
            for line in found[number][0].splitlines():
                print(f"process {number}: {line}")
        if wrong:
            raise RuntimeError("\n".join(wrong))
        if late := [f"process {number}" for number in range(self.count) if number not in found]:
            raise Waiting(f"{' and '.join(late)} had not returned after {seconds:g} seconds")
        return [found[number][1] for number in range(self.count)]

    def _last_words(self, number: int) -> str:
        assert self._folder is not None
        said = (self._folder / f"said-{number}.txt").read_text(errors="replace")
        return f"It wrote last: {said[-1000:]}" if said else "It wrote nothing."

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.kill()
            child.wait()
            for end in (child.stdin, child.stdout):
                assert end is not None
                with contextlib.suppress(OSError):
                    end.close()
        self._children, self._answers = [], queue.Queue()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        if self._children:
            return
        self._folder = Path(tempfile.mkdtemp())
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        for number in range(self.count):
            place = [str(self._folder / "meeting"), str(number), str(self.count)]
            with (self._folder / f"said-{number}.txt").open("wb") as said:
                child = subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, *place],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=environment,
                    start_new_session=True,  # an interruption is for the caller alone
                )
            ear = (number, child.stdout, self._answers)
            threading.Thread(target=_listen, args=ear, daemon=True).start()
            self._children.append(child)


def _pickle() -> Any:
    """What sends functions that were written on a page; scikit-learn brings it by way of joblib."""
    name = "cloudpickle" if find_spec("cloudpickle") else "joblib.externals.cloudpickle"
    return import_module(name)


def _listen(number: int, pipe: IO[bytes], answers: queue.Queue[tuple[int, bytes | None]]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed
        while (answer := _receive(pipe)) is not None:
            answers.put((number, answer))
    answers.put((number, None))


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(struct.pack("<Q", len(message)) + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None once the other end is closed."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    return pipe.read(struct.unpack("<Q", head)[0])


def _serve(meeting: str, number: int, count: int) -> None:
    """What a process does: call what it is sent, until nobody is there to send more."""
    cloudpickle = _pickle()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # gloo writes lines of its own to the standard output
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(meeting).as_uri(),  # a file, so that no port can be taken
        rank=number,
        world_size=count,
        timeout=timedelta(minutes=5),
    )
    while (task := _receive(sys.stdin.buffer)) is not None:
        printed, returned, error = io.StringIO(), None, ""
        try:
            function, arguments = cloudpickle.loads(task)
            with contextlib.redirect_stdout(printed):
                returned = function(*arguments)
        except Exception:
            error = traceback.format_exc(limit=-3, chain=False)
        _send(answers, cloudpickle.dumps((printed.getvalue(), returned, error)))


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
