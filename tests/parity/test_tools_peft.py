"""What resize, add, extract and convert write is whole for PEFT, and computes the dense update."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from core_help import Pictures, Toy, close, ids, tensors_of
from safetensors.torch import save_file
from torch import Tensor, nn

from minilora.checkpoints import extract
from minilora.foreign import convert
from minilora.surgery import add, resize

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")


CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "linear": (Toy, {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 7}),
    "embedding": (Toy, {"target_modules": ["embed", "v_proj"], "r": 4, "lora_alpha": 3}),
    "convolutions": (
        Pictures,
        {"target_modules": ["conv1", "conv2", "conv3", "head"], "r": 4, "lora_alpha": 6},
    ),
    "patterns": (
        Toy,
        {
            "target_modules": ["q_proj", "up_proj", "embed"],
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {"0.q_proj": 2, "up_proj": 6},
            "alpha_pattern": {"1.q_proj": 9, "embed": 2},
        },
    ),
    "rslora": (Toy, {"target_modules": r".*\.(q|up)_proj", "r": 3, "use_rslora": True}),
    "biases and a head": (
        Toy,
        {"target_modules": ["q_proj"], "r": 4, "bias": "lora_only", "modules_to_save": ["head"]},
    ),
}
every = pytest.mark.parametrize("case", CASES)
SUMMED = ["linear", "embedding", "convolutions", "patterns", "rslora"]  # factors alone


def base(case: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[case][0]().eval()


def inputs(case: str) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(3, 3, 8, 8) if CASES[case][0] is Pictures else ids(3, 4)


def written(case: str, place: Path, seed: int = 1) -> nn.Module:
    """PEFT's model with an adapter that it has written to ``place``."""
    other = peft.get_peft_model(base(case), peft.LoraConfig(**CASES[case][1])).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)
    other.save_pretrained(place)
    return other.base_model.model


def updates(adapted: nn.Module) -> dict[str, Tensor]:
    """{path: ΔW} as PEFT has it, in the weight's shape."""
    found = {}
    for path, module in adapted.named_modules():
        if hasattr(module, "get_delta_weight"):
            found[path] = module.get_delta_weight("default").detach()
    return found


def cut(X: Tensor, rank: int) -> Tensor:
    U, values, Vt = torch.linalg.svd(X.flatten(1), full_matrices=False)
    return ((U[:, :rank] * values[:rank]) @ Vt[:rank]).reshape(X.shape)


@torch.no_grad()
def dense(case: str, changes: Mapping[str, Tensor]) -> Tensor:
    """What the base computes with these updates added to its weights."""
    model = base(case)
    for path, X in changes.items():
        model.get_submodule(path).weight.add_(X)
    return model(inputs(case))


