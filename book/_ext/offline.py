"""The pages load nothing from anywhere else, so that they open with the network off.

Links that a reader may click stay; what a browser would fetch by itself (scripts, styles, fonts,
pictures) must lie beside the page. Known strays of the theme's helpers are removed, and the build
fails when another one turns up.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from sphinx.util import logging

logger = logging.getLogger(__name__)
LOADING_LINKS = {"stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "icon",
                 "modulepreload", "shortcut", "manifest"}  # fmt: skip


def is_elsewhere(url: str | None) -> bool:
    """Whether a browser would leave the site for this address."""
    return bool(url) and url.strip().lower().startswith(("http://", "https://", "//", "ftp://"))


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        urls = [given.get("src"), given.get("poster"), given.get("data")]
        urls += [part.strip().split(" ")[0] for part in (given.get("srcset") or "").split(",")]
        if tag == "link" and LOADING_LINKS & set((given.get("rel") or "").lower().split()):
            urls.append(given.get("href"))
        self.found += [url for url in urls if is_elsewhere(url)]


def loads_from_elsewhere(html: str) -> list[str]:
    """Addresses outside the site that a browser would fetch to show this page."""
    parser = _Loads()
    parser.feed(html)
    parser.close()
    return parser.found


def _drop_strays(app, pagename, templatename, context, doctree):
    """Leave out Thebe (a second declaration of its constants is an error) and off-site files."""

    def stays(file) -> bool:
        name = str(getattr(file, "filename", file) or "")
        code = str(getattr(file, "attributes", {}).get("body", ""))
        return not is_elsewhere(name) and "thebe" not in name.lower() and "THEBE" not in code

    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if stays(file)]


def _check_pages(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for url in loads_from_elsewhere(page.read_text(encoding="utf-8")):
            logger.warning("%s would fetch %s", page.relative_to(app.outdir), url,
                           type="offline", subtype="load")  # fmt: skip


def setup(app):
    # Late, after the extensions that add their scripts to the page.
    app.connect("html-page-context", _drop_strays, priority=900)
    app.connect("build-finished", _check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
