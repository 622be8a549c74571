"""Every check: the right answer passes, a stub is no error, each mistake gets its own words.

An `Exercise` is a table, and its rows are the tests. The answers to checks that are functions are
in the files ``answers_chNN.py``: ``RIGHT`` and ``WRONG``, the wrong ones with words of their
message.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilora import exercises
from minilora.exercises.tools import Exercise, Function, Mistake

CHECKS = {name: check for name, check in vars(exercises).items() if name.startswith("check_")}
TABLES = {name: check for name, check in CHECKS.items() if isinstance(check, Exercise)}
ROWS = [(name, i) for name, table in TABLES.items() for i in range(len(table.mistakes))]
HERE = Path(__file__).parent


def answers() -> tuple[dict[str, Function], list[tuple[str, Function, str]]]:
    """The right and the wrong answers to the checks that are functions."""
    right: dict[str, Function] = {}
    wrong: list[tuple[str, Function, str]] = []
    for path in sorted(HERE.glob("answers_ch*.py")):
        module = importlib.import_module(path.stem)
        right |= {f"check_{name}": answer for name, answer in module.RIGHT.items()}
        wrong += [(f"check_{name}", answer, words) for name, answer, words in module.WRONG]
    return right, wrong


RIGHT, WRONG = answers()


def test_every_check_is_a_table_or_has_its_answers() -> None:
    assert CHECKS.keys() == TABLES.keys() | RIGHT.keys()
    assert not TABLES.keys() & RIGHT.keys()
    assert {name for name, _, _ in WRONG} == RIGHT.keys()
    assert all(len(table.mistakes) >= 2 for table in TABLES.values())


@pytest.mark.parametrize("name", CHECKS)
def test_the_right_answer_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[name](TABLES[name].right if name in TABLES else RIGHT[name])
    assert capsys.readouterr().out.startswith("passed: ")


def unwritten(*_: object) -> None:
    raise NotImplementedError


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("stub", [lambda *_: None, unwritten])
def test_a_stub_is_no_error(name: str, stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[name](stub)
    assert capsys.readouterr().out.strip() == "not attempted yet"


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_mistake_of_a_table_gets_its_own_words(name: str, row: int) -> None:
    table = TABLES[name]
    mistake = table.mistakes[row]
    with pytest.raises(AssertionError) as error:
        table(mistake.answer)
    verdict = table.judge(mistake.answer)
    assert verdict is not None and verdict.mistake is mistake, str(error.value)
    assert str(error.value) == verdict.words and len(verdict.words) > 20


@pytest.mark.parametrize(
    ("name", "answer", "words"), WRONG, ids=[f"{name}: {words}" for name, _, words in WRONG]
)
def test_a_wrong_answer_to_a_function_gets_its_words(
    name: str, answer: Function, words: str
) -> None:
    with pytest.raises(AssertionError) as error:
        CHECKS[name](answer)
    assert words in str(error.value)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("answer", ["words", object(), [[1.0], [2.0, 3.0]], {}, -1.5, (1, 2, 3)])
def test_nonsense_is_refused_in_words(name: str, answer: Any) -> None:
    with pytest.raises(AssertionError) as error:
        CHECKS[name](lambda *_: answer)
    assert len(str(error.value)) > 20


def refused() -> dict[str, bool]:
    """{exercise and number of its wrong answer: whether that was refused}."""
    found = {}
    wrong = [(name, TABLES[name].mistakes[row].answer) for name, row in ROWS]
    wrong += [(name, answer) for name, answer, _ in WRONG]
    for number, (name, answer) in enumerate(wrong):
        try:
            CHECKS[name](answer)
        except AssertionError:
            found[f"{name} {number}"] = True
        else:
            found[f"{name} {number}"] = False
    return found


def test_optimised_python_refuses_the_same() -> None:
    """``python -O`` drops every assert statement; a check must not depend on one."""
    folders = [str(HERE), str(HERE.parents[1])]
    code = (
        f"import sys; sys.path[:0] = {folders!r}; import json, test_exercises as t; "
        "print(json.dumps([__debug__, t.refused()]))"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    debug, found = json.loads(done.stdout.splitlines()[-1])
    assert debug is False
    assert len(found) == len(ROWS) + len(WRONG) > 0
    assert all(found.values()), [name for name, right in found.items() if not right]


# ---------------------------------------------------------------- the table itself


def doubled(**changes: Any) -> Exercise:
    """An exercise: x → 2x."""
    settings: dict[str, Any] = {
        "asks": "x → 2x",
        "cases": [(1.0,), (3.0,)],
        "right": lambda x: 2 * x,
        "mistakes": [
            Mistake(lambda x: x**2, "You squared."),
            Mistake(lambda x: 1 / 0, lambda error, x: f"{error}!", raises=ZeroDivisionError),
            Mistake(lambda x: -x, "It is negative.", when=lambda found, x: found < 0),
        ],
        "otherwise": lambda found, x: f"{found} for {x}",
        "passed": "twice",
    }
    return Exercise(**(settings | changes))


def test_the_first_row_that_fits_speaks() -> None:
    def words(answer: Function) -> str:
        verdict = doubled().judge(answer)
        assert verdict is not None
        return verdict.words

    assert words(lambda x: x * x) == "You squared."
    assert words(lambda x: 1 // 0) == "integer division or modulo by zero!"
    assert words(lambda x: -2 * x) == "It is negative."
    assert words(lambda x: x + 1) == "4.0 for 3.0"  # right for 1 and wrong for 3
    assert words(lambda x: [x, x]) == "Your answer must be one number; found shape (2,)."
    assert words(lambda x: "2") == "Your answer must hold numbers; found '2'."


def test_what_went_wrong_before_an_error_speaks_first() -> None:
    def breaks_at_three(x: float) -> float:
        return x**2 if x < 3 else 1 / 0

    verdict = doubled().judge(breaks_at_three)
    assert verdict is not None and verdict.words == "You squared."
    verdict = doubled().judge(lambda x: 2 * x if x < 3 else 1 // 0)
    assert verdict is not None and verdict.words == "integer division or modulo by zero!"
    with pytest.raises(OverflowError):  # which no row foresees
        doubled()(lambda x: 2 * x if x < 3 else 1e300 ** int(x))


def test_a_bug_in_the_answer_is_shown_as_it_is() -> None:
    with pytest.raises(KeyError):
        doubled()(lambda x: {}[x])


def test_rounding_is_that_of_the_answer() -> None:
    table = doubled(right=lambda x: 2 * x / 3)
    assert table.judge(lambda x: np.float32(2 * x / 3)) is None
    assert table.judge(lambda x: 2 * x / 3 * (1 + 1e-12)) is None
    assert table.judge(lambda x: 2 * x / 3 * (1 + 1e-6)) is not None
    assert table.judge(lambda x: np.float32(2 * x / 3 * 1.001)) is not None


def test_an_answer_cannot_change_the_cases() -> None:
    table = doubled(cases=[([1.0],)], right=lambda x: 2 * x[0])

    def greedy(x: list[float]) -> float:
        return 2 * x.pop()

    for _ in range(2):
        assert table.judge(greedy) is None


def test_several_parts_are_asked_for_by_name() -> None:
    table = doubled(right=lambda x: (x, x), parts=("C", "R"), mistakes=[])
    verdict = table.judge(lambda x: x)
    assert verdict is not None and verdict.words == "Return 2 things, C and R; found float."
    verdict = table.judge(lambda x: (x, [x]))
    assert verdict is not None and verdict.words == "R must be one number; found shape (1,)."
