"""The shipped generator and judge: what they can do, and that no other file passes for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minilora.lab import flowbase, styles
from minilora.lab.flow import sample
from minilora.lab.flowbase import BASE, HASHES, SHIPPED, image_base, image_judge, verdicts


def test_the_files_are_small_and_in_half_precision() -> None:
    for name in HASHES:
        path = SHIPPED / name
        assert path.stat().st_size < 1_500_000
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert "flowbase" in (SHIPPED / "images.txt").read_text(encoding="utf-8")


def test_the_judge_knows_real_pictures_that_it_has_not_seen() -> None:
    judge = image_judge()
    for number, style in enumerate(styles.STYLES):
        real = styles.styled(style, 200, seed=8100)
        digit, look = verdicts(judge, real.x)
        assert (digit == real.y).float().mean() > 0.9, style
        # A font of light weight is thin, and thin strokes of a heavy one are regular.
        assert (look == number).float().mean() > 0.8, style


def test_the_base_draws_what_is_ordered_in_the_plain_style() -> None:
    y = torch.arange(100) % 10
    digit, look = verdicts(image_judge(), sample(image_base(), y, seed=11))
    assert (digit == y).float().mean() > 0.95
    assert (look == styles.STYLES.index("plain")).float().mean() > 0.75


def test_the_base_copies_no_picture_of_its_training() -> None:
    """What it draws is as far from the nearest training picture as new real pictures are."""
    seen = styles.styled("plain", BASE.pictures, BASE.seed).x.flatten(1)
    drawn = sample(image_base(), torch.arange(100) % 10, seed=12).flatten(1)
    new = styles.styled("plain", 100, seed=8200).x.flatten(1)
    nearest = [torch.cdist(some, seen).min(dim=1).values.median() for some in (drawn, new)]
    assert nearest[0] > 0.7 * nearest[1]


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((SHIPPED / "image-judge.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "image-judge.safetensors").write_bytes(content)
    monkeypatch.setattr(flowbase, "SHIPPED", tmp_path)
    with pytest.raises(RuntimeError, match="not the file that this package was made with"):
        image_judge()


def test_the_command_makes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flowbase.main(["--out", str(tmp_path), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    for name in HASHES:
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert digest in said and "not the one that is shipped" in said
        shipped, made = load_file(SHIPPED / name), load_file(tmp_path / name)
        assert {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in shipped.items()}
