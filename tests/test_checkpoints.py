"""Adapters merged into models on disk, and drawn out of two: held to transformers and PEFT."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_help import bits, close, rewritten, settings_of, shake, tensors_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import minilora
from minilora import AdapterError, LoRAConfig, add_lora
from minilora.accounting import merge_losses
from minilora.checkpoints import Merged, extract, merge
from minilora.shards import INDEX_FILE, model_tensors

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")


# --- models -------------------------------------------------------------------------------------


def llama(**changes: Any) -> nn.Module:
    config = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def gpt2(kind: str = "GPT2LMHeadModel") -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=12, num_labels=3
    )
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    return getattr(transformers, kind)(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=23,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=12,
            num_labels=3,
        )
    )


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gpt2": gpt2, "bert": bert}


def build(name: str, change: float = 0.05) -> Any:
    """The same weights at every call, in eval mode, with biases that are not all zero."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * change)
    return model


def tokens() -> Tensor:
    return torch.randint(1, 23, (2, 6), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens()).logits


def loaded(folder: Path, kind: Any) -> Any:
    """The model that the folder holds, which lacks nothing and has nothing too much."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def folder_of(model: Any, place: Path, shard: str = "5GB") -> Path:
    model.save_pretrained(place, max_shard_size=shard)
    return place


def adapter_of(base: Any, place: Path, **config: Any) -> Any:
    """PEFT's model with an adapter that moves everything it trains; written to ``place``."""
    other = peft.get_peft_model(base, peft.LoraConfig(**config)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    other.save_pretrained(place)
    return other


QV = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", QV),
    "llama, all linear": (
        "llama",
        {**QV, "target_modules": "all-linear", "task_type": "CAUSAL_LM"},
    ),
    "llama, embedding and head": (
        "llama",
        {**QV, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    ),
    "llama, rslora and patterns": (
        "llama",
        {
            **QV,
            "use_rslora": True,
            "rank_pattern": {"layers.0.self_attn.q_proj": 1},
            "alpha_pattern": {"v_proj": 2},
        },
    ),
    "llama, dora": ("llama", {**QV, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "llama, dora embedding": (
        "llama",
        {**QV, "target_modules": ["embed_tokens"], "use_dora": True},
    ),
    "llama, trained whole": ("llama", {**QV, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "llama, one layer": ("llama", {**QV, "layers_to_transform": [1]}),
    "gpt2, fused": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2, square": (
        "gpt2",
        {"r": 3, "target_modules": ["attn.c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "gpt2, dora": (
        "gpt2",
        {"r": 2, "target_modules": ["c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "gpt2, positions": ("gpt2", {"r": 3, "target_modules": ["wpe", "c_attn"]}),
    "gpt2, biases": ("gpt2", {"r": 2, "target_modules": ["c_attn"], "bias": "all"}),
    "bert": ("bert", {"r": 3, "target_modules": ["query", "value"]}),
    "bert, head": (
        "bert",
        {"r": 3, "target_modules": ["query", "dense"], "modules_to_save": ["classifier"]},
    ),
    "bert, embeddings": ("bert", {"r": 3, "target_modules": r".*_embeddings"}),
    "bert, biases": ("bert", {"r": 3, "target_modules": ["query"], "bias": "lora_only"}),
    "bert, all biases and head": (
        "bert",
        {
            "r": 3,
            "target_modules": ["query"],
            "bias": "all",
            "modules_to_save": ["classifier"],
            "task_type": "SEQ_CLS",
        },
    ),
}


# --- merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_that_of_peft(tmp_path, case):
    name, config = CASES[case]
    base = build(name)
    kind = type(base)
    folder_of(base, tmp_path / "base", "8KB" if name == "llama" else "5GB")
    other = adapter_of(base, tmp_path / "adapter", **config)
    wanted = logits(other)
    done = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    found = loaded(tmp_path / "out", kind)
    merged = other.merge_and_unload()
    theirs = merged.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for key, tensor in found.state_dict().items():
        assert close(tensor, theirs[key], 1e-5), key
    assert close(logits(found), wanted, 1e-5)
    assert not close(wanted, logits(build(name)), 1e-3)
    assert len(done.layers) == len({k.rpartition(".lora_")[0] for k in _factors(tmp_path)})
    assert done.dtype == "float32"
    assert done.bytes == model_tensors(tmp_path / "out").bytes
    assert all(layer.lost < 1e-4 for layer in done.layers)
    assert sorted(model_tensors(tmp_path / "out")) == sorted(model_tensors(tmp_path / "base"))


def _factors(tmp_path: Path) -> list[str]:
    return [key for key in tensors_of(tmp_path / "adapter") if ".lora_" in key]


@pytest.mark.parametrize("said", [True, False])
def test_a_square_conv1d_is_turned_though_nothing_says_so(tmp_path, said):
    base = build("gpt2")
    folder_of(base, tmp_path / "base")
    other = adapter_of(base, tmp_path / "adapter", r=3, target_modules=["attn.c_proj"])
    wanted = logits(other)
    rewritten(tmp_path / "adapter", fan_in_fan_out=said)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert close(logits(loaded(tmp_path / "out", type(base))), wanted)


def test_a_model_of_ones_own_with_conv1d_is_turned_as_the_adapter_says(tmp_path):
    """Its config names no model of transformers; the adapter's does say how the weights lie."""
    folder_of(build("gpt2"), tmp_path / "base")
    (tmp_path / "base" / "config.json").unlink()
    other = adapter_of(build("gpt2"), tmp_path / "adapter", r=3, target_modules=["attn.c_proj"])
    rewritten(tmp_path / "adapter", fan_in_fan_out=True)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    found, theirs = model_tensors(tmp_path / "out"), other.merge_and_unload().state_dict()
    assert all(close(found[key], theirs[key]) for key in found)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("bare", ["adapter", "base"])
def test_names_that_begin_otherwise(tmp_path, name, bare):
    """AutoModel's names are those of the model with a head, without what they begin with."""
    model = build(name)
    inner = model.base_model
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "attn.c_proj"]}[name]
    kind = type(inner if bare == "base" else model)
    folder_of(inner if bare == "base" else model, tmp_path / "base")
    wrapped = inner if bare == "adapter" else model
    config = {"r": 3, "target_modules": targets, "bias": "none" if name == "llama" else "all"}
    other = adapter_of(wrapped, tmp_path / "adapter", **config)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    found = loaded(tmp_path / "out", kind)
    other.merge_and_unload()
    theirs = inner.state_dict()
    own = found.base_model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(close(own[key], theirs[key], 1e-5) for key in own)


def test_shards_are_written_and_read(tmp_path):
    base = build("llama")
    folder_of(base, tmp_path / "base", "8KB")
    assert (tmp_path / "base" / INDEX_FILE).is_file()
    wanted = logits(adapter_of(base, tmp_path / "adapter", **QV))
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", shard=4000)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for name in files:
        tensors = load_file(tmp_path / "out" / name)
        size = sum(t.nbytes for t in tensors.values())
        assert size <= 4000 or len(tensors) == 1
        assert all(index["weight_map"][key] == name for key in tensors)
        total += size
    assert index["metadata"]["total_size"] == total
    assert close(logits(loaded(tmp_path / "out", type(base))), wanted)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "whole")
    assert [p.name for p in (tmp_path / "whole").glob("model*")] == ["model.safetensors"]
    assert close(logits(loaded(tmp_path / "whole", type(base))), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_type_is_written_and_said(tmp_path, dtype):
    base = build("llama")
    folder_of(base, tmp_path / "base", "8KB")
    other = adapter_of(base, tmp_path / "adapter", **QV)
    done = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype)
    name = str(dtype).removeprefix("torch.")
    assert done.dtype == name
    own, settings = (
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("base", "out")
    )
    assert settings == {**own, "dtype": name}
    theirs = other.merge_and_unload().to(dtype).state_dict()
    found = model_tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    # The sum is rounded once; PEFT's differs from ours in float32's last bits.
    assert all(
        close(t.float(), theirs[k].float(), torch.finfo(dtype).eps) for k, t in found.items()
    )
    assert loaded(tmp_path / "out", type(base)).dtype == dtype


@pytest.mark.parametrize("old", ["torch_dtype", None])
def test_the_type_in_the_words_of_an_older_config(tmp_path, old):
    base = build("llama")
    folder_of(base, tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    del settings["dtype"]
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(settings | ({old: "float32"} if old else {}))
    )
    adapter_of(base, tmp_path / "adapter", **QV)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", torch.float16)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == settings | {"torch_dtype": "float16"}


def test_numbers_that_are_no_floating_point_keep_their_type(tmp_path):
    weights = {"a.weight": torch.randn(4, 3), "b.ids": torch.arange(5), "b.on": torch.ones(2) > 0}
    plain_base(tmp_path, weights)
    plain_adapter(tmp_path)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", torch.bfloat16)
    found = model_tensors(tmp_path / "out")
    assert found["a.weight"].dtype == torch.bfloat16
    assert bits(found["b.ids"]) == bits(weights["b.ids"])
    assert bits(found["b.on"]) == bits(weights["b.on"])


def plain_base(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")


def plain_adapter(tmp_path: Path, **layers: tuple[int, int]) -> None:
    """An adapter of rank 2 of linear layers {name: (out, in)}, at first one of (4, 3)."""
    model = nn.ModuleDict({n: nn.Linear(*s[::-1]) for n, s in (layers or {"a": (4, 3)}).items()})
    shake(add_lora(model, LoRAConfig(r=2, targets=nn.Linear)))
    minilora.save(model, tmp_path / "adapter")


def test_other_files_are_copied(tmp_path):
    base = build("llama")
    folder = folder_of(base, tmp_path / "base", "8KB")
    for name in ("tokenizer.json", "merges.txt", "LICENSE"):
        (folder / name).write_text(name)
    for name in (".secret", "pytorch_model.bin", "x.index.json", "model.gguf"):
        (folder / name).write_text(name)
    (folder / "folder").mkdir()
    adapter_of(base, tmp_path / "adapter", **QV)
    merge(folder, tmp_path / "adapter", tmp_path / "out")
    there = set(os.listdir(tmp_path / "out"))
    wanted = {"tokenizer.json", "merges.txt", "LICENSE", "config.json", "generation_config.json"}
    assert there == wanted | {"model.safetensors"}
    for name in wanted:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_a_single_file_is_a_base(tmp_path):
    weights = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4)}
    plain_base(tmp_path, weights)
    plain_adapter(tmp_path)
    (tmp_path / "base" / "notes.txt").write_text("1")
    merge(tmp_path / "base" / "model.safetensors", tmp_path / "adapter", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    tensors = tensors_of(tmp_path / "adapter")
    A, B = (tensors[f"base_model.model.a.lora_{n}.weight"] for n in "AB")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert close(found["a.weight"], weights["a.weight"] + 4 * B @ A)  # alpha = 8, r = 2
    assert bits(found["a.bias"]) == bits(weights["a.bias"])


def test_large_weights_pass_in_blocks_of_rows(tmp_path, monkeypatch):
    plain_base(tmp_path, {"a.weight": torch.randn(40, 30), "b.weight": torch.randn(30, 40)})
    plain_adapter(tmp_path, a=(40, 30), b=(30, 40))
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "whole", torch.bfloat16)
    monkeypatch.setattr("minilora.shards.BLOCK", 100)
    done = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "blocks", torch.bfloat16)
    one, other = model_tensors(tmp_path / "whole"), model_tensors(tmp_path / "blocks")
    assert all(bits(one[name]) == bits(other[name]) for name in one)
    assert len(done.layers) == 2


def test_how_much_arrives_in_bfloat16(tmp_path):
    """The numbers that merge_losses gives for the model itself."""
    base = build("llama").to(torch.bfloat16)
    folder_of(base, tmp_path / "base")
    config = LoRAConfig(r=2, alpha=2, targets=["q_proj", "down_proj", "embed_tokens"])
    model = shake(add_lora(base, config), 0.02)
    with torch.no_grad():  # from updates that arrive to updates that do not
        for n, layer in enumerate(minilora.lora_layers(model).values()):
            layer.B.mul_(0.2**n)
    minilora.save(model, tmp_path / "adapter")
    wanted = merge_losses(model)
    done = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    layers = minilora.lora_layers(model)
    assert {layer.path for layer in done.layers} == wanted.keys()
    for layer in done.layers:
        assert layer.lost == pytest.approx(wanted[layer.path], rel=1e-3)
        own = layers[layer.path]
        share = own.delta().float().norm() / own.weight.float().norm()
        assert layer.relative == pytest.approx(float(share), rel=1e-3)
    lost = sorted(layer.lost for layer in done.layers)
    assert lost[0] < 0.5 < lost[-1]
    assert "more than half" in str(done)
    assert done.dtype == "bfloat16"
    minilora.merge(model)
    found = model_tensors(tmp_path / "out")
    for path in layers:
        one, other = layers[path].base.weight, found[f"{path}.weight"]
        assert close(other.float(), one.float(), 2**-8)


def test_rounding_the_base_is_no_loss_of_the_update(tmp_path):
    """W₀ in float32 and all written in bfloat16: what W₀ alone would lose is not counted."""
    W = torch.randn(40, 30)
    plain_base(tmp_path, {"a.weight": W})
    plain_adapter(tmp_path, a=(40, 30))
    stored = tensors_of(tmp_path / "adapter")
    A, B = (stored[f"base_model.model.a.lora_{n}.weight"] for n in "AB")
    for factor in (1.0, 0.01, 0.0):
        tensors = {k: t * (factor if "lora_B" in k else 1) for k, t in stored.items()}
        rewritten(tmp_path / "adapter", tensors=tensors)
        done = merge(
            tmp_path / "base", tmp_path / "adapter", tmp_path / f"{factor}", torch.bfloat16
        )
        X = (4 * factor * B @ A).double()
        rounded = [(t.bfloat16().double() - t.double()).square().sum() for t in (W + X.float(), W)]
        wanted = float((rounded[0] - rounded[1]).clamp(min=0).sqrt() / X.norm()) if factor else 0.0
        assert done.layers[0].lost == pytest.approx(wanted, rel=0.05, abs=1e-3)
        assert "more than half" not in str(done)
    assert isinstance(done, Merged)


# --- merging: what is refused -------------------------------------------------------------------


def refused(tmp_path: Path, *words: str, **given: Any) -> None:
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterError) as caught:
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", **given)
    for word in words:
        assert word in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == there  # nothing is left behind


def without(tmp_path: Path, name: str) -> None:
    path = tmp_path / "base" / "config.json"
    settings = json.loads(path.read_text())
    del settings[name]
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("said", [True, False])
def test_a_tied_embedding(tmp_path, said):
    """Configs that older versions wrote do not hold what is usual, and to tie is."""
    base = build("gpt2")
    folder_of(base, tmp_path / "base")
    adapter_of(base, tmp_path / "adapter", r=2, target_modules=["wte", "c_attn"])
    if not said:
        without(tmp_path, "tie_word_embeddings")
    refused(tmp_path, "'transformer.wte' is adapted", "ties")


def test_a_tied_embedding_trained_whole(tmp_path):
    base = llama(tie_word_embeddings=True)
    folder_of(base, tmp_path / "base")
    adapter_of(base, tmp_path / "adapter", **QV, modules_to_save=["embed_tokens"])
    refused(tmp_path, "'embed_tokens' is adapted", "ties")


def test_a_tied_head_that_the_file_does_not_hold(tmp_path):
    base = llama(tie_word_embeddings=True)
    folder_of(base, tmp_path / "base")
    adapter_of(base, tmp_path / "adapter", r=2, target_modules=["lm_head"])
    refused(tmp_path, "has no weight for 'lm_head'", "it is tied to the embeddings")
    adapter_of(llama(), tmp_path / "adapter", **QV, modules_to_save=["lm_head"])
    refused(tmp_path, "'lm_head' is adapted", "ties")


def test_a_model_without_an_output_layer_ties_nothing(tmp_path):
    inner = build("gpt2").base_model
    folder_of(inner, tmp_path / "base")
    other = adapter_of(inner, tmp_path / "adapter", r=2, target_modules=["wte"])
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    theirs = other.merge_and_unload().state_dict()
    found = loaded(tmp_path / "out", type(inner)).state_dict()
    assert all(close(found[key], theirs[key]) for key in theirs)


def test_a_quantized_weight(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(6, 1, dtype=torch.uint8)})
    refused(tmp_path, "'a.weight' of the base holds torch.uint8: it is quantized")


def test_a_weight_in_eight_bits(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3).to(torch.float8_e4m3fn)})
    refused(tmp_path, "it is quantized")


