"""AdaLoRA: thirty steps beside PEFT's, with the same scores, budgets and triplets."""

import copy
import itertools

import pytest
import torch
from core_help import Toy, bits, close, ids, refuses, snapshot, toy
from torch import nn

import minilora
from minilora import LoRAConfig
from minilora.variants.adalora import (
    AdaLoRALayer,
    RankAllocator,
    adalora_layers,
    add_adalora,
    orthogonal_penalty,
)

TARGETS = ["q_proj", "v_proj", "down_proj"]


def adalora(model: nn.Module | None = None, **config) -> nn.Module:
    """A model with AdaLoRA that has moved."""
    torch.manual_seed(0)
    model = add_adalora(Toy() if model is None else model, LoRAConfig(**config))
    with torch.no_grad():
        for p in minilora.lora_parameters(model):
            p.add_(torch.randn_like(p) * 0.3)
    return model


def pair(r: int, alpha: float, dropout: float = 0.0, **schedule) -> tuple[nn.Module, nn.Module]:
    """The same model with the same values, ours and PEFT's."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = Toy()
    ours = adalora(copy.deepcopy(base), r=r, alpha=alpha, dropout=dropout, targets=TARGETS)
    config = peft.AdaLoraConfig(
        init_r=r, lora_alpha=alpha, target_modules=TARGETS, lora_dropout=dropout, **schedule
    )
    other = peft.get_peft_model(base, config)
    with torch.no_grad():
        for path, layer in adalora_layers(ours).items():
            twin = other.base_model.model.get_submodule(path)
            twin.lora_A["default"].copy_(layer.A)
            twin.lora_B["default"].copy_(layer.B)
            twin.lora_E["default"].copy_(layer.Lambda[:, None])
    return ours, other


def twins(ours: nn.Module, other: nn.Module) -> list:
    """[(path, name in PEFT, our parameter, PEFT's)]."""
    found = []
    for path, layer in adalora_layers(ours).items():
        twin = other.base_model.model.get_submodule(path)
        for name, p in [("lora_A", layer.A), ("lora_E", layer.Lambda), ("lora_B", layer.B)]:
            found.append((path, f"{path}.{name}.default", p, getattr(twin, name)["default"]))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "schedule",
    [
        {"tinit": 4, "tfinal": 8, "deltaT": 1},
        {"tinit": 0, "tfinal": 5, "deltaT": 3},
        {"tinit": 10, "tfinal": 1, "deltaT": 7},
    ],
)
def test_thirty_steps_beside_peft(schedule):
    steps, r = 30, 4
    ours, other = pair(r, 8, target_r=2, total_step=steps, **schedule)
    for module in other.modules():
        if hasattr(module, "ranknum"):
            # PEFT divides by r + 1e-5. For equal bits, its divisor is made r exactly.
            module.ranknum["default"].fill_(r - 1e-5)
            assert module.ranknum["default"] + 1e-5 == r
    allocator = RankAllocator(
        ours,
        final_rank=2,
        total_steps=steps,
        warmup=schedule["tinit"],
        final_steps=schedule["tfinal"],
        interval=schedule["deltaT"],
    )
    theirs = other.base_model.rankallocator
    mine = torch.optim.AdamW(minilora.lora_parameters(ours), lr=0.02)
    its = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.02)
    pruned = set()
    for step in range(steps):
        x = ids(4, 5)
        for model, optimizer in [(ours, mine), (other, its)]:
            optimizer.zero_grad()
            with minilora.textbook():
                model(x).sin().square().sum().backward()
            optimizer.step()
        for _, name, p, q in twins(ours, other):
            assert bits(p.grad) == bits(q.grad.view_as(p)), name
        settled = step >= steps - schedule["tfinal"]
        assert allocator.update_and_allocate(step) == theirs.budget_schedule(step)[0]
        other.base_model.update_and_allocate(step)
        for _, name, p, q in twins(ours, other):
            assert bits(p) == bits(q.view_as(p)), (step, name)  # Λ: the same triplets are zero
            if not settled:
                assert bits(allocator.sensitivity[p]) == bits(theirs.exp_avg_ipt[name].view_as(p))
                assert bits(allocator.uncertainty[p]) == bits(theirs.exp_avg_unc[name].view_as(p))
        zeros = sum(int((layer.Lambda == 0).sum()) for layer in adalora_layers(ours).values())
        pruned.add(zeros)
    last = [int(kept.sum()) for kept in allocator.kept.values()]
    assert sum(last) == 2 * 6 and len(set(last)) > 1  # not the same rank everywhere
    assert max(pruned) == 2 * 6 and (len(pruned) > 4 or schedule["deltaT"] > 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_are_pefts_but_for_its_small_number_in_the_scale(dropout):
    ours, other = pair(3, 7, dropout, target_r=2, total_step=30)
    x = ids(3, 4)
    outputs = []
    for model in (ours, other):
        torch.manual_seed(7)
        with minilora.textbook():
            outputs.append(model(x))
    assert close(*outputs, relative=3e-5) and bits(outputs[0]) != bits(outputs[1])
    for path, layer in adalora_layers(ours).items():
        twin = other.base_model.model.get_submodule(path)
        delta = twin.get_delta_weight("default")
        assert torch.allclose(layer.delta() * 3 / (3 + 1e-5), delta, rtol=1e-6, atol=1e-8)
        assert layer.scale == 7 / 3


def test_scores_by_hand():
    torch.manual_seed(0)
    model = adalora(nn.Sequential(nn.Linear(3, 2)), r=2, targets=["0"])
    layer = model[0]
    allocator = RankAllocator(model, 1, total_steps=10, beta1=0.8, beta2=0.6)
    expected = dict.fromkeys(layer.trained(), (0.0, 0.0))
    for step in range(2):
        model.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        allocator.update_and_allocate(step)
        for p in (layer.A, layer.B):
            now = (p * p.grad).abs()
            average = 0.8 * expected[p][0] + 0.2 * now
            expected[p] = average, 0.6 * expected[p][1] + 0.4 * (now - average).abs()
        if step == 0:  # nothing dropped so far, so that Λ is what it was
            now = (layer.Lambda * layer.Lambda.grad).abs()
            s = {p: a * u for p, (a, u) in expected.items() if p is not layer.Lambda}
            s[layer.Lambda] = 0.2 * now * 0.4 * (now - 0.2 * now)
            wanted = s[layer.Lambda] + s[layer.A].sum(1) / 3 + s[layer.B].sum(0) / 2
            assert torch.allclose(allocator.scores()["0"], wanted)
    for p in (layer.A, layer.B):
        assert torch.allclose(allocator.sensitivity[p], expected[p][0])
        assert torch.allclose(allocator.uncertainty[p], expected[p][1])
    assert (layer.Lambda == 0).sum() == 1
    assert (layer.Lambda != 0).equal(allocator.kept["0"])
    assert allocator.ranks() == {"0": 1}


def test_the_budget_is_cubic_between_two_levels():
    model = adalora(r=6, targets=["q_proj"])  # 2 layers
    allocator = RankAllocator(model, 2, total_steps=100, warmup=20, final_steps=30)
    budgets = [allocator.budget(step) for step in range(100)]
    assert budgets[:21] == [12] * 21 and budgets[70:] == [4] * 30
    assert budgets[45] == int(8 * 0.5**3 + 4)
    assert all(a >= b for a, b in itertools.pairwise(budgets))


def test_a_dropped_triplet_can_come_back_until_the_choice_is_settled():
    model = adalora(nn.Sequential(nn.Linear(3, 2)), r=2, targets=["0"])
    layer = model[0]
    allocator = RankAllocator(model, 1, total_steps=40, final_steps=10)
    kept = {}
    for step in range(40):
        for p in layer.trained():
            p.grad = torch.zeros_like(p)
        # The loss depends on the first triplet, then on the second, then on the first again.
        layer.Lambda.grad[int(10 <= step < 30)] = 1.0 + step % 2
        layer.Lambda.data.fill_(1.0)  # as an optimizer might move it
        allocator.update_and_allocate(step)
        if step > 0:
            kept[step] = allocator.kept["0"].tolist()
            assert layer.Lambda.tolist() == [float(keep) for keep in kept[step]]
    assert kept[9] == [True, False]
    assert kept[29] == [False, True]  # back, though it had been dropped
    assert all(kept[step] == [False, True] for step in range(30, 40))  # settled


def test_the_same_budget_all_the_way_drops_nothing():
    model = adalora(r=2, targets=["q_proj"])
    allocator = RankAllocator(model, 2, total_steps=4)
    for step in range(6):  # also beyond the end
        model.zero_grad()
        model(ids()).sum().backward()
        assert allocator.update_and_allocate(step) == 4
    assert allocator.ranks() == {"blocks.0.q_proj": 2, "blocks.1.q_proj": 2}


@pytest.mark.filterwarnings("ignore")
def test_the_penalty_is_pefts():
    ours, other = pair(4, 8, target_r=2, total_step=30, orth_reg_weight=1.0)

    class Output:
        loss = torch.zeros(())

    def forward() -> type[Output]:
        return Output

    other.base_model.model.forward = forward
    wanted = other.base_model().loss  # PEFT adds the penalty to the loss of the model
    penalty = orthogonal_penalty(ours)
    assert torch.allclose(penalty, wanted)
    penalty.backward()
    wanted.backward()
    for _, name, p, q in twins(ours, other):
        if "lora_E" not in name:
            assert torch.allclose(p.grad, q.grad, atol=1e-7) and p.grad.abs().sum() > 0


def test_the_penalty_by_hand():
    model = adalora(r=3, targets=["q_proj", "up_proj"])
    with torch.no_grad():
        for layer in adalora_layers(model).values():
            layer.A.copy_(torch.linalg.qr(torch.randn(8, 3)).Q.T)
            layer.B.copy_(torch.linalg.qr(torch.randn(len(layer.B), 3)).Q)
        assert orthogonal_penalty(model) < 1e-5
        model.blocks[0].q_proj.A.mul_(2)  # Q Qᵀ = 4 I, and one of eight matrices
    assert torch.allclose(orthogonal_penalty(model), torch.tensor(3 * 3**0.5 / 8), atol=1e-5)


def test_the_start_changes_nothing_and_is_small_gaussians():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(200, 300))
    x = torch.randn(2, 200)
    model = add_adalora(copy.deepcopy(base), LoRAConfig(r=16, targets=["0"]))
    assert bits(model(x)) == bits(base(x))
    layer = model[0]
    assert (layer.Lambda == 0).all()
    assert abs(layer.A.std() / 0.02 - 1) < 0.05 and abs(layer.B.std() / 0.02 - 1) < 0.05
    assert sum(row[4] for row in minilora.summary(model).rows) == 16 * (200 + 1 + 300)


