"""A batch whose rows take different adapters computes what each adapter alone would."""

import copy

import pytest
import torch
from core_help import Toy, bits, close, ids, refuses, shake, unchanged
from torch import nn

import minilora
from minilora import AdapterError, LoRAConfig, add_lora
from minilora.serving import AdapterBank, ServedLinear

CONFIGS = {
    "a": {"targets": ["q_proj", "v_proj"], "r": 2, "alpha": 3},
    "b": {"targets": "all-linear", "r": 5, "alpha": 7, "scaling": "rslora"},
    "c": {"targets": ["down_proj"], "r": 1, "rank_pattern": {"1.down_proj": 4}},
}


def base() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def folders(tmp_path):
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = add_lora(base(), LoRAConfig(**config))
        torch.manual_seed(seed)
        minilora.save(shake(model), tmp_path / name)
    return tmp_path


@pytest.fixture
def bank(folders):
    bank = AdapterBank(base())
    for name in CONFIGS:
        bank.add(name, folders / name)
    return bank


def alone(folders, name, x):
    model = base() if name is None else minilora.load(base(), folders / name)
    return model(x)


@pytest.mark.parametrize("names", [["a", "b", None, "c", "b"], ["c"], ["b", "b"], [None, None]])
def test_each_row_equals_its_own_adapter(bank, folders, names):
    x = ids(len(names), 4)
    with bank.rows(names) as model:
        y = model(x)
    for i, name in enumerate(names):
        assert close(y[i], alone(folders, name, x[i : i + 1])[0], 1e-5), name


def test_outside_rows_and_after_close_the_model_is_the_base(bank):
    x = ids(3, 4)
    wanted = base()(x)
    assert bits(bank.model(x)) == bits(wanted)
    with bank.rows(["a", "b", "c"]):
        assert not close(bank.model(x), wanted, 1e-2)
    assert bits(bank.model(x)) == bits(wanted)
    bank.close()
    assert bits(bank.model(x)) == bits(wanted)
    assert not any(isinstance(m, ServedLinear) for m in bank.model.modules())
    assert type(bank.model.blocks[0].q_proj) is nn.Linear


def test_adding_and_removing_leave_the_others_alone(bank, folders):
    x = ids(2, 4)
    with bank.rows(["a", "c"]):
        before = bank.model(x)
    bank.remove("b")
    assert bank.names == ["a", "c"]
    with bank.rows(["a", "c"]):
        assert close(bank.model(x), before, 1e-6)
    bank.add("again", folders / "b")
    with bank.rows(["again", "c"]):
        y = bank.model(x)
    assert close(y[:1], alone(folders, "b", x[:1]), 1e-5)
    assert close(y[1], before[1], 1e-5)


def test_rows_nest_and_are_restored_after_an_error(bank):
    x = ids(2, 4)
    with bank.rows(["a", "b"]):
        outer = bank.model(x)
        with bank.rows(["c", None]):
            assert not close(bank.model(x), outer, 1e-2)
        assert bits(bank.model(x)) == bits(outer)
        with pytest.raises(IndexError), bank.rows(["c", None]):
            bank.model(x + 100)
        assert bits(bank.model(x)) == bits(outer)


def test_inputs_of_any_number_of_axes(tmp_path):
    model = nn.ModuleDict({"q": nn.Linear(4, 3)})
    minilora.save(shake(add_lora(copy.deepcopy(model), LoRAConfig(r=2, targets=["q"]))), tmp_path)
    bank = AdapterBank(model)
    bank.add("one", tmp_path)
    single = minilora.load(copy.deepcopy(base_of(bank)), tmp_path)["q"]
    for shape in [(2, 4), (2, 5, 4), (2, 3, 5, 4)]:
        x = torch.randn(shape)
        with bank.rows(["one", None]):
            y = model["q"](x)
        assert close(y[:1], single(x[:1]), 1e-5)
        assert close(y[1:], single.base(x[1:]), 1e-6)


