"""The command ``minilora``: what it prints, its exit codes, and that a refusal writes nothing."""

import json
import subprocess
import sys

import pytest
import torch
from folder_help import base, factors, folder, settings
from safetensors import safe_open

from minilora.__main__ import main


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def names(place):
    return sorted(path.name for path in place.iterdir())


def test_help_names_every_command_with_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for command in ("inspect", "convert", "resize", "add", "merge", "extract"):
        assert f"minilora {command} " in text
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2


def test_python_m_minilora_is_the_same(tmp_path):
    where = folder(tmp_path / "a")
    words = [sys.executable, "-m", "minilora", "inspect", str(where)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "It looks sound" in done.stdout and done.stderr == ""


def test_inspect_says_by_its_exit_code_whether_anything_is_broken(tmp_path, capsys):
    sound = folder(tmp_path / "a")
    idle = {k: v * ("lora_A" in k) for k, v in factors().items()}
    assert run(capsys, "inspect", sound)[0] == 0
    code, printed, _ = run(capsys, "inspect", folder(tmp_path / "b", idle))
    assert code == 1 and "BROKEN   B is zero in every layer" in printed
    code, printed, error = run(capsys, "inspect", tmp_path / "nothing")
    assert code == 2 and printed == "" and "does not exist" in error


def test_inspect_prints_json_and_writes_a_page(tmp_path, capsys):
    where = folder(tmp_path / "a")
    code, printed, _ = run(
        capsys, "inspect", where, "--base", base(tmp_path / "b"), "--json",
        "--html", tmp_path / "page.html", "--no-intruders",
    )  # fmt: skip
    (found,) = json.loads(printed)
    assert code == 0 and found["kind"] == "LoRA" and len(found["layers"]) == 8
    assert found["layers"][0]["weight_norm"] > 0 and found["layers"][0]["intruders"] is None
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_several_adapters_and_no_table(tmp_path, capsys):
    idle = {k: v * ("lora_A" in k) for k, v in factors().items()}
    places = folder(tmp_path / "a"), folder(tmp_path / "b", idle)
    code, printed, _ = run(capsys, "inspect", *places, "--brief")
    assert code == 1 and printed.count("factor: 2") == 2 and "model.layers" not in printed
    assert printed.index("It looks sound") < printed.index("B is zero")
    assert [line.split() for line in printed.splitlines()[-2:]] == [
        ["a", "sound"],
        *[["b", "broken:", *line.split()[2:]] for line in printed.splitlines()[-1:]],
    ]
    code, printed, error = run(
        capsys, "inspect", places[0], tmp_path / "nothing", "--json", "--brief"
    )
    assert code == 2 and "does not exist" in error
    assert [sorted(one) for one in json.loads(printed)] == [
        ["broken", "facts", "findings", "kind", "place"]
    ]
    code, _, error = run(capsys, "inspect", *places, "--html", tmp_path / "page.html")
    assert code == 2 and "give one folder" in error


@pytest.mark.parametrize("command", ["resize", "add", "extract", "convert"])
def test_an_adapter_is_replaced_only_where_it_was_asked_for(command, tmp_path, capsys):
    where, below = folder(tmp_path / "a"), base(tmp_path / "b")
    tuned = base(tmp_path / "t", seed=2)
    other = folder(tmp_path / "out", factors(seed=9))
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    words = {
        "resize": ["resize", where, other, "--rank", 2],
        "add": ["add", f"{where}=1", other],
        "extract": ["extract", below, tuned, other, "--rank", 2],
        "convert": ["convert", where, other],
    }[command]
    code, _, error = run(capsys, *words)
    assert code == 2 and "--force" in error
    assert before == {path.name: path.read_bytes() for path in other.iterdir()}
    assert run(capsys, *words, "--force")[0] == 0
    assert run(capsys, "inspect", other)[0] == 0
    assert before["adapter_model.safetensors"] != (other / "adapter_model.safetensors").read_bytes()


def test_resize(tmp_path, capsys):
    where = folder(tmp_path / "a")
    code, printed, _ = run(capsys, "resize", where, tmp_path / "small", "--rank", 2)
    assert code == 0 and "8 layers of rank 2" in printed
    assert json.loads((tmp_path / "small" / "adapter_config.json").read_text())["r"] == 2
    for bad in (["--rank", 0], ["--energy", 1.5]):
        code, _, error = run(capsys, "resize", where, tmp_path / "other", *bad)
        assert code == 2 and "must be" in error
    with pytest.raises(SystemExit):
        main(["resize", str(where), str(tmp_path / "other")])
    capsys.readouterr()
    assert names(tmp_path) == ["a", "small"]


def test_add_reads_weights(tmp_path, capsys):
    folder(tmp_path / "a")
    folder(tmp_path / "b", factors(seed=3))
    parts = [f"{tmp_path}/a=0.5", f"{tmp_path}/b=-1"]
    code, printed, _ = run(capsys, "add", *parts, tmp_path / "sum")
    assert code == 0 and "rank 8" in printed
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    with safe_open(tmp_path / "sum" / "adapter_model.safetensors", framework="pt") as file:
        got = file.get_tensor(key.format("B")) @ file.get_tensor(key.format("A"))
    one, two = factors(), factors(seed=3)
    want = sum(
        2 * weight * part[key.format("B")] @ part[key.format("A")]
        for weight, part in ((0.5, one), (-1, two))
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_add_names_a_part_that_was_never_trained(tmp_path, capsys):
    folder(tmp_path / "a")
    folder(tmp_path / "idle", {k: v * ("lora_A" in k) for k, v in factors().items()})
    parts = [f"{tmp_path}/a", f"{tmp_path}/idle"]
    code, printed, _ = run(capsys, "add", *parts, tmp_path / "sum")
    assert code == 0 and "idle: BROKEN B is zero in every layer" in " ".join(printed.split())
    assert printed.count("BROKEN") == 1


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["{}/a=x"], "such as adapter=0.7"),
        (["{}/a=1", "{}/a=2"], "given twice"),
        (["{}/a", "--method", "ties"], "say to which rank"),
        (["{}/a", "--method", "exact", "--density", "0.5"], "is for --method ties or dare"),
    ],
)
def test_add_refuses(parts, words, tmp_path, capsys):
    folder(tmp_path / "a")
    given = [part.format(tmp_path) for part in parts]
    out = str(tmp_path / "sum")
    order = [given[0], out, *given[1:]] if "--method" in given else [*given, out]
    code, _, error = run(capsys, "add", *order)
    assert code == 2 and words in error
    assert names(tmp_path) == ["a"]


