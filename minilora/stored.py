"""An adapter on disk, without its model: what its folder says, and its updates' singular values.

The update of a layer is s · B A with B (out, r) and A (r, in). Its singular values come from the
factors alone: with B = Q_B R_B and Aᵀ = Q_A R_A, they are those of s · R_B R_Aᵀ, which is only
(r, r). For a layer of 4096 × 4096 at r = 64 that takes milliseconds, and the SVD of the product
takes many seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilora.config import LoRAConfig
from minilora.folder import CONFIG_FILE, FLOATS, TENSOR_FILE, AdapterError, read_folder
from minilora.keys import PREFIX, group
from minilora.settings import from_peft
from minilora.shards import Tensors

# Settings that change what the tensors mean, in ways that only the model can tell.
UNREAD = (
    *("layer_replication", "trainable_token_indices", "lora_bias", "use_qalora", "arrow_config"),
    *("alora_invocation_tokens", "use_bdlora", "monteclora_config", "velora_config"),
)
# What wrappers put into keys: torch.compile anywhere, parallel training in front.
WRAPPED = re.compile(r"(^|\.)_orig_mod\.|^(base_model\.model\.)?(module|_fsdp_wrapped_module)\.")
HEADS = {"classifier", "score"}
EMBEDDINGS = re.compile(  # what embeddings are called
    r"(^|[._])(embed(?!_out)\w*|wte|wpe|shared|relative_attention_bias|tok_embeddings)$"
)
# Initialisations that change the base, so that the factors are no update of the one on disk.
MOVED = r"(?i)pissa|olora|corda|loftq|lora_ga"


@dataclass(frozen=True)
class StoredLayer:
    """One adapted layer of a file.

    Attributes:
        path: The module's path in its model.
        kind: "linear", "embedding", "conv", or "experts" for PEFT's ``target_parameters``.
        shape: (out, in) of the update as the product of the factors; of one expert.
        r: The rank, read off the tensors. ``scale``: what B A is multiplied by; NaN if unknown.
        keys: {"A": its key in the file, "B": …, "magnitude": … with DoRA}.
        experts: How many updates the factors hold, one after another; 1 but for "experts".
    """

    path: str
    kind: str
    shape: tuple[int, int]
    r: int
    scale: float
    keys: dict[str, str]
    experts: int = 1


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter's folder holds, tensors unread.

    Attributes:
        folder: Where it lies. ``settings``: its config, as the file has it.
        config: The settings as minilora reads them; None where they cannot be.
        layers: {path: layer}, in natural order.
        others: {key: path.name} of the tensors that are no factors: heads, norms, biases.
        faults: Sentences on what is broken: what keeps it from loading as it was meant.
        odd_keys: Such a sentence on keys that PEFT's own loader would pass over, or "".
    """

    folder: Path
    settings: dict[str, Any]
    config: LoRAConfig | None
    tensors: Tensors
    layers: dict[str, StoredLayer]
    others: dict[str, str]
    faults: tuple[str, ...] = field(default=())
    odd_keys: str = ""

    def factors(self, path: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(A, B) of a layer in float32, (r, in) and (out, r); of each expert, one after another."""
        layer = self.layers[path]
        A = self.tensors[layer.keys["A"]].float()
        B = self.tensors[layer.keys["B"]].float()
        if layer.kind == "experts":  # PEFT: A is (experts · r, in), B is (out, r · experts)
            r = layer.r
            stacked = B.reshape(len(B), r, layer.experts)
            for number in range(layer.experts):
                yield A[number * r : (number + 1) * r], stacked[:, :, number]
        else:
            yield A.reshape(len(A), -1), B.reshape(len(B), -1)

    def require_sound(self, action: str) -> LoRAConfig:
        """The config, or AdapterError with the first fault.

        Raises:
            AdapterError: Something is broken, there are experts, which only the model can place,
                or training began from a base that was changed.
        """
        for fault in (*self.faults, self.odd_keys):
            if fault:
                raise AdapterError(f"{self.folder} cannot be used to {action}: {fault}")
        for path, layer in self.layers.items():
            if layer.kind == "experts":
                raise AdapterError(
                    f"{path!r} adapts the experts of a mixture (target_parameters), which are not "
                    f"supported here; load the adapter with PEFT to {action} it"
                )
        init = self.settings.get("init_lora_weights")
        if isinstance(init, str) and re.match(MOVED, init):
            raise AdapterError(
                f"init_lora_weights is {init!r}: training began from a base that was changed, and "
                "on the untouched one these factors are not the update; save the adapter with "
                "PEFT's path_initial_model_for_weight_conversion first"
            )
        unread = [name for name in UNREAD if self.settings.get(name)]
        if unread:
            raise AdapterError(
                f"{CONFIG_FILE} sets {unread[0]!r}, which this program does not read; load the "
                f"adapter with PEFT to {action} it"
            )
        if self.config is None:
            raise AdapterError(f"{self.folder / CONFIG_FILE} cannot be read as LoRA's settings")
        return self.config


def open_adapter(folder: Path) -> StoredAdapter:
    """Read what an adapter's folder holds; its tensors stay on the disk.

    Raises:
        AdapterError: No folder of PEFT's layout, a file that is damaged, or no LoRA in it.
    """
    settings, lazy = read_folder(folder)
    if settings.get("peft_type") not in (None, "LORA"):
        raise AdapterError(
            f"{folder} is an adapter of the kind {settings['peft_type']}, not LoRA: its update is "
            "not the product of two stored factors, and PEFT alone can read it"
        )
    parts, rest = group(lazy)
    names = {id(tensor): name for name, tensor in lazy.items()}
    config, faults = own_config(settings)
    layers: dict[str, StoredLayer] = {}
    alike: dict[str, list[str]] = {}  # faults, and the layers that have one and the same
    for path in sorted(parts, key=_natural):
        pair = parts[path]
        keys = {name: names[id(tensor)] for name, tensor in pair.items()}
        layer, wrong = _layer(path, pair, config, keys, bool(settings.get("target_parameters")))
        for fault in wrong:
            kind = re.sub(r"\([\d, ]*\)", "", fault.replace(repr(path), ""))
            alike.setdefault(kind, []).append(fault)
        if layer is not None:
            layers[path] = layer
    for same in alike.values():
        faults.append(f"{len(same)} layers, such as {same[0]}" if len(same) > 1 else same[0])
    faults += _promised(config, settings, layers, rest)
    others = {names[id(tensor)]: name for name, tensor in rest.items()}
    tensors = Tensors([folder / TENSOR_FILE])
    return StoredAdapter(
        folder, settings, config, tensors, layers, others, tuple(faults), _odd_keys(lazy)
    )


def _odd_keys(names: Iterable[str]) -> str:
    """What PEFT would not know again: the adapter's own name in a key, a wrapper's, no prefix."""
    factors = [name for name in names if re.search(r"\.lora_(embedding_)?[AB]\b", name)]
    spelt = [name for name in factors if not name.startswith(PREFIX) or ".default." in name]
    wrapped = [name for name in factors if WRAPPED.search(name)]
    for found, why in ((spelt, "are not spelt as PEFT spells them"), (wrapped, "name a wrapper")):
        if found:
            return (
                f"{len(found)} keys {why} ({found[0]}): PEFT passes over them, at most with a "
                "warning; minilora convert writes them as PEFT does"
            )
    return ""


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def own_config(settings: dict[str, Any]) -> tuple[LoRAConfig | None, list[str]]:
    """The settings as minilora reads them, or None and why not."""
    plain = {k: v for k, v in settings.items() if k not in (*UNREAD, "target_parameters")}
    init = plain.get("init_lora_weights")
    if isinstance(init, str):  # it says how training began, and the tensors say where it ended
        plain["init_lora_weights"] = True
    plain.setdefault("peft_type", "LORA")
    try:
        return from_peft(plain)[0], []
    except AdapterError as error:
        return None, [str(error)]


def _layer(
    path: str,
    pair: dict[str, Tensor],
    config: LoRAConfig | None,
    keys: dict[str, str],
    mixture: bool,
) -> tuple[StoredLayer | None, list[str]]:
    embedding = "embedding_A" in pair or "embedding_B" in pair
    a, b = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    for name, other in ((a, b), (b, a)):
        if name not in pair:
            return None, [f"{path!r} has a lora_{other} and no lora_{name}"]
    A, B = pair[a], pair[b]
    for name, tensor in ((a, A), (b, B)):
        if tensor.dtype not in FLOATS:
            return None, [f"{path!r}: lora_{name} holds {tensor.dtype}, not floating-point numbers"]
        if tensor.ndim not in (2, 3, 4, 5) or 0 in tensor.shape:
            return None, [f"{path!r}: lora_{name} has the shape {tuple(tensor.shape)}"]
    rank = None if config is None else config.rank_for(path)
    if A.shape[0] != B.shape[1] or (rank is not None and A.shape[0] != rank):
        fits = mixture and rank and A.shape[0] == B.shape[1] and A.ndim == 2
        if not fits or not rank or A.shape[0] % rank:
            return None, [_misfit(path, A, B, rank)]
        experts = A.shape[0] // rank
    else:
        experts = 1
    scale = float("nan") if config is None else config.scale_for(path)
    found = {"A": keys[a], "B": keys[b]}
    if "magnitude_vector" in keys:
        found["magnitude"] = keys["magnitude_vector"]
    kind = "embedding" if embedding else "experts" if experts > 1 else "linear"
    if A.ndim > 2:
        kind = "conv"
    shape = (B.shape[0], A[0].numel())
    return StoredLayer(path, kind, shape, A.shape[0] // experts, scale, found, experts), []


def _misfit(path: str, A: Tensor, B: Tensor, rank: int | None) -> str:
    shapes = f"{path!r}: A has the shape {tuple(A.shape)} and B {tuple(B.shape)}"
    fits = A.shape[0] == B.shape[1]
    if fits and A.shape[0] <= min(A.shape[-1], B.shape[0]):
        return (
            f"{shapes}, which is rank {A.shape[0]}, but {CONFIG_FILE} says r = {rank}. Find out "
            "which alpha it was trained with; minilora convert --alpha writes a config that fits"
        )
    if A.shape[-1] == B.shape[0] <= min(A.shape[0], B.shape[1]):
        return (
            f"{shapes}; A must be (r, in) and B (out, r), so they look exchanged or transposed: "
            "with A (in, r) and B (r, out), transpose both"
        )
    if fits:
        return f"{shapes}, a rank beyond the layer's own size, but {CONFIG_FILE} says r = {rank}"
    return f"{shapes}; A's rows and B's columns must be the same number, the rank"


def _promised(
    config: LoRAConfig | None,
    settings: dict[str, Any],
    layers: dict[str, StoredLayer],
    rest: dict[str, Tensor],
) -> list[str]:
    """What the settings name and the file lacks, as far as it shows without the model."""
    if config is None or not layers:
        return []
    faults = []
    targets = settings.get("target_modules")
    if isinstance(targets, list):
        lost = [t for t in targets if not any(f".{p}".endswith(f".{t}") for p in layers)]
        lost = [t for t in lost if not settings.get("target_parameters")]
        if lost:
            faults.append(
                f"target_modules names {', '.join(map(repr, lost))}, but the file has no factors "
                "for it: part of the adapter is missing. Get the whole file; minilora convert "
                "writes a config that names what is there"
            )
        unnamed = [p for p in layers if not any(f".{p}".endswith(f".{t}") for t in targets)]
        if unnamed and not settings.get("target_parameters"):
            faults.append(
                f"the file has factors for {unnamed[0]!r}"
                + f" and {len(unnamed) - 1} more" * (len(unnamed) > 1)
                + ", which target_modules does not name: PEFT would leave them out"
            )
    saved = {name for name in config.modules_to_save if any(f".{name}." in f".{p}" for p in rest)}
    for name in config.modules_to_save:
        # PEFT names both of the heads that a classifier may have, and a model has one of them.
        if name not in saved and not (name in HEADS and saved & HEADS):
            faults.append(f"modules_to_save names {name!r}, but the file has no tensor of it")
    return faults


# --- numbers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Balanced:
    """An update as U · diag(values) · Vᵀ: (out, k), (k,), (k, in), in float64."""

    U: Tensor
    values: Tensor
    Vt: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The best factors of that rank, the values' roots in each: A (rank, in), B (out, rank)."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.Vt[:rank], self.U[:, :rank] * root


def decompose(A: Tensor, B: Tensor, scale: float = 1.0) -> Balanced:
    """The SVD of scale · B A from the factors: A (r, in), B (out, r).

    It takes O((in + out) r²) operations instead of those of an (out, in) matrix. Golub and Van
    Loan, Matrix Computations, section 5.2 (QR) and 8.6 (SVD).
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, values, Vt = torch.linalg.svd(R_B @ R_A.T)
    k = len(values)
    return Balanced(
        Q_B @ U[:, :k], values * abs(scale), (Vt[:k] @ Q_A.T) * (1 if scale > 0 else -1)
    )


def singular_values(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """The singular values of scale · B A, falling, in float64: (min(r, in, out),)."""
    R_B = torch.linalg.qr(B.double(), mode="r").R
    R_A = torch.linalg.qr(A.double().T, mode="r").R
    return torch.linalg.svdvals(R_B @ R_A.T) * abs(scale)


def plain_key(path: str, name: str) -> str:
    """The key that PEFT gives a tensor: ``plain_key("lm_head", "lora_A.weight")``."""
    return f"{PREFIX}{path}.{name}"


def plain_settings(
    r: int, alpha: float, ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """PEFT's settings of a LoRA whose layers have these ranks and scales."""
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "exclude_modules": None,
        "target_modules": sorted(ranks),  # whole: PEFT reads each as itself and adapts nothing else
        "rank_pattern": {f"^{re.escape(p)}": n for p, n in ranks.items() if n != r},
        "alpha_pattern": {
            f"^{re.escape(p)}": _whole(scales[p] * n)
            for p, n in ranks.items()
            if scales[p] * n != alpha
        },
    }


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def factor_keys(layer: StoredLayer) -> tuple[str, str]:
    """PEFT's keys of a layer's A and B."""
    if layer.kind == "embedding":
        return plain_key(layer.path, "lora_embedding_A"), plain_key(layer.path, "lora_embedding_B")
    return plain_key(layer.path, "lora_A.weight"), plain_key(layer.path, "lora_B.weight")


def shaped(layer: StoredLayer, A: Tensor, B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """2-D factors in the shapes that the layer's kind is stored in, A's kernel that of ``like``."""
    if layer.kind == "conv":
        return A.reshape(len(A), *like.shape[1:]), B.reshape(*B.shape, *[1] * (like.ndim - 2))
    return A, B


def layer_number(path: str) -> int | None:
    """The number of the block that a path lies in: the first number in it, or None."""
    hit = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(hit[1]) if hit else None
