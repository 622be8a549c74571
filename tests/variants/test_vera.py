"""VeRA: PEFT's numbers to the last bit, one shared pair, and everything that a LoRA layer does."""

import copy

import pytest
import torch
from core_help import Tied, Toy, bits, close, ids, refuses, snapshot
from torch import Tensor, nn

import minilora
from minilora import LoRAConfig
from minilora.variants.vera import VeRALayer, add_vera

CONFIGS = {
    "one size": {"targets": ["q_proj", "v_proj"], "r": 5},
    "many sizes": {"targets": ["q_proj", "up_proj", "down_proj"], "r": 3},
    "dropout": {"targets": ["q_proj", "down_proj"], "r": 3, "dropout": 0.4},
    "bias and head": {"targets": ["up_proj"], "r": 2, "bias": "all", "modules_to_save": ["head"]},
    "all linear": {"targets": "all-linear", "r": 4},
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def vera(config: dict, model: nn.Module | None = None, seed: int = 0) -> nn.Module:
    """A model with VeRA whose vectors have moved."""
    torch.manual_seed(0)
    model = add_vera(Toy() if model is None else model, LoRAConfig(**config), seed=seed)
    with torch.no_grad():
        for p in minilora.lora_parameters(model):
            p.add_(torch.randn_like(p) * 0.5)
    return model


def theirs(config: dict, ours: nn.Module, base: nn.Module, seed: int = 0) -> nn.Module:
    """PEFT's model of the same base and config, with the trained values of ours."""
    peft = pytest.importorskip("peft")
    targets = config["targets"]
    if targets == "all-linear":
        targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    other = peft.get_peft_model(
        base,
        peft.VeraConfig(
            r=config["r"],
            target_modules=targets,
            vera_dropout=config.get("dropout", 0.0),
            bias=config.get("bias", "none"),
            modules_to_save=config.get("modules_to_save"),
            projection_prng_key=seed,
        ),
    )
    state = other.state_dict()
    for name, p in ours.named_parameters():
        if p.requires_grad:
            state[f"base_model.model.{peft_name(name)}"] = p.detach()
    other.load_state_dict(state)
    return other


def peft_name(name: str) -> str:
    path, _, last = name.rpartition(".")
    if last in ("b", "d"):
        return f"{path}.vera_lambda_{last}.default"
    return name.replace(".base.", ".base_layer.").replace(".tuned.", ".modules_to_save.default.")


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)  # the same dropout in both
    y = model(x)
    y.sin().sum().backward()
    return y, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore")
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_pefts(config, dtype):
    torch.manual_seed(1)
    base = Toy().to(dtype)
    ours = vera(config, copy.deepcopy(base), seed=3)
    other = theirs(config, ours, base, seed=3)
    shared = next(iter(minilora.lora_layers(ours).values())).shared
    if dtype == torch.bfloat16:  # PEFT rounds its float32 A and B to the type of the base once
        shared.to(dtype).to(torch.float32)
    assert bits(shared.A) == bits(other.base_model.vera_A["default"])
    assert bits(shared.B) == bits(other.base_model.vera_B["default"])
    x = ids(3, 4)
    wanted, wanted_gradients = run(other, x)
    with minilora.textbook():
        y, gradients = run(ours, x)
    assert bits(y) == bits(wanted)
    assert {f"base_model.model.{peft_name(n)}": bits(g) for n, g in gradients.items()} == {
        n: bits(g) for n, g in wanted_gradients.items()
    }
    assert close(run(ours, x)[0], wanted, 1e-5 if dtype == torch.float32 else 0.1)


def test_a_and_b_are_of_the_largest_sizes_and_from_the_seed():
    shared = [vera(CONFIGS["many sizes"], seed=seed).blocks[0].q_proj.shared for seed in (4, 4, 5)]
    assert shared[0].A.shape == (3, 16) and shared[0].B.shape == (16, 3)
    assert bits(shared[0].A) == bits(shared[1].A) and bits(shared[0].B) == bits(shared[1].B)
    assert bits(shared[0].A) != bits(shared[2].A) and bits(shared[0].B) != bits(shared[2].B)


