"""An adapter read off its folder: layers, scales and spectra are those of the model it makes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from core_help import Pictures, Toy, bits, close, rewritten, settings_of, shake, tensors_of, toy
from safetensors.torch import load, save
from torch import Tensor, nn

import minilora
from minilora import AdapterError, LoRAConfig, add_lora
from minilora.folder import CONFIG_FILE, TENSOR_FILE
from minilora.layers import LoRAEmbedding
from minilora.stored import (
    UNREAD,
    StoredAdapter,
    StoredLayer,
    decompose,
    factor_keys,
    layer_number,
    open_adapter,
    plain_key,
    shaped,
    singular_values,
)

pytestmark = pytest.mark.filterwarnings("ignore")


CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "linear": (Toy, {"targets": ["q_proj", "v_proj"], "r": 3, "alpha": 7}),
    "one path": (Toy, {"targets": ["blocks.1.q_proj"], "r": 1, "alpha": 2}),
    "regex": (Toy, {"targets": r"blocks\.\d\.(q|up)_proj", "r": 2, "alpha": 3}),
    "embedding": (Toy, {"targets": ["embed", "up_proj"], "r": 3, "alpha": 5}),
    "convolutions": (
        Pictures,
        {"targets": ["conv1", "conv2", "conv3", "head"], "r": 2, "alpha": 3},
    ),
    "dora": (Toy, {"targets": ["q_proj", "embed"], "r": 2, "alpha": 3, "use_dora": True}),
    "dora conv": (Pictures, {"targets": ["conv1"], "r": 2, "use_dora": True}),
    "rslora": (Toy, {"targets": ["q_proj"], "r": 3, "alpha": 5, "scaling": "rslora"}),
    "patterns": (
        Toy,
        {
            "targets": ["q_proj", "v_proj", "embed"],
            "r": 4,
            "alpha": 6,
            "rank_pattern": {r"blocks\.\d\.v_proj": 1, "embed": 5},
            "alpha_pattern": {"0.q_proj": 3, "embed": 7},
        },
    ),
    "patterns, rslora": (
        Toy,
        {
            "targets": ["q_proj", "up_proj"],
            "r": 2,
            "scaling": "rslora",
            "rank_pattern": {"up_proj": 5},
        },
    ),
    "rank above the width": (Toy, {"targets": ["q_proj"], "r": 12, "alpha": 5}),
    "a head": (Toy, {"targets": ["q_proj"], "r": 2, "modules_to_save": ["head", "norm"]}),
    "biases": (Toy, {"targets": ["q_proj"], "r": 2, "bias": "lora_only"}),
    "all biases": (Toy, {"targets": ["v_proj", "q_proj"], "r": 2, "bias": "all"}),
}


def written(case: str, writer: str, folder: Path) -> nn.Module:
    """The adapted model of a case, which one of the two programs has written to ``folder``."""
    kind, config = CASES[case]
    torch.manual_seed(0)
    ours = shake(add_lora(kind(), LoRAConfig(**config)))
    minilora.save(ours, folder)
    if writer == "peft":
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        peft.PeftModel.from_pretrained(kind(), str(folder), is_trainable=True).save_pretrained(
            folder.parent / "theirs"
        )
        rewritten(folder, tensors=tensors_of(folder.parent / "theirs"))
        (folder / CONFIG_FILE).write_bytes((folder.parent / "theirs" / CONFIG_FILE).read_bytes())
    return ours


def product(found: StoredAdapter, path: str) -> Tensor:
    A, B = next(found.factors(path))
    return found.layers[path].scale * B @ A


@pytest.mark.parametrize("writer", ["ours", "peft"])
@pytest.mark.parametrize("case", CASES)
def test_each_layer_is_that_of_the_model(tmp_path, case, writer):
    model = written(case, writer, tmp_path / "adapter")
    found = open_adapter(tmp_path / "adapter")
    assert found.faults == ()
    assert found.settings == settings_of(tmp_path / "adapter")
    layers = minilora.lora_layers(model)
    assert found.layers.keys() == layers.keys()
    for path, layer in layers.items():
        seen = found.layers[path]
        embedding, conv = isinstance(layer, LoRAEmbedding), layer.weight.ndim > 2
        assert seen.kind == ("embedding" if embedding else "conv" if conv else "linear")
        assert (seen.r, seen.experts, seen.path) == (layer.r, 1, path)
        assert seen.scale == pytest.approx(layer.scale, rel=1e-12)
        delta = layer.scale * layer.B.flatten(1) @ layer.A.flatten(1)
        if layer.dora is None:  # whose delta also holds what the lengths do
            assert close(delta, layer.delta().T if embedding else layer.delta().flatten(1), 1e-6)
        assert seen.shape == delta.shape
        assert close(product(found, path), delta, 1e-6)
        assert ("magnitude" in seen.keys) == (layer.dora is not None)
        if layer.dora is not None:
            length = found.tensors[seen.keys["magnitude"]]
            assert bits(length.flatten()) == bits(layer.dora.magnitude.flatten())
        A, B = next(found.factors(path))
        for ours, theirs in zip(shaped(seen, A, B, layer.A), layer.factors(), strict=True):
            assert bits(ours) == bits(theirs)
    assert found.require_sound("resize").r == LoRAConfig(**CASES[case][1]).r


@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_named_as_the_model_names_it(tmp_path, case):
    model = written(case, "ours", tmp_path)
    found = open_adapter(tmp_path)
    config = LoRAConfig(**CASES[case][1])
    wanted = {f"{m}.{n}" for m in config.modules_to_save for n in ("weight", "bias")}
    if config.bias != "none":
        layers = minilora.lora_layers(model)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and parameter.requires_grad:
                path = name.removesuffix(".bias").removesuffix(".base")
                wanted.add(f"{path}.base_layer.bias" if path in layers else name)
        assert wanted
    assert set(found.others.values()) == wanted
    keys = {k for layer in found.layers.values() for k in layer.keys.values()} | set(found.others)
    assert keys == set(tensors_of(tmp_path)) == set(found.tensors)  # each once, none forgotten
    assert len(keys) == sum(len(la.keys) for la in found.layers.values()) + len(found.others)


@pytest.mark.parametrize("case", CASES)
def test_keys_are_those_that_peft_writes(tmp_path, case):
    written(case, "peft", tmp_path / "adapter")
    found = open_adapter(tmp_path / "adapter")
    for layer in found.layers.values():
        assert factor_keys(layer) == (layer.keys["A"], layer.keys["B"])
        if "magnitude" in layer.keys:
            assert layer.keys["magnitude"] == plain_key(layer.path, "lora_magnitude_vector")


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(12)])
    minilora.save(shake(add_lora(model, LoRAConfig(r=1, targets=nn.Linear))), tmp_path)
    assert list(open_adapter(tmp_path).layers) == [str(n) for n in range(12)]
    paths = ["layers.3.q", "h.12.attn.4.q", "lm_head", "7", "layer3.q", "x.2"]
    assert [layer_number(path) for path in paths] == [3, 12, None, 7, None, 2]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_float32(tmp_path, half):
    minilora.save(toy(targets=["q_proj"], r=2), tmp_path)
    rewritten(tmp_path, tensors={k: t.to(half) for k, t in tensors_of(tmp_path).items()})
    found = open_adapter(tmp_path)
    A, B = next(found.factors("blocks.0.q_proj"))
    assert A.dtype == B.dtype == torch.float32
    stored = tensors_of(tmp_path)[found.layers["blocks.0.q_proj"].keys["A"]]
    assert bits(A) == bits(stored.float())


# --- experts ------------------------------------------------------------------------------------


class Mixture(nn.Module):
    """Rows (n, 6) → (n, 6): three experts, whose weights are two parameters."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed  # PEFT's: weights are (experts, in, out)
        self.up = nn.Parameter(torch.randn(3, 6, 10))
        self.down = nn.Parameter(torch.randn(3, 10, 6))

    def forward(self, x: Tensor) -> Tensor:
        turn = (lambda w: w) if self.is_transposed else (lambda w: w.mT)
        first, second = (self.up, self.down) if self.is_transposed else (self.down, self.up)
        return torch.stack([torch.tanh(x @ turn(u)) @ turn(d) for u, d in zip(first, second)]).sum(
            0
        )


