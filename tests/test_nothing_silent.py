"""What people reported of LoRA packages, tried here: done right, or refused or warned of by name.

The letters are kinds of fault: A a weight that is read instead of called, B patterns whose order a
file loses, C what ``load`` makes stale, D a base that moved, E what ``state_dict`` does not hold, F
types and places of the base, G valid files refused, H the wrong reason, I names, J processes, K the
rest. Each test names the report that it comes from, or none where it is a case of our own.
"""

import copy
import warnings
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from core_help import rewritten, settings_of, shake, tensors_of
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import minilora
from minilora import AdapterError, LoRAConfig, add_lora, load, lora_parameters, merge, save

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 4
IDS = torch.arange(12).view(2, 6)
BOTH = LoRAConfig(r=2, alpha=4, targets=["fc_in", "fc_out"])
shaken = partial(shake, std=0.1)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(fc_in=nn.Linear(8, 16), act=nn.Tanh(), fc_out=nn.Linear(16, 4))
    )


def llama(layers=2, tied=False):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def train(model, steps=10, lr=1e-2, x=X):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x).float(), Y).backward()
        optimizer.step()


@pytest.fixture
def quiet():
    """No warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def difference(a, b):
    return float((a - b).detach().abs().max())


# ---------------------------------------------------------------- A


class Mixer(nn.Module):
    """Reads a weight instead of calling its layer."""

    def __init__(self):
        super().__init__()
        self.mixing, self.readout = nn.Linear(8, 8), nn.Linear(8, 4)

    def mix(self, x):
        return F.linear(x, self.mixing.weight, self.mixing.bias)

    def forward(self, x):
        return self.readout(torch.tanh(self.mix(x)))


class AsksOnly(Mixer):
    """Calls the layer, and asks its weight for type, place and shape, as T5 does."""

    def mix(self, x):
        weight = self.mixing.weight
        assert isinstance(weight, nn.Parameter) and weight.shape[0] == 8 and weight.dim() == 2
        return self.mixing(x.to(weight.dtype).to(self.mixing.weight.device))


class Transposed(Mixer):
    def mix(self, x):
        return x @ getattr(self.mixing, "weight").T  # noqa: B009


class HandsOver(Mixer):
    def mix(self, x):
        return read_elsewhere(self.mixing, x)


def read_elsewhere(layer, x):
    return torch.einsum("ni,oi->no", x, layer.weight) + layer.bias


class TiedHead(nn.Module):
    """An embedding that is called, and whose weight is the output head as well."""

    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, ids):
        return F.linear(torch.tanh(self.body(self.embed(ids))), self.embed.weight)


@pytest.mark.parametrize("kind", [Mixer, Transposed, HandsOver])
def test_a_weight_that_is_read_is_named(kind, tmp_path):
    """huggingface/transformers#48773"""
    model = shaken(add_lora(kind(), LoRAConfig(r=2, targets=["mixing", "readout"])))
    before = model(X)
    with pytest.warns(UserWarning, match="'mixing' does not act where"):
        save(model, tmp_path)
    for call in (merge, lambda m: minilora.remove_lora(m, keep_update=True)):
        with pytest.raises(ValueError, match=r"'mixing' is read by .*change the output"):
            call(model)
    assert difference(model(X), before) == 0


def test_it_is_named_also_where_it_is_all_that_is_adapted(tmp_path):
    model = add_lora(Mixer(), LoRAConfig(r=2, targets=["mixing"]))
    model(X)
    with pytest.warns(UserWarning, match="'mixing' does not act"):
        save(model, tmp_path)


def test_an_embedding_used_as_the_head(tmp_path):
    model = add_lora(TiedHead(), LoRAConfig(r=2, targets=["embed", "body"]))
    model(IDS % 9)
    with pytest.raises(ValueError, match="'embed' is read by TiedHead.forward"):
        merge(model)


def test_questions_and_reads_outside_a_forward_are_no_alarm(tmp_path, quiet):
    model = shaken(add_lora(AsksOnly(), LoRAConfig(r=2, targets=["mixing", "readout"])))
    before = model(X)
    assert float(model.mixing.weight.norm()) > 0  # somebody looks at it
    assert model.mixing.weight is model.mixing.base.weight
    save(model, tmp_path)
    merge(model)
    assert difference(model(X), before) < 1e-5


def test_load_followed_at_once_by_merge_is_no_alarm(tmp_path, quiet):
    save(shaken(add_lora(Mixer(), LoRAConfig(r=2, targets=["mixing"]))), tmp_path)
    merge(load(Mixer(), tmp_path))


