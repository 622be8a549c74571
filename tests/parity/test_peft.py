"""The same numbers as PEFT, to the last bit, and folders that either reads from the other."""

import copy
import json

import pytest
import torch
from core_help import Toy, bits, close, ids, shake
from safetensors.torch import load_file
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

# Ours; PEFT's spelling is made from it by `theirs`.
CONFIGS = {
    "linear": {"targets": ["q_proj", "v_proj"], "r": 4, "alpha": 7},
    "scale of one": {"targets": ["q_proj"], "r": 4, "alpha": 4},
    "embedding": {"targets": ["embed"], "r": 3, "alpha": 5},
    "both": {"targets": ["embed", "up_proj", "down_proj"], "r": 2, "alpha": 3},
    "one path": {"targets": ["blocks.1.q_proj"], "r": 1, "alpha": 1},
    "regex": {"targets": r"blocks\.\d\.(q|up)_proj", "r": 2, "alpha": 3},
    "exclude": {"targets": ["q_proj", "v_proj"], "exclude": ["blocks.0.q_proj"], "r": 2},
    "exclude by regex": {"targets": r".*_proj", "exclude": r".*\.1\..*", "r": 2},
    "rslora": {"targets": ["q_proj", "embed"], "r": 3, "alpha": 5, "scaling": "rslora"},
    "rank pattern": {"targets": ["q_proj", "v_proj"], "r": 4, "rank_pattern": {"0.q_proj": 2}},
    "alpha pattern": {
        "targets": ["q_proj", "v_proj", "embed"],
        "r": 4,
        "rank_pattern": {r"blocks\.\d\.v_proj": 1, "v_proj": 3},
        "alpha_pattern": {"v_proj": 3, "embed": 7},
    },
    "bias all": {"targets": ["q_proj", "embed"], "r": 2, "bias": "all"},
    "bias lora only": {"targets": ["q_proj", "v_proj"], "r": 2, "bias": "lora_only"},
    "head": {"targets": ["q_proj"], "r": 2, "modules_to_save": ["head"]},
    "head and norm": {"targets": ["q_proj"], "r": 2, "modules_to_save": ["norm", "head"]},
    "biases and head": {"targets": ["v_proj"], "r": 2, "bias": "all", "modules_to_save": ["head"]},
    "dropout": {"targets": ["q_proj", "down_proj"], "r": 2, "alpha": 3, "dropout": 0.3},
    "all linear": {"targets": "all-linear", "r": 2, "alpha": 3},
    "gaussian": {"targets": ["q_proj"], "r": 2, "init": "gaussian"},
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def theirs(config: dict, model: nn.Module) -> "peft.LoraConfig":
    targets = config["targets"]
    if targets == "all-linear":  # PEFT knows a head only in transformers' models
        targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return peft.LoraConfig(
        r=config["r"],
        lora_alpha=config.get("alpha", 8),
        target_modules=targets,
        exclude_modules=config.get("exclude"),
        lora_dropout=config.get("dropout", 0.0),
        use_rslora=config.get("scaling") == "rslora",
        bias=config.get("bias", "none"),
        rank_pattern=config.get("rank_pattern", {}),
        alpha_pattern=config.get("alpha_pattern", {}),
        modules_to_save=config.get("modules_to_save"),
        init_lora_weights="gaussian" if config.get("init") == "gaussian" else True,
    )


def pair(config: dict, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The same model, adapted by us and by PEFT, with the same numbers in both adapters."""
    torch.manual_seed(0)
    base = Toy().to(dtype)
    other = peft.get_peft_model(copy.deepcopy(base), theirs(config, base))
    ours = shake(add_lora(base, LoRAConfig(**config)))
    translated = {}
    for name, tensor in ours.state_dict().items():
        module, _, last = name.rpartition(".")
        if last in ("A", "B"):
            kind = (
                f"lora_embedding_{last}.default"
                if module == "embed"
                else f"lora_{last}.default.weight"
            )
            translated[f"base_model.model.{module}.{kind}"] = tensor
        else:
            name = name.replace(".base.", ".base_layer.").replace(
                ".tuned.", ".modules_to_save.default."
            )
            if any(name.startswith(f"{m}.base_layer") for m in config.get("modules_to_save", ())):
                name = name.replace(".base_layer.", ".original_module.")
            translated[f"base_model.model.{name}"] = tensor
    other.load_state_dict(translated)
    return ours, other


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """{a name that both libraries share: gradient}."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            for old, new in [
                ("base_model.model.", ""),
                ("lora_embedding_", ""),
                ("lora_", ""),
                (".default", ""),
                (".modules_to_save", ""),
                (".tuned", ""),
                (".base_layer", ""),
                (".base", ""),
            ]:
                name = name.replace(old, new)
            name = (
                name.removesuffix(".weight") if name.endswith((".A.weight", ".B.weight")) else name
            )
            found[name] = p.grad
    return found


def run(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)  # the same dropout in both
    y = model(x)
    y.sin().sum().backward()
    return y, gradients(model)


@every
def test_outputs_and_gradients(config):
    ours, other = pair(config)
    x = ids(3, 4)
    y, wanted = run(other, x)
    with minilora.textbook():
        z, found = run(ours, x)
    assert bits(z) == bits(y)
    assert found.keys() == wanted.keys()  # the same things train
    assert {k: bits(g) for k, g in found.items()} == {k: bits(g) for k, g in wanted.items()}
    z, found = run(ours, x)  # and the fast form is close
    if not config.get("dropout"):
        assert close(z, y)
        assert all(torch.allclose(found[k], wanted[k], rtol=1e-4, atol=1e-5) for k in wanted)


@every
def test_merge(config):
    ours, other = pair(config)
    x = ids(3, 4)
    minilora.merge(ours)
    merged = other.merge_and_unload()
    for name, parameter in merged.named_parameters():
        assert bits(_weight(ours, name)) == bits(parameter), name
    assert bits(ours.eval()(x)) == bits(merged.eval()(x))


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


@every
def test_peft_reads_ours(config, tmp_path):
    ours, _ = pair(config)
    minilora.save(ours, tmp_path)
    torch.manual_seed(0)
    other = peft.PeftModel.from_pretrained(Toy(), str(tmp_path)).eval()
    x = ids(3, 4)
    with minilora.textbook():
        assert bits(ours.eval()(x)) == bits(other(x))


@every
@pytest.mark.parametrize("start", ["plain", "adapted"])
def test_we_read_pefts(config, start, tmp_path):
    _, other = pair(config)
    other.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = Toy()
    if start == "adapted":
        shake(add_lora(model, LoRAConfig(targets=["up_proj", "embed"], r=5, bias="all")))
    model = minilora.load(model, tmp_path).eval()
    x = ids(3, 4)
    with minilora.textbook():
        assert bits(model(x)) == bits(other.eval()(x))


@every
def test_saved_keys_and_values(config, tmp_path):
    ours, other = pair(config)
    minilora.save(ours, tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "theirs"))
    # With bias="all" PEFT also writes the originals and a second copy of modules_to_save' biases.
    b = {
        k: v for k, v in b.items() if ".original_module." not in k and ".modules_to_save." not in k
    }
    assert {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}
    texts = [
        json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("ours", "theirs")
    ]
    for key in texts[0].keys() - {"auto_mapping", "exclude_modules", "target_modules"}:
        assert texts[0][key] == texts[1][key], key
    assert all(key in texts[1] for key in texts[0])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "embedding", "both"])
