"""Saving and loading: whole or not at all, old or new, and nothing that does not fit."""

import copy
import json
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from core_help import (
    Toy,
    bits,
    cases,
    ids,
    refuses,
    rewritten,
    settings_of,
    shake,
    snapshot,
    tensors_of,
    toy,
    unchanged,
)
from hypothesis import given, settings
from safetensors.torch import save, save_file
from torch import nn

import minilora
from minilora import AdapterError, LoRAConfig, add_lora, files
from minilora import folder as folder_module

FULL = {
    "targets": ["q_proj", "v_proj", "embed"],
    "r": 3,
    "alpha": 5,
    "bias": "all",
    "modules_to_save": ["head"],
    "rank_pattern": {"0.v_proj": 2},
    "alpha_pattern": {"embed": 2},
    "scaling": "rslora",
}
PRE = "base_model.model."


def saved(folder: Path, seed: int = 0, **config) -> nn.Module:
    model = toy(seed, **(config or FULL))
    minilora.save(model, folder)
    return model


def same_adapter(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = minilora.lora_parameters(a), minilora.lora_parameters(b)
    return [bits(p) for p in ours] == [bits(p) for p in theirs]


# --- the round trip -------------------------------------------------------------------------


@settings(max_examples=30)
@given(cases(dtypes=(torch.float32, torch.float64, torch.bfloat16)))
def test_round_trip_to_the_bit(tmp_path_factory, case):
    model, config, x = case
    base, folder = copy.deepcopy(model), tmp_path_factory.mktemp("adapter")
    shake(add_lora(model, config))
    minilora.save(model, folder)
    assert minilora.load(base, folder) is base
    assert torch.equal(base(x), model(x))
    assert base.state_dict().keys() == model.state_dict().keys()
    assert all(
        bits(a) == bits(b)
        for a, b in zip(base.state_dict().values(), model.state_dict().values(), strict=True)
    )
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in base.named_parameters() if p.requires_grad] == trained
    scales = {p: m.scale for p, m in minilora.lora_layers(model).items()}
    assert {p: m.scale for p, m in minilora.lora_layers(base).items()} == scales


def test_keys_shapes_and_config_are_pefts(tmp_path):
    saved(tmp_path / "new" / "deep")
    folder = tmp_path / "new" / "deep"
    shapes = {k.removeprefix(PRE): tuple(t.shape) for k, t in tensors_of(folder).items()}
    assert all(k.startswith(PRE) for k in tensors_of(folder))
    assert shapes["blocks.0.q_proj.lora_A.weight"] == (3, 8)
    assert shapes["blocks.0.q_proj.lora_B.weight"] == (8, 3)
    assert shapes["blocks.0.v_proj.lora_A.weight"] == (2, 8)
    assert shapes["embed.lora_embedding_A"] == (3, 11)
    assert shapes["embed.lora_embedding_B"] == (8, 3)
    assert shapes["head.weight"] == (3, 8)
    assert shapes["blocks.0.q_proj.base_layer.bias"] == (8,)
    assert shapes["norm.bias"] == (8,)
    assert len(shapes) == 10 + 2 + 7
    config = settings_of(folder)
    expected = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["embed", "q_proj", "v_proj"],
        "lora_dropout": 0.0,
        "bias": "all",
        "fan_in_fan_out": False,
        "use_rslora": True,
        "rank_pattern": {"0.v_proj": 2},
        "alpha_pattern": {"embed": 2},
        "modules_to_save": ["head"],
        "exclude_modules": None,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    }
    assert {k: config[k] for k in expected} == expected
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_only_the_adapter_is_saved_and_small(tmp_path):
    saved(tmp_path, targets=["q_proj"], r=2)
    assert set(tensors_of(tmp_path)) == {
        f"{PRE}blocks.{i}.q_proj.lora_{f}.weight" for i in (0, 1) for f in "AB"
    }
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "config",
    [
        {"targets": "all-linear"},
        {"targets": r"blocks\.0\..*_proj"},
        {"targets": nn.Linear, "exclude": "all-linear"},
        {"targets": nn.Linear, "exclude": ["head"]},
        {"targets": nn.Linear, "exclude": r".*\.1\..*"},
        {"targets": lambda path, m: path == "head"},
        {"targets": ["q_proj"], "init": "gaussian", "dropout": 0.2},
    ],
)
def test_every_form_of_targets_survives(tmp_path, config):
    model = saved(tmp_path, **config)
    other = minilora.load(Toy(), tmp_path)
    assert list(minilora.lora_layers(other)) == list(minilora.lora_layers(model))
    assert same_adapter(model, other)
    assert minilora.lora_layers(other)[
        next(iter(minilora.lora_layers(model)))
    ].dropout == config.get("dropout", 0)


