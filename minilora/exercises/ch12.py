"""Checks of chapter 12: another library's config, fused layers, LLaMA's sizes, a checkpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import Exercise, Function, Mistake

Config = dict[str, Any]


def _scale(config: Config, r: int = 8, alpha: int = 8, root: bool = True) -> float:
    rank, numerator = config.get("r", r), config.get("lora_alpha", alpha)
    return numerator / (rank**0.5 if root and config.get("use_rslora", False) else rank)


check_scale_of_config = Exercise(
    asks="PEFT's adapter_config.json as a dictionary → the factor in front of BA.",
    cases=[
        ({"r": 16, "lora_alpha": 32},),
        ({"r": 16, "lora_alpha": 32, "use_rslora": True},),
        ({"r": 64},),
        ({"lora_alpha": 16, "use_rslora": False},),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True},),
    ],
    right=_scale,
    mistakes=[
        Mistake(
            partial(_scale, root=False),
            'With "use_rslora" the divisor is √r. The key has to be looked at.',
        ),
        Mistake(
            lambda config: config.get("lora_alpha", 8) / config.get("r", 8) ** 0.5,
            "You divide by √r always. That is rsLoRA; the usual scaling divides by r.",
        ),
        Mistake(
            lambda config: config.get("r", 8) / config.get("lora_alpha", 8),
            "That is r/α. α stands above: a larger α makes a larger factor.",
        ),
        Mistake(
            lambda config: (
                config.get("lora_alpha", 8)
                / config.get("r", 8) ** (0.5 if "use_rslora" in config else 1)
            ),
            'The key "use_rslora" may be there and be False. Its value counts.',
        ),
        Mistake(
            lambda config: float(config.get("lora_alpha", 8)),
            "α alone is not the factor: PEFT divides it by r, or by √r.",
        ),
        Mistake(
            lambda config: _scale(config | {"lora_alpha": config.get("lora_alpha", 16)}),
            'What PEFT takes for a missing "lora_alpha" is 8, whatever the rank.',
        ),
        Mistake(
            lambda config: _scale(
                config | {"lora_alpha": config.get("lora_alpha", 2 * config.get("r", 8))}
            ),
            'A missing "lora_alpha" is 8 in PEFT. That α is twice the rank is a habit of recipes.',
        ),
        Mistake(
            lambda config: _scale(
                config | {"lora_alpha": config.get("lora_alpha", config.get("r", 8))}
            ),
            'A missing "lora_alpha" is 8 in PEFT, and not the rank: with r = 64 the factor is 1/8.',
        ),
        Mistake(
            lambda config: (
                config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
            ),
            lambda error, config: (
                f"{config} lacks the key {error}. A key that is missing has PEFT's default: r = 8, "
                "lora_alpha = 8."
            ),
            raises=KeyError,
        ),
    ],
    otherwise=lambda found, config: f"{config} has the factor {_scale(config):g}; found {found}.",
    passed="the same α is another factor under another rank, and under another scaling.",
    parts="The factor",
)


def _llama(
    hidden: int, inner: int, heads: int, kv_heads: int, layers: int, r: int, ffn: int = 3
) -> int:
    kv = hidden * kv_heads // heads
    attention = 2 * (hidden + hidden) + 2 * (hidden + kv)
    return layers * r * (attention + ffn * (hidden + inner))


#: {what to say: a wrong count}
_COUNTS: dict[str, Function] = {
    "You gave K and V as many outputs as Q. With grouped heads they have head size × kv_heads.": (
        lambda hidden, inner, heads, kv, layers, r: _llama(hidden, inner, heads, heads, layers, r)
    ),
    "The feed-forward part has three matrices, gate, up and down; you counted two.": (
        partial(_llama, ffn=2)
    ),
    "K and V have head size × kv_heads outputs, and the head size is hidden // heads.": (
        lambda hidden, inner, heads, kv, layers, r: (
            layers * r * (4 * hidden + 2 * (hidden + heads // kv) + 3 * (hidden + inner))
        )
    ),
    "The rank is missing: each matrix costs r (d_in + d_out).": (
        lambda hidden, inner, heads, kv, layers, r: _llama(hidden, inner, heads, kv, layers, 1)
    ),
    "That is one block. There are `layers` of them.": (
        lambda hidden, inner, heads, kv, layers, r: _llama(hidden, inner, heads, kv, 1, r)
    ),
    "An adapter has r (d_in + d_out) numbers; the product is the matrix itself.": (
        lambda hidden, inner, heads, kv, layers, r: (
            layers * (2 * hidden**2 + 2 * hidden * (hidden * kv // heads) + 3 * hidden * inner)
        )
    ),
    "Only attention is counted. The three matrices of the feed-forward part are adapted too.": (
        partial(_llama, ffn=0)
    ),
}

check_llama_adapter = Exercise(
    asks="hidden, inner, heads, kv_heads, layers, r → numbers of an adapter on all seven linears.",
    cases=[(4096, 14336, 32, 8, 32, 8), (2048, 8192, 32, 8, 16, 16), (64, 160, 4, 4, 2, 1)],
    right=_llama,
    mistakes=[Mistake(wrong, says) for says, wrong in _COUNTS.items()],
    otherwise=lambda found, hidden, inner, heads, kv, layers, r: (
        f"Q and O are {hidden} × {hidden}, K and V {hidden * kv // heads} × {hidden}, gate and up "
        f"{inner} × {hidden}, down {hidden} × {inner}, in {layers} blocks: "
        f"{_llama(hidden, inner, heads, kv, layers, r):,} numbers; found {found}."
    ),
    passed="for rank 8 on an 8-billion model 21 million numbers, a quarter of one per cent.",
    parts="The count",
)


def _kept(base: int, adapter: int) -> tuple[int, int]:
    return 4 * (base + adapter) + 8 * adapter, 4 * adapter


check_checkpoint_bytes = Exercise(
    asks="numbers in the base, numbers that train → (bytes of a checkpoint, of an adapter folder).",
    cases=[(22_713_216, 147_456), (1000, 10), (8_000_000_000, 20_971_520)],
    right=_kept,
    mistakes=[
        Mistake(
            lambda base, adapter: (12 * adapter, 4 * adapter),
            "The trainer writes model.safetensors with everything that state_dict holds, and that "
            "is the frozen base as well.",
        ),
        Mistake(
            lambda base, adapter: (12 * (base + adapter), 4 * adapter),
            "Adam keeps two numbers for each one that trains, and none for the frozen base.",
        ),
        Mistake(
            lambda base, adapter: (4 * (base + adapter), 4 * adapter),
            "The checkpoint also holds Adam's two running means of everything that trains, 8 bytes "
            "each pair; without them training could not go on.",
        ),
        Mistake(
            lambda base, adapter: (4 * base + 8 * adapter, 4 * adapter),
            "Twelve bytes are kept for each number that trains: its own four, and eight of Adam, "
            "which keeps two means. You have eight.",
        ),
        Mistake(
            lambda base, adapter: (base + 3 * adapter, adapter),
            "These are numbers. In float32 each takes four bytes.",
        ),
        Mistake(
            lambda base, adapter: (_kept(base, adapter)[0], 4 * (base + adapter)),
            "The folder that `save` writes holds the adapter alone, and not the base.",
        ),
        Mistake(
            lambda base, adapter: (4 * base, 4 * adapter),
            "That is the base alone. The adapter and Adam's means of it are in the checkpoint too.",
        ),
        Mistake(
            lambda base, adapter: _kept(base, adapter)[::-1],
            "The two are exchanged: the checkpoint comes first.",
        ),
        Mistake(
            lambda base, adapter: (_kept(base, adapter)[0], 12 * adapter),
            "The folder that `save` writes holds no optimizer: it is for use, not for going on.",
        ),
    ],
    otherwise=lambda found, base, adapter: (
        f"With {base:,} frozen numbers and {adapter:,} that train, in float32: 4 bytes for each, "
        f"and 8 more of Adam for those that train, make {_kept(base, adapter)[0]:,}; the folder "
        f"has {_kept(base, adapter)[1]:,}."
    ),
    passed="the base is written again and again; the adapter alone is a small fraction of it.",
    parts=("the checkpoint's bytes", "the folder's bytes"),
)


Matrix = np.ndarray


def _fuse(
    Aq: Matrix, Bq: Matrix, Av: Matrix, Bv: Matrix, swap: bool = False
) -> tuple[Matrix, Matrix]:
    A = np.concatenate([Aq, Av])
    zero_q, zero_v = np.zeros_like(Bq), np.zeros_like(Bv)
    rows = [(Bq, zero_v), (zero_q, zero_v), (zero_q, Bv)]
    if swap:
        rows = [rows[0], rows[2], rows[1]]
    return A, np.concatenate([np.concatenate(pair, axis=1) for pair in rows])


def _same_update(found: Any, right: Any) -> bool:
    """Whether two pairs have the same product: factors are not unique."""
    try:
        A, B = (np.asarray(one, dtype=float) for one in found)
        return (
            A.shape == right[0].shape
            and B.shape == right[1].shape
            and bool(np.allclose(B @ A, right[1] @ right[0], atol=1e-5))
        )
    except (TypeError, ValueError):
        return False


def _pair(seed: int, d: int, r: int, s: int) -> tuple[Matrix, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=n) for n in ((r, d), (d, r), (s, d), (d, s)))


check_fused_adapter = Exercise(
    asks="A, B of q, then of v: (r, d), (d, r), (s, d), (d, s) → (A, B) of the fused layer's "
    "adapter, (r + s, d) and (3d, r + s); its outputs are q, k, v in this order.",
    cases=[_pair(0, 6, 2, 2), _pair(1, 5, 1, 3)],
    right=_fuse,
    mistakes=[
        Mistake(
            partial(_fuse, swap=True),
            "Your update of v stands where k's outputs are. The order is q, k, v, and k's rows of "
            "B are zero.",
        ),
        Mistake(
            lambda Aq, Bq, Av, Bv: (
                np.concatenate([Aq, Av]),
                np.concatenate([np.concatenate([Bq, Bv], axis=1)] * 3),
            ),
            "Every output reads every row of A there, so that k moves as well, and q by v's "
            "update. Zeros in B keep them apart.",
        ),
        Mistake(
            lambda Aq, Bq, Av, Bv: (
                np.concatenate([Aq, Av]),
                np.concatenate(
                    [
                        np.concatenate([Bq, np.zeros_like(Bv)], axis=1),
                        np.concatenate([np.zeros_like(Bq), Bv], axis=1),
                    ]
                ),
            ),
            "B lacks k's rows. The fused layer has 3d outputs, and those of k are there although "
            "nothing is to happen to them: d rows of zeros.",
            when=lambda found, Aq, Bq, Av, Bv: np.shape(found[1])[0] == 2 * len(Bq),
        ),
        Mistake(
            lambda Aq, Bq, Av, Bv: (
                np.concatenate([Aq, Av]),
                np.concatenate([np.hstack([Bq, Bv]), 0 * np.hstack([Bq, Bv]), np.hstack([Bq, Bv])]),
            ),
            "q's outputs read v's rows of A as well there, and v's read q's. Zeros in B keep them "
            "apart.",
        ),
        Mistake(
            lambda Aq, Bq, Av, Bv: (
                np.concatenate([Av, Aq]),
                _fuse(Aq, Bq, Av, Bv)[1],
            ),
            "The columns of B have to stand in the order of the rows of A: q's first in both.",
        ),
    ],
    otherwise=lambda found, Aq, Bq, Av, Bv: (
        "B A of your factors is not q's update on top, zeros in the middle and v's at the bottom."
    ),
    passed="two adapters of rank r on q and v are one of rank 2r on the fused matrix, half zeros.",
    parts=("A", "B"),
    same=_same_update,
)