@pytest.mark.parametrize("transposed", [True, False])
def test_experts_have_one_update_each_as_in_peft(tmp_path, transposed):
    peft = pytest.importorskip("peft")
    if "target_parameters" not in peft.LoraConfig.__dataclass_fields__:
        pytest.skip("this PEFT has no target_parameters")
    model = nn.ModuleDict({"experts": Mixture(transposed)})
    names = ["experts.up", "experts.down"]
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=[], target_parameters=names)
    other = peft.get_peft_model(model, config)
    wanted = {}
    for path, module in other.base_model.model.named_modules():
        if hasattr(module, "parameter_name"):
            nn.init.normal_(module.lora_B["default"].weight)
            wanted[path] = module.get_delta_weight("default")
    other.save_pretrained(tmp_path)
    found = open_adapter(tmp_path)
    assert found.faults == ()
    assert len(wanted) == 2
    assert found.layers.keys() == wanted.keys()
    for path, delta in wanted.items():
        layer = found.layers[path]
        assert (layer.kind, layer.experts, layer.r, layer.scale) == ("experts", 3, 2, 2.5)
        updates = [layer.scale * B @ A for A, B in found.factors(path)]
        assert len(updates) == 3
        assert {u.shape for u in updates} == {torch.Size(layer.shape)}
        for update, own in zip(updates, delta, strict=True):
            assert close(update, own.T if transposed else own, 1e-6)
    with pytest.raises(AdapterError, match=r"adapts the experts of a mixture.*to merge it"):
        found.require_sound("merge")