def test_wavlm_and_mamba_are_named():
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    model = add_lora(transformers.MambaForCausalLM(config).eval(), LoRAConfig(r=2))
    model(IDS)
    read = [path for path, layer in minilora.lora_layers(model).items() if layer.bypassed]
    assert read == ["backbone.layers.0.mixer.dt_proj"]
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(2, 2),
        conv_kernel=(3, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.WavLMModel(config).eval()
    add_lora(model, LoRAConfig(r=2, targets=["q_proj", "v_proj"]))
    model(torch.randn(1, 400))
    assert all(layer.bypassed for layer in minilora.lora_layers(model).values())


def test_t5_only_asks(quiet):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
    )
    config.decoder_start_token_id = 0
    model = transformers.T5ForConditionalGeneration(config).eval()
    add_lora(model, LoRAConfig(r=2))
    model(input_ids=IDS, labels=IDS)
    assert not any(layer.bypassed for layer in minilora.lora_layers(model).values())
    merge(model)


class Normed(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight), self.bias)


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def headed(kind):
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Linear(8, 8), vocab_head=kind(8, 4)))


def test_a_forward_that_uses_the_weight_otherwise_is_not_merged():
    """baichuan-inc/Baichuan2#340"""
    model = shaken(add_lora(headed(Normed), LoRAConfig(r=2, targets=["body", "vocab_head"])))
    before = model(X)
    for call in (merge, lambda m: minilora.remove_lora(m, keep_update=True)):
        with pytest.raises(ValueError, match="'vocab_head'.*Normed has a forward of its own"):
            call(model)
    assert difference(model(X), before) == 0


@pytest.mark.parametrize("init", ["pissa", "olora", "milora"])
def test_nor_does_it_begin_with_a_part_of_the_weight(init):
    base = headed(Normed)
    before = base(X)
    with pytest.raises(ValueError, match=f"init='{init}'.*'vocab_head'.*forward of its own"):
        add_lora(base, LoRAConfig(r=2, targets=["vocab_head"], init=init))
    assert difference(base(X), before) == 0 and not minilora.lora_layers(base)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_nor_does_a_file_bring_such_a_start(init, tmp_path):
    """A file with PEFT's differences from the changed weight, as PEFT writes it while training."""
    save(shaken(add_lora(headed(nn.Linear), LoRAConfig(r=2, targets=["vocab_head"]))), tmp_path)
    rewritten(tmp_path, init_lora_weights=init)
    load(headed(nn.Linear), tmp_path)
    base = headed(Normed)
    before = base(X)
    with pytest.raises(AdapterError, match="'vocab_head'.*Normed has a forward of its own"):
        load(base, tmp_path)
    assert difference(base(X), before) == 0 and not minilora.lora_layers(base)


def test_a_subclass_that_computes_the_same_is_harmless(quiet):
    base = headed(Counting)
    model = shaken(add_lora(base, LoRAConfig(r=2, targets=["body", "vocab_head"], init="pissa")))
    before, calls = model(X), model.vocab_head.base.calls
    merge(model)
    assert model.vocab_head.base.calls == calls  # it was tried on a copy
    assert difference(model(X), before) < 1e-5


# ---------------------------------------------------------------- B

PATTERNS = [
    {"model.layers.0.self_attn.q_proj": 16, "layers.*q_proj": 2},
    {"layers.*v_proj": 1, "q_proj": 6, r"layers\.1.*": 3},
    {"z_proj|q_proj": 5, "q_proj": 3, "a|v_proj": 2},
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_the_first_key_counts_after_any_saving(pattern, setting, init, tmp_path):
    """huggingface/peft#2194"""
    peft = pytest.importorskip("peft")
    config = LoRAConfig(r=4, alpha=8, targets=["q_proj", "v_proj"], init=init, **{setting: pattern})
    model = shaken(add_lora(llama(), config))
    out = model(IDS).logits
    again = model
    for number in range(3):
        save(again, tmp_path / str(number))
        again = load(llama(), tmp_path / str(number))
        assert difference(again(IDS).logits, out) < 1e-4
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "2")
    assert difference(theirs(IDS).logits, out) < 1e-4
    # PEFT sorts the keys when it saves.
    theirs.save_pretrained(tmp_path / "theirs")
    assert difference(load(llama(), tmp_path / "theirs")(IDS).logits, out) < 1e-4


def test_a_pattern_whose_order_does_not_matter_stays_as_it_is(tmp_path):
    model = add_lora(llama(), LoRAConfig(targets=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}))
    save(model, tmp_path)
    assert settings_of(tmp_path)["rank_pattern"] == {"v_proj": 2}


# ---------------------------------------------------------------- C


def everything(**more):
    return LoRAConfig(r=2, alpha=4, targets=["fc_in"], modules_to_save=["fc_out"], **more)