def test_conv1d_of_hugging_face():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = adalora(nn.Sequential(conv1d(6, 4)), r=3, targets=["0"])
    x = torch.randn(2, 5, 4)
    layer = model[0]
    y = model(x)
    update = (x @ layer.A.T * layer.Lambda @ layer.B.T) * layer.scale
    assert torch.allclose(y, layer.base(x) + update, atol=1e-6)
    with minilora.merged(model):
        assert torch.allclose(model(x), y, atol=1e-5)


def test_half_precision_bases():
    torch.manual_seed(0)
    model = adalora(Toy().bfloat16(), r=3, targets=["q_proj"])
    assert model.blocks[0].q_proj.Lambda.dtype == torch.float32
    x = ids()
    with minilora.textbook():
        y = model(x)
    assert y.dtype == torch.bfloat16 and close(model(x).float(), y.float(), 0.05)


def test_saved_merged_disabled_and_removed(tmp_path):
    torch.manual_seed(0)
    base = Toy()
    before = snapshot(base)
    x = ids()
    y0 = base(x)
    config = {"r": 4, "alpha": 6, "targets": ["q_proj", "up_proj"], "scaling": "rslora"}
    model = adalora(base, **config, rank_pattern={"up_proj": 2}, bias="lora_only")
    layers = adalora_layers(model)
    assert [layer.r for layer in layers.values()] == [4, 2, 4, 2]
    with torch.no_grad():
        layers["blocks.0.q_proj"].Lambda[1:3] = 0  # dropped triplets
    y = model(x)
    minilora.save(model, tmp_path)
    torch.manual_seed(0)
    plain = minilora.load(Toy(), tmp_path)
    assert not any(isinstance(v, AdaLoRALayer) for v in minilora.lora_layers(plain).values())
    assert close(plain(x), y)
    assert torch.linalg.matrix_rank(plain.blocks[0].q_proj.delta()) == 2
    with minilora.merged(model):
        assert close(model(x), y)
    with minilora.disabled(model):
        assert bits(model(x)) == bits(y0)
    assert bits(minilora.remove_lora(model)(x)) == bits(y0)
    assert snapshot(model) == before