@pytest.mark.filterwarnings("ignore")
@every
def test_merged_weights_are_pefts(config):
    torch.manual_seed(1)
    base = Toy()
    ours = vera(config, copy.deepcopy(base))
    merged = theirs(config, ours, base).merge_and_unload()
    minilora.merge(ours)
    for path, layer in minilora.lora_layers(ours).items():
        assert bits(layer.weight) == bits(merged.get_submodule(path).weight), path


@pytest.mark.filterwarnings("ignore")
def test_conv1d_of_hugging_face():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    base = nn.Sequential(conv1d(6, 4), nn.Linear(6, 6))
    ours = vera({"r": 3, "targets": ["0", "1"]}, copy.deepcopy(base))
    x = torch.randn(2, 5, 4)
    y = ours(x)
    peft = pytest.importorskip("peft")
    other = peft.get_peft_model(base, peft.VeraConfig(r=3, target_modules=["0", "1"]))
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if p.requires_grad:
                other.get_parameter(f"base_model.model.{peft_name(name)}").copy_(p)
    with minilora.textbook():
        assert bits(ours(x)) == bits(other(x))
    with minilora.merged(ours):
        assert torch.allclose(ours(x), y, atol=1e-5)


@every
def test_the_number_of_parameters_is_out_plus_r_for_each_layer(config):
    model = vera(config)
    layers = minilora.lora_layers(model)
    for layer in layers.values():
        assert sum(p.numel() for p in layer.trained()) == layer.out_features + config["r"]
    counted = sum(row[4] for row in minilora.summary(model).rows if row[2] is not None)
    assert counted == sum(layer.out_features + config["r"] for layer in layers.values())
    assert all(p.requires_grad for p in minilora.lora_parameters(model))
    assert {p for p in model.parameters() if p.requires_grad} == set(
        minilora.lora_parameters(model)
    )