@torch.no_grad()
def computed(case: str, place: Path) -> Tensor:
    """What PEFT computes with the folder, which it reads without a word of keys."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base(case), str(place)).eval()
        status = model.load_adapter(str(place), "default")
    said = [str(w.message) for w in heard]
    assert not [text for text in said if "missing" in text or "unexpected" in text], said
    assert not status.unexpected_keys
    assert not [key for key in status.missing_keys if ".default" in key]
    return model(inputs(case))


def moves(case: str, y: Tensor) -> bool:
    with torch.no_grad():
        return not close(y, base(case)(inputs(case)), 1e-2)


def test_a_missing_or_unexpected_key_would_be_heard(tmp_path):
    """Or the other tests would hear nothing."""
    written("linear", tmp_path)
    tensors = tensors_of(tmp_path)
    key = next(iter(tensors))
    save_file(
        {k: t for k, t in tensors.items() if k != key}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(AssertionError, match="missing"):
        computed("linear", tmp_path)
    save_file(tensors | {key + "s": tensors[key].clone()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AssertionError):
        computed("linear", tmp_path)


@pytest.mark.parametrize("size", [{"rank": 1}, {"rank": 2}, {"rank": 9}, {"energy": 0.9}], ids=str)
@pytest.mark.parametrize("case", SUMMED)
def test_resize(tmp_path, case, size):
    full = updates(written(case, tmp_path / "a"))
    done = resize(tmp_path / "a", tmp_path / "b", **size)
    smaller = {change.path: cut(full[change.path], change.after) for change in done.layers}
    assert smaller.keys() == full.keys()
    y = computed(case, tmp_path / "b")
    assert close(y, dense(case, smaller), 1e-5)
    assert moves(case, y)


def test_resize_beside_biases_and_a_head(tmp_path):
    case = "biases and a head"
    other = written(case, tmp_path / "a")
    resize(tmp_path / "a", tmp_path / "b", 2)
    wanted = copy.deepcopy(other)
    with torch.no_grad():
        for path, X in updates(other).items():  # the same model, with the smaller update
            module = wanted.get_submodule(path)
            module.base_layer.weight.add_(cut(X, 2) - X)
        assert close(computed(case, tmp_path / "b"), wanted(inputs(case)), 1e-5)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("case", SUMMED)
def test_add(tmp_path, case, rank):
    total: dict[str, Tensor] = {}
    parts = {tmp_path / "a": 0.7, tmp_path / "b": -0.4}
    for seed, (place, weight) in enumerate(parts.items()):
        for path, X in updates(written(case, place, seed)).items():
            total[path] = total.get(path, torch.zeros_like(X)) + weight * X
    done = add(parts, tmp_path / "sum", rank)
    assert {change.path for change in done.layers} == total.keys()
    total = {path: X if rank is None else cut(X, rank) for path, X in total.items()}
    y = computed(case, tmp_path / "sum")
    assert close(y, dense(case, total), 1e-5)
    assert moves(case, y)


@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize("case", ["embedding", "convolutions"])
def test_add_with_nothing_dropped(tmp_path, case, method):
    full = updates(written(case, tmp_path / "a"))
    add({tmp_path / "a": 1.0}, tmp_path / "b", 8, method, density=1)
    assert close(computed(case, tmp_path / "b"), dense(case, full), 1e-5)


def test_layers_that_one_of_two_has(tmp_path):
    total: dict[str, Tensor] = {}
    for name in ("linear", "embedding"):
        total |= updates(written(name, tmp_path / name))
    add({tmp_path / "linear": 1.0, tmp_path / "embedding": 1.0}, tmp_path / "sum")
    assert close(computed("linear", tmp_path / "sum"), dense("linear", total), 1e-5)


def model_on_disk(place: Path, case: str, changes: Mapping[str, Tensor]) -> Path:
    place.mkdir()
    state = base(case).state_dict()
    for path, X in changes.items():
        state[f"{path}.weight"] += X
    save_file(state, place / "model.safetensors")
    return place


@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("targets", [None, r"embed|.*_proj"])
def test_extract(tmp_path, rank, targets):
    torch.manual_seed(3)
    names = ["embed", "blocks.0.q_proj", "blocks.1.up_proj", "blocks.1.down_proj"]
    changes = {path: torch.randn_like(base("linear").get_submodule(path).weight) for path in names}
    before = model_on_disk(tmp_path / "base", "linear", {})
    after = model_on_disk(tmp_path / "tuned", "linear", changes)
    done, said = extract(before, after, tmp_path / "out", rank, targets=targets)
    wanted = {path: cut(X, rank) for path, X in changes.items() if targets or path != "embed"}
    assert {change.path for change in done.layers} == wanted.keys()
    assert bool(said) == (targets is None)
    assert close(computed("linear", tmp_path / "out"), dense("linear", wanted), 1e-5)


def test_convert_from_mlx_lm(tmp_path):
    """W + (scale · bᵀ) @ aᵀ; of an embedding, W + scale · a @ b."""
    torch.manual_seed(3)
    tensors, wanted = {}, {}
    for path in ("embed", "blocks.0.q_proj", "blocks.1.up_proj"):
        out, into = base("linear").get_submodule(path).weight.shape
        a, b = torch.randn(into, 2), torch.randn(2, out)
        if path == "embed":
            a, b = torch.randn(out, 2), torch.randn(2, into)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        wanted[path] = 0.3 * a @ b if path == "embed" else (0.3 * b.T) @ a.T
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text('{"lora_parameters": {"scale": 0.3}}')
    convert(tmp_path / "a", tmp_path / "out")
    assert close(computed("linear", tmp_path / "out"), dense("linear", wanted), 1e-5)


@pytest.mark.parametrize("case", ["convolutions", "linear"])
def test_convert_from_kohya(tmp_path, case):
    """alpha / rank · up @ down, with another rank and alpha in each layer."""
    torch.manual_seed(3)
    tensors, wanted = {}, {}
    for n, path in enumerate(updates(written(case, tmp_path / "unused"))):
        shape = base(case).get_submodule(path).weight.shape
        r, alpha = 2 + n % 3, 1.5 + n
        down, up = torch.randn(r, *shape[1:]), torch.randn(shape[0], r, *[1] * (len(shape) - 2))
        name = "lora_unet_" + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        wanted[path] = (alpha / r * up.flatten(1) @ down.flatten(1)).reshape(shape)
    save_file(tensors, tmp_path / "x.safetensors")
    model = model_on_disk(tmp_path / "base", case, {})
    convert(tmp_path / "x.safetensors", tmp_path / "out", base=model)
    assert close(computed(case, tmp_path / "out"), dense(case, wanted), 1e-5)


@every
def test_convert_from_a_state_dict_of_peft(tmp_path, case):
    """As a state_dict has the keys: with the adapter's name in them, and beside a head."""
    other = written(case, tmp_path / "a")
    tensors = tensors_of(tmp_path / "a")
    for key in list(tensors):
        name = key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        name += ".default" * name.endswith(("embedding_A", "embedding_B"))
        name = (
            name.replace(".head.", ".head.modules_to_save.default.") if "lora" not in name else name
        )
        tensors["module." + name] = tensors.pop(key)
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    convert(tmp_path / "a", tmp_path / "out")
    with torch.no_grad():
        assert close(computed(case, tmp_path / "out"), other(inputs(case)), 1e-5)
