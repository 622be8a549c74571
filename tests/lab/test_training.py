"""The training loop: what it updates, that it repeats itself, and that it says when it fails."""

import math

import pytest
import torch
from torch import nn

from minilora.lab import training
from minilora.lab.transformer import TransformerClassifier, TransformerConfig

SMALL = TransformerConfig(image_size=(4, 4), width=16, heads=2, layers=1, classes=4)


def toy(n=64):
    """Which quarter of the picture holds the ink."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (n,), generator=generator)
    x = 0.1 * torch.rand(n, 1, 4, 4, generator=generator)
    for picture, label in zip(x, y.tolist(), strict=True):
        top, left = 2 * (label // 2), 2 * (label % 2)
        picture[0, top : top + 2, left : left + 2] += 0.8
    return x, y


def model(seed=0):
    training.set_seed(seed)
    return TransformerClassifier(SMALL)


def test_fit_learns():
    net, (x, y) = model(), toy()
    before = training.evaluate(net, x, y)
    history = training.fit(net, x, y, steps=60, lr=5e-3, batch_size=16, progress=False)
    after = training.evaluate(net, x, y)
    assert after.accuracy > 0.95 and after.log_loss < before.log_loss / 2
    assert len(history.loss) == len(history.lr) == 60 and history.seconds > 0
    assert history.loss[-1] < history.loss[0]


def test_looks_on_the_way_change_nothing_and_are_those_of_shorter_runs():
    """At a constant rate, so that a shorter run is the beginning of a longer one."""
    (x, y), looks_at = toy(), toy(20)
    given = {"lr": 5e-3, "batch_size": 16, "schedule": "constant", "warmup": 0, "progress": False}
    plain = training.fit(model(), x, y, steps=5, **given)
    watched = training.fit(model(), x, y, steps=5, look_at=looks_at, every=2, **given)
    assert watched.loss == plain.loss and plain.looks == []
    for steps, look in zip((2, 4), watched.looks, strict=True):
        net = model()
        training.fit(net, x, y, steps=steps, **given)
        assert look == training.evaluate(net, *looks_at)


def test_the_same_seed_gives_the_same_model():
    results = []
    for seed in (1, 1, 2):
        net, (x, y) = model(), toy()
        training.fit(net, x, y, steps=5, lr=1e-3, batch_size=16, seed=seed, progress=False)
        results.append(net.head.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_only_the_given_parameters_move():
    net, (x, y) = model(), toy()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    training.fit(net, x, y, steps=3, lr=1e-2, parameters=net.head.parameters(), progress=False)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_model_is_moved_before_its_parameters_are_collected():
    """A move may put new parameters in the old ones' places; the new ones must be trained."""
    net, (x, y) = model(), toy()
    move = net.to

    def to(device):
        for part in net.modules():
            for name, p in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(p.detach().clone()))
        return move(device)

    net.to = to
    old = net.head.weight
    training.fit(net, x, y, steps=3, lr=1e-2, device="cpu", progress=False)
    assert net.head.weight is not old and not torch.equal(net.head.weight, old)


def test_frozen_parameters_do_not_move():
    net, (x, y) = model(), toy()
    net.blocks.requires_grad_(False)
    before = net.blocks[0].attention.q_proj.weight.clone()
    training.fit(net, x, y, steps=3, lr=1e-2, weight_decay=0.1, progress=False)
    assert torch.equal(net.blocks[0].attention.q_proj.weight, before)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        training.fit(net, x, y, steps=3, lr=1e-2, progress=False)


def test_divergence_is_said():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    x, y = toy()
    x = x.clone()
    x[0] = float("inf")
    with pytest.raises(training.Diverged, match="learning rate of 0.01"):
        training.fit(net, x, y, steps=30, lr=1e-2, progress=False)


def test_schedules():
    constant = [training.learning_rate(i, 10, 2.0, "constant", 4) for i in range(10)]
    assert constant == [0.5, 1.0, 1.5, 2.0] + [2.0] * 6
    cosine = [training.learning_rate(i, 10, 2.0, "cosine", 0) for i in range(10)]
    assert cosine[0] == 2.0 and cosine == sorted(cosine, reverse=True)
    assert math.isclose(cosine[5], 1.0) and 0 < cosine[-1] < 0.1
    with pytest.raises(ValueError, match="'constant' or 'cosine'"):
        training.learning_rate(0, 10, 1.0, "linear", 0)


def test_fit_follows_the_schedule():
    net, (x, y) = model(), toy()
    history = training.fit(net, x, y, steps=20, lr=1e-3, warmup=5, progress=False)
    assert history.lr == [training.learning_rate(i, 20, 1e-3, "cosine", 5) for i in range(20)]


@pytest.mark.parametrize(("n", "size"), [(10, 4), (7, 7), (5, 32), (9, 1)])
def test_batches_pass_over_everything(n, size):
    drawn = list(training.batches(n, size, steps=12, seed=0))
    each = min(n, size)
    assert [len(rows) for rows in drawn] == [each] * 12
    in_a_pass = n // each
    first = torch.cat(drawn[:in_a_pass]).tolist()
    assert len(set(first)) == len(first)  # nothing twice before the pass is over
    assert set(torch.cat(drawn).tolist()) == set(range(n))


def test_evaluation_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = training.score(p.log(), torch.tensor([0, 1, 2, 2]))
    losses = -torch.tensor([0.7, 0.6, 0.2, 0.6]).log()
    assert found.accuracy == 0.75 and found.n == 4
    assert math.isclose(found.log_loss, losses.mean().item(), rel_tol=1e-6)
    assert math.isclose(found.accuracy_se, 0.25)  # sqrt(0.75 · 0.25 / 3)
    assert math.isclose(found.log_loss_se, losses.std().item() / 2, rel_tol=1e-5)


def test_evaluate_leaves_the_mode_and_is_the_same_in_parts():
    net, (x, _) = model(), toy()
    net.train()
    whole = training.predict(net, x, batch_size=64)
    parts = training.predict(net, x, batch_size=7)
    assert net.training
    assert torch.allclose(whole, parts, atol=1e-5) and not whole.requires_grad


def test_set_seed_reaches_all_three_generators():
    import random

    import numpy as np

    drawn = []
    for _ in range(2):
        training.set_seed(5)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_progress_is_drawn_only_where_wanted(capsys, monkeypatch):
    net, (x, y) = model(), toy()
    training.fit(net, x, y, steps=2, lr=1e-3, progress=True)
    assert "0/2" in capsys.readouterr().err
    training.fit(net, x, y, steps=2, lr=1e-3, progress=False)
    monkeypatch.setenv("CI", "true")
    training.fit(net, x, y, steps=2, lr=1e-3)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)  # as if not installed
    training.fit(net, x, y, steps=2, lr=1e-3, progress=True)
    assert capsys.readouterr().err == ""


def test_one_thread_is_restored_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fail():
        with training.one_thread():
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_pick_device_names_one_that_works():
    assert torch.zeros(2, device=training.pick_device()).sum().item() == 0
