"""Other programs' adapters: the update is that of their own formula, or nothing is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_help import Toy, close, rewritten, settings_of, tensors_of, toy
from safetensors.torch import save, save_file
from torch import Tensor, nn

import minilora
from minilora import AdapterError
from minilora.folder import CONFIG_FILE, TENSOR_FILE
from minilora.foreign import FORMATS, convert, recognise
from minilora.stored import open_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.v_proj"


def tree(**modules: nn.Module) -> nn.Module:
    """A model of these modules; ``__`` in a name stands for a dot."""
    root = nn.Module()
    for name, module in modules.items():
        place, *rest = root, *name.split("__")
        for part in rest[:-1]:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        place.add_module(rest[-1], module)
    return root


def decoder() -> nn.Module:
    """A language model's names."""
    torch.manual_seed(0)
    return tree(
        model__embed_tokens=nn.Embedding(11, 6),
        model__layers__0__self_attn__q_proj=nn.Linear(6, 6),
        model__layers__11__self_attn__v_proj=nn.Linear(6, 4),
    )


ATTENTION = "down_blocks.0.attentions.1.attn1"
TEXT = "text_model.encoder.layers.0.self_attn"


def unet() -> nn.Module:
    """A diffusion model's names."""
    torch.manual_seed(0)
    at = ATTENTION.replace(".", "__")
    return tree(
        **{
            f"{at}__to_q": nn.Linear(6, 8),
            f"{at}__to_out__0": nn.Linear(8, 6),
            "conv_in": nn.Conv2d(3, 5, 3),
        }
    )


def text_encoder() -> nn.Module:
    at = TEXT.replace(".", "__")
    return tree(**{f"{at}__q_proj": nn.Linear(6, 6), f"{at}__out_proj": nn.Linear(6, 6)})


def factors(out: int, into: int, r: int = 3) -> tuple[Tensor, Tensor]:
    """(A, B), whose product is the update."""
    return torch.randn(r, into), torch.randn(out, r)


def file(place: Path, tensors: dict[str, Tensor], settings: Any = None, name: str = "x") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    content = save({k: t.detach().contiguous().clone() for k, t in tensors.items()})
    (place / f"{name}.safetensors").write_bytes(content)
    if settings is not None:
        (place / CONFIG_FILE).write_text(json.dumps(settings))
    return place


def check(out: Path, model: Callable[[], nn.Module], wanted: dict[str, Tensor]) -> None:
    """What is written loads, here and with PEFT, as these updates and no others."""
    assert open_adapter(out).faults == ()
    ours = minilora.load(model(), out)
    layers = minilora.lora_layers(ours)
    assert layers.keys() == wanted.keys()
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(model(), str(out)).base_model.model
    adapted = {n for n, m in theirs.named_modules() if hasattr(m, "get_delta_weight")}
    assert adapted == wanted.keys()
    for path, update in wanted.items():
        assert close(layers[path].delta(), update, 1e-5), path
        assert close(theirs.get_submodule(path).get_delta_weight("default"), update, 1e-5), path


# --- mlx-lm -------------------------------------------------------------------------------------


def mlx(place: Path, scale: float = 20.0, **more: Tensor) -> tuple[Path, dict[str, Tensor]]:
    """a is (in, r), b is (r, out), and mlx-lm's fuse is W + (scale · bᵀ) @ aᵀ."""
    tensors: dict[str, Tensor] = {}
    wanted = {}
    for path, (out, into) in {Q: (6, 6), V: (4, 6)}.items():
        a, b = torch.randn(into, 2), torch.randn(2, out)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        wanted[path] = (scale * b.T) @ a.T
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 16,
        "lora_parameters": {"rank": 2, "scale": scale, "dropout": 0.0},
    }
    return file(place, tensors | more, settings, "adapters"), wanted