def test_targets_whose_path_ends_another_path(tmp_path):
    def make():
        torch.manual_seed(0)
        inner = nn.ModuleDict({"fc": nn.Linear(2, 2)})
        return nn.ModuleDict({"fc": nn.Linear(2, 2), "inner": inner})

    only = add_lora(make(), LoRAConfig(targets=lambda path, m: path == "fc"))
    minilora.save(only, tmp_path)
    assert list(minilora.lora_layers(minilora.load(make(), tmp_path))) == ["fc"]
    config = settings_of(tmp_path)
    del config["target_modules"]  # then the keys alone decide
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert list(minilora.lora_layers(minilora.load(make(), tmp_path))) == ["fc"]


def test_loaded_adapter_trains(tmp_path):
    model = saved(tmp_path)
    other = minilora.load(toy(0), tmp_path)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    x = ids()
    assert torch.equal(other(x), model(x))
    other(ids()).sum().backward()
    minilora.remove_lora(other)


def test_load_replaces_an_adapter_whole(tmp_path):
    model = saved(tmp_path)
    other = toy(0, targets=["up_proj", "down_proj"], r=6, modules_to_save=["norm"])
    minilora.set_strength(other, 0.5)
    minilora.load(other, tmp_path)
    x = ids()
    assert torch.equal(other(x), model(x))
    fresh = toy(0)
    with minilora.disabled(other):
        assert torch.equal(other(x), fresh(x))
    minilora.remove_lora(other)
    assert torch.equal(other(x), fresh(x))
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_load(tmp_path, half):
    saved(tmp_path)
    stored = {k: t.to(half) for k, t in tensors_of(tmp_path).items()}
    save_file(stored, tmp_path / "adapter_model.safetensors")
    model = minilora.load(toy(0), tmp_path)
    layer = model.blocks[0].q_proj
    assert layer.A.dtype == torch.float32
    assert torch.equal(layer.A, stored[f"{PRE}blocks.0.q_proj.lora_A.weight"].float())
    half_model = minilora.load(toy(0).to(half), tmp_path)
    assert half_model.head.tuned.weight.dtype == half
    assert half_model.blocks[0].q_proj.A.dtype == torch.float32


def test_symlinks_as_in_the_hubs_cache_load(tmp_path):
    model = saved(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert same_adapter(minilora.load(toy(0), tmp_path / "snapshot"), model)
    (tmp_path / "link").symlink_to(tmp_path / "blobs")
    assert same_adapter(minilora.load(toy(0), str(tmp_path / "link")), model)


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k.removeprefix(PRE),
        lambda k: k.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda k: k + ".default" if "embedding" in k else k,
        lambda k: k.replace("head.", "head.modules_to_save.default."),
        lambda k: k.replace("head.", "head.modules_to_save."),
        lambda k: k.replace(".base_layer.bias", ".bias"),
    ],
)
def test_other_spellings_of_the_keys(tmp_path, rename):
    model = saved(tmp_path)
    assert same_adapter(minilora.load(toy(0), rewritten(tmp_path, rename)), model)


def test_minimal_config_is_enough(tmp_path):
    model = saved(tmp_path, targets=["q_proj"], r=4, alpha=8)
    stored = tensors_of(tmp_path)
    save_file(stored, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(config).encode())
    assert same_adapter(minilora.load(toy(0), tmp_path), model)
    assert minilora.lora_layers(minilora.load(toy(0), tmp_path))["blocks.0.q_proj"].scale == 2


