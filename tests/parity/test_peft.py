"""The same numbers as PEFT, to the last bit, and folders that either reads from the other."""

import copy
import json

import pytest
import torch
from core_help import Pictures, Toy, bits, close, ids, shake
from safetensors.torch import load_file
from torch import nn

import minilora
from minilora import LoRAConfig, add_lora
from minilora.layers import LoRAEmbedding

peft = pytest.importorskip("peft")
HFConv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
from peft_help import peft_config  # noqa: E402  (it needs PEFT)

pytestmark = pytest.mark.filterwarnings("ignore")


class GPT(nn.Module):
    """Token ids (n, t) → (n, t, 11): linear layers with (in, out) weights, one of them square."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.c_attn = HFConv1D(3 * d, d)
        self.c_proj = HFConv1D(d, d)
        self.head = nn.Linear(d, 11, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(self.embed(ids)).chunk(3, -1)
        return self.head(self.c_proj(torch.softmax(q @ k.mT, -1) @ v))


# Ours; PEFT's spelling is made from it by `theirs`.
TOY = {
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
    "patterns and rslora": {
        "targets": ["q_proj", "up_proj"],
        "r": 4,
        "scaling": "rslora",
        "rank_pattern": {"up_proj": 6},
        "alpha_pattern": {"0.q_proj": 3},
    },
    "bias all": {"targets": ["q_proj", "embed"], "r": 2, "bias": "all"},
    "bias lora only": {"targets": ["q_proj", "v_proj"], "r": 2, "bias": "lora_only"},
    "head": {"targets": ["q_proj"], "r": 2, "modules_to_save": ["head"]},
    "head and norm": {"targets": ["q_proj"], "r": 2, "modules_to_save": ["norm", "head"]},
    "biases and head": {"targets": ["v_proj"], "r": 2, "bias": "all", "modules_to_save": ["head"]},
    "dropout": {"targets": ["q_proj", "down_proj"], "r": 2, "alpha": 3, "dropout": 0.3},
    "all linear": {"targets": "all-linear", "r": 2, "alpha": 3},
    "gaussian": {"targets": ["q_proj"], "r": 2, "init": "gaussian"},
    "rank above the width": {"targets": ["q_proj"], "r": 12, "alpha": 5},
    "dora": {"targets": ["q_proj", "up_proj"], "r": 2, "alpha": 3, "use_dora": True},
    "dora without bias": {"targets": ["v_proj"], "r": 2, "use_dora": True},
    "dora embedding": {"targets": ["embed", "q_proj"], "r": 3, "alpha": 5, "use_dora": True},
    "dora, dropout": {"targets": ["q_proj", "v_proj"], "r": 2, "dropout": 0.3, "use_dora": True},
    "dora, rslora, head": {
        "targets": ["down_proj"],
        "r": 3,
        "scaling": "rslora",
        "use_dora": True,
        "modules_to_save": ["head"],
        "bias": "lora_only",
        "rank_pattern": {"1.down_proj": 1},
    },
}
PICTURES = {
    "conv2d": {"targets": ["conv1"], "r": 2, "alpha": 3},
    "conv2d, stride and padding": {"targets": ["conv2"], "r": 3, "alpha": 5},
    "conv2d, one by one": {"targets": ["point"], "r": 2, "alpha": 3},
    "conv1d": {"targets": ["conv3"], "r": 2, "alpha": 3},
    "all convolutions": {"targets": r"conv\d|point", "r": 2, "alpha": 7, "bias": "lora_only"},
    "conv and linear": {"targets": ["conv1", "head"], "r": 4, "scaling": "rslora", "bias": "all"},
    "conv, dropout": {"targets": ["conv1", "conv3"], "r": 2, "dropout": 0.3},
    "conv, gaussian": {"targets": ["conv2"], "r": 2, "init": "gaussian"},
    "conv, patterns": {
        "targets": ["conv1", "conv2"],
        "r": 2,
        "rank_pattern": {"conv2": 5},
        "alpha_pattern": {"conv1": 1},
        "modules_to_save": ["head"],
    },
    "dora conv2d": {"targets": ["conv1", "conv2"], "r": 2, "alpha": 3, "use_dora": True},
    "dora conv1d": {"targets": ["conv3"], "r": 2, "use_dora": True},
    "dora conv, dropout": {"targets": ["conv1"], "r": 2, "dropout": 0.3, "use_dora": True},
}
HF_CONV1D = {
    "conv1D": {"targets": ["c_attn", "c_proj"], "r": 2, "alpha": 3},
    "conv1D, square": {"targets": ["c_proj"], "r": 4, "scaling": "rslora", "bias": "lora_only"},
    "conv1D, dropout": {"targets": ["c_attn"], "r": 2, "dropout": 0.3},
    "conv1D and embedding": {"targets": ["c_attn", "embed"], "r": 2, "rank_pattern": {"embed": 3}},
    "conv1D, head": {"targets": ["c_attn"], "r": 2, "modules_to_save": ["head"]},
    "dora conv1D": {"targets": ["c_attn", "c_proj"], "r": 2, "alpha": 3, "use_dora": True},
}
CASES = {
    name: (model, config)
    for model, configs in [(Toy, TOY), (Pictures, PICTURES), (GPT, HF_CONV1D)]
    for name, config in configs.items()
}
every = pytest.mark.parametrize("case", CASES)
# PEFT multiplies the factors of a convolution by convolving one with the other, so the last bits of
# the merged weight differ.
OTHER_ORDER = {name for name, (model, _) in CASES.items() if model is Pictures}


def theirs(config: dict) -> "peft.LoraConfig":
    targets = config["targets"]
    if targets == "all-linear":  # PEFT knows a head only in transformers' models
        targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return peft_config(config, targets)


def fresh(case: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base of a case, the same at every call."""
    torch.manual_seed(0)
    return CASES[case][0]().to(dtype)


