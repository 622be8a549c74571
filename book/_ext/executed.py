"""The notebooks as they were executed, when and on what: from the cache that the build fills.

MyST-NB also leaves each notebook in the folder jupyter_execute, but without outputs where it took
them from the cache.
"""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import NamedTuple


class Executed(NamedTuple):
    """What is known of a page's execution, which may have been in an earlier build.

    ``moment`` is in seconds since 1970, ``seconds`` is how long it took, and ``cores`` how many it
    had to itself.
    """

    notebook: dict | None = None
    moment: float | None = None
    seconds: float | None = None
    cores: int | None = None


def executed(app, page: str) -> Executed:
    """The page's notebook with its outputs, and when, how long and on how many cores it ran."""
    known = app.__dict__.setdefault("executed_notebooks", {})
    if page not in known:
        known[page] = _look(app, page)
    return known[page]


def _look(app, page: str) -> Executed:
    source = Path(app.srcdir) / f"{page}.ipynb"
    cache = Path(getattr(app.config, "nb_execution_cache_path", "") or "")
    ran = (getattr(app.env, "nb_metadata", {}).get(page) or {}).get("exec_data")
    if not source.is_file() or not ran or not ran.get("succeeded"):
        return Executed()
    known = Executed(None, ran["mtime"], ran["runtime"])
    if not (cache / "global.db").is_file():
        return known
    import nbformat
    from jupyter_cache import get_cache

    store = get_cache(str(cache))
    notebook = nbformat.read(source, 4)
    try:
        record = store.match_cache_notebook(notebook)
        _, merged = store.merge_match_into_notebook(notebook)
    except KeyError:
        return known
    moment = record.created.replace(tzinfo=UTC).timestamp()
    return Executed(merged, moment, ran["runtime"], (record.data or {}).get("cores"))