@pytest.mark.parametrize(
    "config", [BOTH, everything(bias="all"), everything(use_dora=True), everything(dropout=0.1)]
)
def test_an_optimizer_goes_on_after_load(config, tmp_path, quiet):
    """OpenGVLab/InternVL#615"""
    other = add_lora(net(), config)
    train(other)
    save(other.eval(), tmp_path)
    model = add_lora(net(), config).eval()
    parameters = lora_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    load(model, tmp_path)
    assert difference(model(X), other(X)) < 1e-6
    assert all(a is b for a, b in zip(lora_parameters(model), parameters, strict=True))
    before = [p.detach().clone() for p in parameters]
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    assert all(difference(p, b) > 0 for p, b in zip(parameters, before, strict=True))
    # What it learns is what is saved.
    out = model(X)
    save(model, tmp_path / "again")
    assert difference(load(net().eval(), tmp_path / "again")(X), out) < 1e-6


@pytest.mark.parametrize("other", [{"r": 3}, {"targets": ["fc_in"]}, {"bias": "all"}])
def test_where_it_cannot_go_on_load_warns(other, tmp_path):
    settings = {"r": 2, "alpha": 4, "targets": ["fc_in", "fc_out"]}
    save(add_lora(net(), LoRAConfig(**settings)), tmp_path)
    model = add_lora(net(), LoRAConfig(**(settings | other)))
    with pytest.warns(UserWarning, match="optimizers and wrappers.*make them anew") as said:
        load(model, tmp_path)
    assert said[0].filename == __file__


def test_a_model_without_an_adapter_gets_no_warning(tmp_path, quiet):
    save(add_lora(net(), BOTH), tmp_path)
    load(net(), tmp_path)


# ---------------------------------------------------------------- D


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.running.lerp_(x.detach().mean(0), 0.1)
        return x - self.running


def started(first):
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(tuned_part=first, fc_in=nn.Linear(8, 16), fc_out=nn.Linear(16, 4))
    )


FIRST = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "a buffer": Centred,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
}


@pytest.mark.parametrize("first", FIRST)
def test_buffers_that_moved_are_named(first, tmp_path):
    """huggingface/peft#1732"""
    model = add_lora(started(FIRST[first]()), BOTH).train()
    train(model, x=X + 2)
    with pytest.warns(UserWarning, match="'tuned_part.*modules_to_save"):
        save(model, tmp_path)


@pytest.mark.parametrize("how", ["step", "in place", "through data", "replaced", "one number"])
def test_parameters_that_moved_are_named(how, tmp_path):
    """hiyouga/LlamaFactory#7398"""
    model = add_lora(started(nn.LayerNorm(8)), BOTH)
    norm = model.tuned_part
    with torch.no_grad():
        if how == "step":
            norm.requires_grad_(True)
            with torch.enable_grad():
                train(model, steps=1, lr=1e-4)
        elif how == "in place":
            norm.weight.add_(1e-4)
        elif how == "through data":
            norm.weight.data = norm.weight.data * 1.001
        elif how == "replaced":
            norm.weight = nn.Parameter(torch.full((8,), 0.99))
        else:
            norm.bias.data[3] = 1e-3
    with pytest.warns(UserWarning, match="'tuned_part' changed since"):
        save(model, tmp_path)


def test_the_frozen_weight_of_an_adapted_layer_is_watched_too(tmp_path):
    model = add_lora(net(), BOTH)
    model.fc_in.base.weight.data[0, 0] += 0.01
    with pytest.warns(UserWarning, match="'fc_in' changed since"):
        save(model, tmp_path)


@pytest.mark.parametrize("what", ["train", "half", "double", "merge", "disable", "copy", "reload"])
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_no_alarm_where_only_the_adapter_moved(what, init, tmp_path, quiet):
    config = LoRAConfig(r=2, targets=["fc_in", "fc_out"], bias="all", init=init)
    model = add_lora(net(), config)
    train(model)
    if what == "half":
        model.bfloat16()
    if what == "double":
        model.double().float()
    if what == "merge":
        with minilora.merged(model):
            model(X)
    if what == "disable":
        with minilora.disabled(model):
            model(X)
    if what == "copy":
        model = copy.deepcopy(model)
    if what == "reload":
        model.load_state_dict(copy.deepcopy(model.state_dict()))
    save(model, tmp_path)


def test_the_summary_counts_all_that_trains():
    """hiyouga/LlamaFactory#7398"""
    model = add_lora(llama(), LoRAConfig(r=2, targets=["q_proj"]))
    assert minilora.summary(model).others == 0
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)
    found = minilora.summary(model)
    assert (found.trainable, found.others) == (256 + 5 * 32, 160)
    assert "160 of them are no part of the adapter" in str(found)
    model.requires_grad_(True)
    assert minilora.summary(model).trainable == sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- E