def test_tensors_that_only_repeat_the_base_are_let_through(tmp_path):
    """As PEFT writes the embedding's own weights, and originals of modules_to_save."""
    model = saved(tmp_path)
    base = toy(0)
    extra = {
        f"{PRE}embed.base_layer.weight": base.embed.weight.detach().clone(),
        f"{PRE}head.original_module.bias": base.head.bias.detach().clone(),
        f"{PRE}head.modules_to_save.bias": tensors_of(tmp_path)[f"{PRE}head.bias"].clone(),
    }
    rewritten(tmp_path, tensors={**tensors_of(tmp_path), **extra})
    assert same_adapter(minilora.load(toy(0), tmp_path), model)
    adapted = toy(0, targets=["up_proj"], bias="all")  # whose trained biases are not the base's
    assert same_adapter(minilora.load(adapted, tmp_path), model)
    extra[f"{PRE}embed.base_layer.weight"][0, 0] += 1
    rewritten(tmp_path, tensors={**tensors_of(tmp_path), **extra})
    refuses(base, lambda: minilora.load(base, tmp_path), "fit nothing", "embed.base_layer.weight")


def test_modules_to_save_that_the_model_lacks_are_tolerated(tmp_path):
    saved(tmp_path, targets=["q_proj"])
    rewritten(tmp_path, modules_to_save=["classifier", "score"], exclude_modules=["lm_head"])
    minilora.load(Toy(), tmp_path)


def test_a_file_whose_copies_hold_all_of_its_targets(tmp_path):
    saved(tmp_path, targets=["q_proj"])
    for left in ({"exclude_modules": ["up_proj"]}, {"exclude_modules": None}):
        rewritten(tmp_path, modules_to_save=["blocks"], **left)
        base = Toy()
        told = ["modules_to_save=['blocks']", "takes out every layer"]
        refuses(base, partial(minilora.load, base, tmp_path), *told)


def test_harmless_settings_of_peft_are_read(tmp_path):
    saved(tmp_path, targets=["q_proj"])
    harmless = {
        "peft_version": "0.21.2",
        "auto_mapping": {"base_model_class": "X", "parent_library": "y"},
        "base_model_name_or_path": "some/model",
        "task_type": "CAUSAL_LM",
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "unknown_but_off": False,
        "init_lora_weights": "eva",
    }
    minilora.load(Toy(), rewritten(tmp_path, **harmless))


# --- old or new, never between --------------------------------------------------------------

OLD, NEW = {"targets": ["q_proj"], "r": 2}, {"targets": ["v_proj", "embed"], "r": 5, "alpha": 3}


def holds(folder: Path) -> str:
    """Which adapter the folder loads as."""
    model = minilora.load(toy(0), folder)
    for name, config, seed in (("old", OLD, 1), ("new", NEW, 2)):
        whole = toy(seed, **config)
        if [bits(p) for p in minilora.lora_parameters(whole)] == [
            bits(p) for p in minilora.lora_parameters(model)
        ]:
            scales = [m.scale for m in minilora.lora_layers(whole).values()]
            assert [m.scale for m in minilora.lora_layers(model).values()] == scales
            return name
    raise AssertionError("neither")


@pytest.mark.parametrize("first", [True, False])
def test_torn_pair_loads_as_the_new_adapter(tmp_path, first):
    if not first:
        saved(tmp_path, 1, **OLD)
    old = (tmp_path / "adapter_config.json").read_bytes() if not first else None
    saved(tmp_path, 2, **NEW)
    if first:
        (tmp_path / "adapter_config.json").unlink()
    else:
        (tmp_path / "adapter_config.json").write_bytes(old)
    assert holds(tmp_path) == "new"


def test_config_edited_by_hand_holds(tmp_path):
    saved(tmp_path, targets=["q_proj"], r=2, alpha=2)
    config = settings_of(tmp_path)
    config["lora_alpha"] = 32
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = minilora.load(Toy(), tmp_path)
    assert model.blocks[0].q_proj.scale == 16


def test_ids_differ_when_only_the_config_does(tmp_path):
    names = []
    for alpha in (2, 4):
        saved(tmp_path, targets=["q_proj"], alpha=alpha)
        names.append(settings_of(tmp_path)["auto_mapping"]["minilora_id"])
    saved(tmp_path, seed=1, targets=["q_proj"], alpha=4)
    names.append(settings_of(tmp_path)["auto_mapping"]["minilora_id"])
    assert len(set(names)) == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed, OSError])
