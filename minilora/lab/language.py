"""A small language model that has read the standard library's code, and texts to take it further.

    python -m minilora.lab.language check       the shipped files are those that the book used
    python -m minilora.lab.language pretrain    train the shipped model anew (minutes on a CPU)
    python -m minilora.lab.language harvest     collect the texts anew, from this Python

Two files are shipped, in ``minilora/lab/shipped`` with a text that says where they come from: the
texts as token numbers, and the weights. ``pretrain`` needs the first and nothing else, so that the
second can be made again on any machine; with the versions in ``constraints.txt`` and on a CPU like
the author's it is the same to the last bit, and elsewhere the same but for rounding.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from minilora.folder import replace_file
from minilora.lab import corpus, training
from minilora.lab.bytepairs import BytePairs, learn_pairs
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.sweep import Data

SHIPPED = Path(__file__).parent / "shipped"
TEXTS, WEIGHTS = "language_texts.npz", "language_model.safetensors"

#: SHA-256 of the shipped files.
HASHES = {
    TEXTS: "721a1debde51de67a88a8dfc1c0e72342f7f53a9c143d58bd02b6a7add964921",
    WEIGHTS: "641a0f2fc33c6acaeb97f16d087d6eecbcfd05b45721ae0ac930d184cb751672",
}

#: The sizes of the shipped model.
GPT = DecoderConfig(width=128, layers=4, heads=4, vocab=1024, context=128)

KINDS = ("code", "prose")
#: The share of each kind of text that is held out to choose by, and as much again to test on.
HELD_OUT = {"code": 0.06, "prose": 0.15}


@dataclass(frozen=True)
class GptRecipe:
    """How a model learns to write code: AdamW, the rate along half a cosine after its warm-up."""

    steps: int = 1400
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


class LanguageModel(Decoder):
    """A `Decoder` whose scores lie as PyTorch's cross-entropy wants them.

    So it is trained by `minilora.lab.training.fit` as a classifier is: each token of a window is an
    example, and the token after it its class.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.config = config

    def forward(self, ids: Tensor, checkpointing: bool = False) -> Tensor:
        """(N, T) → (N, vocab, T): at each place the scores of the token that comes next."""
        return super().forward(ids, checkpointing).transpose(1, 2)