# --- spectra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.5, -0.5])
@pytest.mark.parametrize(
    ("out", "r", "into"), [(7, 3, 5), (5, 3, 7), (4, 9, 6), (6, 5, 4), (3, 5, 9), (1, 1, 1)]
)
def test_the_spectrum_is_that_of_the_product(out, r, into, scale):
    A, B = torch.randn(r, into), torch.randn(out, r)
    X = scale * B.double() @ A.double()
    wanted = torch.linalg.svdvals(X)[: min(out, r, into)]
    close_to = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(singular_values(A, B, scale), wanted, **close_to)
    split = decompose(A, B, scale)
    torch.testing.assert_close(split.values, wanted, **close_to)
    torch.testing.assert_close(split.U * split.values @ split.Vt, X, **close_to)
    one = torch.eye(len(wanted), dtype=torch.float64)
    torch.testing.assert_close(split.U.T @ split.U, one, **close_to)
    torch.testing.assert_close(split.Vt @ split.Vt.T, one, **close_to)
    U, values, Vt = torch.linalg.svd(X, full_matrices=False)
    for k in range(1, len(wanted) + 1):
        A_k, B_k = split.cut(k)
        assert (A_k.shape, B_k.shape) == ((k, into), (out, k))
        torch.testing.assert_close(B_k @ A_k, (U[:, :k] * values[:k]) @ Vt[:k], **close_to)
        torch.testing.assert_close(A_k.norm(dim=1), B_k.norm(dim=0), **close_to)


def test_equal_and_vanishing_directions():
    A = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    B = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    values = singular_values(A, B)
    assert values[0] == pytest.approx(2 * math.sqrt(14 * 5))
    assert values[1] == pytest.approx(0, abs=1e-12)
    for X, Y in [(A, torch.zeros(4, 2)), (torch.zeros(2, 3), B)]:
        split = decompose(X, Y, 2.0)
        assert singular_values(X, Y, 2.0).tolist() == [0, 0]
        assert split.values.tolist() == [0, 0]
        assert all(torch.isfinite(t).all() for t in (*split.cut(1), split.U, split.Vt))
        assert (split.U * split.values @ split.Vt).abs().max() == 0


