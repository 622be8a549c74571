"""Training the head only: the base gives features, and a new output layer reads them.

The oldest way to adapt a pretrained model, and the least that any other must beat. With a linear
head on fixed features it is a linear (or logistic) regression, known as a linear probe.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from minilora.variants.freezing import train_only, whole_modules


def train_head_only(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Freeze ``model`` but for the named modules; ``freezing.restore(model)`` undoes it.

    Dropout and the running averages of batch norms below the head are not parameters: put those
    modules into ``eval()`` if the features are to stay as they are.

    Args:
        model: A plain model; changed in place.
        names: Paths of modules, or endings of paths: ``["head"]``.

    Returns:
        What trains, for an optimizer, in the model's order.

    Raises:
        ValueError: No name, one that matches nothing, a head whose weight another module shares,
            or a model with an adapter or a baseline on it. The model is unchanged.
    """
    chosen = whole_modules(model, names)
    if not chosen:
        raise ValueError("names must name at least one module to train, such as ['head']")
    return train_only(model, chosen)