def test_another_model(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"b.weight": torch.zeros(4, 3)})
    refused(tmp_path, "has no weight for 'a'", "such as 'b.weight'")


@pytest.mark.parametrize("shape", [(4, 4), (8, 6), (12,)])
def test_a_base_of_another_size(tmp_path, shape):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(shape)})
    refused(tmp_path, "the update of 'a' has the shape (4, 3)", str(shape))


def test_an_embedding_or_convolution_of_another_size(tmp_path):
    for number, shape in enumerate([(3, 4), (5, 3)]):
        place = tmp_path / str(number)
        model = nn.ModuleDict({"a": nn.Embedding(4, 3)})
        minilora.save(shake(add_lora(model, LoRAConfig(r=2, targets=["a"]))), place / "adapter")
        plain_base(place, {"a.weight": torch.zeros(shape)})
        refused(place, "the update of 'a'", str(shape))
    model = nn.ModuleDict({"a": nn.Conv1d(2, 4, 3)})
    minilora.save(shake(add_lora(model, LoRAConfig(r=2, targets=["a"]))), tmp_path / "adapter")
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3, 3)})
    refused(tmp_path, "the update of 'a'", "(4, 3, 3)")


def test_a_head_that_the_base_has_not(tmp_path):
    folder_of(build("llama").base_model, tmp_path / "base")
    adapter_of(build("llama"), tmp_path / "adapter", **QV, modules_to_save=["lm_head"])
    refused(tmp_path, "the adapter holds 'lm_head.weight', trained whole", "no such weight")


