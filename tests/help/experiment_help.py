"""What the tests of the experiments share: rows by hand, and a note of all that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from minilora.experiments import families
from minilora.experiments.recording import Recording, Row
from minilora.lab import sweep as sweep_module


def make_row(arm: str = "a", seed: int = 0, accuracy: float | None = 0.5, **changes: Any) -> Row:
    """A row on test data; ``changes`` are fields."""
    row = Row(
        stage="final",
        arm=arm,
        kind="lora",
        labels=40,
        seed=seed,
        r=1,
        lr=1e-3,
        parameters=10,
        accuracy=accuracy,
        log_loss=1.0,
        train_loss=0.5,
        seconds=0.1,
    )
    return replace(row, **changes)


def tuned(lr: float, loss: float | None, seed: int = 0, **changes: Any) -> Row:
    """A row on validation data."""
    accuracy = None if loss is None else 0.5
    row = make_row("a", seed, accuracy, stage="tune", lr=lr, log_loss=loss, diverged=loss is None)
    return replace(row, **changes)


def recorded(rows: Sequence[Row]) -> Recording:
    """A recording of these rows."""
    return Recording(
        name="rank",
        profile="smoke",
        settings={"labels": [40, 80]},
        rows=list(rows),
        source="0" * 64,
        device="cpu",
        versions={"python": "3", "torch": "2", "numpy": "2"},
        date="2026-01-01T00:00:00+00:00",
        commit=None,
        seconds=1.0,
        peak_bytes=None,
    )


def plain(rows: Sequence[Row]) -> list[Row]:
    """The rows without the time that they took."""
    return [replace(row, seconds=0.0) for row in rows]


def note_work(patch: pytest.MonkeyPatch, stop: int | None = None) -> list[str]:
    """Note every cell and whole model that is trained; stop before the call after ``stop`` calls.

    A cell is noted with what tells its task from others: labels, and the pictures it is scored on.
    """
    done: list[str] = []
    calls = 0

    def noting(real: Callable[..., Any], what: Callable[..., list[str]]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal calls
            if calls == stop:
                raise KeyboardInterrupt
            calls += 1
            result = real(*given, **more)
            done.extend(what(*given, **more))
            return result

        return call

    def cells(
        base: Any, pairs: Any, scored: Any, settings: Any, keep: Any, chosen: Any
    ) -> list[str]:
        seen = [(name, x[:, :, 0].sum().item()) for name, (x, _) in scored.items()]
        labels = {len(y) for _, y in pairs.values()}
        return [f"{cell} {settings} {labels} {seen}" for cell in chosen]

    def whole(run: Any, *, task: Any, stages: Any, **more: Any) -> list[str]:
        return [f"{run} {task.labels} {task.change} {stages}"]

    patch.setattr(sweep_module, "_train", noting(sweep_module._train, cells))
    patch.setattr(families, "_whole", noting(families._whole, whole))
    return done


def noted(run: Callable[[], Any], stop: int | None = None) -> tuple[Any, list[str]]:
    """What the run gives, or None where it is stopped, and all that it trains: see note_work."""
    with pytest.MonkeyPatch.context() as patch:
        done = note_work(patch, stop)
        if stop is None:
            return run(), done
        with pytest.raises(KeyboardInterrupt):
            run()
    return None, done
