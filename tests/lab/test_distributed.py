"""The training script: shared out in each way it is the same run, stopped and resumed as well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import minilora
from minilora.lab import distributed, language
from minilora.lab.distributed import RunSettings
from minilora.lab.processes import Processes, torchrun
from minilora.layers import whole

CPU = torch.device("cpu")
SHORT = RunSettings(r=2, steps=6, batch=4)
WHOLE = replace(SHORT, full=True, lr=0.002)
WAYS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as group:
        yield group


def run(
    settings: RunSettings, how: str, out: Path | None = None, stop: int | None = None
) -> dict[str, Any]:
    """The script's report; with ``stop`` it is broken off before that step."""

    class Stopped(Exception):
        pass

    def die() -> None:
        raise Stopped

    distributed.die_once = die  # type: ignore[assignment]
    try:
        every = 0 if out is None else 2
        return distributed.train(settings, CPU, how, out, save_every=every, die_at=stop)[1]
    except Stopped:
        return {}


@pytest.fixture(scope="module")
def alone() -> dict[bool, list[float]]:
    """The losses of one process, for everything and for an adapter."""
    return {one.full: run(one, "alone")["losses"] for one in (SHORT, WHOLE)}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("settings", [SHORT, WHOLE], ids=["adapter", "everything"])
def test_two_processes_make_the_run_of_one(
    two: Processes, alone: dict[bool, list[float]], how: str, settings: RunSettings
) -> None:
    first, second = two.run(run, settings, how)
    full = settings.full
    assert first["losses"] == second["losses"] and first["processes"] == 2
    assert first["losses"] == pytest.approx(alone[full], abs=2e-5)
    assert alone[full][-1] < alone[full][0] - 0.1  # it has learnt something


@pytest.mark.parametrize("how", ["alone", *WAYS])
def test_stopped_and_resumed_it_is_the_same_to_the_bit(
    two: Processes, tmp_path: Path, how: str
) -> None:
    """With dropout, so that the generators have to be put back as well."""

    def go(*arguments: Any) -> dict[str, Any]:
        return run(*arguments) if how == "alone" else two.run(run, *arguments)[0]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    settings = replace(SHORT, dropout=0.2)
    undisturbed = go(settings, how, tmp_path / "one")
    assert go(settings, how, tmp_path / "two", 5) == {}
    resumed = go(settings, how, tmp_path / "two")
    assert resumed["begun_at"] == 4 and undisturbed["begun_at"] == 0
    assert resumed["losses"] == undisturbed["losses"]
    assert resumed["losses"] != go(SHORT, how)["losses"]  # the dropout is there
    files = [load_file(tmp_path / name / distributed.CHECKPOINT) for name in ("one", "two")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_a_checkpoint_goes_on_with_another_number_of_processes(
    two: Processes, alone: dict[bool, list[float]], tmp_path: Path
) -> None:
    assert two.run(run, SHORT, "fsdp", tmp_path, 3) == [{}, {}]
    (tmp_path / "report.json").unlink(missing_ok=True)
    found = two.run(run, SHORT, "ddp", tmp_path, 5)
    assert found == [{}, {}]
    last = run(SHORT, "alone", tmp_path)
    assert last["begun_at"] == 4
    assert last["losses"] == pytest.approx(alone[False], abs=2e-5)


@pytest.mark.parametrize("how", WAYS)
def test_the_adapter_in_the_folder_is_the_trained_one(
    two: Processes, tmp_path: Path, how: str
) -> None:
    two.run(run, SHORT, how, tmp_path)
    model, _ = distributed.train(SHORT, CPU)
    again = minilora.load(language.pretrained_gpt(), tmp_path / "adapter")
    x = language.text("prose").windows()[0][:2]
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.eval()(x), atol=2e-3, rtol=0)


def test_the_checkpoint_holds_what_is_trained_and_nothing_of_the_base(tmp_path: Path) -> None:
    run(SHORT, "alone", tmp_path)
    tensors = load_file(tmp_path / distributed.CHECKPOINT)
    model = distributed.build(SHORT)
    names = set(distributed.trained(model))
    assert {key.removeprefix("model/") for key in tensors if key.startswith("model/")} == names
    assert len([key for key in tensors if key.startswith("optimizer/")]) == 3 * len(names)
    assert len(tensors["losses"]) == SHORT.steps and "generator/0" in tensors


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(SHORT, "alone", tmp_path)
    with pytest.raises(ValueError, match="other settings.*or another folder"):
        run(replace(SHORT, lr=0.5), "alone", tmp_path)


def test_parts_are_equal_and_no_row_is_done_twice(two: Processes) -> None:
    def parts() -> list[int]:
        return distributed.part_of(torch.arange(6)).tolist()

    assert two.run(parts) == [[0, 2, 4], [1, 3, 5]]

    def refused() -> str:
        try:
            distributed.part_of(torch.arange(5))
        except ValueError as error:
            return str(error)
        return ""

    assert "give --batch 6" in two.run(refused)[0]


def test_with_fsdp_an_adapter_drawn_apart_is_a_patchwork_that_all_gather(two: Processes) -> None:
    def gathered() -> torch.Tensor:
        model = distributed.build(replace(SHORT, seed=dist.get_rank()))
        distributed.share(model, "fsdp")
        return whole(model.blocks[0].q_proj.A.detach())

    first, second = two.run(gathered)
    draws = [distributed.build(replace(SHORT, seed=s)).blocks[0].q_proj.A for s in (0, 1)]
    assert torch.equal(first, second)
    assert torch.equal(first, torch.stack([draws[0][0], draws[1][1]]))


@pytest.mark.parametrize("how", WAYS)
def test_sharing_needs_torchrun(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distributed.main(["--share", how])
    assert "needs torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_run_is_the_same(tmp_path: Path) -> None:
    arguments = [
        "--share",
        "ddp",
        "--adapter-rank",
        "2",
        "--steps",
        "6",
        "--batch",
        "4",
        "--dropout",
        "0.1",
    ]
    undisturbed = torchrun(tmp_path / "a", *arguments, show=False)
    more = ["--save-every", "2", "--die-at", "5"]
    killed = torchrun(tmp_path / "b", *arguments, *more, restarts=1, show=False)
    assert (killed["restarts"], killed["begun_at"]) == (1, 4)
    assert killed["losses"] == undisturbed["losses"]
    with pytest.raises(RuntimeError, match="torchrun failed"):  # nobody starts it again
        torchrun(tmp_path / "c", *arguments, "--die-at", "2", show=False)


@pytest.mark.slow
def test_two_launchers_as_on_two_machines_make_the_same_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test"]
    command += ["-m", "minilora.lab.distributed", "--share", "fsdp", "--out", str(tmp_path)]
    command += ["--adapter-rank", "2", "--steps", "6", "--batch", "4"]
    machines = [
        subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)
    ]
    try:
        assert [machine.wait(90) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["processes"] == 2
    assert report["losses"] == pytest.approx(run(SHORT, "alone")["losses"], abs=2e-5)
