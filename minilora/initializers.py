"""How A and B begin: as a layer's type says, as a callable does, or as factors of W₀ itself.

PiSSA, MiLoRA and OLoRA begin with a part of the weight, W₀ = W_res + scale · B A, and train that
part. The frozen base then holds W_res, so that the model computes at first what it did before;
the original W₀ is kept aside, at the cost of its memory once more, for ``remove_lora`` and
``disabled``. They fit linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from minilora.config import LoRAConfig
from minilora.layers import LoRAHFConv1D, LoRALayer, LoRALinear, full_precision, is_coarse


def initialize(layer: LoRALayer, init: str | Callable[[LoRALayer], None]) -> None:
    """Fill A and B as ``LoRAConfig.init`` says. A callable's result is checked for shape."""
    shapes = layer.A.shape, layer.B.shape
    with torch.no_grad(), full_precision(layer.base.weight):
        layer.reset(gaussian=init == "gaussian")
        if callable(init):
            init(layer)
        elif init not in ("default", "gaussian"):
            fill(layer, init)
    if (layer.A.shape, layer.B.shape) != shapes:
        raise ValueError(
            f"init changed the shapes of A and B from {tuple(shapes[0])} and "
            f"{tuple(shapes[1])} to {tuple(layer.A.shape)} and {tuple(layer.B.shape)}; "
            "fill them in place, for example layer.A.normal_()"
        )


def fill(layer: LoRALayer, init: str) -> None:
    """Set the factors of a new layer; ``init`` is one of the names that LoRAConfig takes.

    Raises:
        ValueError: The layer is not a linear one, its weight is computed, or r is too large.
    """
    if not isinstance(layer, (LoRALinear, LoRAHFConv1D)):
        raise ValueError(
            f"init={init!r} fits linear layers, not {type(layer.base).__name__}; "
            "take it out of targets, or use init='default'"
        )
    weight = layer.base.weight
    if not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"init={init!r} takes a part out of the weight, but this weight is computed "
            "(quantized, parametrized or set by a hook); use init='default'"
        )
    if layer.r > min(weight.shape):
        raise ValueError(
            f"init={init!r} needs r of at most {min(weight.shape)} for a weight of shape "
            f"{tuple(weight.shape)}, but r is {layer.r}"
        )
    # float32 at least, as decompositions do not exist in half precision
    W = weight.data.to(torch.float32 if is_coarse(weight.dtype) else weight.dtype)
    W = W.transpose(0, layer.out_axis)  # (out, in)
    A, B = {"pissa": pissa, "milora": milora, "olora": olora}[init](W, layer.r, layer.scale)
    layer.A.data, layer.B.data = A.to(layer.A.dtype), B.to(layer.B.dtype)
    layer.start = layer.A.detach().clone(), layer.B.detach().clone()
    # add_lora exchanges this for W₀.
    residual = (W - layer.scale * B @ A).transpose(0, layer.out_axis)
    layer.aside.original = residual.to(weight.dtype).contiguous()


def plain_config(config: LoRAConfig) -> LoRAConfig:
    """The config of the plain LoRA, of rank 2r, that makes the same update to the original W₀.

    scale · (B A − B₀ A₀) has the factors [B, −B₀] and [A; A₀], and the scale stays what it is.
    """
    more = 2**0.5 if config.scaling == "rslora" else 2
    return replace(
        config,
        init="default",
        r=2 * config.r,
        alpha=more * config.alpha,
        rank_pattern={key: 2 * r for key, r in config.rank_pattern.items()},
        alpha_pattern={key: more * alpha for key, alpha in config.alpha_pattern.items()},
    )


def pissa(W: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """The r largest singular triples: A = √(S/scale) Vᵀ, B = U √(S/scale) [1].

    Args:
        W: (out, in). ``r``: at most min(out, in). ``scale``: of the update, so that
            scale · B A is the best rank-r approximation of W.

    Returns:
        A of shape (r, in) and B of shape (out, r).

    Source: [1] Meng et al. 2024, arXiv 2404.02948.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return _from_triples(U[:, :r], S[:r], Vh[:r], scale)


def milora(W: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """The r smallest singular triples, so that the large ones stay frozen [1].

    Arguments and result as in ``pissa``. Source: [1] Wang et al. 2024, arXiv 2406.09044.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return _from_triples(U[:, -r:], S[-r:], Vh[-r:], scale)


def _from_triples(U: Tensor, S: Tensor, Vh: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    root = torch.diag(torch.sqrt(S / scale))
    return root @ Vh, U @ root


def olora(W: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """The first r columns of Q and rows of R of W = Q R: B has orthonormal columns [1].

    Arguments and result as in ``pissa``; scale · B A is taken out of W.
    Source: [1] Büyükakyüz 2024, arXiv 2406.01775.
    """
    Q, R = torch.linalg.qr(W)
    return R[:r].contiguous(), Q[:, :r].contiguous()
