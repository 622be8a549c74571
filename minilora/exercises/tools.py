"""What the checks are made of: an exercise as a table of cases, mistakes and messages.

Most checks are an `Exercise`. The few that are not, because they train a model or look into one,
are functions that use `call`, `not_attempted`, `require` and `passed`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Function = Callable[..., Any]
#: Words, or a function that makes them from what was found and the arguments of the case.
Says = str | Callable[..., str]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that can be foreseen, and what to say to it.

    Attributes:
        answer: A function that makes the mistake. Whoever returns the same, in every case, has
            made it too.
        says: The message. It names what was misunderstood, and what to do.
        when: Where the mistake has more than one form: ``when(found, *case)`` recognises it, in
            one of the cases that went wrong. ``answer`` is an example.
        raises: Where the mistake is an error: of which type. ``says`` then gets the error.
    """

    answer: Function
    says: Says
    when: Callable[..., bool] | None = None
    raises: type[Exception] | tuple[type[Exception], ...] = ()


class Verdict(NamedTuple):
    """What is wrong with an answer: the row that says so, if one does, and the words."""

    mistake: Mistake | None
    words: str


def close(found: Any, right: Any, scale: float = 1.0) -> bool:
    """Equal in kind and shape, and in numbers but for rounding; tuples part by part.

    Rounding is that of the answer's own type, so that one in float32 passes.
    """
    if isinstance(right, tuple):
        parts = found if _has_parts(found) else ()
        return len(parts) == len(right) and all(map(close, parts, right, [scale] * len(right)))
    if isinstance(right, (str, bool, type(None))):
        return type(found) is type(right) and bool(found == right)
    if isinstance(right, (dict, set)):
        return isinstance(found, type(right)) and bool(found == right)
    if not is_numeric(found):
        return False
    found, right = np.asarray(found), np.asarray(right)
    coarse = 1e3 if found.dtype.kind == "f" and found.dtype.itemsize < 8 else 1  # float32
    return found.shape == right.shape and bool(
        np.allclose(found, right, rtol=1e-7 * coarse, atol=1e-9 * coarse * scale)
    )


@dataclass(frozen=True)
class Exercise:
    """An exercise whose answer is a function, checked by calling it.

    Attributes:
        asks: What the function gets and gives, with shapes.
        cases: The arguments of every call. The reader's function gets copies.
        right: A function that gives the right answers.
        mistakes: Those that can be foreseen; the first that fits speaks.
        otherwise: What to say where none fits.
        passed: What the right answer shows, for the line that begins with "passed:".
        parts: What the answer is called; a tuple of names where the function returns several
            things.
        same: ``same(found, right)``: whether two answers are equal.
    """

    asks: str
    cases: Sequence[tuple[Any, ...]]
    right: Function
    mistakes: Sequence[Mistake]
    otherwise: Says
    passed: str
    parts: str | tuple[str, ...] = "Your answer"
    same: Callable[[Any, Any], bool] = close

    def __call__(self, function: Function) -> None:
        """Print "passed: …" or "not attempted yet"; AssertionError says what is wrong."""
        found: list[Any] = []
        verdict = self.judge(function, found)
        if verdict is not None:
            raise AssertionError(verdict.words)
        if found[0] is None:
            print("not attempted yet")
        else:
            print(f"passed: {self.passed}")

    def judge(self, function: Function, found: list[Any] | None = None) -> Verdict | None:
        """What is wrong with the function, or None; ``found`` takes its answers."""
        found = [] if found is None else found
        for case in self.cases:
            try:
                with np.errstate(all="ignore"):  # the words say more than a warning would
                    found.append(call(function, *copy.deepcopy(case)))
            except Exception as error:
                verdict = self._compare(found)  # what went wrong before the error speaks first
                foreseen = (m for m in self.mistakes if isinstance(error, m.raises))
                if verdict is None and (mistake := next(foreseen, None)):
                    verdict = Verdict(mistake, _words(mistake.says, error, *case))
                if verdict is None:
                    raise
                return verdict
            if found[0] is None:
                return None
        return self._compare(found)

    def _compare(self, found: list[Any]) -> Verdict | None:
        """The answers to the first cases, against the right ones."""
        cases = self.cases[: len(found)]
        rights = [self.right(*copy.deepcopy(case)) for case in cases]
        wrong = [i for i, right in enumerate(rights) if not self.same(found[i], right)]
        if not wrong:
            return None
        for mistake in self.mistakes:
            at = self._place(mistake, found, wrong)
            if at is not None:
                return Verdict(mistake, _words(mistake.says, found[at], *self.cases[at]))
        at = wrong[0]
        words = misshapen(found[at], rights[at], self.parts)
        return Verdict(None, words or _words(self.otherwise, found[at], *self.cases[at]))

    def _place(self, mistake: Mistake, found: list[Any], wrong: list[int]) -> int | None:
        """The first case in which the mistake shows, if it was made."""
        if mistake.raises:
            return None
        if mistake.when is not None:
            hits = (i for i in wrong if _holds(mistake.when, found[i], *self.cases[i]))
            return next(hits, None)
        for case, answer in zip(self.cases, found, strict=False):
            try:
                with np.errstate(all="ignore"):
                    theirs = mistake.answer(*copy.deepcopy(case))
            except Exception:
                return None  # the mistake ends in an error here, and the answer did not
            if not self.same(answer, theirs):
                return None
        return wrong[0]