def test_mlx_lm(tmp_path):
    source, wanted = mlx(tmp_path / "a")
    said = convert(source, tmp_path / "out")
    check(tmp_path / "out", decoder, wanted)
    written = f"2 layers of mlx-lm written to {tmp_path / 'out'} in PEFT's format"
    assert said == [f"{written}, the update multiplied by 20."]
    assert settings_of(tmp_path / "out")["target_modules"] == sorted([Q, V])


def test_mlx_lm_embedding(tmp_path):
    """LoRAEmbedding: a is (tokens, r), b is (r, width), and the fuse is W + scale · a @ b."""
    a, b = torch.randn(11, 2), torch.randn(2, 6)
    path = "model.embed_tokens"
    source, wanted = mlx(tmp_path / "a", **{f"{path}.lora_a": a, f"{path}.lora_b": b})
    convert(source, tmp_path / "out")
    check(tmp_path / "out", decoder, wanted | {path: 20 * a @ b})


@pytest.mark.parametrize("settings", [None, {}, {"lora_parameters": {"rank": 2}}, "{"])
def test_mlx_lm_without_its_scale(tmp_path, settings):
    source, _ = mlx(tmp_path / "a")
    (source / CONFIG_FILE).write_text(settings if settings == "{" else json.dumps(settings))
    refused(tmp_path, source, "no scale in lora_parameters")


# --- kohya --------------------------------------------------------------------------------------


