"""What extensions note about each page while the pages are read.

It lies in Sphinx's environment, as ``env.NAME[page]``, and so stays for the next build. A page that
is read again or removed is forgotten, and what parallel readers noted is brought together.
"""

from __future__ import annotations

from typing import Any


def noted(env, name: str) -> dict[str, Any]:
    """{page: what was noted about it under this name}."""
    if not hasattr(env, name):
        setattr(env, name, {})
    return getattr(env, name)


def keep(app, *names: str) -> None:
    """Keep what is noted under these names in step with the pages."""

    def forget(app, env, page) -> None:
        for name in names:
            noted(env, name).pop(page, None)

    def merge(app, env, pages, other) -> None:
        for name in names:
            theirs = noted(other, name)
            noted(env, name).update({page: theirs[page] for page in pages if page in theirs})

    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