@pytest.mark.parametrize("setting", [{"init": "pissa"}, {"init": "olora"}, {"bias": "all"}])
@pytest.mark.parametrize("assign", [False, True])
def test_originals_of_another_base_are_not_used(setting, assign, tmp_path):
    """huggingface/peft#1929"""
    config = LoRAConfig(r=2, targets=["fc_in", "fc_out"], **setting)
    model = add_lora(net(0), config)
    train(model)
    state = copy.deepcopy(model.state_dict())
    other = add_lora(net(123), config)
    (name,) = setting
    with pytest.warns(UserWarning, match=f"{name}='{setting[name]}' keeps originals aside"):
        other.load_state_dict(state, assign=assign)
    assert difference(other(X), model(X)) == 0
    for call in (
        lambda: save(other, tmp_path),
        lambda: minilora.disabled(other).__enter__(),
        lambda: minilora.remove_lora(other),
    ):
        with pytest.raises(ValueError, match="another base than the one"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", [{"init": "pissa"}, {"bias": "all"}, {}])
def test_onto_the_right_base_all_works(setting, tmp_path, quiet):
    config = LoRAConfig(r=2, targets=["fc_in", "fc_out"], **setting)
    model = add_lora(net(0), config)
    train(model)
    again = add_lora(net(0), config)
    again.load_state_dict(model.state_dict())
    save(again, tmp_path)
    assert difference(load(net(0), tmp_path)(X), model(X)) < 1e-5
    assert difference(minilora.remove_lora(again)(X), net(0)(X)) == 0


def test_without_originals_another_base_is_no_matter(tmp_path, quiet):
    model = add_lora(net(0), BOTH)
    train(model)
    other = add_lora(net(123), BOTH)
    other.load_state_dict(model.state_dict())
    save(other, tmp_path)
    assert difference(load(net(0), tmp_path)(X), model(X)) < 1e-6


def test_adapters_first_and_then_the_pretrained_weights():
    """The recipe of loralib's README."""
    model = add_lora(net(5), everything())
    missing, unexpected = model.load_state_dict(net(0).state_dict(), strict=False)
    assert not unexpected and missing == ["fc_in.A", "fc_in.B"]
    with minilora.disabled(model):
        assert difference(model(X), net(0)(X)) == 0
    assert difference(model(X), net(0)(X)) == 0  # B is zero, and the copy began as the original
    pissa = add_lora(net(5), LoRAConfig(r=2, targets=["fc_in"], init="pissa"))
    with pytest.raises(RuntimeError, match="before add_lora"):
        pissa.load_state_dict(net(0).state_dict(), strict=False)


# ---------------------------------------------------------------- F


def offloaded(model):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def test_an_offloaded_base_is_refused_for_what_it_is(tmp_path):
    """tloen/alpaca-lora#368"""
    save(shaken(add_lora(net(), BOTH)), tmp_path)
    for call in (
        lambda: add_lora(offloaded(net()), BOTH),
        lambda: load(offloaded(net()), tmp_path),
    ):
        with pytest.raises(ValueError, match="'fc_in' is offloaded by accelerate"):
            call()


def test_an_adapter_that_was_offloaded_is_named(tmp_path):
    model = shaken(add_lora(net(), BOTH))
    before = model(X)
    offloaded(model)
    assert difference(model(X), before) < 1e-6
    for call in (lambda: save(model, tmp_path), lambda: merge(model)):
        with pytest.raises(ValueError, match="'fc_in', which accelerate has offloaded"):
            call()
    import accelerate

    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    save(model, tmp_path)
    assert difference(load(net(), tmp_path)(X), before) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", [{"bias": "lora_only"}, {"modules_to_save": ["fc_out"]}])
def test_what_trains_in_half_precision_is_told_of(dtype, setting):
    """huggingface/diffusers#8871"""
    model = net().to(dtype)
    with pytest.warns(UserWarning, match=f"will train in {dtype}") as said:
        add_lora(model, LoRAConfig(r=2, targets=["fc_in"], **setting))
    assert said[0].filename == __file__  # the line that called, not torch's decorator


class Upcast(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def packed(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(packed=Upcast(8, 16), fc_out=nn.Linear(16, 4)))
    model.packed.weight.data = model.packed.weight.data.to(dtype)
    return model


FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_small_floats_have_float32_factors(dtype, use_dora, tmp_path):
    """huggingface/peft#3055"""
    config = LoRAConfig(r=2, targets=["packed", "fc_out"], use_dora=use_dora)
    model = add_lora(packed(dtype), config)
    assert model.packed.A.dtype == torch.float32
    assert difference(model(X), packed(dtype)(X)) < 1e-5
    train(model)
    out = model(X)
    save(model, tmp_path)
    again = load(packed(dtype), tmp_path)
    assert again.packed.A.dtype == torch.float32
    assert difference(again(X), out) < 1e-6


def test_merging_into_float8_says_what_is_lost():
    model = shaken(add_lora(packed(torch.float8_e4m3fn), LoRAConfig(r=2, targets=["packed"])))
    losses = minilora.accounting.merge_losses(model)
    assert 0 < losses["packed"] < 10
    wanted = (model.packed.base.weight.float() + model.packed.delta()).to(torch.float8_e4m3fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge(model)
    assert torch.equal(model.packed.base.weight.float(), wanted.float())


# ---------------------------------------------------------------- G


def peft_folder(folder, model, **config):
    """A folder that PEFT has written, and the output of its model."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, **config))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(folder)
    return theirs.eval()(IDS).logits


PEFT_FILES = {
    "layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3]},
    "one layer": {"target_modules": ["v_proj"], "layers_to_transform": 2},
    "their name": {
        "target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers",
    },
    "a name that is not there": {"target_modules": ["q_proj", "Wqkv"]},
    "excluded names": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["nothing"]},
    "inside what is saved": {
        "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["layers.1.mlp"],
    },
    "a pattern": {"target_modules": ["q_proj"], "rank_pattern": {"nothing": 3}},
}  # fmt: skip


@pytest.mark.parametrize("name", PEFT_FILES)
def test_what_peft_reads_loads(name, tmp_path):
    """huggingface/peft#1024, #3554"""
    peft = pytest.importorskip("peft")
    wanted = peft_folder(tmp_path / "a", llama(4), **PEFT_FILES[name])
    model = load(llama(4), tmp_path / "a")
    assert difference(model(IDS).logits, wanted) < 1e-5
    save(model, tmp_path / "b")
    assert difference(load(llama(4), tmp_path / "b")(IDS).logits, wanted) < 1e-5
    theirs = peft.PeftModel.from_pretrained(llama(4), tmp_path / "b")
    assert difference(theirs(IDS).logits, wanted) < 1e-5


def test_what_contradicts_the_tensors_is_refused(tmp_path):
    config = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3]}
    peft_folder(tmp_path, llama(4), **config)
    tensors = tensors_of(tmp_path)
    half = {k: v for k, v in tensors.items() if "layers.3.self_attn.v_proj" not in k}
    rewritten(tmp_path, tensors=half)
    with pytest.raises(AdapterError, match=r"layers.3.self_attn.v_proj.*no A"):
        load(llama(4), tmp_path)
    rewritten(tmp_path, tensors=tensors)
    with pytest.raises(AdapterError, match=r"layers.3.self_attn.*2 of the file's 4 modules"):
        load(llama(2), tmp_path)


# ---------------------------------------------------------------- H


def mixtral():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.MixtralForCausalLM(config)


def test_a_setting_that_is_not_supported_is_called_by_its_name(tmp_path):
    """huggingface/peft#2545, #1979"""
    experts = {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": ["q_proj"]}
    peft_folder(tmp_path / "a", mixtral(), **experts)
    with pytest.raises(AdapterError, match="'target_parameters'"):
        load(mixtral(), tmp_path / "a")
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "b")
    with pytest.raises(AdapterError, match="'layer_replication'"):
        load(llama(), tmp_path / "b")


def test_another_kind_of_adapter_is_called_by_its_name(tmp_path):
    peft = pytest.importorskip("peft")
    for config in (
        peft.VeraConfig(target_modules=["q_proj"], r=4),
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    ):
        peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
        with pytest.raises(AdapterError, match=config.peft_type.value):
            load(llama(), tmp_path)


def test_a_parameter_is_no_module():
    with pytest.raises(ValueError, match=r"parameter of '.*experts', of shape \(4, 96, 32\)"):
        add_lora(mixtral(), LoRAConfig(targets=["gate_up_proj"]))


def test_what_a_file_holds_is_shown_where_that_is_the_trouble(tmp_path):
    save(add_lora(net(), BOTH), tmp_path)
    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="no LoRA factors.*'lora_unet_x.alpha'"):
        load(net(), tmp_path)