@pytest.mark.parametrize("where", ["replace", "fsync", "open"])
@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("had_old", [True, False])
def test_save_that_dies_at_any_step(tmp_path, monkeypatch, where, step, had_old, error):
    if had_old:
        saved(tmp_path, 1, **OLD)
    new, calls = toy(2, **NEW), []
    original = getattr(os, where)

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) > step:
            raise error("power cut")
        return original(*args, **kwargs)

    monkeypatch.setattr(files.os, where, dying)
    before = snapshot(new)
    try:
        minilora.save(new, tmp_path)
        died = False
    except error:
        died = True
    monkeypatch.undo()
    assert died == (len(calls) > step)
    assert snapshot(new) == before
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".tmp")]
    if "adapter_model.safetensors" in os.listdir(tmp_path):
        assert holds(tmp_path) in (("old", "new") if had_old else ("new",))
        if not died:
            assert holds(tmp_path) == "new"
    else:
        assert not had_old
        refuses(new, lambda: minilora.load(new, tmp_path), "holds no adapter_model.safetensors")


def test_full_disk_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    saved(tmp_path, 1, **OLD)
    new = toy(2, **NEW)

    class Full:
        def __init__(self, *args):
            self.file = open(*args)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        minilora.save(new, tmp_path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert holds(tmp_path) == "old"


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_save_killed_for_real(tmp_path):
    """A process that saves the two adapters in turn is killed; what is left is one of them."""
    saved(tmp_path / "a", 1, **OLD)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent / 'help')!r})\n"
        "import minilora; from core_help import toy\n"
        f"old, new = toy(1, **{OLD!r}), toy(2, **{NEW!r})\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        f"    minilora.save(new, {str(tmp_path / 'a')!r})\n"
        f"    minilora.save(old, {str(tmp_path / 'a')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(minilora.__file__).parents[1])}
    for wait in (0.02,):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(wait)
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert holds(tmp_path / "a") in ("old", "new")
    saved(tmp_path / "a", 2, **NEW)
    assert sorted(os.listdir(tmp_path / "a")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_stale_temporaries_go_and_foreign_files_stay(tmp_path):
    stale = [".adapter_model.safetensors.123.tmp", ".adapter_config.json.9.tmp"]
    foreign = ["README.md", ".adapter_notes.tmp", "adapter_model.bin", "optimizer.pt"]
    for name in stale + foreign:
        (tmp_path / name).write_text(name)
    saved(tmp_path, 2, **NEW)
    for name in foreign:
        assert (tmp_path / name).read_text() == name
    assert not any((tmp_path / name).exists() for name in stale)
    assert holds(tmp_path) == "new"


def test_tensors_go_first_and_reach_the_disk_before_they_count(tmp_path, monkeypatch):
    """A config without its tensors would lose the old adapter; tensors carry their config."""
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(file: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file"
        done.append(f"fsync {kind}")
        fsync(file)

    def note_replace(old: Path, new: Path) -> None:
        done.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    saved(tmp_path)
    names = ["adapter_model.safetensors", "adapter_config.json"]
    expected = [step for name in names for step in ("fsync file", name, "fsync folder")]
    assert done == expected if os.name == "posix" else done[1] == names[0]


# --- what save refuses ----------------------------------------------------------------------


def test_save_refuses(tmp_path):
    model = toy(**FULL)
    target = tmp_path / "x"
    with minilora.merged(model):
        refuses(model, lambda: minilora.save(model, target), "save", "not merged", "unmerge")
    minilora.set_strength(model, 0.5)
    refuses(
        model, lambda: minilora.save(model, target), "strength is not 1", "set_strength(model, 1)"
    )
    minilora.set_strength(model, 1)
    with torch.no_grad():
        model.blocks[0].q_proj.B[0, 0] = float("inf")
    refuses(model, lambda: minilora.save(model, target), "q_proj.lora_B", "NaN or infinity")
    assert not target.exists()
    (tmp_path / "file").write_text("")
    with torch.no_grad():
        model.blocks[0].q_proj.B[0, 0] = 0
    refuses(model, lambda: minilora.save(model, tmp_path / "file"), error=OSError)


# --- what load refuses ----------------------------------------------------------------------


def not_loaded(folder: Path, *words: str, model: nn.Module | None = None) -> None:
    """Refused by a plain model and by an adapted one; both stay as they were."""
    for target in [model] if model else [toy(0), toy(3, targets=["up_proj"], bias="all")]:
        refuses(target, lambda m=target: minilora.load(m, folder), *words, error=AdapterError)


def test_not_a_folder_or_nothing_in_it(tmp_path):
    not_loaded(tmp_path / "none", "none is not a folder", "adapter_config.json")
    not_loaded(tmp_path, "holds no adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    not_loaded(tmp_path, "pickle", "not read")
    saved(tmp_path)
    not_loaded(tmp_path / "adapter_config.json", "is not a folder")
    rewritten(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    not_loaded(tmp_path, "holds no adapter_config.json")


CONFIGS = [
    # settings, telling words
    ({"r": ...}, ["lacks 'r'", "scale"]),
    ({"lora_alpha": ...}, ["lacks 'lora_alpha'"]),
    ({"r": ..., "lora_alpha": ...}, ["lacks 'lora_alpha' and 'r'"]),
    ({"peft_type": ...}, ["peft_type must be 'LORA'", "None"]),
    ({"peft_type": "ADALORA"}, ["peft_type", "'ADALORA'"]),
    ({"r": 0}, ["r must be at least 1"]),
    ({"r": 4}, ["blocks.0.q_proj", "(2, 8)", "(4, 8)"]),
    ({"r": 10**15}, ["(2, 8)", "(1000000000000000, 8)"]),
    ({"r": 2.0}, ["whole number"]),
    ({"r": True}, ["whole number"]),
    ({"r": "2"}, ["whole number"]),
    ({"r": None}, ["whole number"]),
    ({"lora_alpha": 0}, ["alpha must be positive"]),
    ({"lora_alpha": float("nan")}, ["finite"]),
    ({"lora_alpha": float("inf")}, ["finite"]),
    ({"lora_alpha": 10**400}, ["finite"]),
    ({"lora_alpha": [1]}, ["a number"]),
    ({"lora_dropout": 2}, ["dropout"]),
    ({"lora_dropout": "x"}, ["dropout"]),
    ({"bias": "some"}, ["bias", "'some'"]),
    ({"bias": "all"}, ["bias='all'", "no tensor for 'blocks.0.q_proj.bias'"]),
    ({"use_rslora": "yes"}, ["use_rslora must be true or false"]),
    ({"use_dora": True}, ["no magnitude_vector", "'blocks.0.q_proj'"]),
    ({"use_dora": "yes"}, ["use_dora must be true or false"]),
    ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "changes the base weights"]),
    ({"init_lora_weights": "corda"}, ["'corda'"]),
    ({"init_lora_weights": ["x"]}, ["init_lora_weights"]),
    ({"layers_to_transform": [1]}, ["factors for 'blocks.0.q_proj'", "does not name"]),
    ({"trainable_token_indices": [1]}, ["'trainable_token_indices'"]),
    ({"megatron_config": {"a": 1}}, ["'megatron_config'"]),
    ({"something_new": 1}, ["'something_new'", "does not support"]),
    ({"target_modules": ["q_proj", "v_proj"]}, ["names 'blocks.0.v_proj'", "no A"]),
    ({"target_modules": ["v_proj"]}, ["factors for 'blocks.0.q_proj'", "does not name"]),
    ({"target_modules": ["q_porj"]}, ["'q_porj'", "close to it: 'q_proj'"]),
    ({"target_modules": "blocks.*"}, ["does not fit the model"]),
    ({"target_modules": "("}, ["regular expression"]),
    ({"target_modules": {"q_proj": 1}}, ["targets"]),
    ({"target_modules": 3}, ["targets"]),
    ({"target_modules": [1]}, ["targets"]),
    ({"exclude_modules": ["0.q_proj"]}, ["factors for 'blocks.0.q_proj'", "does not name"]),
    ({"exclude_modules": 7}, ["exclude"]),
    ({"rank_pattern": {"q_proj": 3}}, ["(2, 8)", "(3, 8)"]),
    ({"rank_pattern": [1]}, ["rank_pattern"]),
    ({"rank_pattern": {"(": 1}}, ["regular expression"]),
    ({"alpha_pattern": {"q_proj": None}}, ["alpha_pattern"]),
    ({"modules_to_save": ["head"]}, ["names 'head'", "'head.weight'"]),
    ({"modules_to_save": ["blocks.0"]}, ["'blocks.0'", "trained whole"]),
    ({"modules_to_save": "head"}, ["modules_to_save"]),
    ({"modules_to_save": 4}, ["modules_to_save"]),
]


@pytest.mark.parametrize(("config", "words"), CONFIGS)
def test_configs_that_do_not_fit(tmp_path, config, words):
    saved(tmp_path, targets=["q_proj"], r=2)
    not_loaded(rewritten(tmp_path, **config), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["not valid JSON"]),
        (b"{", ["not valid JSON"]),
        (b"\xff\xfe{}", ["not valid JSON"]),
        (b"[" * 200_000, ["not valid JSON"]),
        (b'{"a":' * 200_000, ["not valid JSON"]),
        (b"[]", ["must hold a JSON object", "list"]),
        (b"null", ["JSON object", "NoneType"]),
        (b'{"r": ' + b"9" * 5000 + b"}", ["not valid JSON"]),
    ],
)
def test_configs_that_are_not_json(tmp_path, text, words):
    saved(tmp_path, targets=["q_proj"])
    (tmp_path / "adapter_config.json").write_bytes(text)
    not_loaded(tmp_path, "adapter_config.json", *words)