def test_a_vocabulary_that_was_resized(tmp_path):
    folder_of(build("llama"), tmp_path / "base")
    base = llama(vocab_size=25)
    adapter_of(base, tmp_path / "adapter", **QV, modules_to_save=["lm_head"])
    refused(tmp_path, "'lm_head.weight' has the shape (25, 16)", "(23, 16)", "vocabulary resized")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"init_lora_weights": "pissa"}, "training began from a base that was changed"),
        ({"init_lora_weights": "olora"}, "training began from a base that was changed"),
        ({"r": 4}, "says r = 4"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_an_adapter_that_is_no_plain_update(tmp_path, setting, words):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3)})
    rewritten(tmp_path / "adapter", **setting)
    refused(tmp_path, words)


def test_numbers_that_are_not_finite(tmp_path):
    """They are found while the folder is written, which then goes."""
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3)})
    rewritten(
        tmp_path / "adapter",
        tensors={k: t / 0 for k, t in tensors_of(tmp_path / "adapter").items()},
    )
    refused(tmp_path, "'a' of the adapter holds NaN or infinity")


def test_a_sum_beyond_the_type(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.full((4, 3), 7e4)})
    refused(tmp_path, "merging 'a' would give NaN or infinity", "float16", dtype=torch.float16)


def test_a_weight_beyond_the_type(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3), "b": torch.full((2,), 7e4)})
    refused(tmp_path, "'b' holds numbers too large for torch.float16", dtype=torch.float16)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", torch.bfloat16)