# ---------------------------------------------------------------- I


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.language_model = llama()


def test_names_that_fit_a_part_of_the_model(tmp_path):
    """huggingface/transformers#38627"""
    save(add_lora(llama(), LoRAConfig(r=2, targets=["q_proj"])), tmp_path)
    with pytest.raises(AdapterError, match=r"load\(model.language_model, …\)"):
        load(Outer(), tmp_path)


@pytest.mark.parametrize("head", ["module.", "_orig_mod.", "language_model.", "module.inner."])
@pytest.mark.parametrize("setting", [{}, {"bias": "lora_only"}, {"modules_to_save": ["fc_out"]}])
def test_what_a_wrapper_put_in_front_is_taken_off(head, setting, tmp_path):
    config = LoRAConfig(r=2, targets=["fc_in"], **setting)
    model = shaken(add_lora(net(), config))
    save(model, tmp_path)
    rewritten(tmp_path, lambda k: k.replace("base_model.model.", f"base_model.model.{head}"))
    assert difference(load(net(), tmp_path)(X), model(X)) < 1e-6


def shared():
    torch.manual_seed(0)
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model.decoder = model.encoder
    return model


@pytest.mark.parametrize(
    "setting",
    [
        {"targets": ["decoder.0"]},
        {"targets": ["encoder.0", "encoder.1"], "exclude": ["decoder.1"]},
        {"targets": ["encoder.0"], "modules_to_save": ["decoder.1"]},
    ],
)
def test_a_second_name_is_told_by_the_first(setting):
    """huggingface/peft#1963"""
    with pytest.raises(ValueError, match=r"second name of 'encoder.\d': give that"):
        add_lora(shared(), LoRAConfig(r=2, **setting))