def test_bad_config_inside_the_tensors(tmp_path):
    saved(tmp_path, targets=["q_proj"])
    metadata = {"adapter_config.json": "{"}
    (tmp_path / "adapter_model.safetensors").write_bytes(save(tensors_of(tmp_path), metadata))
    not_loaded(tmp_path, "config inside", "not valid JSON")


A0 = f"{PRE}blocks.0.q_proj.lora_A.weight"


def changed(key: str, make) -> object:
    def change(tensors):
        tensors[key] = make(tensors.get(key))

    return change


TENSORS = [
    (lambda t: t.pop(A0), ["'blocks.0.q_proj'", "no A for it"]),
    (lambda t: [t.pop(k) for k in list(t) if "blocks.1" in k], ["'blocks.1.q_proj'", "no A"]),
    (lambda t: t.clear(), ["no LoRA factors"]),
    (changed(A0, lambda a: a.T.contiguous()), ["blocks.0.q_proj: A", "(8, 2)", "(2, 8)"]),
    (changed(A0, lambda a: a[:1].clone()), ["(1, 8)", "(2, 8)"]),
    (changed(A0, lambda a: a[None].clone()), ["(1, 2, 8)"]),
    (changed(A0, lambda a: torch.tensor(1.0)), ["()", "(2, 8)"]),
    (changed(A0, lambda a: a.long()), ["blocks.0.q_proj: A", "torch.int64", "floating point"]),
    (changed(A0, lambda a: a.bool()), ["torch.bool"]),
    (changed(A0, lambda a: a.fill_(float("nan"))), ["blocks.0.q_proj: A", "NaN or infinity"]),
    (changed(A0, lambda a: a.fill_(float("-inf"))), ["NaN or infinity"]),
    (changed(A0, lambda a: a.double().fill_(1e300)), ["too large", "torch.float32"]),
    (changed(A0.replace("_A", "_B"), lambda b: b * float("inf")), ["q_proj: B", "infinity"]),
    (changed(f"{PRE}nope.lora_A.weight", lambda _: torch.ones(2, 8)), ["'nope'", "no such module"]),
    (
        changed(f"{PRE}blocks.0.v_proj.lora_A.weight", lambda _: torch.ones(2, 8)),
        ["'blocks.0.v_proj'"],
    ),
    (changed(f"{PRE}extra.weight", lambda _: torch.ones(2)), ["1 tensor(s)", "extra.weight"]),
    (changed(f"{PRE}head.weight", lambda _: torch.ones(3, 8)), ["head.weight", "modules_to_save"]),
    (changed("blocks.0.q_proj.lora_A.weight", lambda _: torch.ones(2, 8)), ["two tensors"]),
    (changed(f"{PRE}norm.lora_A.weight", lambda _: torch.ones(2, 8)), ["'norm'"]),
    (changed(f"{PRE}.lora_A.weight", lambda _: torch.ones(2, 8)), ["fit nothing"]),
    (
        changed(f"{PRE}blocks.0.q_proj.lora_magnitude_vector", lambda _: torch.ones(8)),
        ["magnitude"],
    ),
]


