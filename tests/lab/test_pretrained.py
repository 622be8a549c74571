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