def test_merge_and_extract(tmp_path, capsys):
    where, below = folder(tmp_path / "a"), base(tmp_path / "b")
    code, printed, _ = run(capsys, "merge", below, where, tmp_path / "m", "--layers")
    assert code == 0 and printed.count("lost 0.0%") == 8
    code, printed, _ = run(capsys, "extract", below, tmp_path / "m", tmp_path / "e", "--rank", 4)
    assert code == 0 and "8 layers of rank 4" in printed
    code, _, error = run(capsys, "merge", below, where, tmp_path / "m")
    assert code == 2 and "is there already" in error
    broken = folder(tmp_path / "x", config=settings(r=16))
    code, _, error = run(capsys, "merge", below, broken, tmp_path / "n")
    assert code == 2 and "says r = 16" in error and not (tmp_path / "n").exists()


def test_a_name_cannot_steer_the_terminal(tmp_path, capsys):
    odd = {k.replace("q_proj", "\x1b[2J.q_proj"): v for k, v in factors().items()}
    where = folder(tmp_path / "a", odd)
    printed = (
        run(capsys, "inspect", where)[1]
        + run(capsys, "resize", where, tmp_path / "s", "--rank", 1)[1]
    )
    assert "\x1b" not in printed and "\\x1b[2J" in printed


def test_what_is_empty_is_said(tmp_path, capsys):
    idle = {k: v * ("lora_A" in k) for k, v in factors().items()}
    where = folder(tmp_path / "a", idle)
    words = ["resize", where, tmp_path / "s", "--rank", 2]
    for given in (words, ["add", where, tmp_path / "t"]):
        printed = " ".join(run(capsys, *given)[1].split())
        assert "In 8 of 8 layers the update is zero" in printed


def test_convert_writes_a_config_that_fits(tmp_path, capsys):
    """A rank that contradicts the tensors, and a target that they lack."""
    where = folder(tmp_path / "a", config=settings(r=16))
    code, _, error = run(capsys, "convert", where, tmp_path / "m")
    assert code == 2 and "give --alpha" in error and not (tmp_path / "m").exists()
    code, printed, _ = run(capsys, "convert", where, tmp_path / "m", "--alpha", 8)
    assert code == 0 and "alpha is 8 as asked" in printed
    assert "factor: 2 (" in run(capsys, "inspect", tmp_path / "m", "--brief")[1]
    half = {k: v for k, v in factors().items() if "v_proj" not in k}
    where = folder(tmp_path / "h", half)
    code, printed, _ = run(capsys, "convert", where, tmp_path / "n", "--base", base(tmp_path / "b"))
    assert code == 0 and "named 'v_proj'" in printed
    config = json.loads((tmp_path / "n" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"]
    assert config["base_model_name_or_path"] == str((tmp_path / "b").resolve())
    assert run(capsys, "inspect", tmp_path / "n")[0] == 0


def test_wrapped_keys_are_never_added_up_as_layers_of_their_own(tmp_path, capsys):
    odd = {k.replace("model.model", "model.module.model"): v for k, v in factors().items()}
    one, other = folder(tmp_path / "a"), folder(tmp_path / "b", odd)
    code, _, error = run(capsys, "add", one, other, tmp_path / "sum")
    assert code == 2 and "minilora convert" in error and not (tmp_path / "sum").exists()


def test_convert_says_what_it_cannot_mend(tmp_path, capsys):
    idle = {k: v * ("lora_A" in k) for k, v in factors().items()}
    code, printed, _ = run(capsys, "convert", folder(tmp_path / "a", idle), tmp_path / "m")
    assert code == 1 and "BROKEN   B is zero in every layer" in printed
    lost = folder(tmp_path / "h", config=settings(modules_to_save=["head"]))
    code, printed, _ = run(capsys, "convert", lost, tmp_path / "n")
    assert code == 1 and "names 'head', but the file has no tensor of it" in " ".join(
        printed.split()
    )


def test_convert_mends_keys(tmp_path, capsys):
    odd = {k.replace(".weight", ".default.weight"): v for k, v in factors().items()}
    where = folder(tmp_path / "a", odd)
    assert run(capsys, "inspect", where)[0] == 1
    code, printed, _ = run(capsys, "convert", where, tmp_path / "mended")
    assert code == 0 and "8 layers" in printed
    assert run(capsys, "inspect", tmp_path / "mended")[0] == 0