@pytest.mark.parametrize(("change", "words"), TENSORS)
def test_tensors_that_do_not_fit(tmp_path, change, words):
    saved(tmp_path, targets=["q_proj"], r=2)
    stored = tensors_of(tmp_path)
    change(stored)
    not_loaded(rewritten(tmp_path, tensors=stored), *words)


def test_biases_and_copies_that_do_not_fit(tmp_path):
    saved(tmp_path)
    for key, make, words in [
        ("norm.bias", None, ["bias='all'", "'norm.bias'"]),
        ("norm.bias", lambda t: t[:3].clone(), ["norm.bias", "(3,)", "(8,)"]),
        ("norm.bias", lambda t: t * float("nan"), ["norm.bias", "NaN"]),
        ("blocks.0.q_proj.base_layer.bias", None, ["'blocks.0.q_proj.bias'"]),
        ("head.weight", None, ["'head'", "no 'head.weight'"]),
        ("head.weight", lambda t: t.T.contiguous(), ["head.weight", "(8, 3)", "(3, 8)"]),
        ("head.bias", lambda t: t.int(), ["head.bias", "torch.int32"]),
    ]:
        stored = tensors_of(tmp_path)
        value = stored.pop(PRE + key)
        if make:
            stored[PRE + key] = make(value)
        folder = tmp_path / "other"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_bytes(
            (tmp_path / "adapter_config.json").read_bytes()
        )
        save_file(stored, folder / "adapter_model.safetensors")
        not_loaded(rewritten(folder), *words)