def test_tensors_without_numbers_pass(tmp_path):
    plain_adapter(tmp_path)
    odd = {"b": torch.zeros(0, 3), "c": torch.tensor(2.5), "d": torch.tensor([-torch.inf, 1.0])}
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3)} | odd)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", torch.float16)
    found = model_tensors(tmp_path / "out")
    assert all(bits(found[name]) == bits(tensor.half()) for name, tensor in odd.items())


def test_lengths_for_another_number_of_outputs(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 4)})
    shake(add_lora(model, LoRAConfig(r=2, targets=["a"], use_dora=True)))
    minilora.save(model, tmp_path / "adapter")
    tensors = tensors_of(tmp_path / "adapter")
    rewritten(
        tmp_path / "adapter", tensors={k: t[:3] if "magn" in k else t for k, t in tensors.items()}
    )
    plain_base(tmp_path, {"a.weight": torch.randn(4, 3)})
    refused(tmp_path, "'a' has 3 lengths for 4 outputs")


def test_a_place_that_is_taken(tmp_path):
    plain_adapter(tmp_path)
    plain_base(tmp_path, {"a.weight": torch.zeros(4, 3)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    refused(tmp_path, "out is there already")


# --- extracting ---------------------------------------------------------------------------------


def tuned(name: str, rank: int | None, targets: str, scale: float = 0.1) -> tuple[Any, Any]:
    """(base, the same with updates of a rank, or of full rank, in the modules named so)."""
    base, model = build(name), build(name)
    torch.manual_seed(2)
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in targets.split():
                m, n = module.weight.shape
                k = rank or min(m, n)
                module.weight.add_(scale * torch.randn(m, k) @ torch.randn(k, n))
    return base, model


def change_of(base: Any, model: Any) -> dict[str, Tensor]:
    """{path: ΔW} of matrices that differ, as they lie in the models."""
    theirs = dict(base.named_parameters())
    return {
        name.removesuffix(".weight"): (p - theirs[name]).detach()
        for name, p in model.named_parameters()
        if p.ndim == 2 and bits(p) != bits(theirs[name])
    }


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with the adapter, as PEFT loads it: without a word of missing or other keys."""
    return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def stored_update(folder: Path, path: str) -> Tensor:
    tensors = tensors_of(folder)
    A, B = (tensors[f"base_model.model.{path}.lora_{n}.weight"] for n in "AB")
    return B @ A


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", "q_proj down_proj lm_head"),
        ("gpt2", "c_attn c_proj c_fc"),
        ("bert", "query dense classifier"),
    ],
)
def test_an_update_of_known_rank_comes_back(tmp_path, name, targets):
    base, model = tuned(name, 3, targets)
    folder_of(base, tmp_path / "base", "8KB")
    folder_of(model, tmp_path / "tuned")
    done, said = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 3)
    wanted = change_of(base, model)
    assert {change.path for change in done.layers} == wanted.keys()
    assert said == []
    for path, X in wanted.items():
        update = stored_update(tmp_path / "out", path)
        turned = name == "gpt2"  # whose weights are (in, out), and factors never are
        assert close(update, X.T if turned else X, 1e-5)
    assert all(change.kept > 1 - 1e-6 for change in done.layers)
    assert close(logits(with_adapter(base, tmp_path / "out")), logits(model), 1e-5)
    assert done.bytes_after == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    settings = settings_of(tmp_path / "out")
    assert settings["r"] == settings["lora_alpha"] == 3
    assert settings["fan_in_fan_out"] == (name == "gpt2")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_cut_is_the_best_of_its_rank(tmp_path, name):
    base, model = tuned(name, None, "q_proj down_proj c_attn c_proj")
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    done, _ = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2)
    wanted = change_of(base, model)
    assert len(done.layers) == len(wanted)
    for change in done.layers:
        X = wanted[change.path].T if name == "gpt2" else wanted[change.path]
        U, values, Vt = torch.linalg.svd(X)
        assert close(
            stored_update(tmp_path / "out", change.path), (U[:, :2] * values[:2]) @ Vt[:2], 1e-4
        )
        squares = values.square()
        assert change.kept == pytest.approx(float(squares[:2].sum() / squares.sum()), rel=1e-4)
        assert (change.before, change.after) == (min(X.shape), 2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_at_full_rank_peft_computes_what_the_tuned_model_does(tmp_path, name):
    base, model = tuned(name, None, "v_proj up_proj c_attn c_proj query dense")
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 64)
    assert close(logits(with_adapter(base, tmp_path / "out")), logits(model), 1e-5)
    merge(tmp_path / "base", tmp_path / "out", tmp_path / "again")
    found, wanted = model_tensors(tmp_path / "again"), model_tensors(tmp_path / "tuned")
    assert all(close(found[key], wanted[key], 1e-5) for key in wanted)


def test_what_is_left_out_is_said(tmp_path):
    base, model = tuned("bert", 2, "query")
    with torch.no_grad():
        model.classifier.bias.add_(9.0)
        model.bert.embeddings.word_embeddings.weight.add_(1.0)
        model.bert.encoder.layer[0].output.LayerNorm.weight.add_(0.1)
        model.bert.encoder.layer[1].output.LayerNorm.weight.add_(0.1)
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    done, said = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2)
    assert len(done.layers) == 2
    assert said[0].startswith(
        "4 other tensors changed and are not in the adapter: "
        "bert.embeddings.word_embeddings.weight, classifier.bias, bert.encoder.layer."
    )
    assert said[0].endswith(".output.LayerNorm.weight …")  # the largest three
    assert len(said) == 1


def test_a_head_of_another_size_is_left_out_and_said(tmp_path):
    base, model = tuned("bert", 2, "query")
    model.classifier = nn.Linear(16, 5)
    model.config.num_labels = 5
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    _, said = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2)
    assert said[0].startswith("2 other tensors changed")
    assert "classifier.weight (of another shape)" in said[0]
    assert "classifier.bias (of another shape)" in said[0]


@pytest.mark.parametrize("bare", ["base", "tuned"])
def test_two_models_whose_names_begin_otherwise(tmp_path, bare):
    """And of which one alone has a head: what it lacks is said."""
    base, model = tuned("llama", 2, "q_proj")
    folder_of(base.base_model if bare == "base" else base, tmp_path / "base")
    folder_of(model.base_model if bare == "tuned" else model, tmp_path / "tuned")
    done, said = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2)
    head = "model." if bare == "base" else ""
    assert {c.path for c in done.layers} == {f"{head}layers.{n}.self_attn.q_proj" for n in (0, 1)}
    assert all(change.kept > 1 - 1e-6 for change in done.layers)
    assert said == (
        ["1 other tensors changed and are not in the adapter: lm_head.weight (not in the base)"]
        if bare == "base"
        else []
    )


def test_chosen_targets(tmp_path):
    base, model = tuned("llama", 2, "q_proj v_proj embed_tokens")
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    done, said = extract(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2, targets=r".*layers\.0\.self.*"
    )
    paths = [f"model.layers.0.self_attn.{n}_proj" for n in "qv"]
    assert [change.path for change in done.layers] == paths
    assert "3 other tensors" in said[0]
    assert "model.embed_tokens.weight" in said[0]


@pytest.mark.parametrize(("name", "path"), [("llama", "model.embed_tokens"), ("gpt2", ".*wpe")])
def test_an_embedding_that_is_chosen_is_one(tmp_path, name, path):
    base, model = tuned(name, 2, "embed_tokens wpe")
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2, targets=path)
    assert all("lora_embedding" in key for key in tensors_of(tmp_path / "out"))
    assert close(logits(with_adapter(base, tmp_path / "out")), logits(model), 1e-5)


def test_a_linear_head_on_conv1d_layers(tmp_path):
    """GPT-2's classifier: its layers are (in, out), and its head is not."""
    models = []
    for change in (0.0, 0.1):
        torch.manual_seed(0)
        model = gpt2("GPT2ForSequenceClassification").eval()
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.add_(
                    change * torch.randn_like(p) * (p.ndim == 2 and ("score" in n or "c_a" in n))
                )
        models.append(model)
    base, model = models
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 16)
    assert close(logits(with_adapter(base, tmp_path / "out")), logits(model), 1e-5)
    merge(tmp_path / "base", tmp_path / "out", tmp_path / "again")
    assert close(logits(loaded(tmp_path / "again", type(base))), logits(model), 1e-5)


def test_half_precision_stays_so(tmp_path):
    base, model = (m.to(torch.bfloat16) for m in tuned("llama", 2, "q_proj", 0.5))
    folder_of(base, tmp_path / "base")
    folder_of(model, tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 2)
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {torch.bfloat16}


def extract_refused(tmp_path: Path, error: Any, words: str, rank: int = 2) -> None:
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=words):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank)
    assert sorted(tmp_path.rglob("*")) == there