def test_nothing_changes_at_the_start_and_d_learns_after_b():
    torch.manual_seed(0)
    base = Toy()
    x = ids()
    model = add_vera(copy.deepcopy(base), LoRAConfig(r=4, targets=["q_proj"]), d_initial=0.2)
    assert bits(model(x)) == bits(base(x))
    layer = model.blocks[0].q_proj
    assert (layer.d == 0.2).all() and (layer.b == 0).all()
    optimizer = torch.optim.SGD(minilora.lora_parameters(model), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert (layer.d != 0.2).all() and (layer.b != 0).all()


def distinct_bytes(tensors: list[Tensor]) -> int:
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def test_a_and_b_are_in_memory_once_also_after_moving_and_copying():
    model = vera(CONFIGS["many sizes"])
    layers = list(minilora.lora_layers(model).values())
    assert len(layers) == 6
    shared = (3 * 16 + 16 * 3) * 4
    assert distinct_bytes([t for layer in layers for t in (layer.A, layer.B)]) == shared
    for moved, size in [(copy.deepcopy(model), shared), (model.double(), 2 * shared)]:
        layers = list(minilora.lora_layers(moved).values())
        assert distinct_bytes([t for layer in layers for t in (layer.A, layer.B)]) == size
    for layer in layers:  # a layer's own are the first columns and rows of the shared ones
        assert torch.equal(layer.A, layer.shared.A[:, : layer.in_features])
        assert torch.equal(layer.B, layer.shared.B[: layer.out_features])
    # and A and B are no parameters of the layers beside the shared pair
    assert not any(name.endswith(("proj.A", "proj.B")) for name, _ in model.named_parameters())


def test_double_precision_bases():
    model = vera(CONFIGS["many sizes"], Toy().double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with minilora.textbook():
        assert model(ids()).dtype == torch.float64


def test_the_state_dict_goes_into_a_fresh_model():
    model = vera(CONFIGS["many sizes"], seed=5)
    torch.manual_seed(0)
    other = add_vera(Toy(), LoRAConfig(**CONFIGS["many sizes"]), seed=6)
    other.load_state_dict(model.state_dict())
    x = ids()
    assert bits(other(x)) == bits(model(x))


@every
def test_save_writes_the_plain_lora_of_the_same_update(config, tmp_path):
    model = vera(config).eval()
    x = ids()
    y = model(x)
    minilora.save(model, tmp_path)
    torch.manual_seed(0)
    plain = minilora.load(Toy(), tmp_path).eval()
    layers = minilora.lora_layers(plain)
    assert layers.keys() == minilora.lora_layers(model).keys()
    assert not any(isinstance(layer, VeRALayer) for layer in layers.values())
    assert all(layer.scale == 1 and layer.r == config["r"] for layer in layers.values())
    assert close(plain(x), y)
    minilora.load(model, tmp_path)  # onto the model with VeRA: replaced
    assert close(model.eval()(x), y)


def test_off_on_stronger_and_away_again():
    torch.manual_seed(0)
    base = Toy()
    before = snapshot(base)
    x = ids()
    y0 = base(x)
    model = vera(CONFIGS["bias and head"], base).eval()
    y = model(x)
    assert not close(y, y0, 1e-3)
    with minilora.disabled(model):
        assert bits(model(x)) == bits(y0)
    with minilora.merged(model):
        assert close(model(x), y)
    minilora.set_strength(model, 0.0)
    layer = model.blocks[0].up_proj
    assert (layer.delta() == 0).all()
    minilora.set_strength(model, 1.0)
    assert bits(model(x)) == bits(y)
    assert bits(minilora.remove_lora(model.train())(x)) == bits(y0)
    assert snapshot(model) == before


def test_keeping_the_update_leaves_plain_layers():
    model = vera(CONFIGS["many sizes"])
    x = ids()
    y = model(x)
    minilora.remove_lora(model, keep_update=True)
    assert type(model.blocks[0].q_proj) is nn.Linear
    assert close(model(x), y)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scaling", "rslora"),
        ("init", "gaussian"),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("use_dora", True),
    ],
)
def test_settings_that_vera_does_not_use_are_refused(setting, value):
    model = Toy()
    config = LoRAConfig(targets=["q_proj"], **{setting: value})
    refuses(model, lambda: add_vera(model, config), "VeRA", setting)


def test_refusals():
    model = Toy()
    refuses(model, lambda: add_vera(model, LoRAConfig(targets=["embed", "q_proj"])), "'embed'")
    refuses(model, lambda: add_vera(model, LoRAConfig(targets=["q_prj"])), "q_proj")
    refuses(model, lambda: add_vera(model, LoRAConfig(targets=["q_proj"]), d_initial=0), "not 0")
    refuses(model, lambda: add_vera(model, {"r": 2}), "LoRAConfig", error=TypeError)
    add_vera(model, LoRAConfig(targets=["q_proj"]))
    refuses(model, lambda: add_vera(model, LoRAConfig(targets=["q_proj"])), "already")
    refuses(model, lambda: minilora.add_lora(model, LoRAConfig(targets=["q_proj"])), "already")


def test_alpha_is_ignored_and_targets_may_be_chosen_by_a_function(tmp_path):
    torch.manual_seed(0)
    base, x = Toy(), ids()

    def is_q(path: str, module: nn.Module) -> bool:
        return path.endswith("q_proj")

    by_name = vera({"r": 2, "targets": ["q_proj"], "alpha": 1}, copy.deepcopy(base))
    by_function = vera({"r": 2, "targets": is_q, "alpha": 64}, copy.deepcopy(base))
    assert bits(by_name(x)) == bits(by_function(x))
    minilora.save(by_function, tmp_path)


def test_a_tied_weight_is_merged_only_untied():
    torch.manual_seed(0)
    model = vera({"r": 2, "targets": ["head"]}, Tied())
    refuses(model, lambda: minilora.merge(model), "shared")