@dataclass(frozen=True)
class Text:
    """Documents of one kind as token numbers.

    Attributes:
        names: Those of the documents.
        documents: Their token numbers, one tensor (tokens,) for each.
        bytes: How many bytes of text all tokens stand for.
    """

    names: tuple[str, ...]
    documents: tuple[Tensor, ...]
    bytes: int

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return sum(map(len, self.documents))

    def windows(self, context: int = GPT.context) -> Data:
        """Tokens and what follows each of them: x (N, context), y (N, context).

        Each document is cut by itself, and what is left at its end is dropped.
        """
        parts = [document.unfold(0, context + 1, context) for document in self._long(context)]
        cut = torch.cat(parts)
        return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()

    def homes(self, context: int = GPT.context) -> list[str]:
        """The document of each window."""
        long = zip(self.names, self.documents, strict=True)
        return [name for name, ids in long for _ in range((len(ids) - 1) // context)]

    def bits_per_byte(self, nats: float) -> float:
        """A loss per token (nats) as bits for each byte of this text, however it is cut up."""
        return nats / float(np.log(2)) * self.tokens / self.bytes

    def _long(self, context: int) -> list[Tensor]:
        found = [document for document in self.documents if len(document) > context]
        if not found:
            raise ValueError(f"no document has more than {context} tokens: take a smaller context")
        return found


@functools.cache
def tokenizer() -> BytePairs:
    """The tokens, learnt from the code of the training documents."""
    return BytePairs(_arrays()["pairs"])


@functools.cache
def text(kind: str, which: str = "train") -> Text:
    """The shipped texts: ``kind`` "code" or "prose", ``which`` "train", "validation" or "test"."""
    if kind not in KINDS or which not in corpus.SPLITS:
        raise ValueError(f"there are {KINDS} and {corpus.SPLITS}, but not {kind!r}, {which!r}")
    arrays = _arrays()
    ids = torch.from_numpy(arrays[f"{kind}_{which}"].astype(np.int64))
    documents = ids.split(arrays[f"{kind}_{which}_lengths"].tolist())
    names = tuple(str(name) for name in arrays[f"{kind}_{which}_names"])
    return Text(names, documents, tokenizer().bytes_of(ids.tolist()))


def pretrained_gpt() -> LanguageModel:
    """The shipped model, which has read code and no prose. In single precision, on the CPU."""
    path = _checked(WEIGHTS)
    model = LanguageModel(GPT)
    # Shipped in half precision; in single precision it is trained further.
    model.load_state_dict({name: half.float() for name, half in load_file(path).items()})
    return model.eval()


@torch.no_grad()
@training.flush_denormals()
def token_losses(model: nn.Module, x: Tensor, y: Tensor, at_once: int = 32) -> Tensor:
    """What each token costs, in nats: (N, T), (N, T) → (N, T), on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = [
        F.cross_entropy(model(a.to(device)), b.to(device), reduction="none").cpu()
        for a, b in zip(x.split(at_once), y.split(at_once), strict=True)
    ]
    model.train(was_training)
    return torch.cat(found)


@torch.no_grad()
def write(
    model: nn.Module, prompt: str, tokens: int = 80, temperature: float = 0.7, seed: int = 0
) -> str:
    """The prompt, continued by ``tokens`` tokens that are drawn one by one.

    The scores are divided by ``temperature``: 1 draws as often as the model says, and towards 0 the
    likeliest token becomes certain. As many last tokens are read as the model has positions for.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, but is {temperature}")
    coder, generator = tokenizer(), torch.Generator().manual_seed(seed)
    ids = coder.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: a model continues what it is given")
    for _ in range(tokens):
        recent = torch.tensor([ids[-GPT.context :]])
        chances = (model(recent)[0, :, -1] / temperature).softmax(dim=0)
        ids.append(int(torch.multinomial(chances, 1, generator=generator)))
    return coder.decode(ids)


def pretrain(
    how: GptRecipe | None = None,
    config: DecoderConfig = GPT,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> LanguageModel:
    """Train a model on the shipped code, from random weights."""
    how = how or GptRecipe()
    training.set_seed(how.seed)
    model = LanguageModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # they add to the stream
            parameter.data.mul_((2 * config.layers) ** -0.5)
    with training.one_thread():
        training.fit(
            model,
            *text("code").windows(config.context),
            steps=how.steps,
            lr=how.lr,
            batch_size=how.batch_size,
            weight_decay=how.weight_decay,
            seed=how.seed,
            device=device,
            progress=progress,
        )
    return model.cpu().eval()


def harvest() -> dict[str, np.ndarray]:
    """What the file of the texts holds, collected from the Python that runs this."""
    documents = {
        kind: corpus.split(corpus.without_repeats(found, "\n\n"), HELD_OUT[kind])
        for kind, found in (("code", corpus.library_code()), ("prose", corpus.help_prose()))
    }
    pairs = learn_pairs(documents["code"]["train"].values(), GPT.vocab)
    coder = BytePairs(pairs)
    arrays = {"pairs": np.array(pairs, np.uint16)}
    for kind, splits in documents.items():
        for which, texts in splits.items():
            ids = [coder.encode(one + "\n\n") for one in texts.values()]
            name = f"{kind}_{which}"
            arrays[name] = np.array([i for one in ids for i in one], np.uint16)
            arrays[f"{name}_lengths"] = np.array([len(one) for one in ids], np.int32)
            arrays[f"{name}_names"] = np.array(list(texts))
    return arrays


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    with np.load(_checked(TEXTS)) as found:
        return {name: found[name] for name in found.files}


def _checked(name: str, folder: Path = SHIPPED) -> Path:
    """The path of a shipped file, once its content is known to be the right one."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it is part of the package, so install minilora again"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != HASHES[name]:
        raise ValueError(
            f"{path} is not the file that the book used: its SHA-256 begins with {found[:12]} in "
            f"place of {HASHES[name][:12]}; install minilora again"
        )
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, pretrain or harvest; 0 where all went well."""
    parser = argparse.ArgumentParser(prog="python -m minilora.lab.language")
    parser.add_argument("what", choices=["check", "pretrain", "harvest"])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for what is made anew")
    options = parser.parse_args(arguments)
    if options.what == "harvest":
        path = options.out / TEXTS
        np.savez_compressed(path, **harvest())  # type: ignore[arg-type]
    elif options.what == "pretrain":
        path = options.out / WEIGHTS
        weights = pretrain().half().state_dict()
        replace_file(path, save({name: tensor.contiguous() for name, tensor in weights.items()}))
    else:
        for name in HASHES:
            print(f"{_checked(name)}: as shipped")
        return 0
    print(f"{path}: SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