def test_buffers_of_another_type_are_refused(tmp_path):
    def make():
        return nn.ModuleDict({"q": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})

    minilora.save(add_lora(make(), LoRAConfig(targets=["q"], modules_to_save=["norm"])), tmp_path)
    minilora.load(make(), tmp_path)
    stored = tensors_of(tmp_path)
    stored[f"{PRE}norm.num_batches_tracked"] = stored[f"{PRE}norm.num_batches_tracked"].float()
    not_loaded(
        rewritten(tmp_path, tensors=stored), "num_batches_tracked", "torch.int64", model=make()
    )


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "random", "text", "huge", "early"])
def test_damaged_files(tmp_path, damage):
    saved(tmp_path, targets=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-1],
            "early": whole[:100],
            "header": whole[:8] + b"x" + whole[9:],
            "random": bytes(range(256)) * 8,
            "text": b"version https://git-lfs.github.com/spec/v1\n",
            "huge": (2**62).to_bytes(8, "little") + whole[8:],
        }[damage]
    )
    not_loaded(tmp_path, "adapter_model.safetensors is damaged")


def test_another_base_is_refused(tmp_path):
    saved(tmp_path, targets=["q_proj", "embed"])
    not_loaded(tmp_path, "embed: embedding_B", "(8, 8)", "(4, 8)", model=Toy(4))
    not_loaded(tmp_path, "no such module", "base model", model=nn.Sequential(nn.Linear(2, 2)))


def test_load_onto_a_merged_model_is_refused(tmp_path):
    model = saved(tmp_path)
    with minilora.merged(model):
        refuses(model, lambda: minilora.load(model, tmp_path), "load", "not merged", "unmerge")
    part = nn.Sequential(model)
    refuses(part, lambda: minilora.load(part, tmp_path), "not the module that add_lora was given")


def test_no_pickle_is_ever_read(tmp_path, monkeypatch):
    import pickle

    saved(tmp_path)

    def forbidden(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    minilora.load(Toy(), tmp_path)


def test_loading_never_changes_the_base(tmp_path):
    saved(tmp_path)
    model = toy(0)
    with unchanged(model):
        minilora.load(model, tmp_path)
        minilora.load(model, tmp_path)
        minilora.remove_lora(model)


def test_moved_running_averages_are_told_of(tmp_path, recwarn):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    x = torch.randn(2, 3, 6, 6)
    still = add_lora(model(), LoRAConfig(r=2, targets=["0"])).eval()
    still(x)
    minilora.save(still, tmp_path / "a")
    whole = add_lora(model(), LoRAConfig(r=2, targets=["0"], modules_to_save=["1"]))
    whole(x)
    minilora.save(whole, tmp_path / "b")
    assert bits(minilora.load(model(), tmp_path / "b").eval()(x)) == bits(whole.eval()(x))
    assert not recwarn.list
    moved = add_lora(model(), LoRAConfig(r=2, targets=["0"]))
    moved(x)
    with pytest.warns(UserWarning, match="'1' changed since.*modules_to_save"):
        minilora.save(moved, tmp_path / "c")