def kohya(alphas: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """up @ down, times alpha / rank; without an alpha it is as if that were the rank."""
    tensors, wanted = {}, {}
    shapes = {f"{ATTENTION}.to_q": (8, 6), f"{ATTENTION}.to_out.0": (6, 8), "conv_in": (5, 27)}
    for n, (path, (out, into)) in enumerate(shapes.items()):
        r, alpha = n + 2, 1.5 + n
        A, B = factors(out, into, r)
        wanted[path] = (alpha / r if alphas else 1) * B @ A
        if path == "conv_in":
            A, B = A.reshape(r, 3, 3, 3), B[:, :, None, None]
            wanted[path] = wanted[path].reshape(5, 3, 3, 3)
        name = "lora_unet_" + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
        if alphas:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors, wanted


def base_of(model: nn.Module, place: Path) -> Path:
    place.mkdir()
    save_file(model.state_dict(), place / "diffusion_pytorch_model.safetensors")
    return place


@pytest.mark.parametrize("alphas", [True, False])
def test_kohya(tmp_path, alphas):
    base = base_of(unet(), tmp_path / "base")
    tensors, wanted = kohya(alphas)
    convert(file(tmp_path / "a", tensors) / "x.safetensors", tmp_path / "out", base=base)
    check(tmp_path / "out", unet, wanted)


def test_one_model_of_several(tmp_path):
    """Stable Diffusion's file adapts its text encoder, too, which is a model of its own."""
    tensors, wanted = kohya()
    A, B = factors(6, 6)
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
    source = file(tmp_path / "a", tensors)
    base, text = base_of(unet(), tmp_path / "base"), base_of(text_encoder(), tmp_path / "text")
    refused(tmp_path, source, "text_encoder and unet", "--part text_encoder", base=base)
    refused(tmp_path, source, "no part 'vae'", "text_encoder, unet", base=base, part="vae")
    convert(source, tmp_path / "unet", base=base, part="unet")
    check(tmp_path / "unet", unet, wanted)
    convert(source, tmp_path / "te", base=text, part="text_encoder")
    check(tmp_path / "te", text_encoder, {f"{TEXT}.q_proj": B @ A})


def test_kohya_s_names_need_the_model(tmp_path):
    source = file(tmp_path / "a", kohya()[0])
    refused(tmp_path, source, "give its folder with --base")
    text = base_of(text_encoder(), tmp_path / "text")
    refused(tmp_path, source, "is no layer of", base=text)
    twice = tree(a__b_c=nn.Linear(2, 2), a_b__c=nn.Linear(2, 2))
    A, B = factors(2, 2)
    tensors = {"lora_unet_a_b_c.lora_down.weight": A, "lora_unet_a_b_c.lora_up.weight": B}
    source = file(tmp_path / "b", tensors)
    refused(tmp_path, source, "is more than one layer", base=base_of(twice, tmp_path / "twice"))


def test_kohya_s_names_with_dots(tmp_path):
    A, B = factors(8, 6)
    path = f"{ATTENTION}.to_q"
    tensors = {
        f"{path}.lora_down.weight": A,
        f"{path}.lora_up.weight": B,
        f"{path}.alpha": torch.tensor(1.5),
    }
    convert(file(tmp_path / "a", tensors), tmp_path / "out")
    check(tmp_path / "out", unet, {path: 1.5 / 3 * B @ A})


# --- diffusers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 7.5])
@pytest.mark.parametrize("spelling", ["processor", "lora"])
def test_diffusers_older_spellings(tmp_path, spelling, alpha):
    """The update is up @ down; alpha / rank times that where an alpha is stored."""
    if spelling == "processor":  # of 0.15: attn1.processor.to_out_lora.down.weight
        names = [f"unet.{ATTENTION}.processor.{n}_lora" for n in ("to_q", "to_out")]
        ends = ("down.weight", "up.weight")
    else:  # of 0.22: attn1.to_out.0.lora.down.weight
        names = [f"unet.{ATTENTION}.{n}" for n in ("to_q", "to_out.0")]
        ends = ("lora.down.weight", "lora.up.weight")
    tensors, wanted = {}, {}
    shapes = {f"{ATTENTION}.to_q": (8, 6), f"{ATTENTION}.to_out.0": (6, 8)}
    for name, (path, (out, into)) in zip(names, shapes.items(), strict=True):
        A, B = factors(out, into)
        tensors |= {f"{name}.{ends[0]}": A, f"{name}.{ends[1]}": B}
        wanted[path] = (alpha / 3 if alpha else 1) * B @ A
        if alpha:
            tensors[f"{name.removesuffix('_lora')}.alpha"] = torch.tensor(alpha)
    convert(file(tmp_path / "a", tensors, name="pytorch_lora_weights"), tmp_path / "out")
    check(tmp_path / "out", unet, wanted)


@pytest.mark.parametrize("spelling", ["to_{}_lora", "{}_proj.lora_linear_layer"])
def test_diffusers_text_encoders(tmp_path, spelling):
    tensors, wanted = {}, {}
    for name in ("q", "out"):
        A, B = factors(6, 6)
        at = f"text_encoder.{TEXT}.{spelling.format(name)}"
        tensors |= {f"{at}.down.weight": A, f"{at}.up.weight": B}
        wanted[f"{TEXT}.{name}_proj"] = B @ A
    convert(file(tmp_path / "a", tensors), tmp_path / "out")
    check(tmp_path / "out", text_encoder, wanted)


@pytest.mark.parametrize("said", [True, False])
def test_diffusers_of_today_keeps_the_scale_in_the_header(tmp_path, said):
    """Files of versions before 0.35 do not, and are read as alpha = r."""
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "to_out.0"])
    other = peft.get_peft_model(unet(), config).base_model.model
    wanted, layers = {}, {}
    for path, module in other.named_modules():
        if hasattr(module, "get_delta_weight"):
            nn.init.normal_(module.lora_B["default"].weight)
            wanted[path] = module.get_delta_weight("default") / (1 if said else 2.5)
            for n in "AB":
                layers[f"{path}.lora_{n}.weight"] = getattr(module, f"lora_{n}")["default"].weight
    told = {"unet_lora_adapter_metadata": config.to_dict()} if said else {}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path / "a", unet_lora_layers=layers, **told
    )
    convert(tmp_path / "a", tmp_path / "out")
    check(tmp_path / "out", unet, wanted)


# --- loralib ------------------------------------------------------------------------------------


