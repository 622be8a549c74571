"""A sample of the faults, and proof that the tool sees what it is there to see."""

import os
import pickle
import shutil
import signal
import time

import pytest

if not hasattr(os, "fork"):
    pytest.skip("the faults need a system that can fork", allow_module_level=True)

import faults
import torch

import minilora

AdapterError, load = minilora.AdapterError, minilora.load


def tried(*arguments: str) -> int:
    """The exit status, without PEFT, whose import alone would take longer than all the rest."""
    return faults.main([*arguments, "--no-peft"])


def test_one_folder_of_each_kind(capsys):
    status = tried("--kills", "0", "--folders", str(len(faults.KINDS)))
    table = capsys.readouterr().out
    assert status == 0, table
    assert all(f"\n{kind} " in table for kind in faults.KINDS)


@pytest.mark.parametrize("only", ["at a random moment", "onto an adapter"])
def test_a_few_interrupted_saves(capsys, only):
    status = tried("--kills", "5", "--folders", "0", "--step", "3000", "--only", only)
    assert status == 0, capsys.readouterr().out


def test_shares_are_fair_and_complete():
    shares = faults.shares(2000)
    assert sum(shares.values()) == 2000
    capped = {name for name, kind in faults.KINDS.items() if shares[name] == kind.most}
    rest = [n for name, n in shares.items() if name not in capped]
    assert max(rest) - min(rest) <= 1


def slow_copy(source, target):
    """In place of os.replace: the target is for a moment only half there."""
    with open(source, "rb") as old, open(target, "wb", buffering=0) as new:
        content = old.read()
        new.write(content[:100])
        new.write(content[100:])
    os.unlink(source)


def test_a_save_that_can_be_seen_half_done_is_found(monkeypatch, capsys):
    monkeypatch.setattr(os, "replace", slow_copy)
    assert (
        tried(
            "--folders", "0", "--step", "1500", "--only", "killed at the n-th call, onto an adapter"
        )
        == 1
    )
    out = capsys.readouterr().out
    assert "not tried" in out or "is damaged" in out


def test_a_save_that_leaves_files_behind_is_found(monkeypatch, capsys):
    monkeypatch.setattr(os, "replace", shutil.copyfile)
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
    assert (
        tried(
            "--folders", "0", "--step", "9000", "--only", "a full disk at n bytes, onto an adapter"
        )
        == 1
    )
    assert "files are left over" in capsys.readouterr().out


def reads_a_pickle(model, path):
    pickle.loads(pickle.dumps(1))
    return load(model, path)


def reads_another_file(model, path):
    (path / "adapter_model.bin").read_bytes()
    return load(model, path)


def changes_the_model(model, path):
    next(model.parameters()).requires_grad_(False)
    return load(model, path)


def raises_another_error(model, path):
    try:
        return load(model, path)
    except AdapterError as error:
        raise KeyError("lora_A") from error


def says_nothing(model, path):
    try:
        return load(model, path)
    except AdapterError:
        raise AdapterError("") from None


def says_too_much(model, path):
    try:
        return load(model, path)
    except AdapterError as error:
        raise AdapterError("\n".join([str(error)] * 2)) from None


def lets_everything_pass(model, path):
    try:
        return load(model, path)
    except AdapterError:
        return model


def takes_memory(model, path):
    torch.ones(2**27)
    return load(model, path)


def hangs(model, path):
    time.sleep(100)


def computes_for_ever(model, path):
    while True:
        pass


def crashes(model, path):
    os.kill(os.getpid(), signal.SIGKILL)


def loads_other_numbers(model, path):
    load(model, path)
    minilora.lora_parameters(model)[0].data += 1
    return model


def loads_another_scale(model, path):
    load(model, path)
    for layer in minilora.lora_layers(model).values():
        layer.alpha *= 2
    return model


def spoils_the_base(model, path):
    load(model, path)
    model.norm.weight.data += 1
    return model


BROKEN = [
    (reads_a_pickle, "the file cut short:0", "a pickle was read"),
    (reads_another_file, "pickles beside an adapter:0", "loading opened"),
    (changes_the_model, "the file cut short:0", "but the model has changed"),
    (raises_another_error, "a tensor missing:0", "KeyError instead of AdapterError"),
    (says_nothing, "a tensor missing:0", "names none of"),
    (says_too_much, "a tensor missing:0", "not one paragraph"),
    (lets_everything_pass, "a tensor missing:0", "loaded, but must be refused"),
    (takes_memory, "the file cut short:0", "MiB of memory"),
    (hangs, "the file cut short:0", "did not end in time"),
    (computes_for_ever, "the file cut short:0", "computed without an end"),
    (crashes, "the file cut short:0", "SIGKILL"),
    (loads_other_numbers, "a config edited by hand:0", "is not what the file holds"),
    (loads_another_scale, "a torn pair:0", "in the file"),
    (spoils_the_base, "a config edited by hand:0", "not the base again"),
]


@pytest.mark.parametrize(("broken", "only", "words"), BROKEN)
def test_a_load_that_is_wrong_is_found(monkeypatch, capsys, broken, only, words):
    monkeypatch.setattr(minilora, "load", broken)
    monkeypatch.setattr("fault_judge.CPU_SECONDS", 1 if broken is computes_for_ever else 10)
    monkeypatch.setattr(faults, "SECONDS", 0.5 if broken is hangs else 60)
    monkeypatch.setattr(faults, "warm_up", lambda all_bases, root: None)
    assert tried("--kills", "0", "--only", only) == 1
    assert words in capsys.readouterr().out
