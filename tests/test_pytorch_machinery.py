"""Adapters under PyTorch's own machinery: compiled, exported, vmapped, checkpointed, distributed.

tests/test_layers.py and tests/test_adapt.py hold the small cases of a single layer; here whole
models with every type of layer run.
"""

import copy
import io
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from core_help import Toy, bits, close, ids, shake, snapshot, toy
from distributed_worker import SECTIONS, run_pair, shard
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import minilora
from minilora import LoRAConfig, add_lora, disabled, lora_layers, lora_parameters, merged
from minilora.layers import LoRAConv, LoRAEmbedding, LoRAHFConv1D, LoRALinear

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
peft = pytest.importorskip("peft")


class Zoo(nn.Module):
    """Token ids (n, t) → (n, 3), through every type of layer that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv1 = nn.Conv1d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.hf = Conv1D(8, 8)
        self.conv2 = nn.Conv2d(1, 4, 3, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv1(self.embed(ids).mT).mT  # (n, t, 8)
        x = self.hf(torch.tanh(self.linear(x)))
        x = torch.tanh(self.conv2(x.unsqueeze(1)))  # (n, 4, t', 3)
        return self.head(x.mean((2, 3)))


LAYERS = ["embed", "conv1", "linear", "hf", "conv2"]
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"targets": LAYERS, "r": 2, "alpha": 3},
    "dora": {"targets": LAYERS, "r": 2, "alpha": 3, "use_dora": True},
    "biases and head": {"targets": LAYERS, "r": 2, "bias": "all", "modules_to_save": ["head"]},
    "pissa": {"targets": ["linear", "hf"], "r": 2, "init": "pissa"},
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
most = pytest.mark.parametrize("config", list(CONFIGS.values())[:3], ids=list(CONFIGS)[:3])


def zoo(config: dict[str, Any] | None = None, seed: int = 0) -> Zoo:
    """The same base for every seed; the adapter shaken by it."""
    torch.manual_seed(0)
    model = Zoo()
    if config is not None:
        add_lora(model, LoRAConfig(**config))
        torch.manual_seed(seed)
        shake(model)
    return model


def plain(x: Tensor, requires_grad: bool = False) -> Tensor:
    """What the base answers. PyTorch rounds some products differently if weights are frozen."""
    return zoo().requires_grad_(requires_grad)(x)


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.sin().sum(), lora_parameters(model)))


def all_close(a: list[Tensor], b: list[Tensor], relative: float = 1e-4) -> bool:
    return all(close(s, t, relative) for s, t in zip(a, b, strict=True))


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return [bits(t) for t in a] == [bits(t) for t in b]


def test_the_zoo_holds_every_type():
    kinds = {type(layer) for layer in lora_layers(zoo(CONFIGS["lora"])).values()}
    assert kinds == {LoRALinear, LoRAEmbedding, LoRAHFConv1D, LoRAConv}


# --- torch.compile --------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


compiles = pytest.mark.usefixtures("fresh_compiler")


@compiles
@every
def test_compiled_in_one_graph_forward_and_backward(config):
    model, x = zoo(config), ids(3, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # a break is an error
    y = compiled(x)
    assert close(y, model(x))
    assert all_close(gradients(model, y), gradients(model, model(x)))


@compiles
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_by_inductor():
    model = add_lora(nn.Sequential(nn.Linear(6, 4)), LoRAConfig(targets=["0"], r=2))
    shake(model)
    x = torch.randn(5, 6)
    y = torch.compile(model, fullgraph=True)(x)
    assert close(y, model(x))
    assert all_close(gradients(model, y), gradients(model, model(x)))


@compiles
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_what_changes_after_compiling_is_seen(how):
    model, x = zoo(), ids(3, 6)
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    twin = zoo()
    base = twin(x)
    assert close(compiled(x), base)
    for m in (model, twin):
        torch.manual_seed(0)
        shake(add_lora(m, LoRAConfig(**CONFIGS["biases and head"])))
    y = twin(x)
    assert not close(y, base, 1e-2)
    assert close(compiled(x), y)
    with disabled(model):
        assert close(compiled(x), base)
    for m in (model, twin):
        minilora.set_strength(m, 0.3)
    assert not close(twin(x), y, 1e-2)
    assert close(compiled(x), twin(x))
    minilora.set_strength(model, 1)
    with merged(model):
        assert close(compiled(x), y)
    with minilora.textbook():
        assert close(compiled(x), y)
    assert close(compiled(x), y)
    minilora.remove_lora(model)
    assert close(compiled(x), base)


@compiles
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_the_compiled_model_keeps_its_paths(how, tmp_path):
    model, x = zoo(CONFIGS["biases and head"]), ids(3, 6)
    if how == "wrapped":
        wrapper = torch.compile(model, backend="eager")
        wrapper(x)
        with pytest.raises(ValueError, match="not the module that add_lora was given"):
            minilora.save(wrapper, tmp_path / "wrapper")
        assert not (tmp_path / "wrapper").exists()
    else:
        model.compile(backend="eager")
        model(x)
    assert list(lora_layers(model)) == LAYERS
    minilora.save(model, tmp_path)
    assert close(minilora.load(zoo(), tmp_path)(x), model(x))


def compiled_whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_blocks(model: Any) -> nn.Module:
    """As is advised for large models: the repeated part is compiled once."""
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="eager")
    return model


def checkpointed_blocks(model: Any) -> nn.Module:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return model


wrappings = pytest.mark.parametrize("wrap", [compiled_whole, compiled_blocks, checkpointed_blocks])


@compiles
@wrappings
def test_wrappers_that_were_there_before_stay_out_of_the_file(wrap, tmp_path):
    torch.manual_seed(0)
    model = wrap(Toy())
    shake(add_lora(model, LoRAConfig(targets=["blocks.0.q_proj", "v_proj"], r=2)))
    minilora.save(model, tmp_path)
    torch.manual_seed(0)
    again, x = minilora.load(Toy(), tmp_path), ids()
    assert close(again(x), model(x))
    assert list(lora_layers(again)) == list(lora_layers(model))


@compiles
@pytest.mark.parametrize("wrap", [compiled_blocks, checkpointed_blocks])
def test_wrappers_that_came_after_stay_out_of_the_file(wrap, tmp_path):
    model = wrap(toy(targets=["blocks.0.q_proj", "v_proj"], r=2))
    minilora.save(model, tmp_path)
    torch.manual_seed(0)
    again, x = minilora.load(Toy(), tmp_path), ids()
    assert close(again(x), model(x))


@compiles
@wrappings
def test_an_adapter_loads_onto_a_wrapped_model(wrap, tmp_path):
    plain = toy(targets=["blocks.0.q_proj", "v_proj"], r=2, modules_to_save=["head"])
    minilora.save(plain, tmp_path)
    torch.manual_seed(0)
    model, x = minilora.load(wrap(Toy()), tmp_path), ids()
    assert close(model(x), plain(x))


@compiles
@pytest.mark.parametrize(
    "config",
    [
        {"targets": "all-linear"},
        {"targets": ["proj"]},
        {"targets": nn.Linear},
        {"targets": ["out"], "modules_to_save": ["proj"]},
    ],
)
def test_a_layer_that_is_compiled_by_itself_is_not_passed_by(config):
    proj, out = torch.compile(nn.Linear(6, 4), backend="eager"), nn.Linear(4, 3)
    model = nn.Sequential(OrderedDict(proj=proj, out=out))
    x = torch.randn(3, 6)
    y = model(x)
    try:
        add_lora(model, LoRAConfig(**config))
    except ValueError:  # a refusal is right as well
        assert not lora_layers(model)
        assert torch.equal(model(x), y)
        return
    # What is inside the compiled wrapper trains: a change of it must be seen.
    with torch.no_grad():
        for p in model.proj.parameters():
            if p.requires_grad:
                p.normal_()
    assert not close(model(x), y, 1e-2)


# --- autocast -------------------------------------------------------------------------------


def with_peft(config: dict[str, Any], ours: Zoo) -> tuple[Any, list[Tensor]]:
    """The zoo adapted by PEFT with the numbers of ``ours``, and its A, B (and magnitudes)."""
    other = peft.get_peft_model(
        zoo(),
        peft.LoraConfig(
            r=2,
            lora_alpha=config.get("alpha", 8),
            target_modules=LAYERS,
            use_dora=config.get("use_dora", False),
        ),
    )
    trained = []
    for path, layer in lora_layers(ours).items():
        module = other.base_model.model.get_submodule(path)
        if path == "embed":
            theirs = [module.lora_embedding_A["default"], module.lora_embedding_B["default"]]
        else:
            theirs = [module.lora_A["default"].weight, module.lora_B["default"].weight]
        if layer.dora is not None:
            theirs.append(module.lora_magnitude_vector["default"].weight)
        for p, q in zip(theirs, layer.trained(), strict=True):
            p.data.copy_(q)
        trained += theirs
    return other, trained


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_autocast_is_pefts(name):
    ours, x = zoo(CONFIGS[name]), ids(3, 6)
    other, theirs = with_peft(CONFIGS[name], ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = ours(x), other(x)
    assert y.dtype == torch.bfloat16
    wanted = list(torch.autograd.grad(z.sin().sum(), theirs))
    found = gradients(ours, y)
    assert {g.dtype for g in found} == {torch.float32}
    if name == "lora":
        assert bits(y) == bits(z)
        assert same_bits(found, wanted)
    else:  # DoRA's norm is rounded in another order
        assert close(y.float(), z.float(), 0.03)
        assert all_close(found, wanted, 0.03)
    exact = ours(x)
    assert close(y.float(), exact, 0.1)
    assert not close(y.float(), exact, 1e-5)


@every
def test_autocast_merged_and_disabled(config):
    model, x = zoo(config), ids(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = model(x)
        with merged(model):
            assert close(model(x).float(), y.float(), 0.1)
        with disabled(model):
            assert close(model(x).float(), plain(x).float(), 0.1)
        assert bits(model(x)) == bits(y)


# --- gradient checkpointing -----------------------------------------------------------------


class Checkpointed(Toy):
    """The toy, with its blocks recomputed in the backward pass."""

    reentrant = False

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(self.norm(x))


CHECKPOINTED = [
    {"targets": ["q_proj", "down_proj"], "r": 2},
    {"targets": ["q_proj", "down_proj"], "r": 2, "dropout": 0.3},
    {"targets": ["v_proj"], "r": 2, "use_dora": True, "bias": "all", "modules_to_save": ["norm"]},
]


@pytest.mark.parametrize("config", CHECKPOINTED)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_of_checkpointed_blocks(config, reentrant):
    model, x = toy(**config), ids()
    torch.manual_seed(1)
    wanted = gradients(model, model(x))
    model.__class__ = Checkpointed
    model.reentrant = reentrant
    if reentrant:
        # What a user does about the next test: say that the input of the blocks needs a gradient.
        model.embed.register_forward_hook(lambda m, args, y: y.requires_grad_())
    torch.manual_seed(1)
    model(x).sin().sum().backward()
    found = [p.grad for p in lora_parameters(model)]
    assert same_bits(found, wanted)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_loses_gradients_behind_a_frozen_embedding():
    # This is PyTorch's doing (peft#137), and the reason why the first block must get an input
    # that needs a gradient. An adapted embedding is one.
    model, x = toy(targets=["q_proj"], r=2, modules_to_save=["head"]), ids()
    model.__class__, model.reentrant = Checkpointed, True
    model(x).sin().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        "head.tuned.weight",
        "head.tuned.bias",
    ]
    model = toy(targets=["q_proj", "embed"], r=2)
    wanted = gradients(model, model(x))
    model.__class__, model.reentrant = Checkpointed, True
    model(x).sin().sum().backward()
    assert same_bits([p.grad for p in lora_parameters(model)], wanted)


# --- copies, pickles, state -----------------------------------------------------------------


@every
@pytest.mark.parametrize("state", ["unmerged", "merged"])
def test_deepcopy_and_pickle_in_memory(config, state):
    model, x = zoo(config), ids(3, 6)
    wanted = gradients(model, model(x))
    if state == "merged":
        minilora.merge(model)
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert bits(twin(x)) == bits(y)
        mine = {t.data_ptr() for t in model.state_dict().values()}
        assert mine.isdisjoint(t.data_ptr() for t in twin.state_dict().values())
        if state == "merged":
            minilora.unmerge(twin)
        assert same_bits(gradients(twin, twin(x)), wanted)
        minilora.remove_lora(twin)
        assert bits(twin(x)) == bits(plain(x, requires_grad=True))
        assert bits(model(x)) == bits(y)


@every
def test_state_dict_through_a_file(config):
    model, other, x = zoo(config), zoo(config, seed=5), ids(3, 6)
    assert not close(other(x), model(x), 1e-2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))  # strict
    assert bits(other(x)) == bits(model(x))
    with disabled(other):
        assert bits(other(x)) == bits(plain(x))


@every
def test_state_dict_with_assign(config, tmp_path):
    """``assign=True`` puts new parameters into the modules, as FSDP's sharding does too."""
    model, other, x = zoo(config), zoo(config, seed=5), ids(3, 6)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert bits(other(x)) == bits(model(x))
    listed = {id(p) for p in lora_parameters(other)}
    assert listed == {id(p) for p in other.parameters() if p.requires_grad}
    minilora.save(model, tmp_path / "a")
    minilora.save(other, tmp_path / "b")
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "ab")
    assert {k: bits(t) for k, t in a.items()} == {k: bits(t) for k, t in b.items()}
    with disabled(other):
        assert bits(other(x)) == bits(plain(x))
    minilora.remove_lora(other)
    assert all(p.requires_grad for p in other.parameters())
    assert bits(other(x)) == bits(plain(x, requires_grad=True))


