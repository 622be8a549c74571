"""The notebooks as they were executed, and when: from the cache that the build executes into.

MyST-NB also leaves each notebook in the folder jupyter_execute, but without outputs where it took
them from the cache.
"""

from __future__ import annotations

from datetime import UTC
from pathlib import Path


def executed(app, page: str) -> tuple[dict | None, float | None]:
    """(the notebook with its outputs, seconds since 1970) of a page; (None, None) if there is none.

    The time is that of the execution, which may have been in an earlier build.
    """
    known = app.__dict__.setdefault("executed_notebooks", {})
    if page not in known:
        known[page] = _look(app, page)
    return known[page]


def _look(app, page: str) -> tuple[dict | None, float | None]:
    source = Path(app.srcdir) / f"{page}.ipynb"
    cache = Path(getattr(app.config, "nb_execution_cache_path", "") or "")
    ran = (getattr(app.env, "nb_metadata", {}).get(page) or {}).get("exec_data")
    if not source.is_file() or not ran or not ran.get("succeeded"):
        return None, None
    if not (cache / "global.db").is_file():
        return None, ran["mtime"]
    import nbformat
    from jupyter_cache import get_cache

    store = get_cache(str(cache))
    notebook = nbformat.read(source, 4)
    try:
        record = store.match_cache_notebook(notebook)
        _, merged = store.merge_match_into_notebook(notebook)
    except KeyError:
        return None, ran["mtime"]
    return merged, record.created.replace(tzinfo=UTC).timestamp()