def test_a_second_name_in_a_file_is_found(tmp_path):
    model = add_lora(shared(), LoRAConfig(r=2, targets=["encoder.0"]))
    save(model, tmp_path)
    rewritten(tmp_path, lambda key: key.replace("encoder.", "decoder."))
    load(shared(), tmp_path)


def test_an_excluded_container_is_answered_with_its_expression():
    model = llama()
    with pytest.raises(ValueError, match="takes nothing out") as error:
        add_lora(model, LoRAConfig(targets=["q_proj"], exclude=["layers.0"]))
    pattern = str(error.value).partition("exclude=")[2].partition("exclude=")[2]
    add_lora(model, LoRAConfig(targets=["q_proj"], exclude=eval(pattern)))
    assert list(minilora.lora_layers(model)) == ["model.layers.1.self_attn.q_proj"]


def test_no_name_is_suggested_that_is_refused_next():
    model = nn.Sequential(
        OrderedDict(
            attn=nn.MultiheadAttention(8, 2),
            conv=nn.Conv1d(8, 8, 3, dilation=2),
            fc=nn.Linear(8, 8),
        )
    )
    with pytest.raises(ValueError, match="close to it|end with") as error:
        add_lora(model, LoRAConfig(targets=["out_prj"]))
    assert "out_proj" not in str(error.value) and "'conv'" not in str(error.value)
    assert "'fc'" in str(error.value)


# ---------------------------------------------------------------- J and K


def test_a_wrapper_of_several_processes_is_refused_at_any_depth(monkeypatch):
    """huggingface/peft#300. Without processes: the wrapper's type is what is looked for."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = net()
    model = nn.Sequential(OrderedDict(tower=wrapper))
    with pytest.raises(ValueError, match="DistributedDataParallel around 'tower'"):
        add_lora(model, BOTH)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.Embedding])
def test_dora_on_rows_of_zeros(kind):
    """huggingface/peft#2049"""
    torch.manual_seed(0)
    layer = kind(8, 6, 3) if kind is nn.Conv1d else kind(8, 6)
    weight = layer.weight.data
    (weight[:, 2] if kind is nn.Embedding else weight[2]).zero_()
    x = {nn.Linear: X, nn.Conv1d: torch.randn(2, 8, 5), nn.Embedding: IDS % 8}[kind]
    base = nn.Sequential(OrderedDict(layer=layer))
    before = base(x)
    model = add_lora(base, LoRAConfig(r=2, targets=["layer"], use_dora=True))
    assert difference(model(x), before) < 1e-5
    train_on = model(x).square().sum()
    train_on.backward()
    assert all(p.grad.isfinite().all() for p in lora_parameters(model) if p.grad is not None)
    after = shaken(model)(x)
    merge(model)
    assert after.isfinite().all() and difference(model(x), after) < 1e-4