def test_refusals():
    model = Toy()

    def add(**config):
        return lambda: add_adalora(model, LoRAConfig(**config))

    refuses(model, add(targets=["embed"]), "AdaLoRA", "'embed'")
    refuses(model, add(targets=["q_proj"], init="pissa"), "AdaLoRA", "init")
    refuses(model, add(targets=["q_proj"], use_dora=True), "AdaLoRA", "use_dora")
    plain = toy(r=2, targets=["q_proj"])
    refuses(plain, lambda: RankAllocator(plain, 1, 10), "add_adalora")
    refuses(plain, lambda: add_adalora(plain, LoRAConfig(targets=["q_proj"])), "already")
    adalora(model, r=4, targets=["q_proj"])
    refuses(model, lambda: RankAllocator(model, 5, 10), "final_rank", "4")
    refuses(model, lambda: RankAllocator(model, 0, 10), "final_rank")
    refuses(model, lambda: RankAllocator(model, 2, 10, warmup=6, final_steps=4), "no steps")
    refuses(model, lambda: RankAllocator(model, 2, 10, final_steps=0), "final_steps=0")
    refuses(model, lambda: RankAllocator(model, 2, 10, interval=0), "interval")
    refuses(model, lambda: RankAllocator(model, 2, 10, beta1=1.0), "beta1")
    allocator = RankAllocator(model, 2, 10)
    refuses(model, lambda: allocator.update_and_allocate(0), "before zero_grad")
