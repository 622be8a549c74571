"""Chapter 11's checks: where two spacings keep the fewest bytes, either is right."""

from __future__ import annotations

from functools import partial

import pytest
from answers_ch11 import spacing

from minilora.exercises import check_checkpoint_every


def test_any_spacing_with_the_fewest_bytes_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert [spacing(36, 3, 2, pick) for pick in (min, max)] == [4, 6]
    check_checkpoint_every(partial(spacing, pick=max))
    assert capsys.readouterr().out.startswith("passed: ")
