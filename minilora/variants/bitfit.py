"""BitFit: train the biases and nothing else.

For y = Wx + b, W stays and b trains [1]: one number for each output, in every layer that has a
bias, norms included. A new output head trains along. Many recent language models have no biases
at all, and nothing for BitFit to train. The trained biases take the place of the old ones, so that
inference costs what it did: there is nothing to merge.

Source: [1] Ben Zaken et al. 2021, arXiv 2106.10199.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from minilora.variants.freezing import find_modules, train_only, whole_modules


def add_bitfit(
    model: nn.Module, modules: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[nn.Parameter]:
    """Freeze ``model`` but for its biases; ``freezing.restore(model)`` undoes it.

    Args:
        model: A plain model; changed in place.
        modules: Names of modules to train whole beside the biases, such as a new head.
        exclude: Names of modules whose biases stay frozen, with all that is in them.

    Returns:
        What trains, for an optimizer, in the model's order.

    Raises:
        ValueError: No bias is left to train, a name matches nothing, or the model has an adapter
            or a baseline already. The model is unchanged.
    """
    whole = set(whole_modules(model, modules))
    excluded = tuple(path + "." for path in find_modules(model, exclude, "exclude"))
    biases = {
        p
        for name, p in model.named_parameters()
        if is_bias(name, p) and not name.startswith(excluded)
    }
    if not biases:
        raise ValueError("the model has no bias to train, or exclude names all that have one")
    return train_only(model, [p for p in model.parameters() if p in biases | whole])


def is_bias(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is added to a layer's outputs: ``bias``, ``in_proj_bias``, ``bias_ih_l0``
    and the like, with one axis."""
    return parameter.dim() == 1 and "bias" in name.rsplit(".", 1)[-1].split("_")
