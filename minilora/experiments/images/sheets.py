"""The parts without a ladder: strengths, two adapters together, and training without labels."""

from __future__ import annotations

from dataclasses import replace

import torch

import minilora
from minilora.experiments.images.combining import WAYS, combine
from minilora.experiments.images.measures import judged
from minilora.experiments.images.training import Size, StyleRun, base, digits, trained
from minilora.experiments.recording import Row
from minilora.lab.flow import FlowTransformer, sample

#: What a style turned round would be, where there is such a thing.
OPPOSITE = {"bold": "thin", "slanted": "left"}
BOTH = "bold slanted"


def drawn_rows(
    model: FlowTransformer, row: Row, style: str, size: Size, guidance: float = 1.0
) -> list[Row]:
    """Rows on what a model draws: content in ``row`` itself, then style and ink."""
    y = digits(size.drawn)
    x = sample(model, y, seed=9000 + row.seed, guidance=guidance)
    found = judged(x, y, style)
    first = replace(row, stage="final", accuracy=found.content, log_loss=found.distance)
    return [
        first,
        replace(first, arm=f"{row.arm}, style", kind="style", accuracy=found.style),
        replace(first, arm=f"{row.arm}, ink", kind="ink", accuracy=found.ink),
    ]


def new_row(run: StyleRun, arm: str, kind: str, parameters: int, size: Size) -> Row:
    """A row of a trained run, without its numbers."""
    return Row(
        stage="final",
        arm=arm,
        kind=kind,
        labels=size.pictures,
        seed=run.seed,
        r=run.r,
        lr=run.lr,
        parameters=parameters,
    )


def strength_rows(size: Size, strengths: tuple[float, ...], run: StyleRun) -> list[Row]:
    """What the adapter of one run draws at each strength; at a negative one, the opposite too."""
    model, _ = trained(run, size)
    count = minilora.count_parameters(model, trainable_only=True)
    rows = []
    for strength in strengths:
        minilora.set_strength(model, strength)
        arm = f"{run.style}, strength {strength:g}"
        row = new_row(run, arm, "strength", count, size)
        rows += drawn_rows(model, row, run.style, size)
        if strength < 0 and run.style in OPPOSITE:
            turned = OPPOSITE[run.style]
            row = replace(row, arm=f"{arm}, as {turned}")
            rows += drawn_rows(model, row, turned, size)
    minilora.set_strength(model, 1)
    shuffle(model, run.seed)
    return rows + drawn_rows(
        model, new_row(run, f"{run.style}, shuffled", "null", count, size), run.style, size
    )


def shuffle(model: FlowTransformer, seed: int) -> None:
    """Deal the numbers of each B out anew: an update of the same size that nothing was taught."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in minilora.lora_layers(model).values():
            order = torch.randperm(layer.B.numel(), generator=generator)
            layer.B.copy_(layer.B.flatten()[order].view_as(layer.B))


def together_rows(size: Size, run: StyleRun) -> list[Row]:
    """Bold and slanted in one picture: two adapters in every way, and one trained on such pictures.

    ``run`` gives rank, rate and seed.
    """
    models = {
        style: trained(replace(run, style=style), size)[0] for style in ("bold", "slanted", BOTH)
    }
    count = minilora.count_parameters(models[BOTH], trainable_only=True)
    made = {f"{style} alone": models[style] for style in ("bold", "slanted")}
    made |= {way: combine(base(), models["bold"], models["slanted"], way) for way in WAYS}
    made["trained on both"] = models[BOTH]
    rows = []
    for name, model in made.items():
        rows += drawn_rows(model, new_row(run, name, "together", count, size), BOTH, size)
    return rows


def label_rows(size: Size, guidances: tuple[float, ...], run: StyleRun) -> list[Row]:
    """What a run with labels and one without draw, at each guidance."""
    rows = []
    for labelled in (True, False):
        model, _ = trained(replace(run, labelled=labelled), size)
        count = minilora.count_parameters(model, trainable_only=True)
        for guidance in guidances:
            name = f"{run.style}, {'with' if labelled else 'without'} labels, guidance {guidance:g}"
            row = new_row(run, name, "labels", count, size)
            rows += drawn_rows(model, row, run.style, size, guidance)
    return rows