def base_of(bank: AdapterBank) -> nn.ModuleDict:
    return nn.ModuleDict({"q": bank.model["q"].base})


def test_hugging_face_conv1d(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.ModuleDict({"c": conv1d(4, 4)})
    adapted = shake(add_lora(copy.deepcopy(model), LoRAConfig(r=2, targets=["c"])))
    minilora.save(adapted, tmp_path)
    bank, x = AdapterBank(model), torch.randn(2, 3, 4)
    bank.add("one", tmp_path)
    with bank.rows([None, "one"]):
        assert close(model["c"](x)[1:], adapted["c"](x[1:]), 1e-5)


def test_bytes_are_those_of_the_padded_stacks(bank):
    # Ranks 2, 5 and 1 (or 4) in places 1 to 3 of a stack whose place 0 is the base.
    linears = [(8, 8), (8, 8), (8, 16), (16, 8)] * 2
    assert bank.nbytes() == 4 * 4 * sum(5 * (i + o) for i, o in linears)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"targets": ["q_proj"], "bias": "lora_only"}, ["'blocks.0.q_proj.bias'", "merge it"]),
        ({"targets": ["q_proj"], "modules_to_save": ["head"]}, ["'head'", "merge it"]),
        ({"targets": ["q_proj"], "use_dora": True}, ["DoRA magnitudes"]),
        ({"targets": ["embed"]}, ["'embed', a Embedding", "linear layers"]),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_changes_nothing(bank, tmp_path, config, words):
    minilora.save(shake(add_lora(base(), LoRAConfig(r=2, **config))), tmp_path / "new")
    refuses(bank.model, lambda: bank.add("new", tmp_path / "new"), *words, error=AdapterError)
    assert bank.names == ["a", "b", "c"]


def test_refusals(bank, folders, tmp_path):
    model = bank.model
    refuses(model, lambda: bank.add("a", folders / "b"), "'a' is taken")
    refuses(model, lambda: bank.add("", folders / "b"), "empty")
    refuses(model, lambda: bank.add("d", tmp_path / "nothing"), "not a folder")
    refuses(model, lambda: bank.remove("d"), "no adapter 'd'", "'a', 'b', 'c'")
    refuses(model, lambda: AdapterBank(model), "has adapters already")
    with unchanged(model), pytest.raises(ValueError, match="no adapter 'x'"), bank.rows(["x"]):
        pass
    with pytest.raises(TypeError, match="a name for each row"), bank.rows("a"):
        pass
    with bank.rows(["a", "b"]):
        with pytest.raises(ValueError, match=r"2 adapters.*\(3, 4, 8\).*first axis"):
            model(ids(3, 4))
        for action in (lambda: bank.add("d", folders / "b"), lambda: bank.remove("a"), bank.close):
            with pytest.raises(ValueError, match=r"inside rows"):
                action()
    adapted = add_lora(base(), LoRAConfig(targets=["q_proj"]))
    refuses(adapted, lambda: AdapterBank(adapted), "remove_lora")


def test_a_served_model_takes_no_adapter_and_a_closed_bank_no_more(bank, folders):
    config = LoRAConfig(targets=["q_proj"])
    refuses(bank.model, lambda: add_lora(bank.model, config), "AdapterBank", "close")
    refuses(bank.model, lambda: minilora.load(bank.model, folders / "a"), "AdapterBank")
    with AdapterBank(base()) as other:
        other.add("a", folders / "a")
        add_lora_later = other.model
    assert not any(isinstance(m, ServedLinear) for m in add_lora_later.modules())
    refuses(add_lora_later, lambda: other.add("b", folders / "b"), "closed")
    idle = AdapterBank(base())
    adapted = shake(add_lora(idle.model, config))
    refuses(adapted, lambda: idle.add("a", folders / "a"), "adapted since")
