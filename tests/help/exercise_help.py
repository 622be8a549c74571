"""The tests that every chapter's exercises have: right answers, stubs, and each wrong answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from minilora import exercises

Function = Callable[..., Any]
Wrong = Sequence[tuple[str, Function, str]]  # (exercise, wrong answer, words of its message)


def check(name: str) -> Function:
    """The check of an exercise, as the chapter calls it."""
    return getattr(exercises, f"check_{name}")


def unwritten(*_: object) -> None:
    raise NotImplementedError


def exercise_tests(right: Mapping[str, Function], wrong: Wrong) -> tuple[Function, ...]:
    """Three test functions: right answers pass, stubs are no error, mistakes get their words."""

    @pytest.mark.parametrize("name", right)
    def right_answer_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
        check(name)(right[name])
        assert capsys.readouterr().out.startswith("passed: ")

    @pytest.mark.parametrize("name", right)
    @pytest.mark.parametrize("stub", [lambda *_: None, unwritten])
    def stub_is_not_an_error(name: str, stub: Function, capsys: pytest.CaptureFixture[str]) -> None:
        check(name)(stub)
        assert capsys.readouterr().out.strip() == "not attempted yet"

    @pytest.mark.parametrize(("name", "answer", "words"), wrong)
    def wrong_answer_gets_its_message(name: str, answer: Function, words: str) -> None:
        with pytest.raises(AssertionError) as error:
            check(name)(answer)
        assert words in str(error.value)

    return right_answer_passes, stub_is_not_an_error, wrong_answer_gets_its_message
