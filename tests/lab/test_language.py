"""The shipped model and texts: whole, small enough, and what the page says that they are."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilora.lab import language
from minilora.lab.decoder import Decoder, DecoderConfig
from minilora.lab.language import (
    GPT,
    HASHES,
    SHIPPED,
    GptRecipe,
    LanguageModel,
    Text,
    pretrained_gpt,
    text,
    token_losses,
    tokenizer,
    write,
)

SMALL = DecoderConfig(width=8, layers=1, heads=2, vocab=1024, context=16)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return pretrained_gpt()


def test_what_is_shipped_is_small_and_named_with_its_source_and_licence() -> None:
    sizes = {name: (SHIPPED / name).stat().st_size for name in HASHES}
    assert sizes[language.WEIGHTS] < 4e6 and sum(sizes.values()) < 6e6
    about = (SHIPPED / "language.txt").read_text(encoding="utf-8")
    for words in (*HASHES, *HASHES.values(), "PSF", "Copyright", "pretrain", "harvest"):
        assert words in about


def test_a_file_that_is_missing_or_altered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="install minilora again"):
        language._checked(language.TEXTS, tmp_path)
    content = bytearray((SHIPPED / language.TEXTS).read_bytes())
    content[1000] ^= 1
    (tmp_path / language.TEXTS).write_bytes(content)
    with pytest.raises(ValueError, match="not the file that the book used"):
        language._checked(language.TEXTS, tmp_path)


def test_the_command_checks_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert language.main(["check"]) == 0
    assert capsys.readouterr().out.count("as shipped") == len(HASHES)


def test_the_model_has_learnt_code_and_no_prose(model: LanguageModel) -> None:
    bits = {}
    for kind in ("code", "prose"):
        x, y = text(kind, "validation").windows()
        loss = token_losses(model, x[:40], y[:40]).mean().item()
        bits[kind] = text(kind, "validation").bits_per_byte(loss)
    assert bits["code"] < 2 < bits["prose"] - 0.4
    assert sum(p.numel() for p in model.parameters()) == GPT.parameters < 3e6


def test_a_language_model_is_a_decoder_with_its_scores_turned() -> None:
    torch.manual_seed(0)
    model = LanguageModel(SMALL)
    plain = Decoder(SMALL)
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(0, 1024, (3, 16))
    assert torch.equal(model(ids), plain(ids).transpose(1, 2))
    assert model(ids).shape == (3, 1024, 16)


def test_windows_are_what_follows_document_by_document() -> None:
    one = Text(("a", "b", "c"), (torch.arange(11), torch.arange(100, 103), torch.arange(50, 59)), 9)
    x, y = one.windows(4)
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [50, 51, 52, 53], [54, 55, 56, 57]]
    assert torch.equal(y, x + 1)
    assert one.homes(4) == ["a", "a", "c", "c"]
    assert one.tokens == 23
    with pytest.raises(ValueError, match="smaller context"):
        one.windows(20)


def test_bits_per_byte_does_not_ask_how_the_text_was_cut() -> None:
    """The same total, in twice as many tokens of half the cost, is the same number of bits."""
    coarse = Text(("a",), (torch.arange(10),), 40)
    fine = Text(("a",), (torch.arange(20),), 40)
    assert coarse.bits_per_byte(2.0) == pytest.approx(fine.bits_per_byte(1.0))
    assert coarse.bits_per_byte(math.log(2) * 4) == pytest.approx(1.0)


def test_the_texts_come_back_and_count_their_bytes() -> None:
    for kind in ("code", "prose"):
        one = text(kind, "test")
        words = tokenizer().decode(torch.cat(one.documents).tolist())
        assert len(words.encode()) == one.bytes
        assert tokenizer().encode(words) == torch.cat(one.documents).tolist()
    assert "def " in tokenizer().decode(text("code").documents[5].tolist())
    with pytest.raises(ValueError, match="there are"):
        text("poems")


def test_token_losses_are_cross_entropies(model: LanguageModel) -> None:
    x, y = (part[:3] for part in text("code", "test").windows())
    found = token_losses(model.train(), x, y, at_once=2)
    wanted = F.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(found, wanted, atol=1e-5) and found.shape == (3, 128)
    assert model.training and not model.eval().training


def test_writing_keeps_the_prompt_and_the_seed_settles_the_rest(model: LanguageModel) -> None:
    first, again = (write(model, "def f(", 12, seed=1) for _ in range(2))
    assert first == again and first.startswith("def f(")
    assert write(model, "def f(", 12, seed=2) != first
    assert write(model, "def f(", 12, 1e-4, seed=1) == write(model, "def f(", 12, 1e-4, seed=2)
    assert (
        len(tokenizer().encode(write(model, "x = 1\n" * 60, 3))) > GPT.context
    )  # more than it reads
    recent = "    return self.value\n" * 40
    alone, later = write(model, recent, 8), write(model, "import os\n" * 40 + recent, 8)
    assert len(tokenizer().encode(recent)) > GPT.context and later.endswith(alone)
    with pytest.raises(ValueError, match="temperature"):
        write(model, "x", temperature=0.0)
    with pytest.raises(ValueError, match="prompt is empty"):
        write(model, "")


def test_pretraining_depends_on_its_recipe_alone() -> None:
    how = GptRecipe(steps=3, batch_size=2)
    first, again = (language.pretrain(how, SMALL, progress=False) for _ in range(2))
    other = language.pretrain(replace(how, seed=1), SMALL, progress=False)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    still = [
        language.pretrain(replace(how, lr=1e-12, seed=seed), SMALL, progress=False).head.weight
        for seed in (0, 1)
    ]
    assert (still[0] - still[1]).abs().max() > 0.01  # the seed draws the start, too


def test_the_harvest_of_this_python_has_the_form_of_the_shipped_one() -> None:
    with np.load(SHIPPED / language.TEXTS) as shipped:
        kinds = {name: shipped[name].dtype.kind for name in shipped.files}
        pairs = shipped["pairs"]
    assert kinds.keys() == {"pairs"} | {
        f"{kind}_{which}{part}"
        for kind in ("code", "prose")
        for which in ("train", "validation", "test")
        for part in ("", "_lengths", "_names")
    }
    assert pairs.shape == (GPT.vocab - 256, 2) and max(map(len, tokenizer().tokens)) < 40


def test_the_shipped_hashes_are_of_the_files() -> None:
    for name, wanted in HASHES.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == wanted