def inputs(case: str) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 8, 8) if CASES[case][0] is Pictures else ids(3, 4)


def pair(case: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The same model, adapted by us and by PEFT, with the same numbers in both adapters."""
    config = CASES[case][1]
    base = fresh(case, dtype)
    other = peft.get_peft_model(copy.deepcopy(base), theirs(config))
    ours = shake(add_lora(base, LoRAConfig(**config)))
    layers = minilora.lora_layers(ours)
    translated = {}
    for name, tensor in ours.state_dict().items():
        module, _, last = name.rpartition(".")
        if last in ("A", "B"):
            kind = (
                f"lora_embedding_{last}.default"
                if isinstance(layers[module], LoRAEmbedding)
                else f"lora_{last}.default.weight"
            )
            translated[f"base_model.model.{module}.{kind}"] = tensor
        else:
            name = name.replace(".base.", ".base_layer.").replace(
                ".tuned.", ".modules_to_save.default."
            )
            name = name.replace(".dora.magnitude", ".lora_magnitude_vector.default.weight")
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
                (".dora.magnitude", ".magnitude_vector.weight"),
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


def test_there_are_at_least_forty_cases():
    assert len(CASES) >= 40


@every
def test_outputs_and_gradients(case):
    ours, other = pair(case)
    x = inputs(case)
    y, wanted = run(other, x)
    with minilora.textbook():
        z, found = run(ours, x)
    assert bits(z) == bits(y)
    assert found.keys() == wanted.keys()  # the same things train
    assert {k: bits(g) for k, g in found.items()} == {k: bits(g) for k, g in wanted.items()}
    z, found = run(ours, x)  # and the fast form is close
    if not CASES[case][1].get("dropout"):
        assert close(z, y)
        assert all(torch.allclose(found[k], wanted[k], rtol=1e-4, atol=1e-5) for k in wanted)


@every
def test_input_gradients(case):
    ours, other = pair(case)
    found = []
    for model in (other, ours):
        x = inputs(case)
        seen = []
        if x.is_floating_point():
            seen.append(x.requires_grad_(True))
        else:  # token ids have no gradient; what the embedding makes of them has
            embed = next(m for n, m in model.named_modules() if n.endswith("embed"))
            embed.register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(_kept(y)))
        torch.manual_seed(7)
        with minilora.textbook():
            model(x).sin().sum().backward()
        found.append(bits(seen[0].grad))
    assert found[0] is not None
    assert found[0] == found[1]


def _kept(y: torch.Tensor) -> torch.Tensor:
    if not y.requires_grad:
        y.requires_grad_(True)
    y.retain_grad()
    return y


@every
def test_merge(case):
    ours, other = pair(case)
    x = inputs(case)
    before = {n: bits(p) for n, p in ours.named_parameters()}
    minilora.merge(ours)
    merged = other.merge_and_unload()
    for name, parameter in merged.named_parameters():
        mine = _weight(ours, name)
        if case in OTHER_ORDER:
            assert close(mine, parameter, 1e-6), name
        else:
            assert bits(mine) == bits(parameter), name
    assert close(ours.eval()(x), merged.eval()(x), 1e-6)
    minilora.unmerge(ours)
    assert {n: bits(p) for n, p in ours.named_parameters()} == before
    minilora.remove_lora(ours, keep_update=True)
    kept = dict(ours.named_parameters())
    assert kept.keys() == dict(merged.named_parameters()).keys()
    for name, parameter in merged.named_parameters():
        assert close(kept[name], parameter, 1e-6), name


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


@every
def test_peft_reads_ours(case, tmp_path):
    ours, _ = pair(case)
    minilora.save(ours, tmp_path)
    other = peft.PeftModel.from_pretrained(fresh(case), str(tmp_path)).eval()
    x = inputs(case)
    with minilora.textbook():
        assert bits(ours.eval()(x)) == bits(other(x))


@every
@pytest.mark.parametrize("start", ["plain", "adapted"])
def test_we_read_pefts(case, start, tmp_path):
    _, other = pair(case)
    other.save_pretrained(tmp_path)
    model = fresh(case)
    if start == "adapted":
        targets = ["head"] if CASES[case][0] is not Toy else ["up_proj", "embed"]
        shake(add_lora(model, LoRAConfig(targets=targets, r=5, bias="all")))
    model = minilora.load(model, tmp_path).eval()
    x = inputs(case)
    with minilora.textbook():
        assert bits(model(x)) == bits(other.eval()(x))


@every
def test_saved_keys_and_values(case, tmp_path):
    ours, other = pair(case)
    minilora.save(ours, tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "theirs"))
    # With bias="all" PEFT also writes the originals and a second copy of modules_to_save' biases,
    # and with an adapted embedding the embedding itself.
    b = {
        k: v
        for k, v in b.items()
        if ".original_module." not in k
        and ".modules_to_save." not in k
        and not k.endswith(("embed.base_layer.weight", "head.weight"))
    }
    saved = {k: v for k, v in a.items() if not k.endswith("head.weight")}
    assert {k: bits(v) for k, v in saved.items()} == {k: bits(v) for k, v in b.items()}
    texts = [
        json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("ours", "theirs")
    ]
    told_later = {"auto_mapping", "exclude_modules", "target_modules"}
    if case == "conv1D and embedding":  # PEFT says what it found last
        told_later.add("fan_in_fan_out")
    for key in texts[0].keys() - told_later:
        assert texts[0][key] == texts[1][key], key
    assert all(key in texts[1] for key in texts[0])
    again, x = minilora.load(fresh(case), tmp_path / "ours"), inputs(case)
    assert bits(again.eval()(x)) == bits(ours.eval()(x))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear", "embedding", "both"])
def test_half_precision_bases(half, name):
    ours, other = pair(name, half)
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
    ours, other = pair("both")
    x = ids(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bits(ours(x)) == bits(other(x))


def test_what_peft_only_warns_about_we_refuse(tmp_path):
    _, other = pair("linear")
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