def test_loralib(tmp_path):
    """The update is what loralib itself adds to its weights."""
    loralib = pytest.importorskip("loralib")
    layers = {
        "model.embed_tokens": loralib.Embedding(11, 6, r=2, lora_alpha=5),
        Q: loralib.Linear(6, 6, r=2, lora_alpha=5),
        V: loralib.Linear(6, 4, r=3, lora_alpha=5),
    }
    tensors, wanted = {}, {}
    for path, layer in layers.items():
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
        before = layer.weight.detach().clone()
        tensors |= {f"{path}.{n}": t.clone() for n, t in loralib.lora_state_dict(layer).items()}
        layer.eval()
        wanted[path] = layer.weight.detach() - before
    source = file(tmp_path / "a", tensors)
    refused(tmp_path, source, "nothing says what the update of", "--alpha")
    convert(source, tmp_path / "out", alpha=5)
    check(tmp_path / "out", decoder, wanted)


# --- PEFT's, with odd keys ----------------------------------------------------------------------

CONFIG = {"targets": ["q_proj", "embed"], "r": 2, "alpha": 3}
ODD: dict[str, Callable[[str], str]] = {
    ".default.": lambda key: (
        re.sub(r"(lora_[AB])\.", r"\1.default.", key) + ".default" * ("ing" in key)
    ),
    "module.": lambda key: "module." + key,
    "module. inside": lambda key: key.replace("base_model.model.", "base_model.model.module."),
    "of torch.compile": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "without prefix": lambda key: key.removeprefix("base_model.model."),
    "as they should be": str,
}


def adapter(place: Path, **more: Any) -> tuple[Path, dict[str, Tensor]]:
    model = toy(**CONFIG, **more)
    minilora.save(model, place)
    updates = {p: layer.delta().detach() for p, layer in minilora.lora_layers(model).items()}
    return place, updates


@pytest.mark.parametrize("settings", [True, False])
@pytest.mark.parametrize("odd", ODD)
def test_peft_s_factors_under_odd_keys(tmp_path, odd, settings):
    source, wanted = adapter(tmp_path / "a")
    rewritten(source, ODD[odd])
    if settings:
        convert(source, tmp_path / "out")
    else:
        (source / CONFIG_FILE).unlink()
        refused(tmp_path, source, "nothing says what the update of", "--alpha")
        convert(source, tmp_path / "out", alpha=3)
    check(tmp_path / "out", Toy, wanted)
    keys = set(tensors_of(tmp_path / "out"))
    minilora.save(toy(**CONFIG), tmp_path / "plain")
    assert keys == set(tensors_of(tmp_path / "plain"))
    assert settings_of(tmp_path / "out")["peft_type"] == "LORA"


def test_an_embedding_alone(tmp_path):
    model = toy(targets=["embed"], r=2, alpha=3)
    minilora.save(model, tmp_path / "a")
    rewritten(tmp_path / "a", ODD["without prefix"])
    convert(tmp_path / "a", tmp_path / "out")
    check(tmp_path / "out", Toy, {"embed": model.embed.delta().detach()})


@pytest.mark.parametrize("odd", ["module.", "without prefix"])
def test_a_head_goes_along_where_the_config_names_it(tmp_path, odd):
    source, wanted = adapter(tmp_path / "a", modules_to_save=["head"])
    head = tensors_of(source)["base_model.model.head.weight"]
    rewritten(source, ODD[odd])
    said = convert(source, tmp_path / "out")
    assert len(said) == 1
    check(tmp_path / "out", Toy, wanted)
    assert torch.equal(minilora.load(Toy(), tmp_path / "out").head.weight, head)
    (source / CONFIG_FILE).unlink()
    said = convert(source, tmp_path / "out", alpha=3)
    names = sorted(key for key in tensors_of(source) if "head." in key)
    assert sorted(said[1:]) == [f"Left out: {name!r}, which is no factor." for name in names]
    assert len(names) == 2
    check(tmp_path / "out", Toy, wanted)


