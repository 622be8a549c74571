"""Signatures that read well on the pages of the API.

A default that is an object has a representation which is no Python, such as ``<factory>`` for a
dataclass's field that is made anew each time, or ``<function close at 0x…>``. Sphinx then gives up
taking the signature apart, and prints it as one long line with all module paths. A function is
shown by its name here, and any other such default as ``...``.
"""

from __future__ import annotations

import re

FUNCTION = re.compile(r"<function (?:[\w.]+\.)?(\w+) at 0x[0-9a-f]+>")
OTHER = re.compile(r"(=\s*)<(?:[^<>]|<[^<>]*>)*>")


def readable(signature: str | None) -> str | None:
    """A signature as Sphinx can parse it."""
    if not signature:
        return signature
    return OTHER.sub(r"\1...", FUNCTION.sub(r"\1", signature))


def _process(app, what, name, thing, options, signature, returns):
    return readable(signature), returns


def setup(app):
    app.connect("autodoc-process-signature", _process)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
