"""A file of finished work, so that what was stopped goes on where it was.

Line by line in JSON: the first line says what the entries belong to, each further line is one
finished entry. A line that was cut off by the end of a run is passed over and written anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """Finished entries by key, each on disk as soon as it is added.

    ``header`` says what the entries belong to. A file with another header is refused, or, with
    ``replace=True``, begun afresh. With ``path=None`` nothing is written.

    Raises:
        ValueError: The file has another header.
    """

    def __init__(
        self, path: Path | str | None, header: dict[str, Any], *, replace: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.entries: dict[str, Any] = {}
        if self.path is None:
            return
        first = json.dumps({"journal": header}, sort_keys=True) + "\n"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text.startswith(first):
            for line in text[len(first) :].splitlines():
                try:
                    entry = json.loads(line)
                    self.entries[entry["key"]] = entry["entry"]
                except (ValueError, TypeError, KeyError):
                    continue  # the line that was being written when the run was stopped
            if not text.endswith("\n"):
                self._write("a", "\n")
        elif replace or first.startswith(text):  # empty, or stopped in its first line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", first)
        else:
            raise ValueError(
                f"{self.path} belongs to other work: it begins with {text.splitlines()[0][:80]!r}. "
                "Give another path, or delete the file"
            )

    def add(self, key: str, entry: Any) -> None:
        """Keep one finished entry, anything that JSON can hold."""
        self.entries[key] = entry
        self._write("a", json.dumps({"key": key, "entry": entry}) + "\n")

    def close(self) -> None:
        """The work is done and kept elsewhere: delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, mode: str, text: str) -> None:
        if self.path is not None:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
