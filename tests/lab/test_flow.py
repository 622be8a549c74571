"""The image generator: shapes, the straight way from noise to a picture, guidance, training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minilora.lab import flow
from minilora.lab.flow import FlowConfig, FlowTransformer, fit_flow, flow_loss, sample

SMALL = FlowConfig(side=8, patch=4, classes=3, width=8, layers=1, heads=2)


def small() -> FlowTransformer:
    """A small model whose layers are not at zero, so that it answers to everything."""
    torch.manual_seed(0)
    model = FlowTransformer(SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


class Exact(nn.Module):
    """The true velocity where class y has one picture only, all of whose dots are ``shades[y]``."""

    config, null = SMALL, SMALL.classes

    def __init__(self, shades: list[float]) -> None:
        super().__init__()
        self.shades = torch.tensor(shades)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (self.shades[y][:, None, None, None] - x) / (1 - t[:, None, None, None])


def test_patches_are_cut_row_by_row_and_pasted_back() -> None:
    model = FlowTransformer(SMALL)
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    patches = model.cut(x)
    assert patches.shape == (1, 4, 16)
    assert patches[0, 1, :4].tolist() == [4, 5, 6, 7]  # the upper right one
    assert torch.equal(model.paste(patches), x)


def test_a_new_model_says_zero_and_a_block_passes_on_what_comes_in() -> None:
    model = FlowTransformer(SMALL)
    x, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(model(x, t, y), torch.zeros(2, 1, 8, 8))
    tokens = torch.randn(2, 4, 8)
    assert torch.equal(model.blocks[0](tokens, torch.randn(2, 8)), tokens)


@pytest.mark.parametrize("what", ["time", "class", "picture"])
def test_the_velocity_depends_on_time_class_and_picture(what: str) -> None:
    model, x = small(), torch.randn(1, 1, 8, 8)
    t, y = torch.tensor([0.3]), torch.tensor([1])
    other = {"time": (x, t + 0.2, y), "class": (x, t, y + 1), "picture": (x + 1, t, y)}[what]
    assert not torch.allclose(model(x, t, y), model(*other))


def test_the_exact_velocity_leads_to_the_picture_in_any_number_of_steps() -> None:
    exact, y = Exact([-1.0, 0.0, 0.5, 0.0]), torch.tensor([0, 1, 2])
    for steps in (1, 3, 16):
        drawn = sample(exact, y, steps=steps)  # type: ignore[arg-type]
        ink = torch.tensor([0.0, 0.5, 0.75])[:, None, None, None]
        assert torch.allclose(drawn, ink.expand_as(drawn), atol=1e-5)


def test_the_exact_velocity_has_no_loss() -> None:
    x = torch.full((2, 1, 8, 8), 0.75)  # ink 0.75 is 0.5 between −1 and 1
    given = x, torch.tensor([2, 2]), torch.tensor([0.2, 0.9]), torch.randn(x.shape)
    assert flow_loss(Exact([-1.0, 0.0, 0.5, 0.0]), *given) < 1e-9  # type: ignore[arg-type]
    assert flow_loss(Exact([-1.0, 0.0, 0.7, 0.0]), *given) > 1e-3  # type: ignore[arg-type]


def test_guidance_goes_on_from_no_class_through_the_class() -> None:
    exact, y = Exact([0.2, 0.0, 0.0, 0.1]), torch.tensor([0])
    for guidance, shade in ((0.0, 0.1), (1.0, 0.2), (3.0, 0.4)):
        drawn = sample(exact, y, steps=4, guidance=guidance)  # type: ignore[arg-type]
        assert drawn.mean() == pytest.approx((shade + 1) / 2, abs=1e-5)


def test_the_seed_settles_the_noise_alone() -> None:
    model, y = small(), torch.tensor([0, 1])
    assert torch.equal(sample(model, y, steps=2, seed=3), sample(model, y, steps=2, seed=3))
    assert not torch.equal(sample(model, y, steps=2, seed=3), sample(model, y, steps=2, seed=4))
    before = torch.random.get_rng_state()
    sample(model, y, steps=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_learns_the_same_from_the_same_seed() -> None:
    x, y = torch.rand(12, 1, 8, 8).round(), torch.arange(12) % 3
    runs = []
    for seed in (1, 1, 2):
        model = small()
        settings = {"steps": 60, "lr": 3e-3, "batch_size": 12, "seed": seed}
        losses = fit_flow(model, x, y, progress=False, **settings)  # type: ignore[arg-type]
        runs.append(losses)
    assert runs[0] == runs[1] != runs[2]
    assert sum(runs[0][-10:]) < 0.8 * sum(runs[0][:10])


def test_dropped_classes_train_the_null_class_alone() -> None:
    model = small()
    before = model.class_embedding.weight.detach().clone()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    fit_flow(model, x, y, steps=2, lr=1e-2, drop=1.0, progress=False)
    moved = (model.class_embedding.weight != before).any(dim=1)
    assert moved.tolist() == [False, False, False, True]


def test_held_out_loss_is_the_same_twice_and_lower_for_the_better_model() -> None:
    x, y = torch.full((4, 1, 8, 8), 0.75), torch.full((4,), 2)
    right, wrong = Exact([0.0, 0.0, 0.5, 0.0]), Exact([0.0, 0.0, 0.2, 0.0])
    losses = [flow.held_out_loss(one, x, y) for one in (right, wrong, wrong)]  # type: ignore[arg-type]
    assert losses[0] < 1e-6 < losses[1] == losses[2]


def test_what_cannot_be_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="do not tile"):
        replace(SMALL, patch=3)
    with pytest.raises(ValueError, match="even"):
        replace(SMALL, width=9, heads=1)
    with pytest.raises(ValueError, match="shape"):
        model(torch.zeros(1, 1, 16, 16), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match="at least 1"):
        sample(model, torch.tensor([0]), steps=0)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit_flow(model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), steps=1, lr=1e-3)