def test_a_tied_pair_that_comes_apart_is_named():
    """huggingface/transformers#45127"""
    config = LoRAConfig(r=2, targets=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.warns(UserWarning, match=r"'model.embed_tokens', whose weight 'lm_head' shares"):
        add_lora(llama(tied=True), config)


def test_where_nothing_is_tied_there_is_no_warning(quiet):
    add_lora(llama(), LoRAConfig(r=2, targets=["q_proj"], modules_to_save=["embed_tokens"]))


def test_a_cache_that_cannot_be_written_loses_no_work(tmp_path, monkeypatch):
    """bioimage-io/spec-bioimage-io#476"""
    from minilora.lab import pretrained

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="MINILORA_CACHE"):
        model = pretrained.pretrained_digits(steps=2, progress=False)
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 10)
    monkeypatch.setenv("MINILORA_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.cache_folder() == tmp_path / "x"


# ---------------------------------------------------------------- recipes of the README


def test_own_factors_go_in_and_are_saved(tmp_path):
    model = add_lora(net(), LoRAConfig(r=2, alpha=8, targets=["fc_in"]))
    layer = minilora.lora_layers(model)["fc_in"]
    A, B = torch.randn(2, 8), torch.randn(16, 2)
    layer.A.data.copy_(A)
    layer.B.data.copy_(B / layer.scale)
    save(model, tmp_path)
    found = minilora.lora_layers(load(net(), tmp_path))["fc_in"]
    assert difference(found.delta(), B @ A) < 1e-6
    assert difference(found.new_weight(), net().fc_in.weight + B @ A) < 1e-6


def test_a_higher_rank_has_a_smaller_scale_unless_alpha_follows():
    config = LoRAConfig(r=4, alpha=16, rank_pattern={"q": 8})
    assert (config.scale_for("x.q"), config.scale_for("x.v")) == (2, 4)
    config = LoRAConfig(r=4, alpha=16, rank_pattern={"q": 8}, alpha_pattern={"q": 32})
    assert config.scale_for("x.q") == config.scale_for("x.v") == 4


def test_remove_lora_takes_a_merged_adapter_off():
    model = shaken(add_lora(net(), BOTH))
    merge(model)
    assert difference(minilora.remove_lora(model)(X), net()(X)) == 0


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("change", ["in place", "data", "load", "dtype"])
def test_short_inputs_of_a_half_base_use_the_factors_as_they_are(tokens, change, tmp_path):
    """A and B are float32 there, and nothing that was made of them is kept."""
    model = add_lora(net().bfloat16(), BOTH)
    x = torch.randn(tokens, 8).bfloat16()
    with torch.no_grad():
        model(x)
        if change == "in place":
            model.fc_in.B.normal_()
        if change == "data":
            model.fc_in.B.data.fill_(0.5)
        if change == "load":
            save(shaken(add_lora(net(), BOTH)), tmp_path)
            load(model, tmp_path)
        if change == "dtype":
            model.float()
            x = x.float()
            model.fc_in.B.data.fill_(0.5)
        layer = model.fc_in
        y = layer(x).float()
        wanted = layer.base(x).float() + x.float() @ layer.delta().float().T
    assert difference(y, wanted) < 2e-2 * float(wanted.abs().max())
    assert float((y - layer.base(x).float()).abs().max()) > 0.05


# ---------------------------------------------------------------- further reports and ideas


class Scaled(nn.Linear):
    """Has a name of its own that an adapted layer has too."""

    scale = 0.125


def test_a_name_that_the_layer_would_hide_is_refused():
    model = nn.Sequential(OrderedDict(proj=Scaled(8, 4)))
    with pytest.raises(ValueError, match="'proj', a Scaled, has an attribute 'scale'"):
        add_lora(model, LoRAConfig(r=2, targets=["proj"]))
    model = net()
    model.fc_in.A = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="'fc_in'.*attribute 'A'"):
        add_lora(model, BOTH)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 4)

    def forward(self, x):
        return self.base(x)


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"words": "no tensor"}

    def set_extra_state(self, state):
        pass


def closed():
    layer = nn.Linear(16, 4)
    layer.forward = lambda x: F.linear(x, layer.weight)
    return layer


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (Head, "attribute 'base'"),
        (lambda: nn.ModuleList([nn.Linear(16, 4)]), "nn.ModuleList, which is not called"),
        (lambda: nn.ModuleDict({"a": nn.Linear(16, 4)}), "nn.ModuleDict, which is not called"),
        (lambda: Stateful(16, 4), "'_extra_state' in its state_dict is a dict"),
        (closed, "its forward was replaced"),
    ],
)
def test_what_cannot_be_copied_is_refused(head, words):
    model = nn.Sequential(OrderedDict(fc_in=nn.Linear(8, 16), head=head()))
    with pytest.raises(ValueError, match=f"'head' is in modules_to_save.*{words}"):
        add_lora(model, LoRAConfig(r=2, targets=["fc_in"], modules_to_save=["head"]))


def test_private_names_of_a_copy_are_found(quiet):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    base = nn.Sequential(OrderedDict(layer=layer))
    x = torch.randn(2, 3, 8)
    before = base(x)
    config = LoRAConfig(r=2, targets=["linear1"], modules_to_save=["self_attn"])
    model = add_lora(base, config)
    assert difference(model.eval()(x), before) < 1e-5