# --- what is wrong ------------------------------------------------------------------------------


def faults(folder: Path) -> str:
    found = open_adapter(folder)
    with pytest.raises(AdapterError, match="cannot be used to add") as caught:
        found.require_sound("add")
    assert found.faults[0] in str(caught.value)
    return " | ".join(found.faults)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"targets": ["q_proj", "embed"], "r": 2, "alpha": 3, "modules_to_save": ["head"]}
    minilora.save(toy(**config), tmp_path)
    return rewritten(tmp_path)


def changed(folder: Path, change: Any) -> Path:
    """The folder, with ``change`` called on {key: tensor}."""
    tensors = load((folder / TENSOR_FILE).read_bytes())
    change(tensors)
    (folder / TENSOR_FILE).write_bytes(save({k: t.contiguous() for k, t in tensors.items()}))
    return folder


A_KEY = "base_model.model.blocks.0.q_proj.lora_A.weight"
B_KEY = "base_model.model.blocks.0.q_proj.lora_B.weight"


def test_it_is_sound_before(folder):
    assert open_adapter(folder).faults == ()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (B_KEY, "'blocks.0.q_proj' has a lora_A and no lora_B"),
        (A_KEY, "'blocks.0.q_proj' has a lora_B and no lora_A"),
        (
            "base_model.model.embed.lora_embedding_B",
            "'embed' has a lora_embedding_A and no lora_embedding_B",
        ),
    ],
)
def test_half_a_pair(folder, gone, message):
    assert message in faults(changed(folder, lambda tensors: tensors.pop(gone)))


def test_numbers_that_are_not_floating_point(folder):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[A_KEY] = tensors[A_KEY].to(torch.int8)

    text = faults(changed(folder, change))
    assert "'blocks.0.q_proj': lora_A holds torch.int8, not floating-point numbers" in text


@pytest.mark.parametrize("shape", [(16,), (2, 0), (0, 8)])
def test_shapes_that_are_no_matrix(folder, shape):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[A_KEY] = torch.zeros(shape)

    text = faults(changed(folder, change))
    assert f"'blocks.0.q_proj': lora_A has the shape {shape}" in text


def test_factors_exchanged_or_transposed(folder):
    def transpose(tensors: dict[str, Tensor]) -> None:
        tensors[A_KEY], tensors[B_KEY] = tensors[A_KEY].T, tensors[B_KEY].T

    assert "they look exchanged or transposed" in faults(changed(folder, transpose))


def test_factors_that_do_not_fit(folder):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[A_KEY] = torch.zeros(3, 8)

    text = faults(changed(folder, change))
    assert "A has the shape (3, 8) and B (8, 2); A's rows and B's columns must be" in text


@pytest.mark.parametrize(("rank", "file"), [(3, 2), (1, 2)])
def test_a_rank_that_the_config_does_not_say(folder, rank, file):
    """Also where the file's is a multiple, as the factors of experts would be."""
    text = faults(rewritten(folder, r=rank))
    assert f"which is rank {file}, but {CONFIG_FILE} says r = {rank}" in text


def test_a_target_without_factors(folder):
    text = faults(rewritten(folder, target_modules=["q_proj", "embed", "v_proj", "k_proj"]))
    assert "target_modules names 'v_proj', 'k_proj', but the file has no factors for it" in text


def test_factors_without_a_target(folder):
    text = faults(rewritten(folder, target_modules=["embed"]))
    assert "the file has factors for 'blocks.0.q_proj' and 1 more, which target_modules" in text
    text = faults(rewritten(folder, target_modules=["q_proj"]))
    assert "the file has factors for 'embed', which target_modules does not name" in text