def test_half_precision_bases(half, name):
    ours, other = pair(CONFIGS[name], half)
    x = ids(3, 4)
    y, wanted = run(other, x)
    with minilora.textbook():
        z, found = run(ours, x)
    assert bits(z) == bits(y)
    assert {k: bits(g) for k, g in found.items()} == {k: bits(g) for k, g in wanted.items()}
    if name != "linear":  # PEFT rounds an embedding's update first, and then the sum once more
        return
    merged = other.merge_and_unload()
    minilora.merge(ours)
    assert all(bits(_weight(ours, n)) == bits(p) for n, p in merged.named_parameters())


def test_autocast():
    ours, other = pair(CONFIGS["both"])
    x = ids(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bits(ours(x)) == bits(other(x))


def test_what_peft_only_warns_about_we_refuse(tmp_path):
    _, other = pair(CONFIGS["linear"])
    other.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    text["target_modules"] = ["q_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(text))
    peft.PeftModel.from_pretrained(Toy(), str(tmp_path))
    with pytest.raises(minilora.AdapterError, match="v_proj"):
        minilora.load(Toy(), tmp_path)


def test_default_initialisation_has_pefts_distribution():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(300, 200))
    other = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=32, target_modules=["0"]))
    A = other.base_model.model[0].lora_A["default"].weight
    ours = add_lora(base, LoRAConfig(r=32, targets=["0"]))[0].A
    assert abs(ours.std() / A.std() - 1) < 0.03
    assert abs(ours.abs().max() / A.abs().max() - 1) < 0.01