def plain_pair(tmp_path: Path, **tensors: Tensor) -> None:
    for name, change in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        save_file(
            {k: t + change for k, t in tensors.items()}, tmp_path / name / "model.safetensors"
        )


def test_what_cannot_be_extracted(tmp_path):
    X = torch.randn(4, 3)
    for number, (tensors, words) in enumerate(
        [
            ({"a.bias": torch.randn(4)}, "no matrix differs"),
            ({"a.weight": X / 0}, "'a' holds NaN or infinity"),
            ({"embed_tokens.weight": X}, "no matrix differs"),
        ]
    ):
        (place := tmp_path / str(number)).mkdir()
        plain_pair(place, **tensors)
        extract_refused(place, AdapterError, words)
    plain_pair(tmp_path, **{"a.weight": X})
    extract_refused(tmp_path, ValueError, "rank must be at least 1, but is 0", rank=0)
    (tmp_path / "tuned" / "model.safetensors").unlink()
    save_file({"b.weight": X}, tmp_path / "tuned" / "model.safetensors")
    extract_refused(tmp_path, AdapterError, "no weight for 'b'")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    extract_refused(tmp_path, AdapterError, "holds no safetensors file")


def test_the_same_model_twice(tmp_path):
    folder_of(build("llama"), tmp_path / "base")
    folder_of(build("llama"), tmp_path / "tuned")
    extract_refused(tmp_path, AdapterError, "no matrix differs")


def test_the_cases_cover_what_they_should():
    configs = [config for _, config in CASES.values()]
    seen = set(itertools.chain.from_iterable(configs))
    assert {"use_dora", "use_rslora", "modules_to_save", "bias", "rank_pattern"} <= seen