@pytest.mark.parametrize("init", ["default", "pissa", "olora"])
def test_autocast_does_not_round_what_is_written_down(init):
    config = LoRAConfig(r=2, targets=["fc_in", "fc_out"], init=init)
    with torch.autocast("cpu", torch.bfloat16):
        model = add_lora(net(), config)
    assert difference(model(X), net()(X)) < 1e-5
    before = shaken(model)(X)
    with torch.autocast("cpu", torch.bfloat16):
        merge(model)
    assert difference(model(X), before) < 1e-5


def test_contexts_that_overlap_leave_the_adapted_model():
    """huggingface/peft#804: the last to leave restores, who need not be the first to enter."""
    for config in (BOTH, everything(bias="all"), LoRAConfig(r=2, targets=["fc_in"], init="pissa")):
        model = shaken(add_lora(net(), config))
        adapted = model(X)
        one, two = minilora.disabled(model), minilora.disabled(model)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert difference(model(X), net()(X)) == 0
        two.__exit__(None, None, None)
        assert difference(model(X), adapted) == 0


def test_selective_checkpointing_keeps_its_outputs():
    """NVIDIA-NeMo/Automodel#3274"""

    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    def policy(context, operation, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    model = shaken(add_lora(net(), BOTH))
    contexts = partial(create_selective_checkpoint_contexts, policy)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False, context_fn=contexts)):
        model.zero_grad()
        run(X).square().sum().backward()
        gradients.append([p.grad.clone() for p in lora_parameters(model)])
    assert all(difference(a, b) < 1e-4 for a, b in zip(*gradients, strict=True))


def test_an_adapter_on_a_model_of_pefts_is_refused():
    """huggingface/peft#2390"""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["fc_in"]))
    for targets in ("all-linear", ["fc_in"]):
        with pytest.raises(ValueError, match="has an adapter of PEFT's.*merge_and_unload"):
            add_lora(model, LoRAConfig(r=2, targets=targets))


def test_a_step_that_overflowed_is_no_observation():
    """A GradScaler leaves such a step out, and AdaLoRA's scores must, too."""
    from minilora.variants.adalora import RankAllocator, add_adalora

    model = add_adalora(net(), LoRAConfig(r=2, targets=["fc_in", "fc_out"]))
    allocator = RankAllocator(model, final_rank=1, total_steps=10)
    F.cross_entropy(model(X), Y).backward()
    allocator.update_and_allocate(1)
    before = {path: score.clone() for path, score in allocator.scores().items()}
    for parameter in lora_parameters(model):
        parameter.grad.fill_(float("inf"))
    allocator.update_and_allocate(2)
    assert all(torch.equal(score, before[path]) for path, score in allocator.scores().items())


def test_numbers_of_numpy_in_patterns():
    import numpy as np

    config = LoRAConfig(rank_pattern={"q": np.int64(4)}, alpha_pattern={"q": np.float32(2)})
    assert config.rank_pattern == {"q": 4} and type(config.rank_pattern["q"]) is int
    assert type(config.alpha_pattern["q"]) is float


def test_pefts_ensure_weight_tying_is_called_by_its_name(tmp_path):
    """huggingface/peft#2864"""
    save(add_lora(net(), BOTH), tmp_path)
    rewritten(tmp_path, ensure_weight_tying=True)
    with pytest.raises(AdapterError, match="'ensure_weight_tying'"):
        load(net(), tmp_path)


def test_a_resized_vocabulary_is_the_reason(tmp_path):
    """huggingface/peft#1457"""
    model = llama()
    model.resize_token_embeddings(70)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_folder(tmp_path, model, target_modules=["q_proj", "embed_tokens"])
    resized = {"base_model.model.lm_head.weight": torch.zeros(70, 32)}
    rewritten(tmp_path, tensors=tensors_of(tmp_path) | resized)
    other = llama()
    other.resize_token_embeddings(70)
    with pytest.raises(AdapterError, match=r"of shape \(70, 32\).*vocabulary was resized"):
        load(other, tmp_path)


def test_a_bank_over_a_quantized_base_without_biases(tmp_path):
    from minilora.quantize import quantize_linears
    from minilora.serving import AdapterBank

    def base():
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(fc=nn.Linear(64, 64, bias=False)))
        return quantize_linears(model, ["fc"])

    adapted = shaken(add_lora(base(), LoRAConfig(r=2, targets=["fc"])))
    save(adapted, tmp_path)
    x = torch.randn(2, 64)
    with AdapterBank(base()) as bank:
        bank.add("a", tmp_path)
        with bank.rows(["a", None]) as model:
            y = model(x)
        assert model.fc.weight.shape == (64, 64) and model.fc.in_features == 64
    assert difference(y[0], adapted(x)[0]) < 1e-5
    assert difference(y[1], base()(x)[1]) < 1e-6