def test_a_rank_for_each_layer_without_a_config(tmp_path):
    """alpha / r, each with the rank of its own factors."""
    source, _ = adapter(tmp_path / "a", rank_pattern={"0.q_proj": 5})
    (source / CONFIG_FILE).unlink()
    convert(source, tmp_path / "out", alpha=3)
    model = minilora.load(Toy(), tmp_path / "out")
    found = {path: (la.r, la.scale) for path, la in minilora.lora_layers(model).items()}
    assert found["blocks.0.q_proj"] == (5, 0.6)
    assert found["blocks.1.q_proj"] == found["embed"] == (2, 1.5)


def test_rslora_of_the_config(tmp_path):
    source, wanted = adapter(tmp_path / "a", scaling="rslora")
    convert(rewritten(source, ODD["module."]), tmp_path / "out")
    check(tmp_path / "out", Toy, wanted)


def test_patterns_of_the_config(tmp_path):
    patterns = {
        "rank_pattern": {"0.q_proj": 5, "embed": 3},
        "alpha_pattern": {"embed": 7, r"blocks\.1\.q_proj": 1},
    }
    source, wanted = adapter(tmp_path / "a", **patterns)
    convert(rewritten(source, ODD["module."]), tmp_path / "out")
    check(tmp_path / "out", Toy, wanted)


@pytest.mark.parametrize(
    "chosen",
    [
        {"exclude_modules": ["blocks.0.q_proj"]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 1, "layers_pattern": "blocks"},
    ],
)
def test_layers_that_the_targets_name_and_the_file_has_not(tmp_path, chosen):
    model = toy(targets=["blocks.1.q_proj"], r=2, alpha=3)
    minilora.save(model, tmp_path / "a")
    rewritten(tmp_path / "a", ODD["module."], target_modules=["q_proj"], **chosen)
    convert(tmp_path / "a", tmp_path / "out")
    check(tmp_path / "out", Toy, {"blocks.1.q_proj": model.blocks[1].q_proj.delta().detach()})


def test_a_target_without_factors_is_dropped_and_said(tmp_path):
    source, wanted = adapter(tmp_path / "a")
    rewritten(source, ODD["module."], target_modules=["q_proj", "embed", "k_proj"])
    said = convert(source, tmp_path / "out")
    assert "target_modules named 'k_proj', of which the file has no factors" in said[1]
    assert settings_of(tmp_path / "out")["target_modules"] == ["embed", "q_proj"]
    check(tmp_path / "out", Toy, wanted)


@pytest.mark.parametrize("program", ["mlx-lm", "PEFT", "kohya's names", "a wrong config"])
def test_alpha_as_asked(tmp_path, program):
    """It holds whatever the file says, and that is said."""
    model: Callable[[], nn.Module] = Toy
    if program == "mlx-lm":
        source, wanted = mlx(tmp_path / "a", 1.0)
        wanted, model = {path: 5 / 2 * X for path, X in wanted.items()}, decoder
    elif program == "kohya's names":
        A, B = factors(8, 6)
        at = f"{ATTENTION}.to_q"
        tensors = {f"{at}.lora_down.weight": A, f"{at}.lora_up.weight": B}
        source = file(tmp_path / "a", tensors | {f"{at}.alpha": torch.tensor(9.0)})
        wanted, model = {at: 5 / 3 * B @ A}, unet
    else:
        source, wanted = adapter(tmp_path / "a")
        rewritten(source, **({"r": 4, "use_rslora": True} if "wrong" in program else {}))
        wanted = {path: 5 / 3 * X for path, X in wanted.items()}
    said = convert(source, tmp_path / "out", alpha=5)
    check(tmp_path / "out", model, wanted)
    assert said[-1] == "alpha is 5 as asked, whatever the file says."


