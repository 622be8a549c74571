"""Checks of chapter 7: building the layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora.exercises.tools import (
    Exercise,
    Function,
    Mistake,
    call,
    close,
    is_numeric,
    not_attempted,
    passed,
    require,
)

Array = np.ndarray
Pair = tuple[Array, Array]
Layers = list[tuple[int, int]]


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Normal numbers, the arguments of a case."""
    return tuple(map(np.random.default_rng(seed).standard_normal, shapes))


def _moved(layers: Layers, r: int) -> tuple[int, int, int]:
    in_A, in_B = (r * sum(widths) for widths in zip(*layers, strict=True))
    return in_B, in_A + in_B, 0


def _counts(change: Callable[[int, int, int, int], Any]) -> Function:
    """Three counts, from the numbers in A, in B and in the frozen weights, and the rank."""

    def counts(layers: Layers, r: int) -> Any:
        first, second, _ = _moved(layers, r)
        return change(second - first, first, sum(m * n for m, n in layers), r)

    return counts


check_moved_numbers = Exercise(
    asks="layers [(d_in, d_out), …], r → (after one step, after two, of an early optimizer).",
    # No sum of inputs is that of the outputs: a count of A is not one of B.
    cases=[([(48, 192), (48, 48), (192, 64)], 4), ([(5, 3)], 2), ([(7, 9)] * 3, 1)],
    right=_moved,
    mistakes=[
        Mistake(
            _counts(lambda A, B, W, r: (A + B, A + B, 0)),
            "You let A move in the first step. While B is zero the gradient of A is zero, and "
            "Adam moves nothing that has no gradient.",
            when=lambda found, layers, r: found[0] == _moved(layers, r)[1],
        ),
        Mistake(
            _counts(lambda A, B, W, r: (A, A + B, 0)),
            "You let A move first and B later. It is B that begins at zero, so that A has no "
            "gradient yet and B has one.",
            when=lambda found, layers, r: found[0] == _moved(layers, r)[1] - _moved(layers, r)[0],
        ),
        Mistake(
            _counts(lambda A, B, W, r: (B, B, 0)),
            "You let A stand still for ever. After the first step B is no longer zero, and then A "
            "has a gradient as well.",
            when=lambda found, layers, r: found[0] == found[1] == _moved(layers, r)[0],
        ),
        Mistake(
            _counts(lambda A, B, W, r: (B, A, 0)),
            "In the second step B moves again: count the numbers that differ from the start, in A "
            "and in B.",
        ),
        Mistake(
            _counts(lambda A, B, W, r: (B, A + B, A + B)),
            "An optimizer moves the parameters that it was given. Made before `add`, it holds "
            "frozen ones only, and they have no gradient.",
            when=lambda found, layers, r: (
                tuple(found[:2]) == _moved(layers, r)[:2] and found[2] != 0
            ),
        ),
        Mistake(
            _counts(lambda A, B, W, r: (B // r, (A + B) // r, 0)),
            "You leave the rank out: A has r rows and B has r columns.",
            when=lambda found, layers, r: r > 1 and found[1] * r == _moved(layers, r)[1],
        ),
        Mistake(
            _counts(lambda A, B, W, r: (W, W, 0)),
            "You count the frozen weights, which do not move.",
            when=lambda found, layers, r: found[0] == sum(m * n for m, n in layers),
        ),
        Mistake(
            lambda layers, r: _moved(layers[:1], r),
            "You count a single layer. Add up over all of them.",
            when=lambda found, layers, r: len(layers) > 1 and tuple(found) == _moved(layers[:1], r),
        ),
    ],
    otherwise=lambda found, layers, r: (
        f"For {layers} and rank {r} it is not {tuple(found)}. A layer has r · d_in numbers in A "
        "and r · d_out in B; ask of each factor whether it has a gradient at that step."
    ),
    passed="B moves first, A from the second step on, and an optimizer moves what it holds.",
    parts=("the count after one step", "after two", "of an early optimizer"),
)


def _unfit(found: Any, A: Array, B: Array, *_: Any) -> str:
    """Why this is no pair (A, B) for the same layer; empty where it is one."""
    if not (isinstance(found, (tuple, list)) and len(found) == 2 and all(map(is_numeric, found))):
        return "Return the two factors, A and B, not their product."
    a, b = map(np.shape, found)
    if len(a) != 2 or len(b) != 2:
        return f"Both factors must be matrices; found shapes {a} and {b}."
    if (*b, *a) == (b[0], A.shape[1], len(B), b[0]):
        return "You return B first and A second. The exercise asks for A, then B."
    if (*a, *b) != (a[0], A.shape[1], len(B), a[0]):
        return f"A must be (r, {A.shape[1]}) and B ({len(B)}, r); found {a} and {b}."
    return ""


def _is_unfit(found: Any, *case: Any) -> bool:
    return _unfit(found, *case) != ""


def _same_update(found: Any, right: Any) -> bool:
    """Whether two pairs have the same product."""
    return not _unfit(found, *right) and close(np.matmul(*found[::-1]), np.matmul(*right[::-1]))


def _mean_adapters(
    A1: Array, B1: Array, s1: float, A2: Array, B2: Array, s2: float, *, times: float = 1
) -> Pair:
    return np.vstack([A1, A2]), times * np.hstack([s1 * B1, s2 * B2]) / 2


def _average(A1: Array, B1: Array, s1: float, A2: Array, B2: Array, s2: float) -> Pair:
    return (A1 + A2) / 2, (s1 * B1 + s2 * B2) / 2


def _unscaled(A1: Array, B1: Array, s1: float, A2: Array, B2: Array, s2: float) -> Pair:
    return _mean_adapters(A1, B1, 1, A2, B2, 1)


def _pair(seed: int, r: int, m: int, n: int) -> Pair:
    A, B = _draw(seed, (r, n), (m, r))
    return A, B


check_mean_adapters = Exercise(
    asks="A1, B1, s1, A2, B2, s2 → (A, B) with B A = (s1 B1 A1 + s2 B2 A2) / 2.",
    cases=[
        (*_pair(2, 2, 5, 6), 2.0, *_pair(3, 2, 5, 6), 0.5),
        (*_pair(4, 2, 5, 6), 0.25, *_pair(5, 3, 5, 6), 4.0),
        (*_pair(6, 1, 7, 4), 1.0, *_pair(7, 4, 7, 4), -3.0),
    ],
    right=_mean_adapters,
    mistakes=[
        Mistake(
            lambda *case: (_mean_adapters if len(case[0]) == len(case[3]) else _average)(*case),
            lambda error, A1, B1, s1, A2, B2, s2: (
                f"With ranks {len(A1)} and {len(A2)} your function fails: {error}. Factors of "
                "different ranks cannot be added; they can be put side by side."
            ),
            raises=ValueError,
        ),
        Mistake(lambda *case: _mean_adapters(*case)[::-1], _unfit, _is_unfit),
        Mistake(
            _average,
            "You averaged the factors. The product of the means also holds B1 A2 and B2 A1, "
            "which belong to neither adapter.",
            when=lambda found, *case: len(found[0]) == len(case[0]) == len(case[3]),
        ),
        Mistake(
            lambda A1, B1, s1, A2, B2, s2: (
                (s1 * B1 @ A1 + s2 * B2 @ A2) / 2,
                np.eye(len(B1)),
            ),
            lambda found, A1, B1, s1, A2, B2, s2: (
                f"Your factors have rank {len(found[0])}; put side by side they have r1 + r2 = "
                f"{len(A1) + len(A2)}."
            ),
            when=lambda found, A1, B1, s1, A2, B2, s2: len(found[0]) != len(A1) + len(A2),
        ),
        Mistake(
            _unscaled,
            "The scales are missing: the first update counts s1 times and the second s2 times, and "
            "the pair that you return has scale 1.",
        ),
        Mistake(
            lambda A1, B1, s1, A2, B2, s2: _mean_adapters(A1, B1, s2, A2, B2, s1),
            "You gave each adapter the other one's scale.",
        ),
        Mistake(
            lambda A1, B1, s1, A2, B2, s2: _mean_adapters(
                A1, B1, (s1 + s2) / 2, A2, B2, (s1 + s2) / 2
            ),
            "You gave both adapters the mean of the two scales. Each update has its own: put s1 "
            "into the first pair and s2 into the second before you stack them.",
        ),
        Mistake(
            lambda A1, B1, s1, A2, B2, s2: _mean_adapters(A1, B1, s1**2, A2, B2, s2**2),
            "Each scale counts twice: it goes into A or into B, and not into both.",
        ),
        Mistake(
            partial(_mean_adapters, times=2),
            "That is the sum of the two updates; halve it once.",
        ),
        Mistake(
            partial(_mean_adapters, times=0.5),
            "You halved both factors, so the product is a quarter of the sum; halve one of them.",
        ),
    ],
    otherwise="B A should be the mean of s1 B1 A1 and s2 B2 A2, and is not.",
    passed="side by side the factors add up the updates, at rank r1 + r2.",
    parts=("A", "B"),
    same=lambda found, right: _same_update(found, right) and len(found[0]) == len(right[0]),
)


_SCALE = 2.0


def _forward(x: Array, A: Array, B: Array) -> Array:
    return _SCALE * x @ A.T @ B.T


def _delta(A: Array, B: Array) -> Array:
    return _SCALE * B @ A


def _dropping() -> Function:
    """A forward in which dropout still acts."""
    generator = np.random.default_rng(0)

    def forward(x: Array, A: Array, B: Array) -> Array:
        return _forward(2 * x * (generator.random(np.shape(x)) < 0.5), A, B)

    return forward


_SIZES = (6, 6, 3)
#: (what makes forward, delta, the sizes, what the two show; empty where they are right)
_PAIRS: list[tuple[Callable[[], Function], Function, tuple[int, int, int], str]] = [
    (lambda: _forward, _delta, _SIZES, ""),
    (lambda: _forward, _delta, (7, 4, 2), ""),
    # The same map in another order of operations, and so equal up to rounding only.
    (lambda: lambda x, A, B: x @ (_SCALE * B @ A).T, lambda A, B: B @ (_SCALE * A), _SIZES, ""),
    (
        lambda: lambda x, A, B: np.zeros((len(x), len(B))),
        _delta,
        (7, 4, 2),
        "an adapter whose forward adds nothing, as when its weight is read and the layer is not "
        "called. With B at zero it looks right",
    ),
    (
        lambda: _forward,
        lambda A, B: B @ A,
        (7, 4, 2),
        "an update without the scale. With B at zero it looks right",
    ),
    (
        lambda: _forward,
        lambda A, B: _delta(A, B).T,
        _SIZES,
        "a transposed update. With numbers that are all the same, and by norm or sum, it looks "
        "right",
    ),
    (
        lambda: _forward,
        lambda A, B: _SCALE * B[:, :1] @ A[:1],
        _SIZES,
        "an update that holds only the first of the r pieces. With a single column of B that is "
        "not zero it looks right",
    ),
    (
        lambda: lambda x, A, B: np.repeat(_forward(x[:1], A, B), len(x), axis=0),
        _delta,
        (7, 4, 2),
        "a forward that gives every row the answer of the first. With a single row it looks right",
    ),
    (
        lambda: lambda x, A, B: abs(_forward(x, A, B)),
        _delta,
        _SIZES,
        "a forward that loses the sign. With positive numbers it looks right",
    ),
    (
        _dropping,
        _delta,
        (7, 4, 2),
        "a forward in which dropout still acts. On average over many calls it looks right",
    ),
]


def check_layer_test(function: Function) -> None:
    """``function(forward, delta, d_in, d_out, r)`` → whether the two are the same map."""
    for number, (make, delta, sizes, broken) in enumerate(_PAIRS):
        try:
            answer = call(function, make(), delta, *sizes)
        except Exception as error:
            raise AssertionError(
                f"Your test ends in an error ({error!r:.80}) where it should return "
                f"{not broken}: d_in, d_out, r = {sizes}. x is (rows, d_in), A (r, d_in) and B "
                "(d_out, r), and delta gives (d_out, d_in)."
            ) from error
        if number == 0 and not_attempted(answer):
            return
        require(
            isinstance(answer, (bool, np.bool_)),
            f"Return True or False; found {answer!r:.40}.",
        )
        require(
            answer or broken,
            f"Your test refuses a right layer, with d_in, d_out, r = {sizes}. A row x meets the "
            "update as x @ delta.T, and two ways to add the same numbers differ by rounding: "
            "compare with np.allclose.",
        )
        require(not (answer and broken), f"Your test accepts {broken}.")
    passed("your test tells each broken layer from a right one.")


_MODEL = {"q.A": np.zeros((2, 4)), "q.B": np.zeros((3, 2))}
_FILE = {"q.A": np.ones((2, 4)), "q.B": np.full((3, 2), 2.0)}
#: Another pair of dictionaries that fit, in another order and with other names.
_OTHER_MODEL = {"v.B": np.zeros((2, 1)), "v.A": np.zeros((1, 3)), "k.A": np.zeros((1, 2))}
_OTHER_FILE = {name: 1.0 + tensor for name, tensor in sorted(_OTHER_MODEL.items())}
_SHAPE = "a shape differs"
#: (a file that does not fit, part of the name that does not, what is wrong)
_MISFITS: list[tuple[dict[str, Array], str, str]] = [
    ({"q.A": _FILE["q.A"]}, "q.B", "a factor of the model is missing from the file"),
    ({**_FILE, "v.A": _FILE["q.A"]}, "v.A", "the file has a tensor that fits nothing"),
    ({f"_orig_mod.{n}": t for n, t in _FILE.items()}, "q.", "every name has a prefix"),
    ({"q.A": _FILE["q.A"], "q.B": np.ones((1, 2))}, "q.B", _SHAPE),
    ({"q.A": _FILE["q.A"], "q.B": np.ones((3, 1))}, "q.B", _SHAPE),
    ({"q.A": np.ones((4, 2)), "q.B": _FILE["q.B"]}, "q.A", _SHAPE),
]


def _twin(tensors: dict[str, Array]) -> dict[str, Array]:
    return {name: tensor.copy() for name, tensor in tensors.items()}


def _untouched(given: dict[str, Array], arrays: dict[str, Array], was: dict[str, Array]) -> bool:
    """Whether the dictionary has the same arrays in it, and they the same numbers."""
    return given.keys() == was.keys() and all(
        given[name] is arrays[name] and np.array_equal(arrays[name], was[name]) for name in was
    )


def _tried(function: Function, model: dict[str, Array], file: dict[str, Array]) -> Any:
    """What the function returns or raises, after a look at what it was given."""
    arrays, tensors = _twin(model), _twin(file)
    given, read = dict(arrays), dict(tensors)
    try:
        found: Any = call(function, given, read)
    except Exception as error:
        found = error
    words = "If a later name does not fit, the model is left half loaded: build a new dictionary."
    require(given.keys() == model.keys(), f"Your function changes the model's dictionary. {words}")
    require(
        _untouched(given, arrays, model),
        "Your function changes the model: it puts other arrays into its dictionary, or writes into "
        f"the arrays that are there. {words}",
    )
    require(_untouched(read, tensors, file), "Your function changes what it read from the file.")
    require(
        found is not given and found is not read,
        "You return one of the two dictionaries that you were given. Return a new one, which "
        "can be changed without changing them.",
    )
    return found


def check_strict_load(function: Function) -> None:
    """``function(model, file)`` → the file's values; ValueError names what does not fit."""
    for model, file in ((_MODEL, _FILE), (_OTHER_MODEL, _OTHER_FILE)):
        answer = _tried(function, model, file)
        if model is _MODEL and not_attempted(answer):
            return
        if isinstance(answer, Exception):
            raise AssertionError(f"A file that fits is refused: {answer!r:.80}.") from answer
        require(
            isinstance(answer, dict) and set(answer) == set(model),
            "Return a dictionary with the model's names.",
        )
        require(
            all(close(answer[name], tensor) for name, tensor in file.items()),
            "A file that fits must give back the file's values under the model's names.",
        )
    for file, name, what in _MISFITS:
        error = _tried(function, _MODEL, file)
        fitting = [n for n in _MODEL if n in file and n != name]
        words = "your function says nothing. " + (
            "NumPy would then broadcast the wrong numbers, or fail much later."
            if what == _SHAPE
            else "That is what strict=False does."
        )
        if isinstance(error, ValueError):
            if name in str(error) and not any(n in str(error) for n in fitting):
                continue
            words = f"your error must name it, and nothing that fits; it says {str(error)!r}."
        elif isinstance(error, KeyError):
            words = (
                f"a bare KeyError({error}) comes out. Compare the names first, and say what is "
                "wrong."
            )
        elif isinstance(error, Exception):
            words = f"{error!r:.80} comes out; raise ValueError with the name."
        raise AssertionError(f"Where {what}, {words}")
    passed("what does not fit is refused by name, and nothing is half loaded.")


class _Shared(np.ndarray):
    """An array that a case does not copy."""

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


def _lora_embedding(ids: Array, W0: Array, A: Array, B: Array, scale: float) -> Array:
    return W0[ids] + scale * np.moveaxis(A[:, ids], 0, -1) @ B.T


def _whole_table(ids: Array, W0: Array, A: Array, B: Array, scale: float) -> Array:
    if W0.size > 1e9:
        raise MemoryError
    return W0[ids] + scale * (B @ A).T[ids]


_TABLE = _draw(3, (5, 5), (2, 5), (5, 2))
_WORDS = 200_000

check_lora_embedding = Exercise(
    asks="ids, W0, A, B, scale → W0[ids] + scale · (B A[:, ids])ᵀ, of shape (…, d).",
    cases=[
        (np.array([3, 0, 3]), *_TABLE, 0.5),
        (np.array([[1, 4], [2, 2], [0, 1]]), *_TABLE, 0.5),
        # The update of this whole table has 40,000 million entries; a read needs 3 columns.
        (
            np.array([7, 7, 9]),
            np.broadcast_to(np.zeros(1).view(_Shared), (_WORDS, _WORDS), subok=True),
            *(np.ones((1, _WORDS)), np.ones((_WORDS, 1)), 1.0),
        ),
    ],
    right=_lora_embedding,
    mistakes=[
        Mistake(
            lambda ids, W0, A, B, scale: W0[ids] + scale * A[:, ids].T @ B.T,
            lambda error, *case: (
                f"Your shapes do not fit ({error}). A[:, ids] has the r numbers of a token along "
                "its first axis. For ids of several axes .T turns all of them round: move only "
                "the first to the end, and multiply by Bᵀ."
            ),
            raises=ValueError,
        ),
        Mistake(
            _whole_table,
            "Your function forms the update of the whole table, which does not fit into memory "
            "here. Read the columns of A first, then multiply by B.",
            raises=MemoryError,
        ),
        Mistake(
            lambda ids, W0, A, B, scale: _lora_embedding(ids, W0, A, B, 1),
            "The scale is missing from the update.",
        ),
        Mistake(
            lambda ids, W0, A, B, scale: W0[ids] + scale * (B @ A)[ids],
            "You read rows of B A. A has a column for each token, so the update of token i is "
            "B times column i of A: a row of the transpose.",
        ),
        Mistake(lambda ids, W0, *rest: W0[ids], "The update is missing."),
        Mistake(
            lambda *case: np.moveaxis(_lora_embedding(*case), -1, 0),
            lambda found, ids, W0, *rest: (
                f"For ids of shape {ids.shape} the answer must have shape "
                f"{(*ids.shape, W0.shape[1])}, ids first and the {W0.shape[1]} numbers of a row "
                f"last; found {np.shape(found)}."
            ),
            when=lambda found, ids, W0, *rest: np.shape(found) != (*ids.shape, W0.shape[1]),
        ),
    ],
    otherwise=lambda found, ids, W0, *rest: (
        "On a large vocabulary the numbers are wrong."
        if len(W0) == _WORDS
        else "Row i should be W0[i] plus scale times B times A[:, i]."
    ),
    passed="a read costs one column of A and one small product.",
)