def test_built_on_the_meta_device():
    """Shapes without memory: an adapted skeleton that a state dict fills."""
    model, x = zoo(CONFIGS["dora"]), ids(3, 6)
    with torch.device("meta"):
        skeleton = Zoo()
    add_lora(skeleton, LoRAConfig(**CONFIGS["dora"]))
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    twin = copy.deepcopy(skeleton)
    skeleton.load_state_dict(model.state_dict(), assign=True)
    twin.to_empty(device="cpu")
    twin.load_state_dict(model.state_dict())
    assert bits(skeleton(x)) == bits(twin(x)) == bits(model(x))


def test_loading_onto_the_meta_device_is_refused(tmp_path):
    """The numbers of the file would have nowhere to go."""
    minilora.save(zoo(CONFIGS["lora"]), tmp_path)
    with torch.device("meta"):
        skeleton = Zoo()
    before = snapshot_of_names(skeleton)
    with pytest.raises(ValueError, match="meta"):
        minilora.load(skeleton, tmp_path)
    assert snapshot_of_names(skeleton) == before


def snapshot_of_names(model: nn.Module) -> list[tuple[str, int, bool]]:
    return [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]


def test_moving_averages_of_weights():
    model, x = zoo(CONFIGS["biases and head"]), ids(3, 6)
    average = AveragedModel(model)
    first = [p.detach().clone() for p in lora_parameters(model)]
    average.update_parameters(model)
    shake(model)
    average.update_parameters(model)
    for a, p, q in zip(lora_parameters(average.module), first, lora_parameters(model), strict=True):
        assert close(a, (p + q) / 2)
    with disabled(average.module):
        assert close(average(x), plain(x))