def test_the_base_is_named(tmp_path):
    base = base_of(unet(), tmp_path / "base")
    convert(file(tmp_path / "a", kohya()[0]), tmp_path / "out", base=base)
    assert settings_of(tmp_path / "out")["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    "setting",
    [{"init_lora_weights": "pissa"}, {"trainable_token_indices": [1]}, {"lora_bias": True}],
)
def test_settings_that_change_what_the_factors_mean_are_kept(tmp_path, setting):
    source, _ = adapter(tmp_path / "a")
    convert(rewritten(source, ODD["module."], **setting), tmp_path / "out")
    assert setting.items() <= settings_of(tmp_path / "out").items()


def test_half_precision_stays_so(tmp_path):
    source, _ = mlx(tmp_path / "a")
    tensors = {k: t.half() for k, t in tensors_of_file(source / "adapters.safetensors").items()}
    convert(file(tmp_path / "a", tensors, name="adapters"), tmp_path / "out")
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {torch.float16}


def tensors_of_file(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(path.read_bytes())


def test_in_place(tmp_path):
    source, wanted = adapter(tmp_path / "a")
    convert(rewritten(source, ODD["module."]), source)
    check(source, Toy, wanted)


# --- what is not converted ----------------------------------------------------------------------


def refused(tmp_path: Path, source: Path, *words: str, **given: Any) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folders = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterError) as caught:
        convert(source, tmp_path / "out", **given)
    for word in words:
        assert word in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == folders
    assert all(path.read_bytes() == content for path, content in before.items())


X = torch.ones(2, 2)
LYCORIS = ["hada_w1_a", "lokr_w1", "lokr_w1_a", "oft_blocks", "oft_diag"]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"], "torchtune"),
        *((["lora_unet_conv." + name, "lora_unet_conv.alpha"], "LyCORIS") for name in LYCORIS),
        (["model.layers.0.weight", "lm_head.weight"], "looks like a whole model"),
        ([], "holds no tensors"),
    ],
)
def test_recognised_and_not_converted(tmp_path, keys, name):
    source = file(tmp_path / "a", dict.fromkeys(keys, X))
    refused(tmp_path, source, "is not converted", name)
    found = recognise(source)
    assert name in str(found)
    assert found.some == [key for key in found.tensors if not key.endswith("alpha")]


def test_every_format_is_recognised_as_itself_alone(tmp_path):
    """The first that fits is taken: none may hide another."""
    keys = {
        "LyCORIS (LoHa, LoKr, OFT)": ["lora_unet_a.hada_w1_a"],
        "kohya (sd-scripts)": ["lora_unet_a_b.lora_down.weight", "lora_te1_a.lora_down.weight"],
        "diffusers (before PEFT)": [
            "unet.a.processor.to_q_lora.down.weight",
            "unet.a.to_q.lora.down.weight",
            "text_encoder.a.q_proj.lora_linear_layer.down.weight",
        ],
        "kohya's names with dots (ComfyUI, ai-toolkit)": ["a.b.lora_down.weight"],
        "torchtune": ["layers.0.attn.q_proj.lora_a.weight"],
        "mlx-lm": ["model.layers.0.self_attn.q_proj.lora_a"],
        "loralib, or a state_dict of its kind": ["h.0.attn.lora_A"],
        "PEFT's factors": [
            "base_model.model.a.lora_A.weight",
            "a.lora_A.default.weight",
            "a.lora_embedding_A",
        ],
    }
    assert list(keys) == [form.name for form in FORMATS]
    for name, some in keys.items():
        for key in some:
            found = recognise(file(tmp_path, {key: X}) / "x.safetensors")
            assert found.format is not None
            assert found.format.name == name
            assert found.some == [key]
            assert name in str(found)