def test_a_head_that_is_not_there(folder):
    text = faults(rewritten(folder, modules_to_save=["head", "ead"]))
    assert text == "modules_to_save names 'ead', but the file has no tensor of it"


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"r": ...}, "lacks 'r'"), ({"lora_alpha": -1}, "alpha"), ({"use_magic": 1}, "use_magic")],
)
def test_settings_that_cannot_be_read(folder, setting, words):
    assert words in faults(rewritten(folder, **setting))
    found = open_adapter(folder)
    assert found.config is None
    assert math.isnan(found.layers["embed"].scale)
    assert found.layers["embed"].r == 2  # the tensors say it


@pytest.mark.parametrize("name", UNREAD)
def test_settings_that_only_the_model_can_carry_out(folder, name):
    found = open_adapter(rewritten(folder, **{name: [1]}))
    with pytest.raises(AdapterError, match=f"sets '{name}', which this program does not read"):
        found.require_sound("merge")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_from_another_base(folder, init):
    """What such factors add is measured from a base that was changed: they are no update."""
    found = open_adapter(rewritten(folder, init_lora_weights=init))
    assert found.faults == ()  # with PEFT it works
    with pytest.raises(AdapterError, match=f"init_lora_weights is '{init}'"):
        found.require_sound("resize")


def test_other_starts_leave_the_base_alone(folder):
    for init in ("gaussian", "eva", "orthogonal", False):
        open_adapter(rewritten(folder, init_lora_weights=init)).require_sound("resize")


def test_another_kind_of_adapter(folder):
    with pytest.raises(AdapterError, match="adapter of the kind LOHA, not LoRA"):
        open_adapter(rewritten(folder, peft_type="LOHA"))


def test_no_factors_and_no_folder(folder, tmp_path):
    with pytest.raises(AdapterError, match="is not a folder"):
        open_adapter(tmp_path / "none")
    rewritten(folder, tensors={"weight": torch.zeros(2)})
    with pytest.raises(AdapterError, match="holds no LoRA factors"):
        open_adapter(folder)


def test_names_from_wrappers_and_of_raw_state_dicts(folder):
    plain = open_adapter(folder)
    rewritten(folder, lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."))
    assert open_adapter(folder).layers.keys() == plain.layers.keys()
    rewritten(folder, lambda key: key.replace(".weight", ".default.weight"))
    found = open_adapter(folder)
    assert found.layers.keys() == plain.layers.keys()
    assert (
        found.layers["blocks.0.q_proj"]
        .keys["A"]
        .endswith("_orig_mod.blocks.0.q_proj.lora_A.default.weight")
    )


def test_a_layer_made_by_hand_has_pefts_shapes():
    layer = StoredLayer("conv", "conv", (4, 12), 2, 1.0, {"A": "a", "B": "b"})
    A, B = shaped(layer, torch.zeros(2, 12), torch.zeros(4, 2), torch.zeros(5, 3, 2, 2))
    assert (A.shape, B.shape) == ((2, 3, 2, 2), (4, 2, 1, 1))
    assert json.loads(json.dumps(factor_keys(layer)))[0] == "base_model.model.conv.lora_A.weight"


def test_two_names_for_a_classifier_s_head(folder):
    """PEFT writes both names that it knows into the list, and a model has one of them."""
    tensors = {k.replace(".head.", ".score."): t for k, t in tensors_of(folder).items()}
    rewritten(folder, tensors=tensors, modules_to_save=["classifier", "score"])
    assert open_adapter(folder).faults == ()
    rewritten(folder, modules_to_save=["score", "head"])
    assert faults(folder) == "modules_to_save names 'head', but the file has no tensor of it"
    tensors = {k: t for k, t in tensors.items() if ".score." not in k}
    rewritten(folder, tensors=tensors, modules_to_save=["classifier", "score"])
    assert "modules_to_save names 'classifier'" in faults(folder)