@most
def test_channels_last(config):
    model, x = zoo(config), ids(3, 6)
    y = model(x)
    model.to(memory_format=torch.channels_last)
    assert close(model(x), y)
    with merged(model):
        assert close(model(x), y)
    assert close(model(x), y)


# --- inference mode -------------------------------------------------------------------------


@every
def test_inference_mode(config):
    model, x = zoo(config), ids(3, 6)
    y = model(x)
    wanted = gradients(model, y)
    with torch.inference_mode():
        assert close(model(x), y)
        with merged(model):
            assert close(model(x), y)
        with disabled(model):
            assert close(model(x), plain(x))
    assert same_bits(gradients(model, model(x)), wanted)


@pytest.mark.parametrize("function", ["add_lora", "load"])
@most
def test_adapters_made_in_inference_mode_train(function, config, tmp_path):
    """A server that swaps adapters does so where it answers; the adapter is a usual one."""
    x = ids(3, 6)
    minilora.save(zoo(config), tmp_path)
    model = zoo()
    with torch.inference_mode():
        if function == "load":
            minilora.load(model, tmp_path)
        else:
            add_lora(model, LoRAConfig(**config))
    parameters = lora_parameters(model)
    assert all(p.requires_grad and not p.is_inference() for p in parameters)
    model(x).sum().backward()
    torch.optim.SGD(parameters, lr=0.1).step()