STRANGE = {
    "DoRA of kohya": (f"{ATTENTION}.to_q.dora_scale", "kohya"),
    "LoCon": (f"{ATTENTION}.to_q.lora_mid.weight", "kohya"),
    "DoRA of mlx-lm": (f"{Q}.m", "mlx"),
    "DoRA of PEFT": ("base_model.model.embed.lora_magnitude_vector", "peft"),
    "DoRA of PEFT, raw": ("embed.lora_magnitude_vector.default.weight", "peft"),
    "AdaLoRA": ("base_model.model.embed.lora_E", "peft"),
    "a bias in B": ("base_model.model.blocks.0.q_proj.lora_B.bias", "peft"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_forms_that_are_more_than_two_factors(tmp_path, kind):
    key, program = STRANGE[kind]
    if program == "mlx":
        source, _ = mlx(tmp_path / "a", **{key: X})
    elif program == "peft":
        source, _ = adapter(tmp_path / "a")
        rewritten(source, tensors=tensors_of(source) | {key: X})
    else:
        A, B = factors(8, 6)
        at = f"{ATTENTION}.to_q"
        tensors = {f"{at}.lora_down.weight": A, f"{at}.lora_up.weight": B, key: X}
        source = file(tmp_path / "a", tensors)
    refused(tmp_path, source, f"{key!r} belongs to a form of LoRA that is not converted", alpha=1)


def test_half_a_pair_and_factors_that_do_not_fit(tmp_path):
    source = file(tmp_path / "a", {"a.lora_A.weight": X})
    refused(tmp_path, source, "'a' has only one of its two factors", alpha=1)
    source = file(tmp_path / "b", {"a.lora_A.weight": X, "a.lora_B.weight": torch.ones(2, 3)})
    refused(tmp_path, source, "which do not fit", alpha=1)
    source = file(tmp_path / "c", {"a.lora_A": X[0], "a.lora_B": X})
    refused(tmp_path, source, "are not converted here", alpha=1)
    source, _ = mlx(tmp_path / "d", **{"a.lora_a": torch.ones(4, 2, 3), "a.lora_b": X})
    refused(tmp_path, source, "factors of shape (4, 2, 3) are not converted here")


def test_two_layers_of_one_name(tmp_path):
    tensors = {f"{head}a.lora_{n}.weight": X for head in ("", "module.") for n in "AB"}
    refused(tmp_path, file(tmp_path / "a", tensors), "two layers of the file are 'a'", alpha=1)


def test_an_alpha_that_belongs_to_nothing(tmp_path):
    """Its layer's scale would be taken for another."""
    tensors = {"a.lora_down.weight": X, "a.lora_up.weight": X, "a.lora.alpha": X.sum()}
    refused(tmp_path, file(tmp_path / "a", tensors), "'a.lora.alpha' belongs to none", alpha=1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"rank_pattern": {"embed": 3}}, "'embed' is of rank 2, but adapter_config.json says 3"),
        ({"lora_alpha": ...}, "lacks 'lora_alpha'"),
        ({"r": 4}, "is of rank 2, but adapter_config.json says 4"),
        ({"peft_type": "ADALORA"}, "says ADALORA"),
    ],
)
def test_a_config_that_leaves_the_scale_open(tmp_path, setting, words):
    source, _ = adapter(tmp_path / "a")
    refused(tmp_path, rewritten(source, **setting), words)


def test_no_file_and_a_damaged_one(tmp_path):
    refused(tmp_path, tmp_path / "none", "is neither a folder nor a safetensors file")
    (tmp_path / "a").mkdir()
    refused(tmp_path, tmp_path / "a", "holds no safetensors file")
    (tmp_path / "a" / "x.safetensors").write_bytes(b"12345678")
    refused(tmp_path, tmp_path / "a", "is damaged")
    refused(tmp_path, Path("~/a"), "does not expand '~'")


def test_which_file_of_a_folder(tmp_path):
    for name, key in [("a", "a.x"), ("adapters", "b.lora_a"), ("pytorch_lora_weights", "c.x")]:
        file(tmp_path, {key: X}, name=name)
    assert recognise(tmp_path).file.name == "adapters.safetensors"
    file(tmp_path, {"d.lora_A.weight": X}, name=TENSOR_FILE.removesuffix(".safetensors"))
    assert recognise(tmp_path).file.name == TENSOR_FILE
    assert recognise(tmp_path / "a.safetensors").format is None