def _holds(when: Callable[..., bool], found: Any, *case: Any) -> bool:
    try:
        return bool(when(found, *case))
    except (TypeError, ValueError, LookupError, AttributeError):
        return False  # the question does not arise: the answer is of another kind


def _words(says: Says, *about: Any) -> str:
    return says if isinstance(says, str) else says(*about)


def misshapen(found: Any, right: Any, parts: str | tuple[str, ...]) -> str:
    """What is wrong with the kind or the shape of an answer; empty where they are right."""
    if isinstance(parts, tuple):
        if not _has_parts(found) or len(found) != len(parts):
            given = f"{len(found)}" if _has_parts(found) else type(found).__name__
            return f"Return {len(parts)} things, {' and '.join(parts)}; found {given}."
        all_parts = zip(found, right, parts, strict=True)
        return next((words for part in all_parts if (words := misshapen(*part))), "")
    if isinstance(right, (str, bool, dict, set)):
        wanted, given = type(right).__name__, type(found).__name__
        return "" if isinstance(found, type(right)) else f"{parts} must be a {wanted}, not {given}."
    if not is_numeric(found):
        return f"{parts} must hold numbers; found {found!r:.60}."
    if np.shape(found) != np.shape(right):
        wanted = f"have shape {np.shape(right)}" if np.shape(right) else "be one number"
        return f"{parts} must {wanted}; found shape {np.shape(found)}."
    return ""


def _has_parts(found: Any) -> bool:
    return isinstance(found, (tuple, list)) or (isinstance(found, np.ndarray) and found.ndim > 0)


def is_numeric(found: Any) -> bool:
    """Whether it is a real number, or an array or nested list of them."""
    try:
        return np.asarray(found).dtype.kind in "biuf"
    except (ValueError, TypeError, RuntimeError):  # ragged, or a tensor that NumPy cannot take
        return False


# --- for the checks that are functions ------------------------------------------------------


def call(function: Function, *arguments: Any) -> Any:
    """What the function returns; None where it says that it is not written yet."""
    try:
        return function(*arguments)
    except NotImplementedError:
        return None


def not_attempted(answer: Any) -> bool:
    """True, and said in print, for the None that a stub returns."""
    if answer is None:
        print("not attempted yet")
        return True
    return False


def require(condition: Any, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds (also under python -O)."""
    if not condition:
        raise AssertionError(message)


def passed(what: str) -> None:
    print(f"passed: {what}")


def array(answer: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The answer as a real array of the shape asked for."""
    words = misshapen(answer, np.zeros(shape), what)
    require(not words, words)
    return np.asarray(answer, dtype=float)


def example() -> np.ndarray:
    """A (5, 4) matrix with singular values 8, 4, 2, 1 and a column mean that is not zero."""
    generator = np.random.default_rng(2)
    U = np.linalg.qr(generator.standard_normal((5, 4)))[0]
    V = np.linalg.qr(generator.standard_normal((4, 4)))[0]
    return (U * np.array([8.0, 4.0, 2.0, 1.0])) @ V.T