# --- export, trace, functorch, hooks --------------------------------------------------------


def exported(model: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), (x,))


@every
def test_export(config):
    x, other = ids(3, 6), ids(3, 6)
    base = exported(zoo(), x)
    for how in ("adapted", "merged", "update kept"):
        model = zoo(config)
        y = model(other)
        if how == "merged":
            minilora.merge(model)
        elif how == "update kept":
            minilora.remove_lora(model, keep_update=True)
        program = exported(model, x)
        assert close(program.module()(other), model(other))
        assert close(program.module()(other), y)
        if how == "adapted":
            assert len(program.graph.nodes) > len(base.graph.nodes)
        else:  # nothing of the adapter is computed
            calls = [
                [n.target for n in p.graph.nodes if n.op != "placeholder"] for p in (program, base)
            ]
            assert calls[0] == calls[1]
        if how == "update kept":
            assert program.state_dict.keys() == zoo().state_dict().keys()


@pytest.mark.filterwarnings("ignore")
@most
def test_trace(config):
    model, x = zoo(config).eval(), ids(3, 6)
    traced = torch.jit.trace(model, ids(3, 6))
    assert close(traced(x), model(x))


@every
def test_stacked_adapters_under_vmap(config):
    """Three adapters of one base at once: outputs and gradients are those of each alone."""
    models, x = [zoo(config, seed) for seed in range(3)], ids(3, 6)
    names = [n for n, p in models[0].named_parameters() if p.requires_grad]
    states = [dict(m.named_parameters()) for m in models]
    stacked = {n: torch.stack([s[n].detach() for s in states]) for n in names}

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], parameters, (x,))

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(parameters, x).sin().sum()

    together = torch.vmap(run, in_dims=(0, None))(stacked, x)
    slopes = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, x)
    for i, model in enumerate(models):
        y = model(x)
        assert close(together[i], y)
        wanted = dict(zip(map(id, lora_parameters(model)), gradients(model, y), strict=True))
        for n in names:
            assert close(slopes[n][i], wanted[id(states[i][n])], 1e-4), n
    assert not close(together[1], together[0], 1e-2)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@most
