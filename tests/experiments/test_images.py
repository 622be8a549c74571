"""The images experiment: what a run adapts, what is measured, and what is put together how."""

from __future__ import annotations

import copy
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

import minilora
from minilora.experiments import images
from minilora.experiments.images import figures, measures, reading, sheets
from minilora.experiments.images.training import Size, StyleRun, adapted
from minilora.experiments.recording import Recording
from minilora.experiments.tuning import by_rate
from minilora.lab import styles
from minilora.lab.flow import FlowTransformer

TINY = Size(pictures=8, steps=2, batch_size=4, drawn=10)


def learnt(seed: int, r: int = 2, style: str = "bold") -> FlowTransformer:
    """A model with an adapter that is not at zero."""
    model = adapted(StyleRun("", style, r, 0.01, seed), TINY)
    generator = torch.Generator().manual_seed(seed)
    for layer in minilora.lora_layers(model).values():
        layer.B.data = 0.1 * torch.randn(layer.B.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def everything() -> Recording:
    return images.run("smoke", jobs=1)


# ---------------------------------------------------------------- what a run adapts


@pytest.mark.parametrize(
    ("place", "layers"), [("all", 29), ("attention", 16), ("feed-forward", 8), ("modulation", 5)]
)
def test_an_adapter_is_on_the_layers_of_its_place(place: str, layers: int) -> None:
    model = adapted(StyleRun("", "bold", 2, 0.01, place=place), TINY)
    paths = list(minilora.lora_layers(model))
    assert len(paths) == layers
    assert all(path.rpartition(".")[2] in images.PLACES[place] for path in paths)


def test_an_adapter_of_some_blocks_is_on_them_alone() -> None:
    model = adapted(StyleRun("", "bold", 2, 0.01, blocks=(2, 3)), TINY)
    paths = list(minilora.lora_layers(model))
    assert len(paths) == 14 and all(path.startswith(("blocks.2.", "blocks.3.")) for path in paths)


def test_the_places_have_about_as_many_parameters() -> None:
    profile = images.PROFILES["laptop"]
    runs = images.arms(profile, "places")
    runs += [run for run in images.arms(profile, "styles") if run.arm == "outline, r=4"]
    counts = [
        minilora.count_parameters(adapted(run, profile.size), trainable_only=True) for run in runs
    ]
    assert max(counts) < 1.1 * min(counts), counts


def test_the_whole_model_trains_without_a_rank_and_the_base_stays(everything: Recording) -> None:
    before = copy.deepcopy(images.base().state_dict())
    run = StyleRun("", "bold", None, 1e-3)
    model, losses = images.trained(run, TINY)
    assert len(losses) == TINY.steps
    after = images.base().state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert any(not torch.equal(one, before[key]) for key, one in model.state_dict().items())


def test_without_labels_the_classes_have_no_part() -> None:
    run = StyleRun("", "bold", None, 1e-3, labelled=False)
    model, _ = images.trained(run, TINY)
    moved = (model.class_embedding.weight != images.base().class_embedding.weight).any(dim=1)
    assert moved.tolist() == [False] * 10 + [True]


# ---------------------------------------------------------------- what is measured


def test_the_energy_distance_of_two_points_is_twice_theirs() -> None:
    a, b = torch.zeros(3, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0)
    assert measures.energy_distance(a, b) == pytest.approx(8)  # 2 · √(4 · 2²), and nothing within
    assert measures.energy_distance(b, b) == 0


def test_the_energy_distance_tells_styles_apart_and_not_two_sets_of_one() -> None:
    bold = [styles.styled("bold", 200, seed).x for seed in (1, 2)]
    plain = styles.styled("plain", 200, seed=3).x
    assert measures.energy_distance(*bold) < 0.1 * measures.energy_distance(bold[0], plain)


def test_a_verdict_counts_content_and_style_apart() -> None:
    real = styles.styled("bold", 100, seed=8300)
    right = measures.judged(real.x, real.y, "bold")
    assert right.content > 0.97 and right.style > 0.97
    assert right.ink == pytest.approx(real.x.mean().item())
    other = measures.judged(real.x, (real.y + 1) % 10, "thin")
    assert other.content < 0.03 and other.style < 0.03 and other.distance > 5 * right.distance


def test_the_shuffled_adapter_is_as_large_and_another() -> None:
    model = learnt(0)
    before = {path: one.B.detach().clone() for path, one in minilora.lora_layers(model).items()}
    sheets.shuffle(model, seed=0)
    for path, layer in minilora.lora_layers(model).items():
        assert not torch.equal(layer.B, before[path])
        assert torch.equal(layer.B.flatten().sort().values, before[path].flatten().sort().values)


# ---------------------------------------------------------------- two adapters


def test_the_sum_is_the_sum_of_the_updates_and_the_mean_half_of_it() -> None:
    first, second = learnt(1), learnt(2)
    a, b = minilora.lora_layers(first), minilora.lora_layers(second)
    for way, factor in (("sum", 1.0), ("mean of the updates", 0.5)):
        model = images.combine(images.base(), first, second, way)
        for path, layer in minilora.lora_layers(model).items():
            wanted = factor * (a[path].delta() + b[path].delta())
            assert torch.allclose(layer.delta(), wanted, atol=1e-5)


def test_the_mean_of_the_factors_holds_products_that_were_never_trained() -> None:
    first, second = learnt(1), learnt(2)
    model = images.combine(images.base(), first, second, "mean of the factors")
    path, layer = next(iter(minilora.lora_layers(model).items()))
    a, b = (minilora.lora_layers(one)[path] for one in (first, second))
    wanted = a.scale * (a.B + b.B) @ (a.A + b.A) / 4
    assert torch.allclose(layer.delta(), wanted, atol=1e-5)


def test_adapters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks and scales differ"):
        images.combine(images.base(), learnt(1), learnt(2, r=4), "sum")
    with pytest.raises(ValueError, match="way must be one of sum"):
        images.combine(images.base(), learnt(1), learnt(2), "product")
    some = adapted(StyleRun("", "bold", 2, 0.01, place="attention"), TINY)
    with pytest.raises(ValueError, match="only one of the two adapts"):
        images.combine(images.base(), learnt(1), some, "sum")


def test_the_cosine_of_an_adapter_with_itself_is_one() -> None:
    first = learnt(1)
    assert images.cosine(first, first) == pytest.approx(1, abs=1e-4)
    assert abs(images.cosine(first, learnt(2))) < 0.05


# ---------------------------------------------------------------- the run, and its reading


def test_every_arm_is_tuned_and_tested_on_other_draws(everything: Recording) -> None:
    profile = images.PROFILES["smoke"]
    for part in ("styles", "places"):
        for run in images.arms(profile, part):
            tried = by_rate(everything.rows, run.arm)
            assert len(tried) >= 3 and {row.seed for rows in tried.values() for row in rows} == {
                100
            }
            assert [row.seed for row in reading.rows_of_arm(everything, run.arm)] == [0]


def test_every_sheet_has_content_style_and_ink(everything: Recording) -> None:
    for arm in (
        *("bold, strength -1", "bold, strength -1, as thin", "bold, shuffled", "bold, real"),
        *("bold, base", "sum", "trained on both", "bold, without labels, guidance 3"),
    ):
        assert all(0 <= reading.mean_share(everything, arm, what) <= 1 for what in reading.WHAT)
    with pytest.raises(ValueError, match="no tested rows of 'bolder'"):
        reading.shares(everything, "bolder")
    with pytest.raises(ValueError, match="what must be one of"):
        reading.shares(everything, "sum", "colour")


def test_a_table_has_a_line_for_each_arm(everything: Recording) -> None:
    lines = reading.table(everything, ["bold, base", "bold, r=1"]).splitlines()
    assert len(lines) == 3 and lines[1].startswith("bold, base") and "9,8" in lines[2]


def test_without_guidance_labels_are_drawn_as_ordered(everything: Recording) -> None:
    """Guidance 1 is the class's own velocity, so that it is the adapter at strength 1."""
    plain = reading.shares(everything, "bold, with labels, guidance 1", "ink")
    assert plain == reading.shares(everything, "bold, strength 1", "ink")
    assert plain != reading.shares(everything, "bold, with labels, guidance 3", "ink")


def test_a_contact_sheet_marks_what_is_read_as_another_digit() -> None:
    real = styles.styled("plain", 4, seed=8400)
    wrong = real.y.clone()
    wrong[2] = (wrong[2] + 1) % 10
    figure = figures.contact_sheet({"right": real.x, "wrong": real.x}, wrong, columns=4)
    crosses: list[Any] = [[line.get_xdata()[0] for line in ax.lines] for ax in figure.axes]
    assert crosses == [[2 * 17 + 7.5]] * 2
    plt.close(figure)


def test_the_figures_draw_what_the_recording_holds(everything: Recording) -> None:
    figure, axes = plt.subplots(1, 2)
    figures.draw_strengths(axes[:1], everything, ["bold"])
    figures.draw_guidance(axes, everything)
    heights = [line.get_ydata()[0] for line in axes[1].lines]
    assert reading.shares(everything, "bold, without labels, guidance 1")[0] in heights
    plt.close(figure)
