"""An exercise that looks at how an answer is made, and not only at the answer."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from minilora.exercises.tools import Exercise, Function, Verdict, call


class Forbidden(Exception):
    """The answer called what the exercise asks to do without."""


class Changed(Exception):
    """The answer wrote into one of its arguments."""


@dataclass(frozen=True)
class Guarded(Exercise):
    """An exercise whose answer leaves its arguments, which are arrays or numbers, as they are.

    A `Mistake` with ``raises=Changed`` or ``raises=Forbidden`` says what to do instead.

    Attributes:
        without: Names in ``np.linalg`` that the answer must not call.
    """

    without: tuple[str, ...] = ()

    def judge(self, function: Function, found: list[Any] | None = None) -> Verdict | None:
        return super().judge(partial(self._watched, function), found)

    def _watched(self, function: Function, *case: Any) -> Any:
        before = copy.deepcopy(case)
        with ExitStack() as stack:
            for name in self.without:
                refuse = Forbidden(f"np.linalg.{name}")
                stack.enter_context(mock.patch.object(np.linalg, name, side_effect=refuse))
            answer = call(function, *case)
        if not all(map(np.array_equal, case, before)):
            raise Changed
        return answer
