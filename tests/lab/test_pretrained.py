"""The bases' cache: made once, remade when torn, never half written."""

from dataclasses import replace

import pytest
import torch

from minilora.lab import pretrained

TINY = replace(pretrained.ADDER, width=8, heads=2, layers=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(seed=0, steps=4):
    return pretrained.pretrained_adder(seed, config=TINY, steps=steps, progress=False)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_second_call_reads_the_file(cache, monkeypatch):
    first = tiny()
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(pretrained, "_pretrain", None)  # training again would raise
    second = tiny()
    assert same(first, second) and not second.training
    assert second.head.out_features == 19


def test_seed_and_size_have_files_of_their_own(cache):
    first, other = tiny(0), tiny(1)
    tiny(0, steps=5)
    assert len(list(cache.iterdir())) == 3
    assert not same(first, other)


@pytest.mark.parametrize("damage", [b"", b"not a safetensors file", None])
def test_a_torn_file_is_made_again(cache, damage):
    first = tiny()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert same(tiny(), first)
    assert same(tiny(), first) and path.read_bytes() == whole


def test_a_failed_run_leaves_no_file(cache, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        tiny()
    assert list(cache.iterdir()) == []


def test_making_a_base_does_not_depend_on_what_was_drawn_before(cache):
    torch.manual_seed(123)
    first = tiny()
    for path in cache.iterdir():
        path.unlink()
    torch.manual_seed(456)
    assert same(tiny(), first)


@pytest.mark.parametrize("make", [pretrained.pretrained_adder, pretrained.pretrained_digits])
def test_a_base_that_has_not_learnt_is_refused_and_not_kept(cache, monkeypatch, make):
    config = TINY if make is pretrained.pretrained_adder else replace(TINY, image_size=(8, 8))
    monkeypatch.setattr(pretrained, "IN_EARNEST", 4)
    with pytest.raises(RuntimeError, match=r"after 4 steps the base names \d+% of new printed"):
        make(config=config, steps=4, progress=False)
    assert not cache.exists()
    monkeypatch.setattr(pretrained, "LEAST", 0.0)
    make(config=config, steps=4, progress=False)
    assert len(list(cache.iterdir())) == 1


def test_the_pictures_that_a_base_is_asked_about_are_new():
    seen, new = pretrained.data.printed_digits(64, 0), pretrained._new_digits(0)
    assert not any((new.x == picture).flatten(1).all(dim=1).any() for picture in seen.x)


def test_a_reader_of_another_size_has_a_file_of_its_own(cache):
    config = replace(TINY, image_size=(8, 8), classes=10)
    for changes in ({}, {"pictures": 40}, {"lr": 1e-3}):
        model = pretrained.pretrained_digits(config=config, steps=4, progress=False, **changes)
        assert model.config == config
    assert len(list(cache.iterdir())) == 3