def test_hooks_on_the_adapted_layers(config):
    """Module hooks, backward ones included, sit on the adapted layer as on any other."""
    model, x = zoo(config), ids(3, 6)
    wanted, seen = gradients(model, model(x)), []
    for path, layer in lora_layers(model).items():
        layer.register_forward_hook(lambda m, args, y, path=path: seen.append(path))
        layer.register_full_backward_hook(lambda m, gi, go, path=path: seen.append(f"-{path}"))
    assert same_bits(gradients(model, model(x)), wanted)
    assert seen[:5] == LAYERS
    assert set(seen[5:]) == {f"-{path}" for path in LAYERS}


def test_dora_on_a_parametrized_base():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    base = nn.Sequential(OrderedDict(proj=layer))
    x, before = torch.randn(3, 6), snapshot(base)
    y = base(x)
    for use_dora in (False, True):
        add_lora(base, LoRAConfig(targets=["proj"], r=2, use_dora=use_dora))
        assert close(base(x), y)  # nothing is changed at the start
        shake(base)
        layer = base.proj
        wanted = nn.functional.linear(x, layer.weight + layer.delta(), layer.bias)
        assert close(base(x), wanted)
        assert not close(base(x), y, 1e-2)
        minilora.remove_lora(base)
        assert snapshot(base) == before


# --- several processes ----------------------------------------------------------------------

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch is built without gloo"
)


def check_pair(framework: str, folder: Path) -> None:
    outcomes = run_pair(framework, folder)
    wrong = [
        f"{section}, process {rank}: {text}"
        for rank, sections in enumerate(outcomes)
        for section, text in sections.items()
        if text
    ]
    assert not wrong, "\n".join(wrong)
    assert [list(o) for o in outcomes] == [list(SECTIONS[framework])] * 2  # both got to the end


@needs_gloo
def test_distributed_data_parallel(tmp_path):
    check_pair("ddp", tmp_path)


@needs_gloo
@pytest.mark.slow
def test_fully_sharded(tmp_path):
    check_pair("fsdp", tmp_path)


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Enough to wrap and shard a model in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@needs_gloo
@pytest.mark.usefixtures("group_of_one")
def test_the_wrapper_of_data_parallelism_is_refused(tmp_path):
    parallel = DistributedDataParallel(toy(targets=["q_proj"]))
    for function in (minilora.merge, lambda model: minilora.save(model, tmp_path / "a")):
        with pytest.raises(ValueError, match="not the module that add_lora was given"):
            function(parallel)
    assert not (tmp_path / "a").exists()


@needs_gloo
@pytest.mark.usefixtures("group_of_one")
def test_adding_after_data_parallelism_is_refused():
    # Nobody would average the gradients of factors that DDP did not see when it was made.
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        add_lora(DistributedDataParallel(Toy()), LoRAConfig(targets=["q_proj"]))


@needs_gloo
@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("function", ["add_lora", "load"])
def test_adding_to_a_sharded_model_is_refused(function, tmp_path):
    # Nor those of factors that FSDP did not see.
    minilora.save(toy(targets=["q_proj"]), tmp_path)
    model = shard(Toy())
    action = {
        "add_lora": lambda: add_lora(model, LoRAConfig(targets=["q_proj"])),
        "load": lambda: minilora.load(model, tmp_path),
    }[function]
    with pytest.raises(ValueError, match="shard"):
        action()
    assert not lora_layers(model)


@needs_gloo
@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("function", ["merge", "remove_lora"])
def test_merging_a_sharded_model_is_right_or_refused(use_dora, function):
    model, x = shard(toy(targets=["q_proj"], use_dora=use_dora)), ids()
    with torch.no_grad():
        y = model(x)
        try:
            if function == "merge":
                minilora.merge(model)
            else:
                minilora.remove_lora(model, keep_update=True)
        except ValueError:
            assert len(lora_layers(model)) == 2
        assert close(model(x), y)
